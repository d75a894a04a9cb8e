"""The images of a folder or of rows: captions, digest and size."""

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
