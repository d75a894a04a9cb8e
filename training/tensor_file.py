"""Tensors and a JSON note in one safetensors file with its own checksum.

    write_tensors(file, {"weight": torch.zeros(3)}, {"step": 5})
    tensors, note = open_tensors(file, "delete it")
    tensors.get_tensor("weight")

The file is replaced in one step. The checksum is in the file, so that a kill cannot part them.
"""

import hashlib
import json
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save

from attn2mask.builders.errors import UserError
from attn2mask.builders.files import write_file


def write_tensors(file: Path, tensors: Mapping[str, torch.Tensor], note: Mapping[str, Any]) -> None:
    """Write tensors and a note. Raises OSError."""
    content = {name: torch.as_tensor(tensor).detach().cpu().contiguous() for name, tensor in tensors.items()}
    text = json.dumps(note)
    checksum = _checksum(text, content, content.__getitem__)
    write_file(file, save(content, {"note": text, "sha256": checksum}))  # `save_file` would hide a full disk


def open_tensors(file: Path, advice: str, verify: bool = True) -> tuple[Any, dict[str, Any]]:
    """The open file, which reads a tensor when it is asked for it, and the note.

    Raises UserError with the `advice` if the file is damaged. Without `verify`, its checksum is not compared.
    """
    try:
        tensors = safe_open(file, "pt")
        metadata = tensors.metadata()
        text, checksum = metadata["note"], metadata["sha256"]
        note = json.loads(text)
        if not isinstance(note, dict):
            raise ValueError("the note is not a mapping")
        if verify and _checksum(text, tensors.keys(), tensors.get_tensor) != checksum:
            raise ValueError("the checksum differs")
    except (SafetensorError, LookupError, RecursionError, TypeError, ValueError) as error:
        raise UserError(f"{file} is damaged: {advice}") from error
    return tensors, note


def _checksum(note: str, names: Iterable[str], tensor: Callable[[str], torch.Tensor]) -> str:
    """SHA-256 over the note, and over names, types, shapes and bytes of the tensors."""
    total = hashlib.sha256(note.encode())
    for name in sorted(names):
        values = tensor(name)
        total.update(f"\n{name} {values.dtype} {tuple(values.shape)}\n".encode())
        total.update(values.reshape(-1).view(torch.uint8).numpy().data)
    return total.hexdigest()
