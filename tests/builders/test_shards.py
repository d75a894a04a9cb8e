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
    with BuildDirectory(tmp_path / "build").locked(0, "test"):
        yield BuildDirectory(tmp_path / "build")


def test_plan_covers_every_row_once():
    assert [list(shard.rows) for shard in plan(5, 2)] == [[0, 1], [2, 3], [4]]
    assert [shard.number for shard in plan(5, 2)] == [0, 1, 2]


def test_a_shard_is_made_once_written_and_loads(directory):
    parts = plan(5, 2)
    assert directory.missing(parts) == parts
    assert directory.manifests(parts) is None
    for shard in parts:
        directory.write_shard(shard, FEATURES, rows(shard), {"note": shard.number})
    assert directory.missing(parts) == []
    assert [manifest["note"] for manifest in directory.manifests(parts)] == [0, 1, 2]
    assert load_dataset(str(directory.path), split="train")["sample_id"][:] == list("01234")
    assert [row["sample_id"] for row in directory.rows(parts[1])] == ["2", "3"]


def test_a_damaged_shard_is_said_removed_and_made_again(directory, caplog):
    (shard,) = plan(2, 2)
    directory.write_shard(shard, FEATURES, rows(shard), {})
    (directory.path / "README.md").write_text("complete")
    content = bytearray(directory.shard_file(shard).read_bytes())
    content[len(content) // 2] ^= 1
    directory.shard_file(shard).write_bytes(content)
    assert directory.missing([shard]) == [shard]
    assert "train-00000.parquet is damaged" in caplog.text
    assert not directory.shard_file(shard).exists()
    assert not (directory.path / "README.md").exists()


def test_a_shard_without_its_file_is_damaged(directory):
    (shard,) = plan(2, 2)
    directory.write_shard(shard, FEATURES, rows(shard), {})
    directory.shard_file(shard).unlink()
    assert directory.state(shard) == "damaged"


def test_a_last_shard_that_grows_is_made_again(directory):
    (small,), (large,) = plan(1, 2), plan(2, 2)
    directory.write_shard(small, FEATURES, rows(small), {})
    assert directory.state(small) == "made"
    assert directory.state(large) == "missing"
    assert directory.manifests([large]) is None


def test_a_full_disk_leaves_nothing_of_the_shard(directory, monkeypatch):
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    (shard,) = plan(2, 2)
    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space left"):
        directory.write_shard(shard, FEATURES, rows(shard), {})
    assert list((directory.path / "data").iterdir()) == []
    assert directory.state(shard) == "missing"


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


def test_a_directory_that_no_build_made_is_refused(tmp_path):
    BuildDirectory(tmp_path / "new").check_free()
    with pytest.raises(UserError, match=r"--out .*run\[1\]: the library datasets reads"):
        BuildDirectory(tmp_path / "run[1]").check_free()
    (tmp_path / ".hidden").touch()
    BuildDirectory(tmp_path).check_free()
    (tmp_path / "thesis.tex").touch()
    with pytest.raises(UserError, match="not empty, and no build made it"):
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
