"""The card of a segmenter and its peer.

All values come from what the training and `attn2mask evaluate` recorded. The card says of what they did not
record that it is not recorded. The prose is in `templates/segmenter.md`; this module computes its values.
"""

import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.markdown import NOT_RECORDED, Markdown, code, link, url
from attn2mask.builders.records import parse_record, read_record
from attn2mask.builders.table_reader import bare_table
from attn2mask.hub.cards.legend import MOST_SHOWN, legend
from attn2mask.hub.cards.markdown import (
    UNKNOWN,
    Card,
    count,
    duration,
    merge,
    percent,
    png_bytes,
    public_path,
    render,
    stated_license,
    version_rows,
)
from attn2mask.hub.cards.sources import option_rows
from attn2mask.hub.cards.statistics import tensor_shapes
from attn2mask.training.charts import MOST_BARS, iou_chart
from attn2mask.training.config import TrainConfig
from attn2mask.training.records import LogLine, MetricsRecord, NetworkConfig, TrainingRecord

if TYPE_CHECKING:
    from huggingface_hub import ModelCardData
    from matplotlib.figure import Figure

ARCHITECTURE_NAMES = {"deeplabv3plus": "DeepLabv3+", "upernet": "UperNet"}
# Columns of the results that the metadata holds, too, with what is added to the names of their metrics. A
# pipeline loads network A. Network B is in the card alone.
METADATA_COLUMNS = {"A": "", "both": " of both networks", "IoU": ""}
AUGMENTED = " with test-time augmentation"
METRICS = (("mean_iou", "mean_iou", "mean IoU"), ("pixel_accuracy", "accuracy", "pixel accuracy"))


@dataclass(frozen=True)
class TrainedModel:
    """What a training left in `path`. An empty mapping is a record that does not exist.

    Attributes:
        config: config.json.
        training: training_config.json.
        log: the lines of log.jsonl.
        options: the options of `attn2mask train`.
        on_hub: names on the Hub by the options that hold them.
        datasets: the names of the datasets that it was trained on.
        rows: the record of the rows: the identity of their build, or their revision on the Hub. Empty for
            several datasets.
        mixture: of several datasets, such a record of each, with its share and its number of rows.
        painter: the identity of the build that made the rows.
        stated_license, stated_datasets: what the user says that no record tells.
    """

    path: Path
    config: dict[str, Any]
    training: dict[str, Any]
    log: list[dict[str, Any]]
    options: dict[str, Any]
    on_hub: dict[str, str | None]
    datasets: list[str]
    rows: dict[str, Any]
    mixture: list[dict[str, Any]]
    painter: dict[str, Any]
    stated_license: str | None = None
    stated_datasets: Sequence[str] = ()

    @property
    def license(self) -> str:
        """The license that follows from the records, or the stated one, or unknown. Raises UserError if the
        user states another license than the records.
        """
        return stated_license(self.recorded_license, self.stated_license, self.path)

    @property
    def recorded_license(self) -> str | None:
        """The license of the rows if painter and backbone are this project's own, else None."""
        backbone = self.options.get("backbone") or ""
        is_own = backbone == "embedded" or backbone.startswith("scratch:")
        is_own &= self.painter.get("model") == "embedded" and "lora" not in self.painter
        return self.rows.get("license") if is_own else None

    @property
    def recorded_datasets(self) -> list[dict[str, Any]]:
        """The records of the datasets of the training: of each its name or path as `dataset`, and if they
        are known, its name `on_hub` and its `revision`; of several also what `mixture` has.
        """
        on_hub, revision = self.on_hub.get("dataset"), self.rows.get("revision")
        one = [{"dataset": name, "on_hub": on_hub, "revision": revision} for name in self.datasets[:1]]
        return self.mixture or one

    @property
    def further_datasets(self) -> list[str]:
        """The stated datasets that are not recorded."""
        recorded = [rows.get("on_hub") for rows in self.recorded_datasets]
        return [name for name in self.stated_datasets if name not in recorded]


@dataclass(frozen=True)
class Evaluation:
    """A report of `attn2mask evaluate`, or of the training.

    Attributes:
        name: the name of its files in the repository.
        options: the options of `attn2mask evaluate`; empty for a report of the training.
        title: the dataset's name on the Hub, or the folder's own name.
        is_training_set: whether the network was trained on this dataset.
        plain: the scores without test-time augmentation by what was measured; empty if they are not recorded.
        augmented: the scores with test-time augmentation; empty if there was none.
        method: the record of a zero-shot method; empty for the networks of the card.
    """

    name: str
    path: Path
    report: dict[str, Any]
    options: dict[str, Any]
    title: str
    split: str | None
    is_training_set: bool
    plain: dict[str, dict[str, Any]]
    augmented: dict[str, dict[str, Any]]
    method: dict[str, Any]

    @property
    def columns(self) -> dict[str, dict[str, Any]]:
        """The scores that the card shows for each class: the plain ones, where they are recorded."""
        return self.plain or self.augmented

    @property
    def root(self) -> dict[str, Any]:
        """The scores of network A, which is at the repository's root."""
        return next(iter(self.columns.values()))

    @property
    def measured(self) -> dict[str, float]:
        """Network A's IoU of each class that was measured."""
        return {label: iou for label, iou in self.root["per_class_iou"].items() if iou is not None}


def model_card(
    run: Path,
    repo_id: str,
    metrics: Sequence[Path] = (),
    old: str | None = None,
    license: str | None = None,
    datasets: Sequence[str] = (),
) -> Card:
    """README.md of a model repository and its figures.

    Args:
        run: the output directory of a training, or a checkpoint of transformers.
        repo_id: the name that `from_pretrained` takes.
        metrics: reports of `attn2mask evaluate`; if none is given, `metrics*.json` in the run.
        old: the card in the repository. Its free text stays.
        license: the license of the model, if no record tells it.
        datasets: datasets of the Hub that the model was trained on, if no record tells them.

    Raises UserError for a folder without config.json, for a file that is not such a report, and for a license
    that contradicts the records.
    """
    model = replace(_read_model(Path(run)), stated_license=license, stated_datasets=datasets)
    read = [_evaluation(model, name, path) for name, path in reports(model.path, metrics).items()]
    evaluations = [evaluation for evaluation in read if not evaluation.method]
    files = dict(_model_files(model, evaluations))
    text = render(
        _model_metadata(model, repo_id, evaluations),
        "segmenter",
        repo_id,
        files=files,
        **_model_values(model),
        **_training_values(model),
        results=[_result_values(evaluation) for evaluation in evaluations],
        methods=[_method_row(evaluation) for evaluation in read if evaluation.method],
    )
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
    config = read_record(path / "config.json", NetworkConfig)
    if not config:
        raise UserError(f"{path} holds no config.json: give the output directory of a training")
    if not all(re.fullmatch("[0-9]{1,9}", key) for key in config.get("id2label", {})):
        raise UserError(f"{path / 'config.json'} is damaged: the keys of id2label must be numbers")
    training = read_record(path / "training_config.json", TrainingRecord)
    options, on_hub, rows = (training.get(key, {}) for key in ("options", "on_hub", "rows"))
    rows, mixture = ({}, rows) if isinstance(rows, list) else (rows, [])
    names, log = options.get("dataset") or [], _read_log(path / "log.jsonl")
    datasets = [names] if isinstance(names, str) else names
    painter = rows.get("identity") or {}
    return TrainedModel(path, config, training, log, options, on_hub, datasets, rows, mixture, painter)


def _read_log(file: Path) -> list[dict[str, Any]]:
    """The lines of log.jsonl; none if there is no such file."""
    try:
        lines = file.read_text("utf-8").splitlines() if file.exists() else []
    except ValueError as error:
        raise UserError(f"{file} cannot be read: {first_line(error)}") from error
    return [parse_record(line, LogLine, f"{file}, line {k}") for k, line in enumerate(lines, 1)]


def _evaluation(model: TrainedModel, name: str, path: Path) -> Evaluation:
    report = read_record(path, MetricsRecord)
    evaluated = report.get("evaluated", {})
    options, hub = evaluated.get("options", {}), evaluated.get("hub")
    dataset, split = options.get("dataset"), options.get("split")
    if not evaluated and path.parent == model.path:  # a report of the training
        dataset, split = model.options.get("eval_dataset"), model.options.get("eval_split")
        hub = model.on_hub.get("eval_dataset")
    plain = report.get("plain")
    is_augmented = plain is not None or _is_augmented(options)
    return Evaluation(
        name,
        path,
        report,
        options,
        title=hub or Path(public_path(dataset or NOT_RECORDED)).name,
        split=split,
        is_training_set=dataset in model.datasets,
        plain=_by_network(plain) if plain else {} if is_augmented else _by_network(report),
        augmented=_by_network(report) if is_augmented else {},
        method=evaluated.get("method") or {},
    )


def _is_augmented(options: Mapping[str, Any]) -> bool:
    """Whether the options of an evaluation ask for test-time augmentation."""
    scales = options.get("scales", "1") not in ("1", "1.0")
    return bool(scales or options.get("flip") or options.get("window"))


def _by_network(report: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """The scores of network A, and with two networks those of network B and of both."""
    networks = report.get("networks", {})
    if {"a", "b"} <= networks.keys():
        return {"A": networks["a"], "B": networks["b"], "both": report}
    return {"IoU": networks.get("a", report)}


# Files: figures


def _model_files(model: TrainedModel, evaluations: Sequence[Evaluation]) -> Iterator[tuple[str, bytes]]:
    has_images, names = False, _class_names(model.config)
    if names:
        yield "assets/legend.png", png_bytes(legend(bare_table("", names)))
    for evaluation in evaluations:
        if evaluation.measured:
            chart = io.BytesIO()
            iou_chart(evaluation.root, chart)
            yield f"assets/{evaluation.name}-iou.png", chart.getvalue()
        images = evaluation.path.with_name(f"{evaluation.path.stem}_images.png")
        if images.exists():
            has_images = True
            yield f"assets/{evaluation.name}-images.png", images.read_bytes()
    predictions = sorted((model.path / "predictions").glob("step-*.png"))
    if predictions and not has_images:
        yield "assets/predictions.png", predictions[-1].read_bytes()
    if any("loss_a" in line for line in model.log):
        yield "assets/training.png", png_bytes(training_chart(model.log, model.training.get("warmup_steps")))


def _class_names(config: Mapping[str, Any]) -> tuple[str, ...]:
    """The names of the classes by id; none if an id has no name."""
    labels = {int(key): name for key, name in config.get("id2label", {}).items()}
    return (
        tuple(labels[number] for number in range(len(labels)))
        if set(labels) == set(range(len(labels)))
        else ()
    )


def training_chart(log: Sequence[Mapping[str, Any]], warmup: int | None) -> "Figure":
    """The losses of both networks by step, the end of the warm-up of so many steps, and, if they were
    measured while training, the mean IoUs.
    """
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
    if warmup:
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
            metric_name=f"{name}{METADATA_COLUMNS[column]}{ending}",
            metric_value=scores[key],
        )
        for evaluation in evaluations
        for ending, columns in (("", evaluation.plain), (AUGMENTED, evaluation.augmented))
        for column, scores in columns.items()
        for key, kind, name in METRICS
        if column in METADATA_COLUMNS and scores[key] is not None
    ]
    tags = ["attn2mask", "semantic-segmentation", "weakly-supervised-segmentation", "synthetic-data"]
    tags += [model.config["model_type"]] if model.config.get("model_type") else []
    backbone = model.on_hub.get("backbone")
    recorded = [rows["on_hub"] for rows in model.recorded_datasets if rows.get("on_hub")]
    datasets = [*recorded, *model.further_datasets]
    return ModelCardData(
        license=model.license,
        library_name="transformers",
        pipeline_tag="image-segmentation",
        base_model=None if model.config.get("backbone_from_scratch", True) else backbone,
        datasets=datasets or None,
        tags=[*tags, "custom_code"] if "auto_map" in model.config else tags,
        metrics=["mean_iou", "accuracy"] if results else None,
        model_name=repo_id.split("/")[-1] if results else None,
        eval_results=results or None,
    )


# Values of the template


def _model_values(model: TrainedModel) -> dict[str, Any]:
    config, labels = model.config, model.config.get("id2label", {})
    architecture = config.get("model_type", "")
    shapes = tensor_shapes(model.path / "model.safetensors")
    family = (config.get("backbone_config") or {}).get("model_type")
    parameters = sum(math.prod(shape) for name, shape in shapes.items() if "running_" not in name)
    return {
        "architecture": ARCHITECTURE_NAMES.get(architecture, architecture or "A network"),
        "backbone": "ResNet-D" if config.get("resnet_d") else family,
        "num_classes": f"{len(labels):,}",
        "class_table": config.get("class_table"),
        "classes": ", ".join(f"{number} {labels[number]}" for number in sorted(labels, key=int)),
        "is_long": len(labels) > MOST_SHOWN,
        "parameters": f"{parameters / 1e6:.1f}" if parameters else None,
        "rows": model.rows,
        "painter": model.painter,
        "dataset": Markdown(" and ".join(_dataset_links(model)) or f"a dataset that is {NOT_RECORDED}"),
        "has_peer": (model.path / "peer").is_dir(),
        "trust_code": Markdown(", trust_remote_code=True" if "auto_map" in config else ""),
    }


def _dataset_links(model: TrainedModel) -> Iterator[Markdown]:
    """The name of each dataset; of one on the Hub, as a link, to the revision that was recorded. If there are
    several, with their shares and their numbers of rows.
    """
    page = "https://huggingface.co/datasets/"
    for rows in model.recorded_datasets:
        hub, revision = rows.get("on_hub"), rows.get("revision")
        at = f"/tree/{url(revision)}" if revision else ""
        named = link(hub, f"{page}{url(hub)}{at}") if hub else code(public_path(rows["dataset"]))
        painter = (rows.get("identity") or {}).get("model")
        facts = [f"{percent(rows['share'])} of each batch"] if "share" in rows else []
        facts += [count(rows["num_rows"], "row")] if "num_rows" in rows else []
        facts += [f"painted by {code(painter)}"] if painter else []
        yield Markdown(f"{named} ({', '.join(facts)})" if facts else named)
    for name in model.further_datasets:
        yield link(name, f"{page}{url(name)}")


def _training_values(model: TrainedModel) -> dict[str, Any]:
    training, options = model.training, model.options
    speeds = sorted(line["images_per_second"] for line in model.log if "images_per_second" in line)
    is_known = model.license != UNKNOWN
    shown = {name: code(public_path(text)) for name, text in options.items() if isinstance(text, str)}
    if "backbone" in shown and model.config.get("backbone_from_scratch"):
        shown["backbone"] = Markdown(f"{shown['backbone']}, from scratch")
    # Without mixing, its constants have no effect, and the card does not list them.
    used = options | {"no_mixing": True} if options.get("mix_probability") == 0 else options
    return {
        "training": training,
        "has_options": (model.path / "train.yaml").exists(),
        "is_streamed": options.get("streaming"),
        "steps": f"{training['step']:,}" if "step" in training else None,
        "time": duration(training["seconds"]) if "seconds" in training else None,
        "speed": f"{speeds[len(speeds) // 2]:.1f}" if speeds else None,
        "weights": _weights(model.config),
        "chosen_on": _choice(training.get("chosen_on")),
        "prediction": _prediction(training.get("prediction_size")),
        "license": model.license if is_known else f"{NOT_RECORDED} for everything that was used",
        "preset": options.get("preset"),
        "options": option_rows(TrainConfig, used, **shown),
        "versions": version_rows(training),
    }


def _weights(config: Mapping[str, Any]) -> str | None:
    """How the backbone's pretrained weights were trained, and their digest."""
    if config.get("backbone_from_scratch"):
        return "none: the backbone started from random weights"
    weights = config.get("backbone_weights") or {}
    if not weights.get("sha256"):
        return weights.get("recipe")
    return f"{weights.get('recipe') or 'their training is ' + NOT_RECORDED}; SHA-256 {weights['sha256']}"


def _choice(chosen_on: Mapping[str, Any] | None) -> Markdown | None:
    """The images on which the checkpoint was chosen among all steps, with their split."""
    if not chosen_on:
        return None
    split = f", split {code(chosen_on['split'])}" if chosen_on.get("split") else ""
    return Markdown(f"{code(public_path(chosen_on['dataset']))}{split}")


def _prediction(chosen: Mapping[str, Any] | None) -> dict[str, Any] | None:
    """The size of images in prediction, and how it was chosen."""
    if not chosen:
        return None
    tried = ", ".join(f"{size} ({percent(score)})" for size, score in chosen["tried"].items())
    dataset = chosen.get("dataset")
    return {**chosen, "tried": tried, "dataset": code(public_path(dataset)) if dataset else None}


def _result_values(evaluation: Evaluation) -> dict[str, Any]:
    """What the template shows of an evaluation: its fields, and values made of them."""
    columns, measured = evaluation.columns.values(), evaluation.measured
    scales, flip = evaluation.options.get("scales", "1"), evaluation.options.get("flip")
    is_plain = bool(evaluation.plain)
    shown = evaluation.report.get("plain") or evaluation.report
    return {
        **vars(evaluation),
        "root": evaluation.root,
        "measured": measured,
        "headline": evaluation.root["mean_iou"] if is_plain else None,
        "is_plain": is_plain,
        "is_augmented": scales not in ("1", "1.0") or flip,
        "scales": scales,
        "is_mirrored": flip,
        "window": evaluation.options.get("window"),
        "chosen_on": evaluation.options.get("chosen_on"),
        "crf": evaluation.options.get("crf"),
        "overlap": evaluation.options.get("overlap"),
        "limit": evaluation.options.get("num_images"),
        "columns": list(evaluation.columns),
        "score_rows": [
            (_score_name(key, name, ending), *map(_per_cent, values))
            for ending, scores in (("", evaluation.plain), (AUGMENTED, evaluation.augmented))
            for key, _, name in METRICS
            if scores
            for values in [[scores.get(column, {}).get(key) for column in evaluation.columns]]
        ],
        "boundary_iou": shown.get("boundary_iou"),
        "given_labels": shown.get("mean_iou_given_labels"),
        "chart_limit": MOST_BARS if len(measured) > MOST_BARS else None,
        "class_rows": [
            (label, *(_per_cent(scores["per_class_iou"].get(label)) for scores in columns))
            for label in evaluation.root["per_class_iou"]
        ],
        "has_options": bool(evaluation.options) and evaluation.path.with_suffix(".yaml").exists(),
        "weakest": sorted(measured, key=measured.get)[:3],
    }


def _score_name(key: str, name: str, ending: str) -> str:
    """The name of a score in its table. The headline is bold."""
    return Markdown(f"**{name}**") if key == "mean_iou" and not ending else f"{name}{ending}"


def _method_row(evaluation: Evaluation) -> list[str]:
    """What the card says of a zero-shot method: images, method, weights, protocol, and scores in per cent.
    The mean IoU over all names and that without the background have columns of their own.
    """
    report, method = evaluation.report, evaluation.method
    protocol, names = method.get("protocol", {}), len(report["per_class_iou"])
    scored = report["evaluated"].get("classes_scored", names)
    size, window = protocol.get("size"), protocol.get("window")
    parts = [f"{protocol.get('name')}", f"shorter side {size or 'of the model'}"]
    parts += [f"crop {protocol['crop']}"] if protocol.get("crop") else []
    parts += [f"windows of {window} with an overlap of {protocol['overlap']:.0%}"] if window else []
    parts += [f"templates {' and '.join(protocol.get('templates', ()))}"]
    if evaluation.augmented and (evaluation.options.get("flip") or evaluation.options.get("scales") != "1"):
        parts.append("test-time augmentation")
    rule = f"{protocol.get('background')}"
    if protocol.get("threshold") is not None:
        rule += f", threshold {protocol['threshold']:g}"
    split = f", split {evaluation.split}" if evaluation.split else ""
    revision = f" at {method['revision']}" if method.get("revision") else ""
    score = _per_cent(report["mean_iou"])
    return [
        f"{evaluation.title}{split}, {count(report['num_images'], 'image')}",
        f"{method.get('name')}{', trained with masks' if method.get('trained_with_masks') else ''}",
        f"{public_path(str(method.get('weights')))}{revision}",
        "; ".join(parts),
        rule,
        score if scored == names else "",
        "" if scored == names else score,
        _per_cent(report.get("boundary_iou")),
    ]


def _per_cent(fraction: float | None) -> str:
    """A fraction in per cent without the sign, for tables whose head has it."""
    return percent(fraction).removesuffix("%")
