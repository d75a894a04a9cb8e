"""Segmentation networks: an architecture on a backbone of transformers, pretrained or from scratch.

    build_network("deeplabv3plus", "microsoft/resnet-50", load_table("voc"), seed=0)

A backbone is a Hub id; a local folder with weights, or with a configuration alone (then it starts from random
weights); `scratch:NAME` with a name of `SCRATCH`; or `embedded`, the small one that ships with the package.
Two networks with different seeds have the same pretrained weights and different heads, as co-training needs
them.
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers.utils.logging as transformers_logging
from torch import nn
from torch.nn import Parameter
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    UperNetConfig,
)

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError, first_line
from attn2mask.training.deeplabv3plus import DeepLabV3PlusConfig

logger = logging.getLogger(__name__)

EMBEDDED_BACKBONE = Path(__file__).parents[1] / "builders" / "embedded" / "backbone"

SCRATCH: dict[str, dict[str, Any]] = {
    # A thin ResNet-18, for images of 128 pixels and CPUs.
    "small": {
        "model_type": "resnet",
        "layer_type": "basic",
        "depths": [2, 2, 2, 2],
        "embedding_size": 32,
        "hidden_sizes": [32, 64, 128, 192],
    },
    "resnet50": {"model_type": "resnet"},
    "swin-tiny": {"model_type": "swin"},
    "swin-base": {
        "model_type": "swin",
        "embed_dim": 128,
        "depths": [2, 2, 18, 2],
        "num_heads": [4, 8, 16, 32],
    },
    "convnext-tiny": {"model_type": "convnext", "hidden_sizes": [96, 192, 384, 768]},
}

# Backbones that start from random weights if the Hub cannot be reached, so that the presets run everywhere.
OFFLINE = {
    "microsoft/resnet-50": "resnet50",
    "microsoft/swin-base-patch4-window7-224": "swin-base",
    "microsoft/swin-base-patch4-window7-224-in22k": "swin-base",
}

FULL_CROP = 512  # the crop size in pixels that DeepLabv3+'s atrous rates are for
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def build_network(
    architecture: str, backbone: str, table: ClassTable, seed: int, crop_size: int = FULL_CROP
) -> PreTrainedModel:
    """A network on the CPU, in float32: `network(pixel_values=(N, 3, H, W)).logits` is (N, len(table.names),
    H, W) for any H, W of 32 or more.

    Weights that are not pretrained are initialized from `seed`; torch's own random state does not change.
    DeepLabv3+'s atrous rates are for crops of 512 pixels. They shrink with a smaller `crop_size` of the
    training, because on the 6 x 6 feature map of 96 pixels a rate of 6 would see only padding. The
    configuration has the names of the classes, the table's name as `class_table`, and
    `backbone_from_scratch`.

    Raises UserError for an unknown architecture or scratch name, a backbone that cannot be found or fetched
    (those of `OFFLINE` start from random weights instead, with a warning), and one without four stages.
    """
    if architecture not in _CONFIGS:
        raise UserError(f"there is no architecture {architecture!r}: choose {' or '.join(_CONFIGS)}")
    backbone = str(EMBEDDED_BACKBONE) if backbone == "embedded" else backbone
    backbone_config, pretrained = deepcopy(_describe(backbone))
    if list(getattr(backbone_config, "stage_names", None) or ())[1:] != _STAGES:
        raise UserError(
            f"backbone {backbone}: {backbone_config.model_type} does not have four stages; take a ResNet,"
            " a Swin, a ConvNeXt or a similar one"
        )
    config = _CONFIGS[architecture](
        backbone_config,
        crop_size,
        id2label=dict(enumerate(table.names)),
        label2id={name: index for index, name in enumerate(table.names)},
        semantic_loss_ignore_index=table.ignore_index,
        class_table=table.name,
    )
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(seed)
        network = AutoModelForSemanticSegmentation.from_config(config, dtype=torch.float32)
    network.config.backbone_from_scratch = not (pretrained and _load_weights(network.backbone, backbone))
    if backbone_config.model_type == "swin":
        # A classifier's last norm, which no output depends on: training on several GPUs would wait for it.
        network.backbone.swin.layernorm.requires_grad_(False)
    return network


def split_parameters(network: nn.Module) -> tuple[list[Parameter], list[Parameter]]:
    """The parameters of the backbone, which may be pretrained, and all others."""
    backbone = list(network.backbone.parameters())
    known = {id(parameter) for parameter in backbone}
    return backbone, [parameter for parameter in network.parameters() if id(parameter) not in known]


@contextmanager
def quiet() -> Iterator[None]:
    """Silence the libraries' loading reports, retries and progress bars, which no user can act on."""
    verbosity, bars = transformers_logging.get_verbosity(), transformers_logging.is_progress_bar_enabled()
    hub = logging.getLogger("huggingface_hub")
    level = hub.level
    transformers_logging.set_verbosity_error()
    transformers_logging.disable_progress_bar()
    hub.setLevel(logging.ERROR)
    try:
        yield
    finally:
        hub.setLevel(level)
        transformers_logging.set_verbosity(verbosity)
        if bars:
            transformers_logging.enable_progress_bar()


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


@cache
def _describe(backbone: str) -> tuple[PreTrainedConfig, bool]:
    """The backbone's configuration, and whether it should have weights.

    The result is cached, because co-training asks twice and an unreachable Hub takes half a minute to fail.
    """
    source, _, name = backbone.partition(":")
    if source == "scratch":
        if name not in SCRATCH:
            raise UserError(f"there is no backbone {backbone!r}; scratch: takes {', '.join(SCRATCH)}")
        return AutoConfig.for_model(**SCRATCH[name]), False
    folder = Path(backbone)
    if folder.is_dir() and not (folder / "config.json").is_file():
        raise UserError(f"backbone {backbone} holds no config.json")
    try:
        with quiet():
            config = AutoConfig.from_pretrained(backbone)
    except (OSError, ValueError) as error:
        _needs_scratch(backbone, error)
        return AutoConfig.for_model(**SCRATCH[OFFLINE[backbone]]), False
    # The classes of its pretraining are not those of the segmenter.
    config.id2label = config.label2id = None
    if folder.is_dir():
        config.name_or_path = ""  # a checkpoint should not tell the path on this machine
    return config, not folder.is_dir() or any((folder / name).exists() for name in _WEIGHTS)


def _load_weights(module: PreTrainedModel, backbone: str) -> bool:
    """Load pretrained weights into a backbone. False if it must keep its random weights."""
    try:
        with quiet():
            pretrained, report = type(module).from_pretrained(
                backbone,
                config=module.config,
                dtype=torch.float32,
                output_loading_info=True,
                use_safetensors=True,
            )
    except (OSError, ValueError, RuntimeError) as error:
        _needs_scratch(backbone, error)
        return False
    # A classifier has no norms of the feature maps; they keep their initial values.
    missing = [name for name in report["missing_keys"] if "hidden_states_norms" not in name]
    if missing:
        raise UserError(f"backbone {backbone}: its weights lack {len(missing)} tensors, such as {missing[0]}")
    module.load_state_dict(pretrained.state_dict())
    return True


def _needs_scratch(backbone: str, error: Exception) -> None:
    """Warn that a backbone starts from random weights; raises UserError for one that must not."""
    reason = first_line(error)
    if Path(backbone).is_dir():
        raise UserError(f"backbone {backbone} cannot be loaded: {reason}") from error
    if backbone not in OFFLINE:
        raise UserError(
            f"backbone {backbone} is not a folder, not scratch:NAME, and cannot be loaded from the Hub:"
            f" {reason}"
        ) from error
    logger.warning(
        "NO PRETRAINED WEIGHTS: %s cannot be loaded from the Hub and starts from random weights, so the mIoU"
        " will be far lower (%s)",
        backbone,
        reason,
    )
