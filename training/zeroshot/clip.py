"""What the methods on CLIP share: its texts, and the tokens before the last block of its image tower."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor
from transformers import CLIPModel

from attn2mask.training.zeroshot.protocol import Protocol
from attn2mask.training.zeroshot.segmenter import text_directions
from attn2mask.training.zeroshot.weights import find_folder, load_model, load_tokenizer, record_of

WEIGHTS = "openai/clip-vit-base-patch16"


@dataclass(frozen=True)
class LoadedCLIP:
    """CLIP, the directions (Q, D) of the queries, the factor of its softmax, and what is known of it."""

    model: CLIPModel
    directions: Tensor
    scale: float
    record: dict[str, Any]


def load_clip(weights: str, protocol: Protocol) -> LoadedCLIP:
    """CLIP with the directions of the queries. Raises UserError as `load_model` does."""
    folder: Path = find_folder(weights)
    model = load_model(folder, CLIPModel, weights)
    tokenizer = load_tokenizer(folder, weights)
    scale = float(model.logit_scale.detach().exp()) if protocol.scale is None else protocol.scale
    return LoadedCLIP(model, query_directions(model, tokenizer, protocol), scale, record_of(weights, folder))


def query_directions(model: CLIPModel, tokenizer: Any, protocol: Protocol) -> Tensor:
    """The direction (Q, E) of each query, float32."""
    length = model.config.text_config.max_position_embeddings

    def encode(texts: list[str]) -> Tensor:
        tokens = tokenizer(
            texts, padding="max_length", max_length=length, truncation=True, return_tensors="pt"
        ).to(model.device)
        return model.get_text_features(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).pooler_output

    return text_directions(encode, protocol)


def before_last_block(model: CLIPModel, pixels: Tensor) -> tuple[Tensor, tuple[int, int]]:
    """The tokens (N, 1 + h * w, D) that the last block gets, and the shape (h, w) of their map. The sides of
    the pixels (N, 3, H, W) must be multiples of the patch.
    """
    patch = model.config.vision_config.patch_size
    shape = (pixels.shape[-2] // patch, pixels.shape[-1] // patch)
    states = model.vision_model(
        pixels, interpolate_pos_encoding=True, output_hidden_states=True
    ).hidden_states
    return states[-2], shape


def projected(model: CLIPModel, tokens: Tensor) -> Tensor:
    """Tokens (N, L, D) after the last block in the space of the texts (N, L, E)."""
    return model.visual_projection(model.vision_model.post_layernorm(tokens))
