"""`attn2mask evaluate --method`: every method by the command, and what it refuses."""

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import yaml
from PIL import Image
from places import DATA
from zeroshot_models import save_align, save_clip, save_clipseg
from zeroshot_models_grouping import save_model

from attn2mask.builders.images import read_image
from attn2mask.hub.cli import main

PHOTOS = DATA / "photos_voc" / "VOC2012"
MAKERS = {
    "maskclip": save_clip,
    "sclip": save_clip,
    "naclip": save_clip,
    "align": save_align,
    "clipseg": save_clipseg,
    **{
        method: lambda folder, method=method: save_model(method, folder)
        for method in ("groupvit", "ovsegmentor", "clippy")
    },
}
METHODS = [*MAKERS, "attention"]


def usual(*methods: str) -> list:
    """All methods; those that are not among `methods` belong to the slow run."""
    slow = pytest.mark.slow
    return [name if name in methods else pytest.param(name, marks=slow) for name in METHODS]


needs_photos = pytest.mark.skipif(not PHOTOS.is_dir(), reason="the real photographs are not here")


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    """The folder of a tiny random model of a method; the embedded painter for `attention`."""
    made: dict[str, str] = {"attention": "embedded"}

    def of(method: str) -> str:
        if method not in made:
            folder = tmp_path_factory.mktemp(method)
            MAKERS[method](folder)
            made[method] = str(folder)
        return made[method]

    return of


def write_images(folder: Path, sizes: list[tuple[int, int]], classes: int) -> Path:
    """A folder of images/ and masks/ with blocks of colors and of ids."""
    rng = np.random.default_rng(3)
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True)
    for number, (height, width) in enumerate(sizes):
        blocks = rng.integers(0, classes, (5, 5)).repeat(40, 0).repeat(40, 1)[:height, :width]
        image = rng.integers(0, 256, (5, 5, 3), np.uint8).repeat(40, 0).repeat(40, 1)[:height, :width]
        Image.fromarray(blocks.astype(np.uint8)).save(folder / "masks" / f"{number}.png")
        Image.fromarray(image).save(folder / "images" / f"{number}.png")
    return folder


def user_table(file: Path) -> str:
    content = {"name": "kitchen", "classes": [{"name": name} for name in ("mug", "kettle", "spoon")]}
    file.write_text(yaml.safe_dump(content))
    return str(file)


def evaluate(method: str, weights: str, dataset: Path, out: Path, *options: str) -> dict:
    command = ["evaluate", "--method", method, "--weights", weights, "--dataset", str(dataset)]
    assert main([*command, "--out", str(out), "--size", "64", *options]) == 0
    return json.loads(out.read_text())


def predictions(out: Path) -> list[np.ndarray]:
    files = sorted(out.with_name(f"{out.stem}_predictions").glob("*_prediction.png"))
    return [np.asarray(Image.open(file)) for file in files]


@needs_photos
@pytest.mark.parametrize("method", usual("maskclip", "clipseg"))
def test_every_method_runs_on_photographs(method, weights, tmp_path, capsys):
    found = evaluate(
        method, weights(method), PHOTOS, tmp_path / "m.json", "--split", "val", "--num-images", "2"
    )
    assert found["num_images"] == 2
    assert found["evaluated"]["classes_scored"] == 21
    recorded = found["evaluated"]["method"]
    assert recorded["name"] == method
    assert recorded["weights"] == weights(method)
    assert recorded["protocol"]["size"] == 64
    assert recorded["protocol"]["background"] == "words"
    assert recorded.get("trained_with_masks", False) == (method == "clipseg")
    assert [image["name"] for image in found["image_counts"]] == found["evaluated"]["fixed_images"]["names"]
    assert "attn2mask compare" in capsys.readouterr().out
    assert not (tmp_path / "m_progress.jsonl").exists()


@pytest.mark.parametrize("method", usual(*MAKERS))
def test_batches_windows_and_odd_sizes_give_the_ids_of_single_images(method, weights, tmp_path):
    """A user's table, images of several sizes, and rows of windows."""
    data = write_images(tmp_path / "data", [(61, 90), (61, 90), (90, 61), (64, 64), (61, 90)], 4)
    options = ["--table", user_table(tmp_path / "kitchen.yaml"), "--window", "48", "--overlap", "0.25"]
    single, batched = (
        evaluate(
            method, weights(method), data, tmp_path / f"{size}.json", *options, "--batch-size", str(size)
        )
        for size in (1, 4)
    )
    for one, other in zip(predictions(tmp_path / "1.json"), predictions(tmp_path / "4.json"), strict=True):
        assert (one == other).all()
    assert single["image_counts"] == batched["image_counts"]
    assert list(single["per_class_iou"]) == ["background", "mug", "kettle", "spoon"]


@pytest.mark.parametrize("method", METHODS)
def test_every_method_runs_on_cityscapes(method, weights, tmp_path):
    names = ["a_000000_000019", "a_000001_000019"]
    data = write_images(tmp_path / "folder", [(48, 96), (48, 96)], 19)
    for number, name in enumerate(names):
        for kind, source, ending in (
            ("leftImg8bit", "images", "leftImg8bit"),
            ("gtFine", "masks", "gtFine_labelTrainIds"),
        ):
            folder = tmp_path / "city" / kind / "val" / "a"
            folder.mkdir(parents=True, exist_ok=True)
            shutil.copy(data / source / f"{number}.png", folder / f"{name}_{ending}.png")
    found = evaluate(method, weights(method), tmp_path / "city", tmp_path / "m.json", "--num-images", "1")
    assert found["evaluated"]["table"] == "cityscapes"
    assert found["evaluated"]["classes_scored"] == 19
    assert found["evaluated"]["method"]["protocol"]["background"] == "none"
    assert found["evaluated"]["method"]["protocol"]["words"] == []


def test_the_background_is_not_scored_without_a_rule_for_it(weights, tmp_path):
    data = write_images(tmp_path / "data", [(64, 64)], 21)
    options = ("--table", "voc", "--background")
    found = evaluate("maskclip", weights("maskclip"), data, tmp_path / "m.json", *options, "none")
    assert found["evaluated"]["classes_scored"] == 20
    assert found["per_class_iou"]["background"] is None
    assert not any(
        target == 0 or ids == 0 for image in found["image_counts"] for target, ids, _ in image["confusion"]
    )
    found = evaluate(
        "maskclip", weights("maskclip"), data, tmp_path / "m.json", *options, "threshold", "--threshold", "1"
    )
    assert found["evaluated"]["classes_scored"] == 21
    assert {ids for image in found["image_counts"] for _, ids, _ in image["confusion"]} == {0}


def test_words_of_a_file_compete_as_background(weights, tmp_path):
    data = write_images(tmp_path / "data", [(64, 64)], 4)
    (tmp_path / "words.txt").write_text("steam\n\nmug\ntable cloth\n")
    options = ("--table", user_table(tmp_path / "kitchen.yaml"), "--words", str(tmp_path / "words.txt"))
    found = evaluate("maskclip", weights("maskclip"), data, tmp_path / "m.json", *options)
    assert found["evaluated"]["method"]["protocol"]["words"] == ["steam", "table cloth"]


def test_a_killed_evaluation_continues(weights, tmp_path, monkeypatch, caplog):
    data = write_images(tmp_path / "data", [(61, 90)] * 4, 21)
    arguments = ("maskclip", weights("maskclip"), data)
    whole = evaluate(*arguments, tmp_path / "whole.json", "--table", "voc")
    reads = []

    def read_some(source, name, **options):
        reads.append(name)
        if len(reads) == 3:
            raise KeyboardInterrupt
        return read_image(source, name, **options)

    monkeypatch.setattr("attn2mask.training.benchmarks.read_image", read_some)
    command = ["evaluate", "--method", "maskclip", "--weights", weights("maskclip"), "--dataset", str(data)]
    command += ["--table", "voc", "--size", "64", "--out", str(tmp_path / "m.json")]
    assert main(command) == 130
    assert not (tmp_path / "m.json").exists()
    assert main(command) == 0
    assert "Continuing: 2 of 4 images are done" in caplog.text
    found = json.loads((tmp_path / "m.json").read_text())
    different = ("evaluated",)
    assert {k: v for k, v in found.items() if k not in different} == {
        k: v for k, v in whole.items() if k not in different
    }


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--method", "maskclip", "--checkpoint", "runs/x"], "give either --checkpoint"),
        (["--method", "mask2former"], "invalid choice: 'mask2former'"),
        (["--checkpoint", "runs/x", "--weights", "y"], "--weights is only for zero-shot methods"),
        (["--method", "align", "--protocol", "original"], "no publication defines how align is evaluated"),
        (
            ["--method", "clipseg", "--protocol", "original"],
            "no publication defines how clipseg is evaluated",
        ),
        (
            ["--method", "maskclip", "--protocol", "original", "--table", "cityscapes"],
            "the protocol of maskclip is for VOC's classes, not for cityscapes",
        ),
        (
            ["--method", "maskclip", "--protocol", "original", "--background", "words"],
            "the protocol of maskclip's publication has the rule none",
        ),
        (["--method", "sclip", "--protocol", "original", "--size", "64"], "--size changes the protocol"),
        (
            ["--method", "maskclip", "--threshold", "0.3"],
            "--threshold is used only with --background threshold",
        ),
        (["--method", "maskclip", "--words", "missing.txt"], "--words missing.txt cannot be read"),
        (
            ["--method", "maskclip", "--table", "cityscapes", "--background", "words"],
            "the class table cityscapes has no background; take --background none",
        ),
        (["--method", "ovsegmentor"], "--method ovsegmentor needs --weights"),
        (["--method", "maskclip", "--weights", "./missing"], "there is no such folder"),
        (["--method", "maskclip", "--table", ""], "does not name its classes: give their class table"),
    ],
)
def test_mistakes_are_one_line(options, message, tmp_path, monkeypatch, capsys):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.chdir(tmp_path)
    data = write_images(tmp_path / "data", [(32, 32)], 2)
    table = [] if "--table" in options else ["--table", "voc"]
    options = options[: options.index("--table")] if options[-1] == "" else options
    assert main(["evaluate", "--dataset", str(data), *table, *options]) == 2
    *progress, error = capsys.readouterr().err.splitlines()
    assert message in error
    assert all(line.startswith(("Evaluating ", "Loading ")) for line in progress)
    assert not list(tmp_path.glob("*.json*"))
