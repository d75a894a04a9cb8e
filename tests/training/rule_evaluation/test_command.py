"""`attn2mask evaluate-rules`: its files, its figures on drawn scenes and photographs, and what it refuses."""

import json

import numpy as np
import pytest
from PIL import Image
from places import DATA

from attn2mask.builders.label import label_image
from attn2mask.builders.options import parse
from attn2mask.builders.painter import load_painter
from attn2mask.builders.rules import load_rules
from attn2mask.builders.scores import class_scores, quantize
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cli import main
from attn2mask.training.benchmarks import open_images
from attn2mask.training.mask_quality import class_prompt, record_image
from attn2mask.training.rule_evaluation import command
from attn2mask.training.rule_evaluation.command import EvaluateRulesConfig
from attn2mask.training.rule_evaluation.simulation import LEVELS

PHOTOS = DATA / "photos_voc" / "VOC2012"
KEYS = ["coarse", "refined", "small_refined", "classes_lost", "classes", "reliable", "precision"]


@pytest.fixture(scope="module")
def drawn(tmp_path_factory):
    """Drawn scenes with grain and hatching."""
    folder = tmp_path_factory.mktemp("scenes") / "shifted"
    assert main(["draw", "shifted", "--num-images", "2", "--out", str(folder)]) == 0
    return folder


def evaluate_rules(dataset, out, *options: str) -> dict:
    arguments = ["--dataset", str(dataset), "--out", str(out), "--workers", "1", *options]
    assert main(["evaluate-rules", *arguments]) == 0
    return json.loads(out.read_text())


def test_the_command_compares_presets_on_drawn_scenes(drawn, tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(command, "SIDE", 128)
    out = tmp_path / "new" / "rules.json"
    report = evaluate_rules(drawn, out, "--presets", "photo", "paper", "--seed", "3")
    assert list(report["presets"]) == ["photo", "paper"]
    for preset in report["presets"].values():
        assert [key for key in preset if key in KEYS] == KEYS
        assert list(preset["levels"]) == list(LEVELS)
        assert all(0 <= preset[key] <= 1 for key in KEYS if key not in ("small_refined", *KEYS[3:5]))
        levels = preset["levels"].values()
        assert preset["refined"] == pytest.approx(np.mean([level["refined"] for level in levels]))
        assert preset["classes"] == sum(level["classes"] for level in levels) > 0
        assert preset["levels"]["absent class named"]["absent"] is not None
        halves = [half["classes"] for half in preset["halves"].values()]
        assert list(preset["halves"]) == ["even", "odd"]
        assert sum(halves) == preset["classes"]
    assert report["options"]["seed"] == 3
    assert set(report["attention"]["simulated"]) == set(LEVELS)
    assert report["images"] == 2
    printed = capsys.readouterr().out
    assert "leak from another class" in printed
    assert f"{report['presets']['photo']['refined']:.3f}" in printed
    with Image.open(out.with_suffix(".png")) as sheet:
        assert min(sheet.size) > 300
    options = ["--config", str(out.with_suffix(".yaml")), "--out", str(tmp_path / "again.json")]
    assert main(["evaluate-rules", *options]) == 0
    again = json.loads((tmp_path / "again.json").read_text())
    assert again["presets"] == report["presets"]


def test_a_painter_is_recorded_on_drawn_scenes(drawn, tmp_path):
    report = evaluate_rules(drawn, tmp_path / "rules.json", "--model", "embedded", "--presets", "embedded")
    found = report["presets"]["embedded"]
    assert list(found["levels"]) == ["embedded"]
    assert report["attention"]["recorded"]["model"] == "embedded"
    assert report["attention"]["recorded"]["timestep"] == 350
    # The same by hand, for the pixels that are labeled.
    table, rules, painter = load_table("voc"), load_rules("embedded"), load_painter()
    covered = []
    for index, example in enumerate(open_images(str(drawn), None, table)):
        ids = [int(k) for k in np.unique(example.target) if 0 < k < 255]
        prompt = class_prompt(ids, "", table, painter, np.random.default_rng([0, index]))
        image = record_image(painter, example.image, prompt, index)
        scores = quantize(class_scores(image.maps, rules, 16)[0])
        labels = label_image(example.image, scores, rules, True)
        covered.append((labels.reliability >= 128)[example.target != 255].mean())
    assert found["reliable"] == pytest.approx(np.mean(covered), abs=0.01)


def test_a_painter_that_takes_no_given_images_is_refused(drawn, tmp_path, family_model, capsys):
    out = tmp_path / "rules.json"
    model = str(family_model("sd3"))
    assert main(["evaluate-rules", "--dataset", str(drawn), "--out", str(out), "--model", model]) == 2
    said = capsys.readouterr().err.strip().splitlines()[-1]
    assert "images can be given to Stable Diffusion 1.x, 2.x and XL alone" in said
    assert not out.exists()


@pytest.mark.skipif(not PHOTOS.is_dir(), reason=f"there are no photographs in {PHOTOS}")
def test_photo_is_better_than_paper_on_photographs(tmp_path, monkeypatch):
    monkeypatch.setattr(command, "SIDE", 256)
    options = ["--num-images", "6", "--presets", "photo", "paper"]
    presets = evaluate_rules(PHOTOS, tmp_path / "rules.json", *options)["presets"]
    photo, paper = presets["photo"], presets["paper"]
    assert photo["refined"] > paper["refined"]
    assert photo["classes_lost"] <= paper["classes_lost"]
    assert photo["absent"] <= paper["absent"]
    for level in ("blur 1, noise 0.006", "blur 1.6, noise 0.025"):
        assert photo["levels"][level]["refined"] > paper["levels"][level]["refined"]


def test_a_class_without_room_in_the_prompt_has_no_map(tmp_path, drawn, monkeypatch):
    """Its scores are 0, so that it is lost."""

    def only_the_first(classes, *rest):
        return class_prompt(classes[:1], *rest)

    monkeypatch.setattr("attn2mask.training.mask_quality.class_prompt", only_the_first)
    report = evaluate_rules(drawn, tmp_path / "rules.json", "--model", "embedded", "--presets", "embedded")
    found = report["presets"]["embedded"]
    assert found["classes_lost"] >= found["classes"] - report["images"]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--presets", "photo", "dataset-diffusion-like"],
            "--presets dataset-diffusion-like: its rules need self-attention",
        ),
        (
            ["--presets", "photo", "default"],
            "--presets default: there is no such preset; choose from daam-like",
        ),
        (["--out", "rules.txt"], "--out rules.txt: the name must end in .json"),
        (["--revision", "main"], "--revision is used only with --model"),
        (["--num-images", "0"], "--num-images 0: it must be at least 1"),
        (["--split", "test"], "test"),
    ],
)
def test_mistakes_are_one_line(drawn, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert main(["evaluate-rules", "--dataset", str(drawn), *options]) == 2
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("attn2mask: error: ")
    assert message in error
    assert not list(tmp_path.glob("rules*"))


def test_images_that_show_nothing_are_refused(tmp_path, capsys):
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
        Image.new("L", (64, 64)).save(tmp_path / "data" / kind / "empty.png")
    assert (
        main(["evaluate-rules", "--dataset", str(tmp_path / "data"), "--out", str(tmp_path / "a.json")]) == 2
    )
    assert "no image of" in capsys.readouterr().err.splitlines()[-1]


def test_the_presets_of_this_project_are_compared_without_a_choice():
    config = parse(EvaluateRulesConfig, ["--dataset", "data"], "evaluate-rules", "")
    assert config.presets is None
    assert list(config.rules()) == ["embedded", "paper", "photo", "replication"]
    assert list(parse(EvaluateRulesConfig, ["--dataset", "d", "--presets", "paper"], "", "").rules()) == [
        "paper"
    ]
