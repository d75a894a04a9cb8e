"""`attn2mask show`: draws rows of a dataset side by side, and the attention of every token of a prompt.

    attn2mask show data/voc --out sheet.png --rows 8

Each row is one line: image | heat map of each class (if scores are stored) | mask | reliability | prompt.
"""

import io
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
from attn2mask.builders.files import write_file
from attn2mask.builders.images import decode_png, heat_map, overlay
from attn2mask.builders.options import CheckedOptions, option
from attn2mask.builders.shards import BuildDirectory

if TYPE_CHECKING:
    from attn2mask.builders.painter import Painter

logger = logging.getLogger(__name__)

# In pixels: the longer side of a tile, the gap between tiles, and the sizes of a line and a column of text.
TILE, GAP, LINE, TEXT = 256, 8, 20, 300


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
    maps = max(len(row["classes"]) for row in rows) if with_scores else 0
    lines = []
    for row in rows:
        image, mask, reliability = (
            decode_png(row[name]["bytes"]) for name in ("image", "mask", "reliability")
        )
        heats = [heat_map(image, np.asarray(scores) / 255) for scores in row["scores"]] if with_scores else []
        blanks = [np.full_like(image, 255)] * (maps - len(heats))
        tiles = [image, *heats, *blanks, overlay(image, mask, table), reliability]
        labels = ["", *row["words"][: len(heats)], *[""] * len(blanks), "", ""]
        cells = [*map(_cell, tiles, labels), _legend(row, table)]
        lines.append(_joined(cells))
    head = Image.new("RGB", (lines[0].width, LINE + GAP), "white")
    step = (head.width - GAP - TEXT) // (maps + 3)
    for column, title in enumerate(["image", *["class map"] * maps, "mask", "reliability", "prompt"]):
        place = (GAP + column * step, GAP // 2)
        ImageDraw.Draw(head).text(place, title, "black", ImageFont.load_default(16))
    return _joined([head, *lines], downwards=True)


def token_sheet(painter: "Painter", prompt: str, out: str | Path, seed: int = 0) -> None:
    """Paint `prompt` with the painter's defaults, and draw the image and a heat map of each token."""
    from attn2mask.builders.prompts import Prompt
    from attn2mask.builders.rules import load_rules, preset_for
    from attn2mask.builders.scores import class_scores

    named = [token for stretch in painter.stretches for token in stretch.tokens(prompt)]
    tokens = [token.replace("</w>", "") for _, token in named]
    words = tuple(f"{position}: {token}" for position, token in named)
    spans = tuple((position,) for position, _ in named)
    every = Prompt(prompt, prompt, "", tuple(range(len(named))), words, spans)
    rules, defaults = load_rules(preset_for(painter.facts["model"])), painter.defaults
    images, maps, _ = painter.paint([every], [seed], replace(defaults, window=rules.window))
    latent_side = painter.latent_side(defaults.height, defaults.width)
    scores, _ = class_scores([maps[0][word] for word in words], rules, latent_side)
    tiles = [images[0], *(heat_map(images[0], score) for score in scores.numpy())]
    cells = list(map(_cell, tiles, [prompt, *tokens]))
    lines = [_joined(cells[start : start + 6]) for start in range(0, len(cells), 6)]
    save(_joined(lines, downwards=True), out)


def save(page: Image.Image, out: str | Path) -> None:
    """Write a figure. Raises UserError if the name does not end as an image file does."""
    out, content = Path(out), io.BytesIO()
    try:
        page.save(content, Image.registered_extensions()[out.suffix.lower()])
    except (KeyError, ValueError) as error:
        raise UserError(f"--out {out}: the name must end as an image file does, such as .png") from error
    out.parent.mkdir(parents=True, exist_ok=True)
    write_file(out, content.getvalue())


def _cell(image: np.ndarray, label: str) -> Image.Image:
    """An image with a margin to its left, and a label below it."""
    tile, font = _fit(image), ImageFont.load_default(14)
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
