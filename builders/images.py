"""Images as arrays and as PNG files, heat maps of scores, and masks drawn over images."""

import io

import numpy as np
from PIL import Image

from attn2mask.builders.classes import ClassTable

# Share of the color in what is drawn over an image. The rest is the image in grey.
OPACITY = 0.65


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as an RGB PNG; (H, W) uint8 or uint16 as a grey PNG of 8 or 16 bits."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


def decode_png(content: bytes) -> np.ndarray:
    """The inverse of `encode_png`: (H, W, 3) uint8, or (H, W) uint8 or uint16."""
    return np.array(Image.open(io.BytesIO(content)))


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
