"""Checkpoints: a folder in transformers' format with network A at its root and network B in `peer/`.

    checkpoint = load_checkpoint("runs/r50")            # both networks, from a folder or the Hub
    pipeline("image-segmentation", model="runs/r50")    # network A, by plain transformers

A checkpoint is replaced as a whole: if the process is killed while it saves, the folder holds the old one or
the new one. Its record holds the SHA-256 of all weights and of itself (see `seals.py`).
"""

import json
import os
import shutil
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HfHubHTTPError
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation, PreTrainedModel
from transformers.models.segformer.image_processing_pil_segformer import SegformerImageProcessorPil

import attn2mask.training.deeplabv3plus  # noqa: F401 (registers DeepLabv3+)
from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.files import set_usual_mode
from attn2mask.builders.loading import check_all_loaded, quiet
from attn2mask.builders.records import read_record
from attn2mask.builders.seals import RECORD, check_weights, with_weights
from attn2mask.training.backbones import find_backbone
from attn2mask.training.inference import LONGEST, SHORTEST, pixels_of
from attn2mask.training.records import TrainingRecord

PEER, OPTIONS = "peer", "train.yaml"
_WRITING, _WRITTEN = ".checkpoint-writing", ".checkpoint-written"


@dataclass
class Checkpoint:
    """The content of a checkpoint. `peer` is network B, or None if one network was trained alone;
    `table_name` is empty for networks that this project did not train; `names` are the classes by id;
    `record` is the content of training_config.json.
    """

    network: PreTrainedModel
    peer: PreTrainedModel | None
    processor: Any
    table_name: str
    names: tuple[str, ...]
    record: dict[str, Any]


def make_processor(size: int | None = None) -> SegformerImageProcessorPil:
    """An image processor with ImageNet's mean and standard deviation, which needs no torchvision. It resizes
    the shorter side of images to `size` pixels; None does not resize them, as is usual for VOC.
    """
    return SegformerImageProcessorPil(do_resize=size is not None, size={"shortest_edge": size or 512})


def save_checkpoint(
    folder: Path,
    network: PreTrainedModel,
    peer: PreTrainedModel | None,
    processor: Any,
    record: dict[str, Any],
    options: str = "",
) -> None:
    """Write a checkpoint into `folder` in place of the one there. Other files in the folder stay. `record` is
    the content of training_config.json, and `options` that of train.yaml; if it is empty, none is written.
    """
    writing = folder / _WRITING
    _settle(folder)
    shutil.rmtree(writing, ignore_errors=True)
    with quiet():
        network.save_pretrained(writing)
        processor.save_pretrained(writing)
        if peer is not None:
            peer.save_pretrained(writing / PEER)
    weights = sorted(file.relative_to(writing).as_posix() for file in writing.rglob("*.safetensors"))
    (writing / RECORD).write_text(json.dumps(with_weights(record, writing, weights), indent=2) + "\n")
    if options:
        (writing / OPTIONS).write_text(options)
    set_usual_mode(writing)
    os.replace(writing, folder / _WRITTEN)  # from here on, the new checkpoint counts
    _settle(folder)


def load_checkpoint(
    path_or_hub_id: str | Path, trust_remote_code: bool = False, verify: bool = True
) -> Checkpoint:
    """Read a checkpoint. Its networks are in float32, on the CPU, in evaluation mode.

    With `trust_remote_code`, Python modules of the checkpoint may run, if its records name them. DeepLabv3+
    needs none: its own code is that of this package. With `verify`, weights and record are compared with the
    checksums in the record, if it has any.

    Raises UserError if it is neither a folder nor on the Hub, if it holds no segmentation network with all of
    its weights, if it needs code of its own that it may not run, and as `check_weights`.
    """
    folder = _local(path_or_hub_id, ["*.py"] if trust_remote_code else [])
    _settle(folder)
    if not (folder / "config.json").is_file():
        raise UserError(
            f"checkpoint {path_or_hub_id} holds no config.json: give a folder that training wrote"
        )
    if verify:
        check_weights(folder)
    record = read_record(folder / RECORD, TrainingRecord)
    options = record.get("options", {})
    if options.get("trust_remote_code"):
        if not trust_remote_code:
            raise _needs_code(path_or_hub_id, "has a backbone with")
        find_backbone(options.get("backbone") or "", trust_remote_code)  # registers its classes
    load = partial(_load_network, source=path_or_hub_id, trust_remote_code=trust_remote_code)
    network = load(folder)
    peer = load(folder / PEER) if (folder / PEER).is_dir() else None
    try:
        processor = AutoImageProcessor.from_pretrained(
            folder, backend="pil", trust_remote_code=trust_remote_code
        )
        _try_processor(processor)
    except Exception as error:  # of any type: transformers checks little of a damaged record
        raise _not_loaded(path_or_hub_id, error) from error
    names = tuple(network.config.id2label[index] for index in range(network.config.num_labels))
    return Checkpoint(network, peer, processor, getattr(network.config, "class_table", ""), names, record)


def is_exported(folder: Path) -> bool:
    """Whether a folder holds a checkpoint as it was written. One that a killed process moved in part is moved
    first.
    """
    _settle(folder)
    try:
        check_weights(folder)
    except UserError:
        return False
    return (folder / "config.json").is_file() and (folder / RECORD).is_file()


def _settle(folder: Path) -> None:
    """Move a completely written checkpoint to its place, also if a killed process moved it in part."""
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


def _local(path_or_hub_id: str | Path, more: Sequence[str]) -> Path:
    """The folder itself, or the local copy of the Hub's repository, with the files that match `more`."""
    if Path(path_or_hub_id).is_dir():
        return Path(path_or_hub_id)
    try:
        with quiet():
            kinds = ["*.json", "*.safetensors", *more]
            return Path(snapshot_download(str(path_or_hub_id), allow_patterns=kinds))
    except (OSError, ValueError, HfHubHTTPError) as error:
        reason = f"it is not a folder and cannot be loaded from the Hub: {first_line(error)}"
        raise UserError(f"checkpoint {path_or_hub_id!s}: {reason}") from error


def _load_network(folder: Path, source: str | Path, trust_remote_code: bool) -> PreTrainedModel:
    try:
        with quiet():
            network, report = AutoModelForSemanticSegmentation.from_pretrained(
                folder,
                dtype=torch.float32,
                output_loading_info=True,
                use_safetensors=True,
                trust_remote_code=trust_remote_code,
            )
    except Exception as error:  # of any type: transformers checks little of a damaged record
        raise _not_loaded(source, error) from error
    check_all_loaded(f"checkpoint {source}, {folder}", network, report)
    return network.eval()


def _try_processor(processor: Any) -> None:
    """Let an image processor process a small image. Raises an error of any type if it cannot, and ValueError
    if it would make images too large or pixels that are not finite.
    """
    if getattr(processor, "do_resize", False) and max(filter(None, dict(processor.size).values())) > LONGEST:
        raise ValueError(f"its image processor makes images of more than {LONGEST} pixels")
    if not pixels_of(processor, np.zeros((SHORTEST, SHORTEST, 3), np.uint8)).isfinite().all():
        raise ValueError("its image processor makes pixels that are not finite")


def _needs_code(source: str | Path, has: str) -> UserError:
    return UserError(
        f"checkpoint {source} {has} Python code of its own, which is not run: read the code, and give"
        " --trust-remote-code to `attn2mask evaluate` if you trust it"
    )


def _not_loaded(source: str | Path, error: Exception) -> UserError:
    """What to do about a checkpoint that does not load."""
    if "trust_remote_code" in str(error):
        return _needs_code(source, "holds")
    return UserError(f"checkpoint {source}: {first_line(error)}")
