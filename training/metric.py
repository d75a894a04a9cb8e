"""Mean IoU as a metric of `evaluate`, which streams: it keeps one confusion matrix and no picture.

    metric = MeanIoU(num_labels=21)
    for batch in batches:
        metric.add_batch(predictions=found, references=masks)
    metric.compute()["mean_iou"]

`evaluate.load("mean_iou")` asks the Hub, and stores all masks in Arrow files until `compute`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import datasets
import evaluate
import numpy as np

from attn2mask.training.evaluation import confusion_matrix, figures


class MeanIoU(evaluate.Metric):
    """Mean IoU, IoU by class and pixel accuracy from one confusion matrix over all pixels.

    A mask is an (H, W) array of ids in its picture's own size; a batch is a list of them, or (N, H, W).
    `matrix`, (num_labels, num_labels + 1) int64, may be summed over processes before `compute`.

    Args:
        num_labels: how many classes there are.
        ignore_index: the id of reference pixels that are left out.
        names: of the classes by id; by default their ids as text.
    """

    def __init__(
        self,
        num_labels: int,
        ignore_index: int = 255,
        names: Sequence[str] | None = None,
        **settings: Any,
    ) -> None:
        if settings.get("num_process", 1) != 1:
            raise ValueError("MeanIoU keeps its counts in one process: add the `matrix` of each instead")
        self.num_labels, self.ignore_index = num_labels, ignore_index
        self.names = [str(i) for i in range(num_labels)] if names is None else list(names)
        if len(self.names) != num_labels:
            raise ValueError(f"{len(self.names)} names for {num_labels} labels")
        self._forget()
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
        """Count one picture. Raises ValueError for masks of different sizes, or a reference's id that is
        neither a class nor ignored.
        """
        self.matrix += confusion_matrix(prediction, reference, self.num_labels, self.ignore_index)
        self.num_images += 1

    def add_batch(self, *, predictions: Iterable, references: Iterable, **_: Any) -> None:
        """Count the pictures of a batch, as `add` does."""
        for prediction, reference in zip(predictions, references, strict=True):
            self.add(prediction=prediction, reference=reference)

    def compute(
        self, *, predictions: Iterable | None = None, references: Iterable | None = None, **_: Any
    ) -> dict[str, Any]:
        """`mean_iou` over the classes that are in either mask, `per_class_iou` by name, `pixel_accuracy` (0
        to 1, None where there is nothing to measure) and `num_images`; begins anew afterwards.
        """
        if predictions is not None:
            self.add_batch(predictions=predictions, references=references)
        found = {**figures(self.matrix, self.names), "num_images": self.num_images}
        self._forget()
        return found

    def _forget(self) -> None:
        self.matrix = np.zeros((self.num_labels, self.num_labels + 1), np.int64)
        self.num_images = 0
