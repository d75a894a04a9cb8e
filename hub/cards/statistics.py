"""What the rows of a build hold, counted in one pass that keeps a batch of rows at a time; and its figure."""

from __future__ import annotations

import io
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image
from pyarrow.parquet import ParquetFile
from tqdm import tqdm

from attn2mask.builders.classes import ClassTable

if TYPE_CHECKING:
    from matplotlib.figure import Figure

BINS = 100  # of the areas' histogram, each a per cent of the picture
MOST = 30  # classes of the figure; of more, the most frequent


@dataclass
class Tally:
    """Counts over `rows` rows of a table of K names; every array is indexed by mask id.

    `held` (K,) rows that name the class; `pixels` (K,) its pixels, and `trusted` (K,) those of them that are
    reliable, a graded one in part; `share` (K,) the sum over its rows of the part of the picture that it
    covers, 0 to 1 each, and `area` (K, BINS) its rows by that part; `together` (K, K) rows that name both;
    `labeled` rows by their number of classes; `seen` all pixels, and `trust` the sum of their reliability,
    0 to 1 each.
    """

    names: tuple[str, ...]
    rows: int = 0
    seen: int = 0
    trust: float = 0.0
    sizes: Counter = field(default_factory=Counter)
    labeled: Counter = field(default_factory=Counter)

    def __post_init__(self) -> None:
        k = len(self.names)
        self.held, self.pixels = np.zeros(k, np.int64), np.zeros(k, np.int64)
        self.trusted, self.share = np.zeros(k), np.zeros(k)
        self.area, self.together = np.zeros((k, BINS), np.int64), np.zeros((k, k), np.int64)

    def add(self, classes: Sequence[int], mask: np.ndarray, reliability: np.ndarray) -> None:
        """Count a row: its class ids, its mask (H, W) of ids and its reliability (H, W), 0 to 255."""
        k, flat = len(self.names), mask.ravel()
        owned = np.bincount(flat, minlength=k)[:k]
        self.rows += 1
        self.seen += mask.size
        self.trust += reliability.sum(dtype=np.int64) / 255
        self.sizes[mask.shape[::-1]] += 1
        self.labeled[len(classes)] += 1
        self.pixels += owned
        self.trusted += np.bincount(flat, reliability.ravel() / 255, minlength=k)[:k]
        ids = sorted(set(classes))
        shares = owned[ids] / mask.size
        self.held[ids] += 1
        self.share[ids] += shares
        self.area[ids, np.minimum((shares * BINS).astype(int), BINS - 1)] += 1
        self.together[np.ix_(ids, ids)] += 1

    def mean_area(self, k: int) -> float | None:
        """The mean share of the picture that class `k` covers where it is named, 0 to 1."""
        return float(self.share[k] / self.held[k]) if self.held[k] else None

    def reliable(self, k: int) -> float | None:
        """The share of class `k`'s pixels that is reliable, 0 to 1."""
        return float(self.trusted[k] / self.pixels[k]) if self.pixels[k] else None

    def partner(self, k: int) -> tuple[int, int] | None:
        """The class that stands most often beside `k`, and in how many rows."""
        beside = np.delete(self.together[k], k)
        if not beside.any():
            return None
        best = int(beside.argmax())
        return best + (best >= k), int(beside[best])


def tally(files: Sequence[Path], table: ClassTable) -> Tally:
    """Count the rows of Parquet files; a bar shows how far it is."""
    found = Tally(table.names)
    total = sum(ParquetFile(file).metadata.num_rows for file in files)
    with tqdm(total=total, desc="counting", unit=" rows", mininterval=1) as bar:
        for file in files:
            columns = ["classes", "mask", "reliability"]
            for batch in ParquetFile(file).iter_batches(batch_size=16, columns=columns):
                for row in batch.to_pylist():
                    found.add(row["classes"], _pixels(row["mask"]), _pixels(row["reliability"]))
                bar.update(len(batch))
    return found


def sampled_rows(files: Sequence[Path], number: int) -> list[dict[str, Any]]:
    """At most `number` rows at equal distances over all files, whole."""
    lengths = [ParquetFile(file).metadata.num_rows for file in files]
    total = sum(lengths)
    wanted = sorted({(2 * k + 1) * total // (2 * number) for k in range(number)}) if total else []
    return list(_rows_at(files, wanted))


def _rows_at(files: Sequence[Path], wanted: Sequence[int]) -> Iterator[dict[str, Any]]:
    start = 0
    for file in files:
        parquet = ParquetFile(file)
        for group in range(parquet.num_row_groups):
            stop = start + parquet.metadata.row_group(group).num_rows
            if inside := [index for index in wanted if start <= index < stop]:
                rows = parquet.read_row_group(group)
                yield from (rows.slice(index - start, 1).to_pylist()[0] for index in inside)
            start = stop


def figure(found: Tally) -> Figure:
    """By class, without the background: rows, area, reliable share; and which classes stand in one row."""
    from matplotlib import rc_context
    from matplotlib.figure import Figure
    from matplotlib.ticker import MaxNLocator

    ids = np.flatnonzero(found.held)
    if len(ids) > MOST:
        ids = np.sort(ids[np.argsort(-found.held[ids], kind="stable")[:MOST]])
    places, names = np.arange(len(ids)), [found.names[k] for k in ids]
    with rc_context({"text.parse_math": False, "font.size": 9}):
        page = Figure(figsize=(14, 1.7 + 0.25 * max(len(ids), 4)), layout="constrained")
        rows, area, trust, pairs = page.subplots(1, 4, width_ratios=[1, 1, 1, 1.9])
        bars = rows.barh(places, found.held[ids], color="#4c78a8")
        rows.bar_label(bars, fmt="{:,.0f}", padding=3, fontsize=8)
        rows.set_title("rows that hold the class", fontsize=10)
        rows.margins(x=0.16)
        rows.xaxis.set_major_locator(MaxNLocator(5, integer=True))

        low, high = (quantile(found.area[ids], q) for q in (0.1, 0.9))
        mean = np.array([100 * found.mean_area(k) for k in ids])
        area.hlines(places, low, high, color="#f2b880", linewidth=5)
        area.plot(mean, places, "o", color="#d1622b", markersize=5)
        area.set_title("share of the picture, %\n(mean, and the middle 80 % of rows)", fontsize=10)
        area.set_xlim(left=0)

        shares = [100 * (found.reliable(k) or 0) for k in ids]
        trust.barh(places, shares, color="#54a24b")
        numbers = trust.secondary_yaxis("right")
        numbers.set_yticks(places, [f"{share:.0f}" for share in shares], fontsize=8)
        numbers.tick_params(length=0)
        numbers.spines["right"].set_visible(False)
        whole = 100 * found.trust / max(found.seen, 1)
        trust.axvline(whole, color="#333333", linewidth=1, linestyle="--")
        trust.set_title(f"reliable part of its pixels, %\n(dashed: of all pixels, {whole:.1f})", fontsize=10)
        trust.set_xlim(0, 100)

        for axes in (rows, area, trust):
            axes.set_yticks(places, names if axes is rows else [""] * len(ids))
            axes.set_ylim(len(ids) - 0.4, -0.6)
            axes.spines[["top", "right"]].set_visible(False)
            axes.tick_params(axis="y", length=0)
            axes.grid(axis="x", color="#dddddd", linewidth=0.6)
            axes.set_axisbelow(True)
        _pairs(pairs, found.together[np.ix_(ids, ids)].astype(float), names)
    return page


def _pairs(axes: Any, together: np.ndarray, names: Sequence[str]) -> None:
    """Rows that hold both of two classes, as a lower triangle of numbers on blue."""
    axes.set_title("rows that hold both classes", fontsize=10)
    axes.spines[:].set_visible(False)
    axes.tick_params(length=0)
    shown = np.where(np.tri(len(names), k=-1, dtype=bool), together, np.nan)[1:, :-1]
    most = np.nanmax(shown, initial=0)
    if not most:
        axes.set(xticks=[], yticks=[], title="no row holds two classes")
        return
    axes.imshow(shown, cmap="Blues", vmin=0, vmax=1.25 * most, aspect="auto")
    for y, x in np.argwhere(shown > 0):
        value = int(shown[y, x])
        text = f"{value}" if value < 1000 else f"{value / 1000:.0f}k"
        color = "white" if value > 0.75 * most else "#1f2f46"
        axes.text(x, y, text, ha="center", va="center", fontsize=7, color=color)
    axes.set_xticks(range(len(names) - 1), names[:-1], rotation=90)
    axes.set_yticks(range(len(names) - 1), names[1:])


def quantile(area: np.ndarray, q: float) -> np.ndarray:
    """The `q` quantile, in per cent, of histograms (N, BINS): the middle of the bin that it falls into."""
    sums = area.cumsum(axis=1)
    return (sums >= q * sums[:, -1:]).argmax(axis=1) + 0.5


def _pixels(column: dict[str, Any]) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(column["bytes"])))
