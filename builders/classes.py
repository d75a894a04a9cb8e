"""Class tables: which classes a mask may hold, their ids and colors, and the words that name them.

Tables are data (`builders/tables/`), so a user's own YAML is on equal terms with the three that ship: VOC,
Cityscapes and ImageNet-S. A table is checked as a whole when it is read: two classes that share a word would
make every mask of that word a coin toss, so that is an error and not a preference.

    name: kitchen
    background: true                    # false: pixels that no class explains are ignored; other: its name
    classes:
      - {name: mug, base: [mug, mugs, cup], aliases: [beaker], color: [192, 0, 0], thing: true}
      - {name: kettle}                  # the rest has defaults
    compounds: [cup holder]             # what holds a class word and does not count
    ignore: 255
    caption_style: {aspect: 2, places: [in a kitchen], light: [at night]}  # see `CaptionStyle`
"""

import re
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from functools import cached_property
from typing import Any, Literal

import numpy as np

from attn2mask.builders.words.english import plural

Color = tuple[int, int, int]

_TOKEN = re.compile(r"[\w\u0300-\u036f]+")  # combining marks belong to their word
SURROGATE = re.compile("[\ud800-\udfff]")  # what JSON and YAML can spell, and no text can hold


@dataclass(frozen=True)
class LabelClass:
    """One class. `base`: words looked for in captions, plurals listed; `aliases`: singulars to replace them.

    `color` is RGB, 0 to 255; `thing` is False for stuff (road, sky).
    """

    name: str
    base: tuple[str, ...]
    aliases: tuple[str, ...]
    color: Color
    thing: bool = True


@dataclass(frozen=True)
class CaptionStyle:
    """What images of a table's domain are like: their shape, and of what the grammar's captions speak.

    `aspect` is width over height (1: the model's own shape); with `balance` the classes take turns. A caption
    names nine of ten of the `usual` classes, which hardly an image lacks, from the least to the most of the
    other `things` and `stuff`, and beside them some of an opening, a place, the weather and the light.
    `usual` are positions in the table's classes. `phrases` are parallel to them: how a caption names each,
    empty where its base names do.
    """

    aspect: float = 1.0
    balance: bool = False
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
    """One spelling in the lexicon: its class (None: a compound, which counts as nothing), whether it selects
    a caption (it is or contains a base name), and whether it means one, many, or either ("sheep").
    """

    class_index: int | None
    is_base: bool = False
    number: Literal["one", "many", "either"] = "one"


@dataclass(frozen=True)
class ClassTable:
    """Classes in the order of their mask ids, without the background, which has id 0 where there is one."""

    name: str
    classes: tuple[LabelClass, ...]
    background: str | None
    compounds: tuple[str, ...] = ()
    ignore: int | None = None
    caption_style: CaptionStyle | None = None

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
        """The table's own, else 255, or 65535 for tables of more than 254 names, whose masks are 16-bit."""
        return self.ignore or (255 if len(self.names) <= 254 else 65535)

    @property
    def palette(self) -> np.ndarray:
        """Colors by mask id, uint8 of shape (len(names), 3); the background is black."""
        background = [(0, 0, 0)] * self.first_id
        return np.array(background + [label.color for label in self.classes], dtype=np.uint8)

    def id_of(self, name: str) -> int:
        """The mask id of a class name; raises ValueError for a name that is not in the table."""
        return self.names.index(name)

    def facts(self) -> dict[str, Any]:
        """All of it, for records and digests; a table without a caption style does not mention one."""
        facts = asdict(self)
        return (
            facts
            if self.caption_style
            else {name: fact for name, fact in facts.items() if name != "caption_style"}
        )

    @cached_property
    def lexicon(self) -> dict[str, Form]:
        """Every known word, as `spelling` gives it; what the table lists goes before plurals of aliases."""
        listed = {spelling(compound): Form(None) for compound in self.compounds}
        derived: dict[str, Form] = {}
        for index, label in enumerate(self.classes):
            base = [spelling(word) for word in label.base]
            for word in base:
                listed[word] = Form(index, True, _number(word, base))
            within = [f" {word} " for word in base]
            for alias in label.aliases:
                one, many = spelling(alias), spelling(plural(alias))
                is_base = any(word in f" {one} {many} " for word in within)
                listed.setdefault(one, Form(index, is_base, "either" if one == many else "one"))
                derived.setdefault(many, Form(index, is_base, "many"))
        return derived | listed

    @cached_property
    def longest_form(self) -> int:
        """The number of words of the longest spelling in the lexicon."""
        return max(sum(1 for _ in tokens(form)) for form in self.lexicon)


def tokens(text: str) -> Iterator[tuple[int, int, str]]:
    """The words of a text: (start, end, word in lower case), with text[start:end] the word as it stands."""
    # Lower-cased word by word: str.lower may change a text's length ("İ" becomes two characters) and so shift
    # its offsets.
    for match in _TOKEN.finditer(text):
        yield match.start(), match.end(), match.group().lower()


def gap(between: str) -> str:
    """What stands between two words, so that "hot-dog" and "hot  dog" are spelt alike, but not "hot, dog"."""
    return " " if between.isspace() or between == "-" else between.replace("\u2019", "'")


def spelling(phrase: str) -> str:
    """The key of a word or phrase in the lexicon: "Double-Decker  Bus" -> "double decker bus"."""
    parts, end = [], None
    for start, stop, word in tokens(phrase):
        parts += [gap(phrase[end:start])] if end is not None else []
        parts.append(word)
        end = stop
    return "".join(parts)


def default_color(mask_id: int) -> Color:
    """PASCAL VOC's color of an id: its bit i is bit 7 - i // 3 of channel i % 3 (VOClabelcolormap)."""
    red, green, blue = (
        sum((mask_id >> (3 * i + channel) & 1) << (7 - i) for i in range(8)) for channel in range(3)
    )
    return red, green, blue


def _number(word: str, base: list[str]) -> Literal["one", "many", "either"]:
    """A base name is a plural if it is one of another base name, or looks so ("busses" beside "bus")."""
    if plural(word) == word:
        return "either"
    for other in base:
        if word == plural(other) or (word.startswith(other) and word != other and word.endswith("s")):
            return "many"
    return "one"
