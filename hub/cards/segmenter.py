"""The card of a segmenter and its peer.

Everything comes from what the training and `attn2mask evaluate` wrote; what they did not write is said to be
not recorded.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import MISSING, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from attn2mask.builders.errors import UserError
from attn2mask.builders.rules import OURS, PAPER
from attn2mask.hub.cards.markdown import (
    CITATION,
    NOT_RECORDED,
    UNKNOWN,
    Card,
    compose,
    compose_blocks,
    count,
    details,
    duration,
    merge,
    percent,
    png,
    read_record,
    shown,
    table,
    wrapped,
)
from attn2mask.training.charts import MOST, iou_chart, shown_classes
from attn2mask.training.config import TrainConfig

if TYPE_CHECKING:
    from matplotlib.figure import Figure

ARCHITECTURES = {"deeplabv3plus": "DeepLabv3+", "upernet": "UperNet"}
# Columns of the results that the model-index tells of; network B stands in the card alone.
SHOWN = {"A": "network A", "both": "both networks", "IoU": "one network"}
METRICS = (("mean_iou", "mean_iou", "mean IoU"), ("pixel_accuracy", "accuracy", "pixel accuracy"))
_TABLE_1, _BECO = f"{PAPER}, Table 1", "BECO"
# Who states a setting's value; what is not listed is ours.
ORIGINS: dict[str, dict[Any, str]] = {
    "architecture": {"deeplabv3plus": _TABLE_1},
    "backbone": {
        "microsoft/resnet-50": _TABLE_1,
        "microsoft/swin-base-patch4-window7-224-in22k": _TABLE_1,
    },
    "optimizer": {"sgd": _TABLE_1},
    "power": {0.9: _TABLE_1},
    "weight_decay": {1e-5: _TABLE_1},
    "batch_size": {12: _TABLE_1},
    "max_steps": {25_000: _TABLE_1},
    "head_multiplier": {10: f"{_BECO}; **not verified**"},
    "confidence": {0.95: _BECO},
    "boundary_weight": {1.2: _BECO},
}
# Settings that are read where another has this value alone.
_READ_WITH = {
    "momentum": ("optimizer", "sgd"),
    "confidence": ("mixing", True),
    "boundary_weight": ("mixing", True),
}
_RATES = {"microsoft/resnet-50": 0.001, "microsoft/swin-base-patch4-window7-224-in22k": 0.01}
# Options of the training that its weights depend on.
_OPTIONS = (
    *("preset", "streaming", "architecture", "backbone", "max_steps", "learning_rate", "batch_size"),
    *("crop_size", "no_co_training", "no_reliability", "no_mixing", "seed", "mixed_precision"),
)


@dataclass(frozen=True)
class Measured:
    """A report of `attn2mask evaluate`; `name` is what its files are called by, `hub` the dataset's name on
    the Hub, None for a folder; `is_learnt` where it is what the training was given.
    """

    name: str
    path: Path
    found: dict[str, Any]
    dataset: str
    split: str | None
    hub: str | None
    is_learnt: bool

    @property
    def title(self) -> str:
        """The dataset's name on the Hub, or the folder's own."""
        return self.hub or Path(self.dataset).name

    @property
    def root(self) -> dict[str, Any]:
        """The figures of network A, which stands at the repository's root."""
        return self.found.get("networks", {}).get("a", self.found)

    @property
    def columns(self) -> dict[str, dict[str, Any]]:
        """Figures by what was measured."""
        networks = self.found.get("networks", {})
        if len(networks) < 2:
            return {"IoU": self.root}
        return {"A": networks["a"], "B": networks["b"], "both": self.found}


@dataclass(frozen=True)
class Run:
    """What a training left in `path`; an empty mapping is a record that is not there."""

    path: Path
    config: dict[str, Any]
    training: dict[str, Any]
    log: list[dict[str, Any]]

    @property
    def settings(self) -> dict[str, Any]:
        return self.training.get("settings", {})

    @property
    def dataset(self) -> str:
        return self.training.get("config", {}).get("dataset") or ""

    @property
    def rows(self) -> dict[str, Any]:
        """What the training found of its rows: the identity of their build, or their revision on the Hub."""
        return self.training.get("rows", {})

    @property
    def painter(self) -> dict[str, Any]:
        """The identity of the build that the rows came from."""
        return self.rows.get("identity", {})

    def on_hub(self, option: str) -> str | None:
        """What the training was given as `option`, where it is a name on the Hub."""
        return self.training.get("on_hub", {}).get(option)

    @property
    def architecture(self) -> str:
        return self.config.get("model_type", "")

    @property
    def names(self) -> list[str]:
        labels = self.config.get("id2label", {})
        return [labels[key] for key in sorted(labels, key=int)]

    @property
    def pretrained(self) -> str | None:
        """The backbone's name on the Hub, where its weights were taken."""
        return None if self.config.get("backbone_from_scratch", True) else self.on_hub("backbone")

    @property
    def license(self) -> str:
        """The rows' where painter and backbone are known to be this project's own, else not known."""
        backbone = self.settings.get("backbone", "")
        own = backbone == "embedded" or backbone.startswith("scratch:")
        own &= self.painter.get("model") == "embedded" and "lora" not in self.painter
        return (self.rows.get("license") if own else None) or UNKNOWN


def model_card(run: Path, repo_id: str, metrics: Sequence[Path] = (), old: str | None = None) -> Card:
    """README.md of a model repository, its figures and, of datasets of the Hub, its `.eval_results`.

    Args:
        run: the output directory of a training, or a checkpoint of transformers.
        repo_id: what `from_pretrained` will be given.
        metrics: reports of `attn2mask evaluate`; `metrics*.json` in the run where none is given.
        old: the card that stands in the repository; its free text stays.

    Raises UserError for a folder without config.json, and a file that is no such report.
    """
    read = _read(Path(run))
    measured = [_measured(read, name, path) for name, path in reports(read.path, metrics).items()]
    files = dict(_files(read, measured))
    blocks = {
        "about": _about(read, repo_id),
        "use": _use(read, repo_id),
        "results": _results(read, repo_id, measured, files),
        "training": _training(read, repo_id, files),
        "limits": _limits(read, measured),
        "citation": CITATION,
    }
    data = _metadata(read, repo_id, measured)
    return Card(merge(compose(data, compose_blocks(blocks)), old), files)


def reports(folder: Path, metrics: Sequence[Path] = ()) -> dict[str, Path]:
    """Reports of `attn2mask evaluate` by the names that their files have in a repository: `metrics`, or the
    folder's metrics*.json where none is given. Raises UserError for a file that is no such report.
    """
    named: dict[str, Path] = {}
    for path in [Path(path) for path in metrics] or sorted(folder.glob("metrics*.json")):
        if not {"mean_iou", "per_class_iou", "pixel_accuracy", "num_images"} <= read_record(path).keys():
            raise UserError(f"{path} is no report of `attn2mask evaluate`: give --metrics one that it wrote")
        name = re.sub(r"[^\w.-]", "-", path.stem)
        while name in named:
            name += "_"
        named[name] = path
    return named


def _read(path: Path) -> Run:
    config = read_record(path / "config.json")
    if not config:
        raise UserError(f"{path} holds no config.json: is it what training wrote?")
    log = path / "log.jsonl"
    lines = log.read_text().splitlines() if log.exists() else []
    return Run(path, config, read_record(path / "training_config.json"), [json.loads(line) for line in lines])


def _measured(run: Run, name: str, path: Path) -> Measured:
    found, said = read_record(path), {}
    if "evaluated" in found:
        said = found["evaluated"]
    elif path.parent == run.path:  # by the training itself
        trained = run.training.get("config", {})
        said = {"dataset": trained.get("eval_dataset"), "split": trained.get("eval_split")}
        said["hub"] = run.on_hub("eval_dataset")
    dataset = shown(said.get("dataset") or NOT_RECORDED)
    is_learnt = bool(run.dataset) and said.get("dataset") == run.dataset
    return Measured(name, path, found, dataset, said.get("split"), said.get("hub"), is_learnt)


# Figures, and the results for the Hub


def _files(run: Run, measured: Sequence[Measured]) -> Iterator[tuple[str, bytes]]:
    import io

    drawn = False
    for part in measured:
        if shown_classes(part.root["per_class_iou"]):
            chart = io.BytesIO()
            iou_chart(part.root, chart)
            yield f"assets/{part.name}-iou.png", chart.getvalue()
        pictures = part.path.with_name(f"{part.path.stem}_pictures.png")
        if pictures.exists():
            drawn = True
            yield f"assets/{part.name}-pictures.png", pictures.read_bytes()
        if part.hub and part.root["mean_iou"] is not None:
            yield f".eval_results/{part.name}.yaml", _eval_results(part)
    seen = sorted((run.path / "predictions").glob("step-*.png"))
    if seen and not drawn:
        yield "assets/predictions.png", seen[-1].read_bytes()
    if any("loss_a" in line for line in run.log):
        yield "assets/training.png", png(curves(run.log, run.settings))


def _eval_results(part: Measured) -> bytes:
    """The Hub's newer format, for datasets of the Hub alone: network A, 0 to 1, as measured."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    split = f", split {part.split}" if part.split else ""
    network = "network A" if len(part.columns) > 1 else "one network"
    entry = EvalResultEntry(
        dataset_id=part.hub,
        task_id="semantic-segmentation",
        value=part.root["mean_iou"],
        notes=f"mean IoU, 0 to 1, {network}, {count(part.root['num_images'], 'picture')}{split}",
    )
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False).encode()


def curves(log: Sequence[Mapping[str, Any]], settings: Mapping[str, Any]) -> Figure:
    """The losses of both networks by step, and the scores on the way where there are some."""
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    scores = [
        (line["step"], 100 * line["eval_mean_iou"]) for line in log if line.get("eval_mean_iou") is not None
    ]
    page = Figure(figsize=(11 if scores else 8, 3.4), layout="constrained")
    panels = page.subplots(1, 2 if scores else 1, squeeze=False)[0]
    for key, name, color in (("loss_a", "network A", "#4c78a8"), ("loss_b", "network B", "#e45756")):
        points = [(line["step"], line[key]) for line in log if key in line]
        if points:
            dot = "o" if len(points) == 1 else None
            panels[0].plot(*zip(*points, strict=True), color=color, linewidth=1.4, marker=dot, label=name)
    start = round(settings.get("warmup", 0) * settings.get("max_steps", 0))
    if start and (settings.get("co_training") or settings.get("mixing")):
        panels[0].axvline(start, color="#777777", linewidth=1, linestyle="--", label="end of the warm-up")
    panels[0].set(xlabel="step", title="loss")
    panels[0].legend(frameon=False, fontsize=9)
    if scores:
        panels[1].plot(*zip(*scores, strict=True), color="#54a24b", marker="o", markersize=4)
        panels[1].set(xlabel="step", title="mean IoU while training, %")
    for axes in panels:
        axes.set_ylim(0, 1.05 * axes.dataLim.ymax or 1)
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        axes.spines[["top", "right"]].set_visible(False)
        axes.grid(color="#e4e4e4", linewidth=0.6)
        axes.set_axisbelow(True)
        axes.title.set_fontsize(10)
    return page


# Metadata


def _metadata(run: Run, repo_id: str, measured: Sequence[Measured]) -> dict[str, Any]:
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-segmentation",
            task_name="semantic segmentation",
            dataset_type=part.title,
            dataset_name=part.title,
            dataset_split=part.split,
            metric_type=kind,
            metric_name=f"{said} ({SHOWN[column]})",
            metric_value=figures[key],
        )
        for part in measured
        for column, figures in part.columns.items()
        for key, kind, said in METRICS
        if column in SHOWN and figures[key] is not None
    ]
    tags = ["attn2mask", "semantic-segmentation", "weakly-supervised-segmentation", "synthetic-data"]
    tags += [run.architecture] if run.architecture else []
    dataset = run.on_hub("dataset")
    return ModelCardData(
        license=run.license,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        base_model=run.pretrained,
        datasets=[dataset] if dataset else None,
        tags=[*tags, "custom_code"] if "auto_map" in run.config else tags,
        metrics=["mean_iou", "accuracy"] if results else None,
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
    ).to_dict()


# The parts


def _about(run: Run, repo_id: str) -> str:
    architecture = ARCHITECTURES.get(run.architecture, run.architecture or "A network")
    kind = run.config.get("backbone_config", {}).get("model_type")
    backbone = f" on a {kind} backbone" if kind else ""
    if run.painter:
        painter = f"`{run.painter['model']}`"
        painter += f" with the LoRA `{run.painter['lora']}`" if "lora" in run.painter else ""
        source = (
            f"It learnt from {count(run.rows['num_images'], 'picture')} that {painter} painted from"
            " captions, and from masks that were read from the painter's own cross-attention: no mask was"
            " drawn by hand."
        )
    else:
        source = f"It learnt from the rows of {_dataset(run)}."
    peer = ""
    if (run.path / "peer").is_dir():
        peer = (
            " Two networks taught each other: network A stands at the root of this repository, B in `peer/`."
        )
    weights = _parameters(run.path / "model.safetensors")
    size = f" It has {weights / 1e6:.1f} M parameters." if weights else ""
    table_name = run.config.get("class_table") or NOT_RECORDED
    return f"""# {repo_id.split("/")[-1]}

{architecture}{backbone}, which gives each pixel one of the {len(run.names):,} names of the class table
`{table_name}`.{size} {source}{peer}

{details("Its classes", ", ".join(f"{number} {name}" for number, name in enumerate(run.names)))}
"""


def _dataset(run: Run) -> str:
    if not run.dataset:
        return f"a dataset that is {NOT_RECORDED}"
    name, revision = run.on_hub("dataset"), run.rows.get("revision")
    if name is None:
        return f"`{shown(run.dataset)}`"
    return f"[{name}](https://huggingface.co/datasets/{name}{f'/tree/{revision}' if revision else ''})"


def _parameters(weights: Path) -> int:
    """Parameters of a safetensors file, without the running statistics of norms; 0 where there is none."""
    from math import prod

    return sum(prod(shape) for name, shape in shapes_of(weights).items() if "running_" not in name)


def shapes_of(weights: Path) -> dict[str, list[int]]:
    """The tensors of a safetensors file, none where there is no file. Raises UserError for a damaged one."""
    from safetensors import SafetensorError, safe_open

    if not weights.exists():
        return {}
    try:
        with safe_open(weights, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no dict)
    except SafetensorError as error:
        raise UserError(f"{weights} can't be read: {error}") from error


REMOTE_CODE = """The architecture is not part of transformers, so `trust_remote_code=True` runs
`deeplabv3plus.py` of this repository, which imports torch and transformers alone: read it first. Where
attn2mask is installed, `import attn2mask.training` does instead.

"""


def _use(run: Run, repo_id: str) -> str:
    remote = "auto_map" in run.config
    trust = ", trust_remote_code=True" if remote else ""
    code = REMOTE_CODE if remote else ""
    peer = ""
    if (run.path / "peer").is_dir():
        peer = f"""
Both networks, with attn2mask installed:

```python
from attn2mask.training.checkpoint import load_checkpoint

checkpoint = load_checkpoint("{repo_id}")
print(type(checkpoint.network).__name__, type(checkpoint.peer).__name__, checkpoint.names)
```
"""
    return f"""## Use

{code}```python
from transformers import pipeline

segment = pipeline("image-segmentation", model="{repo_id}"{trust})
for found in segment("picture.png"):
    print(found["label"], found["mask"].size)
```

Ids of the pixels, at the picture's own size:

```python
import torch
from PIL import Image
from transformers import AutoImageProcessor, AutoModelForSemanticSegmentation

processor = AutoImageProcessor.from_pretrained("{repo_id}")
network = AutoModelForSemanticSegmentation.from_pretrained("{repo_id}"{trust}).eval()
picture = Image.open("picture.png").convert("RGB")
with torch.no_grad():
    logits = network(**processor(picture, return_tensors="pt")).logits
logits = torch.nn.functional.interpolate(logits, picture.size[::-1], mode="bilinear")
ids = logits.argmax(1)[0]  # (height, width)
print({{network.config.id2label[int(k)] for k in ids.unique()}})
```
{peer}"""


def _results(run: Run, repo_id: str, measured: Sequence[Measured], files: Mapping[str, bytes]) -> str:
    parts = [_result(part, repo_id, files) for part in measured]
    if not measured:
        parts.append(
            f"How well it finds its classes is {NOT_RECORDED}: no report of `attn2mask evaluate` was given."
        )
    if "assets/predictions.png" in files:
        parts.append("![Picture, target and prediction at the end of training](assets/predictions.png)")
    return "\n\n".join(["## Results", *parts])


def _result(part: Measured, repo_id: str, files: Mapping[str, bytes]) -> str:
    split = f", split `{part.split}`" if part.split else ""
    figures, columns = part.root, part.columns
    lines = [
        ("**mean IoU**", *(_number(column["mean_iou"]) for column in columns.values())),
        ("pixel accuracy", *(_number(column["pixel_accuracy"]) for column in columns.values())),
    ]
    parts = [
        f"### On `{part.title}`{split}",
        f"{count(figures['num_images'], 'picture')}, each at its original size; IoU in per cent, from one"
        f" confusion matrix over all. {_looked(part)}",
        table(["%", *columns], lines),
    ]
    if part.is_learnt:
        parts.append("These are the rows that it learnt from: they do not tell how it does on others.")
    if len(columns) > 1:
        parts.append("A is what `from_pretrained` loads, B its peer, both the mean of their logits.")
    if (told := part.found.get("mean_iou_given_labels")) is not None:
        parts.append(f"Where each picture's classes are told: mean IoU {percent(told)}.")
    if f"assets/{part.name}-iou.png" in files:
        many = sum(iou is not None for iou in figures["per_class_iou"].values()) > MOST
        chosen = f" (the best and worst {MOST})" if many else ""
        parts.append(f"![IoU of each class, network A{chosen}](assets/{part.name}-iou.png)")
    classes = [
        (name, *(_number(column["per_class_iou"].get(name)) for column in columns.values()))
        for name in figures["per_class_iou"]
    ]
    parts.append(details("Every class", table(["class", *columns], classes)))
    if f"assets/{part.name}-pictures.png" in files:
        parts.append(
            "![Picture, target and prediction: the best, the median and the worst pictures]"
            f"(assets/{part.name}-pictures.png)"
        )
    if command := _evaluation(part, repo_id):
        parts.append(f"```console\n$ {command}\n```")
    stands = f"All of it stands in `metrics/{part.name}.json`."
    if part.hub is None:
        stands += (
            " The Hub is told of it by the model-index alone: `.eval_results` is for datasets of the Hub."
        )
    return "\n\n".join([*parts, stands])


def _number(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _looked(part: Measured) -> str:
    said = part.found.get("evaluated")
    if not said:
        step = part.found.get("step")
        return f"Measured by the training itself{f', at step {step:,}' if step else ''}."
    scales = said.get("scales", NOT_RECORDED)
    looks = [f"scale{'s' * (',' in scales)} {scales}", "mirrored too" if said.get("flip") else "not mirrored"]
    looks += [f"windows of {said['window']} pixels"] if said.get("window") else []
    looks += [f"the first {said['limit']:,} alone"] if said.get("limit") else []
    return f"Seen at {', '.join(looks)}."


def _evaluation(part: Measured, repo_id: str) -> str | None:
    said = part.found.get("evaluated")
    if not said:
        return None
    words = ["attn2mask", "evaluate", "--checkpoint", repo_id, "--dataset", part.dataset]
    for name in ("split", "limit", "window"):
        words += [f"--{name}", str(said[name])] if said.get(name) else []
    words += ["--scales", said["scales"]] if said.get("scales", "1") != "1" else []
    return wrapped([*words, *(["--flip"] if said.get("flip") else []), "--out", f"{part.name}.json"])


def _training(run: Run, repo_id: str, files: Mapping[str, bytes]) -> str:
    training = run.training
    if not training:
        return f"## Training\n\nHow it was trained is {NOT_RECORDED}."
    speeds = sorted(line["images_per_second"] for line in run.log if "images_per_second" in line)
    facts = [
        ("rows", _dataset(run)),
        ("steps", f"{training['step']:,}" if "step" in training else None),
        ("time", duration(training["seconds"]) if "seconds" in training else None),
        ("hardware", training.get("hardware")),
        ("precision", training.get("mixed_precision")),
        ("pictures a second (median)", f"{speeds[len(speeds) // 2]:.1f}" if speeds else None),
        ("seed", training.get("config", {}).get("seed")),
        ("license", run.license if run.license != UNKNOWN else f"{NOT_RECORDED} for all that went into it"),
    ]
    curve = "\n![Loss by step](assets/training.png)\n" if "assets/training.png" in files else ""
    again = wrapped(_command(run, repo_id))
    painted = _painted(run.painter)
    return f"""## Training

{table(["", "recorded"], facts)}
{curve}
{table(["setting", "value", "stated by"], _settings(run))}

What is marked **not verified** is not in the paper, and may be why results differ.{painted}

```console
$ {again}
```

{details("Versions", table(["", "version"], training.get("versions", {}).items()))}

All of it stands in `training_config.json`.
"""


def _settings(run: Run) -> Iterator[Sequence[Any]]:
    for name, value in run.settings.items():
        reader, wanted = _READ_WITH.get(name, (name, value))
        if run.settings.get(reader) != wanted:
            continue
        stated = ORIGINS.get(name, {}).get(value, OURS)
        if name == "learning_rate" and _RATES.get(run.settings.get("backbone")) == value:
            stated = _TABLE_1
        if isinstance(value, bool):
            stated = "" if value else "switched off here"
        if name == "backbone" and isinstance(value, str):
            value = shown(value) + (", from scratch" if run.config.get("backbone_from_scratch") else "")
        yield name.replace("_", " "), f"`{value}`" if isinstance(value, str) else value, stated


def _painted(identity: Mapping[str, Any]) -> str:
    if not identity:
        return ""
    rules = identity["rules"]
    return (
        f" The rows came from `{identity['model']}` (`{identity['model_version']}`) at seed"
        f" {identity['seed']}, with threshold `{rules['threshold']}` and reliability"
        f" `{rules['reliability']}`; the card of the dataset says more."
    )


def _command(run: Run, repo_id: str) -> list[str]:
    config = run.training.get("config", {})
    defaults = {field.name: field.default for field in fields(TrainConfig) if field.default is not MISSING}
    words = ["accelerate", "launch", "-m", "attn2mask.training.train", "--dataset", shown(run.dataset)]
    for name in _OPTIONS:
        value = config.get(name)
        if value is not None and (value != defaults[name] or name == "preset"):
            value = shown(value) if name == "backbone" else value
            words += [f"--{name.replace('_', '-')}", *([] if value is True else [str(value)])]
    return [*words, "--output-dir", f"runs/{repo_id.split('/')[-1]}"]


def _limits(run: Run, measured: Sequence[Measured]) -> str:
    lines = [
        "What it learnt from are pseudo-masks: it repeats habits of the painter that made them, such as"
        " outlines that are too wide, and things that are taken for what usually stands beside them."
        if run.painter
        else "What is wrong in the masks that it learnt from, it has learnt too.",
        "It knows the names above alone: whatever else a picture shows is taken for one of them.",
    ]
    if run.painter.get("model") == "embedded":
        lines.append(
            "Its pictures came from the small embedded painter, in the style of drawn scenes: it shows that"
            " the way works, and is not meant for photographs."
        )
    for part in measured:
        ranked = sorted((iou, name) for name, iou in part.root["per_class_iou"].items() if iou is not None)
        if ranked:
            worst = ", ".join(f"{name} ({percent(iou)})" for iou, name in ranked[:3])
            lines.append(f"Weakest on `{part.title}`: {worst}.")
    if not measured:
        lines.append(
            f"Its accuracy is {NOT_RECORDED}: measure it on pictures like yours before you rely on it."
        )
    return "## Limits\n\n" + "\n".join(f"- {line}" for line in lines)
