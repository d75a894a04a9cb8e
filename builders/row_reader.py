"""Opens rows for training, adaptation and evaluation. Those of a build must be as they were written."""

import logging
from pathlib import Path
from typing import Any

from tqdm import tqdm

from attn2mask.builders.errors import UserError
from attn2mask.builders.options import option
from attn2mask.builders.shards import BuildDirectory, Shard

logger = logging.getLogger(__name__)


def incomplete_option(group: str) -> Any:
    """The option that allows builds of which shards are missing."""
    return option("use the rows of a build that is not complete", False, group)


def no_verify_option(group: str) -> Any:
    """The option that leaves out the check of the hashes of shards and of weights."""
    return option("do not compare shards and weights with the hashes in their records", False, group)


def is_build(path: str | Path) -> bool:
    """Whether a path is a directory that `attn2mask build` made."""
    return (Path(path) / "build.json").is_file()


def load_rows(
    source: str,
    split: str = "train",
    streaming: bool = False,
    allow_incomplete: bool = False,
    verify: bool = True,
) -> Any:
    """The rows of a directory or of a dataset of the Hub, as `datasets.load_dataset` gives them.

    Raises UserError for a build whose shards are not whole (see `whole_shards`), and the errors that
    `load_dataset` raises.
    """
    from datasets import load_dataset

    if not is_build(source):
        return load_dataset(source, split=split, streaming=streaming)
    directory = BuildDirectory(Path(source))
    shards = whole_shards(directory, allow_incomplete, verify)
    if len(shards) == len(directory.shards):
        return load_dataset(source, split=split, streaming=streaming)
    files = {"train": [str(directory.shard_file(shard).absolute()) for shard in shards]}
    return load_dataset("parquet", data_files=files, split=split, streaming=streaming)


def whole_shards(
    directory: BuildDirectory, allow_incomplete: bool = False, verify: bool = True
) -> list[Shard]:
    """The shards of a build that are there as they were written: by their manifests and sizes, and with
    `verify` also by their hashes.

    Raises UserError if one is missing or damaged, unless `allow_incomplete`, and if none is whole. A warning
    counts the rows if some are left out.
    """
    shards, whole = directory.shards, []
    first = ""
    for shard in tqdm(shards, "verifying the shards", unit="shard", disable=not verify, leave=False):
        state = directory.state(shard, verify)
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
