"""Images of users: every mode and orientation becomes upright RGB of 8 bits."""

import io
import struct

import numpy as np
import pytest
from PIL import Image, ImageOps

from attn2mask.builders.images import as_rgb

LEVELS = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)


def stored(image: Image.Image, kind: str, **options) -> Image.Image:
    """The image as it is read from a file of this kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return Image.open(io.BytesIO(buffer.getvalue()))


@pytest.mark.parametrize(
    ("levels", "kind"),
    [
        (LEVELS, "PNG"),
        (LEVELS.astype(np.uint16) * 257, "PNG"),
        (LEVELS.astype(np.uint16) * 257, "TIFF"),
        (LEVELS.astype(np.int32) * 257, "TIFF"),
        (LEVELS.astype(np.int32), "TIFF"),
        ((LEVELS / 255).astype(np.float32), "TIFF"),
        (LEVELS.astype(np.float32), "TIFF"),
    ],
)
def test_gray_levels_of_any_depth(levels, kind):
    read = as_rgb(stored(Image.fromarray(levels), kind))
    assert read.mode == "RGB"
    assert np.array_equal(np.asarray(read), np.repeat(LEVELS[..., None], 3, axis=2))


@pytest.mark.parametrize("level", [-1.0, np.nan, np.inf])
def test_gray_levels_without_a_range(level):
    with pytest.raises(ValueError, match="have no known range"):
        as_rgb(Image.fromarray(np.full((2, 2), level, np.float32)))


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P"])
def test_transparent_pixels_are_white(mode):
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (200, 200, 200, 255))
    if mode == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 200, 200, 200])
        image.putpixel((1, 0), 1)
        image = stored(image, "PNG", transparency=0)
    else:
        image = stored(image.convert(mode), "PNG")
    assert np.asarray(as_rgb(image)).tolist() == [[[255] * 3, [200] * 3]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_are_upright(orientation):
    """As Pillow itself turns them."""
    exif = Image.Exif()
    exif[0x0112] = orientation
    image = stored(Image.fromarray(np.repeat(LEVELS[..., None], 3, axis=2)), "PNG", exif=exif)
    assert np.array_equal(np.asarray(as_rgb(image)), np.asarray(ImageOps.exif_transpose(image)))


def test_an_image_with_a_damaged_exif_block_is_upright():
    """Orientation 6, and a signed rational of -1/0, which Pillow reads and cannot write."""
    entries = struct.pack("<HHII", 0x0112, 3, 1, 6) + struct.pack("<HHII", 0x9204, 10, 1, 38)
    block = struct.pack("<2sHIH", b"II", 42, 8, 2) + entries + struct.pack("<Iii", 0, -1, 0)
    image = stored(Image.fromarray(LEVELS), "JPEG", exif=b"Exif\0\0" + block)
    with pytest.raises(Exception, match=r"."):
        ImageOps.exif_transpose(image)
    assert as_rgb(image).size == (2, 3)


def test_an_exif_block_that_cannot_be_read_changes_nothing(monkeypatch):
    def damaged(self):
        raise TypeError("a resolution that is a byte")

    monkeypatch.setattr(Image.Image, "getexif", damaged)
    assert as_rgb(Image.fromarray(LEVELS)).size == (3, 2)
