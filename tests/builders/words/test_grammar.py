"""The offline grammar: its captions name what they are asked to, in words that prompts find again."""

import numpy as np
import pytest
from transformers import AutoTokenizer

from attn2mask.builders.classes import CaptionStyle, ClassTable, LabelClass
from attn2mask.builders.painter import EMBEDDED
from attn2mask.builders.prompts import PromptSource, find_occurrences
from attn2mask.builders.table_reader import TABLES, load_table
from attn2mask.builders.words.grammar import caption, describe, nouns, phrase, scene_classes, sentence


@pytest.mark.parametrize("name", TABLES)
def test_captions_name_their_class(name):
    table = load_table(name)
    for seed in range(60):
        rng = np.random.default_rng(seed)
        wanted = int(rng.integers(len(table.classes)))
        text = caption(table, rng, wanted)
        found = {o.class_index for o in find_occurrences(table, text) if o.kind == "name"}
        assert wanted in found, text
        assert len(found) <= (8 if name == "cityscapes" else 3)


def test_street_scenes_name_what_streets_have_and_some_of_the_rest():
    table = load_table("cityscapes")
    usual, counts = set(table.caption_style.usual), np.zeros(len(table.classes))
    for seed in range(200):
        text = caption(table, np.random.default_rng(seed))
        found = [o.class_index for o in find_occurrences(table, text)]
        assert len(found) == len(set(found)), text
        assert 1 <= sum(table.classes[k].thing for k in found) <= 3, text
        assert sum(not table.classes[k].thing for k in set(found) - usual) <= 1, text
        counts[found] += 1
    assert {table.classes[k].name for k in usual} == {"road", "building", "vegetation", "sky"}
    assert all((160 < n < 200) if k in usual else (10 < n < 100) for k, n in enumerate(counts)), counts


def test_a_scene_is_described_by_what_is_in_it():
    table, rng = load_table("cityscapes"), np.random.default_rng(0)
    names = [label.name for label in table.classes]
    seen = [names.index(name) for name in ("road", "sky", "car", "fence")]
    for _ in range(20):
        text = describe(table, scene_classes(table, rng, seen), rng)
        found = {o.class_index for o in find_occurrences(table, text)}
        assert found, text
        assert found <= set(seen), text
    assert scene_classes(table, rng, [names.index("wall")]) == [names.index("wall")]


@pytest.mark.parametrize("name", [name for name in TABLES if name != "voc"])
def test_words_of_a_caption_style(name):
    """A phrase names its class and no other; what stands beside the classes names none."""
    table = load_table(name)
    style = table.caption_style
    assert any(style.phrases)
    for text in (*style.openings, *style.places, *style.weather, *style.light):
        assert not find_occurrences(table, text), text
    for k, phrases in enumerate(style.phrases):
        for text in phrases:
            assert [o.class_index for o in find_occurrences(table, text) if o.kind == "name"] == [k], text


def test_street_scenes_speak_as_people_do_within_the_embedded_painters_words():
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "tokenizer")
    table = load_table("cityscapes")
    source = PromptSource(table, None, [tokenizer], seed=0)
    prompts = [source.prompt(index, 0) for index in range(200)]
    assert sum(bool(prompt.dropped) for prompt in prompts) <= 2
    for prompt in prompts:
        assert "<|unknown|>" not in tokenizer.tokenize(prompt.text), prompt.text
    words = {word for prompt in prompts for word in prompt.words}
    assert {"traffic light", "sidewalk", "trees", "people", "cars"} <= words
    assert not {"vegetation", "terrain"} & words


def test_imagenet_s_has_one_class_a_prompt_and_all_of_them_in_a_round():
    tokenizer = AutoTokenizer.from_pretrained(EMBEDDED / "tokenizer")
    table = load_table("imagenet_s_919")
    source = PromptSource(table, None, [tokenizer], seed=0, balance=table.caption_style.balance)
    classes = [source.prompt(index, 0).classes for index in range(919)]
    assert sorted(classes) == [(k,) for k in range(1, 920)]


def test_a_table_with_a_scene_but_one_kind_of_class():
    classes = (LabelClass("sea", ("sea",), (), (0, 0, 1), thing=False),)
    table = ClassTable("t", classes, "background", caption_style=CaptionStyle(things=(1, 3), stuff=(0, 0)))
    assert "the sea" in caption(table, np.random.default_rng(0)).lower()


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
