"""Which pixels of a mask to trust: three rules.

Each rule returns (H, W) uint8: 255 where the final label is reliable, and 0 elsewhere. If graded, the values
are probabilities of the CRF, scaled to 0 to 255. Pixels without a label (-1) are never reliable. `agreement`
also finds the edges that the CRF moved; `margin` finds only the uncertainty of the CRF itself.
"""

import numpy as np
import torch

from attn2mask.builders.crf import DenseCRF, Refined
from attn2mask.builders.masks import coarse_mask

RELIABLE = 128  # of 0 to 255: from this value on, a pixel counts as reliable
# The thresholds are raised by this for confident foreground, and lowered for confident background. The value
# is ours, because IRN's two thresholds are on another scale.
OFFSET = 0.1
# The least lead of the CRF's best label. With two labels it then has 0.95 or more, the bound of CLIP-ES.
MARGIN = 0.9


def reliable_ids(ids: np.ndarray, reliability: np.ndarray, ignore: int) -> np.ndarray:
    """Mask ids (H, W) with the ignore value at unreliable pixels: where `reliability` (H, W), 0 to 255, is
    below `RELIABLE`.
    """
    return np.where(reliability >= RELIABLE, ids, ignore).astype(ids.dtype)


def agreement(coarse: np.ndarray, refined: Refined, graded: bool) -> np.ndarray:
    """Reliable where the coarse mask (H, W) and the mask of the CRF are equal.

    If graded, the CRF's probability of the coarse label. This is our reading of the paper: pixels are
    unreliable where the propagation of the CRF fails, and near edges that were upsampled.
    """
    agree = (coarse == refined.labels) & (coarse >= 0)
    return _levels(refined.probability_of(coarse) if graded else agree)


def two_threshold(
    field: DenseCRF,
    scores: torch.Tensor,
    thresholds: torch.Tensor,
    refined: Refined,
    background: bool,
    graded: bool,
) -> np.ndarray:
    """Reliable where a class wins with raised thresholds, and where the background wins with lowered ones.

    After IRN (Ahn et al. 2019). `field` is the CRF of the image, `scores` are (K, H, W) and `thresholds`
    (K,). The raised and the lowered thresholds have a run of the CRF each. If graded, the probability of the
    final label in the run that decides about it.
    """
    mask = refined.labels
    strict = field.refine(coarse_mask(scores, thresholds + OFFSET, background).numpy())
    if background:
        lax = field.refine(coarse_mask(scores, (thresholds - OFFSET).clamp(min=0), background).numpy())
    else:
        lax = strict
    if graded:
        return _levels(np.where(mask == 0, lax.probability_of(mask), strict.probability_of(mask)))
    return _levels((np.where(mask == 0, lax.labels, strict.labels) == mask) & (mask >= 0))


def margin(refined: Refined, graded: bool) -> np.ndarray:
    """Reliable where the CRF's best label leads the second by more than 0.9. If graded, the lead itself."""
    # Two labels of probability 0 are added, because fewer than two may have taken part.
    *_, second, first = np.sort(np.pad(refined.probabilities, ((2, 0), (0, 0), (0, 0))), axis=0)
    lead = np.where(refined.labels >= 0, first - second, 0)
    return _levels(lead if graded else lead > MARGIN)


def _levels(trust: np.ndarray) -> np.ndarray:
    """Trust in [0, 1] as uint8."""
    return np.rint(trust * 255.0).clip(0, 255).astype(np.uint8)
