"""Segmentation networks: an architecture on a backbone of transformers, pretrained or from scratch.

    build_network("deeplabv3plus", "microsoft/resnet-50", load_table("voc"), seed=0)

A backbone is a Hub id; a local folder, with weights or with a configuration alone (then from scratch);
`scratch:NAME` with a name of `SCRATCH`; or `embedded`, the small one that ships (`training/backbone.py`). Two
networks of different seeds share pretrained weights and differ in their heads, as co-training wants them.
"""

import logging
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import deepcopy
from functools import cache
from pathlib import Path
from typing import Any

import torch
import transformers.utils.logging as transformers_logging
from torch.nn import Parameter
from transformers import (
    AutoConfig,
    AutoModelForSemanticSegmentation,
    PreTrainedConfig,
    PreTrainedModel,
    UperNetConfig,
)

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.training.deeplabv3plus import DeepLabV3PlusConfig

ARCHITECTURES = ("deeplabv3plus", "upernet")
EMBEDDED = Path(__file__).parents[1] / "builders" / "embedded" / "backbone"

SCRATCH: dict[str, dict[str, Any]] = {
    # A thin ResNet-18, for pictures of 128 pixels and CPUs.
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

# Backbones that are built from scratch where the Hub is out of reach, so that the presets run everywhere.
OFFLINE = {
    "microsoft/resnet-50": "resnet50",
    "microsoft/swin-base-patch4-window7-224": "swin-base",
    "microsoft/swin-base-patch4-window7-224-in22k": "swin-base",
}

FULL_CROP = 512  # pixels: what DeepLabv3+'s atrous rates are given for
_STAGES = ["stage1", "stage2", "stage3", "stage4"]
_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")


def build_network(
    architecture: str, backbone: str, table: ClassTable, seed: int, crop_size: int = FULL_CROP
) -> PreTrainedModel:
    """A network on the CPU, in float32: `network(pixel_values=(N, 3, H, W)).logits` is (N, len(table.names),
    H, W) for any H, W of 32 or more.

    What no pretrained weights are there for is drawn from `seed`; torch's own random state stays as it was.
    DeepLabv3+'s atrous rates belong to crops of 512 pixels and shrink with a smaller `crop_size` that the
    network will be trained on: on the 6 x 6 map of 96 pixels a rate of 6 would see nothing but padding.
    Its configuration has the names of the classes, the table's name as `class_table`, and
    `backbone_from_scratch`.

    Raises UserError for an unknown architecture or scratch name, a backbone that cannot be found or fetched
    (but those of `OFFLINE` are built from scratch then, with a warning), or one without stages.
    """
    if architecture not in ARCHITECTURES:
        raise UserError(f"no architecture {architecture!r}: choose {' or '.join(ARCHITECTURES)}")
    backbone = str(EMBEDDED) if backbone == "embedded" else backbone
    backbone_config, pretrained = deepcopy(_describe(backbone))
    if list(getattr(backbone_config, "stage_names", None) or ())[1:] != _STAGES:
        raise UserError(
            f"backbone {backbone}: {backbone_config.model_type} does not have four stages; take a ResNet, "
            "Swin, ConvNeXt or the like"
        )
    make_config = _upernet if architecture == "upernet" else _deeplabv3plus
    config = make_config(
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
        # A classifier's last norm, which no feature map passes: training on several GPUs would wait for it.
        network.backbone.swin.layernorm.requires_grad_(False)
    return network


def backbone_parameters(network: PreTrainedModel) -> list[Parameter]:
    """The parameters that pretrained weights, where there are some, have set."""
    return list(network.backbone.parameters())


def head_parameters(network: PreTrainedModel) -> list[Parameter]:
    """All other parameters."""
    of_backbone = {id(parameter) for parameter in network.backbone.parameters()}
    return [parameter for parameter in network.parameters() if id(parameter) not in of_backbone]


@contextmanager
def quiet() -> Iterator[None]:
    """Keeps back loading reports, retries and bars of the libraries, which say nothing to act on."""
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
    """At output stride 16 on ResNets; at 32 elsewhere, where half the rates reach as many pixels."""
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
    """Without the auxiliary head, whose logits transformers keeps to itself."""
    backbone_config.out_features = _STAGES
    return UperNetConfig(
        backbone_config=backbone_config,
        hidden_size=min(512, _width(backbone_config)),
        use_auxiliary_head=False,
        loss_ignore_index=shared["semantic_loss_ignore_index"],
        **shared,
    )


def _width(backbone_config: PreTrainedConfig) -> int:
    """The channels of the last stage, by which narrow backbones get narrow heads."""
    widths = getattr(backbone_config, "hidden_sizes", None)
    return widths[-1] if widths else backbone_config.hidden_size


@cache
def _describe(backbone: str) -> tuple[PreTrainedConfig, bool]:
    """The backbone's configuration, and whether there should be weights to it.

    Kept, since co-training asks twice, and a Hub out of reach takes half a minute to say so.
    """
    source, _, name = backbone.partition(":")
    if source == "scratch":
        if name not in SCRATCH:
            raise UserError(f"no backbone {backbone!r}: from scratch there are {', '.join(SCRATCH)}")
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
    # The names of what it was pretrained on are not those of the segmenter.
    config.id2label = config.label2id = None
    if folder.is_dir():
        config.name_or_path = ""  # where it lies here is nothing that a checkpoint should tell
    return config, not folder.is_dir() or any((folder / name).exists() for name in _WEIGHTS)


def _load_weights(module: PreTrainedModel, backbone: str) -> bool:
    """Put pretrained weights into a backbone; False where it has to stay as it was drawn."""
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
    # Norms of the feature maps are not part of a classifier, so they start anew.
    missing = [name for name in report["missing_keys"] if "hidden_states_norms" not in name]
    if missing:
        raise UserError(f"backbone {backbone}: its weights lack {len(missing)} tensors, such as {missing[0]}")
    module.load_state_dict(pretrained.state_dict())
    return True


def _needs_scratch(backbone: str, error: Exception) -> None:
    """Warn that a backbone goes without its weights; raises UserError for one that must not."""
    reason = (str(error).strip() or type(error).__name__).splitlines()[0]
    if Path(backbone).is_dir():
        raise UserError(f"backbone {backbone} can't be loaded: {reason}") from error
    if backbone not in OFFLINE:
        raise UserError(
            f"backbone {backbone} is no folder, no scratch:NAME, and not to be had from the Hub: {reason}"
        ) from error
    print(
        f"attn2mask: warning: NO PRETRAINED WEIGHTS: {backbone} can't be fetched and starts from random "
        f"ones, so scores will be far lower ({reason})",
        file=sys.stderr,
    )
