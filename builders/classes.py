"""Class tables: the classes of a mask, their ids and colors, and the words that name them in captions.

Tables are YAML files. Those of VOC, Cityscapes and ImageNet-S are in `builders/tables/`; a user's own file
works in the same way. A table is checked when it is read. Two classes must not share a word, because a mask
of that word could belong to either of them.

    name: kitchen
    background: true                    # false: pixels of no class are ignored; other: the background's name
    classes:
      - {name: mug, base: [mug, mugs, cup], aliases: [beaker], color: [192, 0, 0], thing: true}
      - {name: bowl, synonyms: [dish], ambiguous: [plate]}
      - {name: kettle}                  # all other keys have defaults
    compounds: [cup holder]             # phrases that hold a class word, but do not mean the class
    kinds: [beaker]                     # words that say more than the name of the class
    contrary: {beaker: [coffee]}        # aliases, and words of captions that contradict them
    paper_only: []                      # aliases that replace a name only with `--aliases paper`
    parts: {kettle: mug}                # classes whose words may mean parts of another class's things
    ignore: 255
    caption_style: {aspect: 2, places: [in a kitchen], light: [at night]}  # see `CaptionStyle`
"""

import json
import re
import unicodedata
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from functools import cached_property, lru_cache
from itertools import pairwise
from typing import Any, Literal

import numpy as np

from attn2mask.builders.words.english import plural, verb_forms

Color = tuple[int, int, int]
Kind = Literal["name", "ambiguous"]  # of a class word in a caption

# What belongs to the word before it: combining marks, such as the vowel signs of Hindi.
_MARKS = "".join(
    chr(code) for code in range(0x300, 0x1F000) if unicodedata.category(chr(code)).startswith("M")
)
# So do invisible joiners, and the number in "dog_1"; all other underscores are blanks.
_TOKEN = re.compile(rf"(?:[^\W_]|_(?=\d))(?:[^\W_]|_(?=\d)|[{_MARKS}\u200c\u200d])*")
# Scripts without blanks between words, by the beginnings of their characters' names.
_UNSPACED = ("CJK UNIFIED", "HIRAGANA", "KATAKANA", "THAI", "LAO", "KHMER", "MYANMAR", "TIBETAN")
SURROGATE = re.compile("[\ud800-\udfff]")  # JSON and YAML can write these, but they are not valid text


@dataclass(frozen=True)
class LabelClass:
    """One class of a table.

    Attributes:
        base: words that name the class in captions, plurals included.
        aliases: synonyms and hyponyms, in the singular, that may replace a name in a prompt. In captions they
            name the class, too, unless they are ambiguous.
        color: RGB, 0 to 255.
        thing: False for stuff, such as road and sky.
        synonyms: further words, in the singular, that name the class in captions, and never replace a name.
        ambiguous: words, in the singular, that may mean the class or another thing. A caption with one of
            them is used only if it also names the class; otherwise the thing could become background.
    """

    name: str
    base: tuple[str, ...]
    aliases: tuple[str, ...]
    color: Color
    thing: bool = True
    synonyms: tuple[str, ...] = ()
    ambiguous: tuple[str, ...] = ()


@dataclass(frozen=True)
class CaptionStyle:
    """What the images of a table look like, and what the built-in grammar writes in their captions.

    Attributes:
        aspect: width over height of the images; 1 stands for the size of the model.
        balance: whether the classes take turns; by default (None), they do in a table of things.
        usual: positions of the classes that a caption names with a probability of 0.9 each.
        things, stuff: the least and the largest number of other things and of other stuff in a caption.
        openings, places, weather, light: phrases. A caption may have one of each kind.
        phrases: how a caption names each class of the table; empty if its base names are used.
    """

    aspect: float = 1.0
    balance: bool | None = None
    usual: tuple[int, ...] = ()
    things: tuple[int, int] = (1, 3)
    stuff: tuple[int, int] = (1, 3)
    openings: tuple[str, ...] = ()
    places: tuple[str, ...] = ()
    weather: tuple[str, ...] = ()
    light: tuple[str, ...] = ()
    phrases: tuple[tuple[str, ...], ...] = ()


@dataclass(frozen=True)
class Form:
    """A spelling in the lexicon.

    `class_index` is None for a compound. `kind` says whether the spelling names the class or is
    ambiguous. `number` says whether it means one thing, many, or either ("sheep").
    """

    class_index: int | None
    kind: Kind = "name"
    number: Literal["one", "many", "either"] = "one"


@dataclass(frozen=True)
class ClassTable:
    """Classes in the order of their mask ids, without the background. If there is one, it has id 0.

    Attributes:
        parts: pairs of positions in `classes`. Words of the first class may mean parts of things of the
            second: "cars" may be those of a train.
        kinds: words that say more than the name of their class, such as breeds. A kind replaces a name only
            where nothing describes the thing.
        contrary: aliases, each with words that contradict it. It does not come into a text with one of them.
        paper_only: aliases that replace a name only with `--aliases paper`.
    """

    name: str
    classes: tuple[LabelClass, ...]
    background: str | None
    compounds: tuple[str, ...] = ()
    ignore: int | None = None
    caption_style: CaptionStyle | None = None
    parts: tuple[tuple[int, int], ...] = ()
    kinds: tuple[str, ...] = ()
    contrary: tuple[tuple[str, tuple[str, ...]], ...] = ()
    paper_only: tuple[str, ...] = ()

    @property
    def names(self) -> tuple[str, ...]:
        """Names by mask id."""
        return (*((self.background,) if self.background else ()), *(label.name for label in self.classes))

    @property
    def first_id(self) -> int:
        """The mask id of `classes[0]`: 1 with a background, else 0."""
        return int(self.background is not None)

    @property
    def ignore_index(self) -> int:
        """The ignore value of masks: the table's own, or 255, or 65535 for over 254 names (16-bit masks)."""
        return self.ignore or (255 if len(self.names) <= 254 else 65535)

    @property
    def palette(self) -> np.ndarray:
        """Colors by mask id, uint8 of shape (len(names), 3); the background is black."""
        background = [(0, 0, 0)] * self.first_id
        return np.array(background + [label.color for label in self.classes], dtype=np.uint8)

    @property
    def id2label(self) -> str:
        """The content of id2label.json, which names the ids: JSON of the names by mask id, as in
        huggingface/label-files.
        """
        return json.dumps(dict(enumerate(self.names)), indent=2, ensure_ascii=False) + "\n"

    def id_of(self, name: str) -> int:
        """The mask id of a class name; raises ValueError for a name that is not in the table."""
        return self.names.index(name)

    def with_all_aliases(self) -> "ClassTable":
        """This table with the aliases that only the paper uses."""
        return replace(self, paper_only=())

    def facts(self) -> dict[str, Any]:
        """The table as plain values, for records and digests; without keys for a caption style, parts, kinds
        and other lists that it lacks.
        """
        optional = ("caption_style", "parts", "kinds", "contrary", "paper_only")
        return {key: value for key, value in asdict(self).items() if value or key not in optional}

    @cached_property
    def lexicon(self) -> dict[str, Form]:
        """The form of every known spelling. Listed words take precedence over plurals that are derived.

        An alias that is ambiguous, too, is ambiguous. A word of two classes is ambiguous for both; its form
        has the first of them.
        """
        listed = {spelling(compound): Form(None) for compound in self.compounds}
        derived: dict[str, Form] = {}
        for index, label in enumerate(self.classes):
            base = [spelling(word) for word in label.base]
            for word in base:
                listed[word] = Form(index, number=_number_of(word, base))
        for index, label in enumerate(self.classes):
            kinds: list[tuple[Kind, tuple[str, ...]]] = [
                ("ambiguous", label.ambiguous),
                ("name", (*label.synonyms, *label.aliases)),
            ]
            for kind, words in kinds:
                for word in words:
                    one, many = spelling(word), spelling(plural(word))
                    listed.setdefault(one, Form(index, kind, "either" if one == many else "one"))
                    derived.setdefault(many, Form(index, kind, "many"))
        return derived | listed

    @cached_property
    def forms_of_kinds(self) -> frozenset[str]:
        """The spellings of the kinds and of their plurals."""
        return frozenset(spelling(form) for kind in self.kinds for form in (kind, plural(kind)))

    @cached_property
    def contradicting(self) -> dict[str, frozenset[str]]:
        """For each alias, by its spelling, all forms of the words that contradict it."""
        return {
            spelling(alias): frozenset(
                form for word in words for form in (word, plural(word), *verb_forms(word))
            )
            for alias, words in self.contrary
        }

    @cached_property
    def longest_form(self) -> int:
        """The number of words of the longest spelling in the lexicon."""
        return max(sum(1 for _ in tokens(form)) for form in self.lexicon)


def tokens(text: str) -> Iterator[tuple[int, int, str]]:
    """The words of a text as (start, end, word), with text[start:end] as it is written. The word is in lower
    case, with accents composed (NFC).
    """
    # Lower-cased word by word: str.lower may change a text's length ("İ" becomes two characters).
    for match in _TOKEN.finditer(text):
        yield match.start(), match.end(), unicodedata.normalize("NFC", match.group().lower())


def is_unspaced(word: str) -> bool:
    """Whether a word is in a script without blanks between words, as Chinese, Japanese and Thai are."""
    return any(unicodedata.name(character, "").startswith(_UNSPACED) for character in word)


def gap(between: str) -> str:
    """The separator of two words in a spelling: the same in "hot-dog", "hot_dog" and "hot  dog", not in "hot,
    dog".
    """
    return " " if between.isspace() or between in ("-", "_") else between.replace("\u2019", "'")


@lru_cache(maxsize=2**16)
def spelling(phrase: str) -> str:
    """The normalized form of a word or phrase in the lexicon: "Double-Decker  Bus" -> "double decker bus"."""
    found = list(tokens(phrase))
    gaps = [gap(phrase[end:start]) for (_, end, _), (start, _, _) in pairwise(found)]
    return "".join(word + after for (_, _, word), after in zip(found, [*gaps, ""], strict=False))


def default_color(mask_id: int) -> Color:
    """PASCAL VOC's color of an id: bit i of the id is bit 7 - i // 3 of channel i % 3 (VOClabelcolormap)."""
    red, green, blue = (
        sum((mask_id >> (3 * i + channel) & 1) << (7 - i) for i in range(8)) for channel in range(3)
    )
    return red, green, blue


def _number_of(word: str, base: list[str]) -> Literal["one", "many", "either"]:
    """Whether a base name means one or many: the plural of another base name, or like "busses", is many."""
    if plural(word) == word:
        return "either"
    longer = word.startswith(tuple(other for other in base if other != word)) and word.endswith("s")
    return "many" if longer or word in map(plural, base) else "one"
