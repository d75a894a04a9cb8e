"""Images as arrays and as files: PNG encoding, heat maps, and masks drawn over images."""

import io

import numpy as np
from PIL import Image

from attn2mask.builders.classes import ClassTable


def encode_png(image: np.ndarray) -> bytes:
    """(H, W, 3) uint8 as an RGB PNG, (H, W) uint8 or uint16 as a grey one of 8 or 16 bits."""
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, "PNG")
    return buffer.getvalue()


# Heat from nothing to most: black, violet, red, orange, pale yellow (RGB at equal distances).
HEAT = np.array([(0, 0, 0), (80, 18, 123), (182, 54, 121), (251, 136, 97), (252, 253, 191)])


def heat_map(image: Image.Image, scores: np.ndarray) -> Image.Image:
    """Scores (h, w) in [0, 1] as heat over the greyed image."""
    levels = Image.fromarray((scores * 255).astype(np.uint8)).resize(image.size, Image.Resampling.BILINEAR)
    amount = np.asarray(levels) / 255
    stops = np.linspace(0, 1, len(HEAT))
    colors = np.stack([np.interp(amount, stops, HEAT[:, channel]) for channel in range(3)], axis=-1)
    grey = np.asarray(image.convert("L"))[..., None]
    return Image.fromarray((0.65 * colors + 0.35 * grey).astype(np.uint8))


def overlay(image: Image.Image, mask: dict[str, bytes], table: ClassTable) -> Image.Image:
    """The mask in the table's colors over the greyed image; background stays as it is, ignored pixels
    are pale.
    """
    ids = np.asarray(Image.open(io.BytesIO(mask["bytes"])))
    pixels, grey = np.asarray(image), np.asarray(image.convert("L"))[..., None]
    known = ids != table.ignore_index
    colors = np.where(known[..., None], table.palette[np.where(known, ids, 0)], 255)
    tinted = 0.65 * colors + 0.35 * grey
    as_it_is = ids == 0 if table.background else np.zeros_like(known)
    return Image.fromarray(np.where(as_it_is[..., None], pixels, tinted).astype(np.uint8))
