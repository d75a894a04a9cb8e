"""OVSegmentor (Xu et al. 2023, "Learning Open-Vocabulary Semantic Segmentation Models From Natural Language
Supervision"): a GroupViT of two stages whose texts BERT encodes, with GroupViT's scorer.

The weights are the published file, whose names are those of Jazzcharles/OVSegmentor, or a folder that
`OVSegmentorModel.save_pretrained` wrote.
"""

import math
from collections.abc import Mapping
from typing import ClassVar

import torch
from torch import Tensor, nn
from transformers import (
    BertConfig,
    BertModel,
    BertTokenizer,
    GroupViTVisionConfig,
    GroupViTVisionModel,
    PreTrainedModel,
)

from attn2mask.builders.classes import ClassTable
from attn2mask.training.zeroshot.groupvit import BACKGROUNDS, GroupScorer, decision
from attn2mask.training.zeroshot.protocol import Protocol
from attn2mask.training.zeroshot.segmenter import Preprocessor, Segmenter, text_directions
from attn2mask.training.zeroshot.weights import TwoTowersConfig, count, load_file_or_folder, renamed

__all__ = ["BACKGROUNDS", "WEIGHTS", "OVSegmentorConfig", "OVSegmentorModel", "load"]
WEIGHTS = None
TOKENIZER = (BertTokenizer, "google-bert/bert-base-uncased")
VISION_HEADS = 8  # no tensor shows it
TEXT_HEAD = 64  # channels of a head of BERT

# Tensors that only its training needs, and the parts of BERT that have no part in the state of [CLS].
_IGNORED = (
    "img_encoder_momentum.",
    "multimodal_groupingblock.",
    "bridge_projector.",
    "align_proj_",
    "logit_scale_mask",
    "text_encoder.transformer.pooler.",
    "text_encoder.transformer.embeddings.position_ids",
)
_NAMES = (
    (r"^img_encoder\.pos_embed$", "vision_model.embeddings.position_embeddings"),
    (r"^img_encoder\.patch_embed\.proj\.", "vision_model.embeddings.patch_embeddings.projection."),
    (r"^img_encoder\.norm\.", "vision_model.layernorm."),
    (r"^img_encoder\.layers\.", "vision_model.encoder.stages."),
    (r"\.blocks\.(\d+)\.norm(\d)\.", r".layers.\1.layer_norm\2."),
    (r"\.blocks\.(\d+)\.attn\.proj\.", r".layers.\1.self_attn.out_proj."),
    (r"\.blocks\.(\d+)\.attn\.", r".layers.\1.self_attn."),
    (r"\.blocks\.", ".layers."),
    (r"\.pre_assign_attn\.attn\.proj\.", ".pre_assign_attn.attn.out_proj."),
    (r"^img_projector\.", "visual_projection."),
    (r"^text_projector\.", "text_projection."),
    (r"_projection\.linear_hidden\.", "_projection."),
    (r"_projection\.linear_out\.", "_projection.3."),
    (r"^text_encoder\.transformer\.", "text_model."),
)


class OVSegmentorConfig(TwoTowersConfig):
    """The configuration of an `OVSegmentorModel`. The texts have a BERT.

    Args:
        projection_dim: the width of the space that images and texts share.
        projection_intermediate_dim: the width of the hidden layer of both projections.
    """

    model_type = "ovsegmentor"
    sub_configs: ClassVar[dict[str, type]] = {
        "vision_config": GroupViTVisionConfig,
        "text_config": BertConfig,
    }

    projection_dim: int = 256
    projection_intermediate_dim: int = 4096


class OVSegmentorModel(PreTrainedModel):
    """The two towers, and their projections into one space. The patches have no norm, as GroupViT's have."""

    config_class = OVSegmentorConfig

    def __init__(self, config: OVSegmentorConfig) -> None:
        super().__init__(config)
        self.vision_model = GroupViTVisionModel(config.vision_config).vision_model
        self.vision_model.embeddings.layernorm = nn.Identity()
        self.text_model = BertModel(config.text_config, add_pooling_layer=False)
        self.visual_projection = _projection(config.vision_config.hidden_size, config)
        self.text_projection = _projection(config.text_config.hidden_size, config)
        self.logit_scale = nn.Parameter(torch.tensor(math.log(1 / 0.07)))
        self.post_init()


def _projection(width: int, config: OVSegmentorConfig) -> nn.Sequential:
    hidden = config.projection_intermediate_dim
    return nn.Sequential(
        nn.Linear(width, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, config.projection_dim)
    )


def layout(state: Mapping[str, Tensor]) -> tuple[OVSegmentorConfig, dict[str, Tensor]]:
    """The config and the tensors of an `OVSegmentorModel` for the published tensors."""
    positions = state["img_encoder.pos_embed"]
    stages = range(count(state, "img_encoder.layers."))
    stage = "img_encoder.layers.{}."
    width, _, patch, _ = state["img_encoder.patch_embed.proj.weight"].shape
    depths = [count(state, f"{stage.format(each)}blocks.") for each in stages]

    def first(name: str, axis: int) -> list[int]:
        """The length of a tensor of each stage; 0 if the stage does not have it."""
        found = [state.get(stage.format(each) + name) for each in stages]
        return [0 if tensor is None else tensor.shape[axis] for tensor in found]

    vision = GroupViTVisionConfig(
        hidden_size=width,
        intermediate_size=len(state["img_encoder.layers.0.blocks.0.mlp.fc1.weight"]),
        num_hidden_layers=sum(depths),
        depths=depths,
        num_group_tokens=first("group_token", 1),
        num_output_groups=first("downsample.mlp_inter.fc2.weight", 0),
        num_attention_heads=VISION_HEADS,
        image_size=math.isqrt(len(positions)) * patch,
        patch_size=patch,
    )
    bert = "text_encoder.transformer."
    words, text_width = state[f"{bert}embeddings.word_embeddings.weight"].shape
    text = BertConfig(
        vocab_size=words,
        hidden_size=text_width,
        intermediate_size=len(state[f"{bert}encoder.layer.0.intermediate.dense.weight"]),
        num_hidden_layers=count(state, f"{bert}encoder.layer."),
        num_attention_heads=max(1, text_width // TEXT_HEAD),
        max_position_embeddings=len(state[f"{bert}embeddings.position_embeddings.weight"]),
        type_vocab_size=len(state[f"{bert}embeddings.token_type_embeddings.weight"]),
    )
    out, hidden, _ = state["img_projector.linear_out.weight"].shape
    config = OVSegmentorConfig(
        vision_config=vision, text_config=text, projection_dim=out, projection_intermediate_dim=hidden
    )
    tensors = renamed(state, _NAMES)
    for name, tensor in tensors.items():
        if "_projection." in name and tensor.ndim == 3:  # convolutions of width 1
            tensors[name] = tensor[..., 0]
    tensors["vision_model.embeddings.position_embeddings"] = positions[None]
    return config, tensors


def load(weights: str, protocol: Protocol, table: ClassTable) -> Segmenter:
    """OVSegmentor in a published file or in a folder. Raises UserError as `load_file_or_folder` does."""
    model, tokenizer, record = load_file_or_folder(weights, OVSegmentorModel, layout, TOKENIZER, _IGNORED)

    def encode(texts: list[str]) -> Tensor:
        tokens = tokenizer(
            texts,
            padding=True,
            truncation=True,
            max_length=model.config.text_config.max_position_embeddings,
            return_tensors="pt",
        )
        states = model.text_model(**tokens).last_hidden_state
        return model.text_projection(states[:, 0])

    network = GroupScorer(
        model.vision_model,
        model.visual_projection,
        text_directions(encode, protocol),
        float(model.logit_scale.detach().exp()),
        protocol,
    )
    return Segmenter(network, Preprocessor(protocol, "imagenet"), decision(table, protocol), record)
