"""Opens rows for training, adaptation and evaluation. All that were written must be there, unchanged."""

import hashlib
import logging
from collections.abc import Iterable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

from pyarrow.parquet import read_metadata

from attn2mask.builders.errors import UserError
from attn2mask.builders.options import option
from attn2mask.builders.provenance import text_beside
from attn2mask.builders.shards import DRAWN_RECORD, RECORD, BuildDirectory, Shard

logger = logging.getLogger(__name__)


def incomplete_option(group: str) -> Any:
    """The option that allows datasets of which rows are missing."""
    return option("use the rows of a dataset that is not complete", False, group)


def no_verify_option(group: str) -> Any:
    """The option that leaves out the check of the hashes of shards and of weights."""
    return option("do not compare shards and weights with the hashes in their records", False, group)


def is_build(path: str | Path) -> bool:
    """Whether a path is a directory that `attn2mask build` made."""
    return (Path(path) / RECORD).is_file()


def directory_of(path: str | Path) -> BuildDirectory | None:
    """The directory of a build or of drawn rows; None for any other path."""
    names = (name for name in (RECORD, DRAWN_RECORD) if (Path(path) / name).is_file())
    return next((BuildDirectory(Path(path), name) for name in names), None)


def load_rows(
    source: str,
    split: str = "train",
    streaming: bool = False,
    allow_incomplete: bool = False,
    verify: bool = True,
) -> Any:
    """The rows of a directory or of a dataset of the Hub, as `datasets.load_dataset` gives them.

    Raises UserError for builds and drawn rows whose shards are not whole (see `whole_shards`), for other
    datasets of which rows are missing (see `check_count`), and the errors that `load_dataset` raises.
    """
    from datasets import load_dataset, load_dataset_builder

    if (directory := directory_of(source)) is not None:
        shards = whole_shards(directory, allow_incomplete, verify)
        files = {"train": [str(directory.shard_file(shard).absolute()) for shard in shards]}
        return load_dataset("parquet", data_files=files, split=split, streaming=streaming)
    if not streaming:
        # Not with the checks of `datasets`: `check_count` says more, and checks rows in the cache, too.
        rows = load_dataset(source, split=split, cache_dir=cache_of(source), verification_mode="no_checks")
        check_count(source, rows.config_name, split, len(rows), allow_incomplete)
        return rows
    builder = load_dataset_builder(source)
    files = (builder.config.data_files or {}).get(split, [])
    if files and all(file.endswith(".parquet") for file in files):
        check_count(source, builder.config.name, split, rows_in_files(files), allow_incomplete)
    return builder.as_streaming_dataset(split)


def cache_of(source: str) -> str | None:
    """The cache of the rows of a folder as it is now; None, which stands for the usual one, for a dataset of
    the Hub.

    In its usual cache, the library datasets knows a folder with a README.md by its last name and the content
    of that file alone. So the rows could be those of another folder, or of an earlier state.
    """
    if not (folder := Path(source).resolve()).is_dir():
        return None
    from datasets import config

    total = hashlib.sha256(str(folder).encode())
    for file in sorted(folder.rglob("*")):
        if file.is_file():
            facts = file.stat()
            total.update(f"{file} {facts.st_size} {facts.st_mtime_ns}\n".encode())
    return str(Path(config.HF_DATASETS_CACHE) / f"folder-{total.hexdigest()[:32]}")


def check_count(source: str, config: str, split: str, there: int, allow_incomplete: bool = False) -> None:
    """Compare the number of rows that are there with the one that the dataset's README.md states.

    Raises UserError if rows are missing; with `allow_incomplete`, this is a warning.
    """
    stated = stated_rows(source, config, split)
    if stated is None or there >= stated:
        return
    counts = (
        f"{source} is not complete: its split {split} has {there} rows, but its README.md states {stated}"
    )
    if not allow_incomplete:
        raise UserError(
            f"{counts}: complete it, or give --allow-incomplete to use the {there} rows that are there"
        )
    logger.warning("%s; using %d of %d rows", counts, there, stated)


def stated_rows(source: str, config: str, split: str) -> int | None:
    """The number of rows of a split by `dataset_info` in the README.md of a folder or of a dataset of the
    Hub; None if it states none, or cannot be read.
    """
    from datasets.info import DatasetInfosDict
    from huggingface_hub import DatasetCard

    try:
        card = DatasetCard(
            text_beside(source, "README.md", kind="dataset") or "", ignore_metadata_errors=True
        )
        splits = DatasetInfosDict.from_dataset_card_data(card.data)[config].splits
        return int(splits[split].num_examples)
    except (AttributeError, LookupError, TypeError, ValueError):
        return None


def rows_in_files(files: Iterable[str]) -> int:
    """The number of rows of Parquet files, on this machine or on the Hub, by their metadata alone."""
    import fsspec

    def count(file: str) -> int:
        with fsspec.open(file) as stream:
            return read_metadata(stream).num_rows

    with ThreadPoolExecutor(8) as pool:
        return sum(pool.map(count, files))


def whole_shards(
    directory: BuildDirectory, allow_incomplete: bool = False, verify: bool = True
) -> list[Shard]:
    """The shards of a build that are there as they were written: by their manifests and sizes, and with
    `verify` also by their hashes and their metadata (see `BuildDirectory.states`).

    Raises UserError if one is missing or damaged, unless `allow_incomplete`, if none is whole, and if a
    record or a shard belongs to another build. A warning counts the rows if some are left out.
    """
    shards, whole = directory.shards, []
    first = ""
    if verify:
        directory.report()
    for shard, state in directory.states(shards, verify):
        if state == "made":
            whole.append(shard)
        else:
            first = first or f"{directory.shard_file(shard)} is {state}"
    if len(whole) == len(shards):
        return whole
    counts = f"{directory.path} is not complete: {len(whole)} of {len(shards)} shards are whole, and {first}"
    rows = rows_in(whole)
    if not allow_incomplete or not whole:
        further = f", or give --allow-incomplete to use the {rows} rows that are there" if whole else ""
        raise UserError(f"{counts}: run the command that made it again{further}")
    logger.warning("%s; using %d of %d rows", counts, rows, rows_in(shards))
    return whole


def rows_in(shards: list[Shard]) -> int:
    """The number of rows in shards."""
    return sum(len(shard.rows) for shard in shards)
