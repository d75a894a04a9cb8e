"""What is published: the files of builds, of a checkpoint or of a LoRA adapter.

The files are gathered and checked before the Hub is asked for anything. Only files of known names that lie in
the folder itself are published; links that lead outside it are refused. Records and options are published
without the local paths in them.
"""

import json
import os
import re
from collections.abc import Callable, Collection, Iterable, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.records import OPTION_FILES, BuildRecord, checked, read_record
from attn2mask.builders.seals import RECORD, SEAL, check_weights, with_seal
from attn2mask.builders.yaml_reader import load_yaml
from attn2mask.hub.cards.markdown import public_path
from attn2mask.hub.hub_client import Kind

if TYPE_CHECKING:
    from attn2mask.hub.cards.markdown import Card

# A config's name is a folder of the repository. Some folders have another use there.
CONFIG_NAME = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII)
RESERVED_NAMES = ("assets", "data")
# Options beside an artefact, which `--config` reads.
MODEL_OPTIONS = ("train.yaml", "adapt.yaml")
ID2LABEL = "id2label.json"  # names the ids of masks, for the Hub's scripts
# The one file of code that a checkpoint may bring.
MODEL_CODE = "deeplabv3plus.py"
WEIGHTS = "model.safetensors"
WEIGHTS_INDEX = f"{WEIGHTS}.index.json"  # which names the parts of the weights in its place
# Files that publishing a model may remove if it does not bring them again.
MODEL_FILES = (
    "*.safetensors",
    "*.safetensors.index.json",
    "config.json",
    "preprocessor_config.json",
    "training_config.json",
    "adapter_config.json",
    MODEL_CODE,
    *MODEL_OPTIONS,
)
MODEL_FIGURES = {"assets/legend.png", "assets/training.png", "assets/predictions.png", "assets/samples.png"}


@dataclass(frozen=True)
class Publication:
    """What a repository is to hold.

    Attributes:
        summary: the title of the commit.
        files: the files, or their contents, by their path in the repository.
        make_card: makes the card from the repository's name and the text of its present card.
        owns: `owns(path, paths)` says whether `path`, one of the `paths` of the repository, may be removed if
            it is not among the files.
        loading_code: makes a line of Python that loads what was published, from name and revision.
    """

    kind: Kind
    summary: str
    files: dict[str, Path | bytes]
    make_card: Callable[[str, str | None], "Card"]
    owns: Callable[[str, Collection[str]], bool]
    loading_code: Callable[[str, str | None], str]


def gather_builds(builds: Sequence[Path], config_name: str | None = None) -> Publication:
    """The builds as configs of one dataset, named after their class tables or, a single one, `config_name`.

    Raises UserError for a build that is not complete, for two builds of one name, and as `check_inside`.
    """
    from attn2mask.builders.shards import BuildDirectory

    if config_name is not None and len(builds) != 1:
        raise UserError(f"--config-name {config_name} names one build, but {len(builds)} are given")
    files: dict[str, Path | bytes] = {}
    named: dict[str, Path] = {}
    for path in builds:
        check_inside(path, path.rglob("*"))
        record = checked(BuildDirectory(path).record(), BuildRecord, str(path / "build.json"))
        name = record["identity"]["table"] if config_name is None else config_name
        check_config_name(name)
        if name in named:
            raise UserError(
                f"{named[name]} and {path} would both be config {name}: publish one alone, with --config-name"
            )
        named[name] = path
        files |= {f"{name}/{file.name}": file for file in checked_build(path)}
        files[f"{name}/{ID2LABEL}"] = id2label_of(path)
        files |= {f"{name}/{file}": content for file, content in options_in(path, OPTION_FILES).items()}

    def make_card(repo_id: str, old: str | None) -> "Card":
        from attn2mask.hub.cards.dataset import dataset_card

        return dataset_card(named, repo_id, old)

    def owns(path: str, paths: Collection[str]) -> bool:
        folder, _, file = path.partition("/")
        if folder in named:
            records = ("build.json", "report.json", ID2LABEL, *OPTION_FILES)
            return file in records or fnmatchcase(file, "train-*.parquet")
        # `assets/voc-b-classes.png` belongs to config `voc-b` if there is one, otherwise to config `voc`.
        known = {*named, *(p.split("/")[0] for p in paths if p.count("/") == 1 and p.endswith("/build.json"))}
        fitting = [name for name in known if file.startswith(f"{name}-")]
        return folder == "assets" and max(fitting, key=len, default="") in named

    def loading_code(repo_id: str, revision: str | None) -> str:
        at = f', revision="{revision}"' if revision else ""
        return f'load_dataset("{repo_id}", "{next(iter(named))}", split="train"{at})'

    return Publication("dataset", f"Publish {', '.join(named)}", files, make_card, owns, loading_code)


def id2label_of(path: Path) -> bytes:
    """The content of id2label.json of a build, by its class table. Raises UserError if the file differs."""
    from attn2mask.builders.shards import BuildDirectory

    content, file = BuildDirectory(path).table.id2label.encode(), path / ID2LABEL
    if file.exists() and file.read_bytes() != content:
        raise UserError(
            f"{file} is not as it was written: delete it, and run the command that made the build again"
        )
    return content


def check_config_name(name: str) -> None:
    """Raise UserError for a name, of a class table or another, that a config cannot have."""
    if not CONFIG_NAME.fullmatch(name) or name in RESERVED_NAMES:
        raise UserError(
            f"{name!r} cannot be the name of a config. Letters, digits, _ . and - are allowed, but not the"
            f" names {' and '.join(RESERVED_NAMES)}: rename the class table, or give --config-name"
        )


def checked_build(path: Path) -> list[Path]:
    """The shards and records of a complete build.

    Raises UserError for a build that is not as it was written: rows are missing, shards are damaged, or other
    files lie among them.
    """
    from attn2mask.builders.shards import BuildDirectory

    build = BuildDirectory(path)
    build.check_complete()
    files = [build.shard_file(shard) for shard in build.shards]
    named = "train-*" if build.data == path else "*"
    foreign = sorted(file.name for file in build.data.glob(named) if file not in files)
    if foreign:
        raise UserError(f"{build.data} holds {foreign[0]}, which is not a shard of the build: move it away")
    report = path / "report.json"
    if not build.report():
        raise UserError(f"{path} has no report.json: run the command that made it again")
    return [*files, path / "build.json", report]


def gather_model(
    folder: Path, metrics: Sequence[Path] = (), license: str | None = None, datasets: Sequence[str] = ()
) -> Publication:
    """A checkpoint with the reports of its evaluations, or a LoRA adapter. `license` and `datasets` are what
    its card says where no record tells it.

    Raises UserError for a folder that does not load, or that others could not load, and as `check_inside`.
    """
    from attn2mask.builders.provenance import LORA_WEIGHTS
    from attn2mask.hub.cards.adapter import adapter_card
    from attn2mask.hub.cards.dataset import ON_HUB
    from attn2mask.hub.cards.segmenter import model_card, reports
    from attn2mask.training.checkpoint import PEER

    folder = Path(folder)
    for name in datasets:
        if not ON_HUB.fullmatch(name):
            raise UserError(f"--dataset {name}: a dataset of the Hub has a name such as org/attn2mask-voc")
    check_inside(folder, folder.rglob("*"))
    for report in map(Path, metrics):  # with it, its figure and its options are published
        beside = (report.with_name(f"{report.stem}_images.png"), report.with_suffix(".yaml"))
        check_inside(report.parent, beside)
    is_adapter = (folder / LORA_WEIGHTS).is_file()
    if is_adapter and datasets:
        raise UserError(
            "--dataset is only for segmenters: the images of an adapter are in no dataset of rows"
        )
    evaluations = {} if is_adapter else reports(folder, metrics)
    paths = adapter_files(folder) if is_adapter else checkpoint_files(folder)
    files: dict[str, Path | bytes] = {**paths}
    records = {name: path for name, path in paths.items() if name in (RECORD, "adapter_config.json")}
    records |= {f"metrics/{name}.json": path for name, path in evaluations.items()}
    for name, path in records.items():
        record = without_paths(read_record(path))
        files[name] = f"{json.dumps(with_seal(record) if SEAL in record else record, indent=2)}\n".encode()
    files |= options_in(folder, MODEL_OPTIONS)
    for name, path in evaluations.items():
        for content in options_in(path.parent, [f"{path.stem}.yaml"]).values():
            files[f"metrics/{name}.yaml"] = content

    def make_card(repo_id: str, old: str | None) -> "Card":
        if is_adapter:
            return adapter_card(folder, repo_id, old, license)
        return model_card(folder, repo_id, metrics, old, license, datasets)

    def owns(path: str, paths: Collection[str]) -> bool:
        if path.startswith((f"{PEER}/", "metrics/")):
            return True
        # Figures that the card made from a report are removed with it; others are somebody's.
        names = [Path(p).stem for p in paths if p.startswith("metrics/")]
        made = {f"assets/{name}-{figure}.png" for name in names for figure in ("iou", "images")}
        made |= MODEL_FIGURES
        return path in made or ("/" not in path and any(fnmatchcase(path, p) for p in MODEL_FILES))

    def loading_code(repo_id: str, revision: str | None) -> str:
        at = f', revision="{revision}"' if revision else ""
        if is_adapter:
            return f'pipe.load_lora_weights("{repo_id}"{at})'
        code = ", trust_remote_code=True" if any(path.endswith(".py") for path in files) else ""
        return f'pipeline("image-segmentation", model="{repo_id}"{at}{code})'

    what = "adapter" if is_adapter else "checkpoint"
    return Publication("model", f"Publish the {what}", files, make_card, owns, loading_code)


def check_inside(folder: Path, paths: Iterable[Path]) -> None:
    """Raise UserError if one of the `paths` below `folder` is a link that leads outside it, or is neither a
    file nor a folder.
    """
    root = os.path.realpath(folder)
    for path in paths:
        if path.is_symlink() and not Path(os.path.realpath(path)).is_relative_to(root):
            raise UserError(
                f"{path} is a link that leads outside {folder}: put a copy there, or move it away"
            )
        if path.exists() and not path.is_file() and not path.is_dir():
            raise UserError(f"{path} is neither a file nor a folder: move it away")


def options_in(folder: Path, names: Sequence[str]) -> dict[str, bytes]:
    """Those of the option files `names` that `folder` holds, without local paths. Their comments stay."""
    found = {}
    for name in names:
        if not (folder / name).is_file():
            continue
        try:
            text = (folder / name).read_text("utf-8")
            options = without_paths(load_yaml(text))
        except (OSError, ValueError, RecursionError, yaml.YAMLError) as error:
            raise UserError(f"{folder / name} cannot be read: {first_line(error)}") from error
        comments = "".join(f"{line}\n" for line in text.splitlines() if line.startswith("#"))
        found[name] = (comments + yaml.safe_dump(options, sort_keys=False, allow_unicode=True)).encode()
    return found


def without_paths(value: Any) -> Any:
    """`value` with each path that begins at the machine's root, or home, reduced to its last part."""
    if isinstance(value, dict):
        return {key: without_paths(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [without_paths(inner) for inner in value]
    return public_path(value) if isinstance(value, str) else value


def checkpoint_files(folder: Path) -> dict[str, Path]:
    """Both networks of a checkpoint, its image processor and its record. The state and logs of the training
    are left out. Raises UserError for a checkpoint that does not load, and for one whose code or weights have
    other names than those of this project's checkpoints.
    """
    from attn2mask.training.checkpoint import PEER, load_checkpoint

    if not folder.is_dir():
        raise UserError(f"{folder} is not a folder: give one that `attn2mask train` or `adapt` wrote")
    peer = load_checkpoint(folder).peer
    files = {"preprocessor_config.json": folder / "preprocessor_config.json"}
    if (folder / RECORD).exists():
        files[RECORD] = folder / RECORD
    for part in ("", *([f"{PEER}/"] if peer is not None else [])):
        network = folder / part
        for name in ("config.json", *code_files(network), *weight_files(network)):
            if not (network / name).is_file():
                raise UserError(
                    f"checkpoint {folder} lacks {part}{name}, without which others cannot load it"
                )
            files[part + name] = network / name
    return files


def code_files(network: Path) -> list[str]:
    """The file of code that the records of a network name in `auto_map`, if they do. Raises UserError for
    another one.
    """
    code = set()
    for file in (network / "config.json", network / "preprocessor_config.json"):
        auto_map = read_record(file).get("auto_map") or {}
        named = auto_map.values() if isinstance(auto_map, dict) else [auto_map]
        of_file = {f"{str(name).rpartition('.')[0]}.py" for name in named}
        if foreign := sorted(of_file - {MODEL_CODE}):
            raise UserError(
                f"{file} names the code {foreign[0]} in auto_map, but only {MODEL_CODE} can be published:"
                " correct auto_map"
            )
        code |= of_file
    return sorted(code)


def weight_files(network: Path) -> list[str]:
    """The weights of a network as transformers reads them: one file, or an index and the parts that it names.

    Raises UserError if the index names something else than safetensors files beside it.
    """
    if (network / WEIGHTS).is_file() or not (network / WEIGHTS_INDEX).is_file():
        return [WEIGHTS]
    from attn2mask.training.records import WeightsIndex

    parts = set(read_record(network / WEIGHTS_INDEX, WeightsIndex)["weight_map"].values())
    for part in parts:
        if not re.fullmatch(r"[\w-][\w.-]*\.safetensors", part, re.ASCII):
            raise UserError(
                f"{network / WEIGHTS_INDEX} names {part!r}, which is no safetensors file in its folder"
            )
    return [WEIGHTS_INDEX, *sorted(parts)]


def adapter_files(folder: Path) -> dict[str, Path]:
    """The LoRA of a painter in diffusers' format, with its records. Raises UserError if it does not load, and
    as `check_weights`.
    """
    from attn2mask.builders.provenance import LORA_RECORD, LORA_WEIGHTS
    from attn2mask.hub.cards.statistics import tensor_shapes

    check_weights(folder)
    if not any("lora" in name for name in tensor_shapes(folder / LORA_WEIGHTS)):
        raise UserError(f"{folder / LORA_WEIGHTS} holds no LoRA weights")
    names = (LORA_WEIGHTS, "adapter_config.json", LORA_RECORD)
    return {name: folder / name for name in names if (folder / name).is_file()}
