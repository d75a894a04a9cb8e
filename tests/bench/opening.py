"""Opening the rows of a build with its checks, compared with `load_dataset`, which checks nothing."""

import tempfile
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import numpy as np
from bench.timing import Row, measure
from datasets import load_dataset
from datasets.utils import disable_progress_bars

from attn2mask.builders.drawn.rows import exact_row
from attn2mask.builders.row_reader import load_rows
from attn2mask.builders.sample import features
from attn2mask.builders.shards import BuildDirectory
from attn2mask.builders.table_reader import load_table


def opening(quick: bool) -> Iterator[Row]:
    """10,000 small rows in shards of 64."""
    count, pairs = (1_000, 5) if quick else (10_000, 40)
    disable_progress_bars()
    with tempfile.TemporaryDirectory() as folder:
        write_build(BuildDirectory(Path(folder)), count)
        plain = partial(load_dataset, folder, split="train")
        for what, verify in (("without the hashes", False), ("with the hashes", True)):
            opened = partial(load_rows, folder, verify=verify)
            opened(), plain()
            goal = "" if verify else "<= 1.02"
            yield measure(f"opening {count:,} rows {what} / load_dataset", opened, plain, pairs, goal=goal)


def write_build(directory: BuildDirectory, count: int) -> None:
    """Write a build of equal rows, whose image is 32 x 32 pixels."""
    table, mask = load_table("voc"), np.full((32, 32), 8, np.uint8)
    row = exact_row("", np.zeros((32, 32, 3), np.uint8), mask)
    identity = {"shard_size": 64}
    record = {"num_images": count, "identity": identity, "versions": {}, "table": table.facts()}
    directory.claim(record, {}, rank=0)
    for shard in directory.shards:
        rows = [row | {"sample_id": f"voc-0-{index:08d}"} for index in shard.rows]
        directory.write_shard(shard, features(table), rows, {})
