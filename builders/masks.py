"""From scores to a coarse mask: a threshold for each class, and the class that exceeds its threshold by most.

Labels are local to an image: 0 is background, 1 + k is class k of the image, and -1 is ignore (if the class
table has no background, and in an uncertain band). The dense CRF that refines the mask is in `crf`.
"""

from collections.abc import Iterator

import numpy as np
import torch

from attn2mask.builders.crf import DenseCRF, Refined

# The common thresholds that `agreement_threshold` tries beside Otsu's.
CANDIDATES = (0.3, 0.4, 0.5, 0.6)


def otsu(scores: torch.Tensor) -> torch.Tensor:
    """Otsu's thresholds (K,) float32 of scores (K, ...) in [0, 1]. Pixels above the threshold are the class.

    Otsu (1979): the largest between-class variance, over the 256 levels of quantized scores. The best
    thresholds often fill a gap between two levels; its middle is taken, because interpolated scores stay away
    from it. A flat map gets 1, which no score exceeds.
    """
    levels = (scores.flatten(1) * 255).round().long()
    histogram = torch.zeros(len(scores), 256, dtype=torch.float64)
    histogram.scatter_add_(1, levels, torch.ones_like(levels, dtype=torch.float64))
    grey = torch.arange(256, dtype=torch.float64)

    below = histogram.cumsum(1)
    total = below[:, -1:]
    sum_below = (histogram * grey).cumsum(1)
    # Between-class variance, up to a constant factor: (mean * n_below - sum_below)^2 / (n_below * n_above).
    parts = below * (total - below)
    variance = torch.where(parts > 0, (sum_below[:, -1:] * below - sum_below * total) ** 2 / parts, 0.0)
    best = variance == variance.amax(1, keepdim=True)
    first = best.double().argmax(1)
    # The two classes are "level <= t" and "level > t". The first t that is not best anymore is the level at
    # the other end of the gap.
    end = (~best & (grey > first[:, None])).double().argmax(1)
    middle = (first + end) / 2 / 255
    return torch.where(variance.amax(1) > 0, middle, 1.0).float()


def fixed_threshold(beta: float) -> float:
    """The threshold (1 - beta) / 2, 0 to 1 for beta in -1 to 1. A higher score s exceeds the score 1 - s -
    beta of the background; this is the replication's rule.
    """
    return (1 - beta) / 2


def coarse_mask(
    scores: torch.Tensor, thresholds: torch.Tensor, background: bool, band: float = 0.0
) -> torch.Tensor:
    """Local labels (H, W) int64 of scores (K, H, W) and thresholds (K,).

    Class k is a candidate where its score exceeds its threshold. The candidate that exceeds its threshold by
    most wins. A pixel without a candidate is background (0), or -1 if the table has no background, and where
    a score is less than `band` below its threshold. Dataset Diffusion (Nguyen et al. 2023) has such a band.
    """
    excess = scores - thresholds[:, None, None]
    # The background comes first, with an excess of 0, so a class must be above its threshold to win. On CPUs
    # max is ten times as fast as argmax over the first axis, and it also takes the first of equal values.
    labels = torch.cat([excess.new_zeros(1, *excess.shape[1:]), excess]).max(0).indices
    if not background:
        return torch.where(labels > 0, labels, -1)
    return torch.where((labels == 0) & (excess > -band).any(0), -1, labels) if band else labels


def agreement_threshold(
    field: DenseCRF,
    scores: torch.Tensor,
    otsu_thresholds: torch.Tensor,
    background: bool,
    band: float = 0.0,
) -> tuple[torch.Tensor, np.ndarray, Refined]:
    """Choose among Otsu's thresholds and a few common ones those whose coarse mask the CRF changes least.

    `field` is the CRF of the image, `scores` are (K, H, W), and `band` is that of `coarse_mask`. Returns the
    thresholds (K,), their coarse mask (H, W) and its refinement. These two have the largest mean IoU over the
    background and all classes of the image; a class without a pixel counts 0, and of equal ones the first is
    kept: Otsu's. This is our reading of DiffuMask's adaptive threshold, with the CRF in place of AffinityNet.
    """

    def attempts() -> Iterator[tuple[float, torch.Tensor, np.ndarray, Refined]]:
        for thresholds in (otsu_thresholds, *(torch.full_like(otsu_thresholds, t) for t in CANDIDATES)):
            coarse = coarse_mask(scores, thresholds, background, band).numpy()
            refined = field.refine(coarse)
            yield _mean_iou(coarse, refined.labels, len(scores), background), thresholds, coarse, refined

    return max(attempts(), key=lambda attempt: attempt[0])[1:]


def _mean_iou(a: np.ndarray, b: np.ndarray, classes: int, background: bool) -> float:
    """Mean IoU of two masks over the local labels of an image; a label in neither mask counts 0."""
    sides = [(a == label, b == label) for label in range(0 if background else 1, classes + 1)]
    ious = [int(np.count_nonzero(x & y)) / max(1, int(np.count_nonzero(x | y))) for x, y in sides]
    return sum(ious) / max(1, len(ious))
