"""MaskCLIP (Zhou et al. 2022, "Extract Free Dense Labels from CLIP"): CLIP's last block without attention.

Every token keeps its own value: v = out_proj(v_proj(norm1(x))) + x, and then v + mlp(norm2(v)).
"""

import torch
from torch import Tensor, nn
from transformers import CLIPModel

from attn2mask.builders.classes import ClassTable
from attn2mask.training.zeroshot.clip import WEIGHTS, before_last_block, load_clip, projected
from attn2mask.training.zeroshot.decision import Decision
from attn2mask.training.zeroshot.protocol import Protocol
from attn2mask.training.zeroshot.segmenter import Preprocessor, Scores, Segmenter, as_map, padded

__all__ = ["BACKGROUNDS", "WEIGHTS", "MaskCLIP", "load"]
BACKGROUNDS = ("none", "threshold", "words")


class MaskCLIP(nn.Module):
    """CLIP with the directions (Q, E) of the queries, which scores every patch."""

    def __init__(self, model: CLIPModel, directions: Tensor) -> None:
        super().__init__()
        self.model, self.patch = model, model.config.vision_config.patch_size
        self.register_buffer("directions", directions)

    def forward(self, pixel_values: Tensor) -> Scores:
        x, shape = before_last_block(self.model, padded(pixel_values, self.patch))
        block = self.model.vision_model.encoder.layers[-1]
        v = block.self_attn.out_proj(block.self_attn.v_proj(block.layer_norm1(x))) + x
        v = v + block.mlp(block.layer_norm2(v))
        return Scores(as_map(projected(self.model, v)[:, 1:], self.directions, shape))


def load(weights: str, protocol: Protocol, table: ClassTable) -> Segmenter:
    """MaskCLIP on a CLIP of transformers' format. The original's image tower has the exact GELU and eps 1e-6,
    although CLIP was trained with others; so has this one under the protocol "original".
    """
    clip = load_clip(weights, protocol)
    if protocol.name == "original":
        for part in clip.model.vision_model.modules():
            if isinstance(part, nn.LayerNorm):
                part.eps = 1e-6
        for layer in clip.model.vision_model.encoder.layers:
            layer.mlp.activation_fn = torch.nn.GELU()
    decision = Decision(table, protocol, scale=clip.scale)
    return Segmenter(
        MaskCLIP(clip.model, clip.directions), Preprocessor(protocol, "clip"), decision, clip.record
    )
