"""The card of a dataset: what its builds recorded, what its rows hold, and how to use it.

A repository can hold several builds. Each of them is one configuration and has its own generated block
(`config:NAME`). Publishing one configuration keeps the blocks of the others. The prose is in
`templates/dataset.md`; this module computes its values.
"""

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Required, TypedDict

import pyarrow.parquet as parquet

from attn2mask.builders.build import BuildConfig
from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.markdown import Markdown, code, link, url
from attn2mask.builders.records import BuildRecord, ReportRecord, Text, checked
from attn2mask.builders.sample import OPTIONAL
from attn2mask.builders.shards import BuildDirectory
from attn2mask.builders.table_reader import TABLES
from attn2mask.hub.cards.legend import MOST_SHOWN, legend
from attn2mask.hub.cards.markdown import (
    UNKNOWN,
    Card,
    as_list,
    count,
    merge,
    merge_data,
    percent,
    png_bytes,
    render,
    split,
    version_rows,
)
from attn2mask.hub.cards.sources import option_rows
from attn2mask.hub.cards.statistics import (
    CHART_CLASSES,
    RowStatistics,
    class_chart,
    count_rows,
    sampled_rows,
)

ON_HUB = re.compile(r"\w[\w.-]*/[\w.-]+", re.ASCII)  # the name of a model of the Hub
SHEET_ROWS = 6  # rows of the sheet
MAX_REJECTIONS = 40  # rows of the table of rejections
MAX_MISSING = 20  # names in the list of classes without a row
# The Hub's words for the number of rows: up to three digits, four digits, and so on.
SIZE_CATEGORIES = "n<1K 1K<n<10K 10K<n<100K 100K<n<1M 1M<n<10M 10M<n<100M 100M<n<1B".split()


class OldSplit(TypedDict, total=False):
    """A split in the metadata of a card."""

    num_examples: Required[int]


class OldFeature(TypedDict, total=False):
    """A column in the metadata of a card."""

    name: Required[str]


class OldInfo(TypedDict, total=False):
    """A configuration in the metadata of a card."""

    config_name: str
    splits: list[OldSplit]
    features: list[OldFeature]
    download_size: int


class OldMetadata(TypedDict, total=False):
    """What is read of the metadata of a card that the repository has already."""

    license: Text
    dataset_info: OldInfo | list[OldInfo]
    configs: dict[str, Any] | list[dict[str, Any]]


@dataclass(frozen=True)
class Build:
    """A build as its card needs it. `report` is empty if there is no report.json."""

    name: str
    path: Path
    record: dict[str, Any]
    identity: dict[str, Any]
    report: dict[str, Any]
    table: ClassTable
    files: tuple[Path, ...]
    statistics: RowStatistics


def dataset_card(builds: Mapping[str, Path], repo_id: str, old: str | None = None) -> Card:
    """README.md of a dataset repository, its figures, and id2label.json of its default configuration. Reads
    all masks once.

    Args:
        builds: directories of builds by the names of their configurations; the first is the default.
        repo_id: the name that `load_dataset` takes.
        old: the card in the repository. Its free text and its other configurations stay.

    Raises UserError for a directory that holds no build or no rows.
    """
    from huggingface_hub import DatasetCardData

    from attn2mask.builders.show import sheet

    read = [_read_build(name, Path(path)) for name, path in builds.items()]
    before = checked(split(old)[0], OldMetadata, "README.md of the repository") if old else {}
    data = _dataset_metadata(read, repo_id, before)
    files: dict[str, bytes] = {}
    examples: dict[str, list[tuple[str, str]]] = {}
    for build in read:
        rows = sampled_rows(build.files, SHEET_ROWS)
        examples[build.name] = list(_example(rows[0], build.table)) if rows else []
        files[f"assets/{build.name}-sheet.png"] = png_bytes(sheet(rows, build.table))
        files[f"assets/{build.name}-legend.png"] = png_bytes(legend(build.table))
        if build.statistics.class_rows.any():
            files[f"assets/{build.name}-classes.png"] = png_bytes(class_chart(build.statistics))
    names = [config.get("config_name", "default") for config in data["configs"]]
    default = next(name for name, config in zip(names, data["configs"], strict=True) if config.get("default"))
    # The Hub's scripts read it from the root of a repository.
    if default in builds:
        table = next(build.table for build in read if build.name == default)
        files["id2label.json"] = table.id2label.encode()
    columns = {feature["name"] for info in data["dataset_info"] for feature in info.get("features", [])}
    text = render(
        DatasetCardData(**data),
        "dataset",
        repo_id,
        configurations=[_configuration(info) for info in data["dataset_info"]],
        default=default,
        other_configurations=[name for name in names if name != default],
        **{f"has_{name}": name in columns for name in OPTIONAL},
        builds=[_build_values(build) | {"example": examples[build.name]} for build in read],
    )
    return Card(merge(text, old), files)


def _read_build(name: str, path: Path) -> Build:
    directory = BuildDirectory(path)
    record = checked(directory.record(), BuildRecord, str(directory.record_file))
    report = directory.report()
    if report:
        checked(report, ReportRecord, str(path / "report.json"))
    files = tuple(sorted(directory.data.glob("*.parquet")))
    statistics = count_rows(files, directory.table)
    if not statistics.rows:
        raise UserError(f"{path} holds no rows (no data/*.parquet): run its build again")
    return Build(name, path, record, record["identity"], report, directory.table, files, statistics)


# Metadata


def _dataset_metadata(builds: Sequence[Build], repo_id: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of these builds and of the other configurations in the repository."""
    from datasets import DatasetInfo, Features, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCardData

    infos: dict[str, DatasetInfo] = {}
    configs: list[dict[str, Any]] = []
    licenses = as_list(before.get("license"))
    others = [
        info
        for info in as_list(before.get("dataset_info"))
        if info.get("config_name", "default") not in [build.name for build in builds]
    ]
    if not others:
        licenses = []
    for build in builds:
        rows, size = build.statistics.rows, sum(file.stat().st_size for file in build.files)
        infos[build.name] = DatasetInfo(
            features=Features.from_arrow_schema(parquet.read_schema(build.files[0])),
            splits=SplitDict({"train": SplitInfo("train", num_bytes=size, num_examples=rows)}),
            download_size=size,
            dataset_size=size,
        )
        files = [{"split": "train", "path": f"{build.name}/train-*"}]
        configs.append({"config_name": build.name, "data_files": files})
        licenses += as_list(build.record.get("license")) or [UNKNOWN]
        if "lora" in build.identity:
            licenses += as_list(build.record.get("lora_license")) or [UNKNOWN]
    configs[0]["default"] = True
    licenses = list(dict.fromkeys(licenses))
    rows = sum(build.statistics.rows for build in builds) + sum(map(_num_rows, others))
    is_grammar = all(build.identity["captions"] == "grammar" for build in builds) and not others
    data = DatasetCardData(
        pretty_name=repo_id.split("/")[-1],
        license=licenses[0] if len(licenses) == 1 else licenses,
        language=["en"] if is_grammar else None,
        annotations_creators=["machine-generated"],
        language_creators=["machine-generated"] if is_grammar else None,
        source_datasets=["original"] if is_grammar else None,
        task_categories=["image-segmentation"],
        task_ids=["semantic-segmentation"],
        size_categories=[SIZE_CATEGORIES[min(max(len(str(rows)) - 3, 0), len(SIZE_CATEGORIES) - 1)]],
        tags=["attn2mask", "synthetic", "pseudo-labels", "weakly-supervised-segmentation", "diffusion"],
    )
    DatasetInfosDict(infos).to_dataset_card_data(data)
    values = data.to_dict()
    # A list in the order of the builds, so that other configurations can be added.
    entries = {entry.get("config_name", "default"): entry for entry in as_list(values["dataset_info"])}
    values["dataset_info"] = [{"config_name": name, **entries[name]} for name in infos]
    values["configs"] = configs
    return merge_data(values, {key: before[key] for key in ("dataset_info", "configs") if key in before})


def _num_rows(info: OldInfo) -> int:
    return sum(part["num_examples"] for part in info.get("splits", []))


# Values of the template


def _configuration(info: OldInfo) -> tuple[str, str, int, str]:
    """The name, the rows, the number of class names and the megabytes of a `dataset_info`."""
    features = (feature for feature in info.get("features", []) if feature["name"] == "classes")
    names: Any = next(features, {})
    for key in ("list", "class_label", "names"):
        names = names.get(key, {}) if isinstance(names, Mapping) else {}
    size = info.get("download_size", 0) / 1e6
    return code(info.get("config_name", "default")), f"{_num_rows(info):,}", len(names), f"{size:,.1f}"


def _build_values(build: Build) -> dict[str, Any]:
    """What the template shows of a build: its fields, and values made of them."""
    record, identity, statistics = build.record, build.identity, build.statistics
    model, captions = identity["model"], record.get("captions", {})
    commands = _later_commands(record)
    needed = []
    if model != "embedded" and not ON_HUB.fullmatch(model):
        needed.append(f"{code(model)}, the painter's pipeline with the weights named above")
    if identity["captions"] != "grammar":
        needed.append(f"the captions {code(captions.get('source'))}")
    if identity["table"] not in TABLES:
        file = code(f"{identity['table']}.yaml")
        needed.append(f"{file}, a class table (`build.json` holds its content)")
    if not ON_HUB.fullmatch(scored_by := identity.get("score_model", "a/b")):
        needed.append(f"{code(scored_by)}, the model of scores of the version above")
    if "drop" in identity.get("filter", {}):
        needed.append("for `--drop`, a file of the sample ids under `listed` in `report.json`")
    class_counts = sorted(statistics.classes_per_row.items())
    is_many = (statistics.class_rows > 0).sum() > CHART_CLASSES
    return {
        **vars(build),
        "sizes": ", ".join(f"{w} x {h}" for (w, h), _ in statistics.sizes.most_common(3)),
        "sampled": min(SHEET_ROWS, statistics.rows),
        "many_classes": CHART_CLASSES if is_many else None,
        "class_rows": list(_class_rows(build)),
        "classes_per_row": ", ".join(f"{number} in {count(rows, 'row')}" for number, rows in class_counts),
        "training_preset": "voc-resnet50" if min(map(min, statistics.sizes)) >= 256 else "demo",
        "painter": _painter(identity),
        "license": ", ".join(as_list(record.get("license"))),
        "lora_license": ", ".join(as_list(record.get("lora_license"))),
        "is_long": len(build.table.names) > MOST_SHOWN,
        "painter_on_hub": ON_HUB.fullmatch(model) is not None,
        "captions": captions,
        "scheduler": identity.get("scheduler", {}),
        "scheduler_json": Markdown(json.dumps(identity.get("scheduler", {}), indent=1)),
        "options": option_rows(BuildConfig, identity),
        "has_options": (build.path / "build.yaml").exists() and len(set(commands)) == len(commands),
        "is_remasked": "remask" in commands,
        "commands": commands,
        "steps": _steps(build.name, commands),
        "filters": _filters(build.report),
        "untrusted": sum(map(len, build.report.get("untrusted", {}).values())),
        "local_files": Markdown("; ".join(needed)),
        "versions": version_rows(record),
        **_rejections(build.report),
        **_weaknesses(build),
    }


def _later_commands(record: Mapping[str, Any]) -> list[str]:
    """The commands after `build` that made the rows, in order."""
    commands = record.get("commands", [record.get("command")])
    return [name for name in commands if name in ("remask", "filter")]


def _steps(name: str, commands: Sequence[str]) -> list[tuple[str, str, str]]:
    """The folders that each command reads and writes: (command, source, result). The last writes `name`."""
    folders = [f"data/{name}-painted", *(f"data/{name}-{command}" for command in commands[:-1])]
    return list(zip(commands, folders, [*folders[1:], f"data/{name}"], strict=True)) if commands else []


def _filters(report: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    """Of each run of `attn2mask filter`: how many rows it kept, of how many, and why it dropped others."""
    return [
        (
            f"{step['kept']:,}",
            count(step["rows"], "row"),
            "; ".join(f"{reason}: {len(names):,}" for reason, names in step["dropped"].items()),
        )
        for step in report.get("filters", [])
    ]


def _example(row: Mapping[str, Any], table: ClassTable) -> Iterator[tuple[str, str]]:
    """The columns of a row that are text or numbers, and their values."""
    for name in ("prompt", "caption", "seed", "sample_id"):
        yield code(name), row[name]
    named = [f"{number} ({table.names[number]})" for number in row["classes"]]
    for name, values in (("classes", named), ("words", row["words"]), ("peaks", row["peaks"])):
        yield code(name), ", ".join(f"{value:.3g}" if isinstance(value, float) else value for value in values)


def _painter(identity: Mapping[str, Any]) -> Markdown:
    """The painter's name; of one on the Hub, as a link to the version that painted."""
    model = identity["model"]
    if not ON_HUB.fullmatch(model):
        return code(model)
    return link(model, f"https://huggingface.co/{model}/tree/{url(identity.get('model_version'))}")


def _class_rows(build: Build) -> Iterator[Sequence[Any]]:
    statistics = build.statistics
    for k, name in enumerate(statistics.names):
        reliable = percent(statistics.reliable(k))
        if k < build.table.first_id:
            yield k, name, "", percent(statistics.class_pixels[k] / statistics.pixels), reliable, ""
        elif rows := statistics.class_rows[k]:
            companion = statistics.companion(k)
            others = f"{statistics.names[companion[0]]} ({companion[1]:,})" if companion else "-"
            yield k, name, f"{rows:,}", percent(statistics.mean_area(k)), reliable, others


def _rejections(report: Mapping[str, Any]) -> dict[str, Any]:
    """What the gate rejected: the number of times of each kind of reason, and the reasons of each row."""
    kinds, rejections = Counter[str](), []
    for key, lead in (("rejected", ""), ("dropped", "dropped: ")):
        for row, reasons in report.get(key, {}).items():
            kinds.update(map(_kind_of, reasons))
            rejections.append((code(row), lead + "; ".join(reasons)))
    return {
        "reasons": [(kind, f"{number:,}") for kind, number in kinds.most_common()],
        "rejections": rejections[:MAX_REJECTIONS],
        "more_rejections": max(len(rejections) - MAX_REJECTIONS, 0),
    }


def _kind_of(reason: str) -> str:
    """A reason without what differs from row to row: the attempt, the word, the numbers."""
    reason = re.sub(r"^attempt \d+: ", "", reason).split("; ")[0]
    return re.sub(r"\d+", "N", reason.partition(": ")[2] or reason)


def _weaknesses(build: Build) -> dict[str, Any]:
    statistics, names = build.statistics, build.statistics.names
    ids = range(build.table.first_id, len(names))
    rows = {k: int(statistics.class_rows[k]) for k in ids if statistics.class_rows[k]}
    missing = [names[k] for k in ids if k not in rows]
    more = f" and {len(missing) - MAX_MISSING} more classes" if len(missing) > MAX_MISSING else ""
    most, least = max(rows, key=rows.get, default=None), min(rows, key=rows.get, default=None)
    is_uneven = bool(rows) and rows[most] > rows[least]
    worst = sorted(rows, key=lambda k: statistics.reliable(k) or 0)[:3]
    companions = {k: statistics.companion(k) for k in rows}
    pairs = [(pair[1], *sorted((k, pair[0]))) for k, pair in companions.items() if pair]
    number, first, second = max(pairs, default=(0, 0, 0))
    return {
        "missing_classes": ", ".join(missing[:MAX_MISSING]) + more,
        "most_frequent": is_uneven and f"{names[most]} ({count(rows[most], 'row')})",
        "least_frequent": is_uneven and f"{names[least]} ({rows[least]:,})",
        "least_reliable": ", ".join(f"{names[k]} ({percent(statistics.reliable(k))})" for k in worst),
        "frequent_pair": number and f"{names[first]} and {names[second]} ({count(number, 'row')})",
    }
