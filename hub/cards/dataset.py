"""The card of a dataset: what its builds recorded, what its rows hold, and how to use it.

Several builds are several configurations of one repository. Each has a part of its own (`config:NAME`), so
that publishing one of them leaves what stands of the others.
"""

from __future__ import annotations

import json
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields, replace
from pathlib import Path
from typing import Any

import pyarrow.parquet as parquet

from attn2mask.builders.build import BuildConfig
from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.rules import Rules, origin
from attn2mask.builders.shards import BuildDirectory
from attn2mask.builders.table_reader import TABLES
from attn2mask.hub.cards.markdown import (
    CITATION,
    NOT_RECORDED,
    UNKNOWN,
    Card,
    as_list,
    compose,
    compose_blocks,
    count,
    details,
    merge,
    merge_data,
    percent,
    png,
    read_record,
    split,
    table,
    wrapped,
)
from attn2mask.hub.cards.statistics import MOST, Tally, figure, sampled_rows, tally

SAMPLES = 6  # rows of the sheet
LISTED = 40  # rejected samples that are named
BOUNDS = (("n<1K", 1e3), ("1K<n<10K", 1e4), ("10K<n<100K", 1e5), ("100K<n<1M", 1e6), ("1M<n<10M", 1e7))

# Options of `build` that are spelt as they stand in build.json's identity.
_OPTIONS = (
    *("seed", "steps", "guidance_scale", "height", "width", "shard_size", "alias_probability", "balance"),
    *("store_scores", "lora", "lora_scale"),
)
_RULES = ("threshold", "beta", "reliability", "graded")  # those that `--preset` may be changed by
_COLUMNS = {
    "image": "the painted picture, RGB, lossless",
    "mask": "class ids of the pixels; the id that is to be ignored stands with each configuration",
    "reliability": "how far to trust each pixel of the mask, 0 to 255",
    "prompt": "what the painter was given",
    "caption": "the caption that the prompt was made from, verbatim",
    "classes": "ids of the classes that the prompt names and the mask may hold",
    "words": "for each of `classes` the words of the prompt that its attention was read from",
    "seed": "of the picture's noise",
    "sample_id": "name of the row, stable over machines and numbers of processes",
    "peaks": "for each of `classes` the largest raw attention probability",
    "scores": "for each of `classes` its low-resolution score map, uint8, from which masks can be made again",
}


@dataclass(frozen=True)
class Build:
    """A build as its card needs it; `report` is None where none was written."""

    name: str
    record: dict[str, Any]
    report: dict[str, Any] | None
    table: ClassTable
    rules: Rules
    files: tuple[Path, ...]
    found: Tally

    @property
    def identity(self) -> dict[str, Any]:
        return self.record["identity"]

    @property
    def licenses(self) -> list[str]:
        """Of the painter and, where there is one, its LoRA, as far as they are recorded."""
        names = ["license", *(["lora_license"] if "lora" in self.identity else [])]
        return [license for name in names for license in as_list(self.record.get(name)) or [UNKNOWN]]


def dataset_card(builds: Mapping[str, Path], repo_id: str, old: str | None = None) -> Card:
    """README.md of a dataset repository, and its figures.

    Args:
        builds: directories of builds by the names of their configurations; the first is the default.
        repo_id: what `load_dataset` will be given.
        old: the card that stands in the repository; its free text and its other configurations stay.

    Reads all masks once. Raises UserError for a directory that holds no build or no rows.
    """
    read = [_read(name, Path(path)) for name, path in builds.items()]
    before = split(old)[0] if old else {}
    data = _metadata(read, repo_id, before)
    blocks = {
        "about": _about(data, repo_id),
        **{f"config:{build.name}": _config(build, repo_id, data) for build in read},
        "columns": _columns(data),
        "use": _use(data, repo_id),
        "limits": LIMITS,
        "citation": CITATION,
    }
    assets = {}
    for build in read:
        rows = sampled_rows(build.files, SAMPLES)
        assets |= _figures(build, rows)
    return Card(merge(compose(data, compose_blocks(blocks)), old), assets)


def _read(name: str, path: Path) -> Build:
    directory = BuildDirectory(path)
    record = directory.record()
    files = tuple(sorted((path / "data").glob("*.parquet")))
    found = tally(files, directory.table)
    if not found.rows:
        raise UserError(f"{path} holds no rows (no data/*.parquet): run its build again")
    report = read_record(path / "report.json") or None
    return Build(name, record, report, directory.table, directory.rules, files, found)


def _figures(build: Build, rows: Sequence[dict[str, Any]]) -> dict[str, bytes]:
    from attn2mask.builders.show import sheet

    figures = {f"assets/{build.name}-sheet.png": png(sheet(rows, build.table))}
    if build.found.held.any():
        figures[f"assets/{build.name}-classes.png"] = png(figure(build.found))
    return figures


# Metadata


def _metadata(builds: Sequence[Build], repo_id: str, before: Mapping[str, Any]) -> dict[str, Any]:
    """What the Hub and `datasets` read: of these builds, and of the configurations that stand beside them."""
    from datasets import DatasetInfo, Features, SplitDict, SplitInfo
    from datasets.info import DatasetInfosDict
    from datasets.utils.metadata import MetadataConfigs
    from huggingface_hub import DatasetCardData

    infos, configs = {}, {}
    for number, build in enumerate(builds):
        size = sum(file.stat().st_size for file in build.files)
        infos[build.name] = DatasetInfo(
            features=Features.from_arrow_schema(parquet.read_schema(build.files[0])),
            splits=SplitDict({"train": SplitInfo("train", num_bytes=size, num_examples=build.found.rows)}),
            download_size=size,
            dataset_size=size,
        )
        files = [{"split": "train", "path": f"{build.name}/train-*"}]
        configs[build.name] = {"data_files": files, **({} if number else {"default": True})}
    beside = [i for i in as_list(before.get("dataset_info")) if i.get("config_name", "default") not in infos]
    others = bool(beside)
    rows = sum(build.found.rows for build in builds) + sum(_rows(info) for info in beside)
    grammar = all(build.identity["captions"] == "grammar" for build in builds) and not others
    data = DatasetCardData(
        pretty_name=repo_id.split("/")[-1],
        license=_one_or_all(
            [license for b in builds for license in b.licenses], before.get("license") if others else None
        ),
        language=["en"] if grammar else None,
        annotations_creators=["machine-generated"],
        language_creators=["machine-generated"] if grammar else None,
        source_datasets=["original"] if grammar else None,
        task_categories=["image-segmentation"],
        task_ids=["semantic-segmentation"],
        size_categories=[next((name for name, bound in BOUNDS if rows < bound), "10M<n<100M")],
        tags=["attn2mask", "synthetic", "pseudo-labels", "weakly-supervised-segmentation", "diffusion"],
        source_models=_all(
            [m for b in builds for m in (b.identity["model"], b.identity.get("lora")) if m],
            before.get("source_models") if others else None,
        ),
    )
    DatasetInfosDict(infos).to_dataset_card_data(data)
    MetadataConfigs(configs).to_dataset_card_data(data)
    values = data.to_dict()
    # Both as lists in the order of the builds, so that other configurations can stand beside them.
    for key in ("dataset_info", "configs"):
        entries = {entry.get("config_name", "default"): entry for entry in as_list(values[key])}
        values[key] = [{"config_name": build.name, **entries[build.name]} for build in builds]
    return merge_data(values, {key: before[key] for key in ("dataset_info", "configs") if key in before})


def _rows(info: Mapping[str, Any]) -> int:
    return sum(part["num_examples"] for part in info.get("splits", []))


def _all(values: Sequence[str], before: Any) -> list[str]:
    return list(dict.fromkeys([*as_list(before), *values]))


def _one_or_all(values: Sequence[str], before: Any) -> str | list[str]:
    found = _all(values, before)
    return found[0] if len(found) == 1 else found


# The parts


def _about(data: Mapping[str, Any], repo_id: str) -> str:
    rows = []
    for info in data["dataset_info"]:
        names = _names(info)
        size = info.get("download_size", 0) / 1e6
        rows.append(
            [f"`{info.get('config_name', 'default')}`", f"{_rows(info):,}", len(names), f"{size:,.1f}"]
        )
    return f"""# {repo_id.split("/")[-1]}

Pictures that a text-to-image model painted from captions, with semantic masks that were read from the model's
own cross-attention to the class words and sharpened by a dense CRF. Beside each mask stands a map of how far
to trust it. No picture is a photograph and no pixel was labeled by hand: machines made pictures, masks and
reliability.

{table(["configuration", "rows", "class names", "MB"], rows)}
"""


def _names(info: Mapping[str, Any]) -> list[str]:
    """The class names in a `dataset_info`."""
    for feature in info.get("features", []):
        if feature["name"] == "classes":
            return list(feature["list"]["class_label"]["names"].values())
    return []


def _default(data: Mapping[str, Any]) -> str:
    """The configuration that is loaded where none is named."""
    return next(config.get("config_name", "default") for config in data["configs"] if config.get("default"))


def _config(build: Build, repo_id: str, data: Mapping[str, Any]) -> str:
    found, name = build.found, build.name
    sizes = ", ".join(f"{w} x {h}" for (w, h), _ in found.sizes.most_common(3))
    background = f", and `{build.table.background}`" if build.table.background else ""
    classes = f"{len(build.table.classes):,} class{'es' * (len(build.table.classes) > 1)}"
    scores = " | class maps" if build.identity.get("store_scores") else ""
    statistics = ""
    if found.held.any():
        part = f" (the {MOST} most frequent)" if _named(found) > MOST else ""
        statistics = (
            f"\n![Rows, area, reliable part and common rows by class{part}](assets/{name}-classes.png)\n"
        )
    return f"""## `{name}`

{count(found.rows, "picture")} of {sizes} pixels with masks of {classes}{background}; in a mask
{build.table.ignore_index} is to be ignored. {_shares(build)}

![Rows of the data: picture{scores} | mask | reliability | prompt](assets/{name}-sheet.png)

{count(min(SAMPLES, found.rows), "row")} at equal distances, not chosen by hand. White is reliable.
{statistics}
{details("The same as numbers", _class_table(build))}

### How `{name}` was made

{table(["painting", "value", "stated by"], _painting(build))}

{table(["labeling", "value", "stated by"], _labeling(build))}

Widths of the CRF (`sxy`) are in pixels of a 512 x 512 picture. What is marked **not verified** is stated
neither by the paper nor by a replication of it, and may be why results differ.

{_again(build)}

{details("Scheduler", _json(build.identity.get("scheduler")))}

{details("Versions", table(["", "version"], _versions(build.record)))}

All of it stands in `{name}/build.json`.

### What was rejected

{_rejected(build)}

### What to watch for in `{name}`

{_watch(build)}
{_learn(build, repo_id) if name == _default(data) else ""}"""


def _named(found: Tally) -> int:
    """The number of classes that a row names."""
    return int((found.held > 0).sum())


def _shares(build: Build) -> str:
    found = build.found
    reliable = f"{percent(found.trust / found.seen)} of all pixels are marked reliable."
    if build.report is None:
        return f"{reliable} What the gate did is {NOT_RECORDED}."
    return (
        f"Classes stand in {count(build.report['rows_with_foreground'], 'row')} and cover"
        f" {percent(build.report['foreground'])} of the pixels; {reliable}"
    )


def _class_table(build: Build) -> str:
    found, rows = build.found, []
    for k, name in enumerate(found.names):
        if k < build.table.first_id:
            rows.append([k, name, "", percent(found.pixels[k] / found.seen), percent(found.reliable(k)), ""])
        if not found.held[k]:
            continue
        partner = found.partner(k)
        beside = f"{found.names[partner[0]]} ({partner[1]:,})" if partner else "-"
        area, trust = percent(found.mean_area(k)), percent(found.reliable(k))
        rows.append([k, name, f"{found.held[k]:,}", area, trust, beside])
    per_row = ", ".join(f"{n} in {count(rows, 'row')}" for n, rows in sorted(found.labeled.items()))
    head = ["id", "class", "rows", "mean area", "reliable", "most often beside"]
    return f"{table(head, rows)}\n\nClasses in a row: {per_row}."


def _painting(build: Build) -> Iterator[Sequence[Any]]:
    identity, record = build.identity, build.record
    model, version = identity["model"], identity.get("model_version", NOT_RECORDED)
    painter = f"[{model}](https://huggingface.co/{model}/tree/{version})" if "/" in model else f"`{model}`"
    yield "painter", f"{painter}, {identity.get('pipeline', NOT_RECORDED)}", ""
    yield "its revision" if "/" in model else "its weights", f"`{version}`", ""
    yield "its license", _license(record, "license"), ""
    if "lora" in identity:
        yield "LoRA", f"`{identity['lora']}`, scale {identity.get('lora_scale')}", ""
        yield "its weights", f"`{identity.get('lora_version', NOT_RECORDED)}`", ""
        yield "its license", _license(record, "lora_license"), ""
    source = record.get("captions", {})
    digest = (
        "" if identity["captions"] == "grammar" else f", `{identity['captions']}`, license {NOT_RECORDED}"
    )
    naming = source.get("naming_a_class")
    yield "captions", f"{source.get('source', NOT_RECORDED)}{digest}", ""
    if digest and naming:
        yield "captions that name a class", f"{naming:,}", ""
    yield "classes take turns", identity.get("balance"), ""
    chance = identity.get("alias_probability")
    yield "a class word becomes an alias", f"with probability {chance}", origin("alias_probability", chance)
    yield "seed", identity.get("seed"), ""
    yield "scheduler", identity.get("scheduler", {}).get("class"), ""
    for name in ("steps", "guidance_scale"):
        yield name.replace("_", " "), identity.get(name), origin(name, identity.get(name))
    size = f"{identity.get('height')} x {identity.get('width')}"
    yield "height x width", size, origin("height", identity.get("height"))
    yield (
        "numbers, device, batch",
        f"{record.get('dtype')}, {record.get('device')}, {record.get('batch_size')}",
        "",
    )


def _license(record: Mapping[str, Any], name: str) -> str:
    return ", ".join(as_list(record.get(name))) or NOT_RECORDED


def _labeling(build: Build) -> Iterator[Sequence[Any]]:
    rules, identity = build.rules, build.identity["rules"]
    first, last = rules.steps
    window = "all" if rules.steps == (0, 1) else f"from {first:.0%} to {last:.0%} of the way"
    said = {
        "steps": ("attention kept of steps", window),
        "map_sides": ("attention maps of sides", " to ".join(map(str, rules.map_sides))),
        "normalize": ("each class map is brought to 0 to 1 by", rules.normalize),
        "threshold": ("threshold from score to class", rules.threshold),
        "beta": ("its beta", rules.beta),
        "reliability": ("reliability", rules.reliability + (", graded" if rules.graded else ", 0 or 255")),
    }
    if rules.threshold != "fixed":
        del said["beta"]
    for name, (what, value) in said.items():
        yield what, value, origin(f"rules.{name}", identity[name])
    for name, value in identity["crf"].items():
        yield f"dense CRF: {name.replace('_', ' ')}", value, origin(f"rules.crf.{name}", value)


def _versions(record: Mapping[str, Any]) -> list[Sequence[Any]]:
    commit = record.get("git_commit")
    versions = list(record.get("versions", {}).items())
    return [*versions, ("git commit", f"`{commit}`" if commit else NOT_RECORDED)]


def _json(value: Any) -> str:
    return f"```json\n{json.dumps(value, indent=1)}\n```" if value else NOT_RECORDED


def _again(build: Build) -> str:
    commands = remake(build.record, build.rules, build.name)
    if commands is None:
        return "No preset gives these rules, so no command makes the same again; they stand above."
    model = build.identity["model"]
    notes = []
    if model != "embedded" and "/" not in model:
        notes.append(f"`{model}` is a folder with a pipeline of the weights named above")
    if build.identity["table"] not in TABLES:
        notes.append(f"`{build.identity['table']}.yaml` is a class table, which stands in `build.json`")
    text = "\n".join(f"$ {command}" for command in commands)
    note = f"\n\n{'; '.join(notes)}." if notes else ""
    return f"The command that makes the same again, on the versions below:\n\n```console\n{text}\n```{note}"


def remake(record: Mapping[str, Any], rules: Rules, out: str) -> list[str] | None:
    """The commands that make the rows of a record again, into `data/OUT`; None where no preset and options
    give its rules.
    """
    identity = record["identity"]
    remasked = record.get("command") == "remask"
    painted = _preset_of(rules, ("steps", "map_sides", "normalize") if remasked else None)
    labeled = _preset_of(rules, ("crf",)) if remasked else painted
    if painted is None or labeled is None:
        return None
    name = identity["table"]
    folder = f"data/{out}-painted" if remasked else f"data/{out}"
    words = ["attn2mask", "build", name if name in TABLES else f"{name}.yaml", "--out", folder]
    words += ["--num-images", str(record["num_images"])]
    if identity["model"] != "embedded":
        words += ["--model", identity["model"]]
        words += ["--revision", identity["model_version"]] if "/" in identity["model"] else []
    if identity["captions"] != "grammar":
        words += ["--captions", record["captions"]["source"]]
    defaults = {f.name: f.default for f in fields(BuildConfig) if f.default is not MISSING}
    for key in (*_OPTIONS, "batch_size"):
        value = record.get(key) if key == "batch_size" else identity.get(key)
        if value is not None and value != defaults[key]:
            words += [f"--{key.replace('_', '-')}", *([] if value is True else [str(value)])]
    preset, changed = labeled
    options = ["--preset", preset, *(word for key in changed for word in (f"--{key}", str(changed[key])))]
    if not remasked:
        return [wrapped([*words, *options])]
    remask = ["attn2mask", "remask", folder, "--out", f"data/{out}", *options]
    return [wrapped([*words, "--preset", painted[0]]), wrapped(remask)]


def _preset_of(rules: Rules, names: Sequence[str] | None) -> tuple[str, dict[str, Any]] | None:
    """A preset that is `rules` but for options, or shares the fields `names` with it; and these options."""
    found = []
    for name, preset in PRESETS.items():
        changed = {key: getattr(rules, key) for key in _RULES if getattr(rules, key) != getattr(preset, key)}
        if "beta" in changed and rules.threshold != "fixed":
            continue  # no option sets a beta that no rule reads
        same = all(getattr(rules, key) == getattr(preset, key) for key in names) if names else (
            replace(preset, **changed) == rules
        )  # fmt: skip
        if same:
            found.append((name, changed))
    return min(found, key=lambda item: (len(item[1]), item[0] != "default"), default=None)


def _rejected(build: Build) -> str:
    report = build.report
    if report is None:
        return f"{NOT_RECORDED[0].upper()}{NOT_RECORDED[1:]}: the build wrote no report."
    attempts, samples = report["rejected_attempts"], len(report["rejected"])
    gate = "A gate looks at each picture's maps and mask."
    if build.record.get("command") == "remask":
        gate += " What it rejected while painting stands in the report of the build that was remasked."
    elif attempts:
        gate += (
            f" It rejected {count(attempts, 'attempt')} at {count(samples, 'sample')}, which were painted"
            " again with the next prompt and seed."
        )
    else:
        gate += " It rejected nothing."
    dropped = len(report["dropped"])
    text = f"{gate} {count(dropped, 'row')} ended without a class of the prompt." if dropped else gate
    reasons = Counter(
        _kind(reason) for key in ("rejected", "dropped") for why in report[key].values() for reason in why
    )
    if not reasons:
        return text
    rows = [(reason, f"{number:,}") for reason, number in reasons.most_common()]
    named = [(f"`{sample}`", "; ".join(why)) for sample, why in report["rejected"].items()]
    named += [(f"`{sample}`", f"dropped: {'; '.join(why)}") for sample, why in report["dropped"].items()]
    more = (
        f"\n\nThe rest of {len(named):,} stand in `{build.name}/report.json`." if len(named) > LISTED else ""
    )
    listed = table(["sample", "why"], named[:LISTED]) + more
    return f"{text}\n\n{table(['reason', 'times'], rows)}\n\n{details('Which samples', listed)}"


def _kind(reason: str) -> str:
    """A reason without what differs from sample to sample: the attempt, the word, the numbers."""
    reason = re.sub(r"^attempt \d+: ", "", reason).split("; ")[0]
    return re.sub(r"\d+", "N", reason.partition(": ")[2] or reason)


def _watch(build: Build) -> str:
    found, names = build.found, build.found.names
    ids = range(build.table.first_id, len(names))
    held = {k: int(found.held[k]) for k in ids if found.held[k]}
    lines = []
    if missing := [names[k] for k in ids if k not in held]:
        more = f" and {len(missing) - 20} more" if len(missing) > 20 else ""
        lines.append(f"No row holds {', '.join(missing[:20])}{more}.")
    if held:
        most, least = max(held, key=held.get), min(held, key=held.get)
        if held[most] > held[least]:
            lines.append(
                f"The most frequent class, {names[most]}, stands in {count(held[most], 'row')}, the rarest,"
                f" {names[least]}, in {held[least]:,}."
            )
        worst = sorted(held, key=lambda k: found.reliable(k) or 0)[:3]
        lines.append(
            "Least reliable by their own maps: "
            + ", ".join(f"{names[k]} ({percent(found.reliable(k))})" for k in worst)
            + "."
        )
        pairs = [(p[1], *sorted((k, p[0]))) for k in held if (p := found.partner(k))]
        if pairs:
            number, one, other = max(pairs)
            lines.append(
                f"{names[one]} and {names[other]} stand together most often ({count(number, 'row')}): classes"
                " that always come in company are hardest to tell apart."
            )
    if build.identity["model"] == "embedded":
        lines.append(
            "The embedded painter is a small model that paints in the style of drawn scenes. It shows that"
            " the way works; what is learnt from it is not meant for photographs."
        )
    else:
        lines.append("The pictures have the biases of their painter and of the captions.")
    unasked = f"`{build.table.background}` in the mask" if build.table.background else "left to be ignored"
    lines.append(
        "Only classes that the prompt names are labeled: what the painter added unasked is"
        f" {unasked}, or taken for one of them."
    )
    lines.append("How good the masks are against ground truth is not recorded with the data.")
    return "\n".join(f"- {line}" for line in lines)


def _learn(build: Build, repo_id: str) -> str:
    preset = "voc-resnet50" if min(min(size) for size in build.found.sizes) >= 256 else "demo"
    command = ["accelerate", "launch", "-m", "attn2mask.training.train", "--dataset", repo_id]
    command += ["--preset", preset, "--output-dir", "runs/segmenter"]
    return f"""
### Train on `{build.name}`

With attn2mask installed, two networks learn from it, and from each other where the masks can't be trusted:

```console
$ {wrapped(command)}
```
"""


def _columns(data: Mapping[str, Any]) -> str:
    there = {feature["name"] for info in data["dataset_info"] for feature in info.get("features", [])}
    rows = [(f"`{name}`", what) for name, what in _COLUMNS.items() if name in there]
    return f"## Columns\n\n{table(['column', 'what it holds'], rows)}\n\nThe only split is `train`."


def _use(data: Mapping[str, Any], repo_id: str) -> str:
    default = _default(data)
    names = [config.get("config_name", "default") for config in data["configs"]]
    others = ", ".join(f"`{name}`" for name in names if name != default)
    more = f" Other configurations: {others}." if others else ""
    return f"""## Use

No code of this repository is run; `datasets` alone is enough.{more}

```python
from datasets import load_dataset

rows = load_dataset("{repo_id}", "{default}", split="train")
names = rows.features["classes"].feature.names
row = rows[0]
print(row["prompt"], [names[k] for k in row["classes"]])
print(row["image"].size, row["mask"].mode, row["reliability"].mode)
```

Without downloading all of it first, and with labels only where they can be trusted:

```python
import numpy as np
from datasets import load_dataset

for row in load_dataset("{repo_id}", "{default}", split="train", streaming=True).take(2):
    mask, trusted = np.array(row["mask"]), np.array(row["reliability"]) > 127
    print(row["sample_id"], np.unique(mask[trusted]))
```
"""


LIMITS = """## Limits

- The masks are pseudo-labels: where the painter attended, not what a person would outline. They are meant for
  training, together with their reliability, and not as ground truth to measure on.
- A word may light up what usually goes with its thing (rails with a train, water with a boat), and things
  that usually stand together are hard to tell apart.
- Reliability comes from the labeling itself: it finds doubtful outlines better than a thing that is wrong as
  a whole.
- Pictures inherit what their painter and captions show, and how: no attempt was made to balance people,
  places or styles.
"""
