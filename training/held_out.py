"""Held-out sets in VOC's classes, which nothing is trained on, and what is measured on them.

The sets are rows of drawn scenes in the painter's style (`objects`), of drawn scenes in another style
(`shifted`), and of painted images with the referee's predictions as masks (`painted`).
"""

import json
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from datasets import load_dataset
from tqdm import tqdm

from attn2mask.builders import build
from attn2mask.builders.classes import ClassTable
from attn2mask.builders.drawn.rows import HELD_OUT, draw_rows, exact_row, write_rows
from attn2mask.builders.drawn.scenes import DrawnScene, draw_scene
from attn2mask.builders.images import read_image, read_mask
from attn2mask.builders.painter import load_painter
from attn2mask.builders.records import read_record
from attn2mask.builders.row_images import encoded_columns
from attn2mask.builders.rules import load_rules
from attn2mask.builders.seals import RECORD
from attn2mask.builders.table_reader import load_table
from attn2mask.training.benchmarks import open_images
from attn2mask.training.config import TrainConfig
from attn2mask.training.mask_quality import record_scenes, recorded_quality
from attn2mask.training.miou import MeanIoU
from attn2mask.training.records import TrainingRecord
from attn2mask.training.referee import Referee, load_referee

SETS = ("objects", "shifted", "painted")
MEASURES = ("mean_iou", "mean_iou_given_labels")
# Sides in pixels of the images of 128 pixels at test time. They were chosen with networks of the preset
# `demo` on scenes that are neither trained on nor held out.
IMAGE_SIDE, TEST_SIDES = 128, (96, 128)
VALIDATION = 78_000_000  # seed of the drawn scenes on which options and sizes of prediction are chosen
CHOSEN_ON = f"drawn scenes of the seed {VALIDATION}"
PAINTED_SEED = 1_000_003  # of the painted set; builds that are trained on have other seeds


# Rows


@dataclass(frozen=True)
class PaintedImage:
    """A row of a build: its id, image (H, W, 3) uint8, mask (H, W), scores (K, h, w) uint8 and K classes."""

    sample_id: str
    image: np.ndarray
    mask: np.ndarray
    scores: np.ndarray
    classes: list[int]


def build_rows(out: Path, count: int, seed: int = 0, alias_probability: float = 0.5) -> None:
    """Build rows of VOC's table with their scores by the embedded painter, or resume the build."""
    build.run(
        build.BuildConfig(
            table="voc",
            out=str(out),
            num_images=count,
            seed=seed,
            alias_probability=alias_probability,
            store_scores=True,
        )
    )


def painted_images(data: Path) -> list[PaintedImage]:
    """The rows of a build with scores, except those whose classes were all dropped."""
    table = load_table("voc")
    rows = encoded_columns(load_dataset(str(data), split="train"), ("image", "mask"), str(data))
    return [
        PaintedImage(
            row["sample_id"],
            read_image(row["image"]["bytes"], f"row {row['sample_id']}: its image"),
            read_mask(row["mask"]["bytes"], f"row {row['sample_id']}: its mask", table),
            np.array(row["scores"], np.uint8),
            row["classes"],
        )
        for row in rows
        if row["classes"]
    ]


def judged_rows(data: Path) -> Iterator[dict[str, Any]]:
    """The images of a build as rows with the referee's predictions as masks."""
    images = painted_images(data)
    masks = load_referee().segment(np.stack([image.image for image in images]))
    for image, mask in zip(images, masks, strict=True):
        yield exact_row(image.sample_id, image.image, mask)


def write_once(
    folder: Path, make: Callable[[], Iterable[dict[str, Any]]], table: ClassTable | None = None
) -> None:
    """Write rows of a class table (VOC's) into a folder that holds none."""
    if not list(folder.rglob("*.parquet")):
        write_rows(make(), folder, table)


def make_validation(folder: Path, count: int) -> Path:
    """Make the drawn scenes on which the size of prediction is chosen, unless they are there."""
    write_once(folder, partial(draw_rows, "objects", count, VALIDATION))
    return folder


def make_sets(folder: Path, count: int) -> list[Path]:
    """Make what is missing of `SETS`, and of the build of the painted set. Returns the folders of `SETS`."""
    build_rows(folder / "painted-build", count, seed=PAINTED_SEED)
    write_once(folder / "painted", lambda: judged_rows(folder / "painted-build"))
    for world in ("objects", "shifted"):
        write_once(folder / world, partial(draw_rows, world, count, HELD_OUT))
    return [folder / name for name in SETS]


# Measures


def held_out_scenes(world: str, count: int) -> Iterator[DrawnScene]:
    """The first `count` held-out scenes of a drawn world: those of the set of its name."""
    for index in range(count):
        yield draw_scene(world, np.random.default_rng([HELD_OUT, index]))


def referee_accuracy(referee: Referee, world: str, count: int) -> float:
    """The referee's own mean IoU, 0 to 1, on `count` held-out scenes with exact masks."""
    scenes = list(held_out_scenes(world, count))
    masks = referee.segment(np.stack([scene.image for scene in scenes]))
    metric = MeanIoU(len(load_table("voc").names))
    return metric.compute(predictions=masks, references=[scene.mask for scene in scenes])["mean_iou"]


def attention_masks(folder: Path, count: int) -> dict[str, float]:
    """Mean IoU, 0 to 1, of the attention masks themselves on each of `SETS`, which `make_sets` made.

    Painted images have the masks of their build, compared with the referee's. Drawn scenes are recorded in
    one denoising pass, and compared with the exact masks.
    """
    table, painter = load_table("voc"), load_painter()
    masks = {image.sample_id: image.mask for image in painted_images(folder / "painted-build")}
    metric = MeanIoU(len(table.names))
    for example in open_images(str(folder / "painted"), None, table):
        metric.add(prediction=masks[example.name], reference=example.target)
    found = {"painted": metric.compute()["mean_iou"]}
    for world in ("objects", "shifted"):
        scenes = list(held_out_scenes(world, count))
        bar = tqdm(record_scenes(painter, table, scenes), f"recording {world}", count, mininterval=5)
        targets = [scene.mask for scene in scenes]
        found[world] = recorded_quality(list(bar), targets, load_rules("embedded"), table)["crf"]
    return found


def train_and_score(config: TrainConfig, sets: Sequence[Path]) -> dict[str, dict[str, float]]:
    """Train by `config`, or resume, and measure the checkpoint on each set of rows.

    Returns each of `MEASURES`, 0 to 1, with test-time augmentation, and `plain_mean_iou`, the mean IoU
    without it, by the name of the set's folder. metrics_NAME.json and its charts are in the output directory.
    """
    from attn2mask.training.evaluate_command import run
    from attn2mask.training.evaluate_config import EvaluateConfig
    from attn2mask.training.train import train

    train(config)
    record = read_record(Path(config.output_dir) / RECORD, TrainingRecord)
    chosen = record.get("prediction_size") or {"size": config.resolve().resize or IMAGE_SIDE}
    side = chosen["size"]
    scales = ",".join(f"{test_side / side:g}" for test_side in TEST_SIDES)
    augmentation: dict[str, Any] = {"scales": scales, "flip": True, "chosen_on": CHOSEN_ON}
    scores = {}
    for rows in sets:
        metrics = Path(config.output_dir) / f"metrics_{rows.name}.json"
        run(EvaluateConfig(config.output_dir, str(rows), out=str(metrics), **augmentation))
        measured = json.loads(metrics.read_text())
        scores[rows.name] = {measure: measured[measure] for measure in MEASURES}
        scores[rows.name]["plain_mean_iou"] = measured["plain"]["mean_iou"]
    return scores
