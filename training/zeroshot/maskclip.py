"""MaskCLIP (Zhou et al. 2022, "Extract Free Dense Labels from CLIP"): CLIP's last block without attention.

Every token keeps its own value: v = out_proj(v_proj(norm1(x))) + x, and then v + mlp(norm2(v)).
"""

from torch import Tensor, nn
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from attn2mask.builders.classes import ClassTable
from attn2mask.training.zeroshot.clip import WEIGHTS, load_clip
from attn2mask.training.zeroshot.protocol import Protocol
from attn2mask.training.zeroshot.segmenter import Segmenter

__all__ = ["BACKGROUNDS", "WEIGHTS", "last_block", "load"]
BACKGROUNDS = ("none", "threshold", "words")


def last_block(block: CLIPEncoderLayer, x: Tensor, shape: tuple[int, int]) -> Tensor:
    """MaskCLIP's last block, with its residual connection and its MLP."""
    v = block.self_attn.out_proj(block.self_attn.v_proj(block.layer_norm1(x))) + x
    return v + block.mlp(block.layer_norm2(v))


def load(weights: str, protocol: Protocol, table: ClassTable) -> Segmenter:
    """MaskCLIP on a CLIP of transformers' format. The original's image tower has the exact GELU and eps 1e-6,
    although CLIP was trained with others; so has this one under the protocol "original".
    """
    segmenter = load_clip(weights, protocol, table, last_block)
    if protocol.name == "original":
        tower = segmenter.network.model.vision_model
        for part in tower.modules():
            if isinstance(part, nn.LayerNorm):
                part.eps = 1e-6
        for layer in tower.encoder.layers:
            layer.mlp.activation_fn = nn.GELU()
    return segmenter
