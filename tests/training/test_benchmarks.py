"""Layouts of images and masks, drawn here in a few files each; and what in them is refused."""

import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
import yaml
from datasets import Dataset, Features
from datasets import Image as ImageFeature
from PIL import Image
from places import DATA

from attn2mask.builders.classes import default_color
from attn2mask.builders.errors import UserError
from attn2mask.builders.images import encode_png
from attn2mask.builders.mask_ids import CITYSCAPES_IDS, ids_of
from attn2mask.builders.sample import features
from attn2mask.builders.seals import sealed
from attn2mask.builders.shards import BuildDirectory, plan
from attn2mask.builders.table_reader import load_table
from attn2mask.training.benchmarks import open_images, recorded_table

VOC, CITYSCAPES = load_table("voc"), load_table("cityscapes")
PHOTOS = DATA / "photos_voc" / "VOC2012"
STREETS = DATA / "camvid"

IDS = np.zeros((5, 7), np.uint8)
IDS[1:3], IDS[3, :4], IDS[4] = 12, 1, 255
PIXELS = np.random.default_rng(0).integers(0, 256, (5, 7, 3), np.uint8)


def write(path: Path, pixels: np.ndarray, palette: np.ndarray | None = None) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(pixels)
    if palette is not None:
        image.putpalette(palette.astype(np.uint8).tobytes())
    image.save(path)
    return path


def voc_palette() -> np.ndarray:
    return np.array([default_color(i) for i in range(256)])


def voc(root: Path, names: tuple[str, ...] = ("2007_000033", "2007_000042")) -> Path:
    for name in names:
        write(root / "JPEGImages" / f"{name}.jpg", PIXELS)
        write(root / "SegmentationClass" / f"{name}.png", IDS, voc_palette())
    lists = root / "ImageSets" / "Segmentation"
    lists.mkdir(parents=True)
    (lists / "val.txt").write_text("".join(f"{name}\n" for name in names))
    (lists / "train.txt").write_text("".join(f"{name}\n" for name in names[:1]))
    return root


def test_an_image_is_upright_as_its_mask_is(tmp_path):
    """The image is stored upside down, and its EXIF orientation says so."""
    folder(tmp_path)
    exif = Image.Exif()
    exif[0x0112] = 3
    Image.fromarray(PIXELS[::-1, ::-1]).save(tmp_path / "images" / "a.png", exif=exif)
    (example,) = open_images(str(tmp_path), None, VOC)
    assert np.array_equal(example.image, PIXELS)


def folder(root: Path, mask: np.ndarray = IDS, kind: str = "masks") -> Path:
    write(root / "images" / "a.png", PIXELS)
    write(root / kind / "a.png", mask)
    return root


def refused(path: Path | str, split: str | None = None, table=VOC) -> str:
    """The one line with which opening or reading is refused."""
    with pytest.raises(UserError) as error:
        list(open_images(str(path), split, table))
    assert "\n" not in str(error.value)
    return str(error.value)


@pytest.mark.parametrize("given", ["", "VOC2012", "VOCdevkit/VOC2012"])
def test_voc(tmp_path, given):
    voc(tmp_path / given)
    inner = {"": "", "VOC2012": "", "VOCdevkit/VOC2012": "VOCdevkit"}[given]
    images = open_images(str(tmp_path / inner), None, VOC)
    assert [example.name for example in images] == ["2007_000033", "2007_000042"]
    assert images[1].image.shape == (5, 7, 3)
    assert images[1].image.dtype == np.uint8
    assert images[1].target.dtype == np.int32
    assert (images[1].target == IDS).all()
    assert len(open_images(str(tmp_path / inner), "train", VOC)) == 1
    assert "has no split 'test': it has train, val" in refused(tmp_path / inner, "test")
    assert "whose classes are VOC's, but the table is cityscapes: 19 names" in refused(
        tmp_path / inner, None, CITYSCAPES
    )
    with pytest.raises(IndexError):
        images[2]


def test_voc_with_a_mask_missing(tmp_path):
    voc(tmp_path)
    (tmp_path / "SegmentationClass" / "2007_000042.png").unlink()
    assert "2007_000042.png is missing; the split lacks 1 files" in refused(tmp_path)


def test_lists_of_voc_are_read_line_by_line(tmp_path):
    """A BOM, names with blanks and endings, lines with two paths, and images whose ending is not .jpg."""
    voc(tmp_path, ())
    (tmp_path / "ImageSets" / "Segmentation" / "val.txt").write_bytes(
        "\ufeffa dog\r\nb.JPG\r\n\r\n/JPEGImages/c.jpeg /SegmentationClassAug/c.png\r\nStu\u0308hle".encode()
    )
    for name in ("a dog.JPG", "b.jpeg", "c.jpeg", "St\u00fchle.png"):
        write(tmp_path / "JPEGImages" / name, PIXELS)
    for name in ("Class/a dog", "Class/b", "ClassAug/c", "Class/Stu\u0308hle"):
        write(tmp_path / f"Segmentation{name}.png", IDS, voc_palette())
    images = open_images(str(tmp_path), None, VOC)
    assert [example.name for example in images] == ["a dog", "b", "c", "Stu\u0308hle"]
    assert all((example.target == IDS).all() for example in images)


@pytest.fixture
def pets(tmp_path):
    """A user's own table, whose classes stand in another order than in the exports below."""
    classes = [{"name": name} for name in ("dog", "cat")]
    (tmp_path / "pets.yaml").write_text(yaml.safe_dump({"name": "pets", "classes": classes}))
    return load_table(str(tmp_path / "pets.yaml"))


PETS = np.array([[0, 1, 2], [255, 2, 2]])  # background, dog, cat and ignored


def test_an_export_of_cvat(tmp_path, pets):
    """Its masks have the colors of labelmap.txt."""
    root = tmp_path / "export"
    colors = np.zeros((256, 3), np.uint8)
    colors[1], colors[2], colors[255] = (250, 50, 83), (51, 221, 255), (224, 224, 192)
    lines = ["# label:color_rgb:parts:actions", "background:0,0,0::", "cat:51,221,255::", "dog:250,50,83::"]
    voc(root, ())
    (root / "labelmap.txt").write_text("\n".join(lines))
    (root / "ImageSets" / "Segmentation" / "default.txt").write_text("a\nb\n")
    for name in "ab":
        write(root / "JPEGImages" / f"{name}.jpg", PIXELS[:2, :3])
    write(root / "SegmentationClass" / "a.png", colors[PETS])
    Image.fromarray(colors[PETS]).quantize(4).save(root / "SegmentationClass" / "b.png")
    assert "has no split 'test': it has default, train, val" in refused(root, "test", pets)
    for example in open_images(str(root), "default", pets):
        assert (example.target == PETS).all()
    assert "has the class 'cat', which is not in the table cityscapes" in refused(root, "default", CITYSCAPES)
    (root / "labelmap.txt").write_text("\n".join(lines[:-1]))
    assert "has no class 'dog', which is in the table pets" in refused(root, "default", pets)
    (root / "labelmap.txt").write_text("background:0,0,0::\ndog red")
    assert "labelmap.txt, line 2: it must be NAME:R,G,B" in refused(root, "default", pets)


@pytest.mark.parametrize("kind", ["SegmentationClass", "SegmentationClassPNG"])
def test_an_export_of_labelme(tmp_path, pets, kind):
    """Its masks are palette images whose ids are the lines of class_names.txt. There are no lists."""
    root = tmp_path / "export"
    write(root / "JPEGImages" / "a.jpg", PIXELS[:2, :3])
    exported = np.array([0, 2, 1])[np.where(PETS < 3, PETS, 0)]
    write(root / kind / "a.png", np.where(PETS < 3, exported, 255).astype(np.uint8), voc_palette())
    (root / "class_names.txt").write_text("_background_\ncat\ndog")
    (example,) = open_images(str(root), None, pets)
    assert (example.target == PETS).all()


@pytest.mark.parametrize("encoding", ["labelIds", "labelTrainIds"])
def test_cityscapes(tmp_path, encoding):
    train_ids = np.tile(np.array([*range(19), 255, 255], np.uint8), (3, 1))
    label_ids = np.tile(np.array([*CITYSCAPES_IDS, 0, 30], np.uint8), (3, 1))
    for city in ("munster", "lindau"):
        stem = f"{city}_000001_000019"
        write(
            tmp_path / "leftImg8bit" / "val" / city / f"{stem}_leftImg8bit.png",
            np.zeros((3, 21, 3), np.uint8),
        )
        mask = label_ids if encoding == "labelIds" else train_ids
        write(tmp_path / "gtFine" / "val" / city / f"{stem}_gtFine_{encoding}.png", mask)
    images = open_images(str(tmp_path), None, CITYSCAPES)
    assert [example.name for example in images] == ["lindau_000001_000019", "munster_000001_000019"]
    assert (images[0].target == train_ids).all()
    assert "has no split 'test': it has val" in refused(tmp_path, "test", CITYSCAPES)
    assert "Cityscapes' layout, but the table is voc" in refused(tmp_path)
    label_ids[0, 0] = 77
    write(tmp_path / "gtFine" / "val" / "lindau" / f"lindau_000001_000019_gtFine_{encoding}.png", label_ids)
    said = refused(tmp_path, None, CITYSCAPES)
    assert "lindau_000001_000019_gtFine" in said
    assert "0 to 33" in said if encoding == "labelIds" else "is neither one of the 19 ids" in said


@pytest.mark.parametrize(("classes", "largest", "ignore"), [(50, 50, 255), (919, 919, 65535)])
def test_imagenet_s(tmp_path, classes, largest, ignore):
    table = load_table(f"imagenet_s_{classes}")
    ids = np.array([[0, 1, largest], [1000, 1000, 7]])
    mask = np.stack([ids % 256, ids // 256, 0 * ids], -1).astype(np.uint8)
    write(tmp_path / "validation" / "n01443537" / "ILSVRC2012_val_00000236.JPEG", PIXELS[:2, :3])
    file = write(tmp_path / "validation-segmentation" / "n01443537" / "ILSVRC2012_val_00000236.png", mask)
    for split in (None, "val", "validation"):
        (example,) = open_images(str(tmp_path), split, table)
        assert example.name == "n01443537/ILSVRC2012_val_00000236"
        assert (example.target == np.where(ids == 1000, ignore, ids)).all()
    assert "has no split 'train': it has validation" in refused(tmp_path, "train", table)
    assert "but the table is voc" in refused(tmp_path)
    mask[0, 0] = (largest % 256 + 1, largest // 256, 0)
    write(file, mask)
    assert f"id {largest + 1} is neither one of the {classes + 1} ids" in refused(tmp_path, None, table)
    write(file, np.full((2, 3, 3), 9, np.uint8))
    assert "but this mask has blue" in refused(tmp_path, None, table)
    write(file, np.zeros((2, 3), np.uint8))
    assert "but this is of mode L" in refused(tmp_path, None, table)


def test_imagenet_s_of_another_size(tmp_path):
    for number in range(300):
        (tmp_path / "validation" / f"n{number:08}").mkdir(parents=True)
    (tmp_path / "validation-segmentation").mkdir()
    said = refused(tmp_path, None, load_table("imagenet_s_919"))
    assert "holds the classes of imagenet_s_300, but the table is imagenet_s_919: 920 names" in said


@pytest.mark.parametrize("kind", ["masks", "labels"])
@pytest.mark.parametrize("shape", ["{}", "{}/val", "{split}"])
def test_folders(tmp_path, kind, shape):
    if shape == "{split}":
        folder(tmp_path / "val", kind=kind)
    else:
        write(tmp_path / shape.format("images") / "a.jpg", PIXELS)
        write(tmp_path / shape.format(kind) / "a.png", IDS)
    for split in (None,) if shape == "{}" else (None, "val"):
        (example,) = open_images(str(tmp_path), split, VOC)
        assert example.name == "a"
        assert (example.target == IDS).all()
    has = "it has none" if shape == "{}" else "it has val"
    assert f"has no split 'train': {has}" in refused(tmp_path, "train")


def test_folders_with_other_names(tmp_path, caplog):
    """Names in composed and decomposed Unicode, masks of other formats, hidden files, and an image in a
    format that is not read.
    """
    write(tmp_path / "images" / "Stu\u0308hle.tif", PIXELS)
    write(tmp_path / "masks" / "St\u00fchle.tif", IDS)
    write(tmp_path / "images" / "b.gif", PIXELS)
    write(tmp_path / "masks" / "b.png", IDS)
    for name in ("._b.gif", ".ipynb_checkpoints/b-checkpoint.gif", "c.heic"):
        (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
        (tmp_path / "images" / name).touch()
    images = open_images(str(tmp_path), None, VOC)
    assert [example.name for example in images] == ["Stu\u0308hle", "b"]
    assert all((example.target == IDS).all() for example in images)
    assert "left out 1 images of unsupported formats (1 heic): c.heic" in caplog.text


def test_a_folder_with_an_image_but_no_mask(tmp_path):
    write(folder(tmp_path) / "images" / "b.png", PIXELS)
    assert "masks/b.png is missing" in refused(tmp_path)


def built(root: Path, table=VOC) -> Path:
    """A directory as `attn2mask build` leaves it."""
    row = {
        "image": {"bytes": encode_png(PIXELS), "path": None},
        "mask": {"bytes": encode_png(IDS), "path": None},
        "reliability": {"bytes": encode_png(IDS), "path": None},
        "prompt": "a person",
        "caption": "a person",
        "classes": [12],
        "words": ["dog"],
        "seed": 1,
        "peaks": [0.5],
    }
    directory = BuildDirectory(root)
    root.mkdir()
    record = {"num_images": 3, "identity": {"shard_size": 2}, "table": asdict(table)}
    (root / "build.json").write_bytes(sealed(record))
    for shard in plan(3, 2):
        rows = [row | {"sample_id": f"voc-0-{i:08d}"} for i in shard.rows]
        directory.write_shard(shard, features(table), rows, {})
    return root


def test_rows_of_a_build(tmp_path):
    root = built(tmp_path / "data")
    images = open_images(str(root), None, VOC)
    assert len(images) == 3
    assert images[2].name == "voc-0-00000002"
    assert (images[2].image == PIXELS).all()
    assert (images[2].target == IDS).all()
    assert recorded_table(str(root)) == VOC
    assert recorded_table(str(tmp_path)) is None
    assert "was built for voc, but the table is cityscapes" in refused(root, None, CITYSCAPES)
    assert "split 'val', cannot be loaded" in refused(root, "val")


def test_rows_of_any_parquet(tmp_path):
    images = {"image": [Image.fromarray(PIXELS)], "mask": [Image.fromarray(IDS)]}
    rows = Dataset.from_dict(images, features=Features(image=ImageFeature(), mask=ImageFeature()))
    (tmp_path / "data").mkdir()
    rows.to_parquet(tmp_path / "data" / "validation-00000.parquet")
    (example,) = open_images(str(tmp_path), "validation", VOC)
    assert example.name == "row 0"
    assert (example.target == IDS).all()
    rows.remove_columns("mask").to_parquet(tmp_path / "data" / "validation-00000.parquet")
    assert "its rows have no mask or annotation or label (only image)" in refused(tmp_path, "validation")
    (tmp_path / "data" / "validation-00000.parquet").write_bytes(b"nothing")
    assert "cannot be loaded" in refused(tmp_path, "validation")


def test_places_that_hold_nothing(tmp_path, monkeypatch):
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    assert "no dataset" in refused(tmp_path / "missing")
    assert "has no known layout" in refused(tmp_path)
    (tmp_path / "images").mkdir()
    (tmp_path / "masks").mkdir()
    assert "has no split 'val'" in refused(tmp_path)
    assert "there is no such folder, and it cannot be loaded from the Hub" in refused("nobody/nothing")
    monkeypatch.chdir(tmp_path)
    assert refused("images/nothing") == "no dataset images/nothing: there is no such folder"


def test_palettes_and_colors_are_read_rightly():
    # VOC's own masks: indices are ids, in VOC's colors.
    mask = Image.fromarray(IDS)
    mask.putpalette(voc_palette().astype(np.uint8).tobytes())
    assert (ids_of(mask, VOC) == IDS).all()
    # The same image in colors, and as a painting program saves it, with indices by its own order.
    colors = mask.convert("RGB")
    assert (ids_of(colors, VOC) == IDS).all()
    assert (ids_of(colors.convert("RGBA"), VOC) == IDS).all()
    quantized = colors.quantize(4)
    assert set(np.unique(quantized)) == {0, 1, 2, 3}
    assert (ids_of(quantized, VOC) == IDS).all()
    # Grey levels are ids, of 8 and 16 bits.
    assert (ids_of(Image.fromarray(IDS), VOC) == IDS).all()
    assert (ids_of(Image.fromarray(IDS.astype(np.uint16) * 200), VOC) == IDS.astype(int) * 200).all()


def test_indices_in_colors_that_say_nothing_about_the_table():
    """Cityscapes' train ids with VOC's palette, as labeling tools write them, or with a grey one."""
    ids = np.array([[0, 1], [18, 255]], np.uint8)
    for palette in (voc_palette(), np.arange(256)[:, None].repeat(3, 1)):
        mask = Image.fromarray(ids)
        mask.putpalette(palette.astype(np.uint8).tobytes())
        assert (ids_of(mask, CITYSCAPES) == ids).all()
    mask.putpalette(np.random.default_rng(0).integers(0, 256, (256, 3), np.uint8).tobytes())
    with pytest.raises(ValueError, match="is not in the table"):
        ids_of(mask, CITYSCAPES)


def test_indices_and_colors_that_disagree_are_refused(tmp_path):
    classes = [{"name": "one", "color": [0, 128, 0]}, {"name": "two", "color": [128, 0, 0]}]
    (tmp_path / "t.yaml").write_text(yaml.safe_dump({"name": "t", "classes": classes}))
    table = load_table(str(tmp_path / "t.yaml"))
    mask = Image.fromarray(np.array([[0, 1]], np.uint8))
    mask.putpalette(voc_palette().astype(np.uint8).tobytes())
    with pytest.raises(ValueError, match="name different classes"):
        ids_of(mask, table)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.full((5, 7), 21, np.uint8), "id 21 is neither one of the 21 ids of voc nor the ignore value 255"),
        (np.full((5, 7, 3), 21, np.uint8), "the color (21, 21, 21) is not in the table"),
        (np.full((7, 5), 0, np.uint8), "images/a.png has 7 x 5 pixels, but its mask"),
        (np.full((5, 7), 300, np.uint16), "id 300 is neither"),
    ],
)
def test_masks_that_do_not_fit_are_named(tmp_path, mask, message):
    said = refused(folder(tmp_path, mask))
    assert message in said
    assert "masks/a.png" in said


def test_images_that_are_broken_are_named(tmp_path):
    file = folder(tmp_path) / "images" / "a.png"
    whole = file.read_bytes()
    for content in (b"", b"nothing", whole[: len(whole) // 2], whole[:40] + bytes(20) + whole[60:]):
        file.write_bytes(content)
        said = refused(tmp_path)
        assert said.startswith(f"{file} cannot be read: it is not ")
        assert said.endswith(", or it is broken")
    file.write_bytes(whole)
    file.chmod(0)
    if not os.access(file, os.R_OK):
        assert refused(tmp_path) == f"{file} cannot be read: Permission denied"


def test_a_table_with_its_own_ignored_id(tmp_path):
    content = {"name": "t", "background": False, "ignore": 2, "classes": [{"name": "a"}, {"name": "b"}]}
    (tmp_path / "t.yaml").write_text(yaml.safe_dump(content))
    table = load_table(str(tmp_path / "t.yaml"))
    mask = np.resize(np.array([0, 1, 2], np.uint8), (5, 7))
    (example,) = open_images(str(folder(tmp_path / "data", mask)), None, table)
    assert set(np.unique(example.target)) == {0, 1, 2}
    mask[0, 0] = 255
    assert "nor the ignore value 2" in refused(folder(tmp_path / "data", mask), None, table)


@pytest.mark.skipif(not PHOTOS.is_dir(), reason="the real photographs are not here")
def test_real_photographs():
    images = open_images(str(PHOTOS.parent), "val", VOC)
    assert len(images) == 181
    for example in (images[0], images[-1]):
        assert example.image.shape[:2] == example.target.shape
        assert set(np.unique(example.target)) <= {*range(21), 255}
        assert np.unique(example.target).size > 1


@pytest.mark.skipif(not STREETS.is_dir(), reason="the real street frames are not here")
def test_real_street_frames(tmp_path):
    names = "sky building pole road sidewalk vegetation sign fence car person bicycle".split()
    content = {"name": "camvid", "background": False, "ignore": 11, "classes": [{"name": n} for n in names]}
    (tmp_path / "camvid.yaml").write_text(yaml.safe_dump(content))
    images = open_images(str(STREETS), "val", load_table(str(tmp_path / "camvid.yaml")))
    assert len(images) == 101
    assert images[0].target.shape == (360, 480)
    assert images[0].target.max() == 11


def test_what_a_folder_leaves_out_is_named(tmp_path, caplog):
    folder(tmp_path)
    write(tmp_path / "images" / "inner" / "b.png", PIXELS)
    write(tmp_path / "masks" / "c.png", IDS)
    assert [example.name for example in open_images(str(tmp_path), None, VOC)] == ["a"]
    assert "left out 1 images in inner folders: inner/b.png" in caplog.text
    assert "left out 1 masks without an image: c.png" in caplog.text


def test_images_of_other_names_are_named_in_cityscapes(tmp_path, caplog):
    place = tmp_path / "leftImg8bit" / "val" / "ulm"
    for name in ("a_leftImg8bit.png", "b_leftImg8bit.jpg"):
        write(place / name, PIXELS)
    write(tmp_path / "gtFine" / "val" / "ulm" / "a_gtFine_labelTrainIds.png", np.zeros((5, 7), np.uint8))
    assert len(open_images(str(tmp_path), None, CITYSCAPES)) == 1
    assert "CITY/NAME_leftImg8bit.png: ulm/b_leftImg8bit.jpg" in caplog.text
