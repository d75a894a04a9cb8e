"""From the recorder's maps of an image to one score map for each class.

Maps of several resolutions are resized to the largest of them and averaged. Fine maps locate the edges;
coarse maps are more certain of the class. Masks are always computed from scores that were quantized to 8
bits, so that they can be computed again bit for bit.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np
import torch
import torch.nn.functional as F

from attn2mask.builders.rules import Rules

# A map that varies by less than this fraction of its maximum does not locate its class. Maps of objects vary
# by nearly all of their maximum, even if the object fills the image.
FLAT = 0.25


def class_scores(
    maps: Sequence[Mapping[tuple[int, int], torch.Tensor]], rules: Rules, latent_side: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Scores (K, h, w) in [0, 1] and raw peaks (K,) of the K classes of one image: float32, on the CPU.

    `maps` has for each class its maps by (h, w), with the same sizes for all classes; K is at least 1.
    `latent_side` is the shorter side of the latents of the image. The scores have the largest size that the
    rules choose (`chosen_sizes`). A peak is the maximum of the averaged map before normalization; it is NaN
    if the attention was not finite. Such maps, and flat maps, have scores of 0.
    """
    sizes = chosen_sizes(list(maps[0]), rules, latent_side)
    largest = max(sizes)
    resized = [
        upsample(torch.stack([of_class[size] for of_class in maps]).float().cpu(), largest) for size in sizes
    ]
    averaged = torch.stack(resized).mean(dim=0)

    low, high = averaged.amin(dim=(1, 2), keepdim=True), averaged.amax(dim=(1, 2), keepdim=True)
    peaks = torch.where(high.isfinite(), high, torch.nan).flatten()
    floor = low if rules.normalization == "minmax" else torch.zeros_like(low)
    readable = high - low > FLAT * high
    scores = torch.where(readable, (averaged - floor) / (high - floor), 0.0).clamp(0, 1)
    if rules.word_temperature:
        scores = scores * word_odds(torch.where(readable, averaged, 0.0), rules.word_temperature)
    return scores, peaks


def word_odds(attention: torch.Tensor, temperature: float) -> torch.Tensor:
    """How probable each of K words is at each pixel, relative to the most probable one: (K, h, w) in 0 to 1.

    `attention` is (K, h, w), at least 0. The probabilities are a softmax over the words; its `temperature` is
    a fraction of the largest attention of the image. A word that attends weakly where another one attends
    strongly gets little there. Where no word attends strongly, all are about equal. ConceptAttention
    (Helbling et al. 2025) also takes a softmax over the words of an image.
    """
    largest = attention.max().clamp(min=torch.finfo(attention.dtype).tiny)
    return torch.exp((attention - attention.amax(dim=0)) / (temperature * largest))


def upsample(scores: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
    """Scores or probabilities (K, h, w) in [0, 1] resized bilinearly to (K, *size)."""
    return F.interpolate(scores[:, None], size, mode="bilinear", align_corners=False)[:, 0].clamp(0, 1)


def quantize(scores: torch.Tensor) -> np.ndarray:
    """Scores (K, h, w) in [0, 1] as uint8, to the nearest of 256 levels."""
    return (scores * 255).round().to(torch.uint8).cpu().numpy()


def dequantize(scores: np.ndarray) -> torch.Tensor:
    """The inverse of `quantize`, float32, within half a level (1 / 510)."""
    return torch.from_numpy(scores).float() / 255


def chosen_sizes(sizes: Sequence[tuple[int, int]], rules: Rules, latent_side: int) -> list[tuple[int, int]]:
    """The map sizes (h, w) that the rules choose for latents whose shorter side is `latent_side`.

    The shorter side of a map must lie between the fractions `map_fraction_min` and `map_fraction_max` of
    `latent_side`. The lower bound is rounded down and the upper bound up to a whole number, because a UNet
    rounds up when it halves an odd side. If there is no such map, the nearest one is chosen; of two, the
    larger.
    """
    low = math.floor(rules.map_fraction_min * latent_side)
    high = math.ceil(rules.map_fraction_max * latent_side)
    distance = {size: max(low - min(size), min(size) - high, 0) for size in sizes}
    nearest = min(sizes, key=lambda size: (distance[size], -min(size)))
    return [size for size in sizes if distance[size] == 0] or [nearest]
