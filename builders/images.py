"""Images of users and of rows: read as arrays, and written as PNG files; heat maps, and masks drawn over
images.

`read_image` and `read_mask` read every image and mask that is not a row of a build.
"""

import io
import logging
import math
import warnings
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import numpy as np
from PIL import Image, UnidentifiedImageError

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import is_hidden
from attn2mask.builders.mask_ids import ids_of

logger = logging.getLogger(__name__)

# The formats that are read, by their names in Pillow. Others may start programs (EPS starts Ghostscript).
FORMATS = ("PNG", "JPEG", "WEBP", "TIFF", "BMP", "GIF", "AVIF")
MASK_FORMATS = ("PNG", "WEBP", "TIFF", "BMP", "GIF")  # not those whose compression changes ids
SUFFIXES = (".png", ".jpg", ".jpeg", ".jpe", ".jfif", ".webp", ".tif", ".tiff", ".bmp", ".gif", ".avif")
# Endings of images that are not read, which a warning names.
UNSUPPORTED = (
    *(".heic", ".heif", ".jxl", ".jp2", ".j2k", ".svg", ".eps", ".ps", ".psd", ".tga", ".ico", ".dds"),
    *(".ppm", ".pgm", ".pbm", ".pnm", ".exr", ".hdr", ".dng", ".cr2", ".cr3", ".nef", ".arw", ".raw"),
)
MOST_PIXELS = 178_956_970  # of an image that is read; Pillow's own limit
LARGE = 1 << 24  # pixels of a large image: it is converted in parts, and most readers reduce it to so many
# A large image is reduced by whole numbers to at least so many times its wanted size, then by Lanczos.
_GAP = 2
_LISTED = 10  # names in a message
# Share of the color in what is drawn over an image. The rest is the image in grey.
OPACITY = 0.65
_ORIENTATION = 0x0112  # the number of the orientation in EXIF
# What makes an image upright, by its orientation. Pillow's `exif_transpose` also writes the EXIF block again.
# It therefore fails for blocks with a damaged part, also if their orientation can be read.
_TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
_SIDEWAYS = tuple(_TURNS[orientation] for orientation in (5, 6, 7, 8))  # these exchange width and height


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as an RGB PNG; (H, W) uint8 or uint16 as a grey PNG of 8 or 16 bits."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def encode_mask(ids: np.ndarray, table: ClassTable) -> bytes:
    """Mask ids (H, W) as a PNG file: in the colors of the table for up to 254 names, and otherwise in gray
    levels of 16 bits. The ignore value is white.
    """
    if len(table.names) > 254:
        return encode_png(ids.astype(np.uint16))
    palette = np.full((256, 3), 255, np.uint8)
    palette[: len(table.names)] = table.palette
    return encode_indices(ids, palette)


def encode_indices(indices: np.ndarray, palette: np.ndarray) -> bytes:
    """Indices (H, W), 0 to 255, as a palette PNG file in the colors of a palette (256, 3) uint8."""
    image, buffer = Image.fromarray(indices.astype(np.uint8), "L"), io.BytesIO()
    image.putpalette(palette.tobytes())
    image.save(buffer, "PNG")
    return buffer.getvalue()


def encode_jpeg(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as an RGB JPEG file, whose colors have the resolution of its brightness."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "JPEG", quality=90, subsampling=0)
    return buffer.getvalue()


def decode_png(content: bytes) -> np.ndarray:
    """The inverse of `encode_png` and `encode_mask`, for rows of a build: (H, W, 3) uint8, or (H, W) uint8 or
    uint16.

    Raises UnreadableError for anything but a PNG.
    """
    with _opened(content, "an image of a row", ("PNG",)) as image:
        return np.array(image)


class UnreadableError(UserError):
    """An image `name` that cannot be read, with the `reason`."""

    def __init__(self, name: str, reason: str):
        super().__init__(f"{name} cannot be read: {reason}")
        self.reason = reason


def image_files(folder: Path, pattern: str = "**/*") -> list[Path]:
    """The image files of a folder that match a pattern and are not hidden, in the order of their names.

    Warnings count and name the images in formats that are not read, and links to files that do not exist.
    """
    listed = [path for path in sorted(folder.glob(pattern)) if not is_hidden(path.relative_to(folder))]
    files = [path for path in listed if path.is_file()]
    broken = [path for path in listed if path.is_symlink() and not path.exists()]
    warn_left_out(folder, broken, "links to files that do not exist")
    left_out = [path for path in files if path.suffix.lower() in UNSUPPORTED]
    if left_out:
        kinds = Counter(path.suffix.lower().removeprefix(".") for path in left_out)
        counts = ", ".join(f"{count} {kind}" for kind, count in kinds.items())
        warn_left_out(folder, left_out, f"images of unsupported formats ({counts})")
    return [path for path in files if path.suffix.lower() in SUFFIXES]


def warn_left_out(folder: Path, files: Sequence[Path], kind: str) -> None:
    """A warning that counts and names the files of a folder that are not used, if there are any."""
    if files:
        names = shortened([file.relative_to(folder).as_posix() for file in files])
        logger.warning("left out %d %s: %s", len(files), kind, names)


def shortened(names: Sequence[str]) -> str:
    """The first names of a list, for a message."""
    return ", ".join([*names[:_LISTED], *(("...",) if len(names) > _LISTED else ())])


def read_image(
    source: Path | bytes, name: str, size: Callable[[int, int], tuple[int, int]] | None = None
) -> np.ndarray:
    """An image as RGB (H, W, 3) uint8: upright as its EXIF block says, with white under transparent pixels.

    Gray levels of more than 8 bits are scaled to 8: those of 16 bits by 65535; 32-bit integers and floats by
    the first of 1 (floats only), 255, 65535 and 2 ** 31 - 1 that no level exceeds. Of several frames, the
    first is read.

    Args:
        source: a file, or its content.
        name: what messages call the image.
        size: the width and height to which the upright image is reduced, by its own width and height. Large
            images are reduced before they are converted, which takes less memory.

    Raises UnreadableError for a file that is broken, of none of `FORMATS`, or of more than `MOST_PIXELS`
    pixels, and for gray levels that are negative, not finite, or too large.
    """
    with _opened(source, name, FORMATS) as image:
        turn = _TURNS.get(_orientation(image))
        sideways = turn in _SIDEWAYS
        wanted = upright = image.size[::-1] if sideways else image.size
        if size is not None:
            wanted = size(*upright)
        steps = (1, 1)
        if wanted != upright and image.width * image.height > LARGE:
            width, height = wanted[::-1] if sideways else wanted
            least = _GAP * width, _GAP * height
            image.draft(None, least)  # a JPEG is decoded at a half, a quarter or an eighth of its size
            steps = max(1, image.width // least[0]), max(1, image.height // least[1])
        pixels = _rgb_pixels(image, steps)
    if turn is not None:
        pixels = np.asarray(Image.fromarray(pixels).transpose(turn))
    if pixels.shape[1::-1] != wanted:
        pixels = np.asarray(Image.fromarray(pixels).resize(wanted, Image.Resampling.LANCZOS))
    return pixels if pixels.flags.writeable else pixels.copy()


def read_mask(
    source: Path | bytes,
    name: str,
    table: ClassTable,
    decode: Callable[[Image.Image, ClassTable], np.ndarray] = ids_of,
    size: Callable[[int, int], tuple[int, int]] | None = None,
) -> np.ndarray:
    """A mask as ids (H, W) int32 of the table or its ignore value, upright as its EXIF block says.

    `source`, `name` and `size` are as for `read_image`; a reduced mask has the ids of the nearest pixels.
    `decode` returns the ids of a decoded image (see `mask_ids.py`).

    Raises UnreadableError for a file that is broken, of none of `MASK_FORMATS`, or too large, and UserError
    for a mask that does not fit the table.
    """
    with _opened(source, name, MASK_FORMATS) as image:
        turn = _TURNS.get(_orientation(image))
        image.load()
        mask = image if turn is None else image.transpose(turn)
        if size is not None and (wanted := size(*mask.size)) != mask.size:
            mask = mask.resize(wanted, Image.Resampling.NEAREST)
    try:
        ids = decode(mask, table)
    except ValueError as error:
        raise UserError(f"{name}: {error}") from error
    count, ignore = len(table.names), table.ignore_index
    outside = (ids < 0) | ((ids >= count) & (ids != ignore))
    if outside.any():
        raise UserError(
            f"{name}: id {ids[outside][0]} is neither one of the {count} ids of {table.name} nor the ignore "
            f"value {ignore}"
        )
    return ids


def at_most_large(width: int, height: int) -> tuple[int, int]:
    """The size in pixels, in the same shape, of an image that is reduced to at most `LARGE` pixels."""
    scale = min(1, (LARGE / (width * height)) ** 0.5)
    least, most = sorted((width, height))
    least = max(int(least * scale), 1)
    most = min(max(round(most * scale), 1), LARGE // least)
    return (least, most) if width < height else (most, least)


def thinned(pixels: np.ndarray) -> np.ndarray:
    """Every k-th pixel of (H, W, ...) in both directions. k is the least that leaves about `LARGE` pixels."""
    k = math.ceil((pixels.shape[0] * pixels.shape[1] / LARGE) ** 0.5)
    return pixels[::k, ::k].copy() if k > 1 else pixels


@contextmanager
def _opened(source: Path | bytes, name: str, formats: tuple[str, ...]) -> Iterator[Image.Image]:
    """An image that is not decoded yet. Raises UnreadableError, also for errors of Pillow in the block."""
    if not source:
        raise UnreadableError(name, "it is empty")
    file = io.BytesIO(source) if isinstance(source, bytes) else source
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of damaged blocks, and of sizes that are below the limit
            with Image.open(file, formats=formats) as image:
                if image.width * image.height > MOST_PIXELS:
                    raise Image.DecompressionBombError
                yield image
    except UserError:
        raise
    except Image.DecompressionBombError as error:
        raise UnreadableError(name, f"it has more than {MOST_PIXELS:,} pixels") from error
    except UnidentifiedImageError as error:
        known = " or ".join([*([", ".join(formats[:-1])] if formats[1:] else []), formats[-1]])
        raise UnreadableError(name, f"it is not a {known} file, or it is broken") from error
    except _UnknownRangeError as error:
        raise UnreadableError(name, str(error)) from error
    except Exception as error:  # Pillow raises errors of many kinds for broken files
        reason = getattr(error, "strerror", None) or "it is not an image, or it is broken"
        raise UnreadableError(name, reason) from error


def _orientation(image: Image.Image) -> int:
    """The orientation in the EXIF block, 1 to 8; 1 if there is none, or if it cannot be read."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises errors of many kinds for damaged blocks, whose pixels are whole
        return 1


def _rgb_pixels(image: Image.Image, steps: tuple[int, int]) -> np.ndarray:
    """The pixels (H, W, 3) uint8 of an image of any mode. Each is the mean of `steps` pixels in width and in
    height. Large images are converted in parts: their RGB takes more memory than what they store.
    """
    image.load()
    full = _full_scale(image)
    (across, down), (width, height) = steps, image.size
    if steps == (1, 1) and width * height <= LARGE:
        return np.array(_as_rgb(image, full))
    pixels = np.empty((-(-height // down), -(-width // across), 3), np.uint8)
    for top, part in _parts(image, down):
        rgb = _as_rgb(part, full)
        reduced = np.asarray(rgb if steps == (1, 1) else rgb.reduce(steps))
        pixels[top // down : top // down + len(reduced)] = reduced
    return pixels


def _parts(image: Image.Image, multiple: int = 1) -> Iterator[tuple[int, Image.Image]]:
    """The image in parts of its whole width, with the row at which each begins, a multiple of `multiple`."""
    rows = max(LARGE // max(image.width, 1) // multiple, 1) * multiple
    if rows >= image.height:
        yield 0, image
        return
    for top in range(0, image.height, rows):
        yield top, image.crop((0, top, image.width, min(top + rows, image.height)))


def _as_rgb(image: Image.Image, full: float | None) -> Image.Image:
    """An image in RGB, with white under transparent pixels. `full` is what `_full_scale` returns."""
    if full is not None:
        levels = np.asarray(image)
        scaled = np.rint(levels.astype(np.float64) * (255 / full)).astype(np.uint8)
        transparent = image.info.get("transparency")
        if transparent is not None:
            scaled[levels == transparent] = 255
        return Image.fromarray(scaled).convert("RGB")
    if image.has_transparency_data:
        color = image.info.get("transparency")
        if isinstance(color, tuple) and max(color) > 255:  # of 16 bits, whose upper 8 Pillow reads
            image.info["transparency"] = tuple(level >> 8 for level in color)
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return image if image.mode == "RGB" else image.convert("RGB")  # `convert` would copy it


class _UnknownRangeError(ValueError):
    """Gray levels that cannot be scaled to 8 bits."""


def _full_scale(image: Image.Image) -> float | None:
    """The gray level that is white in an image of more than 8 bits; None for other images."""
    if image.mode.startswith("I;16"):
        return 65535
    if image.mode not in ("I", "F") or 0 in image.size:
        return None
    parts = [np.asarray(part) for _, part in _parts(image)]
    least, most = float(np.min([part.min() for part in parts])), float(np.max([part.max() for part in parts]))
    scales = (255, 65535, 2**31 - 1) if image.mode == "I" else (1, 255, 65535, 2**31 - 1)
    full = next((scale for scale in scales if most <= scale), None)
    if full is None or not least >= 0:
        raise _UnknownRangeError(f"its gray levels from {least:g} to {most:g} have no known range")
    return full


def heat_map(image: np.ndarray, scores: np.ndarray) -> np.ndarray:
    """Scores (h, w) in [0, 1] as a heat map over the grey `image` (H, W, 3) uint8: (H, W, 3) uint8.

    The colors are matplotlib's magma, from black (0) to pale yellow (1).
    """
    from matplotlib import colormaps  # not at the top: labeling processes import this module

    height, width = image.shape[:2]
    levels = Image.fromarray((scores * 255).astype(np.uint8)).resize(
        (width, height), Image.Resampling.BILINEAR
    )
    colors = colormaps["magma"](np.asarray(levels))[..., :3] * 255
    return _blend(colors, image).astype(np.uint8)


def overlay(image: np.ndarray, ids: np.ndarray, table: ClassTable) -> np.ndarray:
    """A mask drawn over the grey `image` (H, W, 3) uint8 in the colors of the class table: (H, W, 3) uint8.

    `ids` (H, W) are mask ids. Pixels of the background class keep the colors of the image. Ignored pixels
    are white in place of a color.
    """
    known = ids != table.ignore_index
    colors = np.where(known[..., None], table.palette[np.where(known, ids, 0)], 255)
    background = ids == 0 if table.background else np.zeros_like(known)
    return np.where(background[..., None], image, _blend(colors, image)).astype(np.uint8)


def _blend(colors: np.ndarray, image: np.ndarray) -> np.ndarray:
    grey = np.asarray(Image.fromarray(image).convert("L"))[..., None]
    return OPACITY * colors + (1 - OPACITY) * grey
