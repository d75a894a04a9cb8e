"""The page of a painted prompt: every word, the mask, and the steps."""

from dataclasses import replace

import numpy as np
import pytest

from attn2mask import Attn2MaskPipeline
from attn2mask.builders.errors import UserError
from attn2mask.builders.images import decode_png, heat_map, overlay
from attn2mask.builders.table_reader import load_table
from attn2mask.hub.preview.painting import PromptPainter, painting_page


@pytest.fixture(scope="module")
def pipe(tiny_model) -> Attn2MaskPipeline:
    return Attn2MaskPipeline.from_pretrained(str(tiny_model("sd15")), "voc", steps=3, preset="photo")


@pytest.fixture
def painter(pipe, monkeypatch) -> PromptPainter:
    painter = PromptPainter("embedded", load_table("voc"))
    monkeypatch.setattr(PromptPainter, "_pipeline", pipe)
    return painter


def test_a_page_shows_every_word_and_the_labels(pipe, images_in):
    row = pipe("a dog on a red bus", seed=3)
    html = painting_page(row)
    image, mask = (decode_png(row.columns[name]["bytes"]) for name in ("image", "mask"))
    shown = images_in(html)
    np.testing.assert_array_equal(shown["image"], image)
    np.testing.assert_array_equal(shown["mask"], overlay(image, mask, row.table))
    words = [name.partition(":")[0].strip("\u201c\u201d") for name in list(shown)[3:]]
    assert sorted(words) == ["a", "bus", "dog", "on", "red"]
    for word, shares in row.attention.items():
        most = float(shares.max())
        name = f"\u201c{word}\u201d: up to {most:.1%}"
        np.testing.assert_array_equal(shown[name], heat_map(image, shares / most))
    assert '<mark style="--class:' in html


def test_a_prompt_without_classes_says_so(pipe):
    html = painting_page(pipe("red street", seed=0))
    assert "the prompt names no class of voc, so that no pixel has a label" in html
    assert "ignored <span>100.0%" in html


def test_the_steps_are_told(painter):
    steps = []
    html = painter.page("a cat", 1, lambda done, total: steps.append((done, total)))
    assert steps == [(1, 3), (2, 3), (3, 3)]
    assert html == painter.page("a cat", 1)


@pytest.mark.parametrize(
    ("prompt", "seed", "message"),
    [
        ("", 0, "the prompt is empty"),
        ("dog " * 300, 0, "the prompt has 1,200 letters: write at most 1,000"),
        ("a dog", -1, "the seed is -1: choose a whole number from 0 to 9007199254740991"),
        ("a dog", 2**53, "the seed is 9007199254740992: choose a whole number"),
    ],
)
def test_mistakes_are_told(painter, prompt, seed, message):
    with pytest.raises(UserError, match=message):
        painter.page(prompt, seed)


def test_the_classes_are_those_of_the_given_table(tiny_model):
    """The table of a build need not be one of the package."""
    table = replace(load_table("voc"), name="mine")
    painter = PromptPainter(str(tiny_model("sd15")), table)
    assert painter._pipeline.table == table
    with pytest.raises(UserError, match="there is no model 'nowhere'"):
        PromptPainter("nowhere", table).page("a dog", 0)
