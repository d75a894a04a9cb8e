"""NACLIP (Hajimiri et al. 2025, "Pay Attention to Your Neighbours: Training-Free Open-Vocabulary Semantic
Segmentation"): in CLIP's last block, tokens attend to near tokens with similar keys.

The attention is softmax(k k^T / sqrt(d) + w), where w is a Gaussian of the distance of two patches.
"""

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from attn2mask.builders.classes import ClassTable
from attn2mask.training.zeroshot.clip import WEIGHTS, attended, by_head, load_clip
from attn2mask.training.zeroshot.protocol import Protocol
from attn2mask.training.zeroshot.segmenter import Segmenter

__all__ = ["BACKGROUNDS", "WEIGHTS", "last_block", "load"]
BACKGROUNDS = ("none", "threshold", "words")
DEVIATION = 5.0  # of the Gaussian, in patches


def last_block(block: CLIPEncoderLayer, x: Tensor, shape: tuple[int, int]) -> Tensor:
    """NACLIP's last block, which has neither residual connections nor an MLP."""
    _, k, v = by_head(block, x)
    weights = (k @ k.mT * block.self_attn.scale + nearness(shape).to(x)).softmax(-1)
    return attended(block, weights, v)


def nearness(shape: tuple[int, int]) -> Tensor:
    """exp(-distance^2 / (2 deviation^2)) of each pair of tokens, (1 + h * w, 1 + h * w), 0 to 1. It is 0 for
    the class token, which comes first and has no place.
    """
    rows, columns = (torch.arange(side) for side in shape)
    places = torch.cartesian_prod(rows, columns).float()
    squares = (places[:, None] - places).square().sum(-1)
    return pad((-squares / (2 * DEVIATION**2)).exp(), (1, 0, 1, 0))


def load(weights: str, protocol: Protocol, table: ClassTable) -> Segmenter:
    """NACLIP on a CLIP of transformers' format."""
    return load_clip(weights, protocol, table, last_block)
