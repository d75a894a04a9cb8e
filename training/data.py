"""Rows as training crops: image, labels and reliability, cropped, resized and mirrored together.

A position is the place of a crop in the run. Which row it has, and how the row is cropped, are functions of
(seed, position) alone. So a resumed run gets the same crops, and the number of processes only changes which
process loads them. Rows are read through Arrow's memory map and decoded in the workers, which keep no rows.
"""

import logging
import math
import signal
import threading
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import chain, count, islice
from multiprocessing.connection import wait
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from PIL import Image
from torch.utils.data import DataLoader, Dataset, IterableDataset, Sampler

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.cores import local_processes, usable_cores
from attn2mask.builders.devices import gpu_count
from attn2mask.builders.errors import UserError, first_line
from attn2mask.builders.files import refuse_pattern
from attn2mask.builders.images import at_most_large, read_image, read_mask
from attn2mask.builders.interrupts import starting_processes
from attn2mask.builders.mask_ids import binary_warning
from attn2mask.builders.reliability import RELIABLE
from attn2mask.builders.row_images import encoded_columns, image_content
from attn2mask.builders.row_reader import load_rows
from attn2mask.builders.table_reader import bare_table
from attn2mask.builders.workers import break_off
from attn2mask.training.benchmarks import names_in, recorded_table
from attn2mask.training.config import TrainConfig

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

CHECKED_ROWS = 16  # first rows of a dataset whose masks are looked at before training
SHUFFLE_BUFFER = 1_000  # rows of a stream that are shuffled at a time
MOST_WORKERS = 8  # more processes would only wait for the training
ASPECTS = (3 / 4, 4 / 3)  # range of a crop's width / height
GRAY = (124, 116, 104)  # the mean color of ImageNet, which normalization takes to zero


@dataclass(frozen=True)
class Crops:
    """How a row of `table` becomes a training crop by resolved options."""

    config: TrainConfig
    table: ClassTable

    def __call__(self, row: dict[str, Any], position: int) -> dict[str, Any]:
        """The crop of `row` at a global `position`: pixels (3, S, S) uint8, label (S, S) int64 with the
        ignore value, trusted (S, S) bool, sample_id.

        Images of more than `images.LARGE` pixels are reduced to so many, with their labels and reliability.
        Outside of the image the label is the ignore value and counts as trusted, so that nothing is learned
        there.

        Raises UserError for an image that cannot be read or that `image_content` does not open, and for a
        mask that has no ids, another size than its image, or ids outside of the table.
        """
        config, ignore = self.config, self.table.ignore_index
        sample_id = row.get("sample_id")
        name = f"at position {position} of the run" if sample_id in (None, "") else str(sample_id)
        sources = {
            column: (image_content(row[column], where, config.dataset), where)
            for column in needed_columns(config.reliability)
            for where in [f"row {name}: its {column}"]
        }
        image = Image.fromarray(read_image(*sources["image"], at_most_large))
        mask = Image.fromarray(read_mask(*sources["mask"], self.table, size=at_most_large))
        trust = Image.new("L", mask.size, 255)
        if config.reliability:
            levels = read_image(*sources["reliability"], at_most_large)
            trust = Image.fromarray(levels[..., 0])  # a gray map: the channels are equal
        for part, kind in ((mask, "mask"), (trust, "reliability")):
            if part.size != image.size:
                raise UserError(
                    f"row {name}: the image has {image.size} pixels, but its {kind} has {part.size}"
                )
        rng = np.random.default_rng([config.seed, position])
        box = self.box(*image.size, rng)
        mirror = rng.random() < 0.5

        def cut(part: Image.Image, resample: Image.Resampling = Image.Resampling.NEAREST) -> np.ndarray:
            array = np.asarray(part.crop(box).resize((config.crop_size, config.crop_size), resample))
            return (array[:, ::-1] if mirror else array).copy()

        inside = cut(Image.new("L", image.size, 255)) > 0
        label = np.where(inside, cut(mask).astype(np.int64), ignore)
        pixels = cut(image, Image.Resampling.BILINEAR)
        pixels[~inside] = GRAY
        return {
            "pixels": torch.from_numpy(pixels).permute(2, 0, 1).contiguous(),
            "label": torch.from_numpy(label),
            "trusted": torch.from_numpy((cut(trust) >= RELIABLE) & (label != ignore) | ~inside),
            "sample_id": name,
        }

    def box(self, width: int, height: int, rng: np.random.Generator) -> tuple[int, int, int, int]:
        """The crop of an image, (left, top, right, bottom) in its pixels; it may be larger than the image."""
        config = self.config
        if config.crop_scale_max is None:
            return crop_box(width, height, (config.crop_area_min, config.crop_area_max), rng)
        scale = rng.uniform(config.crop_scale_min, config.crop_scale_max)
        scale *= config.resize / min(width, height) if config.resize else 1
        side = max(1, round(config.crop_size / scale))
        left, top = (
            int(rng.integers(min(0, spare), max(0, spare) + 1)) for spare in (width - side, height - side)
        )
        return left, top, left + side, top + side


def crop_box(
    width: int, height: int, areas: tuple[float, float], rng: np.random.Generator
) -> tuple[int, int, int, int]:
    """A random crop of an image, (left, top, right, bottom) in pixels, as torchvision's RandomResizedCrop
    chooses it.

    Its area is a uniform fraction of the image's between `areas`. The logarithm of its width / height is
    uniform in `ASPECTS`. If no such crop lies inside the image, it is the largest one of an allowed aspect,
    in the middle.
    """
    narrow, wide = ASPECTS
    for _ in range(10):
        area = width * height * rng.uniform(*areas)
        aspect = math.exp(rng.uniform(math.log(narrow), math.log(wide)))
        w, h = round(math.sqrt(area * aspect)), round(math.sqrt(area / aspect))
        if 0 < w <= width and 0 < h <= height:
            left, top = int(rng.integers(width - w + 1)), int(rng.integers(height - h + 1))
            return left, top, left + w, top + h
    w, h = min(width, max(1, round(height * wide))), min(height, max(1, round(width / narrow)))
    left, top = (width - w) // 2, (height - h) // 2
    return left, top, left + w, top + h


@dataclass(frozen=True)
class Share:
    """The positions of a run that one process loads.

    Step s of the run has the positions s * batch to (s + 1) * batch - 1. Process r of n loads every n-th of
    them from r on, for the steps from `start` to `stop` - 1.
    """

    batch: int
    start: int
    stop: int
    rank: int = 0
    processes: int = 1

    def positions(self) -> range:
        return range(self.start * self.batch + self.rank, self.stop * self.batch, self.processes)


class Positions(Sampler):
    """(position p, row) of a share: row p % rows in the shuffled order of epoch p // rows."""

    def __init__(self, rows: int, seed: int, share: Share) -> None:
        self.rows, self.seed, self.share = rows, seed, share

    def __len__(self) -> int:
        return len(self.share.positions())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        epoch, order = -1, np.empty(0, int)
        for p in self.share.positions():
            if p // self.rows != epoch:
                epoch = p // self.rows
                order = np.random.default_rng([self.seed, 1, epoch]).permutation(self.rows)
            yield p, int(order[p % self.rows])


class CroppedRows(Dataset):
    """Crops of a dataset's rows, addressed by (position, row index)."""

    def __init__(self, rows: "datasets.Dataset", crops: Crops) -> None:
        self.rows, self.crops = rows, crops

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        position, index = place
        row = self.rows[index]
        return self.crops({**row, "sample_id": row.get("sample_id") or index}, position)


class CroppedStream(IterableDataset):
    """Crops of a stream of rows. When the stream ends, it starts again in another shuffled order. Rows before
    the share's first step are read but not decoded.
    """

    def __init__(self, rows: "datasets.IterableDataset", crops: Crops, share: Share) -> None:
        self.rows, self.crops, self.share = rows, crops, share

    def __iter__(self) -> Iterator[dict[str, Any]]:
        # Not with the stream's own `shuffle`, whose order depends on the number of loading processes.
        epochs = (
            shuffled(self.rows, np.random.default_rng([self.crops.config.seed, 1, epoch]))
            for epoch in count()
        )
        share = self.share
        first, last = share.start * share.batch, share.stop * share.batch
        for position, row in enumerate(islice(chain.from_iterable(epochs), first, last), first):
            if position % share.processes == share.rank:
                yield self.crops(row, position)


def shuffled(rows: Iterable[dict[str, Any]], rng: np.random.Generator) -> Iterator[dict[str, Any]]:
    """`rows` in a random order, within a buffer of `SHUFFLE_BUFFER` rows."""
    waiting: list[dict[str, Any]] = []
    for row in rows:
        if len(waiting) < SHUFFLE_BUFFER:
            waiting.append(row)
        else:
            k = int(rng.integers(SHUFFLE_BUFFER))
            yield waiting[k]
            waiting[k] = row
    yield from (waiting[k] for k in rng.permutation(len(waiting)))


def needed_columns(reliability: bool) -> tuple[str, ...]:
    """The columns of images that rows must have for training."""
    return ("image", "mask", *(("reliability",) if reliability else ()))


def open_rows(
    dataset: str,
    streaming: bool,
    reliability: bool,
    num_rows: int | None = None,
    allow_incomplete: bool = False,
    verify: bool = True,
) -> "tuple[datasets.Dataset | datasets.IterableDataset, ClassTable]":
    """Rows and their class table, from a directory or the Hub; images stay encoded. With `num_rows`, only the
    first rows.

    `allow_incomplete` and `verify` are for builds (see `row_reader.whole_shards`).

    Raises UserError for rows that cannot be read, or that lack an image, a mask, class names or (with
    `reliability`) a reliability map.
    """
    if not dataset:
        raise UserError("--dataset is missing: a directory that `attn2mask build` made, or a name on the Hub")
    local = Path(dataset).exists()
    if local:
        refuse_pattern(Path(dataset), f"--dataset {dataset}")
    try:
        rows = load_rows(dataset, "train", streaming, allow_incomplete, verify)
    except UserError as error:
        raise UserError(f"--dataset {error}") from error
    except Exception as error:  # the libraries raise errors of many kinds
        where = "the directory" if local else "there is no such directory, and the dataset of the Hub"
        reason = f"{where} has no rows that can be read ({first_line(error)})"
        raise UserError(f"--dataset {dataset}: {reason}") from error
    features = rows.features or {}
    needed = needed_columns(reliability)
    missing = [name for name in needed if name not in features]
    if missing:
        hint = "; with --no-reliability every label is trusted" if missing == ["reliability"] else ""
        raise UserError(
            f"--dataset {dataset}: its rows have no {' and no '.join(missing)}"
            f" (only {', '.join(features)}){hint}"
        )
    table = table_of_rows(dataset, features)
    rows = rows.select_columns([n for n in (*needed, "sample_id") if n in features])
    rows = encoded_columns(rows, needed, f"--dataset {dataset}")
    first = list(islice(rows, CHECKED_ROWS))
    if not first:  # also for a stream, from which training would wait for rows
        raise UserError(f"--dataset {dataset} has no rows")
    masks = [
        read_mask(image_content(row["mask"], name, dataset), name, table, size=at_most_large)
        for number, row in enumerate(first)
        for name in [f"row {row.get('sample_id') or number}: its mask"]
    ]
    if warning := binary_warning(set(np.unique(np.concatenate([mask.ravel() for mask in masks]))), table):
        logger.warning("--dataset %s: in the first %d rows, %s", dataset, len(first), warning)
    if streaming:
        return rows if num_rows is None else rows.take(num_rows), table
    if num_rows is not None and num_rows > len(rows):
        raise UserError(f"--num-rows {num_rows}: --dataset {dataset} has only {len(rows)} rows")
    return rows if num_rows is None else rows.select(range(num_rows)), table


def number_of_rows(rows: "datasets.Dataset | datasets.IterableDataset") -> int:
    """The number of rows. A stream whose origin does not state it is read once, without its images."""
    from datasets import Dataset as MapDataset

    if isinstance(rows, MapDataset):
        return len(rows)
    return sum(1 for _ in rows.select_columns(rows.column_names[-1:]))  # sample_id, if there is one


def table_of_rows(dataset: str, features: dict) -> ClassTable:
    """The class table of rows: the one that a build recorded, or one with the names of their `classes`."""
    if (recorded := recorded_table(dataset)) is not None:
        return recorded
    names = names_in(features)
    if names is None:
        raise UserError(
            f"--dataset {dataset}: its rows have no column `classes` of List(ClassLabel) with the class names"
        )
    return bare_table(Path(dataset).name, names)


def loader(
    rows: "datasets.Dataset | datasets.IterableDataset",
    crops: Crops,
    share: Share,
    per_process: int,
    workers: int | None = None,
) -> DataLoader:
    """Batches of `per_process` crops for the positions of a share, made by `workers` processes (0: by this
    one; None: by one for each core that this process has, at most `MOST_WORKERS`). A batch holds pixels
    (N, 3, S, S) uint8, label (N, S, S) int64, trusted (N, S, S) bool, and sample_id, a list of str.
    """
    from datasets import Dataset as MapDataset

    if workers is None:
        workers = min(max(usable_cores() // local_processes(), 1), MOST_WORKERS)
    common: dict[str, Any] = {
        "drop_last": True,
        "pin_memory": gpu_count() > 0,
        "worker_init_fn": _leave_signals,
    }
    if isinstance(rows, MapDataset):
        positions = Positions(len(rows), crops.config.seed, share)
        return _Loader(CroppedRows(rows, crops), per_process, False, positions, num_workers=workers, **common)
    return _Loader(CroppedStream(rows, crops, share), per_process, num_workers=min(workers, 1), **common)


class _Loader(DataLoader):
    def __iter__(self) -> Any:
        with starting_processes():
            return super().__iter__()


def _leave_signals(worker: int) -> None:
    # A terminal and a scheduler also signal the processes that load rows. The run decides when these end.
    for which in (signal.SIGINT, signal.SIGTERM):
        signal.signal(which, signal.SIG_IGN)


@contextmanager
def loading(batches: DataLoader) -> Iterator[Iterator[dict[str, Any]]]:
    """The batches of a loader, whose processes end with the block.

    Raises UserError as a loading process raised it, with its one line, and if a loading process died.
    """
    loaded = iter(batches)
    # These names are private to torch. A test checks them.
    workers: Sequence[BaseProcess] = getattr(loaded, "_workers", [])
    ended, fault = threading.Event(), None
    if workers:
        queue = loaded._worker_result_queue  # type: ignore[attr-defined]
        threading.Thread(target=_watch, args=(workers, queue, ended), daemon=True).start()
    try:
        yield loaded
    except UserError as error:
        raise UserError(str(error).split("UserError: ")[-1]) from error.__cause__
    except Exception as error:
        fault = _loading_fault(workers, error)
        if fault is None:
            raise
        raise UserError(fault) from error
    finally:
        ended.set()
        if fault:
            for worker in workers:
                with suppress(RuntimeError):  # torch raises it again for each process that is found dead
                    worker.kill()
        if workers:
            with suppress(RuntimeError):
                loaded._shutdown_workers()  # type: ignore[attr-defined]


def _loading_fault(workers: Sequence[BaseProcess], error: Exception) -> str | None:
    """What to do about an error if it comes from the death of a loading process; else None."""
    dead: list[int] | None = None if workers else []
    while dead is None:
        with suppress(RuntimeError):  # torch reports each dead process once, at any moment
            ended = wait([worker.sentinel for worker in workers], 1)  # a pipe breaks before its process ends
            for worker in workers:
                if worker.sentinel in ended:
                    worker.join()
            dead = [worker.exitcode for worker in workers if worker.exitcode]
    if -signal.SIGBUS in dead or "shared memory" in str(error):
        return (
            "the processes that load rows have too little shared memory (/dev/shm): give --workers 0, or"
            " start the container with more (docker run --shm-size 8g)"
        )
    if not dead:
        return None
    how = f"by signal {-dead[0]}" if dead[0] < 0 else f"with exit status {dead[0]}"
    return (
        f"a process that loads rows died ({how}), most likely because memory was full: run the same command"
        " again with --resume and fewer --workers"
    )


def _watch(workers: Sequence[BaseProcess], queue: Any, ended: threading.Event) -> None:
    """Free the reader of `queue` from a wait for the rest of a batch whose process died."""
    while not ended.wait(1):
        if any(worker.exitcode for worker in workers) and not ended.wait(2):
            for worker in workers:
                worker.kill()
            break_off(queue)
            return
