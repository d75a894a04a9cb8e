"""Where a mask may be trusted: three rules that look at how firmly the dense CRF holds a label.

Each returns (H, W) uint8, 255 where the final label is reliable and 0 elsewhere; graded, 0 to 255 is the
CRF's own probability. `agreement` costs nothing and also catches the edges that the CRF moved;
`two-threshold` asks for two more CRF runs; `margin` sees only the CRF's own doubt, which is small. Pixels
without a label (-1) are never reliable.
"""

import numpy as np
import torch

from attn2mask.builders.crf import DenseCRF, Refined
from attn2mask.builders.masks import coarse_mask

# By how much thresholds are raised and lowered for the confident foreground and background. Ours: IRN's pair
# is on another scale.
OFFSET = 0.1
# The least difference of the two largest CRF probabilities: of two labels, a winner with 0.95 (the bound of
# CLIP-ES).
MARGIN = 0.9


def agreement(coarse: np.ndarray, refined: Refined, graded: bool) -> np.ndarray:
    """Reliable where the coarse mask and the CRF's are equal; graded, the CRF's probability of the coarse
    one.

    `coarse` is (H, W). Our reading of the paper: pixels are unreliable where the CRF's propagation fails, and
    near upsampled edges.
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
    """Reliable where a class wins with raised thresholds, and the background with lowered ones.

    After IRN (Ahn et al. 2019). `field` is the image's, `scores` (K, H, W), `thresholds` (K,); each pair
    of thresholds has its own CRF run. Graded, the probability of the final label in the run that decides it.
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
    """Reliable where the CRF's best label leads the second by more than 0.9; graded, by how much it leads."""
    # Two labels of probability 0 stand in where fewer than two took part.
    *_, second, first = np.sort(np.pad(refined.probabilities, ((2, 0), (0, 0), (0, 0))), axis=0)
    lead = np.where(refined.labels >= 0, first - second, 0)
    return _levels(lead if graded else lead > MARGIN)


def _levels(trust: np.ndarray) -> np.ndarray:
    """Trust in [0, 1] as uint8."""
    return np.rint(trust * 255.0).clip(0, 255).astype(np.uint8)
