"""From scores to a coarse mask: thresholds, and the class that exceeds its own by most.

Labels are local to an image: 0 is background, 1 + k is its class k, and -1 is no opinion (only where the
class table has no background). Pure functions; the dense CRF that refines the mask is in `crf`.
"""

from collections.abc import Iterator

import numpy as np
import torch

from attn2mask.builders.crf import DenseCRF, Refined

# The thresholds that `agreement_threshold` tries beside Otsu's.
CANDIDATES = (0.3, 0.4, 0.5, 0.6)


def otsu(scores: torch.Tensor) -> torch.Tensor:
    """Thresholds (K,) float32 of scores (K, ...) in [0, 1]: what lies above is the class.

    Otsu (1979): the threshold with the largest variance between the two parts, over 256 levels, which are
    those of quantized scores. The best thresholds often form a gap between two levels that occur: its middle
    is taken, which keeps clear of both once the scores are interpolated. A flat map gets 1, which nothing
    exceeds.
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
    # The parts are "level <= t" and "level > t"; the first t that is no longer best is the level at the gap's
    # other end.
    end = (~best & (grey > first[:, None])).double().argmax(1)
    middle = (first + end) / 2 / 255
    return torch.where(variance.amax(1) > 0, middle, 1.0).float()


def fixed_threshold(beta: float) -> float:
    """t = (1 - beta) / 2: above it a score s exceeds the background's, 1 - s - beta (the replication's)."""
    return (1 - beta) / 2


def coarse_mask(scores: torch.Tensor, thresholds: torch.Tensor, background: bool) -> torch.Tensor:
    """Local labels (H, W) int64 of scores (K, H, W) and thresholds (K,).

    Class k is a candidate where its score exceeds its threshold; of the candidates the one that exceeds it by
    most wins; a pixel without candidate is background (0), or -1 in tables without one.
    """
    excess = scores - thresholds[:, None, None]
    # The background stands first with an excess of 0, so a class must be above its threshold to win.
    # max, not argmax: ten times as fast over the first axis on CPUs; it takes the first of equals, too.
    labels = torch.cat([excess.new_zeros(1, *excess.shape[1:]), excess]).max(0).indices
    return labels if background else torch.where(labels > 0, labels, -1)


def agreement_threshold(
    field: DenseCRF, scores: torch.Tensor, otsu_thresholds: torch.Tensor, background: bool
) -> tuple[torch.Tensor, np.ndarray, Refined]:
    """Of Otsu's and a few common thresholds the ones whose coarse mask the CRF changes least.

    `field` is the image's, `scores` (K, H, W). Returns the thresholds (K,), their coarse mask (H, W) and
    its refinement. "Least changed" is the largest mean IoU of coarse against refined mask over the background
    and all classes of the image, where a class without a pixel counts 0, so that an empty mask is not
    called stable. Of equals the first is kept, Otsu's. This is our reading of DiffuMask's adaptive threshold,
    with the CRF for AffinityNet.
    """

    def attempts() -> Iterator[tuple[float, torch.Tensor, np.ndarray, Refined]]:
        for thresholds in (otsu_thresholds, *(torch.full_like(otsu_thresholds, t) for t in CANDIDATES)):
            coarse = coarse_mask(scores, thresholds, background).numpy()
            refined = field.refine(coarse)
            yield _mean_iou(coarse, refined.labels, len(scores), background), thresholds, coarse, refined

    return max(attempts(), key=lambda attempt: attempt[0])[1:]


def _mean_iou(a: np.ndarray, b: np.ndarray, classes: int, background: bool) -> float:
    """Mean over the local labels of an image; a label in neither mask counts 0."""
    ious = []
    for label in range(0 if background else 1, classes + 1):
        union = np.count_nonzero((a == label) | (b == label))
        ious.append(np.count_nonzero((a == label) & (b == label)) / union if union else 0.0)
    return sum(ious) / max(1, len(ious))
