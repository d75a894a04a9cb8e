"""What `tests/survival.py` does at length, a few times each; and a build killed as it starts."""

import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import psutil
import pytest
from loopback_hub import LoopbackHub
from survival import CHECKS, VICTIMS, Stage, Tally, Victim, set_stage, torture

from attn2mask.builders.errors import UserError
from attn2mask.builders.shards import BuildDirectory, plan
from attn2mask.builders.workers import labeling_pool

ROWS, SHARD, KILLS = 30, 3, 10


def start(model: Path, captions: Path, out: Path) -> subprocess.Popen:
    options = ["--model", str(model), "--captions", str(captions), "--out", str(out), "--workers", "1"]
    options += ["--height", "64", "--width", "64", "--steps", "3", "--batch-size", "2", "--store-scores"]
    command = [sys.executable, "-m", "attn2mask", "build", "voc", "--num-images", str(ROWS), *options]
    # Without git: a commit in between would be seen in the records.
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "GIT_DIR": os.devnull}
    return subprocess.Popen(
        [*command, "--shard-size", str(SHARD)],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )


def rows_of(path: Path) -> list[dict]:
    return [row for shard in plan(ROWS, SHARD) for row in BuildDirectory(path).rows(shard)]


@pytest.mark.parametrize("kills", [3, pytest.param(KILLS, marks=pytest.mark.slow)])
def test_rows_survive_kills_bit_for_bit(tiny_model, tmp_path, kills):
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
    for kill in range(kills):
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
    assert killed >= kills // 2
    last = start(model, captions, tmp_path / "killed")
    assert last.wait() == 0, last.stderr.read()

    assert rows_of(tmp_path / "killed") == rows_of(tmp_path / "whole")
    for name in ("report.json", "README.md", "build.json"):
        assert (tmp_path / "killed" / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()
    assert list((tmp_path / "killed" / "data").glob(".*")) == []


def torn(size: int) -> None:
    """Die as a process does that is killed while it hands over its answer."""
    queue = sys._getframe(1).f_locals["result_queue"]
    os.write(queue._writer.fileno(), size.to_bytes(4, "big") + b"half of it")
    os.kill(os.getpid(), signal.SIGKILL)


def test_a_labeling_process_that_dies_in_the_middle_of_its_answer_is_noticed():
    with pytest.raises(UserError, match="a labeling process died"), labeling_pool(2) as pool:
        pool.submit(torn, 1000).result(60)


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Iterator[Stage]:
    with LoopbackHub() as hub, pytest.MonkeyPatch.context() as patch:
        stage = Stage(tmp_path_factory.mktemp("survival"), hub)
        for name, value in stage.environment.items():
            patch.setenv(name, value)
        set_stage(stage)
        yield stage


@pytest.mark.slow
@pytest.mark.parametrize("victim", VICTIMS, ids=lambda victim: victim.name)
def test_what_is_killed_ends_as_what_is_not(stage: Stage, victim: Victim):
    tally = Tally()
    torture(stage, victim, 3, tally, lambda: None)
    assert tally.kills == 3


@pytest.mark.slow
@pytest.mark.parametrize("check", CHECKS, ids=lambda check: check.__name__)
def test_what_machines_do_besides(stage: Stage, check: Callable[[Stage, random.Random], str]):
    check(stage, random.Random(0))
