"""The columns of a row that hold images: ids in colors, labels without unreliable pixels, and the overlay."""

import io
import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from datasets import Dataset, Features, load_dataset
from datasets import Image as ImageFeature
from PIL import Image

from attn2mask.builders.classes import ClassTable, LabelClass, default_color
from attn2mask.builders.drawn.rows import exact_row
from attn2mask.builders.images import decode_png, overlay
from attn2mask.builders.sample import features
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.cards.statistics import count_rows
from attn2mask.hub.cli import main
from attn2mask.hub.export.rows import labeled_images
from attn2mask.training.benchmarks import open_images
from attn2mask.training.config import TrainConfig
from attn2mask.training.data import Crops, open_rows

VOC, CITYSCAPES = load_table("voc"), load_table("cityscapes")
# The colors of VOC in another order: an id that is looked up by its color would be another one.
KITCHEN = ClassTable(
    "kitchen",
    tuple(
        LabelClass(name, (name,), (), default_color(3 - k)) for k, name in enumerate(("cup", "pot", "pan"))
    ),
    "background",
)
SIZE = 12, 16
RELIABILITY = np.full(SIZE, 255, np.uint8)
RELIABILITY[8:, :4], RELIABILITY[8:, 4:8] = 127, 128  # the last value that is not reliable, and the first one


def ids_of(table: ClassTable, index: int = 0) -> np.ndarray:
    ids = np.zeros(SIZE, np.uint8 if len(table.names) <= 254 else np.uint16)
    ids[2:10, 1:9], ids[2:6, 10:15] = table.first_id + index, len(table.names) - 1
    ids[11] = table.ignore_index
    return ids


def image_of(index: int) -> np.ndarray:
    return np.random.default_rng(index).integers(0, 256, (*SIZE, 3), np.uint8)


def row_of(table: ClassTable, index: int, **options) -> dict:
    return exact_row(f"r{index}", image_of(index), ids_of(table, index), RELIABILITY, table, **options)


def opened(column: dict) -> Image.Image:
    return Image.open(io.BytesIO(column["bytes"]))


def gray(ids: np.ndarray) -> dict:
    buffer = io.BytesIO()
    Image.fromarray(ids).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


@pytest.mark.parametrize("table", [CITYSCAPES, KITCHEN], ids=lambda table: table.name)
def test_every_reader_finds_the_ids_of_gray_masks_in_colored_ones(table, tmp_path):
    """The first folder is written by hand, as the rows of earlier versions were. Neither folder has a record,
    so that the colors of the table are not known.
    """
    rows = [row_of(table, index) for index in range(2)]
    masks = [ids_of(table, index) for index in range(2)]
    columns = Features({**features(table), "mask": ImageFeature(mode="L")})
    del columns["label"]
    by_hand = [{n: v for n, v in r.items() if n != "label"} for r in rows]
    by_hand = [r | {"mask": gray(ids)} for r, ids in zip(by_hand, masks, strict=True)]
    folders = {"gray": (by_hand, columns), "colored": (rows, features(table))}
    for name, (some, kinds) in folders.items():
        folder = tmp_path / name
        folder.mkdir()
        Dataset.from_list(some, features=kinds).to_parquet(folder / "train-00000.parquet")
        for streaming in (False, True):
            loaded = load_dataset(str(folder), split="train", streaming=streaming)
            for row, ids in zip(loaded, masks, strict=True):
                np.testing.assert_array_equal(np.array(row["mask"]), ids)
    labels = [np.where(RELIABILITY < 128, 255, ids) for ids in masks]
    crops = {}
    for name in folders:
        folder = str(tmp_path / name)
        for streaming in (False, True):
            opened = open_rows(folder, streaming, True)
            config = TrainConfig(dataset=folder, preset="voc-resnet50", crop_size=32).resolve()
            crop = Crops(config, opened.table, decode=opened.decode)
            crops[name, streaming] = [crop(row, place) for place, row in enumerate(opened.rows)]
        examples = open_images(folder, None, table)
        for example, ids in zip(examples, masks, strict=True):
            np.testing.assert_array_equal(example.target, ids)
        exported, _ = labeled_images(folder, None, 0, False)
        for image, ids in zip(exported, labels, strict=True):
            np.testing.assert_array_equal(image.ids, ids)
        counted = count_rows([Path(folder) / "train-00000.parquet"], table)
        expected = np.bincount(np.concatenate([ids.ravel() for ids in masks]), minlength=256)
        np.testing.assert_array_equal(counted.class_pixels, expected[: len(table.names)])
    first, *others = crops.values()
    assert {len(np.unique(crop["label"])) for crop in first} != {1}
    for other in others:
        for one, two in zip(first, other, strict=True):
            np.testing.assert_array_equal(one["label"], two["label"])
            np.testing.assert_array_equal(one["trusted"], two["trusted"])


def shown_by_the_viewer(image: Image.Image) -> tuple[str, Image.Image]:
    """What the Hub's viewer shows: it saves an image as JPEG, and as PNG only where that fails."""
    buffer = io.BytesIO()
    try:
        image.save(buffer, format="JPEG")
    except OSError:
        buffer = io.BytesIO()
        image.save(buffer, format="PNG")
    shown = Image.open(buffer)
    return str(shown.format), shown.convert("RGB")


def test_the_viewer_shows_masks_in_the_colors_of_the_table():
    ids = ids_of(VOC, 11)  # dog, whose id is 12
    before, black = shown_by_the_viewer(Image.fromarray(ids))
    assert before == "JPEG"
    assert np.asarray(black)[:10].max() < 40  # ids 0 to 20 as gray levels
    row = row_of(VOC, 11)
    for column, stored in (("mask", ids), ("label", np.where(RELIABILITY < 128, 255, ids))):
        kind, shown = shown_by_the_viewer(opened(row[column]))
        assert kind == "PNG"
        colors = {0: (0, 0, 0), 12: (64, 0, 128), 20: (0, 64, 128), 255: (255, 255, 255)}  # VOC's colors
        expected = np.array([[colors[k] for k in line] for line in stored.tolist()])
        np.testing.assert_array_equal(np.asarray(shown), expected)


@pytest.mark.parametrize("name", ["voc", "cityscapes", "imagenet_s_300"])
def test_label_is_the_mask_without_unreliable_pixels(name):
    table = load_table(name)
    row, ids = row_of(table, 5), ids_of(table, 5)
    mask, label = opened(row["mask"]), opened(row["label"])
    assert mask.mode == label.mode == features(table)["mask"].mode == features(table)["label"].mode
    assert mask.mode == ("I;16" if name == "imagenet_s_300" else "P")
    np.testing.assert_array_equal(np.array(mask), ids)
    expected = ids.copy()
    expected[8:, :4] = 65535 if name == "imagenet_s_300" else 255
    np.testing.assert_array_equal(np.array(label), expected)
    np.testing.assert_array_equal(decode_png(row["label"]["bytes"]), expected)


def test_label_is_the_mask_where_all_pixels_are_reliable():
    row = exact_row("r", image_of(0), ids_of(VOC))
    assert row["label"] == row["mask"]


def test_a_table_with_an_ignore_value_of_its_own():
    """With 255 names and more, masks have 16 bits, also where 8 would do."""
    row = row_of(replace(KITCHEN, ignore=100), 0)
    assert np.array(opened(row["label"]))[9].tolist() == [100] * 4 + [1] * 5 + [0] * 7
    names = tuple(LabelClass(f"c{k}", (f"c{k}",), (), default_color(k + 1)) for k in range(254))
    large = ClassTable("large", names, "background", ignore=255)
    ids = np.full(SIZE, 255, np.uint16)
    row = exact_row("r", image_of(0), ids, RELIABILITY, large)
    assert opened(row["mask"]).mode == features(large)["mask"].mode == "I;16"
    np.testing.assert_array_equal(np.array(opened(row["mask"])), ids)


@pytest.mark.parametrize("name", ["voc", "imagenet_s_919"])
def test_the_overlay_is_an_rgb_image_that_jpeg_holds(name):
    table = load_table(name)
    row = row_of(table, 3, with_overlay=True)
    assert shown_by_the_viewer(opened(row["overlay"]))[0] == "JPEG"
    assert opened(row["overlay"]).mode == "RGB"
    drawn = overlay(image_of(3), ids_of(table, 3), table)
    buffer = io.BytesIO()
    Image.fromarray(drawn).save(buffer, "JPEG", quality=90, subsampling=0)
    assert row["overlay"]["bytes"] == buffer.getvalue()
    assert "overlay" in features(table, ["overlay"])
    assert "overlay" not in features(table)
    assert "overlay" not in row_of(table, 3)


def test_draw_stores_the_overlay_and_refuses_to_mix(tmp_path, capsys):
    out = str(tmp_path / "drawn")
    command = ["draw", "objects", "--size", "32", "--num-images", "2", "--out", out]
    assert main([*command, "--overlay"]) == 0
    rows = load_dataset(out, split="train")
    assert rows[0]["overlay"].size == (32, 32)
    np.testing.assert_array_equal(np.array(rows[1]["label"]), np.array(rows[1]["mask"]))
    names = json.loads((tmp_path / "drawn" / "id2label.json").read_text())
    assert names == {str(k): name for k, name in enumerate(VOC.names)}
    capsys.readouterr()
    assert main(command) == 2
    assert "overlay (there True, now False)" in capsys.readouterr().err
