"""`attn2mask evaluate`: measure a segmenter on images with masks, in numbers and charts.

    attn2mask evaluate --checkpoint runs/r50 --dataset VOCdevkit/VOC2012 --split val --out metrics.json
    attn2mask evaluate --method maskclip --dataset VOCdevkit/VOC2012 --split val --out maskclip.json

Beside `metrics.json` it writes `metrics.yaml`, the options that `--config` reads; `metrics_iou.png`, a bar
for each class; `metrics_images.png`, the best, the median and the worst images; and `metrics_predictions/`,
the predictions for a few fixed images. `measured.py` loads what is measured, and `evaluation.py` measures.
"""

import json
import logging
import os
import shlex
import shutil
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from attn2mask import __version__
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import write_file
from attn2mask.builders.images import encode_mask, encode_png
from attn2mask.builders.options import stored_options, to_yaml
from attn2mask.builders.provenance import FORMAT_VERSION
from attn2mask.training.evaluate_config import GPU_BATCH, EvaluateConfig

if TYPE_CHECKING:
    from attn2mask.training.benchmarks import Example
    from attn2mask.training.evaluation import ImageCounts
    from attn2mask.training.measured import Measured

logger = logging.getLogger(__name__)

PRINTED_CLASSES = 40  # of more classes, the table shows the best and the worst
FIXED_IMAGES = 6  # whose predictions are saved: they are evenly spread over the images


def run(config: EvaluateConfig) -> None:
    """Measure, write the files and print the metrics. Raises UserError for what cannot be measured."""
    started, out = time.monotonic(), Path(config.out)
    if out.is_dir():
        raise UserError(f"--out {out} is a directory")
    from attn2mask.training.benchmarks import hub_name, open_images
    from attn2mask.training.charts import iou_chart, prediction_sheet
    from attn2mask.training.evaluation import (
        WithoutBackground,
        best_and_worst,
        metric_names,
        report,
        summarize,
    )
    from attn2mask.training.measured import measured_checkpoint, measured_method

    measured = measured_checkpoint(config) if config.method is None else measured_method(config)
    table = measured.table
    if measured.reduce_labels:
        logger.info(
            "The checkpoint's image processor reduces labels: in masks that do not name their classes,"
        )
        logger.info("id k is class k - 1, and id 0 is ignored")
    images = open_images(
        config.dataset,
        config.split,
        table,
        measured.reduce_labels,
        config.allow_incomplete,
        not config.no_verify,
    )
    if not measured.scores_background:
        images = WithoutBackground(images, table)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not os.access(out if out.exists() else out.parent, os.W_OK):
        raise UserError(f"--out {out} cannot be written")
    counts = count(config, measured, images)
    names = metric_names(len(measured.networks), measured.augmentation, measured.plain)
    evaluation = summarize(counts, table, names)
    metrics = report(evaluation)
    fixed = save_predictions(measured, images, len(counts), predictions_folder(out))
    evaluated = {
        "format_version": FORMAT_VERSION,
        "options": stored_options(config),
        "table": table.name,
        "classes_scored": len(table.names) - (0 if measured.scores_background else table.first_id),
        **measured.record,
        "fixed_images": {"folder": predictions_folder(out).name, "names": fixed},
        "seconds": round(time.monotonic() - started, 1),
        "hub": hub_name(config.dataset),
    }
    write_file(out, as_json({**metrics, "evaluated": evaluated}, counts).encode())
    options = f"attn2mask evaluate --config {out.stem}.yaml"
    write_file(out.with_suffix(".yaml"), to_yaml(config, options).encode())
    made = [out, out.with_name(f"{out.stem}_iou.png")]
    iou_chart(metrics, made[-1])
    rows = best_and_worst(
        evaluation,
        measured.networks,
        measured.processor,
        images,
        measured.augmentation,
        measured.decide,
    )
    if rows:
        made.append(out.with_name(f"{out.stem}_images.png"))
        prediction_sheet(rows, table, made[-1])
    made.append(predictions_folder(out))
    progress_file(out).unlink(missing_ok=True)
    print(f"{config.dataset} in the classes of {table.name}")
    print(metrics_table(metrics))
    print(f"\nmade in {time.monotonic() - started:.0f} s: {', '.join(map(str, made))}")
    print(f"next: {next_step(config, out)}")


def count(
    config: EvaluateConfig, measured: "Measured", images: "Sequence[Example]"
) -> "dict[int, ImageCounts]":
    """What is counted of each image, by its index. A repeated call continues a killed one."""
    from tqdm import tqdm

    from attn2mask.builders.devices import default_device
    from attn2mask.training.evaluation import count_images, metric_names
    from attn2mask.training.evaluation_progress import EvaluationProgress

    device = default_device()
    options = {name: value for name, value in stored_options(config).items() if name != "num_images"}
    identity = {
        "version": __version__,
        "options": options,
        "table": measured.table.facts(),
        "images": len(images),
        "counted": metric_names(len(measured.networks), measured.augmentation, measured.plain),
        "weights": measured.digests,
    }
    progress = EvaluationProgress(progress_file(Path(config.out)), identity)
    wanted = range(min(len(images), config.num_images or len(images)))
    left = [index for index in wanted if index not in progress.counts]
    if len(left) < len(wanted):
        logger.info("Continuing: %d of %d images are done", len(wanted) - len(left), len(wanted))
    counted = count_images(
        measured.networks,
        measured.processor,
        images,
        measured.table,
        left,
        measured.augmentation,
        device,
        measured.decide,
        boundaries=True,
        batch_size=config.batch_size or (1 if device == "cpu" else GPU_BATCH),
        plain=measured.plain,
    )
    for index, of_image in tqdm(
        counted, "evaluating", len(wanted), unit="image", initial=len(wanted) - len(left)
    ):
        progress.add(index, of_image)
    return {index: progress.counts[index] for index in wanted}


def progress_file(out: Path) -> Path:
    """Where an evaluation keeps what it counted until it is finished."""
    return out.with_name(f"{out.stem}_progress.jsonl")


def predictions_folder(out: Path) -> Path:
    """Where an evaluation saves its predictions for a few fixed images."""
    return out.with_name(f"{out.stem}_predictions")


def save_predictions(
    measured: "Measured", images: "Sequence[Example]", count: int, folder: Path
) -> list[str]:
    """Write NUMBER_image.png, NUMBER_target.png and NUMBER_prediction.png for images that are evenly spread
    over the first `count`. Returns their names, in the order of their numbers.
    """
    from attn2mask.training.inference import segment

    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir()
    names = []
    for number, index in enumerate(np.unique(np.linspace(0, count - 1, FIXED_IMAGES).round().astype(int))):
        example = images[int(index)]
        predicted = segment(
            measured.networks, measured.processor, example.image, measured.augmentation, measured.decide
        )
        names.append(example.name)
        write_file(folder / f"{number:03d}_image.png", encode_png(example.image))
        for kind, ids in (("target", example.target), ("prediction", predicted)):
            write_file(folder / f"{number:03d}_{kind}.png", encode_mask(ids, measured.table))
    return names


def as_json(metrics: dict[str, Any], counts: "dict[int, ImageCounts]") -> str:
    """metrics.json: the metrics, and after them a line for each image with what was counted of it."""
    by_image = [
        json.dumps(
            {
                "name": of_image.name,
                "confusion": of_image.confusion["both"],
                "boundary": of_image.boundary["both"],
            }
        )
        for _, of_image in sorted(counts.items())
    ]
    text = json.dumps(metrics, indent=2).removesuffix("\n}")
    return f'{text},\n  "image_counts": [\n    ' + ",\n    ".join(by_image) + "\n  ]\n}\n"


def next_step(config: EvaluateConfig, out: Path) -> str:
    """What the user may do with the result."""
    look = f"look at {out.with_name(f'{out.stem}_images.png')}"
    if config.method is not None:
        return f"{look}, or run `attn2mask compare {shlex.quote(str(out))} OTHER.json --out table.md`"
    again = ["attn2mask", "evaluate", "--config", str(out.with_suffix(".yaml"))]
    again += ["--scales", "0.5,0.75,1,1.25,1.5", "--flip", "--out", str(out.with_stem(f"{out.stem}_scales"))]
    return f"{look}, or run `{shlex.join(again)}`" if config.factors == (1.0,) else look


def metrics_table(metrics: dict[str, Any]) -> str:
    """What `evaluation.report` returns as a table in percent: a line for each class (of many, the best and
    the worst), and a column for the mean of the networks; where there are two, for each network; and with a
    CRF for the mean after it.
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
    if (boundary := metrics.get("boundary_iou")) is not None:
        text.append(f"boundary IoU: {100 * boundary:.1f}")
    left_out = len(metrics["per_class_iou"]) - len(names)
    more = f"; {left_out} more classes are in the report" if left_out else ""
    text.append(f"{metrics['num_images']:,} images{more}")
    if (plain := metrics.get("plain")) is not None and plain["mean_iou"] is not None:
        of_networks = plain["networks"] if len(networks) > 1 else {}
        values = [f"{100 * plain['mean_iou']:.1f}"]
        values += [f"{name} {100 * scores['mean_iou']:.1f}" for name, scores in of_networks.items()]
        text.append(f"mean IoU without test-time augmentation: {', '.join(values)}")
    return "\n".join(text)
