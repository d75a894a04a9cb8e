"""What a command writes to the terminal."""

import errno
import os
import subprocess
import sys

import numpy as np
import pytest
import torch

from attn2mask.builders.build import BuildConfig
from attn2mask.builders.errors import UserError, printable
from attn2mask.hub.cli import main
from attn2mask.training.config import TrainConfig
from attn2mask.training.evaluate_config import EvaluateConfig

RESET = "\x1bc\x07"


@pytest.mark.parametrize("text", ["plain", "a\tb\n", "Ä € 狗 कुत्ता ‌‍", "😀"])
def test_ordinary_text_stays(text):
    assert printable(text) == text


@pytest.mark.parametrize("mark", ["\x00", "\x07", "\x08", "\r", "\x1b", "\x7f", "\x9b", "\u202e", "\u2066"])
def test_what_controls_a_terminal_is_replaced(mark):
    assert printable(f"a{mark}b") == "a\ufffdb"


def test_names_control_no_terminal(tmp_path, capsys):
    """Neither in messages, nor in results."""
    folder = tmp_path / f"na{RESET}me"
    assert main(["draw", "objects", "--out", str(folder), "--num-images", "1"]) == 0
    assert main(["draw", "objects", "--out", str(folder), "--num-images", "1", "--seed", "5"]) == 2
    written = capsys.readouterr()
    for text in written:
        assert "na\ufffdc\ufffdme" in text
        assert "\x1b" not in text
        assert "\x07" not in text


@pytest.mark.parametrize("name", ["строка", "狗\udcff"])
def test_a_terminal_without_the_characters_of_a_name(tmp_path, name):
    """What cannot be written there is written as its number, and the work is not lost."""
    folder = os.fsencode(str(tmp_path)) + b"/" + os.fsencode(name)
    environment = {**os.environ, "PYTHONIOENCODING": "ascii", "PYTHONUTF8": "1"}
    command = [sys.executable, "-m", "attn2mask", "draw", "objects", "--num-images", "1", "--out", folder]
    run = subprocess.run(command, capture_output=True, env=environment)
    if b"\xff" in folder:  # no text: refused with one line
        assert run.returncode == 2
        assert b"which is no text" in run.stderr
    else:
        assert run.returncode == 0, run.stderr
        assert b"\\u0441\\u0442" in run.stdout
    assert b"Traceback" not in run.stderr


def no_memory(kind: str) -> Exception:
    """An error of too little memory as it comes from a library, also inside the error of a reader."""
    try:
        if kind == "numpy":
            np.empty(1 << 60, np.uint8)
        elif kind == "torch":
            torch.empty(1 << 60, dtype=torch.uint8)
    except Exception as error:
        return error
    if kind == "image":
        error = UserError("a.jpg cannot be read: it is not an image, or it is broken")
        error.__cause__ = MemoryError()
        return error
    return {
        "pillow": MemoryError(),
        "C++": RuntimeError("std::bad_alloc"),
        "import": ImportError("libarrow.so: failed to map segment from shared object"),
        "system": OSError(errno.ENOMEM, os.strerror(errno.ENOMEM), "weights"),
        "thread": RuntimeError("can't start new thread"),
        "loader": RuntimeError(
            "Caught RuntimeError in DataLoader worker process 0.\nDefaultCPUAllocator: can't"
            " allocate memory: you tried to allocate 9 bytes"
        ),
    }[kind]


KINDS = ["numpy", "torch", "image", "pillow", "C++", "import", "system", "thread", "loader"]


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize(
    ("command", "advice"),
    [
        (["show", "data"], "end other programs, or use smaller images"),
        (["evaluate", "--checkpoint", "x", "--dataset", "y"], EvaluateConfig.SAVES_MEMORY),
        (["train", "--dataset", "x"], TrainConfig.SAVES_MEMORY),
        (["build", "voc"], BuildConfig.SAVES_MEMORY),
    ],
)
def test_too_little_memory_is_one_line_with_advice(monkeypatch, capsys, kind, command, advice):
    def fail(config: object) -> None:
        raise no_memory(kind)

    module = {"show": "builders.show", "evaluate": "training.evaluate_command", "train": "training.train"}
    place = f"attn2mask.{module.get(command[0], 'builders.build')}"
    monkeypatch.setattr(f"{place}.{'train' if command[0] == 'train' else 'run'}", fail)
    assert main(command) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error == f"attn2mask: error: there is too little memory: {advice}"


def test_advice_to_paint_smaller_batches_says_what_they_change():
    assert "--batch-size may differ in the last bit" in BuildConfig.SAVES_MEMORY


def test_faults_of_this_package_are_not_hidden(monkeypatch):
    """Only the errors that a user can correct are one line."""

    def fail(config: object) -> None:
        raise RuntimeError("an impossible state")

    monkeypatch.setattr("attn2mask.builders.show.run", fail)
    with pytest.raises(RuntimeError, match="an impossible state"):
        main(["show", "data"])
