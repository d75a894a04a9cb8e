"""A full disk: commands that write files leave each of them whole or not at all.

The disk is full at the n-th file: at the first two, and in the slow tests at every one. At the end no file
fails, and as many files were written in one step as there are: so no file is written in another way.
"""

import errno
import itertools
import os
import stat
from collections.abc import Callable, Iterable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image
from segmenters import Segmenter, examples, processor

from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cli import main

LEFT_BY_DESIGN = (".lock", ".held-by", ".finish")


@pytest.fixture(scope="module")
def photos(tmp_path_factory) -> Path:
    """A folder with images/ and masks/ in VOC's classes."""
    folder = tmp_path_factory.mktemp("photos")
    for kind in ("images", "masks"):
        (folder / kind).mkdir()
    for example in examples(3, classes=4):
        Image.fromarray(example.image).save(folder / "images" / f"{example.name}.png")
        Image.fromarray(example.target.astype(np.uint8)).save(folder / "masks" / f"{example.name}.png")
    return folder


@pytest.fixture
def checkpoint(monkeypatch) -> None:
    """What `evaluate --checkpoint run` loads."""
    loaded = SimpleNamespace(
        network=Segmenter(0),
        peer=None,
        processor=processor(),
        table_name="voc",
        names=load_table("voc").names,
        record={},
    )
    monkeypatch.setattr("attn2mask.training.measured.load_checkpoint", lambda *_, **__: loaded)


@pytest.fixture
def disk(monkeypatch) -> Callable[[int], list[int]]:
    """`disk(n)`: the disk is full at the n-th file that is synced. Returns a list that counts the files."""
    ordinary = os.fsync

    def fill(last: int) -> list[int]:
        synced: list[int] = []

        def fsync(descriptor: int) -> None:
            if not stat.S_ISDIR(os.fstat(descriptor).st_mode):
                synced.append(descriptor)
                if len(synced) == last:
                    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            ordinary(descriptor)

        monkeypatch.setattr(os, "fsync", fsync)
        return synced

    return fill


@pytest.fixture(params=["first", pytest.param("every", marks=pytest.mark.slow)])
def moments(request) -> Iterable[int]:
    """The files at which the disk is full, until the command succeeds."""
    return (1, 2, 0) if request.param == "first" else itertools.count(1)


def files(folder: Path) -> list[Path]:
    found = (path for path in folder.rglob("*") if path.is_file())
    return sorted(path for path in found if not path.name.startswith(LEFT_BY_DESIGN))


def check(
    out: Path,
    disk: Callable[[int], list[int]],
    moments: Iterable[int],
    capsys,
    command: list[str],
    advice: str,
    removed: int = 0,
) -> None:
    """Run a command that writes into `out`, on a disk that is full at each of `moments` (0: never).
    `removed` files are written and removed again, or hold the name of a lock's owner.
    """
    for last in moments:
        synced = disk(last)
        status = main(command)
        left = files(out)
        assert not [file for file in left if file.stat().st_size == 0]
        assert not [file for file in left if file.name.endswith(".tmp")]
        if status == 0:
            assert len(synced) == len(left) + removed
            return
        error = capsys.readouterr().err.splitlines()[-1]
        assert error == f"attn2mask: error: writing: No space left on device; free some space, and {advice}"
        out.mkdir(exist_ok=True)


def test_evaluate(photos, checkpoint, disk, moments, capsys, tmp_path):
    """It continues with what it counted, as the advice says."""
    out = tmp_path / "out"
    command = [
        "evaluate",
        "--checkpoint",
        "run",
        "--dataset",
        str(photos),
        "--out",
        str(out / "metrics.json"),
    ]
    out.mkdir()
    check(out, disk, moments, capsys, command, "run the same command again to resume", removed=1)
    assert "Continuing: 3 of 3 images are done" in capsys.readouterr().err


def test_draw(disk, moments, capsys, tmp_path):
    out = tmp_path / "out"
    command = ["draw", "objects", "--num-images", "1", "--size", "32", "--out", str(out)]
    check(out, disk, moments, capsys, command, "run the same command again to resume", removed=1)


def test_a_dry_run(disk, moments, capsys, tmp_path):
    out = tmp_path / "out"
    command = ["build", "voc", "--dry-run", "--num-images", "4", "--out", str(out / "counts.json")]
    check(out, disk, moments, capsys, command, "run the same command again to resume")


def test_compare(photos, checkpoint, disk, moments, capsys, tmp_path):
    out, metrics = tmp_path / "out", tmp_path / "metrics.json"
    out.mkdir()
    assert main(["evaluate", "--checkpoint", "run", "--dataset", str(photos), "--out", str(metrics)]) == 0
    capsys.readouterr()
    check(
        out,
        disk,
        moments,
        capsys,
        ["compare", str(metrics), "--out", str(out / "table.md")],
        "run the command again",
    )


@pytest.mark.slow
def test_evaluate_rules(photos, disk, moments, capsys, tmp_path):
    out = tmp_path / "out"
    command = ["evaluate-rules", "--dataset", str(photos), "--num-images", "1", "--presets", "photo"]
    check(out, disk, moments, capsys, [*command, "--out", str(out / "rules.json")], "run the command again")
