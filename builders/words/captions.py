"""Captions from a file or the Hub: JSONL, plain text, COCO's captions JSON, or a Hub dataset's text column.

A corpus of captions always has a few bad lines. They are counted and named in one warning, and the rest is
used; only a file that can't be read as what it claims to be, or holds no caption at all, is an error.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attn2mask.builders.classes import SURROGATE
from attn2mask.builders.errors import UserError

_KEYS = ("caption", "text")
_SHOWN = 20  # numbers of broken lines that a warning lists


@dataclass(frozen=True)
class Caption:
    """A caption, verbatim, and where it is from: its id in the source ("301804") or file and line
    ("file.txt:12").
    """

    text: str
    source: str


def read_captions(source: str) -> tuple[list[Caption], list[str]]:
    """Reads all captions of a source, in its order; returns them with warnings, one line each.

    `source` is a file ending in .jsonl (objects with a `caption` or `text`), .txt (a caption a line) or .json
    (COCO's captions, `{"annotations": [{"id", "caption"}]}`), or else "owner/name" of a Hub dataset with such
    a column. Raises UserError when it can't be read or holds no caption.
    """
    path = Path(source)
    if not path.exists() and not path.suffix and source.count("/") == 1 and all(source.split("/")):
        records, unit = _hub_rows(source), "rows"
    elif path.suffix == ".jsonl":
        records, unit = _jsonl(path), "lines"
    elif path.suffix == ".txt":
        records, unit = _text(path), "lines"
    elif path.suffix == ".json":
        records, unit = _coco(path), "annotations"
    else:
        raise UserError(
            f"captions {source!r}: give a .jsonl, .txt or COCO .json file, or owner/name of a Hub dataset"
        )
    captions, broken = [], []
    for number, caption in records:
        if caption is None:
            broken.append(number)
        else:
            captions.append(caption)
    if not captions:
        raise UserError(f"captions {source}: no caption in it ({len(broken)} broken {unit})")
    warnings = []
    if broken:
        shown = ", ".join(map(str, broken[:_SHOWN])) + (", ..." if len(broken) > _SHOWN else "")
        warnings.append(f"captions {source}: skipped {len(broken)} broken {unit}: {shown}")
    return captions, warnings


def _text(path: Path) -> Iterator[tuple[int, Caption | None]]:
    for number, line in _lines(path):
        yield number, Caption(line, f"{path.name}:{number}")


def _jsonl(path: Path) -> Iterator[tuple[int, Caption | None]]:
    for number, line in _lines(path):
        try:
            row = json.loads(line)
        except (ValueError, RecursionError):
            row = None
        yield number, _caption(row, f"{path.name}:{number}")


def _coco(path: Path) -> Iterator[tuple[int, Caption | None]]:
    try:
        annotations = json.loads(_read(path))["annotations"]
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}, {error.msg}" if isinstance(error, json.JSONDecodeError) else error
        raise UserError(f"captions {path} is no valid JSON: {where}") from error
    except (KeyError, TypeError):
        annotations = None
    if not isinstance(annotations, list):
        raise UserError(
            f"captions {path}: COCO's captions JSON holds a list named annotations, this file does not"
        )
    for number, row in enumerate(annotations, 1):
        yield number, _caption(row, f"{path.name}:{number}")


def _hub_rows(name: str) -> Iterator[tuple[int, Caption | None]]:
    from datasets import load_dataset

    try:
        splits = load_dataset(name)
    except Exception as error:  # the Hub's clients raise errors of several libraries
        reason = (str(error) or type(error).__name__).splitlines()[0]
        raise UserError(
            f"captions {name!r} is no file, and as a Hub dataset it can't be read: {reason}"
        ) from error
    split = splits["train"] if "train" in splits else next(iter(splits.values()))
    column = next((key for key in _KEYS if key in split.column_names), None)
    if column is None:
        raise UserError(
            f"captions {name}: no column named caption or text, but {', '.join(split.column_names)}"
        )
    for number, text in enumerate(split[column]):
        yield number, _caption({column: text}, f"{name}:{number}")


def _caption(row: Any, place: str) -> Caption | None:
    """The caption of one JSON object, or None where it has none."""
    if not isinstance(row, dict):
        return None
    text = next((row[key] for key in _KEYS if key in row), None)
    if not isinstance(text, str) or not text.strip() or SURROGATE.search(text):
        return None
    own = row.get("id")
    return Caption(
        text, str(own) if isinstance(own, (int, str)) and not SURROGATE.search(str(own)) else place
    )


def _lines(path: Path) -> Iterable[tuple[int, str]]:
    """Lines that are not blank, with their numbers from 1."""
    lines = _read(path).replace("\r\n", "\n").split("\n")
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _read(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"captions {path} can't be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"captions {path}: line {line} is not UTF-8 text; save the file as UTF-8") from error
