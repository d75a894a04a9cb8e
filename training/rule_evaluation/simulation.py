"""Attention maps that are simulated from given masks, to measure the rules of labels without a painter.

A map is max(0.02 + 0.2 * strength + normal noise, 0.0001). The strength is the mask of its class, averaged to
the cells of the map and blurred by a Gaussian. Real attention fails in more ways; each `Level` adds one.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

FLOOR, PEAK, LEAST = 0.02, 0.2, 0.0001
PIXELS_PER_LATENT = 8  # as in Stable Diffusion
FRACTIONS = (1.0, 0.5, 0.25, 0.125)  # the sides of the maps as fractions of the latents' side, as in SD 1.5
SURROUNDINGS = 1 / 16  # how far they reach from a thing, as a fraction of the side of the image
WEAK_PART = 0.4  # strength of the two thirds of a thing that are not its strong part
LEAST_PEAK = 0.3  # where the peaks differ, they are between this and 1


@dataclass(frozen=True)
class Level:
    """One way in which attention differs from a mask.

    Attributes:
        blur: the standard deviation of the Gaussian, in cells of each map.
        noise: the standard deviation of the noise.
        noise_by_size: the noise is proportional to the side of a map: `noise` is that of the finest map.
        from_classes: the share of the strength of the next class of the image that is added to each class.
        from_surroundings: the share of 1 that is added around a thing.
        peaks: the peak differs by class.
        parts: a third of each thing, in a random direction, is stronger than the rest.
        absent: a class that the image does not hold is named as well. Its strength is this share of that of
            the largest class.
    """

    blur: float = 1.0
    noise: float = 0.006
    noise_by_size: bool = False
    from_classes: float = 0.0
    from_surroundings: float = 0.0
    peaks: bool = False
    parts: bool = False
    absent: float = 0.0


LEVELS = {
    "blur 1, noise 0.006": Level(),
    "blur 1.6, noise 0.025": Level(blur=1.6, noise=0.025),
    "blur 0.5": Level(blur=0.5),
    "blur 2.5": Level(blur=2.5),
    "noise 0.012": Level(noise=0.012),
    "noise 0.05": Level(noise=0.05),
    "leak from another class": Level(from_classes=0.4),
    "leak from the surroundings": Level(from_surroundings=0.4),
    "noise largest in the finest map": Level(noise=0.05, noise_by_size=True),
    "peak differs by class": Level(peaks=True),
    "part of a thing stronger": Level(parts=True),
    "absent class named": Level(absent=0.3),
}


def simulate(
    masks: np.ndarray, level: Level, rng: np.random.Generator
) -> Sequence[Mapping[tuple[int, int], Tensor]]:
    """Attention maps, by (h, w), of each class of an image, and of an absent class if the level has one.

    `masks` (K, S, S) are true where the image shows each of its K >= 1 classes; the side S is a multiple of
    64. The maps have the sides S/8, S/16, S/32 and S/64. They are float32.
    """
    strength = torch.from_numpy(masks).float()
    if level.parts:
        strength = torch.stack([_with_strong_part(mask, rng) for mask in strength])
    strength = strength + level.from_classes * strength.roll(1, dims=0) * (len(strength) > 1)
    if level.from_surroundings:
        reach = round(masks.shape[-1] * SURROUNDINGS)
        near = F.max_pool2d(strength, (2 * reach + 1, 1), stride=1, padding=(reach, 0))
        near = F.max_pool2d(near, (1, 2 * reach + 1), stride=1, padding=(0, reach))
        strength = torch.maximum(strength, level.from_surroundings * near)
    if level.peaks:
        strength = strength * torch.from_numpy(rng.uniform(LEAST_PEAK, 1, (len(strength), 1, 1))).float()
    if level.absent:
        largest = strength[masks.sum((1, 2)).argmax()]
        strength = torch.cat([strength, level.absent * largest[None]])
    found: list[dict[tuple[int, int], Tensor]] = [{} for _ in strength]
    finest = masks.shape[-1] // PIXELS_PER_LATENT
    for side in (round(finest * fraction) for fraction in FRACTIONS):
        deviation = level.noise * (side / finest if level.noise_by_size else 1)
        blurred = _blur(F.adaptive_avg_pool2d(strength, side), level.blur)
        noise = torch.from_numpy(rng.normal(0, deviation, blurred.shape)).float()
        for maps, one in zip(found, (FLOOR + PEAK * blurred + noise).clamp(min=LEAST), strict=True):
            maps[side, side] = one
    return found


def _blur(maps: Tensor, sigma: float) -> Tensor:
    """Maps (K, h, w) blurred by a Gaussian of five taps; beyond the edges they go on as at the edges."""
    taps = torch.exp(-(torch.arange(-2.0, 3.0) ** 2) / (2 * sigma**2))
    taps = taps / taps.sum()
    padded = F.pad(maps[:, None], (2, 2, 2, 2), mode="replicate")
    return F.conv2d(F.conv2d(padded, taps.view(1, 1, 5, 1)), taps.view(1, 1, 1, 5))[:, 0]


def _with_strong_part(mask: Tensor, rng: np.random.Generator) -> Tensor:
    """A mask (S, S) in which the third of the pixels that lies furthest in a random direction is 1, and the
    others are `WEAK_PART`.
    """
    angle = rng.uniform(0, 2 * np.pi)
    rows, columns = torch.nonzero(mask, as_tuple=True)
    along = np.cos(angle) * rows + np.sin(angle) * columns
    part = torch.zeros_like(mask)
    part[rows, columns] = torch.where(along > along.quantile(2 / 3), 1.0, WEAK_PART).to(part)
    return part
