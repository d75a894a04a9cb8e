"""Rows as training crops: a picture, its labels and where they may be trusted, scaled, cropped and mirrored
together.

Which row stands at which place of which batch, and how it is cut, is a function of (seed, place) alone, so a
run that was killed goes on with the very same crops, and the number of processes changes only who loads them.
Rows are read through Arrow's memory map and decoded in the workers, which therefore keep nothing.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain, count, islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.table_reader import bare_table
from attn2mask.training.benchmarks import read_picture, recorded_table, stored_file

if TYPE_CHECKING:
    import datasets

SHUFFLE_BUFFER = 1_000  # rows that a stream is shuffled within
SCALES = (0.5, 2.0)  # range of the random scale
IDS = ("L", "P", "I", "I;16")  # Pillow's modes whose values are ids


@dataclass(frozen=True)
class Crops:
    """How a row becomes a training crop.

    Attributes:
        size: side of the square crop in pixels.
        resize: shortest side that pictures are brought to before the random scale; 0 leaves them.
        seed: of scale, place and mirroring.
        ignore: the mask's ignore value.
        classes: the number of ids; others are an error.
        reliability: whether the reliability map is read; without it every label is trusted.
    """

    size: int
    resize: int
    seed: int
    ignore: int
    classes: int
    reliability: bool

    def __call__(self, row: dict[str, Any], position: int) -> dict[str, Any]:
        """The crop of ``row`` at a global ``position``: pixels (3, S, S) uint8, label (S, S) int64 with the
        ignore value, trusted (S, S) bool, sample_id.

        Beyond the picture's rim the label is the ignore value and counts as trusted: nothing is learnt there.
        Raises UserError for a picture that can't be read, and a mask that is none, of another size than its
        picture, or with ids outside the table.
        """
        name = row.get("sample_id") or f"at place {position}"
        read = {kind: picture(row[kind], f"row {name}: its {kind}") for kind in ("image", "mask")}
        image, mask = read["image"].convert("RGB"), read["mask"]
        if mask.mode not in IDS:
            raise UserError(
                f"row {name}: its mask is no grey picture of ids but of Pillow's mode {mask.mode}"
            )
        trust = Image.new("L", mask.size, 255)
        if self.reliability:
            trust = picture(row["reliability"], f"row {name}: its reliability").convert("L")
        for part, kind in ((mask, "mask"), (trust, "reliability")):
            if part.size != image.size:
                raise UserError(f"row {name}: the picture is {image.size} pixels, its {kind} {part.size}")
        rng = np.random.default_rng([self.seed, position])
        scale = rng.uniform(*SCALES) * (self.resize / min(image.size) if self.resize else 1)
        size = tuple(max(1, round(side * scale)) for side in image.size)
        left, top = (int(rng.integers(min(0, self.size - s), max(0, self.size - s) + 1)) for s in size)
        mirror = rng.random() < 0.5

        def cut(part: Image.Image, fill: Any, resample: Image.Resampling) -> np.ndarray:
            page = Image.new(part.mode, (self.size, self.size), fill)
            page.paste(part.resize(size, resample), (left, top))
            array = np.asarray(page)
            return array[:, ::-1] if mirror else array

        label = cut(mask, self.ignore, Image.Resampling.NEAREST).astype(np.int64)
        wrong = (label < 0) | (label >= self.classes) & (label != self.ignore)
        if wrong.any():
            raise UserError(
                f"row {name}: mask id {label[wrong][0]} is not in the table of {self.classes} names"
                f" (ignore is {self.ignore})"
            )
        inside = cut(Image.new("L", image.size, 255), 0, Image.Resampling.NEAREST) > 0
        trusted = cut(trust, 0, Image.Resampling.NEAREST) > 127
        grey = (124, 116, 104)  # the mean color of ImageNet, which normalization takes to zero
        pixels = cut(image, grey, Image.Resampling.BILINEAR)
        return {
            "pixels": torch.from_numpy(pixels.copy()).permute(2, 0, 1).contiguous(),
            "label": torch.from_numpy(label),
            "trusted": torch.from_numpy((trusted & (label != self.ignore)) | ~inside),
            "sample_id": name,
        }


def picture(stored: Any, called: str) -> Image.Image:
    """A picture as a row holds it: Hugging Face's {"bytes", "path"}, or decoded already.

    Raises UserError, which tells how it is `called`, where it can't be read.
    """
    if isinstance(stored, Image.Image):
        return stored
    return read_picture(stored_file(stored), called)


class Positions(Sampler):
    """Places of this process from step ``start`` on: (position, row index), in the order of its batches.

    Step s holds the positions s * batch to (s + 1) * batch - 1; process r of n takes every n-th from r on.
    Position p shows row p % rows of the shuffled order of epoch p // rows.
    """

    def __init__(self, rows: int, batch: int, start: int, stop: int, seed: int, rank: int, processes: int):
        self.rows, self.batch, self.start, self.stop = rows, batch, start, stop
        self.seed, self.rank, self.processes = seed, rank, processes

    def __len__(self) -> int:
        return (self.stop - self.start) * self.batch // self.processes

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, order = -1, np.empty(0, int)
        for p in range(self.start * self.batch + self.rank, self.stop * self.batch, self.processes):
            if p // self.rows != epoch:
                epoch = p // self.rows
                order = np.random.default_rng([self.seed, 1, epoch]).permutation(self.rows)
            yield p, int(order[p % self.rows])


class Rows(Dataset):
    """Crops of a dataset's rows, addressed by (position, row index)."""

    def __init__(self, rows: datasets.Dataset, crops: Crops) -> None:
        self.rows, self.crops = rows, crops

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        position, index = place
        return self.crops(self.rows[index], position)


class Stream(IterableDataset):
    """Crops of a stream that starts anew, shuffled otherwise, whenever it ends; rows before step ``start``
    are read over without being decoded.
    """

    def __init__(
        self, rows: datasets.IterableDataset, crops: Crops, batch: int, start: int, stop: int,
        rank: int, processes: int,
    ) -> None:  # fmt: skip
        self.rows, self.crops, self.batch, self.start, self.stop = rows, crops, batch, start, stop
        self.rank, self.processes = rank, processes

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Not with the stream's own `shuffle`, whose order depends on the number of loading processes.
        epochs = (
            shuffled(self.rows, np.random.default_rng([self.crops.seed, 1, epoch])) for epoch in count()
        )
        first, last = self.start * self.batch, self.stop * self.batch
        for position, row in enumerate(islice(chain.from_iterable(epochs), first, last), first):
            if position % self.processes == self.rank:
                yield self.crops(row, position)


def shuffled(rows: Iterable[dict[str, Any]], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """``rows``, each swapped with one of the `SHUFFLE_BUFFER` before it."""
    waiting: list[dict[str, Any]] = []
    for row in rows:
        if len(waiting) < SHUFFLE_BUFFER:
            waiting.append(row)
        else:
            k = int(rng.integers(SHUFFLE_BUFFER))
            yield waiting[k]
            waiting[k] = row
    yield from (waiting[k] for k in rng.permutation(len(waiting)))


def open_rows(
    dataset: str, streaming: bool, reliability: bool
) -> tuple[datasets.Dataset | datasets.IterableDataset, ClassTable]:
    """Rows and their class table, from a directory or the Hub; pictures stay encoded.

    Raises UserError where it can't be read, or lacks a picture, mask, class names or (with ``reliability``) a
    reliability map.
    """
    from datasets import Image as Picture
    from datasets import load_dataset

    if not dataset:
        raise UserError("--dataset is missing: a directory that `attn2mask build` made, or a name on the Hub")
    local = Path(dataset).exists()
    try:
        rows = load_dataset(dataset, split="train", streaming=streaming)
    except Exception as error:  # the libraries below raise many kinds, each meaning that it can't be read
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        where = "directory" if local else "dataset of the Hub, or directory,"
        raise UserError(f"--dataset {dataset}: no {where} with rows that can be read ({reason})") from error
    features = rows.features or {}
    needed = ("image", "mask", *(("reliability",) if reliability else ()))
    missing = [name for name in needed if name not in features]
    if missing:
        hint = "; --no-reliability trusts every label" if missing == ["reliability"] else ""
        raise UserError(
            f"--dataset {dataset}: its rows have no {' and no '.join(missing)}"
            f" (only {', '.join(features)}){hint}"
        )
    table = table_of(dataset, features)
    rows = rows.select_columns([n for n in (*needed, "sample_id") if n in features])
    for name in needed:
        rows = rows.cast_column(name, Picture(decode=False))
    if not streaming and not len(rows):
        raise UserError(f"--dataset {dataset} has no rows")
    return rows, table


def table_of(dataset: str, features: dict) -> ClassTable:
    """The class table of a dataset of rows: a build's own, else by the names of its `classes` column."""
    if (recorded := recorded_table(dataset)) is not None:
        return recorded
    try:
        names = tuple(features["classes"].feature.names)
    except (KeyError, AttributeError):
        raise UserError(
            f"--dataset {dataset}: its rows name no classes (in a column `classes` of List(ClassLabel))"
        ) from None
    return bare_table(Path(dataset).name, names)


def loader(
    rows: datasets.Dataset | datasets.IterableDataset,
    crops: Crops,
    *,
    per_process: int,
    batch: int,
    start: int,
    stop: int,
    rank: int,
    processes: int,
    workers: int,
) -> DataLoader:
    """Batches of this process from step ``start`` to ``stop``: pixels (N, 3, S, S) uint8, label (N, S, S)
    int64, trusted (N, S, S) bool, sample_id a list of str.
    """
    from datasets import Dataset as MapDataset

    common: dict[str, Any] = {
        "batch_size": per_process,
        "drop_last": True,
        "collate_fn": collate,
        "pin_memory": torch.cuda.is_available(),
    }
    if isinstance(rows, MapDataset):
        places = Positions(len(rows), batch, start, stop, crops.seed, rank, processes)
        return DataLoader(Rows(rows, crops), sampler=places, num_workers=workers, **common)
    stream = Stream(rows, crops, batch, start, stop, rank, processes)
    return DataLoader(stream, num_workers=min(workers, 1), **common)


def collate(crops: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """Crops stacked into a batch."""
    batch: dict[str, Any] = {
        name: torch.stack([crop[name] for crop in crops]) for name in ("pixels", "label", "trusted")
    }
    batch["sample_id"] = [crop["sample_id"] for crop in crops]
    return batch
