"""What artefacts hold: counts over the rows of a build with their chart, and the tensors of weights.

The rows are read once, with one batch of them in memory at a time.
"""

from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from pyarrow.parquet import ParquetFile
from tqdm import tqdm

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.images import decode_png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

AREA_BINS = 100  # bins of the histograms of areas; each is one per cent of the image
CHART_CLASSES = 30  # the chart shows at most this many classes: the most frequent ones


@dataclass
class RowStatistics:
    """Counts over the rows of a class table of K names. Every array is indexed by mask id.

    Attributes:
        names: the K names.
        rows: number of rows.
        pixels: number of pixels of all masks.
        reliability: sum of the reliability of all pixels, 0 to 1 each.
        sizes: number of rows by (width, height).
        classes_per_row: number of rows by their number of classes.
        class_rows: (K,) number of rows that name the class.
        class_pixels: (K,) number of pixels of the class.
        class_reliability: (K,) sum of the reliability of these pixels, 0 to 1 each.
        area_sum: (K,) sum, over the rows that name the class, of the fraction of the image that it covers.
        area_histogram: (K, AREA_BINS) number of these rows by that fraction.
        shared_rows: (K, K) number of rows that name both classes.
    """

    names: tuple[str, ...]
    rows: int = 0
    pixels: int = 0
    reliability: float = 0.0
    sizes: Counter = field(default_factory=Counter)
    classes_per_row: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        k = len(self.names)
        self.class_rows, self.class_pixels = np.zeros(k, np.int64), np.zeros(k, np.int64)
        self.class_reliability, self.area_sum = np.zeros(k), np.zeros(k)
        self.area_histogram = np.zeros((k, AREA_BINS), np.int64)
        self.shared_rows = np.zeros((k, k), np.int64)

    def add(self, classes: Sequence[int], mask: np.ndarray, reliability: np.ndarray) -> None:
        """Count one row: its class ids, its mask (H, W) of ids and its reliability (H, W), 0 to 255."""
        k, flat = len(self.names), mask.ravel()
        owned = np.bincount(flat, minlength=k)[:k]
        self.rows += 1
        self.pixels += mask.size
        self.reliability += reliability.sum(dtype=np.int64) / 255
        self.sizes[mask.shape[::-1]] += 1
        self.classes_per_row[len(classes)] += 1
        self.class_pixels += owned
        self.class_reliability += np.bincount(flat, reliability.ravel() / 255, minlength=k)[:k]
        ids = sorted(set(classes))
        areas = owned[ids] / mask.size
        self.class_rows[ids] += 1
        self.area_sum[ids] += areas
        self.area_histogram[ids, np.minimum((areas * AREA_BINS).astype(int), AREA_BINS - 1)] += 1
        self.shared_rows[np.ix_(ids, ids)] += 1

    def mean_area(self, k: int) -> float | None:
        """The mean fraction of the image that class `k` covers in the rows that name it, 0 to 1."""
        return float(self.area_sum[k] / self.class_rows[k]) if self.class_rows[k] else None

    def reliable(self, k: int) -> float | None:
        """The mean reliability of class `k`'s pixels, 0 to 1."""
        return float(self.class_reliability[k] / self.class_pixels[k]) if self.class_pixels[k] else None

    def companion(self, k: int) -> tuple[int, int] | None:
        """The class that is most often in the same row as `k`, and the number of these rows."""
        others = np.delete(self.shared_rows[k], k)
        if not others.any():
            return None
        best = int(others.argmax())
        return best + (best >= k), int(others[best])


def count_rows(files: Sequence[Path], table: ClassTable) -> RowStatistics:
    """Count the rows of Parquet files, with a progress bar."""
    statistics = RowStatistics(table.names)
    total = sum(ParquetFile(file).metadata.num_rows for file in files)
    with tqdm(total=total, desc="counting", unit=" rows", mininterval=1) as bar:
        for file in files:
            columns = ["classes", "mask", "reliability"]
            for batch in ParquetFile(file).iter_batches(batch_size=16, columns=columns):
                for row in batch.to_pylist():
                    mask, reliability = (decode_png(row[name]["bytes"]) for name in ("mask", "reliability"))
                    statistics.add(row["classes"], mask, reliability)
                bar.update(len(batch))
    return statistics


def sampled_rows(files: Sequence[Path], number: int) -> list[dict[str, Any]]:
    """At most `number` complete rows at equal distances over all files."""
    total = sum(ParquetFile(file).metadata.num_rows for file in files)
    wanted = sorted({(2 * k + 1) * total // (2 * number) for k in range(number)}) if total else []
    return list(rows_at(files, wanted))


def rows_at(files: Sequence[Path], wanted: Sequence[int]) -> Iterator[dict[str, Any]]:
    """The rows of all files at the indices `wanted`, in order. Only their row groups are read."""
    start = 0
    for file in files:
        parquet = ParquetFile(file)
        for group in range(parquet.num_row_groups):
            stop = start + parquet.metadata.row_group(group).num_rows
            if inside := [index for index in wanted if start <= index < stop]:
                rows = parquet.read_row_group(group)
                yield from (rows.slice(index - start, 1).to_pylist()[0] for index in inside)
            start = stop


def class_chart(statistics: RowStatistics) -> "Figure":
    """For each class without the background: rows, area, reliability, and the rows that it shares."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    most_frequent = np.argsort(-statistics.class_rows, kind="stable")[:CHART_CLASSES]
    ids = [k for k in sorted(most_frequent.tolist()) if statistics.class_rows[k]]
    places, names = np.arange(len(ids)), [statistics.names[k] for k in ids]
    with rc_context({"text.parse_math": False, "font.size": 9}):
        page = Figure(figsize=(14, 1.7 + 0.25 * max(len(ids), 4)), layout="constrained")
        rows, area, reliable, shared = page.subplots(1, 4, width_ratios=[1, 1, 1, 1.9])
        bars = rows.barh(places, statistics.class_rows[ids], color="#4c78a8")
        rows.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
        rows.set_title("rows that name the class", fontsize=10)
        rows.margins(x=0.16)
        rows.xaxis.set_major_locator(MaxNLocator(5, integer=True))

        low, high = (quantile(statistics.area_histogram[ids], q) for q in (0.1, 0.9))
        mean = np.array([100 * statistics.mean_area(k) for k in ids])
        area.hlines(places, low, high, color="#f2b880", linewidth=5)
        area.plot(mean, places, "o", color="#d1622b", markersize=5)
        area.set_title("area in % of the image\n(mean, and the middle 80% of rows)", fontsize=10)
        area.set_xlim(left=0)

        percents = [100 * (statistics.reliable(k) or 0) for k in ids]
        reliable.barh(places, percents, color="#54a24b")
        numbers = reliable.secondary_yaxis("right")
        numbers.set_yticks(places, [f"{value:.0f}" for value in percents], fontsize=8)
        numbers.tick_params(length=0)
        numbers.spines["right"].set_visible(False)
        overall = 100 * statistics.reliability / max(statistics.pixels, 1)
        reliable.axvline(overall, color="#333333", linewidth=1, linestyle="--")
        reliable.set_title(
            f"reliable pixels in % of the class\n(dashed: of all pixels, {overall:.1f})", fontsize=10
        )
        reliable.set_xlim(0, 100)

        for axes in (rows, area, reliable):
            axes.set_yticks(places, names if axes is rows else [""] * len(ids))
            axes.set_ylim(len(ids) - 0.4, -0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
        _draw_shared_rows(shared, statistics.shared_rows[np.ix_(ids, ids)].astype(float), names)
    return page


def _draw_shared_rows(axes: "Axes", shared: np.ndarray, names: Sequence[str]) -> None:
    """The numbers of rows that name both of two classes, as a lower triangle on blue."""
    axes.set_title("rows that name both classes", fontsize=10)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    triangle = np.where(np.tri(len(names), k=-1, dtype=bool), shared, np.nan)[1:, :-1]
    most = np.nanmax(triangle, initial=0)
    if not most:
        axes.set(xticks=[], yticks=[], title="no row names two classes")
        return
    axes.imshow(triangle, cmap="Blues", vmin=0, vmax=1.25 * most, aspect="auto")
    for y, x in np.argwhere(triangle > 0):
        value = int(triangle[y, x])
        text = f"{value}" if value < 1000 else f"{value / 1000:.0f}k"
        color = "white" if value > 0.75 * most else "#1f2f46"
        axes.text(x, y, text, ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(names) - 1), names[:-1], rotation=90)
    axes.set_yticks(range(len(names) - 1), names[1:])


def quantile(histograms: np.ndarray, q: float) -> np.ndarray:
    """The `q` quantile, in per cent, of area histograms (N, AREA_BINS): the middle of its bin."""
    sums = histograms.cumsum(axis=1)
    return (sums >= q * sums[:, -1:]).argmax(axis=1) + 0.5


def tensor_shapes(weights: Path) -> dict[str, list[int]]:
    """The shapes of the tensors of a safetensors file by name; empty if there is no such file.

    Raises UserError if the file is damaged.
    """
    from safetensors import SafetensorError, safe_open

    if not weights.exists():
        return {}
    try:
        with safe_open(weights, "pt") as file:
            return {name: file.get_slice(name).get_shape() for name in file.keys()}  # noqa: SIM118 (no dict)
    except SafetensorError as error:
        raise UserError(f"{weights} cannot be read: {first_line(error)}") from error
