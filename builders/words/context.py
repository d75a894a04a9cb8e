"""What the words around a class word say: whether it names a thing, and which aliases may stand for it.

The rules look at a few neighbors only. Where they do not understand one, the class word stays as it is.
The lists of words are in `builders/tables/english.yaml`, and those of a class in its table.
"""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from functools import cache, cached_property
from itertools import pairwise, takewhile
from pathlib import Path

import yaml

from attn2mask.builders.classes import ClassTable, LabelClass, gap, spelling, tokens
from attn2mask.builders.words.english import UNCOUNTABLE, plural, verb_forms

LISTS = Path(__file__).parents[1] / "tables" / "english.yaml"

Words = frozenset[str]
# How many words are read: those that describe a noun, between "statue of" and a thing, and after a noun,
# and those between a thing and its parts.
_DESCRIPTION, _DEPICTION, _FOLLOWING, _PARTS = 4, 12, 4, 8


def with_plurals(words: Iterable[str]) -> Words:
    """Words and their plurals."""
    return frozenset(form for word in words for form in (word, plural(word)))


@dataclass(frozen=True)
class WordLists:
    """The lists of `english.yaml`, which explains them."""

    neutral_before: Words
    numbers: Words
    owners: Words
    kept: Words
    negations: Words
    describing: Words
    neutral_after: Words
    verbs: Words
    nouns_like_verbs: Words
    other_things: Words
    made_before: Words
    made_before_living: Words
    ages_of_models: Words
    made: Words
    pictured: Words
    photographs: Words
    holding_a_photograph: Words
    taking_a_photograph: Words
    listing: Words
    resembling: Words
    linking: Words
    surfaces: Words
    people: Words
    animals: Words
    male: Words
    female: Words
    young: Words
    old: Words
    pronouns_male: Words
    pronouns_female: Words
    having: Words
    counted_with: Words
    roads: Words

    @cached_property
    def begins_anew(self) -> Words:
        """Words after a noun in the singular that are not the next word of a compound."""
        return self.neutral_after | {form for verb in self.verbs for form in verb_forms(verb)}

    @cached_property
    def joints(self) -> Words:
        """Words that are no part of the description of a noun."""
        return self.neutral_before | self.neutral_after

    @cached_property
    def names_of_animals(self) -> Words:
        return with_plurals(self.animals)

    @cached_property
    def genders(self) -> dict[str, str]:
        """The gender of nouns, pronouns and what only one gender wears."""
        male = dict.fromkeys(with_plurals(self.male) | self.pronouns_male, "male")
        return male | dict.fromkeys(with_plurals(self.female) | self.pronouns_female, "female")

    @cached_property
    def age_groups(self) -> dict[str, str]:
        """The age of nouns."""
        return dict.fromkeys(with_plurals(self.young), "young") | dict.fromkeys(with_plurals(self.old), "old")


@cache
def word_lists() -> WordLists:
    """The lists of the package."""
    content = yaml.safe_load(LISTS.read_text("utf-8"))
    return WordLists(**{field.name: frozenset(content[field.name].split()) for field in fields(WordLists)})


@dataclass(frozen=True)
class Context:
    """A text and its words, as (start, end, lower case)."""

    text: str
    words: Sequence[tuple[int, int, str]]

    @classmethod
    def of(cls, text: str) -> "Context":
        """The context of all words of a text."""
        return cls(text, list(tokens(text)))

    def word(self, position: int) -> str:
        """The word at a position, in lower case."""
        return self.words[position][2]

    def gap(self, position: int) -> str:
        """What stands before the word at a position: " " within a phrase, "" at the ends of the text."""
        if not 0 < position < len(self.words):
            return ""
        return gap(self.text[self.words[position - 1][1] : self.words[position][0]])


@dataclass(frozen=True)
class Noun:
    """A class word in its context: the words at the positions from `first` to `stop` - 1."""

    context: Context
    first: int
    stop: int
    table: ClassTable
    class_index: int

    @classmethod
    def at(cls, context: Context, start: int, end: int, table: ClassTable, class_index: int) -> "Noun":
        """The class word text[start:end]."""
        places = [place for place, (first, _, _) in enumerate(context.words) if start <= first < end]
        return cls(context, places[0], places[-1] + 1, table, class_index)

    @property
    def label(self) -> LabelClass:
        """The class."""
        return self.table.classes[self.class_index]

    @cached_property
    def is_one(self) -> bool:
        """False for a plural, and for a word such as "sheep"."""
        return self.table.lexicon[self.key].number == "one"

    @cached_property
    def key(self) -> str:
        """The normalized form of the word."""
        words = self.context.words
        return spelling(self.context.text[words[self.first][0] : words[self.stop - 1][1]])

    @property
    def next(self) -> str:
        """The word that follows without punctuation, or ""."""
        return self.context.word(self.stop) if self.context.gap(self.stop) == " " else ""

    @cached_property
    def following(self) -> list[str]:
        """The words that follow."""
        words = self.context.words[self.stop : self.stop + _FOLLOWING]
        return [word for _, _, word in words]

    @property
    def is_possessive(self) -> bool:
        """Whether "'s" follows."""
        return self.context.gap(self.stop) == "'" and self.context.word(self.stop) == "s"

    @property
    def is_quoted(self) -> bool:
        """Whether a quotation mark stands directly before or after: 'a "limo" bus'."""
        gaps = self.context.gap(self.first), self.context.gap(self.stop)
        return any(mark in gap for gap in gaps for mark in '"\u201c\u201d')

    def before(self, most: int) -> list[str]:
        """Up to `most` words before the noun, the nearest first, with only spaces and commas between them."""
        found: list[str] = []
        while len(found) < most and self.context.gap(self.first - len(found)) in (" ", ", "):
            found.append(self.context.word(self.first - len(found) - 1))
        return found

    @property
    def is_living(self) -> bool:
        lists = word_lists()
        return not (lists.people | lists.animals).isdisjoint(map(spelling, self.label.base))

    @property
    def is_person(self) -> bool:
        return not word_lists().people.isdisjoint(map(spelling, self.label.base))

    @cached_property
    def others(self) -> list[str]:
        """All other words of the text."""
        return [
            word
            for place, (_, _, word) in enumerate(self.context.words)
            if not self.first <= place < self.stop
        ]


# Whether a word names a thing, or a place


def is_place(noun: Noun, things: Sequence[Noun]) -> bool:
    """Whether a background word means the surroundings. It does not in the name of another thing ("street
    sign"), after "no", in an image, and where it says what one of `things` holds ("a bottle of water").
    """
    description = takewhile(word_lists().describing.__contains__, noun.before(_DESCRIPTION))
    link = noun.first - 1 - len(list(description))
    is_held = any(thing.stop == link for thing in things) and noun.context.word(link) == "of"
    return is_thing(noun) and _ends_phrase(noun) and not is_held


def is_thing(noun: Noun) -> bool:
    """Whether a class word means a thing of its class. It does not in the name of another one ("train yard"),
    where it means a statue, a toy or an image ("toy car", "a painting of a man"), and after "no".
    """
    lists = word_lists()
    if noun.is_one and noun.label.thing and noun.next in lists.other_things | lists.made | lists.pictured:
        return False
    if noun.is_person and noun.key in lists.age_groups and _is_of_an_animal(noun):
        return False
    if noun.next == "on" and not lists.surfaces.isdisjoint(noun.following):
        return False
    if any(link in ("like", "as") and word in lists.resembling for link, word in pairwise(noun.before(3))):
        return False
    return not (_is_absent(noun) or _is_made(noun) or _is_depicted(noun))


def _is_of_an_animal(noun: Noun) -> bool:
    """Whether a word of age means an animal: "a baby elephant", "a mother and baby zebra", "its mother"."""
    lists = word_lists()
    following = noun.following
    if following[:1] == ["and"] and noun.next and following[1:2] and following[1] in lists.age_groups:
        following = following[2:]
    before = noun.before(1)
    return bool(
        (noun.next and not lists.names_of_animals.isdisjoint(following[:1]))
        or (before and (before[0] == "its" or before[0] in lists.names_of_animals))
    )


def _is_absent(noun: Noun) -> bool:
    """Whether a text says that there is no such thing: "no people", "without a rider"."""
    lists = word_lists()
    words = [word for word in noun.before(_DESCRIPTION) if word not in lists.describing]
    return bool(words) and (
        words[0] in lists.negations or words[:2] in (["a", "without"], ["any", "without"])
    )


def _is_made(noun: Noun) -> bool:
    """Whether the words before a thing say that it is not a real one: "a toy car", "a stuffed dog"."""
    lists = word_lists()
    made = lists.made_before | lists.made_before_living if noun.is_living else lists.made_before
    words = noun.before(_DESCRIPTION + 1)
    for word, further in zip(words[:_DESCRIPTION], [*words[1:], ""], strict=False):
        if word == "model" and (further in lists.ages_of_models or further[-1:].isdigit()):
            return False
        if word in made:
            return True
        if word in lists.neutral_before or word in lists.begins_anew:
            return False
    return False


def _is_depicted(noun: Noun) -> bool:
    """Whether a thing is what a statue or a picture shows: "a statue of a man on a horse"."""
    lists = word_lists()
    words = noun.before(len(noun.context.words))
    for distance, (word, maker) in enumerate(pairwise(words[:_DEPICTION])):
        if word != "of" or maker not in lists.made | lists.pictured | lists.made_before:
            continue
        is_photograph = maker in lists.photographs
        between = frozenset(words[:distance])
        joining = lists.listing if is_photograph else lists.listing | lists.linking
        if not lists.joints.isdisjoint(between - joining):
            return False
        if maker not in lists.pictured and not noun.is_living and not lists.linking.isdisjoint(between):
            return False
        # A photograph at the start of a sentence, or one that is taken, is what the caption describes.
        holders = words[distance + 2 :]
        is_introduced = holders[-1:] in (["this"], ["there"]) and len(holders) <= _DESCRIPTION
        return not is_photograph or not (
            is_introduced
            or lists.holding_a_photograph.isdisjoint(holders)
            or not lists.taking_a_photograph.isdisjoint(holders)
        )
    return False


def is_part(noun: Noun, wholes: Sequence[Noun]) -> bool:
    """Whether a class word means parts of what `wholes` name: "a train pulling cars", "the last car of a
    train", "a five car train".
    """
    lists = word_lists()
    if noun.following[:1] == ["of"] and any(0 < whole.first - noun.stop < _FOLLOWING for whole in wholes):
        return True
    before = noun.before(_PARTS)
    if noun.is_one:
        after = any(0 <= whole.first - noun.stop < _FOLLOWING for whole in wholes)
        return after and not lists.numbers.isdisjoint(before[:1])
    for distance, (word, further) in enumerate(zip(before, [*before[1:], ""], strict=False)):
        if word in ("of", "by") and (further in lists.counted_with or further in lists.having):
            continue  # "a line of cars", "followed by"
        if word in lists.having:
            owned = any(whole.stop < noun.first - distance for whole in wholes)
            return owned and further not in lists.roads
        if word in lists.joints and word not in lists.listing | lists.numbers:
            return False
    return False


# What may stand for it


def replacements(noun: Noun, is_repeated: bool) -> tuple[str, ...]:
    """The aliases of its class that may stand for a class word: all that agree with the words around it.

    `is_repeated`: whether the text names the class by further words. Then an alias must not say more than the
    name of the class, because the words may mean the same thing.
    """
    lists = word_lists()
    description = _description(noun)
    if description is None or not _ends_phrase(noun) or noun.key in lists.kept or noun.is_quoted:
        return ()
    table = noun.table
    is_specific = noun.key in table.forms_of_kinds or noun.key not in map(spelling, noun.label.base)
    if is_specific and (description or is_repeated or noun.next == "of"):
        return ()
    # "a young man", "her friend": a person who is described stays
    if noun.is_person and not (
        lists.owners.isdisjoint(noun.before(1)) and all(map(_is_participle, description))
    ):
        return ()
    if noun.is_person and is_specific and "and" in (noun.next, *noun.before(1)):
        return ()  # "horses and jockeys"
    if noun.is_one and _is_counted(noun):
        return ()
    text = frozenset(word for _, _, word in noun.context.words)
    spaced = f" {' '.join(word for _, _, word in noun.context.words)} "
    plain = not (is_specific or description or is_repeated or _is_described_after(noun))
    many_follow = not text.isdisjoint(("are", "were", "have"))

    def fits(alias: str) -> bool:
        key = spelling(alias)
        return (
            not any(f" {form} " in spaced for form in (key, spelling(plural(alias))))
            and (plain or key not in table.forms_of_kinds)
            and text.isdisjoint(table.contradicting.get(key, ()))
            and _agrees(noun, key)
            and not (noun.is_possessive and not noun.is_one and plural(alias).endswith("s"))
            and not (alias.lower() in UNCOUNTABLE and many_follow)
        )

    return tuple(alias for alias in noun.label.aliases if alias not in table.paper_only and fits(alias))


def _is_counted(noun: Noun) -> bool:
    """Whether words before a noun count several: "two woman", "a two person bike", "a couple of horse"."""
    lists = word_lists()
    before = [*noun.before(2), "", ""]
    of_several = before[0] == "of" and before[1] in lists.counted_with
    return before[0] in lists.numbers or before[0] == "some" or of_several


def _description(noun: Noun) -> list[str] | None:
    """The words that describe a noun, the nearest first. None if the word before the noun is not understood:
    the noun may be the last word of a compound ("baseball player").
    """
    lists = word_lists()
    found: list[str] = []
    words = noun.before(_DESCRIPTION)
    for place, (word, further) in enumerate(zip(words, [*words[1:], ""], strict=False)):
        if word == "s" and noun.context.gap(noun.first - place - 1) == "'":
            break  # "the man's dog"
        if word == "and" and found and further in lists.describing:
            continue  # "black and white"
        if word in lists.neutral_before or word.isdecimal():
            break
        if not (found or word in lists.describing or _is_participle(word)):
            return None
        found.append(word)
    return found


def _is_participle(word: str) -> bool:
    return word.endswith(("ing", "ed")) and word not in word_lists().nouns_like_verbs


def _ends_phrase(noun: Noun) -> bool:
    """Whether the word after a noun begins something new: the noun is not the first word of a compound."""
    lists = word_lists()
    word = noun.next
    return (
        not word
        or word in lists.begins_anew
        or (word in lists.verbs and not noun.is_one)
        or _is_participle(word)
        or (word.endswith("ly") and word not in lists.nouns_like_verbs)
    )


def _is_described_after(noun: Noun) -> bool:
    """Whether words after a noun describe it: "a cat that is black", "a bird with a long beak"."""
    lists = word_lists()
    if noun.next not in ("that", "which", "who", "is", "are", "was", "were", "has", "have", "with", "of"):
        return False
    for word in noun.following[1:]:
        if word in lists.describing:
            return True
        if word in ("on", "in", "at", "near", "by", "to", "next", "and") or _is_participle(word):
            return False
    return False


def _agrees(noun: Noun, alias: str) -> bool:
    """Whether an alias agrees in gender and age with the word that it replaces, and with the other words."""
    lists = word_lists()
    old_age, new_age = lists.age_groups.get(noun.key), lists.age_groups.get(alias)
    old_gender, new_gender = lists.genders.get(noun.key), lists.genders.get(alias)
    others = {lists.genders[word] for word in noun.others if word in lists.genders}
    if old_age is not None and old_age != new_age:
        return False
    if noun.is_person and old_gender == new_gender is None:  # "person" -> "human"
        return not others
    if old_gender is None:  # "horse" -> "mare"
        return others <= {new_gender} or new_gender is None
    if new_gender is None:  # "woman" -> "human", "bull" -> "bovine"
        persons = with_plurals(map(spelling, noun.label.base))
        aged = any(word in lists.age_groups for word in noun.others)
        return not (others or aged or (noun.is_person and not persons.isdisjoint(noun.others)))
    return old_gender == new_gender
