"""What the methods on CLIP share: they replace the last block of its image tower, and score every patch."""

from collections.abc import Callable

from torch import Tensor, nn
from transformers import CLIPModel
from transformers.models.clip.modeling_clip import CLIPEncoderLayer

from attn2mask.builders.classes import ClassTable
from attn2mask.training.zeroshot.decision import Decision
from attn2mask.training.zeroshot.protocol import Protocol
from attn2mask.training.zeroshot.segmenter import (
    Preprocessor,
    Scores,
    Segmenter,
    as_map,
    padded,
    text_directions,
    text_encoder,
)
from attn2mask.training.zeroshot.weights import find_folder, load_model, load_tokenizer, record_of

WEIGHTS = "openai/clip-vit-base-patch16"
# What replaces a block. It makes tokens (N, 1 + h * w, D) of the block, its tokens, and the shape (h, w).
LastBlock = Callable[[CLIPEncoderLayer, Tensor, tuple[int, int]], Tensor]


class DenseCLIP(nn.Module):
    """CLIP with another last block of its image tower, and with the directions (Q, E) of the queries."""

    def __init__(self, model: CLIPModel, last_block: LastBlock, directions: Tensor) -> None:
        super().__init__()
        self.model, self.last_block = model, last_block
        self.register_buffer("directions", directions)

    def forward(self, pixel_values: Tensor) -> Scores:
        """The cosine of each patch with each query. Pixels that fill no patch are padded."""
        tower = self.model.vision_model
        patch = tower.config.patch_size
        pixels = padded(pixel_values, patch)
        shape = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
        states = tower(pixels, interpolate_pos_encoding=True, output_hidden_states=True).hidden_states
        tokens = self.last_block(tower.encoder.layers[-1], states[-2], shape)
        tokens = self.model.visual_projection(tower.post_layernorm(tokens))
        return Scores(as_map(tokens[:, 1:], self.directions, shape))


def load_clip(weights: str, protocol: Protocol, table: ClassTable, last_block: LastBlock) -> Segmenter:
    """CLIP with another last block, as a segmenter. Raises UserError as `load_model` does."""
    folder = find_folder(weights)
    model = load_model(folder, CLIPModel, weights)
    directions = text_directions(text_encoder(model, load_tokenizer(folder, weights)), protocol)
    scale = model.logit_scale.exp().item() if protocol.scale is None else protocol.scale
    return Segmenter(
        DenseCLIP(model, last_block, directions),
        Preprocessor(protocol, "clip"),
        Decision(table, protocol, scale=scale),
        record_of(weights, folder),
    )


def by_head(block: CLIPEncoderLayer, tokens: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Queries, keys and values (N, heads, L, D / heads) of a block for tokens (N, L, D)."""
    attention, tokens = block.self_attn, block.layer_norm1(tokens)
    queries, keys, values = (
        project(tokens).unflatten(-1, (attention.num_heads, -1)).transpose(1, 2)
        for project in (attention.q_proj, attention.k_proj, attention.v_proj)
    )
    return queries, keys, values


def attended(block: CLIPEncoderLayer, weights: Tensor, values: Tensor) -> Tensor:
    """The output (N, L, D) of a block's attention for its weights (N, heads, L, L) and its values."""
    return block.self_attn.out_proj((weights @ values).transpose(1, 2).flatten(2))
