"""Evaluation against values worked out by hand, torchmetrics and plain loops; and the command around it."""

import itertools
import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
import torch.nn.functional as F
import yaml
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image
from places import DATA
from torch import nn
from torchmetrics.classification import MulticlassConfusionMatrix

from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cli import main
from attn2mask.training import inference
from attn2mask.training.benchmarks import Example, open_images
from attn2mask.training.charts import best_and_worst_classes, iou_chart
from attn2mask.training.checkpoint import make_processor, save_checkpoint
from attn2mask.training.inference import Augmentation, evaluate, report, segment
from attn2mask.training.miou import class_iou, confusion_matrix, count_pixels, mean_iou
from attn2mask.training.models import build_network

TABLE = load_table("voc")
PHOTOS = DATA / "photos_voc" / "VOC2012"


class Segmenter(nn.Module):
    """Logits from each pixel's color alone, at a `stride`-th of the size; `calls`: the sizes seen."""

    def __init__(self, seed: int, classes: int = 21, stride: int = 1) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.layer, self.stride = nn.Conv2d(3, classes, 1), stride
        self.frozen = nn.BatchNorm2d(3).eval()
        self.config = SimpleNamespace(semantic_loss_ignore_index=255)
        self.calls: list[tuple[int, int]] = []

    def forward(self, pixel_values: torch.Tensor) -> SimpleNamespace:
        self.calls.append(tuple(pixel_values.shape[-2:]))
        assert not self.training
        return SimpleNamespace(logits=self.layer(F.avg_pool2d(pixel_values, self.stride)))


def processor(size: tuple[int, int] | None = None):
    """Stands in for an image processor of transformers; `size` (h, w) resizes."""

    def process(images: Image.Image, return_tensors: str) -> dict[str, torch.Tensor]:
        assert return_tensors == "pt"
        resized = images.resize(size[::-1]) if size else images
        return {"pixel_values": torch.from_numpy(np.array(resized)).permute(2, 0, 1)[None] / 127.5 - 1}

    return process


def predict(networks, processor, image: np.ndarray, **augmentation) -> list[torch.Tensor]:
    """Each network's logits (C, H, W) at the size of the image."""
    for network in networks:
        network.eval()
    with torch.no_grad():
        found = inference._logits(networks, processor, image, Augmentation(**augmentation))
    return [F.interpolate(logits, image.shape[:2], mode="bilinear")[0] for logits in found]


def examples(count: int = 3, classes: int = 21) -> list[Example]:
    rng = np.random.default_rng(5)
    made = []
    for i in range(count):
        height, width = rng.integers(33, 60, 2)
        blocks = rng.integers(0, classes + 1, (8, 8))
        blocks[blocks == classes] = 255
        target = blocks.repeat(8, 0).repeat(8, 1)[:height, :width].astype(np.int32)
        image = rng.integers(0, 256, (height, width, 3), np.uint8)
        made.append(Example(f"image {i}", image, target))
    return made


def test_by_hand():
    target = np.array([[0, 0, 1, 1], [2, 2, 255, 255]])
    prediction = np.array([[0, 1, 1, 1], [0, 2, 2, 0]])
    matrix = confusion_matrix(prediction, target, 4)
    assert matrix.sum() == 6
    iou = class_iou(matrix)
    assert iou[:3] == pytest.approx([1 / 3, 2 / 3, 1 / 2])
    assert np.isnan(iou[3])
    assert mean_iou(matrix) == pytest.approx((1 / 3 + 2 / 3 + 1 / 2) / 3)


@pytest.mark.parametrize("nothing", [255, 2, -1])
def test_predictions_that_are_no_class_are_misses(nothing):
    matrix = confusion_matrix(np.array([nothing, 1]), np.array([1, 1]), 2)
    assert class_iou(matrix)[1] == pytest.approx(0.5)
    assert matrix.tolist() == [[0, 0, 0], [0, 1, 1]]


def test_nothing_to_score():
    assert np.isnan(mean_iou(confusion_matrix(np.zeros(4, int), np.full(4, 255), 3)))


@pytest.mark.parametrize("bad", [3, 254, -1, 300])
def test_targets_that_are_no_class_are_refused(bad):
    with pytest.raises(ValueError, match="neither one of 3 classes nor 255"):
        confusion_matrix(np.array([0, 1]), np.array([0, bad]), 3)
    with pytest.raises(ValueError, match="a prediction of"):
        confusion_matrix(np.zeros((2, 3)), np.zeros((3, 2)), 3)


@given(st.data())
def test_against_torchmetrics_and_against_sets_of_pixels(data):
    classes, ignore = data.draw(st.sampled_from([(2, 255), (21, 255), (19, -1), (5, 5), (300, 65535)]))
    shape = data.draw(st.tuples(st.integers(1, 37), st.integers(1, 37)))
    present = data.draw(st.integers(1, classes))  # the classes above are absent
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    prediction, target = rng.integers(0, present, (2, *shape))
    prediction = np.where(rng.random(shape) < 0.5, prediction, target)
    target[rng.random(shape) < data.draw(st.sampled_from([0.0, 0.3, 1.0]))] = ignore
    matrix = confusion_matrix(prediction.astype(np.uint16), target, classes, ignore)

    oracle = MulticlassConfusionMatrix(classes, ignore_index=ignore, validate_args=False)
    oracle.update(torch.from_numpy(prediction), torch.from_numpy(target))
    assert (matrix[:, :classes] == oracle.compute().numpy()).all()
    assert not matrix[:, classes].any()

    kept, places = target != ignore, np.arange(target.size).reshape(shape)
    ious = []
    for c in range(classes):
        ours, theirs = (set(places[kept & (ids == c)].tolist()) for ids in (prediction, target))
        ious.append(len(ours & theirs) / len(ours | theirs) if ours | theirs else np.nan)
    np.testing.assert_allclose(class_iou(matrix), ious, rtol=0, atol=1e-9)
    if kept.any():
        assert mean_iou(matrix) == pytest.approx(np.nanmean(ious), rel=0, abs=1e-9)


def test_many_predictions_are_counted_at_once():
    rng = np.random.default_rng(0)
    found, target = rng.integers(0, 5, (3, 13, 7)), rng.integers(0, 4, (13, 7))
    counts = count_pixels(torch.from_numpy(found).int(), torch.from_numpy(target).int(), 4, 255)
    for count, prediction in zip(counts, found, strict=True):
        assert (count.numpy() == confusion_matrix(prediction, target, 4)).all()


@pytest.mark.parametrize("stride", [1, 4])
@pytest.mark.parametrize("size", [None, (64, 48)])
def test_logits_have_the_size_of_the_image(size, stride):
    image = examples(1)[0].image
    networks = [Segmenter(0, stride=stride), Segmenter(1, stride=stride)]
    found = predict(networks, processor(size), image)
    assert len(found) == 2
    for network, logits in zip(networks, found, strict=True):
        pixels = processor(size)(Image.fromarray(image), "pt")["pixel_values"]
        with torch.no_grad():
            expected = F.interpolate(network.eval()(pixels).logits, pixels.shape[-2:], mode="bilinear")
            expected = F.interpolate(expected, image.shape[:2], mode="bilinear")[0]
        assert logits.shape == (21, *image.shape[:2])
        assert logits.dtype == torch.float32
        torch.testing.assert_close(logits, expected)


def test_windows_and_mirrors_do_not_change_what_depends_on_color_alone():
    image, network = np.random.default_rng(0).integers(0, 256, (75, 131, 3), np.uint8), Segmenter(0)
    (plain,) = predict([network], processor(), image)
    (through,) = predict([network], processor(), image, window=40, flip=True)
    torch.testing.assert_close(through, plain)
    sizes = network.calls[1:]
    assert set(sizes) == {(40, 40)}
    assert len(sizes) == 2 * 3 * 5  # mirrored or not; at least a third of each window overlaps the next
    (whole,) = predict([network], processor(), image, window=200)
    torch.testing.assert_close(whole, plain)
    assert network.calls[-1] == (75, 131)


def test_a_window_wider_than_the_image_is_high_slides_along_its_width():
    network = Segmenter(0)
    predict([network], processor(), np.zeros((40, 100, 3), np.uint8), window=64)
    assert network.calls == [(40, 64)] * 2


@pytest.mark.parametrize(("length", "window"), [(100, 100), (101, 100), (1024, 769), (2048, 769), (97, 33)])
def test_windows_cover_everything_and_overlap(length, window):
    starts = inference._starts(length, window)
    assert starts[0] == 0
    assert starts[-1] == length - window
    assert all(b - a <= window * (1 - inference.OVERLAP) + 1 for a, b in itertools.pairwise(starts))


def test_a_mirrored_view_is_mirrored_back():
    class Ramp(nn.Module):
        def forward(self, pixel_values):
            return SimpleNamespace(logits=torch.arange(40.0).expand(1, 2, 40, 40) * pixel_values.mean())

    (logits,) = predict([Ramp()], processor(), np.full((40, 40, 3), 255, np.uint8), flip=True)
    torch.testing.assert_close(logits, torch.full((2, 40, 40), 19.5))


def test_scales_are_averaged():
    image, network = examples(1)[0].image, Segmenter(0)
    pixels = processor()(Image.fromarray(image), "pt")["pixel_values"]
    height, width = image.shape[:2]
    expected = 0
    for scale in (1.0, 1.5):
        size = (round(height * scale), round(width * scale))
        resized = F.interpolate(pixels, size, mode="bilinear", antialias=True)
        expected = expected + F.interpolate(network.layer(resized), (height, width), mode="bilinear")[0] / 2
    (logits,) = predict([network], processor(), image, scales=(1.0, 1.5))
    torch.testing.assert_close(logits, expected.detach())
    predict([network], processor(), image, scales=(0.1,))
    assert network.calls[-1] == (32, 32)  # no network takes less


def test_labels_of_many_classes_are_found_group_by_group():
    torch.manual_seed(0)
    logits = torch.randn(1, 150, 9, 11).round(decimals=1)
    whole = F.interpolate(logits, (33, 47), mode="bilinear")[0]
    labels = inference._ids(logits, (33, 47), at_once=64)
    assert labels.dtype == torch.int32
    assert (whole.gather(0, labels[None].long())[0] == whole.amax(0)).all()


def test_scores_of_two_networks_are_those_of_plain_loops():
    networks = [Segmenter(0).train(), Segmenter(1).eval()]
    networks[0].frozen.eval()
    images = examples(5)
    evaluation = evaluate(networks, processor(), images, TABLE, progress=False)
    assert networks[0].training
    assert not networks[0].frozen.training
    assert not networks[1].training
    expected = {name: np.zeros((21, 22), np.int64) for name in ("a", "b", "both")}
    given_labels = np.zeros((21, 22), np.int64)
    for index, example in enumerate(images):
        a, b = predict(networks, processor(), example.image)
        for name, logits in {"a": a, "b": b, "both": (a + b) / 2}.items():
            matrix = confusion_matrix(logits.argmax(0).numpy(), example.target, 21)
            expected[name] += matrix
        assert (segment(networks, processor(), example.image) == logits.argmax(0).numpy()).all()
        assert evaluation.image_iou[index] == pytest.approx(mean_iou(matrix), abs=1e-9)
        logits[[k for k in range(1, 21) if k not in example.target]] = -torch.inf
        given_labels += confusion_matrix(logits.argmax(0).numpy(), example.target, 21)
    expected["given_labels"] = given_labels
    assert list(evaluation.metrics) == list(expected)
    parts = [
        evaluate(networks, processor(), images, TABLE, progress=False, indices=range(rank, 5, 2))
        for rank in (0, 1)
    ]
    assert parts[0].image_iou | parts[1].image_iou == evaluation.image_iou
    for name, matrix in expected.items():
        assert (evaluation.metrics[name].matrix == matrix).all()
        assert (parts[0].metrics[name].matrix + parts[1].metrics[name].matrix == matrix).all()
        assert parts[0].metrics[name].num_images + parts[1].metrics[name].num_images == 5
    assert report(evaluation)["mean_iou_given_labels"] == pytest.approx(mean_iou(given_labels), abs=1e-9)


def test_one_network_is_its_own_mean():
    network = Segmenter(0)
    metrics = evaluate([network], processor(), examples(2), TABLE, progress=False, device="cpu").metrics
    assert list(metrics) == ["a", "both", "given_labels"]
    assert (metrics["a"].matrix == metrics["both"].matrix).all()
    assert len(network.calls) == 2


def test_the_report_is_json_with_nothing_where_nothing_was_measured():
    ignored = Example("ignored", np.zeros((32, 32, 3), np.uint8), np.full((32, 32), 255, np.int32))
    networks = [Segmenter(0), Segmenter(1)]
    evaluation = evaluate(networks, processor(), examples(2, classes=3), TABLE, progress=False)
    matrix = evaluation.metrics["b"].matrix
    found = json.loads(json.dumps(report(evaluation), allow_nan=False))
    keys = ["mean_iou", "per_class_iou", "pixel_accuracy", "num_images", "mean_iou_given_labels", "networks"]
    assert list(found) == keys
    assert list(found["per_class_iou"]) == list(TABLE.names)
    assert set(found["networks"]) == {"a", "b"}
    assert found["networks"]["b"]["pixel_accuracy"] == pytest.approx(
        np.trace(matrix) / matrix.sum(), abs=1e-9
    )
    assert found["num_images"] == found["networks"]["a"]["num_images"] == 2
    measured = [iou for iou in found["per_class_iou"].values() if iou is not None]
    assert found["mean_iou"] == pytest.approx(sum(measured) / len(measured), abs=1e-9)
    empty = report(evaluate([Segmenter(0)], processor(), [ignored], TABLE, progress=False))
    assert json.loads(json.dumps(empty, allow_nan=False))["mean_iou"] is None


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
    monkeypatch.setattr("attn2mask.training.checkpoint.load_checkpoint", lambda path: loaded)
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
    assert found["evaluated"]["format_version"] == 1
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
    assert command(dataset, "--out", str(tmp_path / "m.json"), "--limit", "1") == 0
    assert json.loads((tmp_path / "m.json").read_text())["num_images"] == 1
    said = capsys.readouterr().out
    assert "both" not in said
    assert "m.yaml --scales 0.5,0.75,1,1.25,1.5 --flip --out" in said


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
        (["--limit", "0"], "--limit 0: it must be at least 1"),
        (["--out", "metrics.txt"], "--out metrics.txt: the name must end in .json"),
        (["--table", "vox"], "class table 'vox'"),
        (["--table", "cityscapes"], "has other classes than cityscapes: 21 names against 19"),
        (["--split", "test"], "has no split 'test'"),
        (["--dataset", "./missing"], "no dataset ./missing: there is no such folder"),
        (["--checkpoint", ""], "--checkpoint is missing"),
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
    assert "image 2.png has" in capsys.readouterr().err.splitlines()[-1]
    assert not list(tmp_path.glob("*.json"))


def test_the_command_reads_a_real_checkpoint(dataset, tmp_path, capsys):
    networks = [build_network("deeplabv3plus", "scratch:small", TABLE, seed) for seed in (0, 1)]
    save_checkpoint(tmp_path / "run", *networks, make_processor(64), {})
    options = ["--dataset", str(dataset), "--out", str(tmp_path / "m.json"), "--limit", "2"]
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
    assert command(PHOTOS, "--split", "val", "--limit", "3", "--out", str(tmp_path / "m.json")) == 0
    assert json.loads((tmp_path / "m.json").read_text())["num_images"] == 3


def test_of_many_classes_the_best_and_the_worst_are_drawn(tmp_path):
    ious = {f"class {i}": None if i % 10 == 0 else i / 100 for i in range(100)}
    shown = best_and_worst_classes(ious, 6)
    assert [name for name, _ in shown] == [f"class {i}" for i in (99, 98, 97, 3, 2, 1)]
    found = {"mean_iou": 0.5, "per_class_iou": ious | {"$\\frac$": 0.5}, "num_images": 3}
    iou_chart(found, tmp_path / "chart.png")
    assert Image.open(tmp_path / "chart.png").height > 1000
    nothing = {"mean_iou": None, "per_class_iou": {"a": None}, "num_images": 0}
    iou_chart(nothing, tmp_path / "chart.png")
