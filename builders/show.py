"""`attn2mask show`: rows drawn side by side, to look at; and the figure of every token's attention.

    attn2mask show data/voc --out sheet.png --rows 8

A row: image | a heat map for each class (where scores are stored) | mask over the image | reliability |
prompt and legend. Looking at a few rows finds what no number tells.
"""

import io
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.images import heat_map, overlay
from attn2mask.builders.options import check_ranges, option
from attn2mask.builders.shards import BuildDirectory, plan

if TYPE_CHECKING:
    from attn2mask.builders.painter import Painter

TILE, GAP, LINE, TEXT = (
    256,
    8,
    20,
    300,
)  # pixels: an image's longer side, between tiles, a line of text, a column of it


@dataclass(frozen=True)
class ShowConfig:
    """The options of `show`."""

    dir: str = option("a dataset that build or remask made", positional=True)
    out: str = option("image file to write", "sheet.png", metavar="FILE")
    rows: int = option("number of rows to show", 8, at_least=1)
    start: int = option("index of the first row to show", 0, at_least=0)

    def __post_init__(self) -> None:
        check_ranges(self)


def run(config: ShowConfig) -> None:
    """Draw the sheet. Raises UserError where there are no such rows, or no image can be written."""
    directory = BuildDirectory(Path(config.dir))
    record = directory.record()
    shards = plan(record["num_images"], record["identity"]["shard_size"])
    made = (shard for shard in shards if directory.state(shard) == "made")
    rows = list(
        islice((row for s in made for row in directory.rows(s)), config.start, config.start + config.rows)
    )
    if not rows:
        raise UserError(f"{directory.path} has no row {config.start}")
    save(sheet(rows, directory.table), config.out)
    print(f"{config.out}: {len(rows)} rows of {directory.path}, from row {config.start}")


def sheet(rows: Sequence[dict[str, Any]], table: ClassTable) -> Image.Image:
    """Rows of one dataset, as the shards hold them, under one another."""
    with_scores = "scores" in rows[0]
    maps = max(len(row["classes"]) for row in rows) if with_scores else 0
    titles = ["image", *["class map"] * maps, "mask", "reliability", "prompt"]
    strips = []
    for row in rows:
        image = _image(row["image"])
        heats = [heat_map(image, np.asarray(s) / 255) for s in row["scores"]] if with_scores else []
        captions = ["", *row["words"][: len(heats)], *[""] * (maps - len(heats)), "", ""]
        blank = Image.new("RGB", image.size, "white")
        tiles = [image, *heats, *[blank] * (maps - len(heats))]
        tiles += [overlay(image, row["mask"], table), _image(row["reliability"])]
        strips.append(_strip(tiles, captions, row, table))
    width = max(strip.width for strip in strips)
    page = Image.new("RGB", (width, LINE + GAP + sum(strip.height for strip in strips)), "white")
    draw, side = ImageDraw.Draw(page), _fit(_image(rows[0]["image"])).width + GAP
    for column, title in enumerate(titles):
        draw.text((GAP + column * side, GAP // 2), title, "black", _font(bold=True))
    top = LINE + GAP
    for strip in strips:
        page.paste(strip, (0, top))
        top += strip.height
    return page


def token_sheet(painter: "Painter", prompt: str, out: str | Path, seed: int = 0) -> None:
    """Paint `prompt` as the model does by default, and draw the attention of every token of it, written
    below, to `out`.
    """
    from attn2mask.builders.prompts import Prompt
    from attn2mask.builders.rules import load_rules
    from attn2mask.builders.scores import class_scores

    tokenizer = painter.tokenizers[0]
    ids = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    tokens = [token.replace("</w>", "") for token in tokenizer.convert_ids_to_tokens(ids)]
    places = tuple(range(len(tokens)))
    words = tuple(f"{place}: {token}" for place, token in enumerate(tokens))
    every = Prompt(prompt, prompt, "", places, words, tuple((place,) for place in places))
    rules = load_rules("default")
    images, maps, _ = painter.paint([every], [seed], replace(painter.defaults, window=rules.window))
    scores, _ = class_scores([maps[0][word] for word in words], rules)
    image = Image.fromarray(images[0])
    tiles = [image, *(heat_map(image, score) for score in scores.numpy())]
    columns = min(len(tiles), 6)
    lines = -(-len(tiles) // columns)
    tile = _fit(image)
    page = Image.new(
        "RGB", (GAP + columns * (tile.width + GAP), GAP + lines * (tile.height + LINE + GAP)), "white"
    )
    draw = ImageDraw.Draw(page)
    for number, (image, label) in enumerate(zip(tiles, [prompt, *tokens], strict=True)):
        left = GAP + number % columns * (tile.width + GAP)
        top = GAP + number // columns * (tile.height + LINE + GAP)
        page.paste(_fit(image), (left, top))
        draw.text((left, top + tile.height), _shorten(label, tile.width), "black", _font())
    save(page, out)


def save(page: Image.Image, out: str | Path) -> None:
    """Write a figure; raises UserError where its name has no ending of an image."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        page.save(out)
    except ValueError as error:
        raise UserError(f"--out {out}: the ending must be that of an image, such as .png") from error


def _strip(
    tiles: Sequence[Image.Image], captions: Sequence[str], row: dict[str, Any], table: ClassTable
) -> Image.Image:
    tiles = [_fit(tile) for tile in tiles]
    prompt = textwrap.wrap(row["prompt"], 40, max_lines=5)
    text = LINE * (len(prompt) + len(row["classes"]))  # above the name of the row
    side, height = tiles[0].width + GAP, max(tiles[0].height, text)
    strip = Image.new("RGB", (GAP + len(tiles) * side + TEXT, height + LINE + GAP), "white")
    draw = ImageDraw.Draw(strip)
    for column, (tile, caption) in enumerate(zip(tiles, captions, strict=True)):
        strip.paste(tile, (GAP + column * side, 0))
        draw.text((GAP + column * side, tile.height), _shorten(caption, tile.width), "black", _font())
    left, top = GAP + len(tiles) * side, 0
    for line in prompt:
        draw.text((left, top), line, "black", _font())
        top += LINE
    for mask_id, word in zip(row["classes"], row["words"], strict=True):
        color = tuple(int(channel) for channel in table.palette[mask_id])
        draw.rectangle((left, top + 5, left + 12, top + 17), fill=color, outline="black")
        draw.text((left + 18, top), f"{table.names[mask_id]} ({word})", "black", _font())
        top += LINE
    draw.text((left, top), row["sample_id"], "grey", _font())
    return strip


def _image(column: dict[str, bytes]) -> Image.Image:
    return Image.open(io.BytesIO(column["bytes"])).convert("RGB")


def _fit(image: Image.Image) -> Image.Image:
    """Scaled so that the longer side is TILE: small images enlarged without smoothing, large ones
    reduced.
    """
    scale = TILE / max(image.size)
    size = tuple(max(1, round(side * scale)) for side in image.size)
    return image.resize(size, Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)


def _shorten(text: str, width: int) -> str:
    while _font().getlength(text) > width:
        text = text.removesuffix("…")[:-1] + "…"
    return text


def _font(bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(16 if bold else 14)
