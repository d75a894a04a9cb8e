"""Rows as training crops: image, labels and reliability, cropped, resized and mirrored together.

A position is the place of a crop in the run. Which row it has, and how the row is cropped, are functions of
the seed, the position and the datasets alone. So a resumed run gets the same crops, and the number of
processes only changes which process loads them. Rows are read through Arrow's memory map and decoded in the
workers, which keep no rows.

Of several datasets, each has its share of the positions (see `turns`).
"""

import logging
import math
import signal
import threading
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from itertools import accumulate, chain, count, islice
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
from attn2mask.builders.mask_ids import Decoder, binary_warning, decoder_of, ids_of, reduced_ids
from attn2mask.builders.reliability import RELIABLE
from attn2mask.builders.row_images import image_content
from attn2mask.builders.row_reader import load_rows
from attn2mask.builders.table_reader import bare_table
from attn2mask.builders.workers import break_off
from attn2mask.training.benchmarks import difference, recorded_table
from attn2mask.training.config import TrainConfig
from attn2mask.training.row_columns import LABELS, labels_beside, names_in, usual_columns

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger(__name__)

CHECKED_ROWS = 16  # first rows of a dataset whose masks are looked at before training
SHUFFLE_BUFFER = 1_000  # rows of a stream that are shuffled at a time
MOST_WORKERS = 8  # more processes would only wait for the training
ASPECTS = (3 / 4, 4 / 3)  # range of a crop's width / height
GRAY = (124, 116, 104)  # the mean color of ImageNet, which normalization takes to zero


@dataclass(frozen=True)
class OpenedRows:
    """The rows of one dataset.

    Attributes:
        dataset: the directory, or the name on the Hub.
        rows: of the library datasets, with the columns `image` and `mask`, and `reliability` and `sample_id`
            if there are such. Images stay encoded.
        decode: returns the ids of a mask, as `read_mask` takes it.
    """

    dataset: str
    rows: "datasets.Dataset | datasets.IterableDataset"
    table: ClassTable
    decode: Decoder


@dataclass(frozen=True)
class Crops:
    """How a row of `dataset` with the classes of `table` becomes a training crop by resolved options.

    `decode` returns the ids of a mask. If the dataset is one of several, messages name it.
    """

    config: TrainConfig
    table: ClassTable
    dataset: str = ""
    decode: Decoder = ids_of
    is_one_of_several: bool = False

    def __call__(self, row: dict[str, Any], position: int) -> dict[str, Any]:
        """The crop of `row` at a global `position`: pixels (3, S, S) uint8, label (S, S) int64 with the
        ignore value, trusted (S, S) bool, sample_id.

        Images of more than `images.LARGE` pixels are reduced to so many, with their labels and reliability.
        Outside of the image the label is the ignore value and counts as trusted, so that nothing is learned
        there. A row without the column `reliability` is reliable everywhere.

        Raises UserError for an image that cannot be read or that `image_content` does not open, and for a
        mask that has no ids, another size than its image, or ids outside of the table.
        """
        config, ignore = self.config, self.table.ignore_index
        sample_id = row.get("sample_id")
        name = f"at position {position} of the run" if sample_id in (None, "") else str(sample_id)
        name += f" of {self.dataset}" if self.is_one_of_several else ""
        image, mask, trust = self.opened(row, name)
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

    def opened(self, row: dict[str, Any], name: str) -> tuple[Image.Image, Image.Image, Image.Image]:
        """The image, the mask and the reliability of the row of this name, of one size. Without reliability,
        all pixels are reliable. Raises UserError as a call does.
        """
        sources = {
            column: (image_content(row[column], where, self.dataset), where)
            for column in used_columns(row, self.config.reliability)
            for where in [f"row {name}: its {column}"]
        }
        image = Image.fromarray(read_image(*sources["image"], at_most_large))
        mask = Image.fromarray(read_mask(*sources["mask"], self.table, self.decode, at_most_large))
        trust = Image.new("L", mask.size, 255)
        if "reliability" in sources:
            levels = read_image(*sources["reliability"], at_most_large)
            trust = Image.fromarray(levels[..., 0])  # a gray map: the channels are equal
        for part, kind in ((mask, "mask"), (trust, "reliability")):
            if part.size != image.size:
                raise UserError(
                    f"row {name}: the image has {image.size} pixels, but its {kind} has {part.size}"
                )
        return image, mask, trust

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


def turns(weights: Sequence[float], seed: int, share: Share) -> Iterator[tuple[int, int, int]]:
    """The positions of a share: the position, the dataset that has it, and how many earlier positions of the
    run this dataset had.

    Dataset k has the share s_k = weights[k] / sum(weights). Its n-th position, counted from 0, is due at
    (n + 1/2) / s_k, and positions go to the datasets in the order in which they are due (the method of
    Webster, for one seat after the other). So a batch of B has exactly s_k B rows of each dataset if all
    these are whole numbers. Of two datasets, the number in any first steps is s_k times their positions,
    rounded. Within a step the order is random, so that each process gets rows of each dataset.
    """
    total, shares = share.stop * share.batch, np.asarray(weights) / np.sum(weights)
    due = [(np.arange(math.ceil(total * part) + len(shares)) + 0.5) / part for part in shares]
    which = np.repeat(np.arange(len(due)), [len(times) for times in due])
    order = np.argsort(np.concatenate(due), kind="stable")[:total]
    steps = which[order].reshape(share.stop, share.batch)
    had = np.bincount(steps[: share.start].ravel(), minlength=len(due)).tolist()
    own = share.positions()
    for step in range(share.start, share.stop):
        mixed = np.random.default_rng([seed, 2, step]).permutation(steps[step]).tolist()
        for position, k in enumerate(mixed, step * share.batch):
            if position in own:
                yield position, k, had[k]
            had[k] += 1


def shuffle_of(seed: int, dataset: int, epoch: int) -> np.random.Generator:
    """The random numbers that shuffle the rows of a dataset, counted from 0, for a pass over them. The first
    dataset has those that it has alone.
    """
    return np.random.default_rng([seed, 1, epoch, *([dataset] if dataset else [])])


class Positions(Sampler):
    """(position, row) of a share; rows are counted through all datasets, which have `rows` of them.

    The n-th position of a dataset has row n % rows in the shuffled order of its pass n // rows. The shares of
    the datasets are in proportion to `weights`, by default to their numbers of rows.
    """

    def __init__(
        self, rows: Sequence[int], seed: int, share: Share, weights: Sequence[float] | None = None
    ) -> None:
        self.rows, self.seed, self.share, self.weights = rows, seed, share, weights or rows

    def __len__(self) -> int:
        return len(self.share.positions())

    def __iter__(self) -> Iterator[tuple[int, int]]:
        firsts = [0, *accumulate(self.rows)]
        orders: dict[int, tuple[int, np.ndarray]] = {}  # the present pass of each dataset
        for position, k, n in turns(self.weights, self.seed, self.share):
            epoch, place = divmod(n, self.rows[k])
            if k not in orders or orders[k][0] != epoch:
                orders[k] = epoch, shuffle_of(self.seed, k, epoch).permutation(self.rows[k])
            yield position, firsts[k] + int(orders[k][1][place])


@dataclass(frozen=True)
class Source:
    """The rows of a dataset, how they become crops, and the weight of the dataset among others."""

    rows: "datasets.Dataset | datasets.IterableDataset"
    crops: Crops
    weight: float = 1


class CroppedRows(Dataset):
    """Crops of the rows of datasets, addressed by (position, row), as `Positions` gives them."""

    def __init__(self, sources: Sequence[Source]) -> None:
        self.sources = sources
        self.firsts = [0, *accumulate(len(source.rows) for source in sources)]

    def __getitem__(self, place: tuple[int, int]) -> dict[str, Any]:
        position, number = place
        k = bisect_right(self.firsts, number) - 1
        source, index = self.sources[k], number - self.firsts[k]
        row = source.rows[index]
        return source.crops({**row, "sample_id": row.get("sample_id") or index}, position)


class CroppedStream(IterableDataset):
    """Crops of streams of rows. When a stream ends, it starts again in another shuffled order. Rows before
    the share's first step are read but not decoded.
    """

    def __init__(self, sources: Sequence[Source], seed: int, share: Share) -> None:
        self.sources, self.seed, self.share = sources, seed, share

    def __iter__(self) -> Iterator[dict[str, Any]]:
        streams = [self.endless(k) for k in range(len(self.sources))]
        read = [0] * len(streams)
        weights = [source.weight for source in self.sources]
        for position, k, n in turns(weights, self.seed, self.share):
            row = next(islice(streams[k], n - read[k], None))
            read[k] = n + 1
            yield self.sources[k].crops(row, position)

    def endless(self, dataset: int) -> Iterator[dict[str, Any]]:
        """All passes over the rows of a dataset, one after the other."""
        # Not with the stream's own `shuffle`, whose order depends on the number of loading processes.
        rows = self.sources[dataset].rows
        return chain.from_iterable(shuffled(rows, shuffle_of(self.seed, dataset, epoch)) for epoch in count())


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


def used_columns(there: Iterable[str], reliability: bool) -> tuple[str, ...]:
    """The columns of images that training reads of those that are `there`."""
    return ("image", "mask", *(("reliability",) if reliability and "reliability" in there else ()))


def open_rows(
    dataset: str,
    streaming: bool,
    reliability: bool,
    num_rows: int | None = None,
    allow_incomplete: bool = False,
    verify: bool = True,
) -> OpenedRows:
    """The rows of a directory or of a dataset of the Hub. With `num_rows`, only the first of them.

    `allow_incomplete` and `verify` are for builds (see `row_reader.whole_shards`).

    Raises UserError for rows that cannot be read, or that lack an image, a mask or class names.
    """
    if not dataset:
        raise UserError("--dataset is missing: a directory that `attn2mask build` made, or a name on the Hub")
    logger.info("Opening the rows of %s", dataset)
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
    rows = usual_columns(rows, f"--dataset {dataset}", reliability)
    table, decode = classes_of(dataset, features, rows.features["mask"])
    if reliability and "reliability" not in features:
        logger.info("--dataset %s has no reliability maps: all of its labels are trusted", dataset)
    first = list(islice(rows, CHECKED_ROWS))
    if not first:  # also for a stream, from which training would wait for rows
        raise UserError(f"--dataset {dataset} has no rows")
    masks = [
        read_mask(image_content(row["mask"], name, dataset), name, table, decode, at_most_large)
        for number, row in enumerate(first)
        for name in [f"row {row.get('sample_id') or number} of {dataset}: its mask"]
    ]
    if warning := binary_warning(set(np.unique(np.concatenate([mask.ravel() for mask in masks]))), table):
        logger.warning("--dataset %s: in the first %d rows, %s", dataset, len(first), warning)
    if num_rows is not None and streaming:
        rows = rows.take(num_rows)
    elif num_rows is not None:
        if num_rows > len(rows):
            raise UserError(f"--num-rows {num_rows}: --dataset {dataset} has only {len(rows)} rows")
        rows = rows.select(range(num_rows))
    return OpenedRows(dataset, rows, table, decode)


def open_datasets(config: TrainConfig, verify: bool) -> list[OpenedRows]:
    """The rows of all datasets of a training. `verify` is that of `open_rows`.

    Raises UserError as `open_rows`, and if the datasets have different classes or ignore values.
    """
    options = (config.streaming, config.reliability, config.num_rows, config.allow_incomplete, verify)
    first, *others = opened = [open_rows(dataset, *options) for dataset in config.dataset or [""]]
    for other in others:
        ours, theirs = first.table, other.table
        both = f"--dataset {first.dataset} and --dataset {other.dataset}"
        if ours.names != theirs.names:
            raise UserError(f"{both} have different classes: {difference(ours.names, theirs.names)}")
        if ours.ignore_index != theirs.ignore_index:
            values = f"{ours.ignore_index} and {theirs.ignore_index}"
            raise UserError(f"{both} have different ignore values: {values}")
    return opened


def number_of_rows(rows: "datasets.Dataset | datasets.IterableDataset") -> int:
    """The number of rows. A stream whose origin does not state it is read once, without its images."""
    from datasets import Dataset as MapDataset

    if isinstance(rows, MapDataset):
        return len(rows)
    return sum(1 for _ in rows.select_columns(rows.column_names[-1:]))  # sample_id, if there is one


def classes_of(dataset: str, features: dict, masks: "datasets.Image") -> tuple[ClassTable, Decoder]:
    """The class table of rows whose masks are a column of `masks`, and what returns the ids of their masks.
    The table is the one that a build recorded, or one with the names of the column `classes`, or one with
    those of `id2label.json`.
    """
    if (recorded := recorded_table(dataset)) is not None:
        return recorded, decoder_of(masks)
    names, first = names_in(features), 0
    if names is None:
        names, first = labels_beside(dataset) or (None, 0)
    if names is None:
        raise UserError(
            f"--dataset {dataset}: its rows have no column `classes` of List(ClassLabel) with the class names"
            f", and no {LABELS} with these names is beside them"
        )
    return bare_table(Path(dataset).name, names), reduced_ids if first else decoder_of(masks)


def loader(
    sources: Sequence[Source],
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
    seed = sources[0].crops.config.seed
    if isinstance(sources[0].rows, MapDataset):
        weights = [source.weight for source in sources]
        positions = Positions([len(source.rows) for source in sources], seed, share, weights)
        return _Loader(CroppedRows(sources), per_process, False, positions, num_workers=workers, **common)
    stream = CroppedStream(sources, seed, share)
    return _Loader(stream, per_process, num_workers=min(workers, 1), **common)


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
