"""Rows of other projects: their columns have other names, and id2label.json names their classes."""

import json
from pathlib import Path

import numpy as np
import pyarrow.parquet
import pytest
from datasets import ClassLabel, Dataset, Features, List, Value
from datasets import Image as ImageFeature
from loopback_hub import LoopbackHub
from PIL import Image

from attn2mask.builders.errors import UserError
from attn2mask.builders.images import encode_png
from attn2mask.builders.table_reader import bare_table, load_table
from attn2mask.hub.export.rows import labeled_images
from attn2mask.training.benchmarks import named_classes, open_images
from attn2mask.training.config import TrainConfig
from attn2mask.training.data import Crops, open_rows

NAMES = ("road", "person", "sky")
IDS = np.array([[0, 1, 2, 255], [1, 1, 2, 2]], np.uint8)
PIXELS = np.full((2, 4, 3), 90, np.uint8)


def image(array: np.ndarray) -> dict:
    return {"bytes": encode_png(array), "path": None}


def write(folder: Path, features: dict, labels: dict | None = None, **row) -> str:
    """A folder with one row, and id2label.json if there are `labels`."""
    (folder / "data").mkdir(parents=True)
    rows = Dataset.from_list([row], Features(features))
    pyarrow.parquet.write_table(rows.data.table, folder / "data" / "train-00000.parquet")
    if labels is not None:
        (folder / "id2label.json").write_text(json.dumps(labels))
    return str(folder)


def named(names: tuple[str, ...] = NAMES, first: int = 0) -> dict[str, str]:
    return {str(k): name for k, name in enumerate(names, first)}


def read(source: str, streaming: bool = False) -> tuple[np.ndarray, np.ndarray]:
    """The labels and the trusted pixels of the first row as a crop that is the whole image."""
    opened = open_rows(source, streaming, reliability=True)
    whole = {"crop_area_min": 1.0, "crop_area_max": 1.0, "crop_size": 32}
    config = TrainConfig(dataset=source, preset="demo-beco", **whole).resolve()
    crop = Crops(config, opened.table, opened.dataset, opened.decode)(next(iter(opened.rows)), 0)
    return crop["label"].numpy(), crop["trusted"].numpy()


@pytest.mark.parametrize(
    ("of_image", "of_mask", "streaming"),
    [("image", "annotation", False), ("pixel_values", "label", True), ("pixel_values", "mask", False)],
)
def test_columns_with_other_names(tmp_path, of_image, of_mask, streaming):
    """Also if another column has a name that could be meant, but holds no images."""
    wide = np.zeros((32, 32), np.uint8)
    wide[:, 16:] = 2
    wide[:4] = 255
    other = {"label", "annotation"} - {of_mask}
    source = write(
        tmp_path / "rows",
        {of_image: ImageFeature(), of_mask: ImageFeature(), **dict.fromkeys(other, Value("int64"))},
        named(),
        **{of_image: image(np.zeros((32, 32, 3), np.uint8)), of_mask: image(wide), **dict.fromkeys(other, 1)},
    )
    label, trusted = read(source, streaming)
    assert set(np.unique(label)) == {0, 2, 255}
    assert (trusted == (label != 255)).all()
    (example,) = open_images(source, None, bare_table("rows", NAMES))
    assert (example.target == wide).all()


def test_our_own_mask_and_reliability_win_over_a_label(tmp_path):
    """`label` is the mask with the ignore value where it is not reliable."""
    mask, reliability = np.ones((32, 32), np.uint8), np.full((32, 32), 255, np.uint8)
    reliability[:, 20:] = 0
    label = np.where(reliability > 0, mask, 255).astype(np.uint8)
    columns = {
        "image": image(np.zeros((32, 32, 3), np.uint8)),
        "label": image(label),
        "mask": image(mask),
        "reliability": image(reliability),
    }
    features = dict.fromkeys(columns, ImageFeature()) | {"classes": List(ClassLabel(names=["a", "b"]))}
    source = write(tmp_path / "rows", features, named(("x", "y")), **columns, classes=[1])
    opened = open_rows(source, False, reliability=True)
    assert opened.table.names == ("a", "b")  # not those of id2label.json
    labels, trusted = read(source)
    assert (labels == 1).all()
    assert 0.3 < trusted.mean() < 0.7
    (example,) = open_images(source, None, opened.table)
    assert (example.target == 1).all()


def test_names_that_count_from_1_belong_to_masks_that_do(tmp_path):
    """As in scene_parse_150: 0 stands for other objects, which are ignored, and id k is name k."""
    source = write(
        tmp_path / "rows",
        {"image": ImageFeature(), "annotation": ImageFeature()},
        named(first=1),
        image=image(np.zeros((32, 32, 3), np.uint8)),
        annotation=image(np.repeat(np.array([0, 1, 2, 3], np.uint8), 256).reshape(32, 32)),
    )
    label, trusted = read(source)
    assert set(np.unique(label)) == {255, 0, 1, 2}
    assert (trusted == (label != 255)).all()
    expected = np.repeat([255, 0, 1, 2], 256).reshape(32, 32)
    (example,) = open_images(source, None, bare_table("rows", NAMES))
    assert (example.target == expected).all()
    (exported,), table = labeled_images(source, None, 0, False)
    assert table.names == NAMES
    assert (exported.ids == expected).all()


def test_a_checkpoint_may_say_that_masks_count_from_1(tmp_path):
    """By `do_reduce_labels`. The names of id2label.json are then those of the reduced ids."""
    features = {"image": ImageFeature(), "label": ImageFeature()}
    source = write(tmp_path / "rows", features, named(), image=image(PIXELS), label=image(IDS))
    (example,) = open_images(source, None, bare_table("rows", NAMES), reduce_labels=True)
    assert example.target.tolist() == [[255, 0, 1, 255], [0, 0, 1, 1]]
    (example,) = open_images(source, None, bare_table("rows", NAMES))
    assert (example.target == IDS).all()


def test_a_folder_of_images_with_metadata(tmp_path):
    folder = tmp_path / "rows"
    for inner, array in (("images", PIXELS), ("annotations", IDS)):
        (folder / inner).mkdir(parents=True)
        Image.fromarray(array).save(folder / inner / "one.png")
    names = {"file_name": "images/one.png", "label_file_name": "annotations/one.png"}
    (folder / "metadata.jsonl").write_text(json.dumps(names))
    (folder / "id2label.json").write_text(json.dumps(named()))
    opened = open_rows(str(folder), False, reliability=True)
    assert len(opened.rows) == 1
    (example,) = open_images(str(folder), None, opened.table)
    assert (example.target == IDS).all()
    assert (example.image == PIXELS).all()


def both_refuse(source: str) -> str:
    """What training and evaluation say, beside the option that named the dataset."""
    messages = set()
    for opening in (
        lambda: open_rows(source, False, True),
        lambda: open_images(source, None, load_table("voc"))[0],
    ):
        with pytest.raises(UserError) as refusal:
            opening()
        messages.add(str(refusal.value).replace("--dataset ", "").replace("dataset ", ""))
    (message,) = messages
    assert "\n" not in message
    return message


def test_classes_of_whole_images_are_no_masks(tmp_path):
    features = {"image": ImageFeature(), "label": ClassLabel(names=["cat", "dog"])}
    source = write(tmp_path / "rows", features, image=image(PIXELS), label=1)
    assert both_refuse(source) == (
        f"{source}: the column label of its rows holds no masks: masks are images of class ids in a column"
        " mask or annotation or label"
    )
    source = write(tmp_path / "none", {"image": ImageFeature()}, image=image(PIXELS))
    assert both_refuse(source) == f"{source}: its rows have no mask or annotation or label (only image)"


@pytest.mark.parametrize(
    ("labels", "message"),
    [
        ({}, "names 0 classes"),
        ({"0": "a", "2": "b"}, "its keys must count from 0, or from 1 .*, but 1 is missing"),
        ({"2": "a", "3": "b"}, "but 1 is missing"),
        ({"1": "a", "01": "b"}, "but 2 is missing or there twice"),
        ({"cat": "0"}, "its keys must be mask ids, but one is 'cat'"),
        ({"0": "a", "1": "a"}, "a class has no name, or the name of another class"),
        ({"0": "a", "1": " "}, "a class has no name"),
        ({"0": 1}, "is damaged"),
        ([], "is damaged"),
    ],
)
def test_names_that_cannot_be_used(tmp_path, labels, message):
    features = {"image": ImageFeature(), "label": ImageFeature()}
    source = write(tmp_path / "rows", features, labels, image=image(PIXELS), label=image(IDS))
    with pytest.raises(UserError, match=rf"rows/id2label\.json.*{message}"):
        open_rows(source, False, True)
    with pytest.raises(UserError, match=rf"rows/id2label\.json.*{message}"):
        open_images(source, None, load_table("voc"))


def test_rows_that_do_not_name_their_classes(tmp_path):
    features = {"image": ImageFeature(), "label": ImageFeature()}
    source = write(tmp_path / "rows", features, image=image(PIXELS), label=image(IDS))
    with pytest.raises(UserError, match=r"no column `classes` .*, and no id2label.json with these names"):
        open_rows(source, False, True)


def test_ids_and_names_that_do_not_fit(tmp_path):
    features = {"image": ImageFeature(), "label": ImageFeature()}
    source = write(tmp_path / "rows", features, named(NAMES[:2]), image=image(PIXELS), label=image(IDS))
    with pytest.raises(UserError, match=r"row 0 of .*rows: its mask: id 2 is neither one of the 2 ids"):
        open_rows(source, False, True)
    message = "names its classes in id2label.json, but the table is rows: 3 names against 2, id 2 is 'sky'"
    with pytest.raises(UserError, match=f"{message} against no class"):
        open_images(source, None, bare_table("rows", NAMES))


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A Hub on this machine, which the libraries of this process take for the real one."""
    with LoopbackHub() as started:
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", started.url)
        address = started.url + "/{repo_id}/resolve/{revision}/{filename}"
        monkeypatch.setattr("huggingface_hub.constants.HUGGINGFACE_CO_URL_TEMPLATE", address)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path / "hub"))
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_DISABLE_XET", True)
        monkeypatch.setattr("datasets.config.HF_ENDPOINT", started.url)
        monkeypatch.setattr("datasets.config.HF_DATASETS_CACHE", tmp_path / "datasets")
        yield started


def test_a_dataset_of_the_hub(hub, tmp_path):
    """In the form of sidewalk-semantic: `pixel_values`, `label`, and id2label.json in the repository."""
    features = {"pixel_values": ImageFeature(), "label": ImageFeature()}
    folder = Path(write(tmp_path / "rows", features, named(), pixel_values=image(PIXELS), label=image(IDS)))
    files = {str(file.relative_to(folder)): file.read_bytes() for file in folder.rglob("*.*")}
    hub.put("dataset", "me/walk", files)
    for streaming in (False, True):
        opened = open_rows("me/walk", streaming, reliability=True)
        assert opened.table.names == NAMES
        assert [*next(iter(opened.rows))] == ["image", "mask"]
    (example,) = open_images("me/walk", None, opened.table)
    assert (example.target == IDS).all()
    assert named_classes("me/walk", None).names == NAMES
    hub.put("dataset", "me/walk", {"id2label.json": b"[]"})
    with pytest.raises(UserError, match=r"id2label\.json is damaged"):
        open_rows("me/walk", False, reliability=True)
