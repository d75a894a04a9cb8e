"""The images of a folder or of rows: captions, digest and size."""

import json
import shutil

import numpy as np
import pytest
from PIL import Image
from streets import street

from attn2mask.builders.drawn.rows import draw_rows, write_rows
from attn2mask.builders.images import encode_png
from attn2mask.builders.painter import load_painter
from attn2mask.training.adaptation.images import Crop, encode_images, find_images, images_digest


def test_captions_are_found_where_they_are(frames):
    found = find_images(str(frames))
    assert [image.name for image in found] == [f"{k}.png" for k in range(6)]
    assert [image.caption for image in found] == [None, "a bus", "a dog on the street.", None, None, None]


def test_rows_are_images_with_captions(tmp_path):
    write_rows(draw_rows("streets", 4, 3, (32, 64)), tmp_path)
    found = find_images(str(tmp_path))
    assert found[2].name == "streets-3-000002"
    assert all(" " in image.caption for image in found)
    assert Crop(32, 64, 8).fit(found[2].read(), found[2].name).shape == (32, 64, 3)


def test_the_digest_is_of_names_contents_and_captions(frames, tmp_path):
    def of(change) -> str:
        folder = tmp_path / "copy"
        folder.mkdir(exist_ok=True)
        for file in frames.iterdir():
            (folder / file.name).write_bytes(file.read_bytes())
        change(folder)
        return images_digest(find_images(str(folder)))

    same = images_digest(find_images(str(frames)))
    assert of(lambda folder: None) == same
    assert of(lambda folder: (folder / "2.txt").write_text("a cat")) != same
    assert of(lambda folder: street(9).save(folder / "0.png")) != same


@pytest.mark.parametrize(
    ("size", "expected"), [((200, 100), (128, 64)), ((480, 360), (128, 96)), ((300, 64), (296, 64))]
)
def test_images_are_as_small_as_their_crops_allow(size, expected):
    height, width, _ = Crop(64, 128, 8).fit(encode_png(np.zeros((size[1], size[0]), np.uint8)), "x").shape
    assert (width, height) == expected


def test_images_that_cannot_be_read_are_counted_and_named(frames, tmp_path, caplog):
    """An EPS file with another ending, and a damaged file; a painter is adapted to the others."""
    folder = shutil.copytree(frames, tmp_path / "frames")
    Image.new("RGB", (64, 64)).save(folder / "a.png", "EPS")
    (folder / "b.png").write_bytes(b"no image")
    vae = load_painter().pipe.vae
    latents, skipped = encode_images(vae, find_images(str(folder)), Crop(64, 128, 8))
    assert (len(latents), skipped) == (6, ["a.png", "b.png"])
    said = "skipped 2 images that cannot be read: a.png, b.png (the first: it is not a PNG, "
    assert said in caplog.text


def test_captions_of_inner_folders_and_other_files(tmp_path, caplog):
    """As `datasets` reads them; a caption may hold a line separator of Unicode."""
    names = ["train/a.png", "train/b.png", "other/c.jfif", "d.png", "e.png"]
    for number, name in enumerate(names):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        street(number).save(tmp_path / name, "JPEG" if name.endswith("jfif") else None)
    text = "a bus\u2028and a dog\u0085"
    lines = [{"file_name": "a.png", "text": text}, {"file_name": "b.png", "text": "a car"}]
    (tmp_path / "train" / "metadata.jsonl").write_text(
        "\r\n".join(json.dumps(line, ensure_ascii=False) for line in lines)
    )
    (tmp_path / "other" / "metadata.csv").write_text('file_name,text\nc.jfif,"a road,\nand a car"\n')
    (tmp_path / "d.caption").write_text("a tree")
    street(5).save(tmp_path / "Stu\u0308hle.png")
    (tmp_path / "metadata.jsonl").write_text('{"file_name": "St\u00fchle.png", "text": "chairs"}')
    with caplog.at_level("INFO"):
        found = find_images(str(tmp_path))
    assert {image.name: image.caption for image in found} == {
        "train/a.png": "a bus and a dog",
        "train/b.png": "a car",
        "other/c.jfif": "a road, and a car",
        "d.png": "a tree",
        "e.png": None,
        "Stu\u0308hle.png": "chairs",
    }
    assert "5 of 6 images have a caption" in caplog.text


def test_hidden_files_are_no_images_and_other_formats_are_named(frames, tmp_path, caplog):
    folder = shutil.copytree(frames, tmp_path / "frames")
    for name in (".thumbnails/0.png", "__MACOSX/0.png", "._0.png", ".ipynb_checkpoints/0-checkpoint.png"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"no image")
    (folder / "a.HEIC").write_bytes(b"")
    (folder / "b.svg").write_bytes(b"")
    assert [image.name for image in find_images(str(folder))] == [f"{k}.png" for k in range(6)]
    assert "left out 2 images of unsupported formats (1 heic, 1 svg): a.HEIC, b.svg" in caplog.text


def test_of_a_long_image_the_middle_is_used(tmp_path, caplog):
    """One of 20 crops in a row, whose red is its column; its middle 8 crops are used."""
    for number in range(4):
        street(number).save(tmp_path / f"{number}.png")
    image = np.zeros((64, 20 * 64, 3), np.uint8)
    image[..., 0] = np.arange(20).repeat(64)
    Image.fromarray(image).save(tmp_path / "long.png")
    crop = Crop(64, 64, 8)
    middle = crop.middle(crop.fit((tmp_path / "long.png").read_bytes(), "long.png"))
    assert middle[0, :, 0].tolist() == [*np.arange(6, 14).repeat(64)]
    tall = crop.middle(image.transpose(1, 0, 2))
    assert np.array_equal(tall, middle.transpose(1, 0, 2))
    latents, _ = encode_images(load_painter().pipe.vae, find_images(str(tmp_path)), crop)
    assert latents["4"].shape[-2:] == (8, 64)
    assert "of 1 images that are longer than 8 crops, only the middle is used: long.png" in caplog.text


def test_image_files_beside_rows_are_named(tmp_path, caplog):
    write_rows(draw_rows("streets", 4, 3, (32, 64)), tmp_path)
    street(0).save(tmp_path / "a.png")
    assert len(find_images(str(tmp_path))) == 4
    assert "left out 1 image files beside the rows: a.png" in caplog.text
