"""Whole builds, compared with plain painting of the same images; more labeling processes; two processes."""

import contextlib
import io
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import torch
from bench.growth import SIDE, stub_build
from bench.recording import draw, pipe_options
from bench.timing import Row, compare, measure

from attn2mask.builders.build import BuildConfig, run
from attn2mask.builders.painter import load_painter
from attn2mask.builders.prompts import PromptSource, image_seed
from attn2mask.builders.synthesize import ATTEMPTS
from attn2mask.builders.table_reader import load_table

BATCH = 8
BUILD = Path(__file__).parents[2] / "builders" / "build.py"


def silently(config: BuildConfig) -> dict:
    """Build, and return the report."""
    with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
        run(config)
    return json.loads(Path(config.out, "report.json").read_text())


def painted(report: dict, rows: int) -> list[tuple[int, int]]:
    """(index, attempt) of all images of a build, in the order in which they were painted."""
    # The last attempt is kept even if the gate rejects it.
    last = {int(name[-8:]): min(len(why), ATTEMPTS - 1) for name, why in report["rejected"].items()}
    return [(i, attempt) for attempt in range(ATTEMPTS) for i in range(rows) if attempt <= last.get(i, 0)]


def hidden(model: str, quick: bool) -> Iterator[Row]:
    """A build with labels, PNG, Parquet and repeated attempts, compared with plain painting of the same
    images. Both load the painter and run it on one thread.
    """
    rows, pairs = (16, 1) if quick else (64, 6)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    reports = []

    def whole() -> None:
        with tempfile.TemporaryDirectory() as out:
            reports.append(silently(BuildConfig("voc", f"{out}/voc", rows, model=model, batch_size=BATCH)))

    def plain() -> None:
        painter = load_painter(model)
        source = PromptSource(load_table("voc"), None, painter.tokenizers, seed=0)
        images = painted(reports[0], rows)
        for start in range(0, len(images), BATCH):
            part = images[start : start + BATCH]
            texts = [source.prompt(*each).text for each in part]
            draw(
                painter.pipe, texts, [image_seed(0, *each) for each in part], **pipe_options(painter.defaults)
            )

    whole()
    yield measure(
        f"a build of {rows} rows / plain painting, one thread",
        whole,
        plain,
        pairs,
        goal="<= 1.10" if torch.cuda.is_available() else "<= 1.05",
        images=len(painted(reports[0], rows)),
    )
    torch.set_num_threads(threads)


def spread(quick: bool) -> Iterator[Row]:
    """Two labeling processes, compared with one, where the painter takes no time."""
    rows, pairs = (128, 1) if quick else (512, 3)

    def build(workers: int) -> None:
        with tempfile.TemporaryDirectory() as out:
            stub_build(Path(out), rows, workers=workers, side=2 * SIDE)

    def two() -> None:
        build(2)

    def one() -> None:
        build(1)

    one()
    row = measure("labels by two processes / by one, no painting", two, one, pairs)
    row.notes["line_ms"] = 1000 * row.seconds[1] / rows
    yield row


def processes(model: str, quick: bool) -> Iterator[Row]:
    """The time of a row with two painting processes, compared with one process, one thread each. Rows are
    counted after the first shard of each process, in which libraries are loaded. `whole` is the ratio of the
    times since build.json was written.
    """
    rows, shard, pairs = (64, 16, 1) if quick else (128, 16, 3)
    took: dict[int, list[float]] = {1: [], 2: []}
    whole: dict[int, list[float]] = {1: [], 2: []}
    sums: dict[int, str] = {}
    for pair in range(pairs):
        for count in (1, 2) if pair % 2 else (2, 1):
            with tempfile.TemporaryDirectory() as folder:
                out = Path(folder, "voc")
                launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", str(count)]
                options = ["voc", "--out", str(out), "--num-images", str(rows), "--model", model]
                options += ["--shard-size", str(shard), "--workers", "1"]
                subprocess.run(
                    [*launch, str(BUILD), *options],
                    check=True,
                    capture_output=True,
                    env={**os.environ, "OMP_NUM_THREADS": "1"},
                )
                manifests = sorted((out / "manifest").glob("*.json"))
                ended = (out / "report.json").stat().st_mtime
                started = max(file.stat().st_mtime for file in manifests[:count])
                took[count].append((ended - started) / (rows - count * shard))
                whole[count].append(ended - (out / "build.json").stat().st_mtime)
                sums[count] = " ".join(json.loads(file.read_text())["sha256"] for file in manifests)
            time.sleep(1)
    yield compare(
        f"a row of {rows} by two processes / by one",
        took[2],
        took[1],
        goal="<= 0.556",
        same_rows=sums[1] == sums[2],
        whole=float(np.median(np.divide(whole[2], whole[1]))),
    )
