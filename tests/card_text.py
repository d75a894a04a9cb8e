"""For tests of cards: pieces of a card's text, records with another value, and running a card's Python."""

import json
import os
import re
import shlex
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator, Sequence
from copy import deepcopy
from pathlib import Path

from attn2mask.builders.seals import sealed, unsealed

REPO = "someone/attn2mask-things"
ABORTED = "terminate called without an active exception"  # what a C++ library prints before it aborts


def block(name: str, text: str) -> str:
    """A generated block, as templates write it."""
    return f"<!-- generated: {name} -->\n{text.strip()}\n<!-- /generated: {name} -->\n"


def rows_of(text: str, *heads: str) -> set[str]:
    """The lines of a card's tables whose first column has one of these heads."""
    found = re.findall(r"^(\|.*\n\|[-:| ]+\n(?:\|.*\n?)*)", text, re.MULTILINE)
    tables = [table.splitlines() for table in found]
    return {line for head, _, *lines in tables if head.split("|")[1].strip() in heads for line in lines}


def blocks_of(text: str, language: str) -> list[str]:
    """The code blocks of a language."""
    return re.findall(rf"^```{language}\n(.*?)^```", text, re.MULTILINE | re.DOTALL)


def commands_of(text: str) -> list[list[str]]:
    """The words of each command in a card's console blocks."""
    lines = "".join(blocks_of(text, "console")).replace("\\\n", "")
    return [shlex.split(line.removeprefix("$ ")) for line in lines.splitlines()]


def links_of(text: str) -> set[str]:
    """Links to files of the repository, without those to figures."""
    return set(re.findall(r"(?<!!)\[[^\]]+\]\((?!https?:)([^)]+)\)", text))


def changed(folder: Path, tmp_path: Path, file: str, *keys_and_value: object) -> Path:
    """A copy of a folder whose record `file` holds another value under the keys. A seal is made again."""
    copy = tmp_path / folder.name
    shutil.copytree(folder, copy)
    *keys, value = keys_and_value
    content = (copy / file).read_bytes()
    record = unsealed(content)
    new = with_value(json.loads(content) if record is None else record, keys, value)
    (copy / file).write_bytes(json.dumps(new).encode() if record is None else sealed(new))
    return copy


def with_value(record: dict, keys: Sequence, value: object) -> dict:
    """A copy of a record that holds the value under the keys."""
    copy = deepcopy(record)
    part = copy
    for key in keys[:-1]:
        part = part[key]
    part[keys[-1]] = value
    return copy


def leaves(value: object, keys: tuple = ()) -> Iterator[tuple[tuple, object]]:
    """(keys, value) of every value in a record that holds no further values."""
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    if not inner:
        yield keys, value
    for key, part in inner:
        yield from leaves(part, (*keys, key))


def other(value: object) -> object:
    """Another value of the same kind."""
    if isinstance(value, bool):
        return not value
    return value + 2 if isinstance(value, int | float) else f"{value or ''}x"


def run_python(code: str, tmp_path: Path) -> str:
    """Run the code in a new process, with empty caches and without the Hub. Returns what it printed."""
    environment = os.environ | {
        "HF_HOME": str(tmp_path / "home"),
        "HF_HUB_OFFLINE": "1",
        "OMP_NUM_THREADS": "1",
    }
    script = tmp_path / "script.py"
    script.write_text(code)
    for _ in range(3):
        done = subprocess.run(
            [sys.executable, str(script)], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        # pyarrow rarely aborts a finished program that read a part of a stream (apache/arrow#45214).
        if done.returncode != -signal.SIGABRT or ABORTED not in done.stderr:
            break
    assert done.returncode == 0, f"{code}\n{done.stderr[-3000:]}"
    return done.stdout
