"""Images as arrays and as PNG files, heat maps of scores, and masks drawn over images."""

import io

import numpy as np
from PIL import Image

from attn2mask.builders.classes import ClassTable

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


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as an RGB PNG; (H, W) uint8 or uint16 as a grey PNG of 8 or 16 bits."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def decode_png(content: bytes) -> np.ndarray:
    """The inverse of `encode_png`: (H, W, 3) uint8, or (H, W) uint8 or uint16."""
    return np.array(Image.open(io.BytesIO(content)))


def as_rgb(image: Image.Image) -> Image.Image:
    """An image of any mode in RGB, upright as its EXIF block says, with white under transparent pixels.

    Gray levels of more than 8 bits are scaled to 8: those of 16 bits by 65535; 32-bit integers and floats by
    the first of 1 (floats only), 255, 65535 and 2 ** 31 - 1 that no level exceeds. Raises ValueError for
    levels that are negative, not finite, or too large.
    """
    turn = _TURNS.get(_orientation(image))
    if image.mode.startswith("I;16") or image.mode in ("I", "F"):
        image = Image.fromarray(_eight_bits(np.asarray(image), image.mode))
    elif image.has_transparency_data:
        image = image.convert("RGBA")
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    image = image.convert("RGB")
    return image if turn is None else image.transpose(turn)


def _orientation(image: Image.Image) -> int:
    """The orientation in the EXIF block, 1 to 8; 1 if there is none, or if it cannot be read."""
    try:
        return image.getexif().get(_ORIENTATION, 1)
    except Exception:  # Pillow raises errors of many kinds for damaged blocks, whose pixels are whole
        return 1


def _eight_bits(levels: np.ndarray, mode: str) -> np.ndarray:
    """Gray levels (H, W) of an image of Pillow's `mode` as uint8."""
    least, most = (float(bound(levels)) if levels.size else 0.0 for bound in (np.min, np.max))
    full_scales = {"I": (255, 65535, 2**31 - 1), "F": (1, 255, 65535, 2**31 - 1)}.get(mode, (65535,))
    full = next((scale for scale in full_scales if most <= scale), None)
    if full is None or not least >= 0:
        raise ValueError(f"its gray levels from {least:g} to {most:g} have no known range")
    return np.rint(levels.astype(np.float64) * (255 / full)).astype(np.uint8)


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
