"""Reads class tables: those of the package, and a user's YAML file."""

import reprlib
from collections.abc import Callable, Collection, Iterator, Sequence
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import yaml

from attn2mask.builders.classes import (
    SURROGATE,
    CaptionStyle,
    ClassTable,
    Color,
    LabelClass,
    default_color,
    spelling,
)
from attn2mask.builders.errors import UserError, printable
from attn2mask.builders.words.english import plural
from attn2mask.builders.yaml_reader import load_yaml

TABLES = ("voc", "cityscapes", "imagenet_s_50", "imagenet_s_300", "imagenet_s_919")
_FOLDER = Path(__file__).parent / "tables"
IMAGENET_S_IGNORE = 1000  # the ignore value in the masks of ImageNet-S itself
MOST_NAMED = 100  # classes that a caption style's range may ask for


def load_table(name_or_path: str) -> ClassTable:
    """The class table of a name (one of `TABLES`) or of a YAML file. Raises UserError for mistakes in it."""
    if name_or_path in TABLES:
        return _shipped(name_or_path)
    path = Path(name_or_path)
    if path.suffix not in (".yaml", ".yml"):
        raise UserError(f"no class table {name_or_path!r}: choose {', '.join(TABLES)}, or give a YAML file")
    return _read_yaml(path)


@cache
def _shipped(name: str) -> ClassTable:
    return _imagenet_s(name) if name.startswith("imagenet_s_") else _read_yaml(_FOLDER / f"{name}.yaml")


def _read_yaml(path: Path) -> ClassTable:
    try:
        content = load_yaml(path.read_bytes())
    except OSError as error:
        raise UserError(f"class table {path} cannot be read: {error.strerror}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise UserError(f"class table {path} is not valid YAML: {' '.join(str(error).split())}") from error
    return parse_table(content, str(path))


def parse_table(content: Any, source: str) -> ClassTable:
    """The class table of parsed YAML. Raises UserError for mistakes in it; `source` names the file there."""
    return _Reader(source).table(content)


def bare_table(name: str, names: tuple[str, ...], ignore: int | None = None) -> ClassTable:
    """The table whose names by mask id are `names`: one of the package, or else one with VOC's colors and no
    words beside the names.
    """
    for table in map(load_table, TABLES):
        if table.names == names:
            return table
    background = names[0] if names[0] in ("background", "other") else None
    first = int(background is not None)
    classes = [LabelClass(n, (n,), (), default_color(first + k)) for k, n in enumerate(names[first:])]
    return ClassTable(name, tuple(classes), background, ignore=ignore)


def _shown(value: Any) -> str:
    """A value, shortened for a message: with YAML's anchors, ten lines may hold a billion words."""
    short = reprlib.Repr()
    short.maxlevel, short.maxstring, short.maxother = 2, 60, 60
    try:
        return short.repr(value)
    except ValueError:  # a number that is longer than Python prints
        return "a very large number"


class _Reader:
    """Checks a parsed YAML table key by key. Every message names the file and the key."""

    def __init__(self, source: str):
        self.source = source

    def fail(self, key: str, message: str) -> UserError:
        return UserError(f"class table {self.source}: {key} {message}")

    def checked(self, value: Any, key: str, is_right: bool, expected: str) -> Any:
        if not is_right:
            shown = "is missing" if value is None else f"is {_shown(value)}"
            raise self.fail(key, f"{shown}, but must be {expected}")
        return value

    def mapping(self, value: Any, key: str, known: Sequence[str], expected: str) -> dict[str, Any]:
        self.checked(value, key, isinstance(value, dict), expected)
        for unknown in value:
            if unknown not in known:
                name = str(unknown)[:60]
                path = name if key == "the file" else f"{key}.{name}"
                advice = "write color" if name == "colour" else f"the keys are {', '.join(known)}"
                raise self.fail(path, f"is not a key of a class table: {advice}")
        return value

    def flag(self, value: Any, key: str) -> bool:
        return self.checked(value, key, isinstance(value, bool), "true or false")

    def word(self, value: Any, key: str) -> str:
        expected = "text (put words such as no, on or 7 in quotes)"
        word = self.checked(value, key, isinstance(value, str), expected).strip()
        if not spelling(word) or SURROGATE.search(word):
            raise self.fail(key, "has no word in it")
        if printable(word) != word or len(word.splitlines()) > 1:
            raise self.fail(key, f"is {_shown(word)}, which holds a line break or a control character")
        return word

    def words(self, value: Any, key: str) -> tuple[str, ...]:
        items = self.checked(value, key, isinstance(value, list), "a list of words")
        return tuple(self.word(item, f"{key}[{i}]") for i, item in enumerate(items))

    def folder(self, value: Any, key: str) -> str:
        name = self.word(value, key)
        if name[0] == "." or not name.isprintable() or {"/", "\\"} & {*name}:
            raise self.fail(key, f"is {_shown(name)}, which cannot name a folder: leave out / and \\")
        return name

    def color(self, value: Any, key: str) -> Color:
        is_right = _is_integers(value, 3) and min(value) >= 0 and max(value) <= 255
        red, green, blue = self.checked(value, key, is_right, "three numbers from 0 to 255")
        return red, green, blue

    def range(self, value: Any, key: str) -> tuple[int, int]:
        is_right = _is_integers(value, 2) and 0 <= value[0] <= value[1] <= MOST_NAMED
        least, most = self.checked(value, key, is_right, "two numbers such as [1, 3]")
        return least, most

    def aspect(self, value: Any, key: str) -> float:
        is_right = type(value) in (int, float) and 0.1 <= value <= 10
        return float(self.checked(value, key, is_right, "a number from 0.1 to 10"))

    def label(self, value: Any, key: str, mask_id: int) -> LabelClass:
        known = [field.name for field in fields(LabelClass)]
        value = self.mapping(value, key, known, "a mapping with a name")
        name = self.word(value.get("name"), f"{key}.name")
        base = self.words(value["base"], f"{key}.base") if "base" in value else (name, plural(name))
        if not base:
            raise self.fail(f"{key}.base", "is empty, so no caption could name the class")
        aliases = self.words(value.get("aliases", []), f"{key}.aliases")
        color = self.color(value.get("color", [*default_color(mask_id)]), f"{key}.color")
        thing = self.flag(value.get("thing", True), f"{key}.thing")
        synonyms, ambiguous = (
            self.words(value.get(name, []), f"{key}.{name}") for name in ("synonyms", "ambiguous")
        )
        return LabelClass(name, base, aliases, color, thing, synonyms, ambiguous)

    def contrary(self, value: Any) -> tuple[tuple[str, tuple[str, ...]], ...]:
        self.checked(value, "contrary", isinstance(value, dict), "a mapping such as {puppy: [old]}")
        return tuple(
            (self.word(alias, "contrary"), self.words(words, f"contrary.{str(alias)[:60]}"))
            for alias, words in value.items()
        )

    def known(self, words: Sequence[str], key: str, names: Collection[str], expected: str) -> None:
        for word in words:
            if spelling(word) not in names:
                raise self.fail(key, f"has {word!r}, which is not {expected}")

    def parts(self, value: Any, classes: tuple[LabelClass, ...]) -> tuple[tuple[int, int], ...]:
        self.checked(value, "parts", isinstance(value, dict), "a mapping such as {car: train}")
        found = []
        for pair in value.items():
            part, whole = self.positions(classes, list(pair), "parts")
            found.append((part, whole))
        return tuple(found)

    def caption_style(self, value: Any, classes: tuple[LabelClass, ...]) -> CaptionStyle:
        known = [field.name for field in fields(CaptionStyle)]
        value = self.mapping(value, "caption_style", known, "a mapping such as {aspect: 2}")
        readers: dict[str, Callable[[Any, str], Any]] = {
            "aspect": self.aspect,
            "balance": self.flag,
            "usual": partial(self.positions, classes),
            "things": self.range,
            "stuff": self.range,
            "phrases": partial(self.phrases, classes),
        }
        return CaptionStyle(
            **{k: readers.get(k, self.words)(inner, f"caption_style.{k}") for k, inner in value.items()}
        )

    def positions(self, classes: tuple[LabelClass, ...], value: Any, key: str) -> tuple[int, ...]:
        names, words = [label.name for label in classes], self.words(value, key)
        for word in words:
            if word not in names:
                raise self.fail(key, f"has {word!r}, which is not the name of a class")
        return tuple(map(names.index, words))

    def phrases(self, classes: tuple[LabelClass, ...], value: Any, key: str) -> tuple[tuple[str, ...], ...]:
        known = [label.name for label in classes]
        value = self.mapping(value, key, known, "a mapping from classes to lists of words")
        found = [self.words(value.get(name, []), f"{key}.{name}") for name in known]
        for label, phrases in zip(classes, found, strict=True):
            for phrase in phrases:
                if not any(f" {spelling(word)} " in f" {spelling(phrase)} " for word in label.base):
                    missing = f"has {phrase!r}, which has no base name of the class in it"
                    raise self.fail(f"{key}.{label.name}", missing)
        return tuple(found) if value else ()

    def table(self, content: Any) -> ClassTable:
        known = [field.name for field in fields(ClassTable)]
        content = self.mapping(content, "the file", known, "a mapping with a name and classes")
        background = content.get("background", True)
        is_right = background in (True, False, "background", "other")
        self.checked(background, "background", is_right, "true, false or other")
        background = {True: "background", False: None}.get(background, background)
        items = content.get("classes")
        self.checked(items, "classes", isinstance(items, list), "a list of classes")
        if not items:
            raise self.fail("classes", "is empty")
        first_id = int(background is not None)
        if len(items) + first_id > 65535:
            raise self.fail("classes", f"has {len(items)} entries, more than a 16-bit mask can hold")
        classes = tuple(self.label(item, f"classes[{i}]", first_id + i) for i, item in enumerate(items))
        name = self.folder(content.get("name"), "name")
        compounds = self.words(content.get("compounds", []), "compounds")
        style = self.caption_style(content["caption_style"], classes) if "caption_style" in content else None
        parts = self.parts(content.get("parts", {}), classes)
        kinds, paper_only = (self.words(content.get(key, []), key) for key in ("kinds", "paper_only"))
        contrary = self.contrary(content.get("contrary", {}))
        aliases = {spelling(alias) for label in classes for alias in label.aliases}
        names = {spelling(word) for label in classes for word in label.base}
        self.known(kinds, "kinds", aliases | names, "a name or alias of a class")
        self.known(paper_only, "paper_only", aliases, "an alias of a class")
        self.known([alias for alias, _ in contrary], "contrary", aliases, "an alias of a class")
        ignore = content.get("ignore")
        table = ClassTable(
            name, classes, background, compounds, ignore, style, parts, kinds, contrary, paper_only
        )
        least, most = len(table.names), 255 if len(table.names) <= 254 else 65535
        is_right = table.ignore is None or (type(table.ignore) is int and least <= table.ignore <= most)
        self.checked(table.ignore, "ignore", is_right, f"a number from {least} to {most}")
        self.check_distinct(table)
        return table

    def check_distinct(self, table: ClassTable) -> None:
        owners = {table.background: (-1, table.background)} if table.background else {}
        for index, label in enumerate(table.classes):
            for word in (label.name, *label.base, *label.synonyms, *label.aliases):
                owner, owner_name = owners.setdefault(spelling(word), (index, label.name))
                if owner != index:
                    shared = f"{owner_name!r} and {label.name!r} share the name or alias {word!r}"
                    raise self.fail("classes", shared)
        for index, label in enumerate(table.classes):
            names = {spelling(word) for word in (*label.base, *label.synonyms)}
            for word in label.ambiguous:
                owner, owner_name = owners.get(spelling(word), (index, label.name))
                if owner != index or spelling(word) in names:
                    both = f"has {word!r}, which is also a name or alias of {owner_name!r}"
                    raise self.fail(f"classes[{index}].ambiguous", both)
        ambiguous = {
            spelling(w): (k, label.name) for k, label in enumerate(table.classes) for w in label.ambiguous
        }
        for compound in table.compounds:
            if spelling(compound) in owners | ambiguous:
                owner_name = (owners | ambiguous)[spelling(compound)][1]
                raise self.fail("compounds", f"{compound!r} is also a name or alias of {owner_name!r}")


def _is_integers(value: Any, count: int) -> bool:
    return isinstance(value, list) and len(value) == count and all(type(number) is int for number in value)


def wordnet_ids(name: str) -> tuple[str, ...]:
    """The WordNet ids of a set of ImageNet-S ("n01443537"), in the order of the classes of its table."""
    return tuple(wnid for wnid, *_ in _imagenet_s_lines(name))


def _imagenet_s(name: str) -> ClassTable:
    """ImageNet-S 50, 300 or 919, from one file for all three. Its header names the sources of the words."""
    file = _FOLDER / "imagenet_s.yaml"
    style = yaml.safe_load(file.read_bytes())
    synonyms, ambiguous = (style.pop(key) for key in ("synonyms", "ambiguous"))
    found: list[LabelClass] = []
    kinds: list[str] = []
    for _, label, names, below in _imagenet_s_lines(name):
        words, hyponyms = names.split("; "), list(filter(None, below.split("; ")))
        kinds += hyponyms
        others = (*words[1:], *hyponyms)
        base = tuple(dict.fromkeys(form for word in words for form in (word, plural(word))))
        more = (tuple(words_of.get(label, ())) for words_of in (synonyms, ambiguous))
        found.append(LabelClass(label, base, others, default_color(len(found) + 1), True, *more))
    classes = tuple(found)
    known = {label.name for label in classes}
    style["phrases"] = {label: phrases for label, phrases in style["phrases"].items() if label in known}
    caption_style = _Reader(str(file)).caption_style(style, classes)
    table = ClassTable(name, classes, "other", caption_style=caption_style, kinds=tuple(kinds))
    _Reader(str(file)).check_distinct(table)
    return table


def _imagenet_s_lines(name: str) -> Iterator[list[str]]:
    """WordNet id, class name, synonyms and hyponyms of each class in a set."""
    size = int(name.rsplit("_", 1)[1])
    for line in (_FOLDER / "imagenet_s.tsv").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            wnid, smallest, *words = line.split("\t")
            if int(smallest) <= size:
                yield [wnid, *words]
