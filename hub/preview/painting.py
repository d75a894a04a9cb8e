"""What a painter makes of a prompt, as HTML: the image, its labels, and the attention to every word."""

from dataclasses import replace
from functools import cached_property
from typing import TYPE_CHECKING

from attn2mask.builders.build import BuildConfig, painter_of, resolve
from attn2mask.builders.classes import ClassTable
from attn2mask.builders.errors import UserError
from attn2mask.builders.images import decode_png, encode_png, heat_map, overlay
from attn2mask.hub.preview.grid import share_of
from attn2mask.hub.preview.pieces import legend, marked_prompt, text, tiles

if TYPE_CHECKING:
    from attn2mask.builders.painter import OnStep
    from attn2mask.builders.pipeline import Attn2MaskPipeline, LabeledRow

MOST_LETTERS = 1000  # of a prompt
LARGEST_SEED = 2**53 - 1  # the largest whole number that JavaScript holds without rounding


class PromptPainter:
    """A painter by its name, and a class table. The painter is loaded when it is first used."""

    def __init__(self, model: str, table: ClassTable) -> None:
        self.model, self.table = model, table

    @cached_property
    def _pipeline(self) -> "Attn2MaskPipeline":
        from attn2mask.builders.pipeline import Attn2MaskPipeline

        config = BuildConfig("voc", model=self.model)
        return Attn2MaskPipeline(painter_of(config), replace(resolve(config), table=self.table))

    def page(self, prompt: str, seed: int, on_step: "OnStep | None" = None) -> str:
        """Paint a prompt from the noise of a seed, 0 to `LARGEST_SEED`, as HTML. `on_step` is as for
        `Painter.paint`.

        Raises UserError for an empty or very long prompt, for another seed, and for a painter that cannot be
        loaded.
        """
        if len(prompt) > MOST_LETTERS:
            raise UserError(f"the prompt has {len(prompt):,} letters: write at most {MOST_LETTERS:,}")
        if not 0 <= seed <= LARGEST_SEED:
            raise UserError(f"the seed is {seed}: choose a whole number from 0 to {LARGEST_SEED}")
        return painting_page(self._pipeline(prompt, seed, on_step))


def painting_page(row: "LabeledRow") -> str:
    """A painted row as HTML: the prompt, the legend, the images, and a heat map for each word."""
    columns, table = row.columns, row.table
    image, mask = (decode_png(columns[name]["bytes"]) for name in ("image", "mask"))
    reliability = columns["reliability"]["bytes"]
    parallel = zip(columns["classes"], columns["words"], columns["peaks"], strict=True)
    words = {mask_id: (word, peak) for mask_id, word, peak in parallel}
    images = [
        (columns["image"]["bytes"], "image"),
        (encode_png(overlay(image, mask, table)), "mask"),
        (reliability, f"reliability: {share_of(reliability):.0%}"),
    ]
    heats = []
    for word, shares in row.attention.items():
        most = float(shares.max())
        heat = heat_map(image, shares / most if most > 0 else shares)
        heats.append((encode_png(heat), f"\u201c{word}\u201d: up to {most:.1%}"))
    prompt = marked_prompt(columns["prompt"], {word: k for k, (word, _) in words.items()}, table)
    reasons = [f"dropped: {reason}" for reason in row.dropped]
    if not words and not reasons:
        reasons = [f"the prompt names no class of {table.name}, so that no pixel has a label"]
    remarks = "".join(f'<p class="aside">{text(reason)}</p>' for reason in reasons)
    return (
        f'<p class="prompt">{prompt}</p>{legend(mask, table, words)}{remarks}{tiles(images)}'
        f"<h3>Attention to each word</h3>{_SCALE}{tiles(heats)}"
    )


_SCALE = (
    '<p class="aside">0 <i class="scale"></i> the largest share, which stands under each map. The share is '
    "how much of a pixel\u2019s attention goes to the word. The shares of all tokens of a text add up to "
    "100%, so a word that means little, such as \u201ca\u201d, receives what the other words leave, often "
    "the background.</p>"
)
