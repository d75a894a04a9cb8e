"""What is published: the files of builds, of a checkpoint or of a LoRA adapter, gathered and checked before
the Hub is asked for anything.
"""

import json
import re
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from fnmatch import fnmatchcase
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attn2mask.builders.errors import UserError
from attn2mask.hub.cards.markdown import public_path, read_record
from attn2mask.hub.hub_client import Kind, first_line

if TYPE_CHECKING:
    from attn2mask.hub.cards.markdown import Card

# Names of configs, which are folders of a repository; some have another use there.
CONFIG_NAME, TAKEN = re.compile(r"[A-Za-z0-9][\w.-]*", re.ASCII), ("assets", "data")
# What a model's publishing may remove, where it does not bring it any more.
MODEL_FILES = (
    *("*.safetensors", "*.safetensors.index.json", "config.json", "preprocessor_config.json"),
    *("training_config.json", "adapter_config.json", "deeplabv3plus.py"),
)
FIGURES = ("assets/training.png", "assets/predictions.png", "assets/samples.png")


@dataclass(frozen=True)
class Publication:
    """What is to stand in a repository: `files`, or what is in them, by their path in it, and the card made
    upon the one there.

    `owns(path, paths)` says whether `path`, one of the `paths` of the repository, is for this publication to
    remove where it has no such file; `use` is a line of Python that loads what was published.
    """

    kind: Kind
    summary: str
    files: dict[str, Path | bytes]
    card: Callable[[str, str | None], "Card"]
    owns: Callable[[str, Collection[str]], bool]
    use: Callable[[str, str | None], str]


def gather_builds(builds: Sequence[Path], config: str | None = None) -> Publication:
    """The builds as configs named after their tables. Raises UserError for a build that is not whole, and
    for two of one name.
    """
    if config is not None and len(builds) != 1:
        raise UserError(f"--config {config} names the config of one build, but {len(builds)} are given")
    files: dict[str, Path] = {}
    named: dict[str, Path] = {}
    for path in builds:
        path = Path(path)
        name = config_name(path) if config is None else config
        check_config(name)
        if name in named:
            raise UserError(
                f"{named[name]} and {path} are both config {name}: publish one of them alone, with --config"
            )
        named[name] = path
        files |= {f"{name}/{file.name}": file for file in checked_build(path)}

    def card(repo_id: str, old: str | None) -> "Card":
        from attn2mask.hub.cards.dataset import dataset_card

        return dataset_card(named, repo_id, old)

    def owns(path: str, paths: Collection[str]) -> bool:
        folder, _, file = path.partition("/")
        if folder in named:
            return file in ("build.json", "report.json") or fnmatchcase(file, "train-*.parquet")
        # `voc-b-classes.png` belongs to config `voc-b`, where there is one, and not to `voc`.
        known = {*named, *(p.split("/")[0] for p in paths if p.count("/") == 1 and p.endswith("/build.json"))}
        fitting = [name for name in known if file.startswith(f"{name}-")]
        return folder == "assets" and max(fitting, key=len, default="") in named

    def use(repo_id: str, revision: str | None) -> str:
        at = f', revision="{revision}"' if revision else ""
        return f'load_dataset("{repo_id}", "{next(iter(named))}", split="train"{at})'

    return Publication("dataset", f"Publish {', '.join(named)}", files, card, owns, use)


def config_name(path: Path) -> str:
    """The name of a build's class table."""
    from attn2mask.builders.shards import BuildDirectory

    return BuildDirectory(path).record()["identity"]["table"]


def check_config(name: str) -> None:
    """Raises UserError for a class table's name, or another, that can't be a config's."""
    if not CONFIG_NAME.fullmatch(name) or name in TAKEN:
        raise UserError(
            f"{name!r} can't be the name of a config, which is of letters, digits, _ . and -, and not"
            f" {' or '.join(TAKEN)}: rename the class table, or give `attn2mask publish dataset` --config"
        )


def checked_build(path: Path) -> list[Path]:
    """The files of a complete build that are published. Raises UserError for one that is not as it was
    written: rows missing, shards damaged, or files among them that are not its own.
    """
    from pyarrow import ArrowException
    from pyarrow.parquet import read_metadata

    from attn2mask.builders.shards import BuildDirectory, plan

    build = BuildDirectory(path)
    record = build.record()
    shards = plan(record["num_images"], record["identity"]["shard_size"])
    for shard in shards:
        state, file = build.state(shard), build.shard_file(shard)
        if state == "missing":
            raise UserError(
                f"{path} is not complete: shard {shard.number} of {len(shards)} is not made;"
                " run the same `attn2mask build` again"
            )
        try:
            sound = state == "made" and read_metadata(file).num_rows == len(shard.rows)
        except (OSError, ArrowException):
            sound = False
        if not sound:
            raise UserError(f"{file} is damaged: run the same `attn2mask build` again, which makes it anew")
    files = [build.shard_file(shard) for shard in shards]
    left = sorted(file.name for file in (path / "data").iterdir() if file not in files)
    if left:
        raise UserError(f"{path / 'data'} holds {left[0]}, which is no shard of the build: move it away")
    records = [path / "build.json", path / "report.json"]
    for file in records:
        try:
            json.loads(file.read_bytes())
        except (OSError, ValueError) as error:
            raise UserError(f"{file} can't be read: run the same `attn2mask build` again") from error
    return [*files, *records]


def gather_model(folder: Path, metrics: Sequence[Path] = ()) -> Publication:
    """A checkpoint with the reports of its scores, or a LoRA adapter. Raises UserError for one that does not
    load, or not for others.
    """
    from attn2mask.builders.provenance import LORA_WEIGHTS
    from attn2mask.hub.cards.adapter import adapter_card
    from attn2mask.hub.cards.segmenter import model_card, reports
    from attn2mask.training.checkpoint import CONFIG, PEER

    folder = Path(folder)
    is_adapter = (folder / LORA_WEIGHTS).is_file()
    measured = {} if is_adapter else reports(folder, metrics)
    files: dict[str, Path | bytes] = dict(adapter_files(folder) if is_adapter else checkpoint_files(folder))
    # Records go without the places of this machine.
    records = {name: path for name, path in files.items() if name in (CONFIG, "adapter_config.json")}
    records |= {f"metrics/{name}.json": path for name, path in measured.items()}
    files |= {name: without_places(path) for name, path in records.items()}

    def card(repo_id: str, old: str | None) -> "Card":
        if is_adapter:
            return adapter_card(folder, repo_id, old)
        return model_card(folder, repo_id, metrics, old)

    def owns(path: str, paths: Collection[str]) -> bool:
        if path.startswith((f"{PEER}/", "metrics/")):
            return True
        # What the card drew from a report goes with the report; other results are somebody's.
        reports = [Path(p).stem for p in paths if p.startswith("metrics/")]
        drawn = {f"assets/{name}-{figure}.png" for name in reports for figure in ("iou", "pictures")}
        drawn |= {f".eval_results/{name}.yaml" for name in reports} | set(FIGURES)
        return path in drawn or ("/" not in path and any(fnmatchcase(path, p) for p in MODEL_FILES))

    def use(repo_id: str, revision: str | None) -> str:
        at = f', revision="{revision}"' if revision else ""
        if is_adapter:
            return f'pipe.load_lora_weights("{repo_id}"{at})'
        code = ", trust_remote_code=True" if any(path.endswith(".py") for path in files) else ""
        return f'pipeline("image-segmentation", model="{repo_id}"{at}{code})'

    what = "adapter" if is_adapter else "checkpoint"
    return Publication("model", f"Publish the {what}", files, card, owns, use)


def without_places(path: Path) -> bytes:
    """A record as it goes to the Hub: of a path that begins at a machine's root, or home, the last part."""

    def cut(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: cut(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [cut(inner) for inner in value]
        return public_path(value) if isinstance(value, str) else value

    return f"{json.dumps(cut(read_record(path)), indent=2)}\n".encode()


def checkpoint_files(folder: Path) -> dict[str, Path]:
    """Both networks of a checkpoint that loads, its processor and configuration; its states and logs stay."""
    from attn2mask.training.checkpoint import CONFIG, PEER, load_checkpoint

    if not folder.is_dir():
        raise UserError(f"{folder} is no folder: publish what training wrote")
    peer = load_checkpoint(folder).peer
    files = {"preprocessor_config.json": folder / "preprocessor_config.json"}
    if (folder / CONFIG).exists():
        files[CONFIG] = folder / CONFIG
    for part in ("", *([f"{PEER}/"] if peer is not None else [])):
        network = folder / part
        config = json.loads((network / "config.json").read_bytes())
        code = {f"{name.split('.')[0]}.py" for name in config.get("auto_map", {}).values()}
        for name in ("config.json", *sorted(code)):
            if not (network / name).is_file():
                raise UserError(f"checkpoint {folder} lacks {part}{name}, without which others can't load it")
            files[part + name] = network / name
        weights = (*network.glob("model*.safetensors"), *network.glob("model*.safetensors.index.json"))
        files |= {part + file.name: file for file in sorted(weights)}
    return files


def adapter_files(folder: Path) -> dict[str, Path]:
    """A painter's LoRA in diffusers' format, with its records."""
    from safetensors import SafetensorError, safe_open

    from attn2mask.builders.provenance import LORA_RECORD, LORA_WEIGHTS

    weights = folder / LORA_WEIGHTS
    try:
        with safe_open(weights, "pt") as file:
            tensors = list(file.keys())
    except (OSError, SafetensorError) as error:
        raise UserError(f"{weights} can't be read: {first_line(error)}") from error
    if not any("lora" in name for name in tensors):
        raise UserError(f"{weights} holds no LoRA weights")
    names = (LORA_WEIGHTS, "adapter_config.json", LORA_RECORD)
    return {name: folder / name for name in names if (folder / name).is_file()}
