"""The origin of an artefact: versions, the commit, licenses, and the identity of the painter's weights."""

import hashlib
import json
import platform
import subprocess
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, metadata, version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attn2mask.builders.errors import UserError
from attn2mask.builders.seals import RECORD, check_weights

if TYPE_CHECKING:
    from torch import nn

FORMAT_VERSION = 3  # of build.json and training_config.json
LIBRARIES = "attn2mask torch diffusers transformers accelerate peft datasets pillow scipy pydensecrf2".split()
# The file of a LoRA in diffusers' format, and the record that `attn2mask adapt` writes beside it.
LORA_WEIGHTS, LORA_RECORD = "pytorch_lora_weights.safetensors", RECORD


def provenance() -> dict[str, Any]:
    """`versions` of the libraries, and `git_commit` if this package runs from its repository, else None."""
    versions = {"python": platform.python_version()}
    for library in LIBRARIES:
        with suppress(PackageNotFoundError):
            versions[library] = version(library)
    root = Path(__file__).resolve().parents[1]
    commit = None
    if (root / ".git").exists():
        command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        with suppress(OSError):
            git = subprocess.run(command, capture_output=True, text=True, check=False)
            commit = git.stdout.strip() or None
    return {"versions": versions, "git_commit": commit}


def license_of(source: str, revision: str | None = None) -> str | list[str] | None:
    """The license of a painter or a LoRA, from its card (README.md): beside a file, in a folder, or on the
    Hub; None if no card names it. The license of "embedded" is that of this project.
    """
    if source == "embedded":
        return metadata("attn2mask")["License-Expression"].lower()
    from huggingface_hub import ModelCard

    card = text_beside(source, "README.md", revision)
    try:
        return None if card is None else ModelCard(card, ignore_metadata_errors=True).data.get("license")
    except ValueError:
        return None


def fingerprint(network: "nn.Module") -> str:
    """SHA-256 over names, shapes and first values in float16 of weights that have any precision."""
    import torch

    total = hashlib.sha256()
    for name, weight in sorted(network.state_dict().items()):
        total.update(f"{name} {tuple(weight.shape)}".encode())
        total.update(weight.flatten()[:64].to("cpu", torch.float16).numpy().tobytes())
    return f"sha256:{total.hexdigest()}"


def check_base(lora: str, unet: "nn.Module", model: str) -> None:
    """Raises UserError if the record beside a LoRA, if there is one, names another painter than `model`, and
    as `check_weights`.
    """
    if Path(lora).is_dir():
        check_weights(Path(lora))
    record = lora_record(lora)
    if "base_fingerprint" in record and record["base_fingerprint"] != fingerprint(unet):
        base = f"{record.get('base_model')} ({str(record.get('base_version'))[:14]})"
        raise UserError(
            f"--lora {lora} adapts {base}, but --model {model} has other weights: give the adapted model"
        )


def lora_record(lora: str) -> dict[str, Any]:
    """The record beside a LoRA, on this machine or on the Hub; empty if there is none that can be read."""
    try:
        record = json.loads(text_beside(lora, LORA_RECORD) or "{}")
    except ValueError:
        return {}
    return record if isinstance(record, dict) else {}


def text_beside(source: str, name: str, revision: str | None = None, kind: str = "model") -> str | None:
    """The text of a file as `file_beside` finds it; None if there is none, or no text."""
    file = file_beside(source, name, revision, kind)
    try:
        return None if file is None else file.read_text("utf-8")
    except (OSError, ValueError):
        return None


def file_beside(source: str, name: str, revision: str | None = None, kind: str = "model") -> Path | None:
    """A file beside a file, in a folder, or in a repository of the Hub; None if it has none.

    `kind` is that of the repository: model or dataset.
    """
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import HTTPError

    path = Path(source)
    try:
        if path.exists():
            file = (path if path.is_dir() else path.parent) / name
            return file if file.is_file() else None
        return Path(hf_hub_download(source, name, revision=revision, repo_type=kind))
    except (OSError, ValueError, HTTPError):
        return None
