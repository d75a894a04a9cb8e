"""What the words around a class word say: whether it names a thing, and which aliases may stand for it."""

import re

import numpy as np
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from attn2mask.builders.classes import ClassTable
from attn2mask.builders.prompts import augment, find_occurrences
from attn2mask.builders.table_reader import load_table, parse_table
from attn2mask.builders.words.context import LISTS, Context, Noun, replacements, word_lists

VOC = load_table("voc")
WORDS = sorted({"dog", "cars", "train", "man", "of", ",", "'s", *word_lists().made_before})


def found(text: str) -> list[str]:
    return [occurrence.text for occurrence in find_occurrences(VOC, text)]


def aliases_of(text: str, word: str, of: ClassTable = VOC) -> set[str]:
    """The aliases that may replace `word` in `text`, over many draws."""
    results = (augment(of, text, np.random.default_rng(seed), 1.0) for seed in range(60))
    named = [occurrence.text for occurrence in find_occurrences(VOC, text) if occurrence.kind == "name"]
    place = named.index(word)
    return {words[place].text for _, words in results}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a long train yard", []),
        ("a bus in a train yard", ["bus"]),
        ("a bike shop and a dog park", []),
        ("A tree house. A boat", ["boat"]),
        ("a baseball game", []),
        ("a tennis table leg", ["table"]),
        ("a horse head in a car window", ["horse"]),
        ("a dog sniffs a bus parked outside", ["dog", "bus"]),
        ("a baby elephant and a baby", ["baby"]),
        ("a mother sheep and a baby sheep", ["sheep", "sheep"]),
        ("a mother and baby zebra, a foal with its mother", ["foal"]),
        # Statues, toys and images
        ("a statue of a horse", []),
        ("a bronze statue of a man on a horse near a train", ["train"]),
        ("a statue of a bear on a car", ["car"]),
        ("a horse statue next to a man", ["man"]),
        ("a toy car, a small toy wooden train", []),
        ("a stuffed dog on a wooden chair", ["chair"]),
        ("a wooden horse, a cartoon cat and a lego man", []),
        ("a model airplane next to an older model car", ["model", "model", "car"]),
        ("a shirt with a picture of a dog", []),
        ("a model of two cars", ["model"]),
        ("a sign prohibiting bicycles", []),
        ("a painting of a man and a dog on a wall", []),
        ("a picture of a dog", ["dog"]),
        ("A man takes a picture of a dog", ["man", "dog"]),
        ("This is a picture of a dog", ["dog"]),
        ("a tv that shows a picture of another dog", ["tv"]),
        ("a man on a billboard", []),
        ("a salad that looks like a boat", []),
        ("people dressed as cows", ["people"]),
        ("a train without any people, no big dogs and no a cat", ["train", "cat"]),
        ("people kite surfing", ["people"]),
        # Parts of other things
        ("a train pulling several cars", ["train"]),
        ("the last car of a long train", ["train"]),
        ("a train on the tracks with red and blue cars", ["train"]),
        ("a five car train", ["train"]),
        ("a train next to a street with parked cars", ["train", "cars"]),
        ("a train and some cars", ["train", "cars"]),
        ("a car waits for a train", ["car", "train"]),
    ],
)
def test_what_is_a_thing(text: str, expected: list[str]):
    assert found(text) == expected


@pytest.mark.parametrize(
    ("text", "word", "aliases"),
    [
        ("a volleyball player", "player", {"player"}),
        ("a table top", "table top", {"table top"}),
        ("a table leg", "table", {"table"}),
        ("a widescreen tv", "tv", {"tv"}),
        ("a cat lover", "cat", {"cat"}),
        ("a man walks", "man", {"human", "citizen"}),
        ("two men", "men", {"humans", "citizens"}),
        ("a young man", "man", {"man"}),
        ("an old black man", "man", {"man"}),
        ("a young man in front of people", "man", {"man"}),
        ("a woman holding her phone", "woman", {"woman"}),
        ("a woman in a dress", "woman", {"woman"}),
        ("a man and a woman", "man", {"man"}),
        ("a boy on a bed", "boy", {"boy"}),
        ("a child", "child", {"child"}),
        ("the women's shoes", "women", {"women"}),
        ("the man's shoes", "man", {"human", "citizen"}),
        ("two woman", "woman", {"woman"}),
        ("a woman tennis player", "woman", {"woman"}),
        ("a couple on a bench", "couple", {"couple"}),
        ("a surfer", "surfer", {"human", "citizen"}),
        ("a surfer and a skier", "surfer", {"surfer"}),
        ("his friend", "friend", {"friend"}),
        ('an airport "limo" bus', "bus", {"bus"}),
        ("a room with a Tv", "Tv", {"screen"}),
        ("a black and white cat", "cat", {"feline"}),
        ("a cat that is orange", "cat", {"feline"}),
        ("a cat looks at a cat", "cat", {"feline"}),
        ("a white dog", "dog", {"canine", "pooch"}),
        ("a ship", "ship", {"vessel"}),
        ("a large ship", "ship", {"ship"}),
        ("plants are growing", "plants", {"flowers", "cacti"}),
    ],
)
def test_replacements_respect_their_neighbors(text: str, word: str, aliases: set[str]):
    assert aliases_of(text, word) == aliases


def test_kinds_replace_a_word_that_nothing_describes():
    assert {"kitten", "siamese cat", "feline"} < aliases_of("a cat on a bed", "cat")
    assert "clydesdale" not in aliases_of("a horse jumps over a fence", "horse")
    assert aliases_of("a cow and its calf", "cow").isdisjoint({"bull", "steer"})


def test_genders_agree():
    table = parse_table(
        {
            "name": "t",
            "classes": [
                {"name": "person", "base": ["man", "woman", "girl", "person"], "aliases": ["lady", "gent"]}
            ],
        },
        "t",
    )

    def allowed(text: str, word: str) -> tuple[str, ...]:
        context, start = Context.of(text), text.index(word)
        return replacements(Noun.at(context, start, start + len(word), table, 0), is_repeated=False)

    assert allowed("a woman with her dog", "woman") == ("lady",)
    assert allowed("a man with his dog", "man") == ()  # the lists do not know "gent" as male
    assert allowed("a girl", "girl") == ()


def test_aliases_that_only_the_paper_uses():
    assert VOC.classes[VOC.id_of("person") - 1].aliases == ("human", "homo sapiens", "citizen")
    assert aliases_of("a man", "man") == {"human", "citizen"}
    assert aliases_of("a man", "man", VOC.with_all_aliases()) == {"human", "homo sapiens", "citizen"}
    assert found("a homo sapiens") == ["homo sapiens"]  # in captions, it is a name all the same


def test_a_table_without_lists_of_its_own():
    table = parse_table({"name": "k", "classes": [{"name": "mug", "aliases": ["beaker"]}]}, "k")
    for text in ("a blue mug", "two mugs", "a mug on a table", "a mug with a handle", "The mug is full"):
        result, (occurrence,) = augment(table, text, np.random.default_rng(0), 1.0)
        assert occurrence.text.startswith("beaker")
        assert result.replace("beaker", "mug") == text


@pytest.mark.parametrize("name", ["voc", "cityscapes", "imagenet_s_50", "imagenet_s_919"])
def test_names_of_the_grammar_are_things(name: str):
    """No rule takes the class words of a table's own phrases for another thing."""
    table = load_table(name)
    phrases = table.caption_style.phrases if table.caption_style else ()
    for index, options in enumerate(phrases):
        for phrase in options:
            assert index in {o.class_index for o in find_occurrences(table, f"a photo of {phrase} outdoors.")}


@settings(max_examples=300)
@given(st.lists(st.sampled_from(WORDS), max_size=9))
def test_any_text_can_be_read(words: list[str]):
    text = " ".join(words)
    result, occurrences = augment(VOC, text, np.random.default_rng(0), 1.0)
    assert all(result[one.start : one.end] == one.text for one in occurrences)


def test_the_lists_are_in_lower_case_and_have_no_word_twice():
    for name, words in yaml.safe_load(LISTS.read_text("utf-8")).items():
        assert len(words.split()) == len(set(words.split())), name
        assert re.fullmatch(r"[a-z\s]+", words), name
