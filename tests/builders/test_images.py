"""Images and masks of users: every mode, format and orientation is read by one rule, or refused."""

import io
import struct
import subprocess
import sys
import zlib

import numpy as np
import pytest
from PIL import Image, ImageOps

from attn2mask.builders import images
from attn2mask.builders.errors import UserError
from attn2mask.builders.images import (
    UnreadableError,
    decode_png,
    encode_png,
    image_files,
    read_image,
    read_mask,
)
from attn2mask.builders.table_reader import load_table

VOC = load_table("voc")
LEVELS = np.array([[0, 51, 102], [153, 204, 255]], np.uint8)
GRAY = np.repeat(LEVELS[..., None], 3, axis=2)


def stored(image: Image.Image, kind: str, **options) -> bytes:
    """The content of a file of this kind."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def turned(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[0x0112] = orientation
    return exif


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
@pytest.mark.parametrize("large", [images.LARGE, 3])
def test_gray_levels_of_any_depth(levels, kind, large, monkeypatch):
    """Also of images that are converted in parts."""
    monkeypatch.setattr(images, "LARGE", large)
    assert np.array_equal(read_image(stored(Image.fromarray(levels), kind), "a"), GRAY)


@pytest.mark.parametrize("level", [-1.0, np.nan, np.inf])
def test_gray_levels_without_a_range(level):
    content = stored(Image.fromarray(np.full((2, 2), level, np.float32)), "TIFF")
    with pytest.raises(UnreadableError, match=r"^a cannot be read: its gray levels .* have no known range"):
        read_image(content, "a")


@pytest.mark.parametrize("mode", ["RGBA", "LA", "P", "I;16"])
def test_transparent_pixels_are_white(mode):
    image = Image.new("RGBA", (2, 1), (10, 20, 30, 0))
    image.putpixel((1, 0), (200, 200, 200, 255))
    if mode == "P":
        image = Image.new("P", (2, 1))
        image.putpalette([10, 20, 30, 200, 200, 200])
        image.putpixel((1, 0), 1)
        content = stored(image, "PNG", transparency=0)
    elif mode == "I;16":
        levels = np.array([[10, 200 * 257]], np.uint16)
        content = stored(Image.fromarray(levels), "PNG", transparency=10)
    else:
        content = stored(image.convert(mode), "PNG")
    assert read_image(content, "a").tolist() == [[[255] * 3, [200] * 3]]


def test_a_transparent_color_of_16_bits_is_white():
    """Pillow reads the upper 8 bits of colors of 16, but all of the transparent color."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(kind + data))
        return struct.pack(">I", len(data)) + kind + data + checksum

    header = struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0)
    row = struct.pack(">x6H", 1000, 2000, 3000, 65535, 0, 257 * 51)
    parts = {b"IHDR": header, b"tRNS": row[1:7], b"IDAT": zlib.compress(row), b"IEND": b""}
    content = b"\x89PNG\r\n\x1a\n" + b"".join(chunk(kind, data) for kind, data in parts.items())
    assert read_image(content, "a").tolist() == [[[255, 255, 255], [255, 0, 51]]]


@pytest.mark.parametrize("orientation", range(1, 9))
def test_images_and_masks_are_upright(orientation):
    """As Pillow itself turns them."""
    content = stored(Image.fromarray(GRAY), "PNG", exif=turned(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert np.array_equal(read_image(content, "a"), expected)
    ids = np.arange(6, dtype=np.uint8).reshape(2, 3)
    content = stored(Image.fromarray(ids), "PNG", exif=turned(orientation))
    expected = np.asarray(ImageOps.exif_transpose(Image.open(io.BytesIO(content))))
    assert np.array_equal(read_mask(content, "a", VOC), expected)


# Entries of an EXIF block that Pillow reads and cannot write, or cannot read: a signed rational of -1/0, and
# a resolution that is a byte.
DAMAGED = {
    "rational": struct.pack("<HHII", 0x9204, 10, 1, 38),
    "byte": struct.pack("<HHII", 0x011A, 1, 1, 72),
}


@pytest.mark.parametrize("entry", DAMAGED)
def test_an_image_with_a_damaged_exif_block_is_upright(entry):
    """The orientation is 6."""
    entries = sorted([struct.pack("<HHII", 0x0112, 3, 1, 6), DAMAGED[entry]])
    block = struct.pack("<2sHIH", b"II", 42, 8, 2) + b"".join(entries) + struct.pack("<Iii", 0, -1, 0)
    content = stored(Image.fromarray(LEVELS), "JPEG", exif=b"Exif\0\0" + block)
    assert read_image(content, "a").shape == (3, 2, 3)


def test_an_exif_block_that_cannot_be_read_changes_nothing():
    for block in (b"", b"II*\0", b"II*\0\xff\xff\xff\xff", b"nonsense" * 9):
        content = stored(Image.fromarray(LEVELS), "JPEG", exif=b"Exif\0\0" + block)
        assert read_image(content, "a").shape == (2, 3, 3)


@pytest.mark.parametrize("kind", ["PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF"])
def test_formats_are_read_by_their_content(kind, tmp_path):
    file = tmp_path / "a.png"  # the ending does not count
    file.write_bytes(stored(Image.new("RGB", (3, 2), "white"), kind))
    for source in (file, file.read_bytes()):
        assert read_image(source, "a").tolist() == [[[255] * 3] * 3] * 2


def test_of_several_frames_the_first_is_read():
    black, white = Image.new("L", (3, 2)), Image.new("L", (3, 2), 255)
    for kind in ("GIF", "TIFF", "PNG", "WEBP"):
        content = stored(black, kind, save_all=True, append_images=[white])
        assert read_image(content, "a").max() == 0
    content = stored(black.convert("RGB"), "MPO", save_all=True, append_images=[white.convert("RGB")])
    assert read_image(content, "a").max() == 0  # photographs of many phones


def test_other_formats_start_no_program(tmp_path, monkeypatch):
    """An EPS file, which Pillow gives to Ghostscript, and a netpbm file."""
    monkeypatch.setattr(
        subprocess, "check_call", lambda *args, **options: pytest.fail("a program was started")
    )
    for kind in ("EPS", "PPM"):
        content = stored(Image.new("RGB", (3, 2)), kind)
        with pytest.raises(UnreadableError, match=r"a cannot be read: it is not a PNG, .* or AVIF file"):
            read_image(content, "a")
        with pytest.raises(UnreadableError, match=r"a cannot be read: it is not a PNG, .* or GIF file"):
            read_mask(content, "a", VOC)


def test_rows_of_builds_hold_no_other_formats(monkeypatch):
    monkeypatch.setattr(subprocess, "check_call", lambda *args: pytest.fail("a program was started"))
    for content in (stored(Image.new("RGB", (3, 2)), "EPS"), b"", encode_png(GRAY)[:40]):
        with pytest.raises(UnreadableError, match=r"an image of a row cannot be read: it is (not |empty)"):
            decode_png(content)


def test_masks_that_were_compressed_with_loss_are_refused():
    for kind in ("JPEG", "AVIF"):
        with pytest.raises(UnreadableError, match="not a PNG"):
            read_mask(stored(Image.new("L", (3, 2)), kind), "a", VOC)


def test_files_that_cannot_be_read_are_named(tmp_path):
    whole = stored(Image.fromarray(GRAY), "PNG")
    for content in (b"nothing", whole[: len(whole) // 2], whole[:40] + bytes(20) + whole[60:]):
        with pytest.raises(UnreadableError, match=r"^a cannot be read: it is not .*, or it is broken$"):
            read_image(content, "a")
    with pytest.raises(UnreadableError, match=r"^a cannot be read: it is empty$"):
        read_image(b"", "a")
    with pytest.raises(UnreadableError, match="a cannot be read: No such file"):
        read_image(tmp_path / "none.png", "a")


def test_images_of_more_pixels_than_the_limit_are_refused(monkeypatch):
    content = stored(Image.new("1", (20_000, 8_948)), "PNG")
    with pytest.raises(UnreadableError, match="a cannot be read: it has more than 178,956,970 pixels"):
        read_image(content, "a")
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", None)  # as other libraries do
    with pytest.raises(UnreadableError, match="178,956,970"):
        read_mask(content, "a", VOC)


@pytest.mark.parametrize("orientation", [1, 6])
@pytest.mark.parametrize("kind", ["PNG", "JPEG"])
def test_large_images_are_reduced_before_they_are_converted(kind, orientation, monkeypatch):
    """To what a conversion of the whole image gives."""
    down, across = np.mgrid[:160, :240]
    pixels = np.stack([down, across, (down + across) // 2], -1).astype(np.uint8)
    content = stored(Image.fromarray(pixels), kind, exif=turned(orientation))
    sizes = []

    def half(width: int, height: int) -> tuple[int, int]:
        sizes.append((width, height))
        return width // 6, height // 6

    expected = read_image(content, "a", half)
    monkeypatch.setattr(images, "LARGE", 1000)
    reduced = read_image(content, "a", half)
    upright = (240, 160) if orientation == 1 else (160, 240)
    assert sizes == [upright] * 2
    assert reduced.shape == expected.shape == (upright[1] // 6, upright[0] // 6, 3)
    assert np.abs(reduced.astype(int) - expected).max() <= 4


MEASURE = """
import resource, sys
from attn2mask.builders.images import read_image
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
content = open(sys.argv[1], "rb").read()
print(read_image(content, "a", lambda width, height: (width // 100, height // 100)).shape)
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024)
"""


def test_a_large_image_takes_little_more_memory_than_it_stores(tmp_path):
    """13,000 x 13,000 pixels in a file of 21 kB: Pillow stores one byte for each."""
    file = tmp_path / "a.png"
    file.write_bytes(stored(Image.new("1", (13_000, 13_000)), "PNG"))
    assert file.stat().st_size < 30_000
    measured = subprocess.run(
        [sys.executable, "-c", MEASURE, file], capture_output=True, text=True, check=True
    )
    shape, mebibytes = measured.stdout.splitlines()
    assert shape == "(130, 130, 3)"
    assert float(mebibytes) < 400


def test_image_files_are_found_and_others_are_named(tmp_path, caplog):
    names = ["b.JPG", "a.png", "in/c.avif", "d.gif", "e.HEIC", "in/f.eps", "notes.txt"]
    hidden = [".thumbnails/0.png", "__MACOSX/0.png", "._0.png", ".ipynb_checkpoints/0-checkpoint.png"]
    for name in names + hidden:
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).touch()
    (tmp_path / "g.png").mkdir()
    found = [path.relative_to(tmp_path).as_posix() for path in image_files(tmp_path)]
    assert found == ["a.png", "b.JPG", "d.gif", "in/c.avif"]
    assert "left out 2 images of unsupported formats (1 heic, 1 eps): e.HEIC, in/f.eps" in caplog.text


@pytest.mark.parametrize("kind", ["RGB", "P", "L", "RGBA", "LA"])
@pytest.mark.parametrize("large", [1 << 26, 12])
def test_masks_of_every_mode_have_the_ids_of_the_table(kind, large, monkeypatch):
    """Palette masks whose indices a program sorted in its own order, colors, and gray levels."""
    monkeypatch.setattr("attn2mask.builders.mask_ids._AT_ONCE", large)
    ids = np.array([[0, 3, 10], [10, 3, 255], [0, 0, 3], [3, 3, 3]], np.uint8)
    if kind.startswith("L"):
        mask = Image.fromarray(ids).convert(kind)
    else:
        colors = np.append(VOC.palette, np.zeros((235, 3), np.uint8), 0)
        colors[255] = 224, 224, 192
        mask = Image.fromarray(colors[ids])
        mask = mask.quantize(4) if kind == "P" else mask.convert(kind)
    read = read_mask(stored(mask, "PNG"), "a", VOC)
    assert read.dtype == np.int32
    assert np.array_equal(read, ids)


def test_masks_of_16_bits_of_either_byte_order():
    table = load_table("imagenet_s_919")
    ids = np.array([[0, 700, 65535]])
    for mode, dtype in (("I;16", "<u2"), ("I;16B", ">u2")):
        mask = Image.frombytes(mode, (3, 1), ids.astype(dtype).tobytes())
        assert read_mask(stored(mask, "TIFF"), "a", table).tolist() == ids.tolist()


def test_masks_that_do_not_fit_the_table_are_named():
    with pytest.raises(UserError, match=r"^a: id 21 is neither one of the 21 ids of voc nor"):
        read_mask(stored(Image.new("L", (3, 2), 21), "PNG"), "a", VOC)
    with pytest.raises(UserError, match=r"^a: the color \(1, 2, 3\) is not in the table"):
        read_mask(stored(Image.new("RGB", (3, 2), (1, 2, 3)), "PNG"), "a", VOC)


def test_masks_are_reduced_to_the_nearest_pixels():
    ids = np.arange(20, dtype=np.uint8).repeat(2)[None].repeat(4, 0)
    content = stored(Image.fromarray(ids), "PNG")
    assert read_mask(content, "a", VOC, size=lambda width, height: (20, 2)).tolist() == [[*range(20)]] * 2
    turned_mask = stored(Image.fromarray(ids), "PNG", exif=turned(6))
    reduced = read_mask(turned_mask, "a", VOC, size=lambda width, height: (width // 2, height // 2))
    assert reduced.tolist() == [[k, k] for k in range(20)]
    for mode, dtype in (("I;16", "<u2"), ("I;16B", ">u2")):
        content = stored(Image.frombytes(mode, (40, 4), ids.astype(dtype).tobytes()), "TIFF")
        assert read_mask(content, "a", VOC, size=lambda width, height: (20, 1)).tolist() == [[*range(20)]]


@pytest.mark.parametrize("size", [(1, 1), (4096, 4096), (1, images.LARGE), (3000, 2000)])
def test_images_that_are_not_large_keep_their_size(size):
    assert images.at_most_large(*size) == size
    assert images.at_most_large(*size[::-1]) == size[::-1]


@pytest.mark.parametrize("size", [(13_000, 13_000), (4097, 4096), (2, images.LARGE), (1, images.MOST_PIXELS)])
def test_large_images_are_reduced_in_shape(size):
    """By the square root of the ratio of their pixels, to within a pixel; no side becomes 0."""
    width, height = images.at_most_large(*size)
    assert images.at_most_large(*size[::-1]) == (height, width)
    assert images.LARGE / 2 < width * height <= images.LARGE
    scale = (images.LARGE / (size[0] * size[1])) ** 0.5
    assert width == max(int(size[0] * scale), 1)


def test_links_to_nothing_are_named(tmp_path, caplog):
    (tmp_path / "a.png").symlink_to(tmp_path / "none")
    (tmp_path / "b.png").write_bytes(b"")
    assert [path.name for path in image_files(tmp_path)] == ["b.png"]
    assert "left out 1 links to files that do not exist: a.png" in caplog.text
