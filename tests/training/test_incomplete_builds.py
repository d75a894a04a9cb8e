"""Builds whose shards are missing or damaged, in every command that reads rows."""

import json
import shutil

import pytest

from attn2mask.builders.row_reader import load_rows, whole_shards
from attn2mask.builders.shards import BuildDirectory
from attn2mask.hub.cli import main
from attn2mask.training.train import rows_record


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A build of 6 rows in 3 shards."""
    out = tmp_path_factory.mktemp("made") / "out"
    options = ["--num-images", "6", "--shard-size", "2", "--steps", "4", "--workers", "1"]
    assert main(["build", "voc", *options, "--out", str(out)]) == 0
    return out


@pytest.fixture
def build(made, tmp_path):
    return shutil.copytree(made, tmp_path / "build")


def damage(build, how: str) -> str:
    """Harm the second shard. Returns what is said of it."""
    directory = BuildDirectory(build)
    file = directory.shard_file(directory.shards[1])
    if how == "no manifest":
        directory.manifest_file(directory.shards[1]).unlink()
    elif how == "no file":
        file.unlink()
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    return f"2 of 3 shards are whole, and {file} is {'damaged' if how == 'a bit' else 'missing'}"


@pytest.mark.parametrize("how", ["no manifest", "no file", "a bit"])
def test_every_command_refuses_an_incomplete_build(build, tmp_path, capsys, how):
    said = damage(build, how)
    commands = {
        "train": ["--dataset", str(build), "--output-dir", str(tmp_path / "run"), "--max-steps", "1"],
        "streaming": ["--dataset", str(build), "--streaming", "--output-dir", str(tmp_path / "run")],
        "adapt": ["--data", str(build), "--output-dir", str(tmp_path / "lora")],
        "evaluate": ["--method", "attention", "--dataset", str(build), "--out", str(tmp_path / "m.json")],
    }
    for name, options in commands.items():
        assert main(["train" if name == "streaming" else name, *options]) == 2
        error = capsys.readouterr().err.splitlines()[-1]
        assert said in error
        assert "give --allow-incomplete to use the 4 rows that are there" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", ["no manifest", "no file", "a bit"])
@pytest.mark.parametrize("streaming", [False, True])
def test_allowed_rows_are_those_of_the_whole_shards(build, caplog, how, streaming):
    whole = [row["sample_id"] for row in load_rows(str(build))]
    said = damage(build, how)
    found = [row["sample_id"] for row in load_rows(str(build), streaming=streaming, allow_incomplete=True)]
    assert found == whole[:2] + whole[4:]
    assert f"{said}; using 4 of 6 rows" in caplog.text


def test_a_hash_is_not_computed_unasked(build, monkeypatch):
    """Missing shards are found all the same."""
    directory = BuildDirectory(build)
    damage(build, "a bit")
    assert len(whole_shards(directory, verify=False)) == 3
    monkeypatch.setattr("hashlib.file_digest", None)
    assert len(whole_shards(directory, verify=False)) == 3
    directory.shard_file(directory.shards[0]).unlink()
    assert len(whole_shards(directory, allow_incomplete=True, verify=False)) == 2


def test_the_record_of_a_training_tells_the_true_number_of_rows(build, tmp_path):
    assert rows_record(str(build))["num_images"] == 6
    damage(build, "no file")
    assert rows_record(str(build))["num_images"] == 4
    output = tmp_path / "run"
    options = ["--max-steps", "1", "--batch-size", "2", "--crop-size", "32", "--workers", "0"]
    options += ["--backbone", "scratch:small", "--allow-incomplete", "--output-dir", str(output)]
    assert main(["train", "--dataset", str(build), *options]) == 0
    record = json.loads((output / "training_config.json").read_text())
    assert record["rows"]["num_images"] == 4
    assert record["options"]["allow_incomplete"]


def test_a_build_without_any_whole_shard_is_refused(build, tmp_path, capsys):
    for file in (build / "data").iterdir():
        file.unlink()
    options = ["--dataset", str(build), "--allow-incomplete", "--output-dir", str(tmp_path / "run")]
    assert main(["train", *options]) == 2
    assert "0 of 3 shards are whole" in capsys.readouterr().err.splitlines()[-1]
