"""The legend of a class table as an image: the color, the id and the name of each class.

It is a PNG because the Hub removes colors from the HTML of cards.
"""

import math

from PIL import Image, ImageDraw, ImageFont

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.markdown import one_line

MOST_SHOWN = 60  # classes; cards fold the legend of more
# In pixels: the height of an entry, the side of its color, a gap, and the largest width of its text.
ENTRY, SQUARE, GAP, MOST_TEXT = 22, 14, 8, 220
FONT_SIZE, MOST_COLUMNS, IN_COLUMN = 14, 4, 11  # a second column begins after so many entries


def legend(table: ClassTable) -> Image.Image:
    """All classes of the table in the order of their ids, column by column, on white."""
    font, names = ImageFont.load_default(FONT_SIZE), table.names
    texts = [_shortened(f"{number}  {one_line(name)}", font) for number, name in enumerate(names)]
    columns = min(MOST_COLUMNS, math.ceil(len(names) / IN_COLUMN))
    entries = math.ceil(len(names) / columns)
    width = GAP + SQUARE + GAP + math.ceil(max(map(font.getlength, texts))) + GAP
    page = Image.new("RGB", (columns * width, entries * ENTRY + GAP), "white")
    draw = ImageDraw.Draw(page)
    for number, (text, color) in enumerate(zip(texts, table.palette.tolist(), strict=True)):
        left, top = number // entries * width + GAP, number % entries * ENTRY + GAP
        draw.rectangle((left, top, left + SQUARE, top + SQUARE), fill=tuple(color), outline="black")
        draw.text((left + SQUARE + GAP, top), text, "black", font)
    return page


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> str:
    while font.getlength(text) > MOST_TEXT:
        text = f"{text.removesuffix('…')[:-1]}…"
    return text
