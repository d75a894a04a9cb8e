"""What a command writes to the terminal."""

import os
import subprocess
import sys

import pytest

from attn2mask.builders.errors import printable
from attn2mask.hub.cli import main

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
    assert main(["draw", "objects", "--out", str(folder), "--num-images", "1"]) == 2
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
