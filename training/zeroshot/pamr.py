"""Pixel-adaptive mask refinement (PAMR; Araslanov and Roth 2020, "Single-Stage Semantic Segmentation from
Image Labels"): values flow to neighbors of a similar color.
"""

import itertools

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

STEPS, DILATIONS = 10, (8, 16)  # NACLIP's
_AROUND = [offset for offset in itertools.product((-1, 0, 1), repeat=2) if offset != (0, 0)]
_NEIGHBORS = [(y * d, x * d) for d in DILATIONS for y, x in _AROUND]


def refine(values: Tensor, image: np.ndarray) -> Tensor:
    """Values (1, Q, H, W) of an image (H, W, 3) uint8 after `STEPS` steps, float32.

    In each step, a pixel gets the mean of its 8 neighbors at each of `DILATIONS`. Their shares are the
    softmax over all of them of -|difference of color| / (0.1 * deviation), in the mean over the channels. The
    deviation is the standard deviation of the 3 x 3 pixels at all dilations around the pixel. Beyond the
    border, the image and the values continue as they are at the border.
    """
    colors = torch.from_numpy(image).to(values.device).permute(2, 0, 1)[None].float() / 255
    around = torch.stack([*_shifted(colors, _NEIGHBORS), *[colors] * len(DILATIONS)])
    deviation = around.std(0)
    differences = (around[: len(_NEIGHBORS)] - colors).abs()
    shares = (-differences / (1e-8 + 0.1 * deviation)).mean(2, keepdim=True).softmax(0)
    values = values.float()
    for _ in range(STEPS):
        pairs = zip(_shifted(values, _NEIGHBORS), shares, strict=True)
        values = sum(neighbor * share for neighbor, share in pairs)
    return values


def _shifted(values: Tensor, offsets: list[tuple[int, int]]) -> list[Tensor]:
    """Values (1, C, H, W) of the pixels at offsets (y, x)."""
    reach = max(DILATIONS)
    height, width = values.shape[-2:]
    wide = F.pad(values, (reach,) * 4, mode="replicate")
    return [wide[..., reach + y : reach + y + height, reach + x : reach + x + width] for y, x in offsets]
