"""Checkpoints: a folder in transformers' format with network A at its root and network B in `peer/`.

    checkpoint = load_checkpoint("runs/r50")            # ours: both networks, of a folder or a Hub id
    pipeline("image-segmentation", model="runs/r50")    # anyone's: network A

A folder is replaced as a whole: what is killed while it saves leaves the former checkpoint or the new one.
"""

import json
import os
import shutil
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from safetensors import SafetensorError
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedModel
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

import attn2mask.training  # noqa: F401 (makes DeepLabv3+ known)
from attn2mask.builders.errors import UserError
from attn2mask.training.models import quiet

PEER, CONFIG = "peer", "training_config.json"
_WRITING, _WRITTEN = ".checkpoint-writing", ".checkpoint-written"


@dataclass
class Checkpoint:
    """What a folder holds. `peer` is network B, None where one network was trained alone; `table_name` is
    empty for networks that this project did not train; `names` are the classes by id.
    """

    network: PreTrainedModel
    peer: PreTrainedModel | None
    processor: Any
    table_name: str
    names: tuple[str, ...]
    config: dict[str, Any]


def make_processor(size: int | None = None) -> SegformerImageProcessorPil:
    """An image processor with ImageNet's mean and standard deviation, which needs no torchvision.

    Args:
        size: pixels of a picture's shorter side; None leaves pictures as they are, as VOC is evaluated.
    """
    return SegformerImageProcessorPil(do_resize=size is not None, size={"shortest_edge": size or 512})


def save_checkpoint(
    folder: Path,
    network: PreTrainedModel,
    peer: PreTrainedModel | None,
    processor: Any,
    config: dict[str, Any],
) -> None:
    """Write a checkpoint into `folder`, in place of the one there; other files in it stay.

    Args:
        config: what the training was told; goes to training_config.json.
    """
    writing = folder / _WRITING
    _settle(folder)
    shutil.rmtree(writing, ignore_errors=True)
    with quiet():
        network.save_pretrained(writing)
        processor.save_pretrained(writing)
        if peer is not None:
            peer.save_pretrained(writing / PEER)
    (writing / CONFIG).write_text(json.dumps(config, indent=2) + "\n")
    os.replace(writing, folder / _WRITTEN)  # from here on the new checkpoint is the one that counts
    _settle(folder)


def load_checkpoint(path_or_hub_id: str | Path) -> Checkpoint:
    """Read a checkpoint, its networks in float32, on the CPU, in evaluation mode.

    Raises UserError for what is neither a folder nor on the Hub, or holds no segmentation network whose
    weights are all there.
    """
    folder = _local(path_or_hub_id)
    _settle(folder)
    if not (folder / "config.json").is_file():
        raise UserError(f"checkpoint {path_or_hub_id} holds no config.json: is it what training wrote?")
    network = _load_network(folder, path_or_hub_id)
    peer = _load_network(folder / PEER, path_or_hub_id) if (folder / PEER).is_dir() else None
    try:
        processor = AutoImageProcessor.from_pretrained(folder, backend="pil")
        config = json.loads((folder / CONFIG).read_text()) if (folder / CONFIG).exists() else {}
    except (OSError, ValueError) as error:
        raise UserError(f"checkpoint {path_or_hub_id}: {_reason(error)}") from error
    names = tuple(network.config.id2label[index] for index in range(network.config.num_labels))
    return Checkpoint(network, peer, processor, getattr(network.config, "class_table", ""), names, config)


def is_exported(folder: Path) -> bool:
    """Whether a folder holds a whole checkpoint; one that a kill left half moved is moved on."""
    _settle(folder)
    return (folder / "config.json").is_file()


def _settle(folder: Path) -> None:
    """Move a checkpoint that is written whole to its place; what a kill left half moved is moved on."""
    written = folder / _WRITTEN
    with suppress(FileNotFoundError):  # nothing to move, or another process moves it
        if PEER not in os.listdir(written):
            shutil.rmtree(folder / PEER, ignore_errors=True)
        for file in sorted(path for path in written.rglob("*") if path.is_file()):
            target = folder / file.relative_to(written)
            target.parent.mkdir(exist_ok=True)
            os.replace(file, target)
        os.replace(written, folder / _WRITING)
        shutil.rmtree(folder / _WRITING)


def _local(path_or_hub_id: str | Path) -> Path:
    """The folder itself, or where the Hub's copy of it lies."""
    if Path(path_or_hub_id).is_dir():
        return Path(path_or_hub_id)
    try:
        with quiet():
            return Path(snapshot_download(str(path_or_hub_id), allow_patterns=["*.json", "*.safetensors"]))
    except (OSError, ValueError, HfHubHTTPError) as error:
        raise UserError(
            f"checkpoint {path_or_hub_id!s} is no folder, and not to be had from the Hub: {_reason(error)}"
        ) from error


def _load_network(folder: Path, source: str | Path) -> PreTrainedModel:
    try:
        with quiet():
            network, report = AutoModelForSemanticSegmentation.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, use_safetensors=True
            )
    except (OSError, ValueError, RuntimeError, SafetensorError) as error:
        raise UserError(f"checkpoint {source}: {_reason(error)}") from error
    if report["missing_keys"]:
        raise UserError(
            f"checkpoint {source}: the weights in {folder} lack {len(report['missing_keys'])} tensors of a "
            f"{type(network).__name__}, such as {min(report['missing_keys'])}"
        )
    return network.eval()


def _reason(error: Exception) -> str:
    """The first line of an error."""
    return (str(error).strip() or type(error).__name__).splitlines()[0]
