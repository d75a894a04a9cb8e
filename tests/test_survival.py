"""Kill -9 at ten random moments: what is resumed equals what was never interrupted, and nothing lives on."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil

from attn2mask.builders.shards import BuildDirectory, plan

ROWS, SHARD, KILLS = 30, 3, 10


def start(model: Path, captions: Path, out: Path) -> subprocess.Popen:
    options = ["--model", str(model), "--captions", str(captions), "--out", str(out), "--workers", "1"]
    options += ["--height", "64", "--width", "64", "--steps", "3", "--batch-size", "2", "--store-scores"]
    command = [sys.executable, "-m", "attn2mask.hub.cli", "build", "voc", "--num-images", str(ROWS), *options]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.Popen(
        [*command, "--shard-size", str(SHARD)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows_of(path: Path) -> list[dict]:
    return [row for shard in plan(ROWS, SHARD) for row in BuildDirectory(path).rows(shard)]


def test_rows_survive_ten_kills_bit_for_bit(tiny_model, tmp_path):
    captions = tmp_path / "captions.txt"
    captions.write_text("a photo of a dog\na red bus on the street\nthe cat and the dog\n")
    model = tiny_model("sd15")

    began = time.monotonic()
    whole = start(model, captions, tmp_path / "whole")
    while not (tmp_path / "whole" / "build.json").exists():
        assert whole.poll() is None, whole.stderr.read()
        time.sleep(0.02)
    ready = time.monotonic() - began
    assert whole.wait() == 0, whole.stderr.read()
    total = time.monotonic() - began

    rng = random.Random(0)
    killed = 0
    for kill in range(KILLS):
        process = start(model, captions, tmp_path / "killed")
        # Two anywhere while it starts; the others while it works, each within a fifth of all work.
        wait = rng.uniform(0, ready) if kill < 2 else ready + rng.uniform(0, (total - ready) / 5)
        try:
            process.wait(wait)
        except subprocess.TimeoutExpired:
            children = psutil.Process(process.pid).children(recursive=True)
            process.send_signal(signal.SIGKILL)
            process.wait()
            killed += 1
            _, alive = psutil.wait_procs(children, timeout=20)
            assert alive == []
    assert killed >= KILLS // 2
    last = start(model, captions, tmp_path / "killed")
    assert last.wait() == 0, last.stderr.read()

    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
    for name in ("report.json", "README.md", "build.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert list((tmp_path / "killed" / "data").glob(".*")) == []
