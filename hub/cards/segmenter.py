"""The card of a segmenter and its peer.

All values come from what the training and `attn2mask evaluate` recorded. The card says of what they did not
record that it is not recorded. The prose is in `templates/segmenter.md`; this module computes its values.
"""

import io
import json
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import yaml

from attn2mask.builders.errors import UserError
from attn2mask.builders.options import facts_of
from attn2mask.builders.rules import OURS, PAPER
from attn2mask.hub.cards.markdown import (
    NOT_RECORDED,
    UNKNOWN,
    Card,
    count,
    duration,
    escaped,
    merge,
    percent,
    png_bytes,
    public_path,
    read_record,
    render,
    table_rows,
    version_rows,
)
from attn2mask.hub.cards.statistics import tensor_shapes
from attn2mask.training.charts import MOST_BARS, iou_chart
from attn2mask.training.config import TrainConfig

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData
    from matplotlib.figure import Figure

ARCHITECTURE_NAMES = {"deeplabv3plus": "DeepLabv3+", "upernet": "UperNet"}
# Columns of the results that the metadata holds, too. Network B is in the card alone.
METADATA_COLUMNS = {"A": "network A", "both": "both networks", "IoU": "one network"}
METRICS = (("mean_iou", "mean_iou", "mean IoU"), ("pixel_accuracy", "accuracy", "pixel accuracy"))
# Where the values of options come from, by option and value. What is not listed is this project's choice.
TABLE_1, BECO = f"{PAPER}, Table 1", "BECO"
TRAINING_SOURCES: dict[str, dict[Any, str]] = {
    "architecture": {"deeplabv3plus": TABLE_1},
    "backbone": {
        "microsoft/resnet-50": TABLE_1,
        "microsoft/swin-base-patch4-window7-224-in22k": TABLE_1,
    },
    "optimizer": {"sgd": TABLE_1},
    "power": {0.9: TABLE_1},
    "weight_decay": {1e-5: TABLE_1},
    "batch_size": {12: TABLE_1},
    "max_steps": {25_000: TABLE_1},
    "head_multiplier": {10: f"{BECO}; **not verified**"},
    "confidence": {0.95: BECO},
    "boundary_weight": {1.2: BECO},
}
LEARNING_RATES = {"microsoft/resnet-50": 0.001, "microsoft/swin-base-patch4-window7-224-in22k": 0.01}
# Options that are only used if another option has this value.
USED_WITH = {
    "momentum": ("optimizer", "sgd"),
    "confidence": ("no_mixing", False),
    "boundary_weight": ("no_mixing", False),
}


@dataclass(frozen=True)
class TrainedModel:
    """What a training left in `path`. An empty mapping is a record that does not exist."""

    path: Path
    config: dict[str, Any]
    training: dict[str, Any]
    log: list[dict[str, Any]]

    @property
    def options(self) -> dict[str, Any]:
        return self.training.get("options", {})

    @property
    def dataset(self) -> str:
        return self.options.get("dataset") or ""

    @property
    def rows(self) -> dict[str, Any]:
        """The record of the rows: the identity of their build, or their revision on the Hub."""
        return self.training.get("rows", {})

    @property
    def painter(self) -> dict[str, Any]:
        """The identity of the build that made the rows."""
        return self.rows.get("identity", {})

    def on_hub(self, option: str) -> str | None:
        """The value of an option if it is a name on the Hub."""
        return self.training.get("on_hub", {}).get(option)

    @property
    def names(self) -> list[str]:
        labels = self.config.get("id2label", {})
        return [labels[key] for key in sorted(labels, key=int)]

    @property
    def has_peer(self) -> bool:
        return (self.path / "peer").is_dir()

    @property
    def pretrained(self) -> str | None:
        """The backbone's name on the Hub if its weights were used."""
        return None if self.config.get("backbone_from_scratch", True) else self.on_hub("backbone")

    @property
    def license(self) -> str:
        """The license of the rows if painter and backbone are this project's own, else unknown."""
        backbone = self.options.get("backbone") or ""
        is_own = backbone == "embedded" or backbone.startswith("scratch:")
        is_own &= self.painter.get("model") == "embedded" and "lora" not in self.painter
        return (self.rows.get("license") if is_own else None) or UNKNOWN


@dataclass(frozen=True)
class Evaluation:
    """A report of `attn2mask evaluate`, or of the training.

    Attributes:
        name: the name of its files in the repository.
        options: the options of `attn2mask evaluate`; empty for a report of the training.
        dataset: the dataset's path or name.
        hub: the dataset's name on the Hub; None for a folder.
        is_training_set: whether the network was trained on this dataset.
    """

    name: str
    path: Path
    report: dict[str, Any]
    options: dict[str, Any]
    dataset: str
    split: str | None
    hub: str | None
    is_training_set: bool

    @property
    def title(self) -> str:
        """The dataset's name on the Hub, or the folder's own name."""
        return self.hub or Path(self.dataset).name

    @property
    def columns(self) -> dict[str, dict[str, Any]]:
        """The scores by what was measured."""
        networks = self.report.get("networks", {})
        if len(networks) < 2:
            return {"IoU": networks.get("a", self.report)}
        return {"A": networks["a"], "B": networks["b"], "both": self.report}

    @property
    def root(self) -> dict[str, Any]:
        """The scores of network A, which is at the repository's root."""
        return next(iter(self.columns.values()))

    @property
    def measured(self) -> dict[str, float]:
        """Network A's IoU of each class that was measured."""
        return {name: iou for name, iou in self.root["per_class_iou"].items() if iou is not None}


def model_card(run: Path, repo_id: str, metrics: Sequence[Path] = (), old: str | None = None) -> Card:
    """README.md of a model repository, its figures and, for datasets on the Hub, its `.eval_results`.

    Args:
        run: the output directory of a training, or a checkpoint of transformers.
        repo_id: the name that `from_pretrained` takes.
        metrics: reports of `attn2mask evaluate`; if none is given, `metrics*.json` in the run.
        old: the card in the repository. Its free text stays.

    Raises UserError for a folder without config.json, and for a file that is not such a report.
    """
    from huggingface_hub import ModelCard

    model = _read_model(Path(run))
    evaluations = [_evaluation(model, name, path) for name, path in reports(model.path, metrics).items()]
    files = dict(_model_files(model, evaluations))
    values = {
        "repo_id": repo_id,
        "title": repo_id.split("/")[-1],
        **_model_values(model),
        **_training_values(model, files),
        "results": [_result_values(evaluation, files) for evaluation in evaluations],
    }
    text = render(ModelCard, _model_metadata(model, repo_id, evaluations), "segmenter", **values)
    return Card(merge(text, old), files)


def reports(folder: Path, metrics: Sequence[Path] = ()) -> dict[str, Path]:
    """Reports of `attn2mask evaluate` by the names of their files in a repository: `metrics`, or the folder's
    metrics*.json if none is given. Raises UserError for a file that is not such a report.
    """
    named: dict[str, Path] = {}
    for path in [Path(path) for path in metrics] or sorted(folder.glob("metrics*.json")):
        if not {"mean_iou", "per_class_iou", "pixel_accuracy", "num_images"} <= read_record(path).keys():
            raise UserError(f"{path} is not a report of `attn2mask evaluate`: give one to --metrics")
        name = re.sub(r"[^\w.-]", "-", path.stem)
        while name in named:
            name += "_"
        named[name] = path
    return named


def _read_model(path: Path) -> TrainedModel:
    config = read_record(path / "config.json")
    if not config:
        raise UserError(f"{path} holds no config.json: give the output directory of a training")
    log = path / "log.jsonl"
    lines = [json.loads(line) for line in log.read_text().splitlines()] if log.exists() else []
    return TrainedModel(path, config, read_record(path / "training_config.json"), lines)


def _evaluation(model: TrainedModel, name: str, path: Path) -> Evaluation:
    report = read_record(path)
    evaluated = report.get("evaluated", {})
    options, hub = evaluated.get("options", {}), evaluated.get("hub")
    dataset, split = options.get("dataset"), options.get("split")
    if not evaluated and path.parent == model.path:  # a report of the training
        dataset, split = model.options.get("eval_dataset"), model.options.get("eval_split")
        hub = model.on_hub("eval_dataset")
    is_training_set = bool(model.dataset) and dataset == model.dataset
    place = public_path(dataset or NOT_RECORDED)
    return Evaluation(name, path, report, options, place, split, hub, is_training_set)


# Files: figures, and the results for the Hub


def _model_files(model: TrainedModel, evaluations: Sequence[Evaluation]) -> Iterator[tuple[str, bytes]]:
    has_images = False
    for evaluation in evaluations:
        if evaluation.measured:
            chart = io.BytesIO()
            iou_chart(evaluation.root, chart)
            yield f"assets/{evaluation.name}-iou.png", chart.getvalue()
        images = evaluation.path.with_name(f"{evaluation.path.stem}_images.png")
        if images.exists():
            has_images = True
            yield f"assets/{evaluation.name}-images.png", images.read_bytes()
        if evaluation.hub and evaluation.root["mean_iou"] is not None:
            yield f".eval_results/{evaluation.name}.yaml", _eval_results(evaluation)
    predictions = sorted((model.path / "predictions").glob("step-*.png"))
    if predictions and not has_images:
        yield "assets/predictions.png", predictions[-1].read_bytes()
    if any("loss_a" in line for line in model.log):
        yield "assets/training.png", png_bytes(training_chart(model.log, model.options))


def _eval_results(evaluation: Evaluation) -> bytes:
    """The Hub's format for results on datasets of the Hub: the mean IoU of network A, 0 to 1."""
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    split = f", split {evaluation.split}" if evaluation.split else ""
    network = METADATA_COLUMNS[next(iter(evaluation.columns))]
    entry = EvalResultEntry(
        dataset_id=evaluation.hub,
        task_id="semantic-segmentation",
        value=evaluation.root["mean_iou"],
        notes=f"mean IoU, 0 to 1, {network}, {count(evaluation.root['num_images'], 'image')}{split}",
    )
    return yaml.safe_dump(eval_result_entries_to_yaml([entry]), sort_keys=False).encode()


def training_chart(log: Sequence[Mapping[str, Any]], options: Mapping[str, Any]) -> "Figure":
    """The losses of both networks by step and, if they were measured while training, the mean IoUs."""
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
    warmup = round(options.get("warmup", 0) * options.get("max_steps", 0))
    if warmup and not (options.get("no_co_training") and options.get("no_mixing")):
        panels[0].axvline(warmup, color="#777777", linewidth=1, linestyle="--", label="end of the warm-up")
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


def _model_metadata(model: TrainedModel, repo_id: str, evaluations: Sequence[Evaluation]) -> "ModelCardData":
    from huggingface_hub import EvalResult, ModelCardData

    results = [
        EvalResult(
            task_type="image-segmentation",
            task_name="semantic segmentation",
            dataset_type=evaluation.title,
            dataset_name=evaluation.title,
            dataset_split=evaluation.split,
            metric_type=kind,
            metric_name=f"{name} ({METADATA_COLUMNS[column]})",
            metric_value=scores[key],
        )
        for evaluation in evaluations
        for column, scores in evaluation.columns.items()
        for key, kind, name in METRICS
        if column in METADATA_COLUMNS and scores[key] is not None
    ]
    tags = ["attn2mask", "semantic-segmentation", "weakly-supervised-segmentation", "synthetic-data"]
    tags += [model.config["model_type"]] if model.config.get("model_type") else []
    dataset = model.on_hub("dataset")
    return ModelCardData(
        license=model.license,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        base_model=model.pretrained,
        datasets=[dataset] if dataset else None,
        tags=[*tags, "custom_code"] if "auto_map" in model.config else tags,
        metrics=["mean_iou", "accuracy"] if results else None,
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
    )


# Values of the template


def _model_values(model: TrainedModel) -> dict[str, Any]:
    config, painter = model.config, model.painter
    architecture = config.get("model_type", "")
    shapes = tensor_shapes(model.path / "model.safetensors")
    parameters = sum(math.prod(shape) for name, shape in shapes.items() if "running_" not in name)
    lora = f" with the LoRA `{painter['lora']}`" if "lora" in painter else ""
    has_code = "auto_map" in config
    return {
        "architecture": ARCHITECTURE_NAMES.get(architecture, architecture or "A network"),
        "backbone": config.get("backbone_config", {}).get("model_type"),
        "num_classes": f"{len(model.names):,}",
        "class_table": config.get("class_table") or NOT_RECORDED,
        "classes": escaped(", ".join(f"{number} {name}" for number, name in enumerate(model.names))),
        "parameters": f"{parameters / 1e6:.1f}" if parameters else None,
        "training_images": count(model.rows["num_images"], "image") if painter else None,
        "painter": f"`{painter['model']}`{lora}" if painter else None,
        "is_embedded": painter.get("model") == "embedded",
        "dataset": _dataset_link(model),
        "has_peer": model.has_peer,
        "has_code": has_code,
        "trust_code": ", trust_remote_code=True" if has_code else "",
    }


def _dataset_link(model: TrainedModel) -> str:
    if not model.dataset:
        return f"a dataset that is {NOT_RECORDED}"
    name, revision = model.on_hub("dataset"), model.rows.get("revision")
    if name is None:
        return f"`{public_path(model.dataset)}`"
    return f"[{name}](https://huggingface.co/datasets/{name}{f'/tree/{revision}' if revision else ''})"


def _training_values(model: TrainedModel, files: Mapping[str, bytes]) -> dict[str, Any]:
    training, painter = model.training, model.painter
    speeds = sorted(line["images_per_second"] for line in model.log if "images_per_second" in line)
    is_known = model.license != UNKNOWN
    return {
        "has_training": bool(training),
        "has_training_chart": "assets/training.png" in files,
        "has_predictions": "assets/predictions.png" in files,
        "has_options": (model.path / "train.yaml").exists(),
        "is_streamed": model.options.get("streaming"),
        "steps": f"{training['step']:,}" if "step" in training else NOT_RECORDED,
        "time": duration(training["seconds"]) if "seconds" in training else NOT_RECORDED,
        "hardware": escaped(training.get("hardware")),
        "precision": escaped(training.get("mixed_precision")),
        "speed": f"{speeds[len(speeds) // 2]:.1f}" if speeds else NOT_RECORDED,
        "license": model.license if is_known else f"{NOT_RECORDED} for everything that was used",
        "preset": escaped(model.options.get("preset")),
        "options": table_rows(_training_options(model)),
        "painter_options": painter
        and (
            f"`{painter['model']}` (`{painter['model_version']}`) painted the rows with the seed"
            f" {painter['seed']}, the threshold `{painter['threshold']}` and the reliability"
            f" `{painter['reliability']}`."
        ),
        "versions": version_rows(training),
    }


def _training_options(model: TrainedModel) -> Iterator[Sequence[Any]]:
    """(name, value, source) of the options that were used and have a name in cards."""
    options = model.options
    for name, facts in facts_of(TrainConfig).items():
        reader, wanted = USED_WITH.get(name, (name, options.get(name)))
        if facts.card is None or name not in options or options.get(reader) != wanted:
            continue
        value = options[name]
        source = TRAINING_SOURCES.get(name, {}).get(value, OURS)
        if name == "learning_rate" and LEARNING_RATES.get(options.get("backbone")) == value:
            source = TABLE_1
        if isinstance(value, bool):
            source = "a part of the method is switched off" if value else ""
        if name == "seed":
            source = ""  # nobody states a seed
        text = f"`{public_path(value)}`" if isinstance(value, str) else value
        if name == "backbone" and model.config.get("backbone_from_scratch"):
            text += ", from scratch"
        yield facts.card, text, source


def _result_values(evaluation: Evaluation, files: Mapping[str, bytes]) -> dict[str, Any]:
    name, report, options, root = evaluation.name, evaluation.report, evaluation.options, evaluation.root
    columns = evaluation.columns.values()
    scales, given_labels = options.get("scales", "1"), report.get("mean_iou_given_labels")
    measured = evaluation.measured
    worst = sorted(measured, key=measured.get)[:3]
    return {
        "name": name,
        "title": evaluation.title,
        "split": evaluation.split,
        "on_hub": evaluation.hub is not None,
        "images": count(root["num_images"], "image"),
        "is_evaluated": bool(options),
        "step": f"{report['step']:,}" if "step" in report else None,
        "is_augmented": scales != "1" or options.get("flip"),
        "scales": scales,
        "is_mirrored": options.get("flip"),
        "window": options.get("window"),
        "limit": count(options["limit"], "image") if options.get("limit") else None,
        "columns": list(evaluation.columns),
        "mean_iou": [_per_cent(scores["mean_iou"]) for scores in columns],
        "pixel_accuracy": [_per_cent(scores["pixel_accuracy"]) for scores in columns],
        "is_training_set": evaluation.is_training_set,
        "mean_iou_given_labels": None if given_labels is None else percent(given_labels),
        "has_chart": f"assets/{name}-iou.png" in files,
        "chart_limit": MOST_BARS if len(measured) > MOST_BARS else None,
        "class_rows": table_rows(
            (label, *(_per_cent(scores["per_class_iou"].get(label)) for scores in columns))
            for label in root["per_class_iou"]
        ),
        "has_images": f"assets/{name}-images.png" in files,
        "has_options": bool(options) and evaluation.path.with_suffix(".yaml").exists(),
        "weakest": ", ".join(f"{escaped(label)} ({percent(measured[label])})" for label in worst),
    }


def _per_cent(fraction: float | None) -> str:
    """A fraction in per cent without the sign, for tables whose head has it."""
    return percent(fraction).removesuffix("%")
