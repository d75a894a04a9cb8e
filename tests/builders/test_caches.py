"""Caches of Hugging Face that cannot be used are named, in every error that the libraries make of it."""

import errno
import os

import datasets
import pytest

from attn2mask.builders.caches import cache_fault
from attn2mask.builders.errors import UserError
from attn2mask.hub.cli import main


@pytest.fixture
def cache(tmp_path, monkeypatch):
    """A folder for the cache of rows, which does not exist."""
    folder = tmp_path / "home" / "datasets"
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", folder)
    return folder


def chained(cause: OSError) -> UserError:
    try:
        try:
            raise cause
        except OSError:
            raise ValueError("generating the dataset failed")  # noqa: B904 (as libraries do)
    except ValueError as error:
        made = UserError("no rows")
        made.__cause__ = error
        return made


@pytest.mark.parametrize("number", [errno.EACCES, errno.EROFS, errno.ENOTDIR, errno.EEXIST, errno.ENOSPC])
@pytest.mark.parametrize("inside", ["", "parquet/a.lock", ".."])
def test_an_error_in_a_cache_names_it_and_its_variable(cache, number, inside):
    message = cache_fault(chained(OSError(number, "", str(cache / inside))))
    assert f"the cache {cache} of rows and models cannot be used: {os.strerror(number)}" in message
    assert "set HF_DATASETS_CACHE" in message
    assert ("free some space" in message) == (number == errno.ENOSPC)


def test_other_errors_are_not_those_of_a_cache(cache, tmp_path):
    assert cache_fault(chained(OSError(errno.EACCES, "", str(tmp_path / "data" / "x.parquet")))) is None
    assert cache_fault(chained(OSError(errno.ENOENT, "", str(cache / "a")))) is None
    assert cache_fault(chained(OSError(errno.EACCES, "", str(tmp_path)))) is None  # above it, and there
    assert cache_fault(OSError(errno.ENOSPC, "")) is None  # an output is written, nothing is loaded
    assert cache_fault(UserError("no rows")) is None


def raised_in(module: str) -> OSError:
    """A full disk without a name, as a function of a module meets it."""
    names = {"__name__": module, "error": OSError(errno.ENOSPC, "")}
    exec("def write():\n    raise error", names)
    try:
        names["write"]()
    except OSError as error:
        return error


def test_a_full_disk_without_a_name_is_that_of_a_cache_if_rows_or_models_are_loaded(cache):
    for module in ("datasets.builder", "huggingface_hub.file_download"):
        assert f"the cache {cache} " in cache_fault(chained(raised_in(module)))
    for module in ("datasets.arrow_writer", "attn2mask.builders.shards"):  # an output is written
        assert cache_fault(chained(raised_in(module))) is None


@pytest.mark.parametrize("command", ["train", "evaluate", "adapt"])
def test_commands_that_load_rows_name_it(cache, tmp_path, capsys, command):
    """The folder of the cache is a file."""
    rows, out = str(tmp_path / "rows"), str(tmp_path / "out")
    assert main(["draw", "objects", "--num-images", "2", "--size", "64", "--out", rows]) == 0
    options = {
        "train": ["--dataset", rows, "--output-dir", out, "--max-steps", "1"],
        "evaluate": ["--method", "attention", "--dataset", rows, "--out", f"{out}.json"],
        "adapt": ["--data", rows, "--output-dir", out, "--max-steps", "1"],
    }
    cache.parent.write_text("a file")
    assert main([command, *options[command]]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith(
        f"attn2mask: error: the cache {cache} of rows and models cannot be used: Not a dir"
    )
