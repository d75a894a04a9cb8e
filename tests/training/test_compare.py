"""`attn2mask compare`: figures, intervals, columns by the number of classes, sentences and mistakes."""

import csv
import json
import re
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pytest
import yaml
from PIL import Image

from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cli import main
from attn2mask.training.bootstrap import mean_iou_interval
from attn2mask.training.zeroshot.protocol import PROTOCOLS, Method, common, original

VOC = load_table("voc")
CLIP = "openai/clip-vit-base-patch16"
# Two images: the target is id 1 everywhere; of the first, 3 of 4 pixels are right, of the second, 1 of 4. The
# other pixels are predicted as id 2 and as no class.
CONFUSIONS = [[[1, 1, 3], [1, 2, 1]], [[1, 1, 1], [1, 21, 3]]]
MEAN = 0.25  # id 1: 4 of 8 pixels; id 2: 0 of 1


def method(name: str, protocol: Any, weights: str = CLIP, **more: Any) -> dict[str, Any]:
    facts = {"name": name, "protocol": protocol.facts(), "weights": weights, "revision": None, "sha256": "ab"}
    return facts | more


def metrics(**changed: Any) -> dict[str, Any]:
    """The content of a metrics file with two images; `changed` replaces values, also those of `evaluated`."""
    content = {
        "mean_iou": MEAN,
        "per_class_iou": {name: {1: 0.5, 2: 0.0}.get(i) for i, name in enumerate(VOC.names)},
        "pixel_accuracy": 0.5,
        "num_images": 2,
        "mean_iou_given_labels": 0.5,
        "boundary_iou": 0.125,
        "networks": {},
        "evaluated": {
            "options": {"dataset": "VOCdevkit/VOC2012", "split": "val", "checkpoint": "runs/r50"},
            "table": "voc",
            "classes_scored": 21,
            "method": None,
        },
        "image_counts": [
            {"name": f"2007_{i}", "confusion": entries, "boundary": []}
            for i, entries in enumerate(CONFUSIONS)
        ],
    }
    for key, value in changed.items():
        (content if key in content else content["evaluated"])[key] = value
    return json.loads(json.dumps(content))


def write(folder: Path, name: str, content: Any) -> str:
    (folder / name).write_text(content if isinstance(content, str) else json.dumps(content))
    return str(folder / name)


def add_predictions(file: str, names: list[str], ids: list[int]) -> None:
    """Predictions of images of 6 x 8 pixels, one of `ids` for each, beside a metrics file."""
    path = Path(file)
    folder = path.with_name(f"{path.stem}_predictions")
    folder.mkdir()
    for number, k in enumerate(ids):
        Image.new("RGB", (8, 6), "gray").save(folder / f"{number:03d}_image.png")
        Image.new("L", (8, 6), 255).save(folder / f"{number:03d}_target.png")
        Image.fromarray(np.full((6, 8), k, np.uint16)).save(folder / f"{number:03d}_prediction.png")
    content = json.loads(path.read_text())
    content["evaluated"]["fixed_images"] = {"folder": folder.name, "names": names}
    path.write_text(json.dumps(content))


def lines_of(text: str) -> list[dict[str, str]]:
    """The lines of the first table of a Markdown text, by the names of its columns."""
    head, _, *lines = re.search(r"(?:^\|.*\n)+", text, re.MULTILINE)[0].splitlines()
    cells = [[cell.strip() for cell in re.split(r"(?<!\\)\|", line)[1:-1]] for line in (head, *lines)]
    return [dict(zip(cells[0], line, strict=True)) for line in cells[1:]]


@pytest.fixture
def three(tmp_path):
    """The metrics files of MaskCLIP over 20 classes, of SCLIP over 21 classes, and of a checkpoint."""
    protocol = original("maskclip", VOC)
    return [
        write(tmp_path, "a.json", metrics(method=method("maskclip", protocol), classes_scored=20)),
        write(tmp_path, "b.json", metrics(method=method("sclip", common(VOC, "threshold", 448)))),
        write(tmp_path, "c.json", metrics(boundary_iou=None)),
    ]


def compare(*arguments: str) -> int:
    return main(["compare", *arguments])


def error_of(capsys) -> str:
    error = capsys.readouterr().err.splitlines()[-1]
    assert error.startswith("attn2mask: error: ")
    return error


def test_the_interval_is_that_of_a_loop():
    rng = np.random.default_rng(5)
    matrices = rng.integers(0, 50, (7, 3, 4))
    matrices[:, 2] = matrices[:, :, 2] = 0  # the last class is absent, except from the first image
    matrices[0, 2, 2] = 9
    counts = np.stack([[[m[k, k], m[k].sum(), m[:, k].sum()] for k in range(3)] for m in matrices])
    means = []
    for drawn in np.random.default_rng(3).integers(0, 7, (200, 7)):
        total = sum(matrices[image] for image in drawn)
        unions = [total[k].sum() + total[:, k].sum() - total[k, k] for k in range(3)]
        means.append(np.mean([total[k, k] / unions[k] for k in range(3) if unions[k]]))
    expected = np.percentile(means, 2.5), np.percentile(means, 97.5)
    assert mean_iou_interval(counts, resamples=200, seed=3) == pytest.approx(expected, abs=1e-12)


def test_nothing_to_resample_has_no_interval():
    assert mean_iou_interval(np.zeros((3, 2, 3), int)) is None
    assert mean_iou_interval(np.zeros((0, 2, 3), int)) is None


def test_the_table_has_the_figures_of_the_files(three, tmp_path, capsys):
    out = tmp_path / "new" / "table.md"
    assert compare(*three, "--out", str(out)) == 0
    maskclip, sclip, checkpoint = lines_of(out.read_text())
    # A resample has the first image twice, each once, or the second twice: id 1 has 6, 4 or 2 of 8 pixels,
    # and id 2 is absent from the last one. The means are 0.375, 0.25 and 0.25 (id 1 alone).
    assert maskclip == {
        "method": "MaskCLIP",
        "mIoU, 20 classes (95 % interval)": "25.0 (25.0 to 37.5)",
        "mIoU, 21 classes (95 % interval)": "",
        "boundary IoU, 20 classes": "12.5",
        "boundary IoU, 21 classes": "",
        "mIoU given image-level labels, 20 classes": "50.0",
        "mIoU given image-level labels, 21 classes": "",
        "images": "2",
        "classes scored": "20",
    }
    assert sclip["mIoU, 21 classes (95 % interval)"] == "25.0 (25.0 to 37.5)"
    assert sclip["mIoU, 20 classes (95 % interval)"] == ""
    assert (checkpoint["method"], checkpoint["boundary IoU, 21 classes"]) == ("r50", "")
    said = capsys.readouterr().out
    assert "VOCdevkit/VOC2012, split val, 2 images in the classes of voc" in said
    assert re.search(r"^MaskCLIP +25\.0 \(25\.0 to 37\.5\) +12\.5 +50\.0$", said, re.MULTILINE)
    assert f" s: {out}, {out.with_suffix('.csv')}, {out.with_suffix('.png')}, " in said
    assert f"next: read {out}" in said


def test_how_a_method_was_measured_stands_in_the_second_table(three, tmp_path):
    out = tmp_path / "table.md"
    assert compare(*three, "--out", str(out)) == 0
    maskclip, sclip, checkpoint = lines_of(out.read_text().partition("### How they were measured")[2])
    assert maskclip["size, pixels"] == "512, at most 2048"
    assert (maskclip["window, pixels"], sclip["window, pixels"]) == ("whole image", "448, overlap 50%")
    assert maskclip["templates"] == "85 (clip, scene)"
    assert (maskclip["background"], sclip["background"]) == ("not scored", "threshold 0.5")
    assert (maskclip["weights"], checkpoint["weights"]) == (CLIP, "runs/r50")
    assert (maskclip["trained with masks"], checkpoint["trained with masks"]) == ("no", "")


def test_the_csv_has_shares_in_columns_by_the_number_of_classes(three, tmp_path):
    out = tmp_path / "table.csv"
    assert compare(*three, "--out", str(tmp_path / "t.md"), "--csv", str(out)) == 0
    with open(out, newline="") as file:
        maskclip, sclip, checkpoint = csv.DictReader(file)
    assert (maskclip["mean_iou_20_classes"], maskclip["mean_iou_21_classes"]) == ("0.25", "")
    assert (sclip["mean_iou_20_classes"], sclip["mean_iou_21_classes"]) == ("", "0.25")
    low, high = (float(sclip[f"mean_iou_21_classes_{end}"]) for end in ("low", "high"))
    assert (low, high) == (0.25, 0.375)
    assert (sclip["boundary_iou_21_classes"], checkpoint["boundary_iou_21_classes"]) == ("0.125", "")
    assert (maskclip["file"], maskclip["images"], maskclip["split"]) == (three[0], "2", "val")
    assert not (tmp_path / "t.csv").exists()


def test_figures_of_publications_are_quoted_by_the_number_of_classes(tmp_path):
    groupvit = method("groupvit", original("groupvit", VOC), "nvidia/groupvit-gcc-yfcc")
    maskclip = method("maskclip", original("maskclip", VOC))
    files = [
        write(tmp_path, "g.json", metrics(method=groupvit)),
        write(tmp_path, "m.json", metrics(method=maskclip, classes_scored=20)),
    ]
    out = tmp_path / "table.md"
    assert compare(*files, "--out", str(out)) == 0
    text = out.read_text()
    # 22.1 is over 21 classes, and does not stand beside a score over 20 classes.
    assert [line["quoted: Table 3 of the paper, 21 classes"] for line in lines_of(text)] == ["41.1", ""]
    quoted = lines_of(text.partition("### Quoted figures")[2])
    table_3 = [line for line in quoted if line["source"] == "Table 3 of the paper"]
    assert {line["mIoU, 21 classes"] for line in table_3} == set("22.1 29.7 41.1 44.6 50.8 62.2 71.0".split())
    others = [(q["method"], q["mIoU, 20 classes"], q["mIoU, 21 classes"]) for q in quoted if q not in table_3]
    assert others == [
        ("MaskCLIP", "49.5", ""),
        ("MaskCLIP", "", "38.8"),
        ("GroupViT", "", "52.3"),
        ("GroupViT", "", "50.8"),
    ]
    assert "No public checkpoint gives the figures of Table 3" in text
    assert "- GroupViT: this run followed the protocol of the publication." in text


@pytest.mark.parametrize("name", get_args(Method))
def test_every_method_can_be_compared(tmp_path, name):
    """Under both protocols, if its publication has one."""
    protocols = [common(VOC, "words", 64)] + ([original(name, VOC)] if name in PROTOCOLS else [])
    files = [
        write(tmp_path, f"{k}.json", metrics(method=method(name, protocol), mean_iou=MEAN, num_images=2))
        for k, protocol in enumerate(protocols)
    ]
    assert compare(*files, "--out", str(tmp_path / "t.md")) == 0
    text = (tmp_path / "t.md").read_text()
    assert "None" not in text
    if name in PROTOCOLS:
        assert "this run followed the protocol of the publication" in text or "the weights of" in text
    else:
        assert "no publication defines a protocol for VOC" in text


def test_differences_from_the_publication_are_sentences(tmp_path):
    protocol = common(VOC, "threshold", 448, 0.25)
    files = [
        write(tmp_path, "a.json", metrics(method=method("maskclip", protocol, "my/clip"))),
        write(tmp_path, "b.json", metrics(method=method("align", protocol, "kakaobrain/align-base"))),
    ]
    out = tmp_path / "table.md"
    assert compare(*files, "--out", str(out)) == 0
    found = out.read_text().partition("### Differences from the publications\n\n")[2].splitlines()
    assert (
        found[:-2]
        == [
            f"- MaskCLIP: the publication {theirs}; this run {ours}."
            for theirs, ours in [
                ("resized the shorter side to 512 pixels", "resized the shorter side to 448 pixels"),
                ("limited the longer side to 2048 pixels", "did not limit the longer side"),
                (
                    "predicted the whole image at once",
                    "predicted windows of 448 pixels, of which 50% lies in the next one",
                ),
                (
                    "normalized pixels with the mean and deviation of ImageNet",
                    "normalized pixels with the mean and deviation of CLIP's data",
                ),
                ("used 85 templates (clip, scene)", "used 1 template (photo)"),
                (
                    "did not score the pixels of the background",
                    "found the background by a threshold of the probability",
                ),
                (
                    "had no threshold for the background",
                    "took pixels with a probability below 0.25 as background",
                ),
            ]
        ]
        + found[7:-2]
    )
    assert found[7].startswith("- MaskCLIP: this run had other names for 12 of 20 classes, such as ")
    assert found[8:] == [
        f"- MaskCLIP: the weights of the publication are {CLIP}; those of this run are my/clip.",
        "- ALIGN: no publication defines a protocol for VOC.",
    ]


def test_scores_on_other_images_stand_in_another_table(tmp_path, capsys):
    files = [
        write(tmp_path, "a.json", metrics()),
        write(tmp_path, "b.json", metrics(options={"dataset": "data/drawn", "checkpoint": "runs/b"})),
        write(tmp_path, "c.json", metrics(options={"dataset": "./VOCdevkit/VOC2012/", "split": "val"})),
    ]
    out = tmp_path / "table.md"
    assert compare(*files, "--out", str(out)) == 0
    text = out.read_text()
    assert [line for line in text.splitlines() if line.startswith("## ")] == [
        "## VOCdevkit/VOC2012, split val, 2 images in the classes of voc",
        "## data/drawn, 2 images in the classes of voc",
    ]
    assert [line["method"] for line in lines_of(text)] == ["r50", "c"]
    assert "Do not compare scores of different tables." in text


def test_other_classes_have_no_quoted_figures(tmp_path):
    content = metrics(table="kitchen", classes_scored=2, image_counts=None)
    content["per_class_iou"] = {"background": 0.5, "mug": 0.5}
    out = tmp_path / "table.md"
    assert compare(write(tmp_path, "a.json", content), "--out", str(out)) == 0
    assert "Table 3" not in out.read_text()
    assert "MaskCLIP" not in out.read_text()


def test_older_files_lack_some_columns(tmp_path):
    content = metrics()
    for key in ("image_counts", "boundary_iou", "mean_iou_given_labels"):
        del content[key]
    content["evaluated"] = {"options": {"dataset": "VOC2012", "checkpoint": "org/model"}, "table": "voc"}
    out = tmp_path / "table.md"
    assert compare(write(tmp_path, "a.json", content), "--out", str(out)) == 0
    (line,) = lines_of(out.read_text())
    assert line == {
        "method": "model",
        "mIoU, 21 classes (95 % interval)": "25.0",
        "images": "2",
        "classes scored": "21",
    }
    assert "- Without interval, since the file has no counts of its images: model." in out.read_text()


def test_equal_labels_get_the_stem_or_else_the_path(tmp_path):
    (tmp_path / "x").mkdir()
    files = [
        write(tmp_path, "a.json", metrics()),
        write(tmp_path, "b.json", metrics(boundary_iou=0.5)),
        write(tmp_path / "x", "b.json", metrics(boundary_iou=0.25)),
    ]
    out = tmp_path / "table.md"
    assert compare(*files, "--out", str(out)) == 0
    labels = [line["method"] for line in lines_of(out.read_text())]
    assert labels == ["r50 (a)", f"r50 ({files[1]})", f"r50 ({files[2]})"]


def test_foreign_text_is_escaped(tmp_path):
    options = {"dataset": "a|b", "checkpoint": "runs/<b>$x$|y\nz"}
    file = write(tmp_path, "a.json", metrics(options=options, image_counts=None))
    out = tmp_path / "table.md"
    assert compare(file, "--out", str(out)) == 0
    text = out.read_text()
    assert [line["method"] for line in lines_of(text)] == ["&lt;b&gt;&#36;x&#36;&#124;y z"]
    assert "## a&#124;b, 2 images" in text


def test_the_sheet_has_a_column_for_each_method(three, tmp_path, capsys):
    for file, k in zip(three, (1, 2, 21), strict=True):
        add_predictions(file, ["one", "two"], [k, k])
    out = tmp_path / "t.md"
    assert compare(*three, "--out", str(out)) == 0
    said = capsys.readouterr().out
    assert "leaves out" not in said
    sheet = Image.open(tmp_path / "t_images.png")
    colors = {color for _, color in sheet.convert("RGB").getcolors(2**24)}
    gray = 0.35 * 128
    for k in (1, 2):
        assert tuple((0.65 * VOC.palette[k] + gray).astype(int)) in colors
    assert sheet.width == 5 * 2.4 * 120
    assert f"and look at {tmp_path / 't_images.png'}" in said
    assert Image.open(tmp_path / "t.png").width == 960


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        ("no names", "its file names no predictions"),
        ("no folder", "there is no folder"),
        ("no file", "cannot be read: No such file"),
        ("broken", "it is not a PNG"),
        ("size", "have different sizes"),
        ("names", "its predictions are of other images"),
        ("dataset", "it was measured on other images"),
    ],
)
def test_a_method_without_predictions_is_left_out_of_the_sheet(three, tmp_path, capsys, change, reason):
    for file in three:
        add_predictions(file, ["one"], [1])
    path, folder = Path(three[0]), tmp_path / "a_predictions"
    content, prediction = json.loads(path.read_text()), folder / "000_prediction.png"
    if change == "no names":
        del content["evaluated"]["fixed_images"]
    elif change == "no folder":
        folder.rename(tmp_path / "elsewhere")
    elif change == "no file":
        prediction.unlink()
    elif change == "broken":
        prediction.write_bytes(b"no image")
    elif change == "size":
        Image.new("L", (3, 3)).save(prediction)
    elif change == "names":
        content["evaluated"]["fixed_images"]["names"] = ["three"]
    else:
        content["evaluated"]["options"]["split"] = "train"
    path.write_text(json.dumps(content))
    assert compare(*three, "--out", str(tmp_path / "t.md")) == 0
    (note,) = [line for line in capsys.readouterr().out.splitlines() if "leaves out" in line]
    assert note.startswith("The sheet leaves out MaskCLIP: ")
    assert reason in note
    assert Image.open(tmp_path / "t_images.png").width == 4 * 2.4 * 120


def test_without_predictions_there_is_no_sheet(three, tmp_path, capsys):
    assert compare(*three, "--out", str(tmp_path / "t.md")) == 0
    said = capsys.readouterr().out
    assert "No sheet of images was made (MaskCLIP: its file names no predictions; SCLIP: " in said
    assert "t_images.png" not in said
    assert not (tmp_path / "t_images.png").exists()


def test_the_options_beside_the_table_repeat_it(three, tmp_path):
    out, again = tmp_path / "t.md", tmp_path / "again.md"
    assert compare(*three, "--out", str(out)) == 0
    assert yaml.safe_load((tmp_path / "t.yaml").read_text()) == {"metrics": three}
    assert compare("--config", str(tmp_path / "t.yaml"), "--out", str(again)) == 0
    assert again.read_bytes() == out.read_bytes()
    assert again.with_suffix(".png").read_bytes() == out.with_suffix(".png").read_bytes()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("{", "bad.json cannot be read: "),
        ("[" * 100_000, "bad.json cannot be read: "),
        ([], "bad.json is no metrics file of `attn2mask evaluate`: it is not a mapping"),
        ({}, "is no metrics file of `attn2mask evaluate`: it has no 'per_class_iou'"),
        (metrics(mean_iou="high"), "its mean_iou is not a number from 0 to 1"),
        (metrics(boundary_iou=1.5), "its boundary_iou is not a number from 0 to 1"),
        (metrics(num_images=2.5), "its num_images is not a whole number"),
        (metrics(num_images=3), "it has 3 images, but counts of 2"),
        (metrics(mean_iou=0.5), "its mean IoU is 0.5, but its image_counts give 0.25"),
        (metrics(per_class_iou={"a": 1}), "its image_counts hold [1, 1, 3]"),
        (metrics(per_class_iou={}), "it names no class"),
        (metrics(evaluated=[1]), "is no metrics file"),
        (
            metrics(fixed_images={"folder": "../x", "names": []}),
            "the folder of its predictions is not beside",
        ),
        (metrics(method={"name": "sclip", "protocol": {"name": "common"}}), "is no metrics file"),
        (
            metrics(method={"name": "sclip", "protocol": common(VOC).facts() | {"size": "large"}}),
            "the size of its protocol is no number",
        ),
        (metrics(table="\ud800"), "is no metrics file"),
    ],
)
def test_what_is_no_metrics_file_is_refused(tmp_path, capsys, content, message):
    good = write(tmp_path, "good.json", metrics())
    bad = write(tmp_path, "bad.json", content)
    assert compare(good, bad, "--out", str(tmp_path / "t.md")) == 2
    assert message in error_of(capsys)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["bad.json", "good.json"]


def test_files_that_are_missing_or_equal_are_refused(tmp_path, capsys):
    file, copy = (write(tmp_path, name, metrics()) for name in ("a.json", "b.json"))
    out = ("--out", str(tmp_path / "t.md"))
    assert compare(file, str(tmp_path / "none.json"), *out) == 2
    assert "none.json cannot be read: No such file" in error_of(capsys)
    assert compare(str(tmp_path), *out) == 2
    assert "cannot be read: Is a directory" in error_of(capsys)
    for other in (file, copy, str(tmp_path / "x" / ".." / "a.json")):
        (tmp_path / "x").mkdir(exist_ok=True)
        assert compare(file, other, *out) == 2
        assert f"{file} and {other} are the same evaluation" in error_of(capsys)
    assert compare(*out) == 2
    assert "METRICS is missing" in error_of(capsys)
    assert not (tmp_path / "t.md").exists()


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--out", "t.txt"], "--out t.txt: the name must end in .md"),
        (["--csv", "t.md"], "--csv t.md: the name must end in .csv"),
        (["--figure", "t.jpg"], "--figure t.jpg: the name must end in .png"),
        (["--out", "folder.md"], "--out folder.md is a directory"),
        (["--sheet", "folder.png"], "--sheet folder.png is a directory"),
        (["--figure", "x.png", "--sheet", "x.png"], "--figure and --sheet both name x.png"),
    ],
)
def test_files_that_cannot_be_written_are_refused(tmp_path, capsys, monkeypatch, options, message):
    monkeypatch.chdir(tmp_path)
    for folder in ("folder.md", "folder.png"):
        (tmp_path / folder).mkdir()
    assert compare(write(tmp_path, "a.json", metrics()), *options) == 2
    assert message in error_of(capsys)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["a.json", "folder.md", "folder.png"]
