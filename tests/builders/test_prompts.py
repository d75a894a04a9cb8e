"""Prompts: which words are found, what replaces them, and at which tokens they stand."""

import re
import unicodedata
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from places import DATA
from transformers import CLIPTokenizer

from attn2mask.builders import prompts
from attn2mask.builders.classes import ClassTable, LabelClass
from attn2mask.builders.errors import UserError
from attn2mask.builders.prompts import (
    Prompt,
    PromptSource,
    augment,
    background_table,
    find_background,
    find_occurrences,
    image_seed,
)
from attn2mask.builders.stretches import token_spans
from attn2mask.builders.table_reader import TABLES, load_table
from attn2mask.builders.words.captions import Caption, read_captions

VOC = load_table("voc")


def clip_tokenizer(*words: str, max_length: int = 77) -> CLIPTokenizer:
    """A tokenizer of CLIP's kind. `words` are given by their tokens ("ze-bra" has two)."""
    letters = [*map(chr, range(ord("!"), ord("~") + 1)), *map(chr, range(0xA1, 0x143))]  # CLIP's bytes
    vocab = [*letters, *(letter + "</w>" for letter in letters)]
    merges: list[tuple[str, str]] = []
    for word in words:
        *firsts, last = word.split("-")
        for part, end in [*((first, "") for first in firsts), (last, "</w>")]:
            made = [*part[:-1], part[-1] + end]
            while len(made) > 1:
                merges += [(made[0], made[1])]
                made[:2] = [made[0] + made[1]]
                vocab += made[:1]
    vocab = list(dict.fromkeys([*vocab, "<|startoftext|>", "<|endoftext|>"]))
    return CLIPTokenizer(
        vocab={token: i for i, token in enumerate(vocab)},
        merges=list(dict.fromkeys(merges)),
        model_max_length=max_length,
    )


TOKENIZER = clip_tokenizer("a", "dog", "dogs", "cat", "on", "the", "poo-dl-es", "and", "bus")


def table(*classes: LabelClass, compounds: tuple[str, ...] = ()) -> ClassTable:
    return ClassTable("test", classes, "background", compounds)


def label(name: str, base: str, aliases: str = "") -> LabelClass:
    return LabelClass(name, tuple(base.split(", ")), tuple(filter(None, aliases.split(", "))), (0, 0, 0))


def found(text: str, of: ClassTable = VOC) -> list[tuple[str, str]]:
    return [
        (o.text, of.classes[o.class_index].name) for o in find_occurrences(of, text) if o.kind == "name"
    ]  # base names and what holds one


def replaced(text: str, *aliases: str, of: ClassTable = VOC) -> str:
    """The text with every class word replaced by the one alias left to each class (in the table's order)."""
    named = list(dict.fromkeys(o.class_index for o in find_occurrences(of, text) if o.kind == "name"))
    left = dict(zip(named, aliases, strict=True))
    classes = tuple(
        LabelClass(c.name, c.base, (left[k],) if k in left else (), c.color) for k, c in enumerate(of.classes)
    )
    single = ClassTable(of.name, classes, of.background, of.compounds)
    return augment(single, text, np.random.default_rng(0), 1.0)[0]


# Which words are found


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog and two Cats.", [("dog", "dog"), ("Cats", "cat")]),
        ("TV, (tv) and TVs!", [("TV", "tvmonitor"), ("tv", "tvmonitor"), ("TVs", "tvmonitor")]),
        ("a hot dog on a bus stop", []),
        ("two Hot  Dogs, a hot-dog", []),
        ("hot, dog", [("dog", "dog")]),
        ("a school bus stop", []),
        ("the school bus", [("school bus", "bus")]),
        ("double decker busses, a Double-Decker Bus", [("busses", "bus"), ("Double-Decker Bus", "bus")]),
        ("two double decker buses", [("double decker buses", "bus")]),
        ("a dining table", [("dining table", "diningtable")]),
        ("a bench, a desk and a puppy", [("puppy", "dog")]),
        (
            "a boy on a couch, ladies on bikes",
            [("boy", "person"), ("couch", "sofa"), ("ladies", "person"), ("bikes", "bicycle")],
        ),
        ("catalog, doggy, cat-like, wild-cat, dog_1, bus2", []),
        ("the dog's bone, the man's hat", [("dog", "dog"), ("man", "person")]),
        ("men's room", []),
        ("a sheep dog", [("sheep dog", "dog")]),
        ("train cars at a train station", [("train cars", "train")]),
        ("a motor boat", [("motor boat", "boat")]),
        ("dog dog dog", [("dog", "dog")] * 3),
        ("DOG\nbus\tcat", [("DOG", "dog"), ("bus", "bus"), ("cat", "cat")]),
        ("a dog\u0301", []),  # a combining accent belongs to its word
        ("do\u011f dogs", [("dogs", "dog")]),
        ("\u0130\u0130 dog", [("dog", "dog")]),  # its lower case is longer
        ("", []),
    ],
)
def test_what_is_found(text: str, expected: list[tuple[str, str]]):
    assert found(text) == expected


def test_underscores_are_blanks_and_accents_may_be_decomposed():
    assert found("a black_cat beside a potted_plant") == [("cat", "cat"), ("potted_plant", "pottedplant")]
    chairs = table(label("chair", "St\u00fchle"))
    for text in ("zwei St\u00fchle", "zwei Stu\u0308hle"):
        assert found(text, chairs) == [(text.split()[1], "chair")]


@pytest.mark.parametrize(
    ("word", "text"),
    [
        ("\u0915\u0941\u0924\u094d\u0924\u093e", "\u090f\u0915 {} \u0914\u0930"),  # Hindi: a dog and
        ("\u0642\u0650\u0637\u0651\u0629", "\u0647\u0630\u0647 {}"),  # Arabic, with vowels
        ("con ch\u00f3", "m\u1ed9t {}, \u0111en"),  # Vietnamese
        ("\u0441\u043e\u0431\u0430\u043a\u0430", "\u0411\u043e\u043b\u044c\u0448\u0430\u044f {}."),
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
def test_words_of_other_scripts_are_whole_words(word, text, form):
    """Their vowel signs and accents belong to them."""
    dogs = table(label("dog", word))
    text, word = (unicodedata.normalize(form, part) for part in (text.format(word), word))
    assert found(text, dogs) == [(word, "dog")]
    assert found(text.replace(word, word + "\u0940"), dogs) == []  # a longer word
    assert found(text, table(label("part", word[:1]))) == []


def test_table_words_in_a_script_without_blanks_are_refused_for_captions():
    for word in ("\u72ac", "\u30cd\u30b3", "\u0e2a\u0e38\u0e19\u0e31\u0e02"):
        with pytest.raises(UserError, match="is in a script without blanks between words"):
            source(f"a {word} beside a cat", of=table(label("dog", word), label("cat", "cat")))


def test_longer_names_of_other_classes_go_first():
    zoo = table(label("lion", "lion, lions"), label("seal", "seal", "sea lion"))
    assert found("a sea lion and a lion", zoo) == [("sea lion", "seal"), ("lion", "lion")]


def test_an_ambiguous_alias_names_no_class():
    words = find_occurrences(VOC, "a bench, two desks, a writing desk and trees")
    assert [(o.text, o.kind) for o in words] == [
        ("bench", "ambiguous"),
        ("desks", "ambiguous"),
        ("writing desk", "name"),
        ("trees", "ambiguous"),
    ]


@given(st.text(alphabet=st.sampled_from("dogcatbus hot-.,'\n\u0301\u0130A"), max_size=60))
def test_occurrences_are_whole_words_in_order(text: str):
    end = 0
    for occurrence in find_occurrences(VOC, text):
        assert end <= occurrence.start < occurrence.end
        assert text[occurrence.start : occurrence.end] == occurrence.text
        assert not text[max(occurrence.start - 1, 0) : occurrence.start].isalnum()
        assert not text[occurrence.end : occurrence.end + 1].isalnum()
        end = occurrence.end


@pytest.mark.parametrize("name", TABLES)
def test_every_base_name_is_found(name: str):
    of = load_table(name)
    for k, one in enumerate(of.classes):
        for word in one.base:
            (occurrence,) = find_occurrences(of, f"Look: {word.upper()}!")
            assert (occurrence.class_index, occurrence.text, occurrence.kind) == (k, word.upper(), "name")


# What replaces them


@pytest.mark.parametrize(
    ("text", "aliases", "expected"),
    [
        ("a dog", ["eagle"], "an eagle"),
        ("An airplane", ["jet"], "A jet"),
        ("A car and a car", ["suv"], "An suv and an suv"),
        ("A HUGE DOG, A DOG", ["eagle"], "A HUGE EAGLE, AN EAGLE"),
        ("two dogs", ["poodle"], "two poodles"),
        ("A group of people", ["citizen"], "A group of citizens"),
        ("Men on a street", ["human"], "Humans on a street"),
        ("Men and a woman", ["human"], "Men and a woman"),
        ("Dogs. Dogs", ["puppy"], "Puppies. Puppies"),
        ("busses", ["double-decker bus"], "double-decker buses"),
        ("two school buses", ["school bus"], "two school buses"),
        ("a plant", ["greenery"], "greenery"),
        ("A plant", ["flora"], "Flora"),
        ("with plants", ["vegetation"], "with vegetation"),
        ("a green plant", ["vegetation"], "a green plant"),
        ("two plants", ["cactus"], "two cacti"),
        ("a sheep", ["ewe"], "a ewe"),
        ("a herd of sheep", ["ewe"], "a herd of ewes"),
        ("a black and white sheep", ["merino sheep"], "a black and white merino sheep"),
        ("a TV", ["screen"], "a screen"),
        ("TV on a wall", ["screen"], "Screen on a wall"),
        ("a women with a dogs head", ["human", "hound"], "a human with a dogs head"),
        ("the dog's bone", ["hound"], "the hound's bone"),
        ("a hot dog", [], "a hot dog"),
        ("a dog-like dog", ["hound"], "a dog-like hound"),
        ("an (airplane)", ["jet"], "an (jet)"),
    ],
)
def test_replacing(text: str, aliases: list[str], expected: str):
    assert replaced(text, *aliases) == expected


def test_a_longer_name_is_replaced_as_a_whole():
    of = table(label("bus", "bus, buses", "school bus, coach, tram"))
    names = {augment(of, "a school bus", np.random.default_rng(seed), 1.0)[0] for seed in range(20)}
    assert names == {"a coach", "a tram"}


def test_probability():
    text = "a dog, a cat"
    rng = np.random.default_rng(0)
    assert augment(VOC, text, rng, 0.0)[0] == text
    results = [augment(VOC, text, rng, 0.5)[1] for _ in range(2000)]
    words = [occurrence.text for occurrence in find_occurrences(VOC, text)]
    left = np.array([[o.text == word for o, word in zip(found, words, strict=True)] for found in results])
    assert np.abs(left.mean(axis=0) - 0.5).max() < 0.05
    both = np.corrcoef(left.T.astype(float))[0, 1]
    assert abs(both) < 0.1  # each occurrence on its own
    aliases = {occurrences[0].text for occurrences in results}
    assert aliases == {"dog", *VOC.classes[VOC.id_of("dog") - 1].aliases} - {*VOC.paper_only}


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from(
            "a an the two A AN dog dogs plant plants Sheep people TV hot table dining . , - İ café".split()
        ),
        max_size=12,
    ),
    st.integers(0, 2**32),
    st.sampled_from([0.0, 0.5, 1.0]),
)
def test_augmenting_keeps_track_of_words(words: list[str], seed: int, probability: float):
    text = " ".join(words)
    result, occurrences = augment(VOC, text, np.random.default_rng(seed), probability)
    before = [o for o in find_occurrences(VOC, text) if o.kind == "name"]
    assert [o.class_index for o in occurrences] == [o.class_index for o in before]
    end = 0
    for occurrence in occurrences:
        assert end <= occurrence.start < occurrence.end
        assert result[occurrence.start : occurrence.end] == occurrence.text
        end = occurrence.end
    if probability == 0:
        assert result == text
    # Nothing but class words and the articles before them changes.
    kept = re.compile(r"\b(?:an?|the)\b", re.IGNORECASE)
    rest = [kept.sub("", cut(text, before)).split(), kept.sub("", cut(result, occurrences)).split()]
    assert rest[0] == rest[1]


def cut(text: str, occurrences) -> str:
    for occurrence in reversed(occurrences):
        text = text[: occurrence.start] + text[occurrence.end :]
    return text


# At which tokens they stand


def spans_of(tokenizer: CLIPTokenizer, text: str, *words: str) -> list[tuple[int, ...]]:
    return token_spans(tokenizer, text, [(text.index(word), text.index(word) + len(word)) for word in words])


def test_one_and_several_tokens():
    assert spans_of(TOKENIZER, "a dog on the bus", "dog", "bus") == [(2,), (5,)]
    assert spans_of(TOKENIZER, "a poodles and a dog", "poodles", "dog") == [(2, 3, 4), (7,)]
    assert spans_of(TOKENIZER, "A DOG, on...the BUS!", "DOG", "BUS") == [(2,), (9,)]
    assert spans_of(TOKENIZER, "the a dog", "a dog") == [(2, 3)]
    assert spans_of(TOKENIZER, "owl", "owl") == [(1, 2, 3)]


@pytest.mark.parametrize(
    ("text", "span"),
    [
        ("a  dog", (2,)),
        ("a\n\t dog ", (2,)),
        ("  a dog", (2,)),
        ("cafe\u0301 dog", (5,)),  # the accent is composed: ca, f and two bytes
        ("caf\u00e9 dog", (5,)),
        ("\u0130 dog", (4,)),  # lower case: i and a combining dot of two bytes
        ("\u212b dog", (3,)),  # the Angstrom sign becomes a letter
        ("\U0001f436 dog", (5,)),
        ("\u201cdog\u201d", (4,)),
        ("dog's", (1,)),
    ],
)
def test_offsets_survive_normalizing(text: str, span: tuple[int, ...]):
    assert spans_of(TOKENIZER, text, "dog") == [span]


def test_beyond_the_limit():
    tokenizer = clip_tokenizer("a", "dog", "poo-dl-es", max_length=8)  # start, six tokens, end
    assert spans_of(tokenizer, "a a a a a dog", "dog") == [(6,)]
    assert spans_of(tokenizer, "a a a a a a dog", "dog") == [()]
    assert spans_of(tokenizer, "a a a poodles", "poodles") == [(4, 5, 6)]
    assert spans_of(tokenizer, "a a a a poodles", "poodles") == [()]  # cut in its middle
    assert spans_of(tokenizer, "a " * 500 + "dog", "dog") == [()]


@settings(max_examples=200)
@given(
    st.lists(
        st.sampled_from(["dog", "Poodles", "owl", "caf\u00e9", "e\u0301", "bus,", "\u0130", "..."]),
        max_size=40,
    ),
    st.sampled_from([" ", "  ", "\n", " \t"]),
    st.sampled_from([6, 24, 77]),
)
def test_spans_are_what_the_pipeline_reads(words: list[str], space: str, limit: int):
    tokenizer = clip_tokenizer("dog", "poo-dl-es", "bus", max_length=limit)
    text = space.join(words)
    starts = [sum(len(word) + len(space) for word in words[:i]) for i in range(len(words))]
    spans = token_spans(
        tokenizer, text, [(start, start + len(word)) for start, word in zip(starts, words, strict=True)]
    )
    read = tokenizer(
        text, padding="max_length", max_length=limit, truncation=True
    ).input_ids  # as diffusers does
    position = 1
    for word, span in zip(words, spans, strict=True):
        own = tokenizer(word, add_special_tokens=False).input_ids
        if position + len(own) < limit:
            assert span == tuple(range(position, position + len(own)))
            assert [read[place] for place in span] == own
        else:
            assert span == ()
        position += len(own)


# The source of prompts


def captions(*texts: str) -> list[Caption]:
    return [Caption(text, str(number)) for number, text in enumerate(texts)]


def source(*texts: str, tokenizers=(TOKENIZER,), of: ClassTable = VOC, **options) -> PromptSource:
    return PromptSource(of, captions(*texts), tokenizers, **{"seed": 0, "alias_probability": 0.0, **options})


def test_a_prompt():
    prompt = source(" A cat on the  dog and\na cat. ").prompt(0, 0)
    assert prompt == Prompt(
        text="A cat on the dog and a cat.",
        caption=" A cat on the  dog and\na cat. ",
        source="0",
        classes=(8, 12),
        words=("cat", "dog"),
        spans=((2, 8), (5,)),
    )


def test_words_are_the_forms_that_stand_in_the_prompt():
    only = table(label("dog", "dog, dogs", "poodle"))
    prompt = source("A dog and dogs", of=only, alias_probability=1.0).prompt(0, 0)
    assert (prompt.text, prompt.words) == ("A poodle and poodles", ("poodle",))
    assert prompt.spans == ((2, 3, 4, 6, 7, 8),)


def test_walk_and_rounds():
    of = source(*(f"dog {i}" for i in range(7)), "no animal")
    assert of.selected == 7
    rounds = [[of.prompt(index, 0).source for index in range(7 * k, 7 * k + 7)] for k in range(3)]
    assert [sorted(one) for one in rounds] == [[str(i) for i in range(7)]] * 3
    assert rounds[0] != rounds[1] != rounds[2]
    assert len({of.prompt(3, attempt).source for attempt in range(1, 60)}) == 7


def test_prompts_are_pure():
    texts = [f"A dog, a cat and {i} people by a bus" for i in range(20)]
    one, other = (source(*texts, alias_probability=0.5, seed=5) for _ in range(2))
    asked = [(index, attempt) for index in range(30) for attempt in range(3)]
    forward = {key: one.prompt(*key) for key in asked}
    backward = {key: other.prompt(*key) for key in reversed(asked)}
    assert forward == backward
    assert len({prompt.text for prompt in forward.values()}) > 60
    assert [source(*texts, seed=6).prompt(i, 0).source for i in range(20)] != [
        source(*texts, seed=5).prompt(i, 0).source for i in range(20)
    ]


def test_balance():
    of = source(*["a dog"] * 50, "a cat", "a bus", "a bus and a dog", balance=True)
    firsts = [of.prompt(index, 0) for index in range(60)]
    assert [sum(k in prompt.classes for prompt in firsts) >= 20 for k in (6, 8, 12)] == [True] * 3
    assert sum(prompt.classes == (8,) for prompt in firsts) == 20
    assert all(
        8 in of.prompt(i, 1).classes for i in range(60) if firsts[i].classes == (8,)
    )  # its class stays


def test_balance_passes_over_captions_of_a_class_that_has_its_share():
    with_person = [f"a man with a {word}" for word in ("dog", "cat", "bus", "boat", "cow") for _ in range(8)]
    alone = [f"a {word}" for word in ("dog", "cat", "bus", "boat", "cow")]
    rows = source(*with_person, *alone, "a woman", balance=True).rows(60)
    named = {name: number for name, number in rows.items() if number and name != "person"}
    assert set(named) == {"boat", "bus", "cat", "cow", "dog"}
    assert all(10 <= number <= 15 for number in named.values())
    assert 20 < rows["person"] <= 4 * min(named.values())
    # Without captions that suffice, every row has a person.
    assert source(*with_person, "a woman", balance=True).rows(60)["person"] == 60


def test_more_rows_change_no_earlier_one():
    texts = [f"{who} and a {word}" for who in ("a man", "two cars") for word in ("dog", "cat", "bus")]
    one, other = (source(*texts, balance=True, alias_probability=0.5) for _ in range(2))
    last = one.prompt(99, 0)
    assert [one.prompt(index, 0) for index in range(100)] == [other.prompt(index, 0) for index in range(100)]
    assert other.prompt(99, 0) == last


def test_another_attempt_names_no_further_class():
    texts = [*["a dog"] * 3, *["a man and a dog"] * 3, *["a cat and a dog"] * 3, "a cat", "a man"]
    of = source(*texts, balance=True)
    for index in range(30):
        first = set(of.prompt(index, 0).classes)
        assert all(set(of.prompt(index, attempt).classes) <= first for attempt in (1, 2, 3))


def test_captions_with_ambiguous_words():
    of = source("a dog on a bench", "a dog", "a dog by a chair and a bench", "a tree", "a cat at a desk")
    assert of.selected == 2
    assert {of.prompt(index, 0).text for index in range(4)} == {"a dog", "a dog by a chair and a bench"}
    assert of.unserved == [c.name for c in VOC.classes if c.name not in ("dog", "chair")]
    assert of.unlabeled() == {}


def test_what_gets_no_label_is_counted():
    short = clip_tokenizer("a", "dog", "cat", max_length=6)
    of = source("a dog a a cat", "a dog", "a a a a cat and dogs", tokenizers=[short])
    assert of.unlabeled() == {"cat": 2, "dogs": 1}


def test_balance_needs_captions_of_two_classes():
    with pytest.raises(UserError, match=r"only one class of table 'voc' \(dog\).* --no-balance"):
        source("a dog", "a puppy", balance=True)
    assert source("a dog", "a puppy").selected == 2


def test_a_class_beyond_the_limit_is_dropped_with_a_reason():
    short = clip_tokenizer("a", "dog", "cat", max_length=6)
    prompt = source("a dog a a cat", tokenizers=[short]).prompt(0, 0)
    assert (prompt.classes, prompt.spans) == ((12,), ((2,),))
    assert prompt.dropped == ("cat: its word lies beyond the model's 6 tokens",)
    prompt = source("a dog a a dog", tokenizers=[short]).prompt(0, 0)
    assert (prompt.spans, prompt.dropped) == (((2,),), ())


def test_a_class_word_that_is_cut_in_its_middle_makes_a_caption_unusable():
    """The painter reads the beginning of the word, and may paint it, but the class could not be labeled."""
    short = clip_tokenizer("a", "dog", "cat", "poo-dl-es", max_length=7)
    of = source(
        "a dog a cat",
        "a dog a a poodles",
        tokenizers=[short],
        of=table(label("dog", "dog"), label("poodle", "poodles"), label("cat", "cat")),
    )
    prompts = [of.prompt(index, 0) for index in range(2)]
    assert {prompt.text for prompt in prompts} == {"a dog a cat"}
    reasons = [reason for prompt in prompts for reason in prompt.dropped]
    assert reasons == ["caption 1: poodle: its word lies beyond the model's 7 tokens"]


def test_a_prompt_without_class_gives_way_to_the_next_caption():
    short = clip_tokenizer("a", "dog", "cat", max_length=6)
    of = source(*["a a a a a cat"] * 20, "a dog", tokenizers=[short])
    prompts = [of.prompt(index, attempt) for index in range(21) for attempt in range(2)]
    assert {prompt.text for prompt in prompts} == {"a dog"}
    assert any(
        re.fullmatch(r"caption \d+: cat: its word lies beyond the model's 6 tokens", reason)
        for prompt in prompts
        for reason in prompt.dropped
    )
    with pytest.raises(UserError, match="cat: its word lies beyond the model's 6 tokens"):
        source("a a a a a cat", tokenizers=[short]).prompt(0, 0)


def test_two_text_encoders():
    same = clip_tokenizer("a", "dog", "dogs", "cat", "on", "the", "poo-dl-es", "and", "bus")
    assert source("a dog", tokenizers=[TOKENIZER, same]).prompt(0, 0).spans == ((2,),)
    other = clip_tokenizer("dog")
    with pytest.raises(UserError, match="dog: its word has other token positions in the second text encoder"):
        source("a cat on a dog", tokenizers=[TOKENIZER, other]).prompt(0, 0)
    # The painter reads the word in both encoders, so that the class could be in the image without a label.
    half = clip_tokenizer("a", "dog")
    both = source("a dog", "a cat on a dog", "a dog on a cat", tokenizers=[TOKENIZER, half])
    prompts = [both.prompt(index, 0) for index in range(3)]
    assert {(prompt.text, prompt.classes) for prompt in prompts} == {("a dog", (12,))}
    assert any("cat: its word has other token positions" in reason for p in prompts for reason in p.dropped)


# The instance prompt of a LoRA


def test_the_instance_prompt_follows_every_prompt():
    of = source("A cat on the dog. ", "a bus", instance_prompt="a photo in sks style")
    prompts = [of.prompt(index, 0) for index in range(2)]
    assert {prompt.text for prompt in prompts} == {
        "A cat on the dog, a photo in sks style",
        "a bus, a photo in sks style",
    }
    for prompt in prompts:
        plain = source(prompt.caption).prompt(0, 0)
        assert prompt == replace(plain, text=prompt.text, source=prompt.source)  # the same words and tokens


def test_class_words_of_the_instance_prompt_count():
    of = source("a dog", instance_prompt="a dog on a bus")
    prompt = of.prompt(0, 0)
    assert prompt.text == "a dog, a dog on a bus"
    assert prompt.words == ("dog", "bus")
    assert prompt.spans == ((2, 5), (8,))  # the comma is a token


def test_class_words_come_before_the_instance_prompt_at_the_token_limit():
    tokenizer = clip_tokenizer("a", "dog", "on", "in", "sks", max_length=9)  # start, seven tokens, end

    def prompt(text: str) -> Prompt:
        return source(text, tokenizers=[tokenizer], instance_prompt="in sks").prompt(0, 0)

    assert prompt("a dog on a").text == "a dog on a, in sks"
    shortened = prompt("a dog on a a")
    assert (shortened.text, shortened.caption) == ("a dog, in sks", "a dog on a a")
    assert shortened.dropped == ()
    left_out = prompt("a a a a dog")
    assert (left_out.text, left_out.spans) == ("a a a a dog", ((5,),))
    assert left_out.dropped == ("instance prompt: it lies beyond the model's 9 tokens",)


# Background words


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("A dog in a field of grass", ["field", "grass"]),
        ("boats on the Water", ["Water"]),
        ("two dogs on rocks, and mountains in the background", ["rocks", "mountains", "background"]),
        ("a car in a parking lot.", ["parking lot"]),
        ("a lot of dogs", []),
        ("a cat in a living room with white walls", ["room", "walls"]),
        ("a dog on a snow covered road", ["snow", "road"]),  # of the snow, too
        ("a dog under a street sign", []),  # the first word of a compound
        ("a dog by a stone wall", ["wall"]),
        ("a bus at a school bus stop by the street", ["street"]),
        ("cars in a car park", []),  # a compound of the table
        ("a water bottle on the floor", ["floor"]),  # a class word
        ("a dog on a snow-covered hill", ["hill"]),
        ("a bottle of water on a wall", ["wall"]),  # what the bottle holds
        ("a bottle of clean water", []),
        ("a boat in a body of water", ["water"]),
        ("a dog with no grass", []),
        ("a cat next to a painting of the sea", []),
        ("a photo of the sea with a boat", ["sea"]),
        ("a potted plant and a dog", []),
        ("the fields look green behind a cow", ["fields"]),
        ("a person waves from a bus", []),
    ],
)
def test_background_words_of_voc(text: str, expected: list[str]):
    found = find_background(VOC, text)
    assert [word.text for word in found] == expected
    assert [text[word.start : word.end] for word in found] == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a car on a road under the sky", []),
        ("cars on a city street beside trees and a wall", []),
        ("a bus on a bridge over a river", ["bridge", "river"]),
        ("a person on the grass of a field by the sea", ["sea"]),
        ("a street sign in the snow", ["snow"]),
        ("dirt roads in fog", ["fog"]),
    ],
)
def test_class_words_of_a_table_are_no_background_words(text: str, expected: list[str]):
    assert [word.text for word in find_background(load_table("cityscapes"), text)] == expected


def test_no_background_word_names_a_class_of_voc():
    """Except for those that are ambiguous in the table."""
    shared = set(background_table().lexicon) & {
        key for key, form in VOC.lexicon.items() if form.class_index is not None
    }
    assert shared == {"desk", "desks", "tree", "trees"}  # forms of a tvmonitor and of a pottedplant


def test_prompts_have_the_positions_of_their_background_words():
    prompt = source("A dog in the Snow by the sea, snow and the parking lot", background=True).prompt(0, 0)
    words = dict(zip(prompt.background, prompt.background_spans, strict=True))
    tokens = ["", *TOKENIZER.tokenize(prompt.text)]
    joined = {word: "".join(tokens[k] for k in span).replace("</w>", " ") for word, span in words.items()}
    assert joined == {"snow": "snow snow ", "sea": "sea ", "parking lot": "parking lot "}
    assert (prompt.words, prompt.spans) == (("dog",), ((2,),))
    without = source(prompt.text).prompt(0, 0)
    assert without == replace(prompt, background=(), background_spans=())


def test_background_words_beyond_the_limit_are_left_out():
    tokenizer = clip_tokenizer("a", "dog", "sea", "snow", "and", max_length=7)  # start, five tokens, end
    prompt = source("a dog sea and snow and a sea", tokenizers=[tokenizer], background=True).prompt(0, 0)
    assert (prompt.background, prompt.background_spans) == (("sea", "snow"), ((3,), (5,)))
    assert prompt.dropped == ()
    cut = source("a dog and a sea-snow snow", tokenizers=[tokenizer], background=True).prompt(0, 0)
    assert (cut.classes, cut.background, cut.background_spans) == ((12,), (), ())


def test_an_alias_that_replaces_a_class_word_is_no_background_word():
    of = table(label("dog", "dog", "sea wolf, wolf of the snow"), label("cat", "cat"))
    by_the_sea = source("a dog by the sea", of=of, alias_probability=1.0, background=True)
    prompts = [by_the_sea.prompt(k, 0) for k in range(9)]
    assert {prompt.words for prompt in prompts} == {("sea wolf",), ("wolf of the snow",)}
    for prompt in prompts:
        (span,) = prompt.background_spans
        assert prompt.background == ("sea",)
        assert not set(span) & set(prompt.spans[0])


# Prompts that the painter rewrites


def several_vectors(text: str, tokenizer) -> str:
    return text.replace("<robot>", "<robot> <robot>_1 <robot>_2")


def test_spans_follow_a_rewritten_prompt():
    tokenizer = clip_tokenizer("a", "dog", "bus", "and")
    tokenizer.add_tokens(["<robot>", "<robot>_1", "<robot>_2"])
    text = "a <robot> a dog a <robot> and a bus"
    (dog,), (bus,) = (
        token_spans(tokenizer, text, [(text.index(word), text.index(word) + 3)], several_vectors)
        for word in ("dog", "bus")
    )
    assert (dog, bus) == ((6,), (13,))
    read = tokenizer.convert_ids_to_tokens(tokenizer(several_vectors(text, tokenizer)).input_ids)
    assert (read[6], read[13]) == ("dog</w>", "bus</w>")
    robot = text.index("<robot>")
    assert token_spans(tokenizer, text, [(robot, robot + 7)], several_vectors) == [(2, 3, 4)]


def test_a_word_that_the_painter_replaces_has_no_span():
    def to_cat(text: str, tokenizer) -> str:
        return text.replace("dog", "cat") if "bus" in text else text

    assert token_spans(TOKENIZER, "a dog on a bus", [(2, 5)], to_cat) == [None]
    with pytest.raises(UserError, match="dog: the painter rewrites the prompt, and its word is not found"):
        source("a dog, a dog and a bus", of=table(label("dog", "dog")), rewrite=to_cat).prompt(0, 0)


def test_wrong_options():
    with pytest.raises(
        UserError, match="none of 2 captions names a class of table 'voc': no airplane, bicycle"
    ):
        source("a bench", "a hot dog")
    for probability in (-0.1, 1.1, float("nan")):
        with pytest.raises(UserError, match="must lie between 0 and 1"):
            source("a dog", alias_probability=probability)


def test_the_grammar_refuses_a_class_whose_name_the_model_cannot_read():
    endless = label("endless", " ".join(["very"] * 40) + " dog")
    with pytest.raises(
        UserError, match="'endless' of table 'test' has no name that fits the model's 77 tokens"
    ):
        PromptSource(table(label("dog", "dog"), endless), None, [TOKENIZER], seed=0)
    PromptSource(table(label("dog", "dog"), endless), [Caption("a dog", "1")], [TOKENIZER], seed=0)


def test_the_grammar():
    for name in ("voc", "cityscapes"):
        of = load_table(name)
        made = PromptSource(of, None, [TOKENIZER], seed=0, balance=True)
        prompts = [made.prompt(index, 0) for index in range(2 * len(of.classes))]
        assert {k for prompt in prompts for k in prompt.classes} == {of.id_of(one.name) for one in of.classes}
        assert made.selected == 0


def test_image_seeds():
    seeds = {
        image_seed(seed, index, attempt) for seed in range(3) for index in range(50) for attempt in range(4)
    }
    assert len(seeds) == 600
    assert all(0 <= seed < 2**53 for seed in seeds)  # JavaScript rounds larger numbers
    assert any(seed >= 2**52 for seed in seeds)
    assert image_seed(0, 0, 0) == 5145794752523363  # written into datasets: it must never change


# Real captions


@pytest.fixture(scope="module")
def coco() -> list[Caption]:
    if not DATA.is_dir():
        pytest.skip("needs the COCO captions in ../shared/data")
    return read_captions(str(DATA / "coco_captions.jsonl"))[0]


def test_prompts_for_all_of_coco(coco: list[Caption]):
    of = PromptSource(VOC, coco, [TOKENIZER], seed=0)
    prompts = [of.prompt(index, 0) for index in range(len(coco))]
    assert {k for prompt in prompts for k in prompt.classes} == {VOC.id_of(one.name) for one in VOC.classes}
    for prompt in prompts:
        assert len(prompt.classes) == len(set(prompt.classes)) == len(prompt.words) == len(prompt.spans) > 0
        assert all(span and max(span) < 76 for span in prompt.spans)
        assert all(word in prompt.text for word in prompt.words)


def test_hot_dogs_are_no_dogs(coco: list[Caption]):
    of = PromptSource(VOC, coco, [TOKENIZER], seed=0, alias_probability=0.0)
    prompts = [of.prompt(index, 0) for index in range(of.selected)]
    dogs, chairs = ([p for p in prompts if VOC.id_of(name) in p.classes] for name in ("dog", "chair"))
    assert min(len(dogs), len(chairs)) > 100
    plain = re.compile(r"(?<!hot )(?<!chili )(?<!corn )(?<!cheese )\bdogs?\b", re.IGNORECASE)
    named = [{o.text.lower() for o in find_occurrences(VOC, p.text) if o.class_index == 11} for p in dogs]
    assert all(plain.search(p.text) or words - {"dog", "dogs"} for p, words in zip(dogs, named, strict=True))
    benches = [p.text for p in chairs if re.search(r"bench", p.text) and "chair" not in p.text.lower()]
    assert not benches  # a bench alone is not a chair


def test_every_named_thing_of_a_prompt_is_labeled(coco: list[Caption]):
    """At most 1 % of the selected captions name a thing without a label (beyond the token limit)."""
    of = PromptSource(VOC, coco, [TOKENIZER], seed=0)
    assert of.selected > 11_143  # as many as when only base names selected a caption, or more
    assert of.unserved == []
    assert sum(of.unlabeled().values()) < 0.01 * of.selected


@pytest.mark.parametrize("number", [20, 256, 4000])
def test_person_has_at_most_four_times_the_rows_of_the_rarest_class(coco: list[Caption], number: int):
    of = PromptSource(VOC, coco, [TOKENIZER], seed=1, balance=True)
    rows = of.rows(number)
    assert list(rows) == [label.name for label in VOC.classes]
    assert min(rows.values()) >= number // 20
    assert max(rows.values()) <= 4 * min(rows.values())


def test_without_balance_the_rows_have_the_frequencies_of_the_captions(coco: list[Caption]):
    of = PromptSource(VOC, coco, [TOKENIZER], seed=1)
    rows = of.rows(of.selected)
    assert rows["person"] > 50 * rows["pottedplant"]


@pytest.mark.skipif(not DATA.is_dir(), reason="needs the trial painter in ../shared/data")
def test_with_a_painters_tokenizer(coco: list[Caption]):
    tokenizer = CLIPTokenizer.from_pretrained(DATA / "trial_painter" / "tokenizer")
    of = PromptSource(VOC, coco, [tokenizer], seed=0)
    for index in range(500):
        prompt = of.prompt(index, 0)
        ids = tokenizer(prompt.text, truncation=True, max_length=tokenizer.model_max_length).input_ids
        for word, span in zip(prompt.words, prompt.spans, strict=True):
            own = tokenizer(word, add_special_tokens=False).input_ids
            assert [ids[place] for place in span[: len(own)]] == own


@pytest.mark.parametrize("joint", [" ", ", ", "; ", " of a "])
def test_words_that_the_painter_cannot_read_have_no_effect(monkeypatch, joint):
    """Neither on the prompt, nor on the time: only a bounded part of a caption is searched."""
    searched = []
    search = prompts.find_occurrences
    monkeypatch.setattr(
        prompts, "find_occurrences", lambda table, text: searched.append(len(text)) or search(table, text)
    )
    found = []
    for count in (400, 16_000):
        text = joint.join(["a dog", "cat"] * (count // 2))
        source = PromptSource(VOC, [Caption(text, "it")], [TOKENIZER], seed=3)
        assert source.selected == 1
        prompt = source.prompt(0, 0)
        assert prompt.caption == text
        found.append(replace(prompt, caption=""))
    assert found[0] == found[1]
    assert max(searched) < 20 * (2 * TOKENIZER.model_max_length + 30)
