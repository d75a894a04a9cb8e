"""Charts of an evaluation: a bar for each class, a sheet of predictions, and a sheet of strips.

iou_chart(report(evaluation), "metrics_iou.png")
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np
from matplotlib import rc_context
from matplotlib.figure import Figure
from matplotlib.patches import Patch
from PIL import Image

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.images import overlay

MOST_BARS = 60  # of more classes, the best and the worst are drawn
WIDTH, SIDE = 9.6, 512  # of the sheet in inches, and of the longer side of an image on it in pixels
plain_text = rc_context({"text.parse_math": False})  # a name with two dollar signs is not a formula


@dataclass(frozen=True)
class SheetRow:
    """A row of `prediction_sheet`: image (H, W, 3) uint8; ids (H, W) of target and prediction."""

    title: str
    image: np.ndarray
    target: np.ndarray
    prediction: np.ndarray


def best_and_worst_classes(
    per_class_iou: dict[str, float | None], most: int = MOST_BARS
) -> list[tuple[str, float]]:
    """(name, IoU) of the measured classes; of more than `most`, the best half of `most` and the worst."""
    measured = [(name, iou) for name, iou in per_class_iou.items() if iou is not None]
    if len(measured) <= most:
        return measured
    ranked = sorted(measured, key=lambda item: -item[1])
    return ranked[: most // 2] + ranked[-(most // 2) :]


@plain_text
def iou_chart(metrics: dict[str, Any], path: str | Path | IO[bytes]) -> None:
    """Draw a bar for each class's IoU and a line at their mean, from what `evaluation.report` returns."""
    bars = best_and_worst_classes(metrics["per_class_iou"])
    measured = sum(iou is not None for iou in metrics["per_class_iou"].values())
    figure = Figure(figsize=(8, 1.2 + 0.24 * max(len(bars), 1)), layout="constrained")
    axes = figure.subplots()
    names, values = [name for name, _ in bars], [100 * iou for _, iou in bars]
    drawn = axes.barh(range(len(bars)), values, color="#4c78a8")
    labels = axes.bar_label(drawn, fmt="%.1f", padding=3, fontsize=8)
    for label in labels:  # over the line of the mean
        label.set(zorder=3, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1})
    axes.set_yticks(range(len(bars)), names, fontsize=9)
    axes.set(xlim=(0, 106), xlabel="IoU, %")
    axes.invert_yaxis()
    axes.spines[["top", "right"]].set_visible(False)
    part = f"; the best and worst {len(bars)} of {measured} classes" if len(bars) < measured else ""
    if metrics["mean_iou"] is not None:
        mean = 100 * metrics["mean_iou"]
        axes.axvline(mean, color="#e45756", linewidth=1)
        axes.set_title(f"mean IoU {mean:.1f} % on {metrics['num_images']:,} images{part}", fontsize=10)
    figure.savefig(path, dpi=120)


@plain_text
def prediction_sheet(rows: Sequence[SheetRow], table: ClassTable, path: str | Path) -> None:
    """Draw image | target | prediction in a line for each row, and below them the colors of their classes."""
    heights = [WIDTH / 3 * row.image.shape[0] / row.image.shape[1] + 0.45 for row in rows]
    figure = Figure(figsize=(WIDTH, sum(heights) + 0.8), layout="constrained")
    grid = figure.subplots(len(rows), 3, squeeze=False, height_ratios=heights)
    present: set[int] = set()
    for line, row in zip(grid, rows, strict=True):
        tiles = [Image.fromarray(row.image)]
        for ids in (row.target, row.prediction):
            present |= set(np.unique(ids).tolist())
            tiles.append(Image.fromarray(overlay(row.image, ids, table)))
        for axes, tile, title in zip(line, tiles, (row.title, "target", "prediction"), strict=True):
            tile.thumbnail((SIDE, SIDE))
            axes.imshow(tile)
            axes.set_title(title, fontsize=9)
            axes.axis("off")
    legend = [
        Patch(facecolor=table.palette[i] / 255, edgecolor="black", label=table.names[i])
        for i in sorted(present - {table.ignore_index} - ({0} if table.background else set()))
    ]
    if legend:
        figure.legend(handles=legend, loc="outside lower center", ncols=6, fontsize=8)
    figure.savefig(path, dpi=120)


@plain_text
def strip_sheet(strips: Mapping[str, np.ndarray], path: str | Path, notes: Sequence[str] = ()) -> None:
    """Draw strips of images, (H, W, 3) uint8 of one size, with their names, and `notes` below them."""
    height, width, _ = next(iter(strips.values())).shape
    size = (12.6, len(strips) * (12 * height / width + 0.1) + 0.2 * len(notes))
    figure = Figure(figsize=size, layout="constrained")
    for axes, (name, strip) in zip(figure.subplots(len(strips)), strips.items(), strict=True):
        axes.imshow(strip)
        axes.set(ylabel=name, xticks=[], yticks=[])
    axes.set_xlabel("\n".join(notes), loc="left", fontsize=8)
    figure.savefig(path, dpi=120)
