"""The files that `attn2mask evaluate` writes, as they are read for a comparison.

    metrics = read_metrics(Path("metrics.json"))
    metrics.mean_iou, metrics.interval

Files of earlier versions lack some keys. What they do not say is None.
"""

import json
import os.path
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.table_reader import bare_table, load_table
from attn2mask.training.bootstrap import mean_iou_interval
from attn2mask.training.zeroshot.differences import NAMES, recorded_protocol
from attn2mask.training.zeroshot.protocol import Protocol

_TOLERANCE = 1e-6  # between the mean IoU of a file and that of its counts


@dataclass(frozen=True)
class Images:
    """What a score was measured on. Only scores on equal images may be compared."""

    dataset: str
    split: str | None
    table: str
    names: tuple[str, ...]
    count: int


@dataclass(frozen=True)
class MetricsFile:
    """One evaluation. Shares are 0 to 1, and None where the file does not say them.

    Attributes:
        images: what it was measured on.
        classes_scored: the number of classes in the mean: one less where the background is not scored.
        method: the name of the zero-shot method for `--method`; None for a checkpoint.
        protocol: that of the method.
        weights: of the method, or the checkpoint.
        trained_with_masks: whether the weights are; None for a checkpoint, since the file does not say it.
        options: those of the evaluation.
        interval: the 95 % interval of the mean IoU; None without counts of each image.
        predictions: the folder with the predictions of a few images.
        shown: the names of these images, in the order of their numbers.
    """

    path: Path
    images: Images
    classes_scored: int
    mean_iou: float | None
    boundary_iou: float | None
    mean_iou_given_labels: float | None
    method: str | None
    protocol: Protocol | None
    weights: str | None
    revision: str | None
    trained_with_masks: bool | None
    options: Mapping[str, Any]
    interval: tuple[float, float] | None
    predictions: Path | None
    shown: tuple[str, ...]

    @property
    def table(self) -> ClassTable:
        """A class table with the names of the file."""
        return bare_table(self.images.table, self.images.names)

    @property
    def is_voc(self) -> bool:
        """Whether the classes are VOC's."""
        return self.images.names == load_table("voc").names

    @property
    def name(self) -> str:
        """The name of the method or of the folder of the checkpoint."""
        if self.method is not None:
            return NAMES.get(self.method, self.method)
        return Path(self.weights or "").name or self.path.stem


def read_metrics(path: Path) -> MetricsFile:
    """A metrics file. Raises UserError if it cannot be read, or is none."""
    try:
        record = json.loads(path.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{path} cannot be read: {reason}") from error
    try:
        return _parsed(path, record)
    except (KeyError, TypeError, ValueError, AttributeError, IndexError, OverflowError) as error:
        reason = f"it has no {error}" if isinstance(error, KeyError) else first_line(error)
        raise UserError(f"{path} is no metrics file of `attn2mask evaluate`: {reason}") from error


def labels(files: Sequence[MetricsFile]) -> list[str]:
    """A name for each file: that of its method; where two have the same, also the stem of the file, or else
    its path.
    """
    found = [file.name for file in files]
    for more in (lambda file: file.path.stem, lambda file: file.path):
        counts = Counter(found)
        found = [
            f"{file.name} ({more(file)})" if counts[label] > 1 else label
            for file, label in zip(files, found, strict=True)
        ]
    return found


def _parsed(path: Path, record: dict[str, Any]) -> MetricsFile:
    if not isinstance(record, dict):
        raise TypeError("it is not a mapping of names to values")
    facts = {key: value for key, value in record.items() if key != "image_counts"}
    json.dumps(facts, ensure_ascii=False).encode()  # raises ValueError for what is no text
    evaluated, names = record.get("evaluated") or {}, tuple(record["per_class_iou"].keys())
    if not names:
        raise ValueError("it names no class")
    options, method = evaluated.get("options") or {}, evaluated.get("method") or {}
    dataset, split = options.get("dataset"), options.get("split")
    images = Images(
        "an unknown dataset" if dataset is None else os.path.normpath(dataset),
        None if split is None else str(split),
        str(evaluated.get("table", "an unknown table")),
        names,
        _whole(record["num_images"], "num_images"),
    )
    fixed = evaluated.get("fixed_images") or {}
    folder = fixed.get("folder")
    if folder is not None and Path(folder).name != folder:
        raise ValueError("the folder of its predictions is not beside it")
    score = _share(record["mean_iou"], "mean_iou")
    counts = _counts(record, len(names), images.count, score)
    weights = method.get("weights") if method else options.get("checkpoint")
    return MetricsFile(
        path,
        images,
        _whole(evaluated.get("classes_scored", len(names)), "classes_scored"),
        score,
        _share(record.get("boundary_iou"), "boundary_iou"),
        _share(record.get("mean_iou_given_labels"), "mean_iou_given_labels"),
        str(method["name"]) if method else None,
        recorded_protocol(method["protocol"]) if method.get("protocol") else None,
        None if weights is None else str(weights),
        None if method.get("revision") is None else str(method["revision"]),
        bool(method.get("trained_with_masks", False)) if method else None,
        options,
        None if counts is None else mean_iou_interval(counts),
        None if folder is None else path.parent / folder,
        tuple(map(str, fixed.get("names", ()))),
    )


def _counts(record: dict[str, Any], classes: int, images: int, score: float | None) -> np.ndarray | None:
    """The counts (N, classes, 3) int64 of each image, as `mean_iou_interval` takes them; None if the file has
    none. Raises ValueError if they do not give the mean IoU `score`.
    """
    by_image = record.get("image_counts")
    if by_image is None:
        return None
    if len(by_image) != images:
        raise ValueError(f"it has {images} images, but counts of {len(by_image)}")
    counts = np.zeros((len(by_image), classes + 1, 3), np.int64)  # the last: no class
    for of_image, entry in zip(counts, by_image, strict=True):
        for target, predicted, pixels in entry["confusion"]:
            if not (0 <= target < classes and 0 <= predicted <= classes and pixels >= 0):
                raise ValueError(f"its image_counts hold {[target, predicted, pixels]}")
            of_image[target, 1] += pixels
            of_image[predicted, 2] += pixels
            of_image[target, 0] += pixels * (target == predicted)
    counts = counts[:, :-1]
    hit, target, predicted = counts.sum(0).T
    union = target + predicted - hit
    found = float((hit[union > 0] / union[union > 0]).mean()) if (union > 0).any() else None
    if (found is None) != (score is None) or (found is not None and abs(found - score) > _TOLERANCE):
        raise ValueError(f"its mean IoU is {score}, but its image_counts give {found}")
    return counts


def _share(value: Any, name: str) -> float | None:
    if value is None:
        return None
    if isinstance(value, bool) or not isinstance(value, int | float) or not 0 <= value <= 1:
        raise ValueError(f"its {name} is not a number from 0 to 1")
    return float(value)


def _whole(value: Any, name: str) -> int:
    if isinstance(value, bool) or not isinstance(value, int) or value < 0:
        raise ValueError(f"its {name} is not a whole number")
    return value
