"""Drawn street scenes as images to adapt a painter to."""

import io

import numpy as np
from PIL import Image

from attn2mask.builders.drawn.scenes import draw_scene


def street(index: int, size: tuple[int, int] = (72, 144)) -> Image.Image:
    return Image.fromarray(draw_scene("streets", np.random.default_rng([6, index]), size).image)


def png(image: Image.Image) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return buffer.getvalue()
