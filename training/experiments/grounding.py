"""Grounding: how well the attention of each class word covers its thing, without any rule for masks.

The measures need images whose masks are known, such as drawn scenes, and the attention that was recorded on
them (`mask_quality.record_scenes`).
"""

from collections import defaultdict
from collections.abc import Iterable

import numpy as np
import torch.nn.functional as F
from scipy.stats import rankdata
from torch import Tensor

from attn2mask.training.mask_quality import RecordedImage

THRESHOLDS = np.linspace(0.05, 0.95, 19)  # of maps that are scaled to 0 to 1


def area_under_curve(scores: np.ndarray, inside: np.ndarray) -> float:
    """The area under the ROC curve of `scores` (N,) for the positions `inside` (N,) bool, 0 to 1.

    It is the probability that a position inside has a higher score than one outside (Mann-Whitney U). Ties
    count half. There must be positions of both kinds.
    """
    positive = np.count_nonzero(inside)
    ranks = rankdata(scores)[inside].sum() - positive * (positive + 1) / 2
    return float(ranks / (positive * (len(inside) - positive)))


def _enlarged(attention: Tensor, size: tuple[int, int]) -> np.ndarray:
    """A map (h, w) at the height and width of the image, bilinearly, as (height * width,)."""
    return F.interpolate(attention[None, None].float().cpu(), size, mode="bilinear")[0, 0].flatten().numpy()


def grounding(
    recorded: Iterable[RecordedImage], targets: Iterable[np.ndarray]
) -> dict[str, dict[str, float]]:
    """The grounding of all class words of the images, by the size of their maps ("16x16").

    Args:
        recorded: images with the attention maps of their classes.
        targets: the mask (H, W) of ids of each image. A class that covers no pixel, or all, is left out.

    Returns:
        For each size `auc`, the mean area under the ROC curve over the words, 0 to 1; `below_chance`, the
        share of words whose area is below 0.5; `iou`, the mean IoU of the maps, each scaled to 0 to 1, above
        the threshold that is best for all words together; and `threshold`, this threshold.
    """
    areas: dict[str, list[float]] = defaultdict(list)
    ious: dict[str, list[np.ndarray]] = defaultdict(list)
    for image, target in zip(recorded, targets, strict=True):
        for mask_id, maps in zip(image.classes, image.maps, strict=True):
            inside = (target == mask_id).ravel()
            if not inside.any() or inside.all():
                continue
            for (height, width), attention in maps.items():
                scores, name = _enlarged(attention, target.shape[:2]), f"{height}x{width}"
                areas[name].append(area_under_curve(scores, inside))
                scaled = (scores - scores.min()) / max(float(np.ptp(scores)), 1e-12)
                above = scaled > THRESHOLDS[:, None]
                ious[name].append((above & inside).sum(1) / (above | inside).sum(1))
    found = {}
    for name in sorted(areas, key=lambda name: -int(name.split("x")[0])):
        curve = np.mean(ious[name], axis=0)
        found[name] = {
            "auc": float(np.mean(areas[name])),
            "below_chance": float(np.mean(np.array(areas[name]) < 0.5)),
            "iou": float(curve.max()),
            "threshold": float(THRESHOLDS[curve.argmax()]),
        }
    return found
