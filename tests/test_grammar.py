"""The offline grammar: its captions name what they are asked to, in words that prompts find again."""

import numpy as np
import pytest

from attn2mask.builders.grammar import caption, nouns, phrase, sentence
from attn2mask.builders.labels import TABLES, load_table
from attn2mask.builders.prompts import find_occurrences


@pytest.mark.parametrize("name", TABLES)
def test_captions_name_their_class(name):
    table = load_table(name)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        wanted = int(rng.integers(len(table.classes)))
        text = caption(table, rng, wanted)
        found = {o.class_index for o in find_occurrences(table, text) if o.is_base}
        assert wanted in found, text
        assert len(found) <= 3


def test_captions_are_functions_of_the_generator():
    table = load_table("voc")
    once, again = ([caption(table, np.random.default_rng(s)) for s in range(20)] for _ in range(2))
    assert once == again
    assert len(set(once)) == 20


def test_phrases():
    rng = np.random.default_rng(0)
    assert phrase("owl", 1, rng) == "an owl"
    assert phrase("owl", 1, rng, "red") == "a red owl"
    assert phrase("bus", 2, rng).endswith("buses")
    assert phrase("greenery", 1, rng) == "greenery"


def test_nouns_are_singular():
    table = load_table("voc")
    forms = {label.name: nouns(label) for label in table.classes}
    assert forms["bus"] == ["bus"]
    assert "people" not in forms["person"]
    assert forms["sheep"] == ["sheep"]
    assert all(forms.values())


def test_sentences_hold_their_phrases():
    for seed in range(30):
        text = sentence(["a dog", "a cat"], "on a rug", np.random.default_rng(seed)).lower()
        assert "a dog" in text
        assert "a cat" in text
        assert "on a rug" in text
