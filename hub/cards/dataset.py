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
from typing import Any

import pyarrow.parquet as parquet

from attn2mask.builders.build import RUN, BuildConfig
from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.options import facts_of
from attn2mask.builders.rules import source_of
from attn2mask.builders.shards import BuildDirectory
from attn2mask.builders.table_reader import TABLES
from attn2mask.hub.cards.markdown import (
    NOT_RECORDED,
    UNKNOWN,
    Card,
    as_list,
    count,
    escaped,
    merge,
    merge_data,
    percent,
    png_bytes,
    read_record,
    render,
    split,
    table_rows,
    version_rows,
)
from attn2mask.hub.cards.statistics import (
    CHART_CLASSES,
    RowStatistics,
    class_chart,
    count_rows,
    sampled_rows,
)

SHEET_ROWS = 6  # rows of the sheet
MAX_REJECTIONS = 40  # rows of the table of rejections
MAX_MISSING = 20  # names in the list of classes without a row
SIZE_CATEGORIES = {
    "n<1K": 1e3,
    "1K<n<10K": 1e4,
    "10K<n<100K": 1e5,
    "100K<n<1M": 1e6,
    "1M<n<10M": 1e7,
    "10M<n<100M": 1e8,
}


@dataclass(frozen=True)
class Build:
    """A build as its card needs it. `report` is empty if there is no report.json."""

    name: str
    path: Path
    record: dict[str, Any]
    report: dict[str, Any]
    table: ClassTable
    files: tuple[Path, ...]
    statistics: RowStatistics

    @property
    def identity(self) -> dict[str, Any]:
        return self.record["identity"]

    @property
    def licenses(self) -> list[str]:
        """The licenses of the painter and, if there is one, of its LoRA."""
        names = ["license", *(["lora_license"] if "lora" in self.identity else [])]
        return [license for name in names for license in as_list(self.record.get(name)) or [UNKNOWN]]


def dataset_card(builds: Mapping[str, Path], repo_id: str, old: str | None = None) -> Card:
    """README.md of a dataset repository, and its figures. Reads all masks once.

    Args:
        builds: directories of builds by the names of their configurations; the first is the default.
        repo_id: the name that `load_dataset` takes.
        old: the card in the repository. Its free text and its other configurations stay.

    Raises UserError for a directory that holds no build or no rows.
    """
    from huggingface_hub import DatasetCard, DatasetCardData

    read = [_read_build(name, Path(path)) for name, path in builds.items()]
    data = _dataset_metadata(read, repo_id, split(old)[0] if old else {})
    text = render(DatasetCard, DatasetCardData(**data), "dataset", **_dataset_values(read, repo_id, data))
    figures: dict[str, bytes] = {}
    for build in read:
        figures |= _build_figures(build)
    return Card(merge(text, old), figures)


def _read_build(name: str, path: Path) -> Build:
    directory = BuildDirectory(path)
    record = directory.record()
    files = tuple(sorted((path / "data").glob("*.parquet")))
    statistics = count_rows(files, directory.table)
    if not statistics.rows:
        raise UserError(f"{path} holds no rows (no data/*.parquet): run its build again")
    return Build(name, path, record, read_record(path / "report.json"), directory.table, files, statistics)


def _build_figures(build: Build) -> dict[str, bytes]:
    from attn2mask.builders.show import sheet

    rows = sampled_rows(build.files, SHEET_ROWS)
    figures = {f"assets/{build.name}-sheet.png": png_bytes(sheet(rows, build.table))}
    if build.statistics.class_rows.any():
        figures[f"assets/{build.name}-classes.png"] = png_bytes(class_chart(build.statistics))
    return figures


# Metadata


def _dataset_metadata(builds: Sequence[Build], repo_id: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """The metadata of these builds and of the other configurations in the repository."""
    from datasets import DatasetInfo, Features, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    infos, configs = {}, {}
    for number, build in enumerate(builds):
        size = sum(file.stat().st_size for file in build.files)
        infos[build.name] = DatasetInfo(
            features=Features.from_arrow_schema(parquet.read_schema(build.files[0])),
            splits=SplitDict(
                {"train": SplitInfo("train", num_bytes=size, num_examples=build.statistics.rows)}
            ),
            download_size=size,
            dataset_size=size,
        )
        files = [{"split": "train", "path": f"{build.name}/train-*"}]
        configs[build.name] = {"data_files": files, **({} if number else {"default": True})}
    others = [i for i in as_list(before.get("dataset_info")) if i.get("config_name", "default") not in infos]
    if not others:
        before = {key: value for key, value in before.items() if key not in ("license", "source_models")}
    rows = sum(build.statistics.rows for build in builds) + sum(map(_num_rows, others))
    is_grammar = all(build.identity["captions"] == "grammar" for build in builds) and not others
    licenses = _union(before.get("license"), [license for build in builds for license in build.licenses])
    models = [m for build in builds for m in (build.identity["model"], build.identity.get("lora")) if m]
    data = DatasetCardData(
        pretty_name=repo_id.split("/")[-1],
        license=licenses[0] if len(licenses) == 1 else licenses,
        language=["en"] if is_grammar else None,
        annotations_creators=["machine-generated"],
        language_creators=["machine-generated"] if is_grammar else None,
        source_datasets=["original"] if is_grammar else None,
        task_categories=["image-segmentation"],
        task_ids=["semantic-segmentation"],
        size_categories=[next(name for name, bound in SIZE_CATEGORIES.items() if rows < bound)],
        tags=["attn2mask", "synthetic", "pseudo-labels", "weakly-supervised-segmentation", "diffusion"],
        source_models=_union(before.get("source_models"), models),
    )
    DatasetInfosDict(infos).to_dataset_card_data(data)
    MetadataConfigs(configs).to_dataset_card_data(data)
    values = data.to_dict()
    # Both are lists in the order of the builds, so that other configurations can be added.
    for key in ("dataset_info", "configs"):
        entries = {entry.get("config_name", "default"): entry for entry in as_list(values[key])}
        values[key] = [{"config_name": build.name, **entries[build.name]} for build in builds]
    return merge_data(values, {key: before[key] for key in ("dataset_info", "configs") if key in before})


def _num_rows(info: Mapping[str, Any]) -> int:
    return sum(part["num_examples"] for part in info.get("splits", []))


def _union(before: Any, values: Sequence[str]) -> list[str]:
    return list(dict.fromkeys([*as_list(before), *values]))


# Values of the template


def _dataset_values(builds: Sequence[Build], repo_id: str, data: Mapping[str, Any]) -> dict[str, Any]:
    names = [config.get("config_name", "default") for config in data["configs"]]
    default = next(name for name, config in zip(names, data["configs"], strict=True) if config.get("default"))
    columns = {feature["name"] for info in data["dataset_info"] for feature in info.get("features", [])}
    return {
        "title": repo_id.split("/")[-1],
        "repo_id": repo_id,
        "configurations": table_rows(map(_configuration, data["dataset_info"])),
        "default": default,
        "other_configurations": ", ".join(f"`{name}`" for name in names if name != default),
        "has_scores": "scores" in columns,
        "builds": [
            {
                **_row_values(build),
                **_painting_values(build),
                **_option_values(build),
                **_gate_values(build),
                **_weakness_values(build),
            }
            for build in builds
        ],
    }


def _configuration(info: Mapping[str, Any]) -> tuple[str, str, int, str]:
    """The name, the rows, the number of class names and the megabytes of a `dataset_info`."""
    classes = next((feature for feature in info.get("features", []) if feature["name"] == "classes"), None)
    names = classes["list"]["class_label"]["names"] if classes else {}
    size = info.get("download_size", 0) / 1e6
    return f"`{info.get('config_name', 'default')}`", f"{_num_rows(info):,}", len(names), f"{size:,.1f}"


def _row_values(build: Build) -> dict[str, Any]:
    statistics, table = build.statistics, build.table
    is_many = (statistics.class_rows > 0).sum() > CHART_CLASSES
    return {
        "name": build.name,
        "images": count(statistics.rows, "image"),
        "sizes": ", ".join(f"{w} x {h}" for (w, h), _ in statistics.sizes.most_common(3)),
        "classes": f"{len(table.classes):,} class{'es' * (len(table.classes) > 1)}",
        "table": build.identity["table"],
        "background": table.background,
        "ignore_index": table.ignore_index,
        "reliable": percent(statistics.reliability / statistics.pixels),
        "has_scores": build.identity.get("store_scores"),
        "sampled": count(min(SHEET_ROWS, statistics.rows), "row"),
        "has_classes": statistics.class_rows.any(),
        "many_classes": CHART_CLASSES if is_many else None,
        "class_rows": table_rows(_class_rows(build)),
        "classes_per_row": ", ".join(
            f"{number} in {count(rows, 'row')}" for number, rows in sorted(statistics.classes_per_row.items())
        ),
        "training_preset": "voc-resnet50" if min(map(min, statistics.sizes)) >= 256 else "demo",
    }


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


def _painting_values(build: Build) -> dict[str, Any]:
    identity, record = build.identity, build.record
    model, version = identity["model"], identity.get("model_version", NOT_RECORDED)
    on_hub = "/" in model
    captions, scheduler = record.get("captions", {}), identity.get("scheduler", {})
    naming = captions.get("naming_a_class")
    return {
        "painter": f"[{model}](https://huggingface.co/{model}/tree/{version})" if on_hub else f"`{model}`",
        "painter_on_hub": on_hub,
        "painter_version": version,
        "painter_license": _license(record, "license"),
        "pipeline": identity.get("pipeline", NOT_RECORDED),
        "lora": identity.get("lora"),
        "lora_scale": escaped(identity.get("lora_scale")),
        "lora_version": identity.get("lora_version", NOT_RECORDED),
        "lora_license": _license(record, "lora_license"),
        "captions": escaped(captions.get("source")),
        "captions_version": None if identity["captions"] == "grammar" else identity["captions"],
        "captions_naming_a_class": NOT_RECORDED if naming is None else f"{naming:,}",
        "scheduler": escaped(scheduler.get("class")),
        "scheduler_json": json.dumps(scheduler, indent=1),
        **{name: escaped(record.get(name)) for name in ("dtype", "device", "batch_size")},
    }


def _license(record: Mapping[str, Any], name: str) -> str:
    return ", ".join(as_list(record.get(name))) or NOT_RECORDED


def _option_values(build: Build) -> dict[str, Any]:
    identity, model = build.identity, build.identity["model"]
    needed = []
    if model != "embedded" and "/" not in model:
        needed.append(f"`{model}`, the painter's pipeline with the weights named above")
    if identity["captions"] != "grammar":
        needed.append(f"the captions `{escaped(build.record['captions'].get('source'))}`")
    if identity["table"] not in TABLES:
        needed.append(f"`{identity['table']}.yaml`, a class table (`build.json` holds its content)")
    return {
        "options": table_rows(_build_options(build)),
        "num_images": count(build.record["num_images"], "row"),
        "has_options": (build.path / "build.yaml").exists(),
        "is_remasked": build.record.get("command") == "remask",
        "local_files": "; ".join(needed),
        "versions": version_rows(build.record),
    }


def _build_options(build: Build) -> Iterator[Sequence[Any]]:
    """(name, value, source) of the options that have a name in cards."""
    identity = build.identity
    for name, facts in facts_of(BuildConfig).items():
        if facts.card is None or (name == "beta" and identity["threshold"] != "fixed"):
            continue
        value = identity.get(name)
        # Nobody states a seed or the size of a file.
        yield facts.card, value, "" if facts.group == RUN else source_of(name, value)


def _gate_values(build: Build) -> dict[str, Any]:
    """What the gate rejected; without a report, `report` alone."""
    report = build.report
    if not report:
        return {"report": None}
    reasons = Counter(
        _kind_of(reason)
        for key in ("rejected", "dropped")
        for reasons in report[key].values()
        for reason in reasons
    )
    rejections = [(f"`{row}`", "; ".join(reasons)) for row, reasons in report["rejected"].items()]
    rejections += [
        (f"`{row}`", f"dropped: {'; '.join(reasons)}") for row, reasons in report["dropped"].items()
    ]
    rows = report["rows_with_foreground"]
    return {
        "report": True,
        "rows_with_class": f"{count(rows, 'row')} {'has' if rows == 1 else 'have'}",
        "foreground": percent(report["foreground"]),
        "rejected_attempts": report["rejected_attempts"] and count(report["rejected_attempts"], "attempt"),
        "rejected_rows": count(len(report["rejected"]), "row"),
        "dropped_rows": report["dropped"] and count(len(report["dropped"]), "row"),
        "reasons": table_rows((reason, f"{number:,}") for reason, number in reasons.most_common()),
        "rejections": table_rows(rejections[:MAX_REJECTIONS]),
        "more_rejections": f"{len(rejections) - MAX_REJECTIONS:,}"
        if len(rejections) > MAX_REJECTIONS
        else "",
    }


def _kind_of(reason: str) -> str:
    """A reason without what differs from row to row: the attempt, the word, the numbers."""
    reason = re.sub(r"^attempt \d+: ", "", reason).split("; ")[0]
    return re.sub(r"\d+", "N", reason.partition(": ")[2] or reason)


def _weakness_values(build: Build) -> dict[str, Any]:
    statistics, names = build.statistics, [escaped(name) for name in build.statistics.names]
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
        "is_embedded": build.identity["model"] == "embedded",
        "missing_classes": ", ".join(missing[:MAX_MISSING]) + more,
        "most_frequent": is_uneven and f"{names[most]} ({count(rows[most], 'row')})",
        "least_frequent": is_uneven and f"{names[least]} ({rows[least]:,})",
        "least_reliable": ", ".join(f"{names[k]} ({percent(statistics.reliable(k))})" for k in worst),
        "frequent_pair": number and f"{names[first]} and {names[second]} ({count(number, 'row')})",
    }
