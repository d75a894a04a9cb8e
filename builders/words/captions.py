"""Reads captions: from JSONL, plain text, COCO's captions JSON, or the text column of a dataset of the Hub.

Every large file of captions has a few broken lines. One warning counts and lists them, and the other lines
are used. It is an error only if the file cannot be read in its format, or if it holds no caption.
"""

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attn2mask.builders.classes import SURROGATE
from attn2mask.builders.errors import UserError, first_line

_KEYS = ("caption", "text")
_SHOWN = 20  # the most broken lines that a warning lists


@dataclass(frozen=True)
class Caption:
    """A caption, verbatim, and its id in the source ("301804"), or else its file and line ("file.txt:12")."""

    text: str
    source: str


def read_captions(source: str) -> tuple[list[Caption], list[str]]:
    """Read all captions of a source, in its order. Returns them with a list of warnings, one line each.

    `source` is a file that ends in .jsonl (objects with `caption` or `text`), .txt (one caption per line) or
    .json (COCO's captions, `{"annotations": [{"id", "caption"}]}`), or "owner/name" of a dataset of the Hub
    with a column `caption` or `text`. Raises UserError if it cannot be read or holds no caption.
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
        raise UserError(f"captions {source} hold no caption ({len(broken)} broken {unit})")
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
        annotations = json.loads(_read_text(path))["annotations"]
    except (ValueError, RecursionError) as error:
        where = f"line {error.lineno}, {error.msg}" if isinstance(error, json.JSONDecodeError) else error
        raise UserError(f"captions {path} is not valid JSON: {where}") from error
    except (KeyError, TypeError):
        annotations = None
    if not isinstance(annotations, list):
        raise UserError(
            f"captions {path}: COCO's captions JSON has a list named annotations, but this file has none"
        )
    for number, row in enumerate(annotations, 1):
        yield number, _caption(row, f"{path.name}:{number}")


def _hub_rows(name: str) -> Iterator[tuple[int, Caption | None]]:
    from datasets import load_dataset

    try:
        splits = load_dataset(name)
    except Exception as error:  # the Hub's clients raise errors of several libraries
        raise UserError(
            f"captions {name!r} is not a file, and cannot be read as a Hub dataset: {first_line(error)}"
        ) from error
    split = splits["train"] if "train" in splits else next(iter(splits.values()))
    column = next((key for key in _KEYS if key in split.column_names), None)
    if column is None:
        raise UserError(f"captions {name} has no column caption or text, but {', '.join(split.column_names)}")
    for number, text in enumerate(split[column]):
        yield number, _caption({column: text}, f"{name}:{number}")


def _caption(row: Any, place: str) -> Caption | None:
    """The caption of one JSON object, or None if it has none."""
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
    """The lines that are not blank, with their numbers from 1."""
    lines = _read_text(path).replace("\r\n", "\n").split("\n")
    return ((number, line) for number, line in enumerate(lines, 1) if line.strip())


def _read_text(path: Path) -> str:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise UserError(f"captions {path} cannot be read: {error.strerror}") from error
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content[: error.start].count(b"\n") + 1
        raise UserError(f"captions {path}: line {line} is not UTF-8: save the file as UTF-8") from error
