"""Reads captions: from JSONL, plain text, COCO's captions JSON, or the text column of a dataset of the Hub.

Every large file of captions has a few broken lines. One warning counts and lists them, and the other lines
are used.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from attn2mask.builders.classes import SURROGATE
from attn2mask.builders.errors import UserError, first_line

_KEYS = ("caption", "text")
_SHOWN = 20  # the most broken lines that a warning lists
_FLICKR = re.compile(r"\A\S+#\d+\t")  # the image and the number of a caption in Flickr8k.token.txt


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
    path, kind = Path(source), Path(source).suffix.lower()
    if not path.exists() and not path.suffix and source.count("/") == 1 and all(source.split("/")):
        name, unit, records = source, "rows", _hub_rows(source)
    elif kind in (".jsonl", ".txt"):
        name, unit, records = path.name, "lines", _lines(path)
    elif kind == ".json":
        name, unit, records = path.name, "annotations", enumerate(_annotations(path), 1)
    else:
        raise UserError(
            f"captions {source!r}: give a .jsonl, .txt or COCO .json file, or owner/name of a Hub dataset"
        )
    records = list(records)
    found = [(number, _caption(record, f"{name}:{number}")) for number, record in records]
    captions = [caption for _, caption in found if caption is not None]
    broken = [number for number, caption in found if caption is None]
    refused = (record for (_, record), (_, caption) in zip(records, found, strict=True) if caption is None)
    reason = next((fault for record in refused if (fault := _fault(record))), "")
    if not captions:
        raise UserError(f"captions {source} hold no caption ({len(broken)} broken {unit}){reason}")
    if not broken:
        return captions, []
    shown = ", ".join(map(str, broken[:_SHOWN])) + (", ..." if len(broken) > _SHOWN else "")
    why = f" ({reason.removeprefix(': ')})" if reason else ""
    return captions, [f"captions {source}: skipped {len(broken)} broken {unit}: {shown}{why}"]


def _lines(path: Path) -> Iterator[tuple[int, Any]]:
    """The lines that are not blank, with their numbers from 1: objects of JSONL, or captions."""
    # Not splitlines(), which would also split at separators that stand inside a caption.
    for number, line in enumerate(re.split(r"\r\n|\r|\n", _read_text(path)), 1):
        if line.strip():
            is_json = path.suffix.lower() == ".jsonl"
            try:
                yield number, json.loads(line) if is_json else {"caption": _FLICKR.sub("", line, count=1)}
            except (ValueError, RecursionError):
                yield number, None


def _annotations(path: Path) -> list[Any]:
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
    return annotations


def _hub_rows(name: str) -> Iterator[tuple[int, Any]]:
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
        yield number, {column: text}


def _caption(row: Any, place: str) -> Caption | None:
    """The caption of a record, or None if it has none."""
    if not isinstance(row, dict):
        return None
    text = next((row[key] for key in _KEYS if key in row), None)
    if not isinstance(text, str) or not text.strip() or SURROGATE.search(text):
        return None
    own = row.get("id")
    has_id = isinstance(own, (int, str)) and not SURROGATE.search(str(own))
    return Caption(text, str(own) if has_id else place)


def _fault(row: Any) -> str:
    """What a record without a caption lacks, for a message; empty if it is no object."""
    if not isinstance(row, dict):
        return ""
    key = next((key for key in _KEYS if key in row), None)
    if key is not None:
        return f": the value of {key} is no text"
    return f": no key caption or text, but {', '.join([*row][:10]) or 'nothing'}"


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
