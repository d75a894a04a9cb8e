"""Atomic writing, checksums and locks."""

import os
from pathlib import Path

import pytest
from filelock import Timeout

from attn2mask.builders.errors import UserError
from attn2mask.builders.files import digest, lock_of, refuse_pattern, replacing, write_file


def test_a_file_is_replaced_in_one_step(tmp_path):
    file = tmp_path / "file"
    write_file(file, b"old")
    with replacing(file) as stream:
        stream.write(b"new")
        assert file.read_bytes() == b"old"
    assert file.read_bytes() == b"new"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_file_stays_as_it_was_if_writing_fails(tmp_path, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(28, os.strerror(28))

    write_file(tmp_path / "file", b"old")
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        write_file(tmp_path / "file", b"new")
    assert [path.read_bytes() for path in tmp_path.iterdir()] == [b"old"]


def test_writing_needs_no_directories_that_can_be_opened(tmp_path, monkeypatch):
    """As on Windows, which has neither `os.O_DIRECTORY` nor `os.O_NOFOLLOW`."""
    for name in ("O_DIRECTORY", "O_NOFOLLOW"):
        monkeypatch.delattr(os, name, raising=False)
    write_file(tmp_path / "file", b"content")
    assert (tmp_path / "file").read_bytes() == b"content"


def test_a_lock_is_held_by_one(tmp_path):
    with lock_of(tmp_path / "lock"), pytest.raises(Timeout):
        lock_of(tmp_path / "lock").acquire(timeout=0)
    with lock_of(tmp_path / "lock").acquire(timeout=0):
        pass


def test_a_lock_does_not_follow_a_link(tmp_path):
    (tmp_path / "mine").write_text("mine")
    (tmp_path / "lock").symlink_to(tmp_path / "mine")
    with pytest.raises(UserError, match="lock is a symbolic link"):
        lock_of(tmp_path / "lock")
    assert (tmp_path / "mine").read_text() == "mine"


def test_a_digest_follows_names_and_content_and_not_hidden_files(tmp_path):
    (tmp_path / "a").write_text("1")
    first = digest(tmp_path)
    (tmp_path / ".hidden").write_text("2")
    assert digest(tmp_path) == first
    (tmp_path / "a").rename(tmp_path / "b")
    assert digest(tmp_path) != first


@pytest.mark.parametrize("path", ["data [v2]/voc", "a::b", "what?/voc", "every*", "~x/voc"])
def test_a_path_that_datasets_would_read_as_a_pattern_is_refused(path):
    with pytest.raises(UserError, match=r"--out .*: the library datasets reads .* as a pattern") as caught:
        refuse_pattern(Path(path), f"--out {path}")
    assert path in str(caught.value)
    refuse_pattern(Path("my data/voc (2)~"), "--out")


def test_a_digest_of_the_ends_of_files(tmp_path):
    """It is that of the first and last bytes and the size, wherever the folder lies."""
    folders = [tmp_path / name for name in ("a", "b")]
    contents = [b"0123456789", b"01xxxxxx89", b"01234567x9", b"0123456789 "]
    digests = []
    for folder, content in zip([*folders, *folders], contents, strict=True):
        folder.mkdir(exist_ok=True)
        (folder / "file").write_bytes(content)
        digests.append(digest(folder, ends=2))
    assert digests[0] == digests[1]
    assert len(set(digests)) == 3
    assert digest(folders[0], ends=100) != digest(folders[1], ends=100)
