"""`attn2mask show`: draws rows of a dataset side by side, and the attention of every token of a prompt.

    attn2mask show data/voc --out sheet.png --rows 8

Each row is one line: image | mask | reliability | heat map of each class (if scores are stored) | prompt.
"""

import io
import logging
import math
import textwrap
from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from PIL import Image, ImageDraw, ImageFont, ImageOps

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.files import write_file
from attn2mask.builders.images import decode_png, heat_map, overlay
from attn2mask.builders.options import CheckedOptions, option
from attn2mask.builders.shards import BuildDirectory

if TYPE_CHECKING:
    from attn2mask.builders.painter import Painter

logger = logging.getLogger(__name__)

# In pixels: the longer side of a tile, the gap between tiles, and the sizes of a line and a column of text.
TILE, GAP, LINE, TEXT = 256, 8, 20, 300
FRAME = 1  # pixels of the frame of a tile, without which a white map would not end on a white page
MOST_COLUMNS = 7  # tiles in a line of a sheet of tokens


@dataclass(frozen=True)
class ShowConfig(CheckedOptions):
    """The options of `attn2mask show`."""

    dir: str = option("a dataset that build or remask made", positional=True)
    out: str = option("image file to write", "sheet.png", metavar="FILE")
    rows: int = option("number of rows to show", 8, at_least=1)
    start: int = option("index of the first row to show", 0, at_least=0)


def run(config: ShowConfig) -> None:
    """Draw the sheet. Raises UserError if there are no such rows, or if the image cannot be written."""
    directory = BuildDirectory(Path(config.dir))
    shards = directory.shards
    logger.info("Reading rows of %s", directory.path)
    shown: list[tuple[int, dict[str, Any]]] = []
    skipped = []
    for shard in shards:
        if shard.rows.stop <= config.start or len(shown) == config.rows:
            continue
        if (state := directory.state(shard)) != "made":
            first, last = shard.rows[0], shard.rows[-1]
            skipped.append(f"rows {first} to {last}, because their shard is {state}")
            continue
        numbered = zip(shard.rows, directory.rows(shard), strict=True)
        after = ((number, row) for number, row in numbered if number >= config.start)
        shown += islice(after, config.rows - len(shown))
    if skipped:
        more = f", and the rows of {len(skipped) - 1} more shards" if len(skipped) > 1 else ""
        logger.warning("%s: the sheet leaves out %s%s", directory.path, skipped[0], more)
    if not shown:
        raise UserError(f"{directory.path} has no row {config.start}")
    numbers, rows = zip(*shown, strict=True)
    save(sheet(rows, directory.table), config.out)
    print(f"{config.out}: {len(rows)} rows of {directory.path}, {numbers[0]} to {numbers[-1]}")


def sheet(rows: Sequence[dict[str, Any]], table: ClassTable) -> Image.Image:
    """One page with a line for each row. `rows` belong to one dataset, and are as the shards hold them."""
    with_scores = "scores" in rows[0]
    lines = []
    for row in rows:
        image, mask, reliability = (
            decode_png(row[name]["bytes"]) for name in ("image", "mask", "reliability")
        )
        heats = [heat_map(image, np.asarray(scores) / 255) for scores in row["scores"]] if with_scores else []
        tiles = [image, overlay(image, mask, table), reliability, *heats]
        cells = list(map(_cell, tiles, ["image", "mask", "reliability", *row["words"][: len(heats)]]))
        lines.append(_joined([*cells, _legend(row, table)]))
    if with_scores:
        lines.insert(0, _scale("Class maps: from a score of 0", "to 1"))
    return _joined(lines, downwards=True)


def token_sheet(painter: "Painter", prompt: str, out: str | Path, seed: int = 0) -> None:
    """Paint `prompt` with the painter's defaults, and draw the image and a heat map of each token.

    A heat map shows the share of each pixel's attention that goes to the token, averaged over layers and
    steps, from its least to its largest value in the image. Both stand below the map.
    """
    from attn2mask.builders.prompts import Prompt
    from attn2mask.builders.rules import load_rules, preset_for
    from attn2mask.builders.scores import mean_map

    named = [token for stretch in painter.stretches for token in stretch.tokens(prompt)]
    tokens = [token.replace("</w>", "") for _, token in named]
    words = tuple(f"{position}: {token}" for position, token in named)
    spans = tuple((position,) for position, _ in named)
    every = Prompt(prompt, prompt, "", tuple(range(len(named))), words, spans)
    rules, defaults = load_rules(preset_for(painter.facts["model"])), painter.defaults
    images, maps, _ = painter.paint([every], [seed], replace(defaults, window=rules.window))
    latent_side = painter.latent_side(defaults.height, defaults.width)
    cells = [_cell(images[0], prompt)]
    for word, token in zip(words, tokens, strict=True):
        share = mean_map(maps[0][word], rules, latent_side).numpy()
        low, high = share.min(), share.max()
        heat = heat_map(images[0], (share - low) / max(high - low, np.finfo(np.float32).tiny))
        cells.append(_cell(heat, f"{token}: {low:.3f} to {high:.3f}"))
    columns = math.ceil(len(cells) / math.ceil(len(cells) / MOST_COLUMNS))  # lines of about equal lengths
    lines = [_joined(cells[start : start + columns]) for start in range(0, len(cells), columns)]
    head = _scale("Share of the attention: from the least", "to the largest of a token, which stand below it")
    save(_joined([head, *lines], downwards=True), out)


def save(page: Image.Image, out: str | Path) -> None:
    """Write a figure. Raises UserError if the name does not end as an image file does."""
    out, content = Path(out), io.BytesIO()
    try:
        page.save(content, Image.registered_extensions()[out.suffix.lower()])
    except (KeyError, ValueError) as error:
        raise UserError(f"--out {out}: the name must end as an image file does, such as .png") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, content.getvalue())


def _scale(before: str, after: str) -> Image.Image:
    """A line with the colors of heat maps, from their least value to their largest, between two texts."""
    font = ImageFont.load_default(14)
    colors = heat_map(np.full((LINE - GAP, TILE // 2, 3), 128, np.uint8), np.linspace(0, 1, TILE // 2)[None])
    bar = GAP + round(font.getlength(before)) + GAP
    text = bar + colors.shape[1] + GAP
    page = Image.new("RGB", (text + round(font.getlength(after)) + GAP, LINE + GAP), "white")
    ImageDraw.Draw(page).text((GAP, GAP // 2), before, "black", font)
    ImageDraw.Draw(page).text((text, GAP // 2), after, "black", font)
    page.paste(Image.fromarray(colors), (bar, GAP))
    return page


def _cell(image: np.ndarray, label: str) -> Image.Image:
    """An image in a frame with a margin to its left, and a label below it."""
    tile, font = ImageOps.expand(_fit(image), FRAME, "silver"), ImageFont.load_default(14)
    cell = Image.new("RGB", (GAP + tile.width, tile.height + LINE + GAP), "white")
    cell.paste(tile, (GAP, 0))
    while len(label) > 1 and font.getlength(label) > tile.width:
        label = label.removesuffix("…")[:-1] + "…"
    ImageDraw.Draw(cell).text((GAP, tile.height), label, "black", font)
    return cell


def _legend(row: dict[str, Any], table: ClassTable) -> Image.Image:
    """The prompt of a row, its classes with their colors, and its id."""
    prompt, font = textwrap.wrap(row["prompt"], 40, max_lines=5), ImageFont.load_default(14)
    words = [f"{table.names[k]} ({word})" for k, word in zip(row["classes"], row["words"], strict=True)]
    lines = [*prompt, *words, row["sample_id"]]
    page = Image.new("RGB", (GAP + TEXT, LINE * len(lines) + GAP), "white")
    draw = ImageDraw.Draw(page)
    for number, line in enumerate(lines):
        left, top, color = GAP, LINE * number, "grey" if number == len(lines) - 1 else "black"
        if len(prompt) <= number < len(lines) - 1:
            fill = tuple(int(channel) for channel in table.palette[row["classes"][number - len(prompt)]])
            draw.rectangle((left, top + 5, left + 12, top + 17), fill=fill, outline="black")
            left += 18
        draw.text((left, top), line, color, font)
    return page


def _joined(parts: Sequence[Image.Image], downwards: bool = False) -> Image.Image:
    """Images side by side, or one below the other, on white."""
    widths, heights = zip(*(part.size for part in parts), strict=True)
    size = (max(widths), sum(heights)) if downwards else (sum(widths), max(heights))
    page, place = Image.new("RGB", size, "white"), 0
    for part in parts:
        page.paste(part, (0, place) if downwards else (place, 0))
        place += part.height if downwards else part.width
    return page


def _fit(image: np.ndarray) -> Image.Image:
    """Scale so that the longer side is TILE. Small images are enlarged without smoothing."""
    tile = Image.fromarray(image)
    scale = TILE / max(tile.size)
    width, height = (max(1, round(side * scale)) for side in tile.size)
    return tile.resize((width, height), Image.Resampling.NEAREST if scale >= 1 else Image.Resampling.LANCZOS)
