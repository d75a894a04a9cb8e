"""The grid of a build's rows, and the filters by class, reliability and rejection.

The facts of the rows are read once, when a filter needs them. Only the rows of the page that is shown are
read whole.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from PIL import Image
from pyarrow.parquet import ParquetFile

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.images import decode_png, encode_png, overlay
from attn2mask.builders.shards import BuildDirectory
from attn2mask.hub.preview.pieces import image_tag, text

ROWS = 12  # of a page
THUMBNAIL = 256  # pixels; the longer side of an image in the grid
# What the filter by rejection takes, by the name that the page shows.
REJECTIONS = {
    "all rows": "all",
    "without any rejection": "none",
    "painted again after a rejection": "painted again",
    "with a class that was dropped": "dropped",
}

Progress = Callable[[int, int], None]  # gets the number of rows that were read, and of all rows


@dataclass(frozen=True)
class Filters:
    """Which rows the grid shows.

    Attributes:
        mask_id: a class that the rows must have; None for any.
        at_least, at_most: the mean reliability of the rows, 0 to 1.
        rejection: a value of `REJECTIONS`.
    """

    mask_id: int | None = None
    at_least: float = 0.0
    at_most: float = 1.0
    rejection: str = "all"


@dataclass
class Rows:
    """The rows of a build that are there, in order; the rows of missing shards are left out.

    Attributes:
        numbers: the indices of the rows in the build.
        rejected: the reasons of rejected attempts, by sample id.
        dropped: the reasons why classes of the prompt have no label, by sample id.
    """

    directory: BuildDirectory
    numbers: list[int] = field(init=False)
    rejected: Mapping[str, Sequence[str]] = field(init=False)
    dropped: Mapping[str, Sequence[str]] = field(init=False)
    _columns: dict[str, list[Any]] = field(default_factory=dict, init=False)

    def __post_init__(self) -> None:
        """Raises UserError for a shard of another build, and for records that are damaged."""
        states = self.directory.states(self.directory.shards, verify=False)
        self._shards = [shard for shard, state in states if state == "made"]
        self.numbers = [number for shard in self._shards for number in shard.rows]
        report = self.directory.report()
        manifests = [self.directory.manifest(shard) or {} for shard in self._shards]
        records = [report] if report else manifests
        self.rejected, self.dropped = (
            {name: why for record in records for name, why in record.get(key, {}).items()}
            for key in ("rejected", "dropped")
        )

    def matching(self, filters: Filters, progress: Progress | None = None) -> list[int]:
        """The numbers of the rows that pass the filters. Only the columns that these need are read."""
        kept = [True] * len(self.numbers)
        if filters.mask_id is not None:
            kept = [k and filters.mask_id in ids for k, ids in zip(kept, self._read("classes"), strict=True)]
        if filters.rejection != "all":
            ids = self._read("sample_id")
            kept = [k and self._has(filters.rejection, name) for k, name in zip(kept, ids, strict=True)]
        if (filters.at_least, filters.at_most) != (0.0, 1.0):
            shares = self._read("reliability", progress)
            low, high = filters.at_least, filters.at_most
            kept = [k and low <= share <= high for k, share in zip(kept, shares, strict=True)]
        return [number for number, passes in zip(self.numbers, kept, strict=True) if passes]

    def _has(self, rejection: str, sample_id: str) -> bool:
        again, dropped = sample_id in self.rejected, sample_id in self.dropped
        return {"none": not (again or dropped), "painted again": again, "dropped": dropped}[rejection]

    def _read(self, name: str, progress: Progress | None = None) -> list[Any]:
        """A column of all rows; of the column `reliability` the mean of each map, 0 to 1."""
        if name not in self._columns:
            values: list[Any] = []
            for shard in self._shards:
                for batch in ParquetFile(self.directory.shard_file(shard)).iter_batches(16, columns=[name]):
                    found = batch.column(name).to_pylist()
                    values += [share_of(f["bytes"]) for f in found] if name == "reliability" else found
                    if progress is not None:
                        progress(len(values), len(self.numbers))
            self._columns[name] = values
        return self._columns[name]


def share_of(reliability: bytes) -> float:
    """The mean of a reliability map (a PNG file), 0 to 1."""
    return float(decode_png(reliability).mean() / 255)


def grid_page(rows: Mapping[int, dict[str, Any]], table: ClassTable, notes: Mapping[str, str]) -> str:
    """Rows, by their numbers, as tiles in HTML: image, mask over the image, and what the row holds.

    `notes` holds a word on the rejections of a row by its sample id.
    """
    return f'<div class="tiles rows">{"".join(_tile(k, row, table, notes) for k, row in rows.items())}</div>'


def _tile(number: int, row: dict[str, Any], table: ClassTable, notes: Mapping[str, str]) -> str:
    image, mask = (decode_png(row[name]["bytes"]) for name in ("image", "mask"))
    names = ", ".join(table.names[k] for k in row["classes"]) or "no class"
    facts = f"row {number} \u00b7 {share_of(row['reliability']['bytes']):.0%} reliable \u00b7 {names}"
    note = f'<span class="note">{text(notes[row["sample_id"]])}</span>' if row["sample_id"] in notes else ""
    both = image_tag(_thumbnail(image), "image") + image_tag(_thumbnail(overlay(image, mask, table)), "mask")
    return (
        f'<figure class="tile" role="button" tabindex="0" data-row="{number}"><div class="pair">{both}'
        f"</div><figcaption><b>{text(row['prompt'])}</b>{text(facts)}{note}</figcaption></figure>"
    )


def _thumbnail(image: np.ndarray) -> bytes:
    small = Image.fromarray(image)
    small.thumbnail((THUMBNAIL, THUMBNAIL))
    return encode_png(np.asarray(small))


def notes_of(rows: Rows) -> dict[str, str]:
    """A word on the rejections of each row that has some, by its sample id."""
    words = {name: f"{len(why)} rejected before" for name, why in rows.rejected.items()}
    for name, why in rows.dropped.items():
        words[name] = ", ".join(filter(None, [words.get(name), f"{len(why)} dropped"]))
    return words
