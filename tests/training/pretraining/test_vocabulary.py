"""The painter's words: every class word is known, and captions name only what their scene shows."""

import json

import numpy as np

from attn2mask.builders.drawn.kinds import KINDS
from attn2mask.builders.drawn.scenes import VOC_THINGS, draw_scene
from attn2mask.builders.painter import EMBEDDED
from attn2mask.builders.prompts import find_occurrences
from attn2mask.builders.table_reader import load_table
from attn2mask.builders.words.english import plural
from attn2mask.training.pretraining.vocabulary import (
    MAX_TOKENS,
    UNKNOWN,
    Captions,
    make_tokenizer,
    vocabulary,
)


def test_the_tokenizer_knows_every_class_word():
    words = set(vocabulary())
    for name in ("voc", "cityscapes"):
        for label in load_table(name).classes:
            for word in label.base:
                assert all(part in words for part in word.replace("-", " ").split()), word
    for label in load_table("voc").classes:
        for alias in label.aliases:
            for form in (alias, plural(alias)):
                assert all(part in words for part in form.replace("-", " ").split()), form


def test_the_vocabulary_is_that_of_the_painter_that_ships():
    shipped = json.loads((EMBEDDED / "tokenizer" / "tokenizer.json").read_text())
    assert make_tokenizer().get_vocab() == shipped["model"]["vocab"]


def test_an_unknown_word_costs_one_token():
    tokenizer = make_tokenizer()
    ids = tokenizer("a quizzaciously red bus").input_ids
    assert len(ids) == 6
    assert ids[2] == tokenizer.convert_tokens_to_ids(UNKNOWN)
    assert tokenizer.model_max_length == MAX_TOKENS
    assert len(tokenizer("a dog " * 40, truncation=True).input_ids) == MAX_TOKENS


def test_captions_are_true_of_their_scene():
    captions, table = Captions(), load_table("voc")
    for index in range(120):
        scene = draw_scene("objects", np.random.default_rng([21, index]))
        things = [[KINDS.index(t.kind), t.color] for t in scene.things]
        text = captions({"things": things, "place": scene.place}, np.random.default_rng(index))
        named = {table.classes[o.class_index].name for o in find_occurrences(table, text)}
        shown = {t.kind.thing for t in scene.things}
        assert named <= shown, text
        assert shown <= set(VOC_THINGS)
