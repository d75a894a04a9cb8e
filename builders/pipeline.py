"""`Attn2MaskPipeline`: paints one image from a text, and labels it, in Python.

    pipe = Attn2MaskPipeline.from_pretrained("embedded", table="voc")
    row = pipe("a dog on a sofa", seed=0)
    row.image, row.mask, row.reliability, row.classes, row.attention["dog"]

It takes the steps of `attn2mask build` with the same functions. Unlike a build, it does not replace words or
try again, and it records the attention to every word.
"""

import io
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from PIL import Image

from attn2mask.builders.build import RUN, BuildConfig, Inputs, painter_of, resolve
from attn2mask.builders.classes import ClassTable, tokens
from attn2mask.builders.errors import UserError
from attn2mask.builders.label import label
from attn2mask.builders.options import facts_of
from attn2mask.builders.painter import ADVICE, OnStep, Painter
from attn2mask.builders.prompts import Prompt
from attn2mask.builders.scores import BACKGROUND, SELF_ATTENTION, mean_map, quantized_scores
from attn2mask.builders.stretches import Stretch, positions_of
from attn2mask.builders.words.captions import Caption


@dataclass(frozen=True, repr=False)
class LabeledRow:
    """A painted image and its labels. A notebook draws it as `attn2mask show` does.

    Attributes:
        columns: the row as a build stores it, with its class scores.
        table: the class table.
        attention: for each word of the text, (h, w) float32 at the size of the latents or below: the share of
            each pixel's attention that goes to the word, 0 to 1, averaged over the layers and steps.
        dropped: the reasons why other classes that the text names have no label.
    """

    columns: dict[str, Any]
    table: ClassTable
    attention: Mapping[str, np.ndarray]
    dropped: tuple[str, ...]

    @property
    def image(self) -> Image.Image:
        """The painted image, in RGB."""
        return self._opened("image")

    @property
    def mask(self) -> Image.Image:
        """Mask ids in the colors of the table (in gray levels of 16 bits if it has over 254 names)."""
        return self._opened("mask")

    @property
    def label(self) -> Image.Image:
        """The mask with the ignore value at unreliable pixels."""
        return self._opened("label")

    @property
    def reliability(self) -> Image.Image:
        """How far the label of each pixel is trusted, 0 to 255."""
        return self._opened("reliability")

    @property
    def classes(self) -> tuple[str, ...]:
        """The names of the classes that have a label."""
        return tuple(self.table.names[k] for k in self.columns["classes"])

    @property
    def words(self) -> tuple[str, ...]:
        """The word of each class, as the text has it."""
        return tuple(self.columns["words"])

    def _opened(self, name: str) -> Image.Image:
        return Image.open(io.BytesIO(self.columns[name]["bytes"]), formats=("PNG",))

    def __repr__(self) -> str:
        return f"LabeledRow({self.columns['prompt']!r}, classes={self.classes}, size={self.image.size})"

    def _repr_png_(self) -> bytes:
        """The row as notebooks draw it: a PNG file."""
        from attn2mask.builders.show import sheet

        buffer = io.BytesIO()
        sheet([self.columns], self.table).save(buffer, "PNG")
        return buffer.getvalue()


class Attn2MaskPipeline:
    """Paints images from texts, and labels them by the attention to their class words."""

    def __init__(self, painter: Painter, inputs: Inputs) -> None:
        """`inputs` are those of a build; their captions are not used."""
        self.painter, self.inputs = painter, replace(inputs, captions=None).for_painter(painter)
        self.table, self.rules = self.inputs.table, self.inputs.rules
        self._source = self.inputs.prompt_source(painter.stretches, painter.instance_prompt)
        self._painting = self.inputs.painting()

    @classmethod
    def from_pretrained(
        cls, model: str = "embedded", table: str = "voc", **options: Any
    ) -> "Attn2MaskPipeline":
        """Load a painter: "embedded", a folder with a diffusers pipeline, or a model of the Hub.

        `table` is a class table's name, or a YAML file. `options` are those of `BuildConfig` for the painter
        and the rules, such as `preset`, `steps`, `guidance_scale`, `lora` and `dtype`. Raises UserError for
        the same mistakes as `attn2mask build` and for options of a dataset, and TypeError for an unknown
        option.
        """
        config = BuildConfig(table, model=model, **options)
        if of_datasets := [name for name in options if facts_of(BuildConfig)[name].group == RUN]:
            raise UserError(
                f"{of_datasets[0]} is an option of a dataset: leave it out, or make one with build_dataset"
            )
        return cls(painter_of(config), resolve(config))

    def __call__(self, prompt: str, seed: int = 0, on_step: OnStep | None = None) -> LabeledRow:
        """Paint `prompt` from the noise of `seed`, 0 to 2**63 - 1, and label the image.

        After each denoising step, `on_step` is called with the number of steps so far and of all steps.
        If the text names no class of the table, all pixels are ignored. Raises UserError for an empty text,
        and for an image that cannot be used, such as a black one of a safety checker.
        """
        if not prompt.strip():
            raise UserError("the prompt is empty: write what the image should show")
        written = self._source.compose(Caption(prompt, "the prompt"))
        everything = with_every_word(written, self.painter.stretches)
        (image,), (maps,), (fault,) = self.painter.paint([everything], [seed], self._painting, on_step)
        if fault is not None:
            raise UserError(f"the image cannot be used: {fault}; {ADVICE}")
        latent_side = self.painter.latent_side(*image.shape[:2])
        of_classes = [maps[word] for word in written.words]
        self_attention, background = maps.get(SELF_ATTENTION), maps.get(BACKGROUND, ())
        scores, peaks = quantized_scores(of_classes, self.rules, latent_side, self_attention, background)
        labels = label(image, scores, peaks, written.classes, written.words, self.rules, self.table)
        columns = {
            "prompt": written.text,
            "caption": prompt,
            "classes": written.classes,
            "words": written.words,
            "seed": seed,
            "sample_id": f"{self.table.name}-{seed}",
            "peaks": peaks,
            "scores": scores.tolist(),
        }
        sample = labels.sample(columns, (*written.dropped, *labels.dropped))
        attention = {
            word: mean_map(maps[word], self.rules, latent_side).numpy()
            for word in everything.words
            if word in maps
        }
        return LabeledRow(sample.row, self.table, attention, tuple(sample.dropped))


def with_every_word(prompt: Prompt, stretches: Sequence[Stretch]) -> Prompt:
    """`prompt` with all its other words beside its class words, in lower case, each with the positions of all
    its occurrences that the painter reads. They have no class.
    """
    places: dict[str, tuple[int, ...]] = {}
    found = [(start, end, word) for start, end, word in tokens(prompt.text)]
    spans = positions_of(prompt.text, [(start, end) for start, end, _ in found], stretches)
    for (_, _, word), place in zip(found, spans, strict=True):
        if place and not isinstance(place, str) and word not in prompt.words:
            places[word] = places.get(word, ()) + place
    words, positions = (*prompt.words, *places), (*prompt.spans, *places.values())
    return replace(prompt, words=words, spans=positions)
