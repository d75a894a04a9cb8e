"""Ctrl-C at any moment: one line, exit status 130, and no process that lives on.

A signal at a random moment may come before the first line of this package is run. That part of the start is
Python's own, so the clock of a test starts when the process has imported the entry point.
"""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest
from places import ROOT

from attn2mask.hub.cli import main

# Says on its standard output when Ctrl-C is handled, and then runs the command as `attn2mask` does.
START = """
import os, sys
from attn2mask.builders import interrupts

catch = interrupts.catch_interrupts

def caught():
    catch()
    os.write(1, b"caught\\n")

interrupts.catch_interrupts = caught
from attn2mask.__main__ import main
sys.exit(main(sys.argv[1:]))
"""
ENVIRONMENT = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
BUILD = "build voc --num-images 16 --shard-size 4 --steps 4 --batch-size 4 --workers 4 --out built"
TRAIN = (
    "train --resume --dataset rows --max-steps 100000 --batch-size 4 --crop-size 32 --workers 2"
    " --output-dir run --backbone backbone --checkpoint-every 100"
)
LINES = {
    "build": "attn2mask: interrupted; run the same command again to resume",
    "train": "attn2mask: interrupted; run the same command again with --resume",
    "draw": "attn2mask: interrupted; run the same command again to resume",
}


def interrupted(folder: Path, command: list[str], seconds: float, group: bool) -> tuple[int, str, bool]:
    """The exit status and the messages of a command that gets SIGINT after `seconds`; and whether it had
    ended before. As from a terminal, the signal goes to the whole `group`, or else to the first process.
    """
    with open(folder / "messages", "w+") as messages:
        process = subprocess.Popen(
            command,
            cwd=folder,
            env=ENVIRONMENT,
            stdout=subprocess.PIPE,
            stderr=messages,
            start_new_session=True,
        )
        while process.stdout.readline() not in (b"caught\n", b""):
            pass
        time.sleep(seconds)
        ended = process.poll() is not None
        if not ended:
            (os.killpg if group else os.kill)(process.pid, signal.SIGINT)
        process.stdout.read()
        status = process.wait(60)
        deadline = time.monotonic() + 10
        while left := [p for p in psutil.process_iter() if session_of(p) == process.pid]:
            assert time.monotonic() < deadline, f"{left} live on"
            time.sleep(0.05)
        messages.seek(0)
        return status, messages.read(), ended


def session_of(process: psutil.Process) -> int | None:
    try:
        return os.getsid(process.pid)
    except OSError:
        return None


def check(folder: Path, words: str, seconds: float, group: bool) -> bool:
    """Check one interrupt of `attn2mask WORDS`. Returns whether the command had ended before."""
    command = [sys.executable, "-c", START, *words.split()]
    status, messages, ended = interrupted(folder, command, seconds, group)
    if ended or status == 0:  # what the last moments of a process ignore
        assert status == 0, messages
        return True
    where = f"{words.split()[0]} after {seconds:.2f} s: status {status}, {messages}"
    assert status == 130, where
    assert "Traceback" not in messages, where
    assert "KeyboardInterrupt" not in messages, where
    assert "resource_tracker" not in messages, where
    lines = [line for line in messages.splitlines() if line.startswith("attn2mask: interrupted")]
    assert lines in ([LINES[words.split()[0]]], ["attn2mask: interrupted"]), where
    return False


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """A folder with drawn `rows` and a tiny `backbone`."""
    from transformers import ResNetBackbone, ResNetConfig

    path = tmp_path_factory.mktemp("interrupts")
    assert main(["draw", "objects", "--num-images", "8", "--size", "64", "--out", str(path / "rows")]) == 0
    sizes = {"embedding_size": 4, "hidden_sizes": [4, 8, 8, 8], "depths": [1, 1, 1, 1]}
    ResNetBackbone(ResNetConfig(**sizes, layer_type="basic")).save_pretrained(path / "backbone")
    return path


@pytest.mark.parametrize(
    ("words", "seconds", "group"),
    [
        (BUILD, 0.0, True),
        (BUILD, 0.15, False),
        (BUILD, 0.6, True),
        ("draw objects --num-images 9999 --out drawn", 1.5, True),
        (TRAIN, 3.0, True),
        pytest.param(f"{TRAIN} --num-processes 2", 10.0, True, marks=pytest.mark.slow),
    ],
)
def test_an_interrupt_is_one_line_and_status_130(folder, words, seconds, group):
    assert not check(folder, words, seconds, group)


@pytest.mark.slow
@pytest.mark.parametrize("group", [True, False])
@pytest.mark.parametrize("words", [BUILD, TRAIN], ids=["build", "train"])
def test_an_interrupt_at_every_moment(folder, words, group):
    """Through imports, the start of the processes, and the work."""
    for moment in range(40):
        check(folder, words, 0.37 * moment, group)


TURNED = """
import os, signal, sys
from attn2mask.builders.interrupts import catch_interrupts

catch_interrupts()
from attn2mask.builders.command import run_command
from attn2mask.builders.drawn.rows import DrawConfig

def load(config):
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except BaseException as error:
        raise OSError("the model cannot be loaded: KeyboardInterrupt") from error

sys.exit(run_command(DrawConfig, load, ["objects"], "draw", ""))
"""


def test_an_interrupt_that_a_library_turns_into_an_error_is_an_interrupt():
    found = subprocess.run(
        [sys.executable, "-c", TURNED], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert (found.returncode, found.stdout, found.stderr) == (130, "", LINES["draw"] + "\n")


ABORTING = """
import atexit, os, signal, sys
from attn2mask.__main__ import main
from attn2mask.hub import cli

class Thread:
    def __del__(self):
        os.abort()  # as a thread of a library does that still runs when Python is taken down

kept = Thread()

def interrupted(argv):
    atexit.register(print, "registered")
    try:
        os.kill(os.getpid(), signal.SIGINT)
    except KeyboardInterrupt:
        return 130

cli.main = interrupted
sys.exit(main([]))
"""


def test_a_thread_of_a_library_does_not_abort_the_end():
    found = subprocess.run(
        [sys.executable, "-c", ABORTING], env=ENVIRONMENT, capture_output=True, text=True, timeout=60
    )
    assert (found.returncode, found.stdout, found.stderr) == (130, "registered\n", "")


@pytest.mark.parametrize("script", ["builders/build.py", "training/train.py", "training/adapt.py"])
def test_a_script_handles_interrupts_before_its_other_imports(script):
    """Its first statements start the command line, so that nothing else of it is run."""
    code = (
        "import runpy, sys\nimport attn2mask.__main__ as entry\n"
        'entry.main = lambda argv: sys.exit(f\'{argv} {sorted({*["json", "yaml"]} & set(sys.modules))}\')\n'
        f"runpy.run_path({str(ROOT / script)!r}, run_name='__main__')"
    )
    run = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, env=ENVIRONMENT)
    assert run.stderr == f"['{Path(script).stem}'] []\n"


def test_the_entry_point_imports_little_before_it_handles_interrupts(tmp_path):
    """The other imports of a command take seconds."""
    code = (
        "import sys\nfrom attn2mask.builders import interrupts\n"
        "stop = lambda: sys.exit(bool({'yaml', 'logging', 'importlib.metadata'} & set(sys.modules)))\n"
        "interrupts.catch_interrupts = stop\nfrom attn2mask.__main__ import main\nmain([])"
    )
    (tmp_path / "attn2mask").symlink_to(ROOT)  # without `site`, an editable installation is not found
    environment = {**ENVIRONMENT, "PYTHONPATH": os.pathsep.join([str(tmp_path), *sys.path])}
    assert subprocess.run([sys.executable, "-S", "-c", code], env=environment).returncode == 0
