"""Records of artefacts: what their JSON files hold, and the check of a file that somebody may have changed.

    record = read_record(folder / "report.json", ReportRecord)

A `TypedDict` names the values of a record that are read, with their types. A record is checked once, where it
is read; keys that no type names may hold anything. `training/records.py` has the records of trainings.
"""

import json
from pathlib import Path
from types import NoneType, UnionType
from typing import Any, Required, TypedDict, get_args, get_origin, get_type_hints, is_typeddict

from attn2mask.builders.classes import SURROGATE
from attn2mask.builders.errors import UserError, first_line

MOST_BYTES = 2**28  # of a record: report.json of a million rows has some 10 MB
LARGEST_NUMBER = 2**63
OPTION_FILES = ("build.yaml", "remask.yaml", "filter.yaml")  # the options of the commands that made a build
Text = str | list[str] | None
_NAMES = {
    str: "valid text",
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    NoneType: "null",
}


class Captions(TypedDict, total=False):
    """Where the captions of a build come from."""

    read: int
    selected: int | None


class Identity(TypedDict, total=False):
    """What the rows of a build depend on, beside the rules."""

    table: Required[str]
    model: Required[str]
    captions: Required[str]
    store_scores: Required[bool]
    shard_size: int
    model_version: str | None
    lora: str
    scheduler: dict[str, Any]
    layers: list[str]
    score_model: str
    score_model_version: str
    min_presence: float
    filter: dict[str, Any]


class LabelFacts(TypedDict, total=False):
    """A class of a table."""

    name: Required[str]
    base: Required[list[str]]
    aliases: Required[list[str]]
    color: Required[list[int]]
    synonyms: list[str]
    ambiguous: list[str]


class TableFacts(TypedDict, total=False):
    """A class table."""

    name: Required[str]
    classes: Required[list[LabelFacts]]
    background: Required[str | None]
    ignore: int | None


class BuildRecord(TypedDict, total=False):
    """build.json."""

    num_images: Required[int]
    commands: list[str]
    identity: Required[Identity]
    table: Required[TableFacts]
    captions: Captions
    license: Text
    lora_license: Text
    versions: dict[str, Any]


class FilterRecord(TypedDict, total=False):
    """A run of `attn2mask filter`; `dropped` holds the names of rows by reasons."""

    rows: Required[int]
    kept: Required[int]
    dropped: Required[dict[str, list[str]]]


class ReportRecord(TypedDict, total=False):
    """report.json of a build; `rejected`, `dropped` and `untrusted` hold reasons by the names of rows."""

    rows_with_foreground: Required[int]
    foreground: Required[float]
    rejected_attempts: Required[int]
    rejected: Required[dict[str, list[str]]]
    dropped: Required[dict[str, list[str]]]
    untrusted: dict[str, list[str]]
    filters: list[FilterRecord]
    made_under: list[dict[str, Any]]
    shards: list[dict[str, Any]]


def read_record(path: Path, kind: Any = dict[str, Any]) -> Any:
    """The JSON file `path` as a record of a `kind`; empty if there is no such file.

    Raises UserError if it cannot be read, or is not such a record.
    """
    try:
        if path.stat().st_size > MOST_BYTES:
            raise UserError(f"{path} is larger than {MOST_BYTES:,} bytes, which no record is")
        text = path.read_bytes().decode()
    except (FileNotFoundError, NotADirectoryError):
        return {}
    except (OSError, ValueError) as error:
        reason = getattr(error, "strerror", None) or first_line(error)
        raise UserError(f"{path} cannot be read: {reason}") from error
    return parse_record(text, kind, str(path))


def parse_record(text: str, kind: Any, where: str) -> Any:
    """The JSON `text` as a record of a `kind`. Raises UserError, which names `where`, if it is none."""
    try:
        value = json.loads(text, parse_constant=_refuse_constant)
        str(value)  # as deep as Python prints
    except (ValueError, RecursionError) as error:
        raise UserError(f"{where} cannot be read: {first_line(error)}") from error
    return checked(value, kind, where)


def checked(value: Any, kind: Any, where: str) -> Any:
    """`value`, if it is of a `kind`. Raises UserError, which names `where`, if it is not.

    A kind is a type of JSON, `Any`, a TypedDict, or a list, a dict or a union of kinds. Text must be valid
    Unicode, and numbers must be finite and below 2^63.
    """
    if fault := _fault(value, kind, ""):
        raise UserError(f"{where} is damaged, {fault}: restore it from a copy, or make it again")
    return value


def _fault(value: Any, kind: Any, key: str) -> str | None:
    """What is wrong with the value of `key`; None if it is of the kind."""
    name, origin, inner = key or "it", get_origin(kind), get_args(kind)
    if origin is UnionType:
        faults = [_fault(value, choice, key) for choice in inner]
        # Of several faults, the one inside the value says most.
        return None if None in faults else max(faults, key=lambda fault: not fault.startswith(f"{name} is"))
    if is_typeddict(kind) or origin is dict:
        if not isinstance(value, dict):
            return f"{name} is not a mapping of names to values"
        if missing := sorted(getattr(kind, "__required_keys__", frozenset()) - value.keys()):
            return f"{name} has no {missing[0]}"
        kinds = get_type_hints(kind) if is_typeddict(kind) else dict.fromkeys(value, inner[1])
        parts = [(value[k], kinds[k], f"{key}.{k}".lstrip(".")) for k in kinds if k in value]
        return next(filter(None, (_fault(*part) for part in parts)), None)
    if origin is list:
        if not isinstance(value, list):
            return f"{name} is not a list"
        parts = [(part, inner[0], f"{key}[{k}]") for k, part in enumerate(value)]
        return next(filter(None, (_fault(*part) for part in parts)), None)
    return None if kind is Any or _is_a(value, kind) else f"{name} is not {_NAMES[kind]}"


def _is_a(value: Any, kind: type) -> bool:
    if kind is str:
        return isinstance(value, str) and not SURROGATE.search(value)
    if kind in (int, float) and not isinstance(value, bool):
        return isinstance(value, int if kind is int else int | float) and abs(value) < LARGEST_NUMBER
    return isinstance(value, kind)


def _refuse_constant(name: str) -> None:
    raise ValueError(f"{name} is no number of JSON")
