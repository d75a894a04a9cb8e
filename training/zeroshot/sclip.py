"""SCLIP (Wang et al. 2024, "SCLIP: Rethinking Self-Attention for Dense Vision-Language Inference"): in CLIP's
last block, tokens attend to tokens with similar queries and to tokens with similar keys.

The attention is softmax(q q^T / sqrt(d)) + softmax(k k^T / sqrt(d)). The weights of a token have the sum 2.
"""

from torch import Tensor
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from attn2mask.builders.classes import ClassTable
from attn2mask.training.zeroshot.clip import WEIGHTS, attended, by_head, load_clip
from attn2mask.training.zeroshot.protocol import Protocol
from attn2mask.training.zeroshot.segmenter import Segmenter

__all__ = ["BACKGROUNDS", "WEIGHTS", "last_block", "load"]
BACKGROUNDS = ("none", "threshold", "words")


def last_block(block: CLIPEncoderLayer, x: Tensor, shape: tuple[int, int]) -> Tensor:
    """SCLIP's last block, with its residual connections and its MLP."""
    q, k, v = by_head(block, x)
    scale = block.self_attn.scale
    weights = (q @ q.mT * scale).softmax(-1) + (k @ k.mT * scale).softmax(-1)
    x = x + attended(block, weights, v)
    return x + block.mlp(block.layer_norm2(x))


def load(weights: str, protocol: Protocol, table: ClassTable) -> Segmenter:
    """SCLIP on a CLIP of transformers' format."""
    return load_clip(weights, protocol, table, last_block)
