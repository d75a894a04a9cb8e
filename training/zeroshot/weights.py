"""Weights of zero-shot segmenters: from the Hub, a folder, or a file.

Only safetensors and files that `torch.load` reads with `weights_only=True` are read.
"""

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedModel

from attn2mask.builders.errors import UserError, first_line
from attn2mask.training.backbones import quiet, read_state

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # of a repository; weights, if there are none, below
_OTHER_WEIGHTS = ["pytorch_model.bin", "pytorch_model-*.bin"]


def find_folder(weights: str) -> Path:
    """The folder of a model: `weights` itself, or the local copy of the Hub's repository.

    Raises UserError if it is a file, or neither a folder nor on the Hub.
    """
    path = Path(weights)
    if path.is_dir():
        return path
    if path.is_file():
        raise UserError(f"--weights {weights} is a file, but this method needs a folder or a name on the Hub")
    try:
        with quiet():
            folder = Path(snapshot_download(weights, allow_patterns=_FILES))
            if not any(folder.glob("*.safetensors")):
                snapshot_download(weights, allow_patterns=_OTHER_WEIGHTS)
            return folder
    except (OSError, ValueError, HTTPError) as error:
        raise UserError(
            f"--weights {weights}: there is no such folder, and it cannot be loaded from the Hub: "
            f"{first_line(error)}"
        ) from error


def load_model(folder: Path, kind: type[PreTrainedModel], weights: str, **options: Any) -> PreTrainedModel:
    """The model of class `kind` in a folder of transformers' format, in float32 and in evaluation mode.

    Raises UserError for weights of another architecture, for incomplete weights, and for files that cannot be
    read.
    """
    expected = kind.config_class.model_type
    try:
        found = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"--weights {weights} has no config.json that can be read") from error
    if found != expected:
        raise UserError(
            f"--weights {weights} is a model of type {found}; this method needs one of {expected}"
        )
    try:
        with quiet():
            model, report = kind.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, **options
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"--weights {weights}: {first_line(error)}") from error
    if report["missing_keys"]:
        raise UserError(
            f"--weights {weights}: the weights lack {len(report['missing_keys'])} tensors of a"
            f" {kind.__name__}, such as {min(report['missing_keys'])}"
        )
    return model.eval()


def load_tokenizer(folder: Path | str, weights: str) -> Any:
    """The tokenizer in a folder, or of a name on the Hub. Raises UserError if there is none."""
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder)
    except (OSError, ValueError, KeyError, HTTPError) as error:
        raise UserError(f"--weights {weights}: no tokenizer can be loaded: {first_line(error)}") from error
    # Where the files of the tokenizer are missing, transformers makes one that knows no word.
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        raise UserError(f"--weights {weights}: no tokenizer can be loaded: there is no vocabulary")
    return tokenizer


def load_published(file: Path, ignored: tuple[str, ...] = ()) -> Mapping[str, Tensor]:
    """The tensors of a published file, without those whose names begin with one of `ignored`.

    Raises UserError for a file that holds other objects than tensors, which only an unsafe reader could read.
    """
    state = read_state(file, "--weights")
    return {name: tensor for name, tensor in state.items() if not name.startswith(ignored)}


def record_of(weights: str, folder: Path) -> dict[str, Any]:
    """What metrics.json says of weights: their name, revision on the Hub, and the SHA-256 of the file."""
    revision = folder.name if folder.parent.name == "snapshots" else None
    file = folder if folder.is_file() else folder / "model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
    return {"weights": weights, "revision": revision, "sha256": digest}
