"""Seals: SHA-256 of records and of the weights beside them, compared wherever they are read.

The record of a checkpoint or of a LoRA, `training_config.json`, holds the SHA-256 of each file of weights as
`weights`, and its own as `seal`. Folders without such a record are not compared.
"""

import hashlib
import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from attn2mask.builders.errors import UserError
from attn2mask.builders.files import sha256_of, write_file

RECORD = "training_config.json"
SEAL, WEIGHTS = "seal", "weights"
_ADVICE = "restore it from a copy, or run the command that made it with --resume"


def seal_of(record: Mapping[str, Any]) -> str:
    """SHA-256 of a record of JSON values, in the order of its keys, without its own seal."""
    values = {name: value for name, value in record.items() if name != SEAL}
    return hashlib.sha256(json.dumps(values).encode()).hexdigest()


def with_seal(record: Mapping[str, Any]) -> dict[str, Any]:
    """The record with its seal as its last value."""
    values = {name: value for name, value in record.items() if name != SEAL}
    return values | {SEAL: seal_of(values)}


def sealed(record: Mapping[str, Any]) -> bytes:
    """The JSON file of a record with its seal, by which `unsealed` notices a change."""
    return f"{json.dumps(with_seal(record), indent=2)}\n".encode()


def unsealed(content: bytes) -> dict[str, Any] | None:
    """The record in a file that `sealed` made; None for another file, and if a value has changed."""
    try:
        record = json.loads(content)
        return record if record.pop(SEAL) == seal_of(record) else None
    except (AttributeError, LookupError, RecursionError, TypeError, ValueError):
        return None


def write_sealed(file: Path, record: Mapping[str, Any]) -> None:
    """Write a record with its seal, in one step."""
    write_file(file, sealed(record))


def read_sealed(file: Path, advice: str) -> dict[str, Any]:
    """A record that `write_sealed` wrote. Raises UserError with the `advice` if it differs from that."""
    try:
        record = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict) or record.get(SEAL) != seal_of(record):
        raise UserError(f"{file} is not as it was written: {advice}")
    return record


def with_weights(record: dict[str, Any], folder: Path, names: Iterable[str]) -> dict[str, Any]:
    """The record with the SHA-256 of files of weights, by their names in `folder`, sealed."""
    return with_seal(record | {WEIGHTS: {name: sha256_of(folder / name) for name in names}})


def check_weights(folder: Path) -> None:
    """Raises UserError if the record in a folder, or a file of weights that it names, is not as it was
    written. A folder without a record, or with one without checksums, passes.
    """
    file = folder / RECORD
    if not file.is_file():
        return
    try:
        record = json.loads(file.read_bytes())
    except (ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise UserError(f"{file} is damaged: {_ADVICE}")
    if SEAL in record and record[SEAL] != seal_of(record):
        raise UserError(
            f"{file} is not as it was written: {_ADVICE}; if you changed it, delete {SEAL!r} in it"
        )
    weights = record.get(WEIGHTS)
    for name, checksum in (weights if isinstance(weights, dict) else {}).items():
        if not (folder / name).is_file() or sha256_of(folder / name) != checksum:
            raise UserError(
                f"{folder / name} is missing, or is not as it was written: {_ADVICE}; if you"
                f" changed it, delete {WEIGHTS!r} and {SEAL!r} in {file}"
            )
