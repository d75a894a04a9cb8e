"""Backbones: their architecture, their pretrained weights, and where these come from.

    backbone = find_backbone("timm/resnet50d.ra2_in1k")

A backbone is one of these:

- a model of the Hub, or a folder, in the format of transformers or of timm (a folder in the format of
  transformers without weights starts from random weights);
- a file with a published state dict: ResNets of torchvision and timm, also ResNet-D, and Swins of
  torchvision, timm and their authors. It is safetensors, or a file that `torch.load` reads with
  `weights_only=True`. The architecture follows from the shapes of the tensors;
- `scratch:NAME` with a name of `SCRATCH`, for random weights;
- `embedded`, the small one that ships with the package.
"""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import hf_hub_download
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor
from transformers import (
    AutoBackbone,
    AutoConfig,
    PreTrainedConfig,
    PreTrainedModel,
    ResNetConfig,
    SwinConfig,
)
from transformers.dynamic_module_utils import get_class_from_dynamic_module

from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.files import digest
from attn2mask.builders.loading import quiet

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
    "resnet50d": {"model_type": "resnet"},
    "swin-tiny": {"model_type": "swin"},
    "swin-base": {
        "model_type": "swin",
        "embed_dim": 128,
        "depths": [2, 2, 18, 2],
        "num_heads": [4, 8, 16, 32],
    },
    "convnext-tiny": {"model_type": "convnext", "hidden_sizes": [96, 192, 384, 768]},
}

# How published weights were trained, by the first digits of the SHA-256 of their file or by their source.
RECIPES = {
    "19c8e357": "torchvision IMAGENET1K_V1: ImageNet-1k, 90 epochs",
    "0676ba61": "torchvision IMAGENET1K_V1: ImageNet-1k, 90 epochs",
    "11ad3fa6": "torchvision IMAGENET1K_V2: ImageNet-1k, 600 epochs",
    "68c6b09e": "torchvision IMAGENET1K_V1: ImageNet-1k, 300 epochs",
    "microsoft/swin-base-patch4-window7-224": "Liu et al., ICCV 2021: ImageNet-1k, 300 epochs",
    "microsoft/swin-base-patch4-window7-224-in22k": "Liu et al., ICCV 2021: ImageNet-22k, 90 epochs",
    "embedded": "this project: the kinds of things in drawn scenes, without masks",
}

_WEIGHTS = ("model.safetensors", "model.safetensors.index.json")
_DIGEST_DIGITS = 8
_STATES = ("state_dict", "model")  # keys under which published files hold their state dict
_UNUSED = re.compile(r"(fc|head)\.|.*(relative_position_index|attn_mask|num_batches_tracked)$")


@dataclass(frozen=True)
class Backbone:
    """A backbone that was found.

    Attributes:
        source: the value of `--backbone`.
        config: its architecture.
        resnet_d: whether it is a ResNet-D.
        published: the file of its published state dict; None for the format of transformers.
        pretrained: whether it has weights.
        recipe: how the weights were trained; None if it is not known.
    """

    source: str
    config: PreTrainedConfig
    resnet_d: bool = False
    published: Path | None = None
    pretrained: bool = True
    recipe: str | None = None

    def record(self) -> dict[str, Any]:
        """What cards say of the weights: `recipe`, and `sha256` of their file; None where it is unknown."""
        file = self.published or _file_of(self.source, _WEIGHTS[0])
        digest = hashlib.sha256(file.read_bytes()).hexdigest() if file is not None else None
        known = RECIPES.get(self.source) or (RECIPES.get(digest[:_DIGEST_DIGITS]) if digest else None)
        return {"recipe": self.recipe or known, "sha256": digest}


@cache
def find_backbone(source: str, trust_remote_code: bool = False) -> Backbone:
    """Find a backbone, without its weights. The result is cached, because co-training asks twice.

    With `trust_remote_code`, Python modules that its config.json names may run. Raises UserError for one that
    cannot be found, fetched or read, and for one whose code is needed and may not run.
    """
    kind, _, name = source.partition(":")
    if kind == "scratch":
        if name not in SCRATCH:
            raise UserError(f"there is no backbone {source!r}; scratch: takes {', '.join(SCRATCH)}")
        config = AutoConfig.for_model(**SCRATCH[name])
        return Backbone(source, config, resnet_d=name == "resnet50d", pretrained=False)
    path = _local(source)
    if path.is_file():
        return _published(source, path)
    if path.is_dir() and not (path / "config.json").is_file():
        raise UserError(f"backbone {source} holds no config.json")
    try:
        with quiet():
            described = json.loads(_fetch(source, "config.json").read_text("utf-8"))
            if "architecture" in described and "model_type" not in described:  # the format of timm
                tag = described.get("pretrained_cfg", {}).get("tag")
                recipe = f"timm {described['architecture']}.{tag}" if tag else None
                return _published(source, _fetch(source, _WEIGHTS[0]), recipe)
            place = str(path) if path.is_dir() else source
            config = AutoConfig.from_pretrained(place, trust_remote_code=trust_remote_code)
            if trust_remote_code:
                _register(config, place)
    except (OSError, ValueError, HTTPError, AttributeError) as error:
        raise _missing(source, error) from error
    config.id2label = config.label2id = None  # the pretraining's classes are not those of the segmenter
    if path.is_dir():
        config.name_or_path = ""  # a checkpoint should not contain a path of this machine
    pretrained = not path.is_dir() or any((path / file).exists() for file in _WEIGHTS)
    return Backbone(source, config, pretrained=pretrained)


def _register(config: PreTrainedConfig, place: str) -> None:
    """Let transformers find the classes that a backbone's own code has for its architecture."""
    reference = (getattr(config, "auto_map", None) or {}).get("AutoBackbone")
    if reference is not None:
        kind = get_class_from_dynamic_module(reference, place)
        AutoConfig.register(config.model_type, type(config), exist_ok=True)
        AutoBackbone.register(type(config), kind, exist_ok=True)


def backbone_digest(source: str) -> str:
    """What identifies a backbone wherever it lies: the SHA-256 of its file, of the files in its folder, or of
    its weights on the Hub; the source itself for random weights. Raises UserError as `find_backbone`.
    """
    if (path := _local(source)).exists():
        return digest(path)
    found = find_backbone(source)
    weights = found.record()["sha256"] if found.pretrained else None
    return source if weights is None else f"sha256:{weights}"


def load_weights(module: PreTrainedModel, backbone: Backbone) -> None:
    """Load the pretrained weights of a backbone into `module`, which has its architecture.

    Raises UserError for weights that cannot be fetched or read, or that do not fit.
    """
    path = _local(backbone.source)
    # Swins have names of transformers' former versions, which `from_pretrained` translates.
    state = None if backbone.published is None else translated(read_state(backbone.published))
    try:
        if backbone.config.model_type == "resnet" and state is not None:
            missing = module.load_state_dict(state, strict=False).missing_keys
        else:
            with quiet():
                pretrained, report = type(module).from_pretrained(
                    None if state is not None else str(path) if path.is_dir() else backbone.source,
                    config=module.config,
                    state_dict=state,
                    dtype=torch.float32,
                    output_loading_info=True,
                    use_safetensors=True,
                )
            missing = report["missing_keys"]
            module.load_state_dict(pretrained.state_dict())
    except (OSError, ValueError, RuntimeError) as error:
        raise _missing(backbone.source, error) from error
    # A classifier has no norms of the feature maps; they keep their initial values.
    missing = [key for key in missing if not re.search("hidden_states_norms|num_batches_tracked", key)]
    if missing:
        raise UserError(
            f"backbone {backbone.source}: its weights lack {len(missing)} tensors, such as {missing[0]}"
        )


# Published state dicts


def read_state(file: Path, what: str = "backbone") -> dict[str, Tensor]:
    """The tensors of a published file by their names, without those that no backbone uses. `what` names the
    file in messages.

    Raises UserError for a file that holds no state dict, or that only an unsafe reader could read.
    """
    try:
        if file.suffix == ".safetensors":
            state = load_file(file)
        else:
            state = torch.load(file, map_location="cpu", weights_only=True)
    except UnpicklingError as error:
        raise refused(file, what, error, Path(f"{file}.safetensors")) from error
    except (OSError, ValueError, RuntimeError, EOFError, LookupError, SafetensorError) as error:
        raise UserError(f"{what} {file} cannot be read: {first_line(error)}") from error
    for key in _STATES:
        state = state[key] if isinstance(state, Mapping) and key in state else state
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise UserError(f"{what} {file} holds no state dict: give a file that maps names to tensors")
    return {key: value for key, value in state.items() if not _UNUSED.match(key)}


def refused(file: Path, what: str, error: UnpicklingError, target: Path) -> UserError:
    """The error for a pickle that `torch.load` refuses, with a command that converts the file to `target`, if
    it names an object that is no tensor.
    """
    found = re.search(r"GLOBAL (\S+)", str(error))
    if found is None:
        return UserError(f"{what} {file} cannot be read: it is no file of tensors")
    steps = (
        "import torch",
        "from safetensors.torch import save_file",
        f"s = torch.load('{file}', map_location='cpu', weights_only=False)",
        f"s = {' or '.join(f's.get({key!r})' for key in _STATES)} or s",
        "s = {k: v.clone().contiguous() for k, v in s.items() if torch.is_tensor(v)}",
        f"save_file(s, '{target}', metadata={{'format': 'pt'}})",
    )
    return UserError(
        f"{what} {file} holds other objects than tensors, such as {found[1]}, and is not loaded, because"
        f" reading them can run any code; if you trust its source, convert it to {target.name} in a separate"
        f' environment, and use that: python -c "{"; ".join(steps)}"'
    )


def translated(state: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """A published state dict with the names of transformers' backbones."""
    if "layer1.0.conv1.weight" in state:
        resnet_d = "conv1.0.weight" in state
        return {_resnet_name(key, resnet_d): value for key, value in state.items()}
    if "features.0.0.weight" in state:
        state = {_swin_name_of_torchvision(key): value for key, value in state.items()}
    elif "layers.0.downsample.reduction.weight" not in state:  # timm has it at the start of the next stage
        state = {
            re.sub(r"layers\.(\d)\.downsample", lambda m: f"layers.{int(m[1]) - 1}.downsample", key): value
            for key, value in state.items()
        }
    found: dict[str, Tensor] = {}
    for key, value in state.items():
        for pattern, name in _SWIN_NAMES:
            key = re.sub(pattern, name, key)
        if ".qkv." in key:
            parts = zip(("query", "key", "value"), value.chunk(3), strict=True)
            found |= {key.replace("qkv", f"self.{name}"): part for name, part in parts}
        else:
            found[key] = value
    return found


_SWIN_NAMES = (
    (r"^patch_embed\.proj", "swin.embeddings.patch_embeddings.projection"),
    (r"^patch_embed\.norm", "swin.embeddings.norm"),
    (r"^norm\.", "swin.layernorm."),
    (r"^layers\.", "swin.encoder.layers."),
    (r"\.norm1\.", ".layernorm_before."),
    (r"\.norm2\.", ".layernorm_after."),
    (r"\.mlp\.fc1\.", ".intermediate.dense."),
    (r"\.mlp\.fc2\.", ".output.dense."),
    (r"\.attn\.proj\.", ".attention.output.dense."),
    (r"\.attn\.relative", ".attention.self.relative"),
    (r"\.attn\.", ".attention."),
)


def _swin_name_of_torchvision(key: str) -> str:
    """torchvision's name of a tensor of a Swin -> the authors' name."""
    key = key.replace("features.0.0.", "patch_embed.proj.").replace("features.0.2.", "patch_embed.norm.")
    key = key.replace(".mlp.0.", ".mlp.fc1.").replace(".mlp.3.", ".mlp.fc2.")
    if stage := re.match(r"features\.(\d)\.", key):  # 1, 3, 5, 7 are stages, 2, 4, 6 go to the next one
        index, part = divmod(int(stage[1]) - 1, 2)
        key = f"layers.{index}.{'downsample' if part else 'blocks'}.{key[stage.end() :]}"
    return key


def _resnet_name(key: str, resnet_d: bool) -> str:
    """torchvision's or timm's name of a tensor of a ResNet -> transformers' name, or that of our ResNet-D."""
    if deep := re.match(r"conv1\.(\d)\.", key):  # three convolutions, and the norms of the first two
        return f"embedder.embedder.{int(deep[1]) // 3}.{int(deep[1]) % 3}.{key[deep.end() :]}"
    norm = "2.1." if resnet_d else "normalization."
    for part, name in (("conv1.", "convolution."), ("bn1.", norm)):
        if key.startswith(part):
            return f"embedder.embedder.{name}{key.removeprefix(part)}"
    key = re.sub(r"^layer(\d)\.(\d+)", lambda m: f"encoder.stages.{int(m[1]) - 1}.layers.{m[2]}", key)
    key = re.sub(r"\.conv(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.convolution.", key)
    key = re.sub(r"\.bn(\d)\.", lambda m: f".layer.{int(m[1]) - 1}.normalization.", key)
    first = 1 if resnet_d else 0  # after the pooling
    key = key.replace(f".downsample.{first}.", ".shortcut.convolution.")
    return key.replace(f".downsample.{first + 1}.", ".shortcut.normalization.")


# Where backbones are


def _published(source: str, file: Path, recipe: str | None = None) -> Backbone:
    """The backbone of a published state dict. Its architecture follows from the shapes of the tensors."""
    state = translated(read_state(file))
    shapes = {key: tuple(value.shape) for key, value in state.items()}
    try:
        if "encoder.stages.0.layers.0.layer.0.convolution.weight" in shapes:
            config, resnet_d = _resnet_config(shapes), "embedder.embedder.0.0.weight" in shapes
        else:
            config, resnet_d = _swin_config(shapes), False
    except KeyError as error:
        raise UserError(
            f"backbone {source} holds no state dict of a ResNet or a Swin that torchvision, timm or their"
            " authors published"
        ) from error
    return Backbone(source, config, resnet_d, file, recipe=recipe)


def _resnet_config(shapes: Mapping[str, tuple[int, ...]]) -> ResNetConfig:
    stages = "encoder.stages.{}.layers.{}.layer.{}.convolution.weight"
    last = 2 if stages.format(0, 0, 2) in shapes else 1
    stem = "embedder.embedder.2.0.weight", "embedder.embedder.convolution.weight"
    return ResNetConfig(
        embedding_size=shapes[stem[0] if stem[0] in shapes else stem[1]][0],
        hidden_sizes=[shapes[stages.format(stage, 0, last)][0] for stage in range(4)],
        depths=[sum(stages.format(stage, block, 0) in shapes for block in range(99)) for stage in range(4)],
        layer_type="bottleneck" if last == 2 else "basic",
    )


def _swin_config(shapes: Mapping[str, tuple[int, ...]]) -> SwinConfig:
    table = "swin.encoder.layers.{}.blocks.{}.attention.self.relative_position_bias_table"
    width, _, patch, _ = shapes["swin.embeddings.patch_embeddings.projection.weight"]
    return SwinConfig(
        embed_dim=width,
        patch_size=patch,
        depths=[sum(table.format(stage, block) in shapes for block in range(99)) for stage in range(4)],
        num_heads=[shapes[table.format(stage, 0)][1] for stage in range(4)],
        window_size=(math.isqrt(shapes[table.format(0, 0)][0]) + 1) // 2,
    )


def _local(source: str) -> Path:
    return EMBEDDED_BACKBONE if source == "embedded" else Path(source)


def _fetch(source: str, name: str) -> Path:
    """A file of a folder or of a repository of the Hub."""
    path = _local(source)
    return path / name if path.is_dir() else Path(hf_hub_download(source, name))


def _file_of(source: str, name: str) -> Path | None:
    """A file of a backbone; None if it has no such file."""
    with suppress(OSError, ValueError, HTTPError):
        file = _fetch(source, name)
        return file if file.is_file() else None
    return None


def _missing(source: str, error: Exception) -> UserError:
    """What to do about a backbone that cannot be loaded."""
    reason = first_line(error)
    if "trust_remote_code" in str(error):
        return UserError(
            f"backbone {source} needs Python code of its own, which is not run: read the code, and give"
            " --trust-remote-code if you trust it"
        )
    if _local(source).exists():
        return UserError(f"backbone {source} cannot be loaded: {reason}")
    return UserError(
        f"backbone {source} cannot be fetched from the Hub ({reason}): give --backbone a local folder or file"
        f" with its weights, or --backbone scratch:{_alike(source)} to train from random weights"
    )


def _alike(source: str) -> str:
    """The name in `SCRATCH` of the architecture that a name on the Hub suggests."""
    flat = re.sub(r"[^a-z0-9]", "", source.lower())
    return next((name for name in reversed(SCRATCH) if name.replace("-", "") in flat), "NAME")
