"""Builds of 100 to 10,000 rows by a painter that takes no time: what grows with the number of rows.

python -m bench.growth 1000 OUT      # one build, in its own process; prints its measurements
"""

import contextlib
import io
import json
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import torch
from bench.timing import Row, compare
from PIL import Image

from attn2mask.builders import build, painter
from attn2mask.builders.families import UNET
from attn2mask.builders.painter import Painting
from attn2mask.builders.prompts import Prompt
from attn2mask.builders.stretches import stretches_of

SIDE = 64
ROUND = 64  # more rows that a finished build is asked for


class StubPainter:
    """Colored fields with a blot for each class, and maps that show these blots. The images are functions
    of their seeds, and pass the gate.
    """

    instance_prompt = None
    family, device, pixel_multiple = UNET, "cpu", 8

    def __init__(self, side: int = SIDE) -> None:
        from transformers import AutoTokenizer

        scheduler = SimpleNamespace(config=SimpleNamespace(num_train_timesteps=1000))
        self.pipe = SimpleNamespace(
            dtype=torch.float32, vae_scale_factor=8, device="cpu", scheduler=scheduler
        )
        self.defaults = Painting(20, 3.0, side, side)
        self.facts = {"model": "stub", "model_version": f"{side}", "pipeline": "", "scheduler": {}}
        self.stretches = stretches_of([AutoTokenizer.from_pretrained(painter.EMBEDDED / "tokenizer")])
        self.began: float | None = None

    def check(self, steps: int, height: int, width: int) -> None:
        """All sizes can be made."""

    def latent_side(self, height: int, width: int) -> int:
        """See `Painter.latent_side`."""
        return min(height, width) // self.pipe.vae_scale_factor

    def paint(self, prompts: Sequence[Prompt], seeds: Sequence[int], painting: Painting) -> tuple:
        """See `Painter.paint`."""
        height, width = painting.height, painting.width
        self.began = self.began or time.perf_counter()
        images, maps = [], []
        for prompt, seed in zip(prompts, seeds, strict=True):
            rng = np.random.default_rng(seed)
            y, x = np.mgrid[0 : height // 8, 0 : width // 8] / (height // 8)
            angle = rng.uniform(0, 2 * np.pi)
            image = np.full((*y.shape, 3), rng.integers(40, 90, 3), float)
            of_word = {}
            for k, word in enumerate(prompt.words):
                turn = angle + 2 * np.pi * k / len(prompt.words)
                center = 0.5 + 0.28 * np.cos(turn), 0.5 + 0.28 * np.sin(turn)
                blot = np.exp(-((y - center[0]) ** 2 + (x - center[1]) ** 2) / 0.02)
                image += blot[..., None] * rng.integers(60, 160, 3)
                of_word[word] = {y.shape: torch.from_numpy(0.5 * blot).float()}
            field = Image.fromarray(image.clip(0, 255).astype(np.uint8)).resize((width, height))
            noise = rng.integers(0, 16, (height, width, 1), np.uint8)
            images.append(np.asarray(field) // 17 * 16 + noise)
            maps.append(of_word)
        return np.stack(images).astype(np.uint8), maps, [None] * len(prompts)


def stub_build(out: Path, rows: int, workers: int | None = None, side: int = SIDE) -> StubPainter:
    """A build by the stub, without output."""
    stub, load = StubPainter(side), painter.load_painter
    painter.load_painter = lambda *_, **__: stub
    try:
        with contextlib.redirect_stdout(io.StringIO()), contextlib.redirect_stderr(io.StringIO()):
            build.run(build.BuildConfig("voc", str(out), rows, workers=workers))
    finally:
        painter.load_painter = load
    return stub


def peak_memory() -> int:
    """The peak memory of this process in bytes. getrusage would include that of the parent process."""
    (line,) = (line for line in Path("/proc/self/status").read_text().splitlines() if line[:6] == "VmHWM:")
    return int(line.split()[1]) * 1024


def measured(rows: int, out: Path) -> dict[str, float]:
    """Seconds and peak memory (bytes) of a build of `rows` in this process; seconds until a run that asks for
    a few more rows begins to paint; seconds to load the dataset; rows and bytes of a row group.
    """
    from datasets import load_dataset
    from pyarrow.parquet import ParquetFile

    stub_build(out / "warm", 8)  # imports, and the first start of processes
    started = time.perf_counter()
    stub_build(out / "rows", rows)
    seconds = time.perf_counter() - started
    memory = peak_memory()
    started = time.perf_counter()
    resumed = stub_build(out / "rows", rows + ROUND).began - started
    started = time.perf_counter()
    found = load_dataset(str(out / "rows"), split="train", cache_dir=str(out / "cache"))
    loading = time.perf_counter() - started
    assert len(found) == rows + ROUND
    group = ParquetFile(out / "rows" / "data" / "train-00000.parquet").metadata.row_group(0)
    return {
        "seconds": seconds,
        "memory": memory,
        "resumed": resumed,
        "loading": loading,
        "rows_a_group": group.num_rows,
        "bytes_a_group": group.total_byte_size,
    }


def growth(quick: bool) -> Iterator[Row]:
    """Time of a row and memory of the largest build, compared with the middle one; the time of a resume."""
    sizes = (30, 100, 300) if quick else (100, 1_000, 10_000)
    found = []
    for rows in sizes:
        with tempfile.TemporaryDirectory() as out:
            command = [sys.executable, "-m", "bench.growth", str(rows), out]
            answer = subprocess.run(command, check=True, capture_output=True, text=True)
        found.append(json.loads(answer.stdout.splitlines()[-1]))
    each = [(found[k + 1]["seconds"] - found[k]["seconds"]) / (sizes[k + 1] - sizes[k]) for k in range(2)]
    small, middle, large = sizes
    yield compare(
        f"a row of {middle:,} to {large:,} / of {small:,} to {middle:,}",
        each[1:],
        each[:1],
        "constant",
        memory=found[2]["memory"] / found[1]["memory"],
        megabytes=found[2]["memory"] / 1e6,
        rows_a_group=found[2]["rows_a_group"],
        kilobytes_a_group=found[2]["bytes_a_group"] / 1e3,
        seconds_to_load=found[2]["loading"],
    )
    yield compare(f"resuming {large:,} rows / 2 s", [found[2]["resumed"]], [2.0], "<= 1")


if __name__ == "__main__":
    print(json.dumps(measured(int(sys.argv[1]), Path(sys.argv[2]))))
