"""`attn2mask export`: each format is read again, by Datumaro or by attn2mask, and has the ids of the rows."""

from pathlib import Path

import datumaro
import numpy as np
import pytest
from PIL import Image

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.images import encode_mask, encode_png
from attn2mask.builders.mask_ids import VOID
from attn2mask.builders.sample import features, image_columns
from attn2mask.builders.shards import write_parquet
from attn2mask.builders.table_reader import bare_table, load_table
from attn2mask.hub.cli import main
from attn2mask.hub.export import voc
from attn2mask.hub.export.formats import FORMATS, IGNORED
from attn2mask.training.benchmarks import open_images

HEIGHT, WIDTH = 24, 36
OURS = [name for name, form in FORMATS.items() if form.exporter is None]
WITH_MASKS = [name for name, form in FORMATS.items() if form.exporter and form.holds != "boxes"]
WITH_BOXES = [name for name, form in FORMATS.items() if form.holds == "boxes"]
TABLES = {
    "with background": load_table("voc"),
    "without background": load_table("cityscapes"),
    "with blanks": bare_table("kitchen", ("background", "coffee mug", "tea pot", "spoon")),
}


def ids_of_row(index: int, table: ClassTable) -> np.ndarray:
    """Two parts of one class, one part of another with a hole, and ignored pixels."""
    one, two = (table.first_id + (index + k) % len(table.classes) for k in range(2))
    ids = np.zeros((HEIGHT, WIDTH), np.int32)
    ids[2:8, 2:10] = ids[2:8, 20:30] = one
    ids[12:22, 6:26] = two
    ids[15:18, 10:14] = 0
    ids[20:23, 28:35] = table.ignore_index
    return ids


def unreliable_of_row(index: int) -> np.ndarray:
    """The pixels that are not reliable, (H, W) bool."""
    unreliable = np.zeros((HEIGHT, WIDTH), bool)
    unreliable[10 + index : 14, 4:30] = True
    return unreliable


def labels_of_row(index: int, table: ClassTable) -> np.ndarray:
    return np.where(unreliable_of_row(index), table.ignore_index, ids_of_row(index, table))


def image_of_row(index: int) -> np.ndarray:
    down, across = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([5 * across, 9 * down, 60 * index + 0 * down], -1).astype(np.uint8)


def write_rows(folder: Path, table: ClassTable, count: int = 3) -> Path:
    """A folder of Parquet rows of a table. The sample id of the last row is no name of a file."""
    rows = [
        image_columns(
            encode_png(image_of_row(index)),
            encode_mask(ids_of_row(index, table), table),
            encode_mask(labels_of_row(index, table), table),
            encode_png(np.where(unreliable_of_row(index), 127, 128).astype(np.uint8)),
        )
        | {"prompt": "", "caption": "", "classes": [], "words": [], "peaks": [], "seed": index}
        | {"sample_id": "../a/b" if index == count - 1 else f"toy-0-{index:08d}"}
        for index in range(count)
    ]
    folder.mkdir()
    with open(folder / "train-00000.parquet", "wb") as stream:
        write_parquet(stream, features(table), rows)
    return folder


@pytest.fixture(scope="module", params=TABLES, ids=list(TABLES))
def table(request):
    return TABLES[request.param]


@pytest.fixture(scope="module")
def rows(table, tmp_path_factory):
    return write_rows(tmp_path_factory.mktemp("rows") / "toy", table)


def number_of(name: str) -> int:
    """The index of the row whose file is called `name`."""
    return 2 if name == "00000002" else int(name.removeprefix("toy-0-"))


def imported(folder: Path, format: str):
    """The export as Datumaro reads it, and its label names."""
    importer = {"yolo_ultralytics": "yolo"}.get(format, FORMATS[format].exporter)
    dataset = datumaro.Dataset.import_from(str(folder), importer)
    return dataset, [label.name for label in dataset.categories()[datumaro.AnnotationType.label]]


@pytest.mark.parametrize("instances", [False, True])
@pytest.mark.parametrize("format", WITH_MASKS)
def test_datumaro_reads_the_ids_again(rows, table, tmp_path, capsys, format, instances):
    out, form = tmp_path / "out", FORMATS[format]
    options = ["--format", format, "--out", str(out), "--val-rows", "1", *["--instances"] * instances]
    assert main(["export", str(rows), *options]) == 0
    assert capsys.readouterr().out.splitlines() == [
        f"made {out}: 3 rows of {rows} in the format {format}",
        form.fate_of_ignored(),
    ]
    dataset, labels = imported(out, format)
    ids = {name.replace(" ", "_") if form.holds == "ids" else name: k for k, name in enumerate(table.names)}
    ids[IGNORED] = table.ignore_index
    assert len(dataset) == 3
    for item in dataset:
        index = number_of(item.id)
        assert item.subset == ("val" if index == 2 else "train")
        np.testing.assert_array_equal(item.media.data[..., ::-1], image_of_row(index))
        wanted = labels_of_row(index, table)
        unmarked = 0 if table.background and form.holds != "masks" else table.ignore_index
        if form.ignored == "lost":
            wanted = np.where(wanted == table.ignore_index, unmarked, wanted)
        found = np.full(wanted.shape, unmarked)
        for mask in item.annotations:
            if isinstance(mask, datumaro.Mask):
                found[mask.image.astype(bool)] = ids[labels[mask.label]]
        np.testing.assert_array_equal(found, wanted)


@pytest.mark.parametrize("format", WITH_BOXES)
def test_datumaro_reads_the_box_of_each_thing(rows, table, tmp_path, format):
    out = tmp_path / "out"
    options = ["--format", format, "--instances", "--val-rows", "1", "--no-reliability"]
    assert main(["export", str(rows), *options, "--out", str(out)]) == 0
    dataset, labels = imported(out, format)
    assert labels == [label.name for label in table.classes]
    item = next(item for item in dataset if number_of(item.id) == 0)
    boxes = {(labels[box.label], *(round(value) for value in box.points)) for box in item.annotations}
    one, two = table.classes[0], table.classes[1]
    left, right = (one.name, 2, 2, 10, 8), (one.name, 20, 2, 30, 8)
    apart = {left, right} if one.thing else {(one.name, 2, 2, 30, 8)}
    zero = (
        set() if table.background else {(one.name, 0, 0, WIDTH, HEIGHT)}
    )  # id 0 fills the rest of the image
    expected = (apart if table.background else zero) | {(two.name, 6, 12, 26, 22)}
    assert boxes == expected


def test_instances_are_connected_parts_of_things(tmp_path):
    table = load_table("voc")
    rows, counts = write_rows(tmp_path / "rows", table, count=1), {}
    for name, options in {"classes": [], "parts": ["--instances"]}.items():
        out = tmp_path / name
        assert main(["export", str(rows), "--format", "coco", *options, "--out", str(out)]) == 0
        dataset, labels = imported(out, "coco")
        masks = [part for part in next(iter(dataset)).annotations if isinstance(part, datumaro.Mask)]
        counts[name] = sorted((labels[mask.label], int(mask.image.sum())) for mask in masks)
    labeled = labels_of_row(0, table)
    one, two = (int((labeled == k).sum()) for k in (1, 2))
    assert counts["classes"] == [("aeroplane", one), ("bicycle", two)]
    assert counts["parts"] == [("aeroplane", 6 * 8), ("aeroplane", 6 * 10), ("bicycle", two)]


def test_voc_is_read_by_evaluate_and_by_datumaro(rows, table, tmp_path, capsys):
    out = tmp_path / "out"
    assert main(["export", str(rows), "--out", str(out), "--val-rows", "1"]) == 0
    said = capsys.readouterr().out
    assert "Unreliable pixels have the ignore value." in said
    assert f"--dataset {out} --split val" in said
    for split, indices in {"train": [0, 1], "val": [2]}.items():
        examples = open_images(str(out), split, table)
        assert [number_of(example.name) for example in examples] == indices
        for index, example in zip(indices, examples, strict=True):
            np.testing.assert_array_equal(example.target, labels_of_row(index, table))
            assert np.abs(example.image.astype(int) - image_of_row(index)).mean() < 3  # it is a JPEG file
    with Image.open(out / "SegmentationClass" / "toy-0-00000000.png") as mask:
        assert mask.mode == "P"
        palette = np.array(mask.getpalette()).reshape(256, 3)
    np.testing.assert_array_equal(palette[: len(table.names)], table.palette)
    assert tuple(palette[255]) == VOID
    dataset = datumaro.Dataset.import_from(str(out), "voc_segmentation")
    names = [label.name for label in dataset.categories()[datumaro.AnnotationType.label]]
    for item in dataset:
        wanted = labels_of_row(number_of(item.id), table)
        for mask in item.annotations:
            if names[mask.label] in table.names[table.first_id :]:
                label = table.id_of(names[mask.label])
                np.testing.assert_array_equal(mask.image.astype(bool), wanted == label)


def test_voc_numbers_the_things_of_an_image(tmp_path):
    table = load_table("voc")
    rows, out = write_rows(tmp_path / "rows", table), tmp_path / "out"
    assert main(["export", str(rows), "--out", str(out), "--instances", "--no-reliability"]) == 0
    numbers = np.array(Image.open(out / "SegmentationObject" / "toy-0-00000000.png"))
    ids = ids_of_row(0, table)
    assert sorted(np.unique(numbers)) == [0, 1, 2, 3, 255]
    assert len({int(numbers[4, 4]), int(numbers[4, 24]), int(numbers[13, 8])}) == 3
    np.testing.assert_array_equal(numbers == 0, ids == 0)
    np.testing.assert_array_equal(numbers == 255, ids == 255)


def test_without_reliability_all_labels_are_written(tmp_path, capsys):
    table = load_table("voc")
    rows, out = write_rows(tmp_path / "rows", table), tmp_path / "out"
    assert main(["export", str(rows), "--out", str(out), "--no-reliability", "--num-rows", "2"]) == 0
    assert "All labels are written." in capsys.readouterr().out
    examples = open_images(str(out), "train", table)
    assert len(examples) == 2
    np.testing.assert_array_equal(examples[0].target, ids_of_row(0, table))


MISTAKES = {
    "too many names": (
        "imagenet_s_919",
        [],
        "--format voc holds at most 254 names in the 8 bits of its masks, but the table imagenet_s_919 has",
    ),
    "no such format": ("voc", ["--format", "pickle"], "invalid choice: 'pickle' (choose from 'voc', "),
    "boxes of classes": ("voc", ["--format", "yolo"], "give --instances"),
    "no val": (
        "voc",
        ["--format", "yolo_ultralytics", "--instances"],
        "--format yolo_ultralytics needs the split val: set --val-rows",
    ),
    "no train": (
        "voc",
        ["--format", "yolo_ultralytics", "--instances", "--val-rows", "3"],
        "--format yolo_ultralytics needs the split train",
    ),
    "more than all": ("voc", ["--val-rows", "4"], "has only 3 rows"),
}


@pytest.mark.parametrize("mistake", MISTAKES)
def test_a_mistake_is_one_line_and_leaves_nothing(tmp_path, capsys, mistake):
    name, options, message = MISTAKES[mistake]
    rows, out = write_rows(tmp_path / "rows", load_table(name)), tmp_path / "out"
    assert main(["export", str(rows), *options, "--out", str(out)]) == 2
    errors = [line for line in capsys.readouterr().err.splitlines() if "error" in line]
    assert len(errors) == 1
    assert message in errors[0]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rows"]


def test_a_table_of_919_classes_fits_into_coco(tmp_path):
    table = load_table("imagenet_s_919")
    rows, out = write_rows(tmp_path / "rows", table, count=1), tmp_path / "out"
    assert main(["export", str(rows), "--format", "coco_panoptic", "--out", str(out)]) == 0
    dataset, labels = imported(out, "coco_panoptic")
    assert labels == list(table.names)
    found = np.full((HEIGHT, WIDTH), table.ignore_index)
    for mask in next(iter(dataset)).annotations:
        found[mask.image.astype(bool)] = mask.label
    np.testing.assert_array_equal(found, labels_of_row(0, table))


def test_it_does_not_write_into_a_directory_with_files(tmp_path, capsys):
    rows, out = write_rows(tmp_path / "rows", load_table("voc")), tmp_path / "out"
    out.mkdir()
    (out / "mine.txt").write_text("mine")
    assert main(["export", str(rows), "--out", str(out)]) == 2
    assert f"--out {out} is not empty: choose another directory" in capsys.readouterr().err
    assert [path.name for path in out.iterdir()] == ["mine.txt"]


def test_without_datumaro_it_says_what_to_install(tmp_path, capsys, monkeypatch):
    rows, out = write_rows(tmp_path / "rows", load_table("voc")), tmp_path / "out"
    monkeypatch.setitem(__import__("sys").modules, "datumaro", None)
    assert main(["export", str(rows), "--format", "coco", "--out", str(out)]) == 2
    assert 'pip install "attn2mask[export]"' in capsys.readouterr().err
    assert not out.exists()
    assert main(["export", str(rows), "--format", "voc", "--out", str(out)]) == 0


def test_an_interrupted_export_is_not_there_and_can_be_repeated(tmp_path, monkeypatch):
    rows, out = write_rows(tmp_path / "rows", load_table("voc")), tmp_path / "out"
    written = voc._jpeg
    calls = []

    def fail_at_the_second(image):
        calls.append(image)
        if len(calls) == 2:
            raise UserError("the disk is gone")
        return written(image)

    monkeypatch.setattr(voc, "_jpeg", fail_at_the_second)
    assert main(["export", str(rows), "--out", str(out)]) == 2
    assert not out.exists()
    monkeypatch.setattr(voc, "_jpeg", written)
    (tmp_path / ".out.unfinished" / "JPEGImages").mkdir(parents=True)  # what a killed export leaves
    assert main(["export", str(rows), "--out", str(out)]) == 0
    assert len(list((out / "JPEGImages").iterdir())) == 3
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out", "rows"]


def test_the_page_lists_every_format():
    page = (Path(__file__).parents[3] / "docs" / "export.md").read_text("utf-8")
    rows = [line for line in page.splitlines() if line.startswith("| `")]
    assert rows == [
        f"| `{name}` | {form.text} | {form.holds} | {form.ignored} |" for name, form in FORMATS.items()
    ]
