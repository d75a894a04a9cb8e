"""Pieces of HTML: tiles with images, the legend of a mask, a prompt with its class words."""

import base64
import re
from collections.abc import Iterable
from html import escape
from typing import Any

import numpy as np

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError, printable
from attn2mask.builders.images import decode_png

SMALL = 320  # pixels; images whose longer side is below it are enlarged without smoothing


def text(value: Any) -> str:
    """A value as text in HTML, without control characters."""
    return escape(printable(str(value)))


def error_message(error: UserError) -> str:
    """The error, in place of what the user asked for."""
    return f'<div class="problem">{text(error)}</div>'


def tiles(images: Iterable[tuple[bytes, str]]) -> str:
    """PNG images with captions, in a grid."""
    figures = (
        f'<figure class="tile">{image_tag(png, caption)}<figcaption>{text(caption)}</figcaption></figure>'
        for png, caption in images
    )
    return f'<div class="tiles">{"".join(figures)}</div>'


def image_tag(png: bytes, caption: str) -> str:
    """A PNG image."""
    small = ' class="small"' if max(decode_png(png).shape[:2]) < SMALL else ""
    return f'<img{small} src="{data_uri(png)}" alt="{text(caption)}">'


def legend(ids: np.ndarray, table: ClassTable, words: dict[int, tuple[str, float]]) -> str:
    """The classes in the mask `ids` (H, W), or in the prompt, with their colors and shares of the pixels.

    The largest class comes first. `words` holds the word and the peak of its attention for classes that are
    in the prompt.
    """
    shares = {int(k): n / ids.size for k, n in zip(*np.unique(ids, return_counts=True), strict=True)}
    items = []
    for k in sorted({*shares, *words}, key=lambda k: -shares.get(k, 0)):
        ignored = k == table.ignore_index
        name, color = ("ignored", "#e5e7eb") if ignored else (table.names[k], class_color(k, table))
        word = f" as \u201c{words[k][0]}\u201d, peak {words[k][1]:.3f}" if k in words else ""
        items.append(
            f'<li style="--class:{color}"><i></i>{text(name)} '
            f"<span>{shares.get(k, 0):.1%}{text(word)}</span></li>"
        )
    return f'<ul class="legend">{"".join(items)}</ul>'


def marked_prompt(prompt: str, words: dict[str, int], table: ClassTable) -> str:
    """The prompt with its class words underlined in the colors of their classes. `words` maps word to id."""
    if not words:
        return text(prompt)
    forms = "|".join(re.escape(word) for word in sorted(words, key=len, reverse=True))
    parts = re.split(rf"(?<!\w)({forms})(?!\w)", prompt)  # not \b: a word may end with a vowel sign
    return "".join(
        f'<mark style="--class:{class_color(words[part], table)}">{text(part)}</mark>'
        if odd % 2
        else text(part)
        for odd, part in enumerate(parts)
    )


def class_color(mask_id: int, table: ClassTable) -> str:
    """The color of a class in CSS."""
    return f"#{bytes(table.palette[mask_id]).hex()}"


def data_uri(png: bytes) -> str:
    """A PNG image as an address that holds its content."""
    return f"data:image/png;base64,{base64.b64encode(png).decode()}"
