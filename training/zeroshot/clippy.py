"""CLIPpy (Ranasinghe et al. 2023, "Perceptual Grouping in Contrastive Vision-Language Models"): a ViT of DINO
and Sentence-T5, trained so that the maximum over the patches matches the text. Every patch is scored.

The weights are the published file, whose names are those of kahnchana/clippy, or a folder that
`CLIPpyModel.save_pretrained` wrote.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor, nn
from transformers import (
    PreTrainedModel,
    T5Config,
    T5EncoderModel,
    T5Tokenizer,
    ViTConfig,
    ViTModel,
)

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
)
from attn2mask.training.zeroshot.weights import TwoTowersConfig, count, load_file_or_folder, renamed

__all__ = ["BACKGROUNDS", "WEIGHTS", "CLIPpy", "CLIPpyConfig", "CLIPpyModel", "load"]
BACKGROUNDS = ("none", "threshold", "words")
WEIGHTS = None
TOKENIZER = (T5Tokenizer, "sentence-transformers/sentence-t5-base")
HEAD = 64  # channels of a head in both towers
LONGEST_TEXT = 256  # tokens, as Sentence-T5

_NAMES = (
    (r"^module\.", ""),
    (r"^visual\.trunk\.(cls_token)$", r"vision_model.embeddings.\1"),
    (r"^visual\.trunk\.pos_embed$", "vision_model.embeddings.position_embeddings"),
    (r"^visual\.trunk\.patch_embed\.proj\.", "vision_model.embeddings.patch_embeddings.projection."),
    (r"^visual\.trunk\.norm\.", "vision_model.layernorm."),
    (r"^visual\.trunk\.blocks\.(\d+)\.", r"vision_model.layers.\1."),
    (r"^(vision_model\.layers\.\d+\.)norm1\.", r"\1layernorm_before."),
    (r"^(vision_model\.layers\.\d+\.)norm2\.", r"\1layernorm_after."),
    (r"^(vision_model\.layers\.\d+\.)attn\.proj\.", r"\1attention.o_proj."),
    (r"^(vision_model\.layers\.\d+\.)attn\.", r"\1attention."),
    (r"^text\.0\.auto_model\.", "text_model."),
    (r"^text_model\.encoder\.embed_tokens\.", "text_model.shared."),  # one tensor with two names
    (r"^text\.2\.linear\.", "text_projection."),
)


class CLIPpyConfig(TwoTowersConfig):
    """The configuration of a `CLIPpyModel`: `vision_config` is the ViT, and `text_config` is T5."""

    model_type = "clippy"
    sub_configs: ClassVar[dict[str, type]] = {"vision_config": ViTConfig, "text_config": T5Config}


class CLIPpyModel(PreTrainedModel):
    """The two towers. The texts are projected into the space of the patches."""

    config_class = CLIPpyConfig

    def __init__(self, config: CLIPpyConfig) -> None:
        super().__init__(config)
        self.vision_model = ViTModel(config.vision_config, add_pooling_layer=False)
        self.text_model = T5EncoderModel(config.text_config)
        self.text_projection = nn.Linear(
            config.text_config.d_model, config.vision_config.hidden_size, bias=False
        )
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.post_init()


class CLIPpy(nn.Module):
    """The image tower with the directions (Q, D) of the queries, which scores every patch."""

    def __init__(self, tower: ViTModel, directions: Tensor) -> None:
        super().__init__()
        self.tower, self.patch = tower, tower.config.patch_size
        self.register_buffer("directions", directions)

    def forward(self, pixel_values: Tensor) -> Scores:
        pixels = padded(pixel_values, self.patch)
        height, width = pixels.shape[-2:]
        tokens = self.tower(pixels, interpolate_pos_encoding=True).last_hidden_state[:, 1:]
        cosines = as_map(tokens, self.directions, (height // self.patch, width // self.patch))
        cosines = F.interpolate(cosines, (height, width), mode="bilinear", align_corners=False)
        return Scores(cosines[..., : pixel_values.shape[-2], : pixel_values.shape[-1]])


def layout(state: Mapping[str, Tensor]) -> tuple[CLIPpyConfig, dict[str, Tensor]]:
    """The config and the tensors of a `CLIPpyModel` for the published tensors."""
    tensors = renamed(state, _NAMES)
    width, _, patch, _ = tensors["vision_model.embeddings.patch_embeddings.projection.weight"].shape
    places = tensors["vision_model.embeddings.position_embeddings"].shape[1] - 1  # without the class token
    vision = ViTConfig(
        hidden_size=width,
        intermediate_size=len(tensors["vision_model.layers.0.mlp.fc1.weight"]),
        num_hidden_layers=count(tensors, "vision_model.layers."),
        num_attention_heads=max(1, width // HEAD),
        layer_norm_eps=1e-6,
        image_size=math.isqrt(places) * patch,
        patch_size=patch,
    )
    block = "text_model.encoder.block."
    words, text_width = tensors["text_model.shared.weight"].shape
    buckets, heads = tensors[f"{block}0.layer.0.SelfAttention.relative_attention_bias.weight"].shape
    text = T5Config(
        vocab_size=words,
        d_model=text_width,
        d_kv=HEAD,
        d_ff=len(tensors[f"{block}0.layer.1.DenseReluDense.wi.weight"]),
        num_layers=count(tensors, block),
        num_heads=heads,
        relative_attention_num_buckets=buckets,
    )
    return CLIPpyConfig(vision_config=vision, text_config=text), tensors


def load(weights: str, protocol: Protocol, table: ClassTable) -> Segmenter:
    """CLIPpy in a published file or in a folder. Raises UserError as `load_file_or_folder` does."""
    model, tokenizer, record = load_file_or_folder(weights, CLIPpyModel, layout, TOKENIZER)

    def encode(texts: list[str]) -> Tensor:
        tokens = tokenizer(texts, padding=True, truncation=True, max_length=LONGEST_TEXT, return_tensors="pt")
        states = model.text_model(
            input_ids=tokens["input_ids"], attention_mask=tokens["attention_mask"]
        ).last_hidden_state
        real = tokens["attention_mask"][..., None].to(states)
        return model.text_projection((states * real).sum(1) / real.sum(1))

    scale = float(model.logit_scale.detach().exp()) if protocol.scale is None else protocol.scale
    return Segmenter(
        CLIPpy(model.vision_model, text_directions(encode, protocol)),
        Preprocessor(protocol, "clip", Image.Resampling.BICUBIC),
        Decision(table, protocol, scale=scale),
        record,
    )
