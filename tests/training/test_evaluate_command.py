"""`attn2mask evaluate`: its files, its output, and what it refuses."""

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from places import DATA
from segmenters import Segmenter, examples, processor

from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cli import main
from attn2mask.training.benchmarks import open_images
from attn2mask.training.checkpoint import make_processor, save_checkpoint
from attn2mask.training.evaluation import evaluate, report
from attn2mask.training.models import build_network

TABLE = load_table("voc")
PHOTOS = DATA / "photos_voc" / "VOC2012"


@pytest.fixture
def dataset(tmp_path):
    """A folder of images/ and masks/ in VOC's classes, one image of it wholly ignored."""
    made = examples(9, classes=4)
    made[4].target[:] = 255
    for kind in ("images", "masks"):
        (tmp_path / "data" / kind).mkdir(parents=True)
    for example in made:
        Image.fromarray(example.image).save(tmp_path / "data" / "images" / f"{example.name}.png")
        mask = Image.fromarray(example.target.astype(np.uint8))
        mask.save(tmp_path / "data" / "masks" / f"{example.name}.png")
    return tmp_path / "data"


@pytest.fixture
def checkpoint(monkeypatch):
    """What `load_checkpoint` gives to the command; tests may change it."""
    loaded = SimpleNamespace(
        network=Segmenter(0),
        peer=Segmenter(1),
        processor=processor(),
        table_name="voc",
        names=TABLE.names,
        record={},
    )
    monkeypatch.setattr("attn2mask.training.measured.load_checkpoint", lambda *_: loaded)
    return loaded


def command(dataset, *options: str) -> int:
    return main(["evaluate", "--checkpoint", "runs/x", "--dataset", str(dataset), *options])


def test_the_command_writes_a_report_a_chart_and_a_sheet(dataset, checkpoint, tmp_path, capsys):
    out = tmp_path / "new" / "metrics.json"
    assert command(dataset, "--out", str(out), "--scales", "0.75,1", "--flip", "--window", "48") == 0
    found = json.loads(out.read_text())
    assert found["num_images"] == 9
    assert set(found["networks"]) == {"a", "b"}
    assert found["evaluated"]["table"] == "voc"
    assert found["evaluated"]["format_version"] == 3
    assert found["evaluated"]["options"]["scales"] == "0.75,1"
    said = capsys.readouterr().out
    assert f"mean IoU{'':16}{100 * found['mean_iou']:8.1f}".split() == said.splitlines()[23].split()[:3]
    assert "next: look at" in said
    chart, sheet = (Image.open(out.with_name(f"metrics_{name}.png")) for name in ("iou", "images"))
    assert chart.width > 500
    assert sheet.height > sheet.width  # six rows
    assert f" s: {out}, " in said
    again = out.with_name("again.json")
    assert main(["evaluate", "--config", str(out.with_suffix(".yaml")), "--out", str(again)]) == 0
    repeated = json.loads(again.read_text())
    assert repeated.pop("evaluated")["options"] == found.pop("evaluated")["options"]
    assert repeated == found


def test_the_command_with_one_network_and_a_limit(dataset, checkpoint, tmp_path, capsys):
    checkpoint.peer = None
    assert command(dataset, "--out", str(tmp_path / "m.json"), "--num-images", "1") == 0
    assert json.loads((tmp_path / "m.json").read_text())["num_images"] == 1
    said = capsys.readouterr().out
    assert "both" not in said
    assert "m.yaml --scales 0.5,0.75,1,1.25,1.5 --flip --out" in said


def test_plain_scores_stand_beside_those_with_augmentation(dataset, checkpoint, tmp_path, capsys):
    plain, augmented = tmp_path / "plain.json", tmp_path / "augmented.json"
    assert command(dataset, "--out", str(plain)) == 0
    assert command(dataset, "--out", str(augmented), "--scales", "1,1.5", "--window", "40") == 0
    alone, beside = (json.loads(file.read_text()) for file in (plain, augmented))
    assert "plain" not in alone
    assert beside["plain"] == {key: alone[key] for key in beside["plain"]}
    assert {"mean_iou", "per_class_iou", "boundary_iou", "networks"} <= beside["plain"].keys()
    assert beside["mean_iou"] != alone["mean_iou"]
    said = capsys.readouterr().out
    values = (beside["plain"], *beside["plain"]["networks"].values())
    numbers = [f"{name}{100 * s['mean_iou']:.1f}" for name, s in zip(("", "a ", "b "), values, strict=True)]
    assert f"mean IoU without test-time augmentation: {', '.join(numbers)}" in said


def test_scores_after_the_crf_stand_beside_those_without(dataset, checkpoint, tmp_path, capsys):
    plain, refined = tmp_path / "plain.json", tmp_path / "refined.json"
    assert command(dataset, "--out", str(plain), "--num-images", "2") == 0
    assert command(dataset, "--out", str(refined), "--num-images", "2", "--crf", "beco") == 0
    one, other = (json.loads(file.read_text()) for file in (plain, refined))
    assert one["mean_iou"] == other["mean_iou"]
    assert other["evaluated"]["options"]["crf"] == "beco"
    head, *_ = capsys.readouterr().out.split("in the classes of voc\n")[2].splitlines()
    assert head.split() == ["%", "both", "a", "b", "CRF"]
    assert other["crf_mean_iou"] != other["mean_iou"]


@pytest.mark.parametrize(
    ("chosen", "split", "status"), [("val", None, 2), ("val", "val", 2), (None, "val", 2), ("val", "test", 0)]
)
def test_images_that_chose_the_checkpoint_give_no_score(
    dataset, checkpoint, tmp_path, capsys, monkeypatch, chosen, split, status
):
    monkeypatch.setattr("attn2mask.training.benchmarks.open_images", lambda *options: examples(1))
    checkpoint.record = {"chosen_on": {"dataset": str(dataset / "." / ""), "split": chosen}}
    options = () if split is None else ("--split", split)
    assert command(dataset, "--out", str(tmp_path / "m.json"), *options) == status
    if status:
        error = capsys.readouterr().err.splitlines()[-1]
        assert "checkpoint runs/x was chosen on" in error
        assert "measure it on other images" in error
    else:
        recorded = json.loads((tmp_path / "m.json").read_text())["evaluated"]["checkpoint_chosen_on"]
        assert recorded == checkpoint.record["chosen_on"]


def test_scales_are_not_chosen_on_the_images_of_the_score(dataset, checkpoint, tmp_path, capsys):
    out = ("--out", str(tmp_path / "m.json"))
    assert command(dataset, *out, "--scales", "1,2", "--chosen-on", str(dataset)) == 2
    assert "must be chosen on other images" in capsys.readouterr().err.splitlines()[-1]
    assert command(dataset, *out, "--scales", "1,2", "--chosen-on", "other images") == 0
    recorded = json.loads((tmp_path / "m.json").read_text())["evaluated"]["options"]
    assert recorded["chosen_on"] == "other images"


def test_a_table_of_many_classes_is_printed_in_part(dataset, checkpoint, tmp_path, capsys):
    large = load_table("imagenet_s_300")
    checkpoint.table_name, checkpoint.names = large.name, large.names
    checkpoint.network, checkpoint.peer = Segmenter(0, 301), None
    masks = dataset / "masks"
    for file in masks.iterdir():
        mask = np.asarray(Image.open(file)).astype(np.uint16)
        Image.fromarray(np.where(mask == 255, 65535, mask * 70 + 1).astype(np.uint16)).save(file)
    assert command(dataset, "--out", str(tmp_path / "m.json")) == 0
    assert "more classes are in the report" in capsys.readouterr().out
    assert len(json.loads((tmp_path / "m.json").read_text())["per_class_iou"]) == 301


def test_a_users_own_table_needs_its_names_alone(dataset, checkpoint, tmp_path, capsys):
    names = ("background", "mug", "kettle", "spoon")
    checkpoint.table_name, checkpoint.names = "kitchen", names
    checkpoint.network, checkpoint.peer = Segmenter(0, 4), Segmenter(1, 4)
    assert command(dataset, "--out", str(tmp_path / "m.json")) == 0
    assert list(json.loads((tmp_path / "m.json").read_text())["per_class_iou"]) == list(names)
    file = tmp_path / "pantry.yaml"
    content = {"name": "pantry", "classes": [{"name": name} for name in ("mug", "kettle", "fork")]}
    file.write_text(yaml.safe_dump(content))
    capsys.readouterr()
    assert command(dataset, "--table", str(file)) == 2
    assert "has other classes than pantry: id 3 is 'spoon' against 'fork'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--scales", "0.5,x"], "--scales 0.5,x: it must be numbers above 0"),
        (["--scales", "0"], "--scales 0: it must be numbers above 0"),
        (["--scales", "nan"], "--scales nan: it must be numbers above 0"),
        (["--window", "8"], "--window 8: it must be at least 32"),
        (["--num-images", "0"], "--num-images 0: it must be at least 1"),
        (["--out", "metrics.txt"], "--out metrics.txt: the name must end in .json"),
        (["--table", "vox"], "class table 'vox'"),
        (["--table", "cityscapes"], "has other classes than cityscapes: 21 names against 19"),
        (["--split", "test"], "has no split 'test'"),
        (["--dataset", "./missing"], "no dataset ./missing: there is no such folder"),
        (["--checkpoint", ""], "give either --checkpoint"),
        (["--crf", "irn"], "--crf"),
    ],
)
def test_mistakes_are_one_line(dataset, checkpoint, tmp_path, monkeypatch, capsys, options, message):
    monkeypatch.chdir(tmp_path)
    assert command(dataset, *options) == 2
    *progress, error = capsys.readouterr().err.splitlines()
    assert message in error
    assert all(line.startswith(("Evaluating ", "Loading ")) for line in progress)
    assert not list(tmp_path.glob("*.json"))


def test_a_broken_mask_is_named(dataset, checkpoint, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Image.fromarray(np.full((40, 40), 77, np.uint8)).save(dataset / "masks" / "image 2.png")
    assert command(dataset) == 2
    assert "image 2.png: id 77 is neither" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("*.json"))


def test_masks_are_reduced_as_the_image_processor_says(checkpoint, tmp_path):
    """As those of ADE20K: id k is class k - 1, and id 0 is ignored."""

    class Gray(Segmenter):
        """Predicts the class that is the gray level of the pixel."""

        def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
            level = (pixel_values[:, :1] + 1) * 127.5
            return SimpleNamespace(logits=-(level - torch.arange(3.0).view(1, 3, 1, 1)).abs())

    classes = np.arange(3, dtype=np.uint8).repeat(20)[:, None].repeat(40, 1)
    checkpoint.names, checkpoint.network, checkpoint.peer = ("wall", "sky", "tree"), Gray(0, 3), None
    checkpoint.processor.do_reduce_labels = True
    ids = classes + 1
    ids[:10], ids[30:35] = 0, 255
    for kind, array in (("images", classes), ("masks", ids)):
        (tmp_path / "ade" / kind).mkdir(parents=True)
        Image.fromarray(array).save(tmp_path / "ade" / kind / "a.png")
    assert command(tmp_path / "ade", "--out", str(tmp_path / "m.json")) == 0
    assert json.loads((tmp_path / "m.json").read_text())["mean_iou"] == 1
    Image.fromarray(classes[..., None].repeat(3, 2)).save(tmp_path / "ade" / "masks" / "a.png")
    assert command(tmp_path / "ade", "--out", str(tmp_path / "m.json")) == 2


def test_the_command_reads_a_real_checkpoint(dataset, tmp_path, capsys):
    networks = [build_network("deeplabv3plus", "scratch:small", TABLE, seed) for seed in (0, 1)]
    save_checkpoint(tmp_path / "run", *networks, make_processor(64), {})
    options = ["--dataset", str(dataset), "--out", str(tmp_path / "m.json"), "--num-images", "2"]
    assert main(["evaluate", "--checkpoint", str(tmp_path / "run"), *options]) == 0
    found = json.loads((tmp_path / "m.json").read_text())
    images = open_images(str(dataset), None, TABLE)
    evaluation = evaluate(networks, make_processor(64), images, TABLE, indices=range(2), progress=False)
    expected = report(evaluation)
    assert {name: found[name] for name in expected} == expected
    capsys.readouterr()
    assert main(["evaluate", "--checkpoint", str(dataset), "--dataset", str(dataset)]) == 2
    assert "holds no config.json" in capsys.readouterr().err.splitlines()[-1]


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the real photographs are not here")
def test_the_command_scores_real_photographs(checkpoint, tmp_path):
    assert command(PHOTOS, "--split", "val", "--num-images", "3", "--out", str(tmp_path / "m.json")) == 0
    assert json.loads((tmp_path / "m.json").read_text())["num_images"] == 3
