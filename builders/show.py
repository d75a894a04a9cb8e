"""`attn2mask show`: draws rows of a dataset side by side, and the attention of every token of a prompt.

    attn2mask show data/voc --out sheet.png --rows 8

Each row is one line: image | a heat map for each class (if scores are stored) | mask over the image |
reliability | prompt and legend.
"""

import logging
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
from attn2mask.builders.images import decode_png, heat_map, overlay
from attn2mask.builders.options import check_ranges, option
from attn2mask.builders.shards import BuildDirectory, plan

if TYPE_CHECKING:
    from attn2mask.builders.painter import Painter

logger = logging.getLogger(__name__)

# In pixels: the longer side of a tile, the gap between tiles, the height of a line of text, and the width of
# the column of text.
TILE, GAP, LINE, TEXT = 256, 8, 20, 300


@dataclass(frozen=True)
class ShowConfig:
    """The options of `attn2mask show`."""

    dir: str = option("a dataset that build or remask made", positional=True)
    out: str = option("image file to write", "sheet.png", metavar="FILE")
    rows: int = option("number of rows to show", 8, at_least=1)
    start: int = option("index of the first row to show", 0, at_least=0)

    def __post_init__(self) -> None:
        check_ranges(self)


def run(config: ShowConfig) -> None:
    """Draw the sheet. Raises UserError if there are no such rows, or if the image cannot be written."""
    directory = BuildDirectory(Path(config.dir))
    record = directory.record()
    logger.info("Reading rows of %s", directory.path)
    shards = plan(record["num_images"], record["identity"]["shard_size"])
    made = (shard for shard in shards if directory.state(shard) == "made")
    stored = (row for shard in made for row in directory.rows(shard))
    rows = list(islice(stored, config.start, config.start + config.rows))
    if not rows:
        raise UserError(f"{directory.path} has no row {config.start}")
    save(sheet(rows, directory.table), config.out)
    print(f"{config.out}: {len(rows)} rows of {directory.path}, from row {config.start}")


def sheet(rows: Sequence[dict[str, Any]], table: ClassTable) -> Image.Image:
    """One page with a line for each row. `rows` belong to one dataset, and are as the shards hold them."""
    with_scores = "scores" in rows[0]
    maps = max(len(row["classes"]) for row in rows) if with_scores else 0
    titles = ["image", *["class map"] * maps, "mask", "reliability", "prompt"]
    strips = []
    for row in rows:
        image, mask, reliability = (
            decode_png(row[name]["bytes"]) for name in ("image", "mask", "reliability")
        )
        heats = [heat_map(image, np.asarray(scores) / 255) for scores in row["scores"]] if with_scores else []
        blanks = [np.full_like(image, 255)] * (maps - len(heats))
        captions = ["", *row["words"][: len(heats)], *[""] * len(blanks), "", ""]
        tiles = [image, *heats, *blanks, overlay(image, mask, table), reliability]
        strips.append(_strip([_fit(tile) for tile in tiles], captions, row, table))
    width = max(strip.width for strip in strips)
    page = Image.new("RGB", (width, LINE + GAP + sum(strip.height for strip in strips)), "white")
    draw, side = ImageDraw.Draw(page), _fit(decode_png(rows[0]["image"]["bytes"])).width + GAP
    for column, title in enumerate(titles):
        draw.text((GAP + column * side, GAP // 2), title, "black", _font(bold=True))
    top = LINE + GAP
    for strip in strips:
        page.paste(strip, (0, top))
        top += strip.height
    return page


def token_sheet(painter: "Painter", prompt: str, out: str | Path, seed: int = 0) -> None:
    """Paint `prompt` with the painter's defaults, and write a figure of the attention of each of its tokens.

    The first tile is the image with the prompt below it. Then each token has a heat map.
    """
    from attn2mask.builders.prompts import Prompt
    from attn2mask.builders.rules import load_rules
    from attn2mask.builders.scores import class_scores

    tokenizer = painter.tokenizers[0]
    ids = tokenizer(prompt, truncation=True, max_length=tokenizer.model_max_length).input_ids
    tokens = [token.replace("</w>", "") for token in tokenizer.convert_ids_to_tokens(ids)]
    positions = tuple(range(len(tokens)))
    words = tuple(f"{position}: {token}" for position, token in enumerate(tokens))
    every = Prompt(prompt, prompt, "", positions, words, tuple((position,) for position in positions))
    rules = load_rules("default")
    images, maps, _ = painter.paint([every], [seed], replace(painter.defaults, window=rules.window))
    scores, _ = class_scores([maps[0][word] for word in words], rules)
    image = images[0]
    tiles = [_fit(tile) for tile in (image, *(heat_map(image, score) for score in scores.numpy()))]
    columns = min(len(tiles), 6)
    lines = -(-len(tiles) // columns)
    width, height = tiles[0].width + GAP, tiles[0].height + LINE + GAP
    page = Image.new("RGB", (GAP + columns * width, GAP + lines * height), "white")
    draw = ImageDraw.Draw(page)
    for number, (tile, label) in enumerate(zip(tiles, [prompt, *tokens], strict=True)):
        left, top = GAP + number % columns * width, GAP + number // columns * height
        page.paste(tile, (left, top))
        draw.text((left, top + tile.height), _shorten(label, tile.width), "black", _font())
    save(page, out)


def save(page: Image.Image, out: str | Path) -> None:
    """Write a figure. Raises UserError if the name does not end as an image file does."""
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        page.save(out)
    except ValueError as error:
        raise UserError(f"--out {out}: the name must end as an image file does, such as .png") from error


def _strip(
    tiles: Sequence[Image.Image], captions: Sequence[str], row: dict[str, Any], table: ClassTable
) -> Image.Image:
    """One row: its tiles with captions below them, then its prompt, the legend, and its id."""
    prompt = textwrap.wrap(row["prompt"], 40, max_lines=5)
    text = LINE * (len(prompt) + len(row["classes"]))  # above the id of the row
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


def _fit(image: np.ndarray) -> Image.Image:
    """Scale so that the longer side is TILE. Small images are enlarged without smoothing."""
    tile = Image.fromarray(image)
    scale = TILE / max(tile.size)
    width, height = (max(1, round(side * scale)) for side in tile.size)
    return tile.resize((width, height), Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)


def _shorten(text: str, width: int) -> str:
    while _font().getlength(text) > width:
        text = text.removesuffix("…")[:-1] + "…"
    return text


def _font(bold: bool = False) -> ImageFont.FreeTypeFont | ImageFont.ImageFont:
    return ImageFont.load_default(16 if bold else 14)
