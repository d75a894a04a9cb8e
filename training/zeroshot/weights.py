"""Weights of zero-shot segmenters: from the Hub, a folder, or a file.

Only safetensors and files that `torch.load` reads with `weights_only=True` are read.
"""

import hashlib
import json
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from pickle import UnpicklingError
from typing import Any

import torch
from huggingface_hub import snapshot_download
from huggingface_hub.errors import HTTPError
from safetensors import SafetensorError
from torch import Tensor
from transformers import AutoTokenizer, PreTrainedConfig, PreTrainedModel

from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.loading import check_all_loaded, quiet
from attn2mask.training.backbones import read_state, refused

_FILES = ["*.json", "*.safetensors", "*.txt", "*.model"]  # of a repository; weights, if there are none, below
_OTHER_WEIGHTS = ["pytorch_model.bin", "pytorch_model-*.bin"]
_TOKENIZER_FILES = ["*token*", "*.txt", "*.model", "special*"]

Layout = Callable[[Mapping[str, Tensor]], tuple[PreTrainedConfig, dict[str, Tensor]]]


class TwoTowersConfig(PreTrainedConfig):
    """The configuration of a model with a tower for images and one for texts. A subclass names the classes of
    both configurations in `sub_configs`.
    """

    vision_config: Any = None
    text_config: Any = None

    def __post_init__(self, **kwargs) -> None:
        for name, kind in self.sub_configs.items():
            given = getattr(self, name)
            if not isinstance(given, PreTrainedConfig):
                setattr(self, name, kind(**(given or {})))
        super().__post_init__(**kwargs)


def find_folder(weights: str) -> Path:
    """The folder of a model: `weights` itself, that of a file of safetensors, or the local copy of the Hub's
    repository.

    Raises UserError if it is another file, or neither a folder nor on the Hub.
    """
    path = Path(weights)
    if path.is_file() and path.suffix == ".safetensors" and (path.parent / "config.json").is_file():
        return path.parent
    if path.is_dir():
        return path
    if path.is_file():
        raise UserError(
            f"--weights {weights} is a file, but this method needs a folder or a name on the Hub; a file of"
            " safetensors must lie beside its config.json"
        )
    try:
        with quiet():
            folder = Path(snapshot_download(weights, allow_patterns=_FILES))
            if not any(folder.glob("*.safetensors")):
                snapshot_download(weights, allow_patterns=_OTHER_WEIGHTS)
            return folder
    except (OSError, ValueError, HTTPError) as error:
        raise UserError(
            f"--weights {weights}: there is no such folder, and it cannot be loaded from the Hub: "
            f"{first_line(error)}"
        ) from error


def load_model(folder: Path, kind: type[PreTrainedModel], weights: str, **options: Any) -> PreTrainedModel:
    """The model of class `kind` in a folder of transformers' format, in float32 and in evaluation mode.

    Raises UserError for weights of another architecture, for incomplete weights, and for files that cannot be
    read.
    """
    expected = kind.config_class.model_type
    try:
        found = json.loads((folder / "config.json").read_text("utf-8")).get("model_type")
    except (OSError, ValueError, AttributeError) as error:
        raise UserError(f"--weights {weights} has no config.json that can be read") from error
    if found != expected:
        raise UserError(
            f"--weights {weights} is a model of type {found}; this method needs one of {expected}"
        )
    try:
        with quiet():
            model, report = kind.from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, **options
            )
    except UnpicklingError as error:
        file = next(folder.glob("pytorch_model*.bin"), folder)
        raise refused(file, "--weights", error, folder / "model.safetensors") from error
    except (OSError, ValueError, RuntimeError, EOFError, LookupError, SafetensorError) as error:
        raise UserError(f"--weights {weights}: {first_line(error)}") from error
    check_all_loaded(f"--weights {weights}", model, report)
    return model.eval()


def load_tokenizer(folder: Path | str, weights: str) -> Any:
    """The tokenizer in a folder, or of a name on the Hub. Raises UserError if there is none."""
    try:
        with quiet():
            tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False)
    except (OSError, ValueError, KeyError, HTTPError) as error:
        raise UserError(f"--weights {weights}: no tokenizer can be loaded: {first_line(error)}") from error
    # Where the files of the tokenizer are missing, transformers makes one that knows no word.
    if tokenizer.get_vocab().keys() <= set(tokenizer.all_special_tokens):
        raise UserError(f"--weights {weights}: no tokenizer can be loaded: there is no vocabulary")
    return tokenizer


def tokenizer_beside(file: Path, kind: Any, name: str, weights: str) -> Any:
    """The tokenizer of class `kind` whose files lie beside `file`, otherwise that of `name` on the Hub.

    Raises UserError if neither can be loaded.
    """
    beside = any((file.parent / each).is_file() for each in kind.vocab_files_names.values())
    try:
        with quiet():
            # Without a network, `from_pretrained` itself would try for minutes.
            folder = file.parent if beside else snapshot_download(name, allow_patterns=_TOKENIZER_FILES)
            return kind.from_pretrained(folder)
    except (OSError, ValueError, KeyError, HTTPError) as error:
        raise UserError(
            f"--weights {weights}: no tokenizer can be loaded ({first_line(error)}); put tokenizer.json and"
            f" tokenizer_config.json of {name} into {file.parent}"
        ) from error


def load_file_or_folder(
    weights: str,
    kind: type[PreTrainedModel],
    layout: Layout,
    tokenizer: tuple[Any, str],
    ignored: tuple[str, ...] = (),
) -> tuple[PreTrainedModel, Any, dict[str, Any]]:
    """The model of class `kind`, its tokenizer and its record, from a published file, a folder or the Hub.

    Args:
        tokenizer: for a file, the class of the tokenizer and its name on the Hub.
        layout, ignored: for a file, see `load_published_model`.

    Raises UserError as the functions for each part do.
    """
    path = Path(weights)
    if path.is_file():
        model = load_published_model(path, kind, layout, weights, ignored)
        return model, tokenizer_beside(path, *tokenizer, weights), record_of(weights, path)
    folder = find_folder(weights)
    return load_model(folder, kind, weights), load_tokenizer(folder, weights), record_of(weights, folder)


def load_published_model(
    file: Path, kind: type[PreTrainedModel], layout: Layout, weights: str, ignored: tuple[str, ...] = ()
) -> PreTrainedModel:
    """The model of class `kind` in a published file, in float32 and in evaluation mode.

    Args:
        layout: makes the config of the model and its tensors by their names of the published tensors. It
            raises KeyError for a tensor that it misses.
        ignored: beginnings of the names of tensors that the model does not need.

    Raises UserError for a file of another model, and if a tensor is missing, left over or of a wrong shape.
    """
    state = load_published(file, ignored)
    try:
        config, tensors = layout(state)
        with quiet():
            model, report = kind.from_pretrained(
                None,
                config=config,
                state_dict=tensors,
                dtype=torch.float32,
                output_loading_info=True,
                ignore_mismatched_sizes=True,
            )
    except KeyError as error:
        raise UserError(
            f"--weights {weights} holds no {kind.__name__}: it lacks the tensor {error.args[0]}"
        ) from error
    except (ValueError, TypeError, IndexError, RuntimeError) as error:
        raise UserError(f"--weights {weights} holds no {kind.__name__}: {first_line(error)}") from error
    problems = {
        f"tensors that {kind.__name__} has and the file lacks": report["missing_keys"],
        f"tensors that the file has and {kind.__name__} lacks": report["unexpected_keys"],
        f"tensors that have other shapes in {kind.__name__}": [key for key, *_ in report["mismatched_keys"]],
    }
    for problem, keys in problems.items():
        # `read_state` leaves out the counters of batch normalization, which no prediction needs.
        keys = sorted(key for key in keys if not key.endswith("num_batches_tracked"))
        if keys:
            raise UserError(f"--weights {weights}: {problem}: {len(keys)}, such as {keys[0]}")
    return model.eval()


def renamed(state: Mapping[str, Tensor], names: Sequence[tuple[str, str]]) -> dict[str, Tensor]:
    """Published tensors with other names: in each name, the patterns of `names` are replaced in turn. A fused
    projection `qkv` becomes `q_proj`, `k_proj` and `v_proj`.
    """
    found: dict[str, Tensor] = {}
    for key, tensor in state.items():
        for pattern, name in names:
            key = re.sub(pattern, name, key)
        if ".qkv." in key:
            parts = zip(("q_proj", "k_proj", "v_proj"), tensor.chunk(3), strict=True)
            found |= {key.replace("qkv", name): part for name, part in parts}
        else:
            found[key] = tensor
    return found


def count(state: Mapping[str, Tensor], prefix: str) -> int:
    """How many numbered parts follow a prefix of names. Raises KeyError if there is none."""
    numbers = [int(found[1]) for name in state if (found := re.match(re.escape(prefix) + r"(\d+)\.", name))]
    if not numbers:
        raise KeyError(f"{prefix}0...")
    return max(numbers) + 1


def load_published(file: Path, ignored: tuple[str, ...] = ()) -> Mapping[str, Tensor]:
    """The tensors of a published file, without those whose names begin with one of `ignored`.

    Raises UserError for a file that holds other objects than tensors, which only an unsafe reader could read.
    """
    state = read_state(file, "--weights")
    return {name: tensor for name, tensor in state.items() if not name.startswith(ignored)}


def record_of(weights: str, folder: Path) -> dict[str, Any]:
    """What metrics.json says of weights: their name, revision on the Hub, and the SHA-256 of the file."""
    revision = folder.name if folder.parent.name == "snapshots" else None
    file = folder if folder.is_file() else folder / "model.safetensors"
    digest = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else None
    return {"weights": weights, "revision": revision, "sha256": digest}
