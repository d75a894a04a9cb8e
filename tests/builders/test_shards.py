"""Shards, checksums, the record and the lock."""

import errno
import os
import subprocess
import sys
import threading
import time

import pytest
from datasets import Features, Value, load_dataset

from attn2mask.builders import locks, shards
from attn2mask.builders.errors import UserError
from attn2mask.builders.shards import BuildDirectory, Shard, plan

FEATURES = Features({"sample_id": Value("string")})
VERSIONS = {"versions": {"torch": "1"}, "git_commit": None}


def rows(shard: Shard) -> list[dict]:
    return [{"sample_id": f"{index}"} for index in shard.rows]


def record(num_images: int = 5, **identity) -> dict:
    return {"num_images": num_images, "identity": {"seed": 0, "shard_size": 2, **identity}, **VERSIONS}


@pytest.fixture
def directory(tmp_path):
    """A directory without a record."""
    with BuildDirectory(tmp_path / "build").locked(0, "test"):
        yield BuildDirectory(tmp_path / "build")


@pytest.fixture
def claimed(directory):
    directory.claim(record(), {}, rank=0)
    return directory


def test_plan_covers_every_row_once():
    assert [list(shard.rows) for shard in plan(5, 2)] == [[0, 1], [2, 3], [4]]
    assert [shard.number for shard in plan(5, 2)] == [0, 1, 2]


def test_a_shard_is_made_once_written_and_loads(claimed):
    parts = plan(5, 2)
    assert claimed.missing(parts) == parts
    assert claimed.manifests(parts) is None
    for shard in parts:
        claimed.write_shard(shard, FEATURES, rows(shard), {"note": shard.number})
    assert claimed.missing(parts) == []
    assert [manifest["note"] for manifest in claimed.manifests(parts)] == [0, 1, 2]
    assert load_dataset(str(claimed.path), split="train")["sample_id"][:] == list("01234")
    assert [row["sample_id"] for row in claimed.rows(parts[1])] == ["2", "3"]


def test_a_damaged_shard_is_said_removed_and_made_again(claimed, caplog):
    (shard,) = plan(2, 2)
    claimed.write_shard(shard, FEATURES, rows(shard), {})
    (claimed.path / "README.md").write_text("complete")
    content = bytearray(claimed.shard_file(shard).read_bytes())
    content[len(content) // 2] ^= 1
    claimed.shard_file(shard).write_bytes(content)
    assert claimed.missing([shard]) == [shard]
    assert "train-00000.parquet is damaged" in caplog.text
    assert not claimed.shard_file(shard).exists()
    assert not (claimed.path / "README.md").exists()


def test_a_shard_without_its_file_is_missing(claimed):
    (shard,) = plan(2, 2)
    claimed.write_shard(shard, FEATURES, rows(shard), {})
    claimed.shard_file(shard).unlink()
    assert claimed.state(shard) == "missing"
    assert claimed.missing([shard]) == [shard]
    assert claimed.manifest(shard) is None


def test_a_last_shard_that_grows_is_made_again(claimed):
    (small,), (large,) = plan(1, 2), plan(2, 2)
    claimed.write_shard(small, FEATURES, rows(small), {})
    assert claimed.state(small) == "made"
    assert claimed.state(large) == "missing"
    assert claimed.manifests([large]) is None


def test_a_full_disk_leaves_nothing_of_the_shard(claimed, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (shard,) = plan(2, 2)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        claimed.write_shard(shard, FEATURES, rows(shard), {})
    assert list((claimed.path / "data").iterdir()) == []
    assert claimed.state(shard) == "missing"


def test_claim_names_the_values_that_differ(directory):
    directory.claim(record(), {}, rank=0)
    directory.claim(record(), {}, rank=0)
    with pytest.raises(UserError, match=r"seed \(there 0, now 1\)"):
        directory.claim(record(seed=1), {}, rank=0)
    with pytest.raises(UserError, match=r"beta \(there None, now 0\.2\)"):
        directory.check_identity({"beta": 0.2})
    directory.claim(record(9), {}, rank=0)
    with pytest.raises(UserError, match="--num-images 9, which can only grow, but it is 5 now"):
        directory.claim(record(5), {}, rank=0)
    assert directory.record()["num_images"] == 9


def test_claim_warns_of_other_versions(directory, caplog):
    directory.claim(record(), {}, rank=0)
    directory.claim({**record(), "versions": {"torch": "2"}}, {}, rank=0)
    assert "was started with torch 1; resuming with torch 2" in caplog.text


def test_other_processes_wait_for_the_record(directory, monkeypatch):
    waiting = threading.Thread(target=directory.claim, args=(record(), {}, 1))
    waiting.start()
    time.sleep(0.2)
    assert waiting.is_alive()
    directory.claim(record(), {}, rank=0)
    waiting.join(10)
    assert not waiting.is_alive()
    monkeypatch.setattr(shards, "START", 0)
    with pytest.raises(UserError, match="process 0 of this build did not start"):
        directory.claim(record(seed=1), {}, rank=1)


def test_a_process_of_other_conditions_is_told_so_or_refused(directory, caplog):
    """A second process compares with how the first one began, before any row is there."""
    one, two = ({**record(), "begun_under": {"threads": number}} for number in (1, 2))
    directory.claim(one, {}, rank=0)
    directory.claim(one, {}, rank=1, exact=True)
    assert "last bit" not in caplog.text
    directory.claim(two, {}, rank=1)
    assert "the build was begun with threads 1 (now 2)" in caplog.text
    with pytest.raises(UserError, match=r"begun with threads 1 \(now 2\).*--exact refuses"):
        directory.claim(two, {}, rank=1, exact=True)


@pytest.mark.parametrize("verify", [True, False])
@pytest.mark.parametrize("hidden", ["manifest_file", "shard_file"])
def test_a_file_that_may_not_be_read_is_not_called_missing_or_damaged(claimed, monkeypatch, hidden, verify):
    """The message names the file, and what the system says; nothing is removed."""
    (shard,) = plan(2, 2)
    claimed.write_shard(shard, FEATURES, rows(shard), {})
    closed, ordinary = getattr(claimed, hidden)(shard), open

    def refuse(file, *mode, **options):
        if str(file) == str(closed):
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(file))
        return ordinary(file, *mode, **options)

    monkeypatch.setattr("io.open", refuse)
    monkeypatch.setattr("builtins.open", refuse)
    if (hidden, verify) == ("shard_file", False):  # only its size is looked at
        assert claimed.state(shard, verify) == "made"
        return
    with pytest.raises(UserError) as error:
        claimed.state(shard, verify)
    assert str(error.value) == f"{closed} cannot be read: {os.strerror(errno.EACCES)}"
    with pytest.raises(UserError, match="cannot be read"):
        claimed.missing([shard])
    assert claimed.shard_file(shard).exists()


def test_a_directory_that_no_build_made_is_refused(tmp_path):
    BuildDirectory(tmp_path / "new").check_free()
    with pytest.raises(UserError, match=r"--out .*run\[1\]: the library datasets reads"):
        BuildDirectory(tmp_path / "run[1]").check_free()
    (tmp_path / ".hidden").touch()
    BuildDirectory(tmp_path).check_free()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match=r"not empty, and holds no build\.json"):
        BuildDirectory(tmp_path).check_free()
    with pytest.raises(UserError, match="is a file"):
        BuildDirectory(tmp_path / "thesis.tex").check_free()
    with pytest.raises(UserError, match="holds no build"):
        BuildDirectory(tmp_path).record()


def test_the_lock_keeps_other_runs_out_and_lets_the_own_run_in(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    directory = BuildDirectory(tmp_path)
    with directory.locked(0, "run a"), directory.locked(1, "run a"):
        for rank in (0, 2):
            with (
                pytest.raises(UserError, match=r"another build is working in .*: run a"),
                directory.locked(rank, "run b"),
            ):
                pass
    with directory.locked(1, "run b"):
        pass


def test_the_lock_dies_with_its_process(tmp_path, monkeypatch):
    monkeypatch.setattr(locks, "PATIENCE", 0.1)
    code = (
        "import sys, time\nfrom pathlib import Path\nfrom attn2mask.builders.shards import BuildDirectory\n"
        "with BuildDirectory(Path(sys.argv[1])).locked(0, 'other'):\n"
        "    print('held', flush=True)\n    time.sleep(60)"
    )
    other = subprocess.Popen([sys.executable, "-c", code, str(tmp_path)], stdout=subprocess.PIPE)
    assert other.stdout.readline() == b"held\n"
    with pytest.raises(UserError, match="another build"), BuildDirectory(tmp_path).locked(0, "own"):
        pass
    other.kill()
    other.wait()
    with BuildDirectory(tmp_path).locked(0, "own"):
        assert (tmp_path / ".held-by-0").read_text() == "own"
