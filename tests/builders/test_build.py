"""The build: the same rows whatever the batches, shards and processes; growing, refusing, finishing,
remasking.
"""

import io
import json
import os
import re
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from datasets import load_dataset
from PIL import Image
from zeroshot_models import save_scorer

from attn2mask.builders import build, synthesize
from attn2mask.builders.families import UNET
from attn2mask.builders.images import overlay
from attn2mask.builders.label import rescored
from attn2mask.builders.painter import Painter, Painting
from attn2mask.builders.provenance import LORA_RECORD
from attn2mask.builders.rules import load_rules
from attn2mask.builders.seals import sealed, unsealed
from attn2mask.builders.shards import BuildDirectory, plan
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cli import main

VOC = load_table("voc")
CAPTIONS = [
    "a photo of a dog",
    "a red bus on the street",
    "the cat and the dog",
    "a dog with a cat in the street",
]


@pytest.fixture(scope="module")
def captions(tmp_path_factory) -> Path:
    file = tmp_path_factory.mktemp("captions") / "captions.txt"
    file.write_text("\n".join(CAPTIONS))
    return file


@pytest.fixture
def command(tiny_model, captions, tmp_path, monkeypatch):
    """`command("--seed", "1")` runs a small build in this process, labeling in a thread; returns its exit
    status.
    """

    @contextmanager
    def thread(workers: int):
        with ThreadPoolExecutor(1) as pool:
            yield pool

    def run(*options: str, out: str = "out", table: str = "voc") -> int:
        fixed = [table, "--model", str(tiny_model("sd15")), "--captions", str(captions)]
        fixed += ["--out", str(tmp_path / out), "--height", "64", "--width", "64", "--steps", "2"]
        return main(["build", *fixed, "--alias-probability", "0", *options])

    monkeypatch.setattr("attn2mask.builders.workers.labeling_pool", thread)
    monkeypatch.setattr(synthesize, "ATTEMPTS", 2)
    return run


def rows_of(path: Path) -> list[dict]:
    directory = BuildDirectory(path)
    record = directory.record()
    shards = plan(record["num_images"], record["identity"]["shard_size"])
    return [row for shard in shards for row in directory.rows(shard)]


def pixels(column: dict) -> np.ndarray:
    return np.asarray(Image.open(io.BytesIO(column["bytes"]))).astype(int)


def test_a_build_loads_and_holds_what_the_design_says(command, tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    assert command("--num-images", "6", "--shard-size", "4", "--store-scores") == 0
    out, err = capsys.readouterr()
    assert "6 rows in 2 shards" in out
    assert "6 of them were made now" in out
    assert f"next: attn2mask show {tmp_path / 'out'}" in out
    assert "6/6" in err
    data = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    assert len(data) == 6
    assert data.features["classes"].feature.names[:3] == ["background", "aeroplane", "bicycle"]
    for index, row in enumerate(data):
        assert row["sample_id"] == f"voc-0-{index:08d}"
        assert row["image"].size == row["mask"].size == row["reliability"].size == (64, 64)
        assert (row["image"].mode, row["mask"].mode, row["reliability"].mode) == ("RGB", "P", "L")
        assert row["caption"] in CAPTIONS
        assert len(row["classes"]) == len(row["words"]) == len(row["peaks"]) == len(row["scores"])
        assert set(np.unique(row["mask"])) <= {0, 255, *row["classes"]}
        assert set(np.unique(row["reliability"])) <= {0, 255}
        for word in row["words"]:
            assert word in row["prompt"]
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rows"] == 6
    record = json.loads((tmp_path / "out" / "build.json").read_text())
    assert record["identity"]["guidance_scale"] == 7.5
    assert record["identity"]["threshold"] == "otsu"
    assert record["versions"]["torch"] == version("torch")
    assert record["versions"]["attn2mask"] == version("attn2mask")
    assert record["format_version"] == 3
    assert str(tmp_path) not in (tmp_path / "out" / "README.md").read_text()


def test_batches_and_shards_change_no_row(command, tmp_path):
    for out, batch, shard in (("a", "4", "8"), ("b", "1", "8"), ("c", "4", "32")):
        assert command("--num-images", "12", "--batch-size", batch, "--shard-size", shard, out=out) == 0
    first, *others = (rows_of(tmp_path / out) for out in "abc")
    for other in others:
        for mine, theirs in zip(first, other, strict=True):
            for column in ("sample_id", "caption", "prompt", "seed"):
                assert mine[column] == theirs[column]
            assert np.abs(pixels(mine["image"]) - pixels(theirs["image"])).max() <= 2


def test_two_processes_make_the_same_rows(command, tiny_model, captions, tmp_path):
    size = ("--num-images", "6", "--shard-size", "2", "--batch-size", "2")
    assert command(*size, out="one") == 0
    config = tmp_path / "two.yaml"
    config.write_text("compute_environment: LOCAL_MACHINE\ndistributed_type: MULTI_GPU\nnum_processes: 2\n")
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config)]
    launch += ["--num_processes", "2", "--main_process_port", "0", build.__file__, "voc"]
    launch += [
        "--model",
        str(tiny_model("sd15")),
        "--captions",
        str(captions),
        "--out",
        str(tmp_path / "two"),
    ]
    launch += ["--height", "64", "--width", "64", "--steps", "2", "--alias-probability", "0", *size]
    environment = {**os.environ, "ACCELERATE_USE_CPU": "true", "OMP_NUM_THREADS": "1"}
    done = subprocess.run(launch, capture_output=True, text=True, env=environment, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "with 2 processes" in done.stdout
    assert "6 rows in 3 shards" in done.stdout
    for mine, theirs in zip(rows_of(tmp_path / "one"), rows_of(tmp_path / "two"), strict=True):
        for column in ("sample_id", "prompt", "seed"):
            assert mine[column] == theirs[column]
        assert np.abs(pixels(mine["image"]) - pixels(theirs["image"])).max() <= 2


def test_a_build_grows_finishes_and_refuses(command, captions, tmp_path, capsys):
    def error(*options: str) -> str:
        capsys.readouterr()
        assert command("--shard-size", "4", *options) == 2
        errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
        assert len(errors) == 1
        return errors[0]

    assert command("--num-images", "6", "--shard-size", "4") == 0
    small = rows_of(tmp_path / "out")
    assert command("--num-images", "9", "--shard-size", "4", "--batch-size", "8", "--workers", "2") == 0
    out = capsys.readouterr().out
    assert "5 of them were made now" in out
    assert "rows that name each class, of 9: " in out
    large = rows_of(tmp_path / "out")
    assert large[:4] == small[:4]
    assert [row["prompt"] for row in large[4:6]] == [row["prompt"] for row in small[4:6]]
    assert len(large) == 9
    assert command("--num-images", "9", "--shard-size", "4") == 0
    out = capsys.readouterr().out
    assert "all were there already" in out
    assert "rows that name each class" not in out  # a finished build is not counted again
    assert "which can only grow, but it is 6 now" in error("--num-images", "6")
    message = error("--num-images", "9", "--seed", "3", "--threshold", "fixed", "--steps", "1")
    for part in (
        "seed (there 0, now 3)",
        "threshold (there 'otsu', now 'fixed')",
        "steps (there 2, now 1)",
    ):
        assert part in message
    captions.write_text("\n".join([*CAPTIONS, "a bus"]))
    assert "captions (there 'sha256:" in error("--num-images", "9")
    captions.write_text("\n".join(CAPTIONS))
    assert rows_of(tmp_path / "out") == large


def test_a_build_that_goes_on_under_other_conditions_names_the_rows(command, tmp_path, capsys, monkeypatch):
    """The manifests keep under what each shard was painted, build.json under what the build was begun."""
    assert command("--num-images", "4", "--shard-size", "2", "--batch-size", "2") == 0
    begun = (tmp_path / "out" / "build.json").read_bytes()
    assert "last bit" not in capsys.readouterr().err
    monkeypatch.setattr("torch.get_num_threads", lambda: 7)
    assert command("--num-images", "6", "--shard-size", "2", "--batch-size", "1", "--exact") == 2
    error = capsys.readouterr().err
    assert re.search(r"rows 0 to 3 were made with threads \d \(now 7\), batch size 2 \(now 1\)", error)
    assert "which --exact refuses" in error
    assert (tmp_path / "out" / "build.json").read_bytes() == begun
    assert (tmp_path / "out" / "report.json").exists()
    assert command("--num-images", "6", "--shard-size", "2", "--batch-size", "1") == 0
    error = capsys.readouterr().err
    assert "rows 0 to 3 were made with threads" in error
    assert re.search(
        r"rows 0 to 3 with threads \d, batch size 2; rows 4 to 5 with threads 7, batch size 1", error
    )
    report, record = (json.loads((tmp_path / "out" / f).read_text()) for f in ("report.json", "build.json"))
    assert [(entry["rows"], entry["batch_size"]) for entry in report["made_under"]] == [
        ("0 to 3", 2),
        ("4 to 5", 1),
    ]
    assert report["made_under"][1]["threads"] == 7
    assert record["begun_under"] == {k: v for k, v in report["made_under"][0].items() if k != "rows"}
    # What is complete is not made again, so that nothing differs.
    assert command("--num-images", "6", "--shard-size", "2", "--batch-size", "3", "--exact") == 0


def test_a_build_without_rows_goes_on_under_any_conditions(command, tmp_path, capsys, monkeypatch):
    """Nothing was painted under the old ones, so --exact has nothing to refuse."""
    with monkeypatch.context() as patch:
        patch.setattr(
            synthesize.Synthesizer, "samples", lambda *_: (_ for _ in ()).throw(OSError(28, "full"))
        )
        assert command("--num-images", "2", "--batch-size", "2") == 2
    assert command("--num-images", "2", "--batch-size", "1", "--exact") == 0
    assert "last bit" not in capsys.readouterr().err
    record = json.loads((tmp_path / "out" / "build.json").read_text())
    assert record["begun_under"]["batch_size"] == 1


def test_a_damaged_shard_is_made_again_bit_for_bit(command, tmp_path, capsys):
    assert command("--num-images", "4", "--shard-size", "2") == 0
    before = rows_of(tmp_path / "out")
    shard = tmp_path / "out" / "data" / "train-00001.parquet"
    shard.write_bytes(shard.read_bytes()[:-100])
    assert command("--num-images", "4", "--shard-size", "2") == 0
    out, err = capsys.readouterr()
    assert "train-00001.parquet is damaged; making it again" in err
    assert "2 of them were made now" in out
    assert rows_of(tmp_path / "out") == before


@pytest.mark.parametrize(
    "rules", [[], ["--preset", "paper", "--threshold", "agreement", "--reliability", "margin"]]
)
def test_remask_with_unchanged_rules_changes_no_bit(command, tmp_path, rules):
    assert command("--num-images", "5", "--shard-size", "2", "--store-scores", "--graded", *rules) == 0
    assert main(["remask", str(tmp_path / "out"), "--out", str(tmp_path / "again")]) == 0
    assert rows_of(tmp_path / "again") == rows_of(tmp_path / "out")
    other = tmp_path / "other"
    options = ["--out", str(other), "--reliability", "two-threshold"]
    assert main(["remask", str(tmp_path / "again"), *options]) == 0
    assert json.loads((other / "build.json").read_text())["identity"]["graded"]


def test_label_and_overlay_follow_the_mask(command, tmp_path, capsys):
    """Both are made again with the mask. A build is never continued with other columns."""

    def check(row: dict) -> None:
        mask, trust, label = (pixels(row[name]) for name in ("mask", "reliability", "label"))
        assert np.array_equal(label, np.where(trust < 128, 255, mask))
        drawn, shown = pixels(row["overlay"]), overlay(pixels(row["image"]).astype(np.uint8), mask, VOC)
        assert np.abs(drawn - shown).mean() < 12  # JPEG changes colors

    options = ("--num-images", "2", "--store-scores", "--graded", "--threshold", "fixed", "--beta", "0.4")
    assert command(*options, "--overlay") == 0
    before = rows_of(tmp_path / "out")
    for row in before:
        check(row)
    names = json.loads((tmp_path / "out" / "id2label.json").read_text())
    assert names == {str(k): name for k, name in enumerate(VOC.names)}
    assert command(*options) == 2
    assert "overlay (there True, now False)" in capsys.readouterr().err
    remask = ["remask", str(tmp_path / "out"), "--beta", "0.9", "--out"]
    assert main([*remask, str(tmp_path / "new")]) == 0
    after = rows_of(tmp_path / "new")
    for row, old in zip(after, before, strict=True):
        check(row)
        assert row["mask"] != old["mask"]
        assert row["overlay"] != old["overlay"]
    assert (tmp_path / "new" / "id2label.json").read_bytes() == (
        tmp_path / "out" / "id2label.json"
    ).read_bytes()
    assert main([*remask, str(tmp_path / "new"), "--overlay", "false"]) == 2
    assert "overlay (there True, now False)" in capsys.readouterr().err
    assert main([*remask, str(tmp_path / "plain"), "--overlay", "false"]) == 0
    plain = rows_of(tmp_path / "plain")
    assert plain == [{name: row[name] for name in row if name != "overlay"} for row in after]


def test_remask_keeps_the_pixels_of_a_dropped_class_ignored(command, tmp_path, monkeypatch):
    """The gate drops the second class of every image. What its attention takes stays ignored."""
    from attn2mask.builders import label

    monkeypatch.setattr(
        label, "faults", lambda *of: {1: "cat: dropped by the test"} if len(of[1]) > 1 else {}
    )
    assert command("--num-images", "8", "--store-scores", "--seed", "3") == 0
    dropped = json.loads((tmp_path / "out" / "report.json").read_text())["dropped"]
    assert dropped
    assert main(["remask", str(tmp_path / "out"), "--out", str(tmp_path / "again")]) == 0
    assert rows_of(tmp_path / "again") == rows_of(tmp_path / "out")
    assert json.loads((tmp_path / "again" / "report.json").read_text())["dropped"] == dropped
    options = ["--out", str(tmp_path / "new"), "--threshold", "fixed", "--beta", "0.9"]
    assert main(["remask", str(tmp_path / "again"), *options]) == 0
    for before, after in zip(rows_of(tmp_path / "out"), rows_of(tmp_path / "new"), strict=True):
        ignored = pixels(before["mask"]) == 255
        assert ignored.any() == (before["sample_id"] in dropped)
        assert (pixels(after["mask"])[ignored] == 255).all()
        assert not pixels(after["reliability"])[ignored].any()


def test_remask_keeps_under_what_the_images_were_painted(command, tmp_path):
    assert command("--num-images", "4", "--shard-size", "2", "--batch-size", "2", "--store-scores") == 0
    grown = ("--num-images", "6", "--shard-size", "2", "--batch-size", "1", "--store-scores")
    assert command(*grown) == 0
    assert main(["remask", str(tmp_path / "out"), "--beta", "0.3", "--threshold", "fixed"]) == 0
    there, new = (
        json.loads((tmp_path / name / "report.json").read_text()) for name in ("out", "out-remasked")
    )
    assert new["made_under"] == there["made_under"]
    assert len(new["made_under"]) == 2


def test_remask_changes_labels_and_keeps_images(command, tmp_path, capsys):
    assert command("--num-images", "4", "--shard-size", "2", "--store-scores") == 0
    options = ["--threshold", "fixed", "--beta", "0.9"]
    assert main(["remask", str(tmp_path / "out"), "--out", str(tmp_path / "new"), *options]) == 0
    old, new = rows_of(tmp_path / "out"), rows_of(tmp_path / "new")
    assert [row["image"] for row in old] == [row["image"] for row in new]
    assert any(before["mask"] != after["mask"] for before, after in zip(old, new, strict=True))
    assert main(["remask", str(tmp_path / "out"), "--out", str(tmp_path / "new"), "--beta", "0.5"]) == 2
    assert "--beta is used only with --threshold fixed" in capsys.readouterr().err
    record = (tmp_path / "out" / "build.json").read_bytes()
    same = str(tmp_path / "new" / ".." / "out")
    assert main(["remask", str(tmp_path / "out"), "--out", same, *options]) == 2
    assert "is the dataset itself" in capsys.readouterr().err
    assert (tmp_path / "out" / "build.json").read_bytes() == record
    (tmp_path / "out" / "manifest" / "00001.json").unlink()
    assert main(["remask", str(tmp_path / "out"), "--out", str(tmp_path / "third")]) == 2
    assert "is not complete" in capsys.readouterr().err


def test_remask_goes_to_pydensecrf_and_back(command, tmp_path):
    pytest.importorskip("pydensecrf", reason="pydensecrf2 does not build on Python 3.13")
    assert command("--num-images", "4", "--store-scores") == 0
    out, other, back = (tmp_path / name for name in ("out", "other", "back"))
    assert main(["remask", str(out), "--out", str(other), "--crf", "pydensecrf"]) == 0
    assert main(["remask", str(other), "--out", str(back), "--crf", "lattice"]) == 0
    recorded = [BuildDirectory(path).record()["identity"]["crf"] for path in (out, other, back)]
    assert recorded == ["lattice", "pydensecrf", "lattice"]
    assert rows_of(back) == rows_of(out)
    masks = [np.stack([pixels(row["mask"]) for row in rows_of(path)]) for path in (out, other)]
    assert (masks[0] != masks[1]).mean() <= 0.001
    assert len(np.unique(masks[0])) > 1


def test_a_build_with_pydensecrf_is_recorded(command, tmp_path):
    pytest.importorskip("pydensecrf", reason="pydensecrf2 does not build on Python 3.13")
    assert command("--num-images", "2", "--store-scores", "--crf", "pydensecrf") == 0
    record = BuildDirectory(tmp_path / "out").record()
    assert record["identity"]["crf"] == "pydensecrf"
    assert record["versions"]["pydensecrf2"] == version("pydensecrf2")
    assert "crf: pydensecrf" in (tmp_path / "out" / "build.yaml").read_text()
    assert main(["remask", str(tmp_path / "out"), "--out", str(tmp_path / "again")]) == 0
    assert rows_of(tmp_path / "again") == rows_of(tmp_path / "out")


def test_without_pydensecrf_its_option_ends_before_anything_is_made(command, tmp_path, monkeypatch, capsys):
    assert command("--num-images", "2", "--store-scores") == 0
    capsys.readouterr()
    monkeypatch.setitem(sys.modules, "pydensecrf", None)  # Python then finds no such package
    assert command("--num-images", "2", "--crf", "pydensecrf", out="new") == 2
    assert main(["remask", str(tmp_path / "out"), "--out", str(tmp_path / "new"), "--crf", "pydensecrf"]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    expected = "attn2mask: error: --crf pydensecrf needs the package pydensecrf: pip install"
    assert [line.startswith(expected) for line in errors] == [True, True]
    assert not (tmp_path / "new").exists()


def test_the_stored_options_make_the_same_rows_again(command, tmp_path):
    """`--config` reads what `build` and `remask` stored, also with a threshold that uses no beta."""
    assert command("--num-images", "3", "--store-scores") == 0
    out, again, new = (tmp_path / name for name in ("out", "again", "new"))
    assert main(["build", "--config", str(out / "build.yaml"), "--out", str(again)]) == 0
    assert rows_of(again) == rows_of(out)
    assert (again / "build.yaml").read_bytes() == (out / "build.yaml").read_bytes()
    assert main(["remask", str(out), "--out", str(new), "--reliability", "margin"]) == 0
    assert main(["remask", "--config", str(new / "remask.yaml"), "--out", str(tmp_path / "newer")]) == 0
    assert rows_of(tmp_path / "newer") == rows_of(new)


def test_the_instance_prompt_of_a_lora_is_in_rows_identity_and_report(command, tiny_lora, tmp_path, capsys):
    """The LoRA's images had no captions. A later run must find the same instance prompt."""
    lora = tmp_path / "lora"
    shutil.copytree(tiny_lora, lora)
    adaptation = {
        "options": {"instance_prompt": "a photo in sks style"},
        "data": {"images": 4, "with_caption": 0},
    }
    (lora / LORA_RECORD).write_text(json.dumps(adaptation))
    assert command("--num-images", "4", "--lora", str(lora)) == 0
    assert "its instance prompt 'a photo in sks style' is added to all prompts" in capsys.readouterr().err
    rows = rows_of(tmp_path / "out")
    assert len(rows) == 4
    for row in rows:
        assert row["prompt"] == f"{row['caption']}, a photo in sks style"
    assert BuildDirectory(tmp_path / "out").record()["identity"]["instance_prompt"] == "a photo in sks style"
    adaptation["options"]["instance_prompt"] = "another"
    (lora / LORA_RECORD).write_text(json.dumps(adaptation))
    assert command("--num-images", "8", "--lora", str(lora)) == 2
    assert "instance_prompt (there 'a photo in sks style', now 'another')" in capsys.readouterr().err


def test_remask_needs_stored_scores(command, tmp_path, capsys):
    assert command("--num-images", "1") == 0
    assert main(["remask", str(tmp_path / "out")]) == 2
    assert "--store-scores" in capsys.readouterr().err


# Stored attention


def same(one: object, other: object) -> bool:
    """Whether values of rows are equal; arrays have equal types and elements."""
    if isinstance(one, dict) and isinstance(other, dict):
        return list(one) == list(other) and all(same(one[key], other[key]) for key in one)
    if isinstance(one, list) and isinstance(other, list):
        return len(one) == len(other) and all(map(same, one, other))
    if isinstance(one, np.ndarray):
        return one.dtype == other.dtype and np.array_equal(one, other)
    return one == other


def test_stored_maps_load_and_are_those_of_the_scores(command, tmp_path, monkeypatch):
    """A row without its maps is that of a build that stores none."""
    monkeypatch.setenv("HF_DATASETS_CACHE", str(tmp_path / "cache"))
    size = ("--num-images", "3", "--shard-size", "2")
    assert command(*size, "--store-maps") == 0
    assert command(*size, "--store-scores", out="scores") == 0
    data = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    values = data.features["maps"].feature.feature["values"]
    assert values.feature.feature.dtype == "float16"
    assert data.column_names[-2:] == ["scores", "maps"]
    rows, plain = rows_of(tmp_path / "out"), rows_of(tmp_path / "scores")
    record = BuildDirectory(tmp_path / "out").record()
    assert (record["latent_side"], record["identity"]["store_scores"]) == (8, True)
    rules = BuildDirectory(tmp_path / "out").rules
    for row, loaded, other in zip(rows, data, plain, strict=True):
        assert same({name: value for name, value in row.items() if name != "maps"}, other)
        assert len(row["maps"]) == len(row["classes"]) > 0
        for of_class in row["maps"]:
            assert [one["values"].shape for one in of_class] == [(8, 8), (4, 4), (2, 2), (1, 1)]
            assert all(one["values"].dtype == np.float16 and one["values"].max() == 1 for one in of_class)
        found = rescored(row, rules, 8)
        assert (found["scores"], list(found["peaks"])) == (row["scores"], row["peaks"])
        assert np.array_equal(loaded["maps"][0][0]["values"], row["maps"][0][0]["values"])


@pytest.mark.parametrize("preset", ["photo", "mosaicfusion-like"])
def test_remask_of_maps_with_unchanged_rules_changes_no_bit_also_when_the_build_grows(
    command, tmp_path, preset
):
    options = ("--shard-size", "2", "--store-maps", "--preset", preset)
    out, again, grown = (tmp_path / name for name in ("out", "again", "grown"))
    assert command("--num-images", "3", *options) == 0
    assert main(["remask", str(out), "--out", str(again)]) == 0
    assert same(rows_of(again), rows_of(out))
    assert command("--num-images", "6", *options) == 0
    assert command("--num-images", "6", *options, out="grown") == 0
    assert same(rows_of(out), rows_of(grown))
    assert main(["remask", str(out), "--out", str(again)]) == 0
    assert same(rows_of(again), rows_of(out))


def test_a_build_with_maps_that_is_interrupted_is_finished_alike(command, tmp_path):
    options = ("--num-images", "5", "--shard-size", "2", "--store-maps")
    assert command(*options) == 0
    before = rows_of(tmp_path / "out")
    (tmp_path / "out" / "manifest" / "00001.json").unlink()
    assert command(*options) == 0
    assert same(rows_of(tmp_path / "out"), before)


def test_storing_maps_belongs_to_the_identity_of_a_build(command, tmp_path, capsys):
    assert command("--num-images", "2", "--store-scores") == 0
    assert command("--num-images", "2", "--store-maps") == 2
    assert "store_maps (there False, now True)" in capsys.readouterr().err


def test_remask_makes_what_a_build_with_the_preset_makes(command, tmp_path):
    """Also with other map sizes and another normalization, and back again."""
    size = ("--num-images", "4", "--shard-size", "2", "--store-maps")
    assert command(*size, "--preset", "photo") == 0
    for preset in ("paper", "daam-like", "diffumask-like", "ovam-like", "mosaicfusion-like"):
        assert command(*size, "--preset", preset, out=f"{preset}-built") == 0
        options = ["--out", str(tmp_path / preset), "--preset", preset]
        assert main(["remask", str(tmp_path / "out"), *options]) == 0
        assert BuildDirectory(tmp_path / preset).rules == load_rules(preset)
        # An attempt that one preset rejects is painted again, so that only some images are the same.
        pairs = zip(rows_of(tmp_path / preset), rows_of(tmp_path / f"{preset}-built"), strict=True)
        equal = [(mine, built) for mine, built in pairs if mine["seed"] == built["seed"]]
        assert equal
        for mine, built in equal:
            if mine["classes"] == built["classes"]:
                assert same(mine, built)
    options = ["--out", str(tmp_path / "back"), "--preset", "photo"]
    assert main(["remask", str(tmp_path / "daam-like"), *options]) == 0
    for mine, built in zip(rows_of(tmp_path / "back"), rows_of(tmp_path / "out"), strict=True):
        if mine["classes"] == built["classes"]:
            assert same(mine, built)


def test_self_attention_is_stored_and_propagates_the_maps(command, tmp_path):
    size = ("--num-images", "3", "--shard-size", "2", "--preset", "photo", "--store-maps")
    assert command(*size, "--store-self-attention") == 0
    assert command(*size, out="maps") == 0
    rows = rows_of(tmp_path / "out")
    for row, plain in zip(rows, rows_of(tmp_path / "maps"), strict=True):
        stored = row["self_attention"]
        assert (stored["height"], stored["width"], stored["values"].shape) == (4, 4, (16, 16))
        assert stored["values"].dtype == np.float16
        assert same({name: value for name, value in row.items() if name != "self_attention"}, plain)
    assert main(["remask", str(tmp_path / "out"), "--out", str(tmp_path / "again")]) == 0
    assert same(rows_of(tmp_path / "again"), rows)
    options = ["--out", str(tmp_path / "new"), "--preset", "dataset-diffusion-like"]
    assert main(["remask", str(tmp_path / "out"), *options]) == 0
    assert command(*size, "--store-self-attention", *options[2:], out="built") == 0
    changed = rows_of(tmp_path / "new")
    for mine, built in zip(changed, rows_of(tmp_path / "built"), strict=True):
        assert np.shape(mine["scores"])[1:] in ((4, 4), (0,))
        if (mine["seed"], mine["classes"]) == (built["seed"], built["classes"]):
            assert same(mine, built)
    assert [row["scores"] for row in changed] != [row["scores"] for row in rows]


def test_background_words_compete(command, tmp_path, capsys):
    """A build with them, the same masks by remask, and those of a build without them."""
    size = ("--num-images", "4", "--shard-size", "2", "--preset", "photo", "--store-maps")
    assert command(*size) == 0
    assert command(*size, "--background-words", out="street") == 0
    assert BuildDirectory(tmp_path / "street").rules.background_words
    rows = rows_of(tmp_path / "street")
    # An attempt that one rule rejects is painted again, so that only some images are the same.
    plain = {(row["seed"], *row["classes"]): row for row in rows_of(tmp_path / "out")}
    alike = [row for row in rows if (row["seed"], *row["classes"]) in plain]
    lowered = []
    for row in alike:
        without = plain[row["seed"], *row["classes"]]
        assert row["image"] == without["image"]
        scores, above = (np.asarray(one["scores"], int) for one in (row, without))
        assert (scores <= above + 1).all()
        lowered += [row["prompt"]] * bool((scores < above - 1).any())
    assert lowered
    assert all("street" in prompt for prompt in lowered)

    remask = ["remask", str(tmp_path / "street"), "--out"]
    assert main([*remask, str(tmp_path / "again")]) == 0
    assert same(rows_of(tmp_path / "again"), rows)
    assert main([*remask, str(tmp_path / "without"), "--background-words", "false"]) == 0
    for row in rows_of(tmp_path / "without"):
        if (key := (row["seed"], *row["classes"])) in plain:
            assert np.abs(np.subtract(row["scores"], plain[key]["scores"], dtype=int)).max() <= 1
    capsys.readouterr()
    for folder, option in (("street", ["--normalization", "max"]), ("out", ["--background-words"])):
        assert main(["remask", str(tmp_path / folder), "--out", str(tmp_path / "new"), *option]) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
        assert "the attention of the background words, which rows do not hold" in line


def test_scores_of_a_model_are_stored_and_untrust_classes(command, tmp_path, capsys):
    """The same rows as by `filter`; and `remask` with unchanged rules changes no bit."""
    scorer = ("--score-model", str(save_scorer(tmp_path / "tiny-clip")))
    size = ("--num-images", "3", "--shard-size", "2", "--store-scores", "--store-quality")
    assert command(*size) == 0
    assert main(["filter", str(tmp_path / "out"), "--out", str(tmp_path / "scored"), *scorer]) == 0
    plain, scored = rows_of(tmp_path / "out"), rows_of(tmp_path / "scored")
    presence = sorted(value for row in scored for value in row["presence"])
    least = presence[len(presence) // 2]
    assert command(*size, *scorer, "--min-presence", str(least), out="built") == 0
    said = capsys.readouterr().out
    built = rows_of(tmp_path / "built")
    untrusted = 0
    for row, before, other in zip(built, plain, scored, strict=True):
        assert row["clip_score"] == pytest.approx(other["clip_score"], abs=1e-5)
        assert row["presence"] == pytest.approx(other["presence"], abs=1e-5)
        low = [k for k, value in zip(row["classes"], row["presence"], strict=True) if value < least]
        expected = np.where(np.isin(pixels(row["mask"]), low), 0, pixels(before["reliability"]))
        assert np.array_equal(pixels(row["reliability"]), expected)
        assert row["reliable"] == pytest.approx((expected > 0).mean())
        assert (row["mask"], row["image_hash"]) == (before["mask"], before["image_hash"])
        untrusted += len(low)
    assert untrusted == len(presence) // 2 > 0
    report = json.loads((tmp_path / "built" / "report.json").read_text())
    assert sum(map(len, report["untrusted"].values())) == untrusted
    assert f"{untrusted} classes in {len(report['untrusted'])} rows are untrusted" in said
    identity = BuildDirectory(tmp_path / "built").record()["identity"]
    assert (identity["score_model"], identity["min_presence"]) == ("tiny-clip", least)
    assert main(["remask", str(tmp_path / "built"), "--out", str(tmp_path / "again")]) == 0
    assert rows_of(tmp_path / "again") == built
    assert command(*size, *scorer, out="built") == 2
    assert f"min_presence (there {least}, now None)" in capsys.readouterr().err
    assert command(*size, "--min-presence", "0.2") == 2
    assert "--min-presence is used only with --score-model" in capsys.readouterr().err


def test_background_words_belong_to_the_identity_of_a_build(command, tmp_path, capsys):
    assert command("--num-images", "2") == 0
    plain = BuildDirectory(tmp_path / "out").record()["identity"]
    assert command("--num-images", "2", "--background-words") == 2
    assert "background_words (there False, now True)" in capsys.readouterr().err
    assert command("--num-images", "2", "--background-words", out="street") == 0
    competing = BuildDirectory(tmp_path / "street").record()["identity"]
    differing = {name for name in plain if plain[name] != competing[name]}
    assert differing == {"background_words", "word_lists"}  # the rows depend on the list of background words


def test_attention_that_is_not_there_is_named_in_one_line(command, tmp_path, capsys):
    assert command("--num-images", "1", "--store-maps") == 0
    remask = ["remask", str(tmp_path / "out"), "--out", str(tmp_path / "new")]
    capsys.readouterr()
    for options, expected in (
        (["--preset", "dataset-diffusion-like"], "build with --store-maps --store-self-attention"),
        (["--preset", "replication"], "were fixed while painting"),
        (["--record-to", "0.5"], "were fixed while painting"),
    ):
        assert main([*remask, *options]) == 2
        (line,) = (line for line in capsys.readouterr().err.splitlines() if "error" in line)
        assert expected in line
    assert command("--num-images", "1", "--store-scores", out="scores") == 0
    assert main(["remask", str(tmp_path / "scores"), "--preset", "daam-like"]) == 2
    assert "from scores alone" in capsys.readouterr().err
    assert command("--num-images", "1", "--store-self-attention", out="new") == 2
    assert "--store-self-attention is used only with --store-maps" in capsys.readouterr().err


def test_an_image_that_cannot_be_used_has_no_maps(command, tmp_path, monkeypatch):
    def dark(self, prompts, seeds, painting):
        images, maps, faults = paint(self, prompts, seeds, painting)
        return images, maps, [fault if k else "black" for k, fault in enumerate(faults)]

    paint = Painter.paint
    monkeypatch.setattr(Painter, "paint", dark)
    options = ("--num-images", "4", "--store-maps", "--store-self-attention", "--preset", "photo")
    assert command(*options) == 0
    rows = rows_of(tmp_path / "out")
    empty = [row for row in rows if not row["classes"]]
    assert empty
    assert all(row["maps"] == [] and row["scores"] == [] for row in empty)
    out = ["--out", str(tmp_path / "new"), "--preset", "dataset-diffusion-like"]
    assert main(["remask", str(tmp_path / "out"), *out]) == 0
    assert len(rows_of(tmp_path / "new")) == 4


def test_classes_that_fail_are_dropped_with_a_reason_and_rows_number_the_same(command, tmp_path, monkeypatch):
    def flat(self, prompts, seeds, painting):
        images, maps, faults = paint(self, prompts, seeds, painting)
        for of_image in maps:
            for of_size in of_image.values():
                for values in of_size.values():
                    values.fill_(0.01)
        return images, maps, faults

    paint = Painter.paint
    monkeypatch.setattr(Painter, "paint", flat)
    assert command("--num-images", "3", "--store-scores") == 0
    rows = rows_of(tmp_path / "out")
    assert [row["classes"] for row in rows] == [[], [], []]
    assert all((pixels(row["mask"]) == 255).all() and (pixels(row["reliability"]) == 0).all() for row in rows)
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rows_with_foreground"] == 0
    assert report["rejected_attempts"] == 6
    assert set(report["dropped"]) == {row["sample_id"] for row in rows}
    assert main(["remask", str(tmp_path / "out"), "--out", str(tmp_path / "again")]) == 0
    assert rows_of(tmp_path / "again") == rows


def test_a_rejected_sample_is_tried_with_its_next_prompt_and_seed(command, tmp_path, monkeypatch):
    def black_at_first(self, prompts, seeds, painting):
        images, maps, faults = paint(self, prompts, seeds, painting)
        seen.append(seeds)
        return images, maps, ["the image is black", *faults[1:]] if len(seen) == 1 else faults

    paint, seen = Painter.paint, []
    monkeypatch.setattr(Painter, "paint", black_at_first)
    assert command("--num-images", "4", "--batch-size", "4") == 0
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["rejected"]["voc-0-00000000"][0] == "attempt 0: the image is black"
    assert rows_of(tmp_path / "out")[0]["seed"] == seen[1][0] != seen[0][0]


@pytest.mark.parametrize("fault", ["the image is not a number (NaN)", "the image is black (safety checker)"])
def test_a_model_whose_images_cannot_be_used_ends_the_build(command, tmp_path, monkeypatch, capsys, fault):
    def useless(self, prompts, seeds, painting):
        images, maps, _ = paint(self, prompts, seeds, painting)
        return images, maps, [fault] * len(prompts)

    paint = Painter.paint
    monkeypatch.setattr(Painter, "paint", useless)
    assert command("--num-images", "40", "--shard-size", "20") == 2
    assert f"none of 16 images can be used: {fault}; a model that overflows" in capsys.readouterr().err
    assert command("--num-images", "1", out="one") == 2
    assert "none of 2 images" in capsys.readouterr().err


def test_a_full_disk_is_one_line_and_the_build_goes_on_later(command, tmp_path, monkeypatch, capsys):
    def full(descriptor: int) -> None:
        if (tmp_path / "out" / "manifest" / "00000.json").exists():
            raise OSError(28, os.strerror(28))

    monkeypatch.setattr(os, "fsync", full)
    assert command("--num-images", "4", "--shard-size", "2") == 2
    assert "No space left on device; free some space" in capsys.readouterr().err.splitlines()[-1]
    assert [file.name for file in (tmp_path / "out" / "data").iterdir()] == ["train-00000.parquet"]


def test_an_interrupt_is_one_line_and_status_130(command, monkeypatch, capsys):
    def interrupted(self, *args, **options):
        raise KeyboardInterrupt

    monkeypatch.setattr(Painter, "paint", interrupted)
    assert command("--num-images", "2") == 130
    assert "attn2mask: interrupted; run the same command again" in capsys.readouterr().err.splitlines()[-1]


def test_a_tables_caption_style_decides_the_size():
    model = Painting(steps=50, guidance_scale=7.5, height=64, width=64)
    painter = SimpleNamespace(defaults=model, family=UNET, pixel_multiple=8, check=lambda *asked: None)

    def size(name: str, **options: int) -> tuple[int, int]:
        config = build.resolve(build.BuildConfig(name, **options)).for_painter(painter).config
        return config.width, config.height

    assert size("voc") == (64, 64)
    assert size("voc", width=128) == (128, 64)
    assert size("cityscapes") == (128, 64)
    assert size("cityscapes", height=32) == (64, 32)
    assert size("cityscapes", width=64) == (64, 32)
    assert size("cityscapes", width=64, height=64) == (64, 64)


def test_the_classes_of_a_table_of_things_take_turns(tmp_path):
    def balance(name: str, **options: bool) -> bool:
        return build.resolve(build.BuildConfig(name, **options)).balance

    names = ("voc", "cityscapes", "imagenet_s_919")
    assert [balance(name) for name in names] == [True, False, True]
    assert [balance(name, no_balance=True) for name in names] == [False] * 3
    file = tmp_path / "t.yaml"
    for classes, style, expected in (
        ("{name: mug}, {name: kettle}", "", True),
        ("{name: mug}, {name: kettle}", "caption_style: {balance: false}", False),
        ("{name: mug}, {name: floor, thing: false}", "", False),
        ("{name: mug}, {name: floor, thing: false}", "caption_style: {balance: true}", True),
        ("{name: mug}", "", False),
    ):
        file.write_text(f"name: t\nclasses: [{classes}]\n{style}")
        assert balance(str(file)) is expected


def test_the_rows_of_each_class_are_printed_before_painting(command, capsys, monkeypatch):
    monkeypatch.setattr(Painter, "paint", lambda *_: pytest.fail("painted"))
    with pytest.raises(pytest.fail.Exception):
        command("--num-images", "6")
    out = capsys.readouterr().out.splitlines()
    counts = dict(
        pair.rsplit(" ", 1) for pair in out[0].removeprefix("rows that name each class, of 6: ").split(", ")
    )
    assert len(counts) == 20
    assert all(int(counts[name]) >= 2 for name in ("dog", "cat", "bus"))
    assert out[1].startswith("no caption serves aeroplane, bicycle, bird")


def test_a_dry_run_counts_and_writes_nothing_else(tiny_model, captions, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(
        "attn2mask.builders.painter.load_painter", lambda *_: pytest.fail("weights are loaded")
    )
    file = tmp_path / "more.txt"
    file.write_text("\n".join([*CAPTIONS, "a bench and a dog", "a kite"]))
    command = ["build", "voc", "--model", str(tiny_model("sd15")), "--captions", str(file), "--dry-run"]
    before = set(tmp_path.rglob("*"))
    assert main([*command, "--num-images", "30"]) == 0
    shown = capsys.readouterr().out
    assert "4 of 6 captions are used" in shown
    assert set(tmp_path.rglob("*")) == before
    assert main([*command, "--num-images", "30", "--out", str(tmp_path / "new" / "counts.json")]) == 0
    assert set(tmp_path.rglob("*")) - before == {tmp_path / "new", tmp_path / "new" / "counts.json"}
    counts = json.loads((tmp_path / "new" / "counts.json").read_text())
    assert list(counts) == ["read", "selected", "rows", "unserved", "unlabelled"]
    assert (counts["read"], counts["selected"], counts["unlabelled"]) == (6, 4, {})
    named = {name: number for name, number in counts["rows"].items() if number}
    assert set(named) == {"bus", "cat", "dog"}
    assert min(named.values()) == 10
    assert len(counts["unserved"]) == 17
    assert re.search(rf"dog +{named['dog']}\n", shown)


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--out", "counts"], "--out counts: with --dry-run, give the name of a .json file"),
        (["--push-to-hub", "me/data"], "--dry-run makes no dataset: leave out --push-to-hub"),
        (["--model", "nowhere"], "there is no model 'nowhere'"),
    ],
)
def test_mistakes_with_a_dry_run(capsys, options, said):
    assert main(["build", "voc", "--dry-run", *options]) == 2
    assert said in capsys.readouterr().err.splitlines()[-1]


def test_the_list_of_aliases_is_part_of_a_build(command, tmp_path, capsys):
    file = tmp_path / "people.txt"
    file.write_text("a person on a street\n")
    options = ["--captions", str(file), "--num-images", "4", "--no-balance", "--alias-probability", "1"]
    assert command(*options, "--aliases", "paper") == 0
    identity = json.loads((tmp_path / "out" / "build.json").read_text())["identity"]
    assert identity["aliases"] == "paper"
    assert identity["word_lists"].startswith("sha256:")
    assert command(*options) == 2
    assert "aliases (there 'paper', now 'default')" in capsys.readouterr().err.splitlines()[-1]


def test_balance_needs_two_classes(command, tmp_path, capsys):
    file = tmp_path / "dogs.txt"
    file.write_text("a dog\na puppy\n")
    assert command("--captions", str(file), "--num-images", "2") == 2
    assert "name only one class of table 'voc' (dog)" in capsys.readouterr().err.splitlines()[-1]
    assert command("--captions", str(file), "--num-images", "2", "--no-balance") == 0


def test_a_build_of_older_prompt_rules_does_not_go_on(command, tmp_path, capsys):
    assert command("--num-images", "2") == 0
    file = tmp_path / "out" / "build.json"
    record = unsealed(file.read_bytes())
    del record["identity"]["prompt_rules"], record["identity"]["balance"]
    file.write_bytes(sealed(record))
    assert command("--num-images", "4") == 2
    said = capsys.readouterr().err.splitlines()[-1]
    assert "was begun under older prompt rules (version 1, now 2)" in said
    assert "use another --out" in said
    assert unsealed(file.read_bytes()) == record


TABLE = """
name: kitchen
background: {background}
classes:
{classes}
"""


@pytest.mark.parametrize(("background", "extra"), [("false", 0), ("other", 0), ("true", 300)])
def test_user_tables_without_background_and_of_many_classes(command, tmp_path, background, extra):
    names = ["dog", "cat", "bus", *(f"thing number {n}" for n in range(extra))]
    file = tmp_path / "kitchen.yaml"
    file.write_text(
        TABLE.format(background=background, classes="\n".join(f"  - {{name: {name}}}" for name in names))
    )
    assert command("--num-images", "3", table=str(file)) == 0
    data = load_dataset(str(tmp_path / "out"), split="train", cache_dir=str(tmp_path / "cache"))
    ignore, mode = (65535, "I;16") if extra else (255, "P")
    first = 0 if background == "false" else 1
    for row in data:
        assert row["mask"].mode == mode
        assert set(np.unique(row["mask"])) <= {ignore, *row["classes"], *([0] if first else [])}
        assert set(row["classes"]) <= set(range(first, first + 3))
