"""Mean IoU as a metric of `evaluate` that streams: it keeps one confusion matrix and no image.

    metric = MeanIoU(num_labels=21)
    for batch in batches:
        metric.add_batch(predictions=predicted, references=masks)
    metric.compute()["mean_iou"]

`evaluate.load("mean_iou")` asks the Hub, and stores all masks in Arrow files until `compute`.
"""

import math
from collections.abc import Iterable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np
import torch
from torch import Tensor


def confusion_matrix(
    prediction: np.ndarray, target: np.ndarray, classes: int, ignore: int = 255
) -> np.ndarray:
    """Pixel counts (classes, classes + 1) int64: rows are the target's ids, columns the prediction's, and the
    last column counts predictions that are no class.

    Args:
        prediction: ids, any shape. An id that is no class is a miss of the target's class.
        target: ids of the same shape; pixels that are `ignore` are not counted.

    Raises ValueError for other target ids that are no class, and for shapes that differ.
    """
    predicted, ids = (torch.from_numpy(np.asarray(part).astype(np.int32)) for part in (prediction, target))
    return count_pixels(predicted[None], ids, classes, ignore)[0].numpy()


def count_pixels(predictions: Tensor, target: Tensor, classes: int, ignore: int) -> Tensor:
    """The confusion matrices (K, classes, classes + 1) int64 of K predictions (K, ...) against one target
    (...), as `confusion_matrix` counts them, on the tensors' device; ids are int32.
    """
    if predictions.shape[1:] != target.shape:
        raise ValueError(f"a prediction of {[*predictions.shape[1:]]} for a target of {[*target.shape]}")
    # Pixels that are ignored, or whose id is no class, have rows and columns of their own: no pixel has to be
    # picked out, and one pass of bincount counts everything.
    below, above, ignored = 0, classes + 1, classes + 2
    side = classes + 2
    rows = target.clamp(-1, classes).add_(1).masked_fill_(target == ignore, ignored).mul_(side)
    bins = predictions.clamp(-1, classes).add_(1).add_(rows).flatten(1)
    bins += torch.arange(len(bins), dtype=bins.dtype, device=bins.device)[:, None] * ((classes + 3) * side)
    counts = torch.bincount(bins.flatten(), minlength=len(predictions) * (classes + 3) * side)
    counts = counts.reshape(len(predictions), classes + 3, side)
    if counts[:, below].any() or counts[:, above].any():
        raise ValueError(f"the target holds ids that are neither one of {classes} classes nor {ignore}")
    counts = counts[:, 1:above]
    return torch.cat([counts[:, :, 1:above], counts[:, :, [below]] + counts[:, :, [above]]], 2)


def class_iou(matrix: np.ndarray) -> np.ndarray:
    """Intersection over union by class, (classes,) in 0 to 1; NaN for a class that is in neither mask."""
    hit = np.diagonal(matrix).astype(np.float64)
    union = matrix.sum(1) + matrix[:, : len(matrix)].sum(0) - hit
    return np.divide(hit, union, out=np.full(len(matrix), np.nan), where=union > 0)


def mean_iou(matrix: np.ndarray) -> float:
    """Mean IoU over the classes that are in either mask, 0 to 1; NaN if there is none."""
    iou = class_iou(matrix)
    return float(iou[~np.isnan(iou)].mean()) if (~np.isnan(iou)).any() else float("nan")


class MeanIoU(evaluate.Metric):
    """Mean IoU, IoU by class and pixel accuracy from one confusion matrix over all pixels.

    A mask is an (H, W) array of ids in its image's own size; a batch is a list of them, or (N, H, W).

    Args:
        num_labels: the number of classes.
        ignore_index: the id of reference pixels that are not counted.
        names: the class names by id; by default the ids as text.

    Attributes:
        matrix: (num_labels, num_labels + 1) int64, as `confusion_matrix` returns it. Several processes sum
            theirs before `compute`.
        num_images: the number of images that were counted.
    """

    def __init__(
        self, num_labels: int, ignore_index: int = 255, names: Sequence[str] | None = None, **settings: Any
    ) -> None:
        if settings.get("num_process", 1) != 1:
            raise ValueError("MeanIoU counts in one process: sum the `matrix` of all processes instead")
        self.num_labels, self.ignore_index = num_labels, ignore_index
        self.names = [str(i) for i in range(num_labels)] if names is None else list(names)
        if len(self.names) != num_labels:
            raise ValueError(f"{len(self.names)} names for {num_labels} labels")
        self._reset()
        super().__init__(**settings)

    def _info(self) -> evaluate.MetricInfo:
        mask = datasets.Sequence(datasets.Sequence(datasets.Value("uint16")))
        return evaluate.MetricInfo(
            description=__doc__,
            citation="",
            inputs_description=type(self).__doc__,
            features=datasets.Features({"predictions": mask, "references": mask}),
        )

    def add(self, *, prediction: np.ndarray, reference: np.ndarray, **_: Any) -> None:
        """Count one image. Raises ValueError for masks of different sizes, and for an id of the reference
        that is neither a class nor ignored.
        """
        self.add_counts(confusion_matrix(prediction, reference, self.num_labels, self.ignore_index))

    def add_counts(self, matrix: np.ndarray) -> None:
        """Add the confusion matrix of one image, which `count_pixels` may have counted."""
        self.matrix += matrix
        self.num_images += 1

    def add_batch(self, *, predictions: Iterable, references: Iterable, **_: Any) -> None:
        """Count the images of a batch, as `add` does."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def compute(
        self, *, predictions: Iterable | None = None, references: Iterable | None = None, **_: Any
    ) -> dict[str, Any]:
        """`mean_iou` (over the classes that are in either mask), `per_class_iou` by name, `pixel_accuracy`
        (of the pixels that are not ignored) and `num_images`; then counting starts again. The values are in 0
        to 1, and None, as JSON has no NaN, if there is nothing to measure.
        """
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        pixels, hits = int(self.matrix.sum()), int(np.diagonal(self.matrix).sum())
        ious = map(_number_or_none, class_iou(self.matrix).tolist())
        metrics = {
            "mean_iou": _number_or_none(mean_iou(self.matrix)),
            "per_class_iou": dict(zip(self.names, ious, strict=True)),
            "pixel_accuracy": hits / pixels if pixels else None,
            "num_images": self.num_images,
        }
        self._reset()
        return metrics

    def _reset(self) -> None:
        self.matrix = np.zeros((self.num_labels, self.num_labels + 1), np.int64)
        self.num_images = 0


def _number_or_none(value: float) -> float | None:
    return None if math.isnan(value) else value
