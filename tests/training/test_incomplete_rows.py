"""Builds and drawn rows whose shards are missing or damaged, or whose records were changed by hand, in every
command that reads them; and datasets of the Hub of which rows are missing.
"""

import json
import shutil
import subprocess
import sys

import pytest
from loopback_hub import LoopbackHub

from attn2mask.builders.drawn import rows as drawn_rows
from attn2mask.builders.errors import UserError
from attn2mask.builders.row_reader import directory_of, load_rows, whole_shards
from attn2mask.builders.seals import sealed, unsealed
from attn2mask.builders.shards import BuildDirectory
from attn2mask.hub.cli import main
from attn2mask.hub.preview.page import make_app
from attn2mask.hub.preview.rows import read_row
from attn2mask.training.train import rows_record

BUILD = ["build", "voc", "--num-images", "6", "--shard-size", "2", "--steps", "4", "--workers", "1"]
BUILD += ["--store-scores", "--out"]
STEP = ["--max-steps", "1", "--batch-size", "2", "--crop-size", "32", "--workers", "0", "--no-co-training"]
STEP += ["--backbone", "scratch:small", "--output-dir"]


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A build of 6 rows in 3 shards."""
    out = tmp_path_factory.mktemp("made") / "out"
    assert main([*BUILD, str(out)]) == 0
    return out


@pytest.fixture
def build(made, tmp_path):
    return shutil.copytree(made, tmp_path / "build")


@pytest.fixture
def drawn(tmp_path, monkeypatch):
    """6 drawn rows in 3 shards."""
    monkeypatch.setattr(drawn_rows, "SHARD_SIZE", 2)
    out = tmp_path / "drawn"
    assert main(["draw", "objects", "--num-images", "6", "--size", "32", "--out", str(out)]) == 0
    return out


def reading(folder, tmp_path) -> list[list[str]]:
    """The commands that read rows for training, adaptation and evaluation."""
    run, lora, metrics = (str(tmp_path / name) for name in ("run", "lora", "metrics.json"))
    return [
        ["train", "--dataset", str(folder), "--output-dir", run, "--max-steps", "1"],
        ["train", "--dataset", str(folder), "--output-dir", run, "--streaming"],
        ["adapt", "--data", str(folder), "--output-dir", lora],
        ["evaluate", "--method", "attention", "--dataset", str(folder), "--out", metrics],
    ]


def refusal(capsys, *command: str) -> str:
    """The one line with which a command ends."""
    capsys.readouterr()
    assert main([*command]) == 2, command
    return capsys.readouterr().err.splitlines()[-1]


def damage(build, how: str) -> str:
    """Harm the second shard. Returns what is said of it."""
    directory = directory_of(build)
    file = directory.shard_file(directory.shards[1])
    if how == "no manifest":
        directory.manifest_file(directory.shards[1]).unlink()
    elif how == "no file":
        file.unlink()
    elif how == "a byte less":
        file.write_bytes(file.read_bytes()[:-1])
    else:
        content = bytearray(file.read_bytes())
        content[len(content) // 2] ^= 4
        file.write_bytes(content)
    return f"2 of 3 shards are whole, and {file} is {'missing' if how.startswith('no ') else 'damaged'}"


@pytest.mark.parametrize("how", ["no manifest", "no file", "a byte less", "a bit"])
@pytest.mark.parametrize("kind", ["build", "drawn"])
def test_every_command_refuses_incomplete_rows(request, tmp_path, capsys, kind, how):
    folder = request.getfixturevalue(kind)
    said = damage(folder, how)
    for command in reading(folder, tmp_path):
        error = refusal(capsys, *command)
        assert said in error
        assert "give --allow-incomplete to use the 4 rows that are there" in error
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("kind", ["build", "drawn"])
def test_a_changed_bit_is_found_wherever_it_is(request, kind):
    """In the magic numbers, the images, the page index and the metadata at the end."""
    directory = directory_of(request.getfixturevalue(kind))
    file = directory.shard_file(directory.shards[1])
    sound = file.read_bytes()
    for place in [0, 3, *range(4, len(sound), len(sound) // 15), len(sound) - 300, len(sound) - 1]:
        file.write_bytes(sound[:place] + bytes([sound[place] ^ 1 << place % 8]) + sound[place + 1 :])
        with pytest.raises(
            UserError, match=r"2 of 3 shards are whole, and .*train-00001\.parquet is damaged"
        ):
            whole_shards(directory)
    file.write_bytes(sound)
    assert len(whole_shards(directory)) == 3


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
    file = directory.shard_file(directory.shards[2])
    file.write_bytes(file.read_bytes() + b"0")
    assert len(whole_shards(directory, allow_incomplete=True, verify=False)) == 2
    directory.shard_file(directory.shards[0]).unlink()
    assert len(whole_shards(directory, allow_incomplete=True, verify=False)) == 1


def test_the_record_of_a_training_tells_the_true_number_of_rows(build, tmp_path):
    assert rows_record(str(build))["num_images"] == 6
    damage(build, "no file")
    assert rows_record(str(build))["num_images"] == 4
    output = tmp_path / "run"
    assert main(["train", "--dataset", str(build), "--allow-incomplete", *STEP, str(output)]) == 0
    record = json.loads((output / "training_config.json").read_text())
    assert record["rows"]["num_images"] == 4
    assert record["options"]["allow_incomplete"]
    assert not record["options"]["no_verify"]


def test_the_records_say_that_nothing_was_verified(drawn, tmp_path):
    output, metrics = tmp_path / "run", tmp_path / "metrics.json"
    assert main(["train", "--dataset", str(drawn), "--no-verify", *STEP, str(output)]) == 0
    assert json.loads((output / "training_config.json").read_text())["options"]["no_verify"]
    command = ["evaluate", "--checkpoint", str(output), "--dataset", str(drawn), "--out", str(metrics)]
    assert main(command) == 0
    assert not json.loads(metrics.read_text())["evaluated"]["options"]["no_verify"]
    assert main([*command, "--no-verify"]) == 0
    assert json.loads(metrics.read_text())["evaluated"]["options"]["no_verify"]


def test_a_build_without_any_whole_shard_is_refused(build, tmp_path, capsys):
    for file in (build / "data").iterdir():
        file.unlink()
    options = ["--dataset", str(build), "--allow-incomplete", "--output-dir", str(tmp_path / "run")]
    assert main(["train", *options]) == 2
    assert "0 of 3 shards are whole" in capsys.readouterr().err.splitlines()[-1]


# Drawn rows


def test_drawn_rows_that_are_allowed(drawn, caplog):
    whole = [row["sample_id"] for row in load_rows(str(drawn))]
    assert whole == [f"objects-77000000-{index:06d}" for index in range(6)]
    said = damage(drawn, "a bit")
    for streaming in (False, True):
        found = load_rows(str(drawn), streaming=streaming, allow_incomplete=True)
        assert [row["sample_id"] for row in found] == whole[:2] + whole[4:]
    assert f"{said}; using 4 of 6 rows" in caplog.text
    assert len(whole_shards(directory_of(drawn), verify=False)) == 3


def test_an_interrupted_drawing_is_incomplete_and_goes_on(drawn, tmp_path, monkeypatch, capsys):
    """The shards are those of a drawing without an interruption."""

    def interrupted(world, indices, *options):
        yield from drawn_rows_of(world, range(indices.start, indices.start + 1), *options)
        if indices.start:
            raise KeyboardInterrupt

    out, drawn_rows_of = tmp_path / "again", drawn_rows.draw_rows
    command = ["draw", "objects", "--num-images", "6", "--size", "32", "--out", str(out)]
    monkeypatch.setattr(drawn_rows, "draw_rows", interrupted)
    assert main(command) == 130
    monkeypatch.undo()
    monkeypatch.setattr(drawn_rows, "SHARD_SIZE", 2)
    for reader in reading(out, tmp_path):
        assert "1 of 3 shards are whole, and" in refusal(capsys, *reader)
    assert main(command) == 0
    files = [f"data/train-0000{number}.parquet" for number in (1, 2)]
    assert all((out / file).read_bytes() == (drawn / file).read_bytes() for file in files)


def test_drawn_rows_without_any_shard_are_refused(drawn, tmp_path, capsys):
    shutil.rmtree(drawn / "data")
    for reader in reading(drawn, tmp_path):
        assert "0 of 3 shards are whole, and" in refusal(capsys, *reader, "--allow-incomplete")


# Records that were changed by hand


def exchange(record):
    first, second = (record["table"]["classes"][k] for k in (7, 11))  # cat and dog
    first["name"], second["name"] = second["name"], first["name"]


def threshold(record):
    record["identity"]["beta"] = 0.9


def seed(record):
    record["identity"]["seed"] = 4711


def license_(record):
    record["license"] = "mit"


def edit(folder, change, seal: bool) -> None:
    """Change build.json; with `seal`, so that its own seal is right."""
    file = folder / "build.json"
    record = json.loads(file.read_bytes())
    change(record)
    del record["seal"]
    file.write_bytes(sealed(record) if seal else json.dumps(record, indent=1).encode())
    assert (unsealed(file.read_bytes()) is not None) == seal


def all_commands(folder, tmp_path) -> list[list[str]]:
    out = str(tmp_path / "sheet.png")
    return [
        *reading(folder, tmp_path),
        ["remask", str(folder), "--out", str(tmp_path / "remasked")],
        ["show", str(folder), "--out", out],
        ["publish", "dataset", str(folder), "me/rows", "--dry-run"],
        [*BUILD, str(folder)],
    ]


@pytest.mark.parametrize("change", [exchange, threshold, seed, license_])
def test_every_command_notices_a_record_that_was_changed(build, tmp_path, capsys, change):
    edit(build, change, seal=False)
    said = f"{build / 'build.json'} was changed after it was written: restore it from a copy"
    for command in all_commands(build, tmp_path):
        assert said in refusal(capsys, *command)
    for command in reading(build, tmp_path):
        assert said in refusal(capsys, *command, "--no-verify")
    with pytest.raises(UserError, match="was changed after it was written"):
        make_app(build)


@pytest.mark.parametrize(
    ("change", "what"),
    [(exchange, "the class names"), (threshold, "the options or the class table"), (seed, "the options")],
)
def test_every_command_compares_the_record_with_the_shards(build, tmp_path, capsys, change, what):
    """Even if somebody made the seal again. The build's own command refuses it, too."""
    edit(build, change, seal=True)
    said = f"was made with other values than {build / 'build.json'} has ({what}"
    *commands, own = all_commands(build, tmp_path)
    for command in commands:
        assert said in refusal(capsys, *command)
    for command in reading(build, tmp_path):
        assert said in refusal(capsys, *command, "--no-verify")
    with pytest.raises(UserError, match="was made with other values"):
        read_row(BuildDirectory(build), 0)
    if change is exchange:
        assert said in refusal(capsys, *own)
    else:
        assert f"{build} was made with other values: " in refusal(capsys, *own)


def test_a_shard_of_another_build_is_noticed(build, tmp_path):
    """Its manifest is sound, and comes with it."""
    other = tmp_path / "other"
    assert main([*BUILD, str(other), "--seed", "5"]) == 0
    for file in ("data/train-00001.parquet", "manifest/00001.json"):
        shutil.copy(other / file, build / file)
    with pytest.raises(UserError, match=r"train-00001\.parquet was made with other values than"):
        whole_shards(BuildDirectory(build))


def test_a_report_that_was_changed_is_noticed(build, tmp_path, capsys):
    """The command of the build makes it again from the manifests."""
    file = build / "report.json"
    sound = file.read_bytes()
    file.write_bytes(sound.replace(b'"rejected_attempts": ', b'"rejected_attempts": 1'))
    commands = [command for command in all_commands(build, tmp_path) if command[0] not in ("build", "show")]
    for command in commands:
        assert f"{file} was changed after it was written" in refusal(capsys, *command)
    assert main([*BUILD, str(build)]) == 0
    assert file.read_bytes() == sound


@pytest.mark.parametrize(("version", "seal"), [(1, False), (2, True)])
def test_a_record_of_an_earlier_format_is_refused(build, tmp_path, capsys, version, seal):
    """Format 1 had no checksums. Masks of format 2 had no colors, and its rows no column `label`."""
    edit(build, lambda record: record.update(format_version=version), seal=seal)
    said = f"{build / 'build.json'} is of another version of attn2mask (format {version}, not 3): use that"
    for command in all_commands(build, tmp_path):
        assert said in refusal(capsys, *command)


def test_an_option_that_is_left_out_is_another_value(build, tmp_path, capsys):
    """Otherwise rows with and without it would be mixed."""
    out = tmp_path / "out"
    command = [*BUILD, str(out)]
    assert main([*command, "--negative-prompt", "blurred"]) == 0
    assert "negative_prompt (there 'blurred', now None)" in refusal(capsys, *command, "--num-images", "8")


# Copies of published builds: their shards are beside the records, without manifests.


@pytest.fixture
def copy(build, tmp_path):
    copy = tmp_path / "snapshot" / "voc"
    copy.mkdir(parents=True)
    for file in (*(build / "data").iterdir(), build / "build.json", build / "report.json"):
        shutil.copy(file, copy)
    return copy


def test_a_copy_of_a_published_build_is_a_build(build, copy, tmp_path, capsys):
    for streaming in (False, True):
        names = [row["sample_id"] for row in load_rows(str(copy), streaming=streaming)]
        assert names == [row["sample_id"] for row in load_rows(str(build))]
    for folder in (build, copy):
        options = ["--threshold", "fixed", "--beta", "0.3", "--workers", "1"]
        assert main(["remask", str(folder), "--out", str(tmp_path / f"{folder.name}-2"), *options]) == 0
    for shard in BuildDirectory(build).shards:
        first, second = (
            BuildDirectory(tmp_path / f"{name}-2").shard_file(shard) for name in ("build", "voc")
        )
        assert first.read_bytes() == second.read_bytes()
    assert main(["show", str(copy), "--out", str(tmp_path / "sheet.png")]) == 0
    assert "is a copy of a published dataset" in refusal(capsys, *BUILD, str(copy))


@pytest.mark.parametrize("how", ["no file", "a byte less", "a bit"])
def test_a_damaged_copy_is_refused(copy, tmp_path, capsys, how):
    said = damage(copy, how)
    assert str(copy / "train-00001.parquet") in said
    for command in reading(copy, tmp_path):
        assert said in refusal(capsys, *command)


def test_a_copy_without_its_report_is_refused(copy, tmp_path, capsys):
    (copy / "report.json").unlink()
    for command in reading(copy, tmp_path):
        assert f"{copy} lacks report.json, which has the checksums" in refusal(capsys, *command)


# Datasets of the Hub

ON_HUB = """
import sys
from attn2mask.builders.errors import UserError
from attn2mask.builders.row_reader import load_rows
from attn2mask.hub.cli import main

for name in ("me/whole", "me/fewer", "me/unstated"):
    for streaming in (False, True):
        for allowed in (False, True, False):  # the second time, its rows are in the cache
            try:
                rows = load_rows(name, "train", streaming, allow_incomplete=allowed)
                print(name, streaming, allowed, len([row["sample_id"] for row in rows]))
            except UserError as error:
                print(name, streaming, allowed, error)
for more in ([], ["--streaming"]):
    print(main(["train", "--dataset", "me/fewer", "--output-dir", "run", "--max-steps", "1", *more]))
print(main(["evaluate", "--method", "attention", "--dataset", "me/fewer", "--out", "metrics.json"]))
"""


def test_a_dataset_of_the_hub_is_compared_with_its_info(build, tmp_path):
    """By the number of rows that its README.md states; "me/fewer" lacks the last shard."""
    shards = {f"data/{file.name}": file.read_bytes() for file in sorted((build / "data").iterdir())}
    readme = (build / "README.md").read_bytes()
    assert b"num_examples: 6" in readme
    unstated = readme[: readme.index(b"dataset_info:")] + readme[readme.index(b"configs:") :]
    del (fewer := dict(shards))["data/train-00002.parquet"]
    with LoopbackHub() as hub:
        hub.put("dataset", "me/whole", {"README.md": readme, **shards})
        hub.put("dataset", "me/fewer", {"README.md": readme, **fewer})
        hub.put("dataset", "me/unstated", {"README.md": unstated, **fewer})
        ran = subprocess.run(
            [sys.executable, "-c", ON_HUB],
            capture_output=True,
            text=True,
            cwd=tmp_path,
            env=hub.environment(tmp_path / "hf"),
        )
    assert ran.returncode == 0, ran.stderr
    refused = (
        "me/fewer is not complete: its split train has 4 rows, but its README.md states 6: complete it, or"
    )
    refused += " give --allow-incomplete to use the 4 rows that are there"
    expected = []
    for name, rows in (("me/whole", 6), ("me/fewer", 4), ("me/unstated", 4)):
        for streaming in (False, True):
            for allowed in (False, True, False):
                said = refused if name == "me/fewer" and not allowed else rows
                expected.append(f"{name} {streaming} {allowed} {said}")
    assert ran.stdout.splitlines() == [*expected, "2", "2", "2"]
    errors = [line for line in ran.stderr.splitlines() if line.startswith("attn2mask: error: ")]
    assert [refused in line for line in errors] == [True] * 3, ran.stderr
    assert "using 4 of 6 rows" in ran.stderr


@pytest.mark.parametrize("streaming", [False, True])
def test_a_folder_is_compared_with_its_readme(build, tmp_path, streaming):
    """One that no command of this package made, but that has the layout of a dataset of the Hub."""
    folder = tmp_path / "folder"
    shutil.copytree(build / "data", folder / "data")
    shutil.copy(build / "README.md", folder)
    assert len(list(load_rows(str(folder), streaming=streaming))) == 6
    (folder / "data/train-00000.parquet").unlink()
    with pytest.raises(UserError, match=r"its split train has 4 rows, but its README\.md states 6"):
        load_rows(str(folder), streaming=streaming)
    assert len(list(load_rows(str(folder), streaming=streaming, allow_incomplete=True))) == 4


def test_rows_are_those_of_the_folder_as_it_is_now(build, tmp_path):
    """Neither those of an earlier state nor those of a folder of the same name and README.md."""
    names = [row["sample_id"] for row in load_rows(str(build))]
    for parent, numbers in (("a", (0, 1)), ("b", (1, 2)), ("a", (2, 0))):
        folder = tmp_path / parent / "folder"
        (folder / "data").mkdir(parents=True, exist_ok=True)
        (folder / "README.md").write_text(
            "---\nconfigs:\n- config_name: default\n  data_files: data/train-*\n---\n"
        )
        for place, number in enumerate(numbers):
            shutil.copyfile(
                build / f"data/train-0000{number}.parquet", folder / f"data/train-0000{place}.parquet"
            )
        found = [row["sample_id"] for row in load_rows(str(folder))]
        assert found == [name for number in numbers for name in names[2 * number : 2 * number + 2]]
