"""Segmentation networks: an architecture on a backbone, pretrained or from scratch.

    build_network("deeplabv3plus", "microsoft/resnet-50", load_table("voc"), seed=0)

`backbones.py` says what a backbone can be. Two networks with different seeds have the same pretrained weights
and different heads, as co-training needs them.
"""

from copy import deepcopy
from typing import Any

import torch
from torch import nn
from torch.nn import Parameter
from transformers import AutoModelForSemanticSegmentation, PreTrainedConfig, PreTrainedModel, UperNetConfig

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.training.backbones import find_backbone, load_weights
from attn2mask.training.deeplabv3plus import DeepLabV3PlusConfig

MULTI_GRID = (1, 2, 4)  # factors of the dilations in the blocks of the last stage
FULL_CROP = 512  # the crop size in pixels that DeepLabv3+'s atrous rates are for
_STAGES = ["stage1", "stage2", "stage3", "stage4"]


def build_network(
    architecture: str,
    backbone: str,
    table: ClassTable,
    seed: int,
    crop_size: int = FULL_CROP,
    multi_grid: bool = False,
    trust_remote_code: bool = False,
) -> PreTrainedModel:
    """A network on the CPU, in float32: `network(pixel_values=(N, 3, H, W)).logits` is (N, len(table.names),
    H, W) for any H, W of 32 or more.

    Weights that are not pretrained are initialized from `seed`; torch's own random state does not change.
    DeepLabv3+'s atrous rates are for crops of 512 pixels. They shrink with a smaller `crop_size` of the
    training, because on the 6 x 6 feature map of 96 pixels a rate of 6 would see only padding. With
    `multi_grid`, `MULTI_GRID` multiplies the dilations in the last stage of a ResNet. The configuration has
    the names of the classes, the table's name as `class_table`, `backbone_from_scratch`, and the record of
    the weights as `backbone_weights`. With `trust_remote_code`, the backbone's own Python code may run.

    Raises UserError for an unknown architecture or scratch name, a backbone that cannot be found or fetched,
    one without four stages, and one that cannot have `multi_grid`.
    """
    if architecture not in _CONFIGS:
        raise UserError(f"there is no architecture {architecture!r}: choose {' or '.join(_CONFIGS)}")
    found = find_backbone(backbone, trust_remote_code)
    backbone_config = deepcopy(found.config)
    if list(getattr(backbone_config, "stage_names", None) or ())[1:] != _STAGES:
        raise UserError(
            f"backbone {backbone}: {backbone_config.model_type} does not have four stages; take a ResNet,"
            " a Swin, a ConvNeXt or a similar one"
        )
    is_dilated = architecture == "deeplabv3plus" and backbone_config.model_type == "resnet"
    if multi_grid and not (is_dilated and backbone_config.depths[-1] == len(MULTI_GRID)):
        raise UserError(
            f"--multi-grid needs deeplabv3plus on a ResNet with {len(MULTI_GRID)} blocks in its last stage,"
            f" which {architecture} on {backbone} is not: give --multi-grid false"
        )
    if found.resnet_d and architecture != "deeplabv3plus":
        raise UserError(
            f"backbone {backbone} is a ResNet-D, which {architecture} cannot have: take a ResNet-50"
        )
    config = _CONFIGS[architecture](
        backbone_config,
        crop_size,
        multi_grid=MULTI_GRID if multi_grid else (),
        resnet_d=found.resnet_d,
        id2label=dict(enumerate(table.names)),
        label2id={name: index for index, name in enumerate(table.names)},
        semantic_loss_ignore_index=table.ignore_index,
        class_table=table.name,
        backbone_from_scratch=not found.pretrained,
        backbone_weights=found.record() if found.pretrained else {},
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = AutoModelForSemanticSegmentation.from_config(
            config, dtype=torch.float32, trust_remote_code=False
        )
    if found.pretrained:
        load_weights(network.backbone, found)
    if backbone_config.model_type == "swin":
        # A classifier's last norm, which no output depends on: training on several GPUs would wait for it.
        network.backbone.swin.layernorm.requires_grad_(False)
    return network


def split_parameters(network: nn.Module) -> tuple[list[Parameter], list[Parameter]]:
    """The parameters of the backbone, which may be pretrained, and all others."""
    backbone = list(network.backbone.parameters())
    known = {id(parameter) for parameter in backbone}
    return backbone, [parameter for parameter in network.parameters() if id(parameter) not in known]


def _deeplabv3plus(backbone_config: PreTrainedConfig, crop_size: int, **shared: Any) -> DeepLabV3PlusConfig:
    """Output stride 16 for ResNets; 32 for others, with half the rates, which reach as many pixels."""
    is_resnet = backbone_config.model_type == "resnet"
    share = min(1, crop_size / FULL_CROP)
    return DeepLabV3PlusConfig(
        backbone_config=backbone_config,
        output_stride=16 if is_resnet else None,
        atrous_rates=[max(1, round(rate * share)) for rate in ((6, 12, 18) if is_resnet else (3, 6, 9))],
        decoder_channels=min(256, _width(backbone_config) // 2),
        **shared,
    )


def _upernet(backbone_config: PreTrainedConfig, crop_size: int, **shared: Any) -> UperNetConfig:
    """Without the auxiliary head, whose logits transformers does not return."""
    del shared["multi_grid"], shared["resnet_d"]
    backbone_config.out_features = _STAGES
    return UperNetConfig(
        backbone_config=backbone_config,
        hidden_size=min(512, _width(backbone_config)),
        use_auxiliary_head=False,
        loss_ignore_index=shared["semantic_loss_ignore_index"],
        **shared,
    )


_CONFIGS = {"deeplabv3plus": _deeplabv3plus, "upernet": _upernet}


def _width(backbone_config: PreTrainedConfig) -> int:
    """The channels of the last stage. Narrow backbones get narrow heads."""
    widths = getattr(backbone_config, "hidden_sizes", None)
    return widths[-1] if widths else backbone_config.hidden_size
