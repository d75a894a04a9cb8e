"""The size at which trained networks predict: chosen at the end of training, on images without a score.

A network that trained on crops of many scales can predict at several sizes, and the size of its crops is
often not the best one. The image processor of the checkpoint gets the size with the highest mean IoU.
"""

from collections.abc import Iterable, Iterator, Sequence
from itertools import islice
from typing import Any

import numpy as np
import torch
from torch import nn

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.reliability import RELIABLE
from attn2mask.training.benchmarks import Example
from attn2mask.training.checkpoint import make_processor
from attn2mask.training.data import Crops
from attn2mask.training.evaluation import evaluate

IMAGES = 48  # on which the size is chosen


def mean_iou_by_size(
    network: nn.Module,
    images: Sequence[Example],
    table: ClassTable,
    sizes: Iterable[int],
    device: torch.device | str | None = None,
) -> dict[int, float | None]:
    """The mean IoU, 0 to 1, of a network on images by the size in pixels of their shorter side in prediction.
    It is None if all pixels are ignored. There is no test-time augmentation.
    """
    return {
        size: evaluate([network], make_processor(size), images, table, device=device, progress=False)
        .metrics["both"]
        .compute()["mean_iou"]
        for size in sizes
    }


def best_size(mean_iou: dict[int, float | None]) -> int:
    """The size with the highest mean IoU; of equal ones, and without any, the first."""
    return max(mean_iou, key=lambda size: mean_iou[size] or 0)


def examples_of_rows(rows: Iterable[dict[str, Any]], crops: Crops, count: int = IMAGES) -> Iterator[Example]:
    """The first `count` rows of a training as examples. Pixels that are not reliable are ignored."""
    for number, row in enumerate(islice(rows, count)):
        name = str(row.get("sample_id") or number)
        image, mask, trust = map(np.asarray, crops.opened(row, name))
        target = np.where(trust >= RELIABLE, mask, crops.table.ignore_index)
        yield Example(name, image, target.astype(np.int32))
