"""Records that somebody changed: each command reads them, or refuses them in one line.

Every run tries a few changes. The slow run tries many.
"""

import io
import json
import random
import shutil
from collections.abc import Callable, Iterator
from contextlib import redirect_stderr, redirect_stdout, suppress
from itertools import chain
from pathlib import Path
from typing import Any

import pytest
from card_text import with_value

from attn2mask.builders.errors import UserError
from attn2mask.hub.cli import main
from attn2mask.hub.preview.card import card_of, card_parts
from attn2mask.hub.preview.page import make_app

FEW, MANY = 2, 150  # changes of values of a file that every run tries, and the slow run
REMOVED = object()
DEEP = json.loads("[" * 200 + "]" * 200)
VALUES = [
    REMOVED,
    None,
    True,
    "x",
    "\ud800",
    -1,
    10**40,
    1.5,
    float("nan"),
    float("inf"),
    [],
    {},
    [[1]],
    DEEP,
]
WHOLE = [b"", b"[]", b"null", b"1", b'"x"', b"{}", b"{", b"\xff\xfe", b"[" * 100_000, b"9" * 5_000]


def places(value: Any, keys: tuple = ()) -> Iterator[tuple]:
    """The keys of the values in a record, of those that hold further values, too; of a list, of its first."""
    inner = (
        value.items() if isinstance(value, dict) else enumerate(value[:1]) if isinstance(value, list) else ()
    )
    for key, part in inner:
        yield (*keys, key)
        yield from places(part, (*keys, key))


def changed(record: dict, keys: tuple, value: object) -> bytes:
    """A record with another value under the keys, or without it."""
    copy = with_value(record, keys, None if value is REMOVED else value)
    if value is REMOVED:
        part = copy
        for key in keys[:-1]:
            part = part[key]
        del part[keys[-1]]
    return json.dumps(copy).encode()


def command(*argv: str) -> str:
    """Run a command, which ends with 0, or with 2 and one line that is returned."""
    out, err = io.StringIO(), io.StringIO()
    with redirect_stdout(out), redirect_stderr(err):
        status = main(argv)
    errors = [line for line in err.getvalue().splitlines() if line.startswith("attn2mask: error: ")]
    assert (status, len(errors)) in ((0, 0), (2, 1)), err.getvalue()
    assert status == 0 or err.getvalue().splitlines()[-1] == errors[0]
    return "".join(errors)


def preview(folder: Path) -> None:
    """Make the page of a folder and its card, as the command does before it serves them."""
    with suppress(UserError):  # whose message is always one line
        make_app(folder)
        card_parts(card_of(folder, "me/it"))


@pytest.fixture
def check(tmp_path, request) -> Callable:
    """`check(folder, name, *calls)`: each of the calls bears each change of the file `name` of the folder."""

    def run(folder: Path, name: str, *calls: Callable[[Path], object]) -> None:
        record, chance = json.loads((folder / name).read_bytes()), random.Random(name)
        changes = [(keys, value) for keys in places(record) for value in VALUES]
        is_few = request.node.callspec.params["how"] == "few"
        changes = chance.sample(changes, min(FEW if is_few else MANY, len(changes)))
        wholes = chance.sample(WHOLE, FEW) if is_few else WHOLE
        contents = chain(wholes, (changed(record, *change) for change in changes))
        copy, failures = shutil.copytree(folder, tmp_path / "copy"), []
        for change, content in zip([*wholes, *changes], contents, strict=True):
            (copy / name).write_bytes(content)
            for call in calls:
                try:
                    call(copy)
                except Exception as error:  # all failures are listed
                    failures.append(f"{change!s:.80}: {type(error).__name__}: {error!s:.2000}")
        assert failures == [], "\n".join([f"{len(failures)} of {len(wholes) + len(changes)}", *failures])

    return run


both = pytest.mark.parametrize("how", ["few", pytest.param("many", marks=pytest.mark.slow)])


def publish_dataset(folder: Path) -> str:
    return command("publish", "dataset", str(folder), "me/it", "--dry-run")


def publish_model(folder: Path) -> str:
    return command("publish", "model", str(folder), "me/it", "--dry-run")


@both
@pytest.mark.parametrize("name", ["build.json", "report.json"])
def test_records_of_a_build(check, voc, no_figures, how, name):
    check(voc, name, publish_dataset, preview)


@both
@pytest.mark.parametrize("name", ["config.json", "preprocessor_config.json", "peer/config.json"])
def test_records_of_a_network(check, run, voc, no_figures, tmp_path, how, name):
    out = str(tmp_path / "metrics.json")

    def evaluate(folder: Path) -> None:
        options = ("--num-images", "1", "--out", out)
        command("evaluate", "--checkpoint", str(folder), "--dataset", str(voc), *options)

    check(run, name, publish_model, preview, evaluate)


@both
@pytest.mark.parametrize("name", ["training_config.json", "metrics.json"])
def test_records_of_a_training(check, run, how, name):
    check(run, name, publish_model, preview)


@both
def test_the_record_of_a_lora(check, adapter, how):
    check(adapter, "training_config.json", publish_model, preview)


@both
def test_pefts_record_of_a_lora(check, adapter, how):
    (adapter / "training_config.json").unlink()
    record = {"base_model_name_or_path": "owner/painter", "r": 4, "lora_alpha": 4, "auto_mapping": None}
    (adapter / "adapter_config.json").write_text(json.dumps(record))
    check(adapter, "adapter_config.json", publish_model, preview)
