"""`attn2mask evaluate`: measure a checkpoint on images with masks, in numbers and charts.

    attn2mask evaluate --checkpoint runs/r50 --dataset VOCdevkit/VOC2012 --split val --out metrics.json

Beside `metrics.json` it writes `metrics.yaml`, the options that `--config` reads; `metrics_iou.png`, a bar
for each class; and `metrics_images.png`, the best, the median and the worst images. `inference.py` measures.
"""

import json
import logging
import math
import os
import shlex
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.options import CheckedOptions, option, stored_options, to_yaml
from attn2mask.builders.provenance import FORMAT_VERSION
from attn2mask.builders.table_reader import bare_table, load_table
from attn2mask.training.config import measured_images, measured_split

if TYPE_CHECKING:
    from attn2mask.training.checkpoint import Checkpoint

logger = logging.getLogger(__name__)

PRINTED_CLASSES = 40  # of more classes, the table shows the best and the worst
AUGMENTATION = "test-time augmentation"


@dataclass(frozen=True)
class EvaluateConfig(CheckedOptions):
    """The options of `attn2mask evaluate`. Raises UserError for missing options and values out of range."""

    checkpoint: str | None = option(
        "checkpoint: a directory that train made, or a model of the Hub", None, required=True, metavar="DIR"
    )
    dataset: str | None = measured_images()
    split: str | None = measured_split()
    table: str | None = option(
        "class table of --dataset",
        None,
        default_text="the one that the dataset's build recorded, or the checkpoint's",
    )
    out: str = option(
        "JSON file of the metrics; its charts and options go beside it",
        "metrics.json",
        stored=False,
        metavar="FILE",
    )
    limit: int | None = option("measure only the first N images", None, at_least=1, default_text="all images")
    scales: str = option(
        "take the maximum of the logits of each image at these scales, with commas between them",
        "1",
        AUGMENTATION,
        metavar="S,S",
    )
    flip: bool = option("also take the logits of the mirrored image", False, AUGMENTATION)
    window: int | None = option(
        "predict larger images in overlapping windows of N pixels",
        None,
        AUGMENTATION,
        at_least=32,
        default_text="the whole image",
    )
    crf: str | None = option(
        "also measure the predictions after this dense CRF, in scores that begin with crf_",
        None,
        AUGMENTATION,
        choices=("beco",),
    )
    chosen_on: str | None = option(
        "name of the images on which scales, mirroring and windows were chosen, for the card",
        None,
        AUGMENTATION,
        metavar="TEXT",
        default_text="not recorded",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if Path(self.out).suffix != ".json":
            raise UserError(f"--out {self.out}: the name must end in .json")
        _ = self.factors

    @property
    def factors(self) -> tuple[float, ...]:
        """`scales` as numbers. Raises UserError if they are not numbers above 0."""
        try:
            factors = tuple(float(scale) for scale in self.scales.split(","))
        except ValueError:
            factors = ()
        if not factors or not all(math.isfinite(factor) and factor > 0 for factor in factors):
            raise UserError(f"--scales {self.scales}: it must be numbers above 0 with commas between them")
        return factors


def run(config: EvaluateConfig) -> None:
    """Measure, write the files and print the metrics. Raises UserError for what cannot be measured."""
    started, out = time.time(), Path(config.out)
    if out.is_dir():
        raise UserError(f"--out {out} is a directory")
    logger.info("Loading the checkpoint %s", config.checkpoint)
    import torch

    from attn2mask.training.benchmarks import hub_name, open_images
    from attn2mask.training.charts import iou_chart, prediction_sheet
    from attn2mask.training.checkpoint import load_checkpoint
    from attn2mask.training.inference import Augmentation, best_and_worst, evaluate, report

    checkpoint = load_checkpoint(config.checkpoint)
    check_choices(config, checkpoint.record)
    table = table_to_measure(config, checkpoint)
    reduce_labels = bool(getattr(checkpoint.processor, "do_reduce_labels", False))
    if reduce_labels:
        logger.info(
            "The checkpoint's image processor reduces labels: in masks that do not name their classes,"
        )
        logger.info("id k is class k - 1, and id 0 is ignored")
    images = open_images(config.dataset, config.split, table, reduce_labels)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise UserError(f"--out {out} cannot be written")
    networks = [network for network in (checkpoint.network, checkpoint.peer) if network is not None]
    augmentation = Augmentation(config.factors, config.flip, config.window, config.crf is not None)
    evaluation = evaluate(
        networks,
        checkpoint.processor,
        images,
        table,
        augmentation,
        device="cuda" if torch.cuda.is_available() else "cpu",
        indices=range(min(len(images), config.limit or len(images))),
    )
    metrics = report(evaluation)
    protocol = {
        "format_version": FORMAT_VERSION,
        "options": stored_options(config),
        "table": table.name,
        "seconds": round(time.time() - started, 1),
        "hub": hub_name(config.dataset),
        "checkpoint_chosen_on": checkpoint.record.get("chosen_on"),
    }
    out.write_text(json.dumps({**metrics, "evaluated": protocol}, indent=2) + "\n")
    options = f"attn2mask evaluate --config {out.stem}.yaml"
    out.with_suffix(".yaml").write_text(to_yaml(config, options))
    made = [out, out.with_name(f"{out.stem}_iou.png")]
    iou_chart(metrics, made[-1])
    rows = best_and_worst(evaluation, networks, checkpoint.processor, images, augmentation)
    if rows:
        made.append(out.with_name(f"{out.stem}_images.png"))
        prediction_sheet(rows, table, made[-1])
    print(f"{config.dataset} in the classes of {table.name}")
    print(metrics_table(metrics))
    print(f"\nmade in {time.time() - started:.0f} s: {', '.join(map(str, made))}")
    again = ["attn2mask", "evaluate", "--config", str(out.with_suffix(".yaml"))]
    again += ["--scales", "0.5,0.75,1,1.25,1.5", "--flip", "--out", str(out.with_stem(f"{out.stem}_scales"))]
    print(
        f"next: look at {made[-1]}" + (f", or run `{shlex.join(again)}`" if config.factors == (1.0,) else "")
    )


def check_choices(config: EvaluateConfig, record: dict[str, Any]) -> None:
    """Raises UserError if the images are those on which the checkpoint or the options were chosen."""
    chosen = record.get("chosen_on") or {}
    same_split = config.split is None or chosen.get("split") in (None, config.split)
    if chosen and same_split and same_place(config.dataset, chosen["dataset"]):
        raise UserError(
            f"checkpoint {config.checkpoint} was chosen on {config.dataset}: measure it on other images, or"
            " measure the last networks of the training, which are in the folder above"
        )
    if config.chosen_on and same_place(config.dataset, config.chosen_on):
        raise UserError(
            f"--chosen-on {config.chosen_on}: scales, mirroring and windows must be chosen on other images"
            " than those of --dataset"
        )


def same_place(one: str, other: str) -> bool:
    """Whether two names of datasets are the same folder, or the same dataset of the Hub."""
    return one == other or Path(one).resolve() == Path(other).resolve()


def table_to_measure(config: EvaluateConfig, checkpoint: "Checkpoint") -> ClassTable:
    """The class table of the dataset. Raises UserError if the checkpoint has other classes."""
    from attn2mask.training.benchmarks import difference, recorded_table

    if config.table is not None:
        table = load_table(config.table)
    elif (recorded := recorded_table(config.dataset)) is not None:
        table = recorded
    else:
        ignore = getattr(checkpoint.network.config, "semantic_loss_ignore_index", None)
        table = bare_table(checkpoint.table_name or "the checkpoint's table", checkpoint.names, ignore)
    if checkpoint.names != table.names:
        raise UserError(
            f"checkpoint {config.checkpoint} has other classes than {table.name}: "
            f"{difference(checkpoint.names, table.names)}"
        )
    return table


def metrics_table(metrics: dict[str, Any]) -> str:
    """What `inference.report` returns as a table in percent: a line for each class (of many, the best and the
    worst), and a column for the mean of the networks; where there are two, for each network; and with a CRF
    for the mean after it.
    """
    from attn2mask.training.charts import best_and_worst_classes

    networks = metrics["networks"]
    columns = {"both": metrics, **networks} if len(networks) > 1 else {"IoU": metrics}
    if "crf_mean_iou" in metrics:
        names = ("mean_iou", "per_class_iou", "pixel_accuracy")
        columns["CRF"] = {name: metrics[f"crf_{name}"] for name in names}
    names = list(metrics["per_class_iou"])
    if len(names) > PRINTED_CLASSES:
        names = [name for name, _ in best_and_worst_classes(metrics["per_class_iou"], PRINTED_CLASSES)]
    lines = {name: [column["per_class_iou"][name] for column in columns.values()] for name in names}
    lines["mean IoU"] = [column["mean_iou"] for column in columns.values()]
    lines["pixel accuracy"] = [column["pixel_accuracy"] for column in columns.values()]
    width = max(map(len, lines)) + 2
    text = [f"{'%':{width}}" + "".join(f"{name:>8}" for name in columns)]
    for name, values in lines.items():
        numbers = ("-" if value is None else f"{100 * value:.1f}" for value in values)
        text.append(f"{name:{width}}" + "".join(f"{number:>8}" for number in numbers))
    if (given_labels := metrics.get("mean_iou_given_labels")) is not None:
        text.append(f"mean IoU given image-level labels: {100 * given_labels:.1f}")
    left_out = len(metrics["per_class_iou"]) - len(names)
    more = f"; {left_out} more classes are in the report" if left_out else ""
    text.append(f"{metrics['num_images']:,} images{more}")
    return "\n".join(text)
