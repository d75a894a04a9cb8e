"""The images of a folder or of rows: captions, digest and size."""

import json
import shutil

import pytest
from PIL import Image
from streets import street

from attn2mask.builders.drawn.rows import draw_rows, write_rows
from attn2mask.training.adaptation.images import Crop, decoded, find_images, images_digest


def test_captions_are_found_where_they_are(frames):
    found = find_images(str(frames))
    assert [image.name for image in found] == [f"{k}.png" for k in range(6)]
    assert [image.caption for image in found] == [None, "a bus", "a dog on the street.", None, None, None]


def test_rows_are_images_with_captions(tmp_path):
    write_rows(draw_rows("streets", 4, 3, (32, 64)), tmp_path)
    found = find_images(str(tmp_path))
    assert found[2].name == "streets-3-000002"
    assert all(" " in image.caption for image in found)
    assert decoded(found[2].read()).size == (64, 32)


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
    assert Crop(64, 128, 8).fit(Image.new("RGB", size), "x").size == expected


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
    (folder / "b.gif").write_bytes(b"")
    assert [image.name for image in find_images(str(folder))] == [f"{k}.png" for k in range(6)]
    assert "left out 2 images of unsupported formats: 1 heic, 1 gif" in caplog.text
