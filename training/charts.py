"""Charts of evaluations: a bar for each class or for each evaluation, sheets of predictions, and a sheet of
strips.

iou_chart(report(evaluation), "metrics_iou.png")
"""

import io
import textwrap
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
from attn2mask.builders.files import write_file
from attn2mask.builders.images import overlay

MOST_BARS = 60  # of more classes, the best and the worst are drawn
LABEL_WIDTH = 30  # characters in a line of the label of a bar or of a method
TALLEST = 4  # height of a tile divided by its width; the image in it may be narrower than the tile
TILE = 2.4  # inches of a column of `method_sheet`
WIDTH, SIDE = 9.6, 512  # of the sheet in inches, and of the longer side of an image on it in pixels
plain_text = rc_context({"text.parse_math": False})  # a name with two dollar signs is not a formula


@dataclass(frozen=True)
class SheetRow:
    """A row of `prediction_sheet`: image (H, W, 3) uint8; ids (H, W) of target and prediction."""

    title: str
    image: np.ndarray
    target: np.ndarray
    prediction: np.ndarray


@dataclass(frozen=True)
class MethodsRow:
    """A row of `method_sheet`: image (H, W, 3) uint8; ids (H, W) of target and predictions by method."""

    title: str
    image: np.ndarray
    target: np.ndarray
    predictions: Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Bar:
    """A bar of `interval_chart`. Value, interval, and the figure that is quoted beside them are 0 to 1."""

    label: str
    value: float
    interval: tuple[float, float] | None = None
    quoted: float | None = None


@dataclass(frozen=True)
class Panel:
    """A part of `interval_chart`, whose bars may be compared."""

    title: str
    bars: Sequence[Bar]


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
    _save(figure, path)


@plain_text
def interval_chart(panels: Sequence[Panel], path: str | Path | IO[bytes]) -> None:
    """Draw the panels below each other: a bar for each evaluation, its interval, and what is quoted."""
    counts = [len(panel.bars) for panel in panels]
    figure = Figure(figsize=(8, 0.34 * sum(counts) + 0.7 * len(panels) + 0.5), layout="constrained")
    grid = figure.subplots(len(panels), 1, squeeze=False, sharex=True, height_ratios=counts)
    for (axes,), panel in zip(grid, panels, strict=True):
        places, values = range(len(panel.bars)), [100 * bar.value for bar in panel.bars]
        axes.barh(places, values, height=0.62, color="#9ecae9")
        for place, bar, value in zip(places, panel.bars, values, strict=True):
            low, high = (value, value) if bar.interval is None else (100 * end for end in bar.interval)
            if bar.interval is not None:
                axes.plot(
                    [low, high], [place, place], color="#26456e", linewidth=1.4, marker="|", markersize=8
                )
            axes.annotate(
                f"{value:.1f}",
                (max(high, value), place),
                (5, 0),
                textcoords="offset points",
                va="center",
                fontsize=8,
            )
        quoted = [(100 * bar.quoted, place) for place, bar in enumerate(panel.bars) if bar.quoted is not None]
        if quoted:
            axes.scatter(
                *zip(*quoted, strict=True),
                marker="D",
                s=26,
                facecolor="white",
                edgecolor="#e45756",
                zorder=3,
                label="quoted from Table 3 of the paper; other weights and protocols",
            )
            axes.legend(fontsize=7, loc="lower right", frameon=False, bbox_to_anchor=(1, 1), borderpad=0)
        labels = [textwrap.fill(bar.label, LABEL_WIDTH) for bar in panel.bars]
        axes.set_yticks(places, labels, fontsize=9)
        axes.set(xlim=(0, 106), ylim=(len(panel.bars) - 0.5, -0.5))  # from top to bottom
        axes.set_title(panel.title, fontsize=9, loc="left")
        axes.spines[["top", "right"]].set_visible(False)
    axes.set_xlabel("mIoU, %; dark lines are 95 % intervals over the images")
    _save(figure, path)


@plain_text
def prediction_sheet(rows: Sequence[SheetRow], table: ClassTable, path: str | Path) -> None:
    """Draw image | target | prediction in a line for each row, and below them the colors of their classes."""
    lines = [
        (row.image, [(row.title, None), ("target", row.target), ("prediction", row.prediction)])
        for row in rows
    ]
    _sheet(lines, table, path, WIDTH)


def prediction_strips(rows: Sequence[SheetRow], table: ClassTable) -> list[np.ndarray]:
    """Image, target and prediction of each row side by side: (h, w, 3) uint8, with h at most `SIDE`."""
    strips = []
    for row in rows:
        masks = [overlay(row.image, ids, table) for ids in (row.target, row.prediction)]
        tiles = [Image.fromarray(tile) for tile in (row.image, *masks)]
        for tile in tiles:
            tile.thumbnail((SIDE, SIDE))
        strips.append(np.hstack([np.asarray(tile) for tile in tiles]))
    return strips


@plain_text
def method_sheet(rows: Sequence[MethodsRow], table: ClassTable, path: str | Path | IO[bytes]) -> None:
    """Draw image | target | the prediction of each method in a line for each row, and the colors of their
    classes.
    """
    lines = []
    for row in rows:
        found = [(textwrap.fill(name, LABEL_WIDTH), ids) for name, ids in row.predictions.items()]
        lines.append((row.image, [(row.title, None), ("target", row.target), *found]))
    _sheet(lines, table, path, TILE * len(lines[0][1]))


def _sheet(
    rows: Sequence[tuple[np.ndarray, Sequence[tuple[str, np.ndarray | None]]]],
    table: ClassTable,
    path: str | Path | IO[bytes],
    width: float,
) -> None:
    """Draw a line for each image (H, W, 3) uint8: a tile for each title, the image itself or with ids (H, W)
    over it, and below them the colors of the classes. `width` is in inches.
    """
    columns = len(rows[0][1])
    shapes = [min(image.shape[0] / image.shape[1], TALLEST) for image, _ in rows]
    heights = [width / columns * shape + 0.45 for shape in shapes]
    figure = Figure(figsize=(width, sum(heights) + 0.8), layout="constrained")
    grid = figure.subplots(len(rows), columns, squeeze=False, height_ratios=heights)
    present: set[int] = set()
    for line, (image, tiles) in zip(grid, rows, strict=True):
        for axes, (title, ids) in zip(line, tiles, strict=True):
            present |= set() if ids is None else set(np.unique(ids).tolist())
            tile = Image.fromarray(image if ids is None else overlay(image, ids, table))
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
    _save(figure, path)


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
    _save(figure, path)


def _save(figure: Figure, path: str | Path | IO[bytes]) -> None:
    """Write a figure as PNG. A file is replaced in one step, so that a full disk leaves no part of one."""
    content = io.BytesIO()
    figure.savefig(content, format="png", dpi=120)
    if isinstance(path, str | Path):
        write_file(Path(path), content.getvalue())
    else:
        path.write(content.getvalue())
