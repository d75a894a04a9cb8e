"""Rows of a dataset as images with ids, which are read when they are needed."""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy import ndimage

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.images import encode_png, read_image, read_mask
from attn2mask.builders.mask_ids import Decoder
from attn2mask.builders.reliability import reliable_ids
from attn2mask.builders.row_images import image_content
from attn2mask.training.data import OpenedRows, open_rows

_FILE_NAME = re.compile(r"\w[\w.-]*")  # a sample id that can be the name of a file everywhere


@dataclass(frozen=True)
class LabeledImage:
    """One row: its `name`, the `split` that it goes to, and its columns.

    Attributes:
        row: the encoded columns `image` and `mask`, and `reliability` if the dataset has it.
        dataset: the directory of the rows, or their name on the Hub.
        decode: returns the ids of a mask, as `read_mask` takes it.
    """

    name: str
    split: str
    row: dict[str, Any]
    dataset: str
    table: ClassTable
    decode: Decoder

    @property
    def image(self) -> np.ndarray:
        """The image, (H, W, 3) uint8. Raises UserError if it cannot be read."""
        return read_image(*self._source("image"))

    @property
    def png(self) -> bytes:
        """The image as a PNG file. Raises UserError if it cannot be read."""
        return encode_png(self.image)

    @property
    def ids(self) -> np.ndarray:
        """Mask ids (H, W) int32, with the ignore value where the row has it and where it is not reliable.

        Raises UserError if a column cannot be read, or if the columns differ in size.
        """
        ids = read_mask(*self._source("mask"), self.table, self.decode)
        if self.row.get("reliability") is None:
            return ids
        levels = read_image(*self._source("reliability"))[..., 0]
        if levels.shape != ids.shape:
            raise UserError(f"row {self.name}: its mask and its reliability differ in size")
        return reliable_ids(ids, levels, self.table.ignore_index)

    def _source(self, column: str) -> tuple[bytes, str]:
        """The content of a column, and its name in messages."""
        name = f"row {self.name}: its {column}"
        return image_content(self.row[column], name, self.dataset), name


def labeled_images(
    dataset: str, num_rows: int | None, val_rows: int, ignore_reliability: bool, **opening: Any
) -> tuple[Sequence[LabeledImage], ClassTable]:
    """The rows of a dataset and their class table; the last `val_rows` of them are of the split `val`.

    Raises UserError for rows that cannot be read, and as `open_rows`, which takes `opening`.
    """
    opened = open_rows(dataset, False, not ignore_reliability, num_rows, **opening)
    number = len(opened.rows)
    if val_rows > number:
        raise UserError(f"--val-rows {val_rows}: --dataset {dataset} has only {number} rows")
    return _Images(opened, number - val_rows), opened.table


@dataclass(frozen=True)
class _Images(Sequence[LabeledImage]):
    opened: OpenedRows
    training: int

    def __len__(self) -> int:
        return len(self.opened.rows)

    def __getitem__(self, index: int) -> LabeledImage:  # type: ignore[override]  # no slices
        opened = self.opened
        if index >= len(opened.rows):
            raise IndexError(index)
        row, split = opened.rows[index], "train" if index < self.training else "val"
        name = str(row.get("sample_id") or "")
        name = name if _FILE_NAME.fullmatch(name) else f"{index:08d}"
        return LabeledImage(name, split, row, opened.dataset, opened.table, opened.decode)


def parts_of(ids: np.ndarray, table: ClassTable, instances: bool) -> list[tuple[int, np.ndarray]]:
    """The masks of classes in ids (H, W), each with its id: (H, W) bool, without those of ignored pixels.

    With `instances`, a class of things has a mask for each of its connected parts; pixels that touch at a
    corner are connected.
    """
    parts = []
    for label in np.unique(ids[ids != table.ignore_index]):
        of_class = ids == label
        thing = label >= table.first_id and table.classes[label - table.first_id].thing
        if not (instances and thing):
            parts.append((int(label), of_class))
            continue
        numbers, count = ndimage.label(of_class, np.ones((3, 3), int))
        parts += [(int(label), numbers == number) for number in range(1, count + 1)]
    return parts
