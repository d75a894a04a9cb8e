"""Reads class tables: those of the package, and a user's YAML file."""

import reprlib
from collections.abc import Iterator
from dataclasses import fields
from functools import cache
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
from attn2mask.builders.errors import UserError
from attn2mask.builders.words.english import plural

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
        content = yaml.safe_load(path.read_bytes())
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
    for known in TABLES:
        table = load_table(known)
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

    def typed(self, value: Any, key: str, kind: type, expected: str) -> Any:
        # In Python bool is an int, and YAML reads a bare `no` as a bool.
        if not isinstance(value, kind) or (isinstance(value, bool) and kind is not bool):
            shown = "is missing" if value is None else f"is {_shown(value)}"
            raise self.fail(key, f"{shown}, but must be {expected}")
        return value

    def keys(self, mapping: dict, key: str, known: tuple[str, ...]) -> None:
        for unknown in mapping:
            if unknown not in known:
                name = str(unknown)[:60]
                advice = "write color" if name == "colour" else f"the keys are {', '.join(known)}"
                raise self.fail(f"{key}{name}", f"is not a key of a class table: {advice}")

    def word(self, value: Any, key: str) -> str:
        word = self.typed(value, key, str, "text (put words such as no, on or 7 in quotes)").strip()
        if not spelling(word) or SURROGATE.search(word):
            raise self.fail(key, "has no word in it")
        return word

    def folder(self, value: Any, key: str) -> str:
        name = self.word(value, key)
        if name[0] == "." or not name.isprintable() or {"/", "\\"} & {*name}:
            raise self.fail(key, f"is {_shown(name)}, which cannot name a folder: leave out / and \\")
        return name

    def words(self, value: Any, key: str) -> tuple[str, ...]:
        items = self.typed(value, key, list, "a list of words")
        return tuple(self.word(item, f"{key}[{i}]") for i, item in enumerate(items))

    def color(self, value: Any, key: str) -> Color:
        match value:
            case [int(red), int(green), int(blue)] if min(value) >= 0 and max(value) <= 255:
                return red, green, blue
        raise self.fail(key, f"is {_shown(value)}, but must be three numbers from 0 to 255")

    def label(self, value: Any, key: str, mask_id: int) -> LabelClass:
        value = self.typed(value, key, dict, "a mapping with a name")
        self.keys(value, f"{key}.", ("name", "base", "aliases", "color", "thing"))
        name = self.word(value.get("name"), f"{key}.name")
        base = self.words(value["base"], f"{key}.base") if "base" in value else (name, plural(name))
        if not base:
            raise self.fail(f"{key}.base", "is empty, so no caption could name the class")
        return LabelClass(
            name=name,
            base=base,
            aliases=self.words(value.get("aliases", []), f"{key}.aliases"),
            color=self.color(value.get("color", [*default_color(mask_id)]), f"{key}.color"),
            thing=self.typed(value.get("thing", True), f"{key}.thing", bool, "true or false"),
        )

    def caption_style(self, value: Any, classes: tuple[LabelClass, ...]) -> CaptionStyle:
        value = self.typed(value, "caption_style", dict, "a mapping such as {aspect: 2}")
        self.keys(value, "caption_style.", tuple(field.name for field in fields(CaptionStyle)))
        aspect = value.get("aspect", 1.0)
        if isinstance(aspect, bool) or not isinstance(aspect, int | float) or not 0.1 <= aspect <= 10:
            raise self.fail(
                "caption_style.aspect", f"is {_shown(aspect)}, but must be a number from 0.1 to 10"
            )
        lists = ("openings", "places", "weather", "light")
        return CaptionStyle(
            aspect=float(aspect),
            balance=self.typed(value.get("balance", False), "caption_style.balance", bool, "true or false"),
            usual=self.positions(value.get("usual", []), "caption_style.usual", classes),
            things=self.range(value.get("things", [1, 3]), "caption_style.things"),
            stuff=self.range(value.get("stuff", [1, 3]), "caption_style.stuff"),
            **{name: self.words(value.get(name, []), f"caption_style.{name}") for name in lists},
            phrases=self.phrases(value.get("phrases", {}), classes),
        )

    def range(self, value: Any, key: str) -> tuple[int, int]:
        match value:
            case [int(least), int(most)] if 0 <= least <= most <= MOST_NAMED:
                return least, most
        raise self.fail(key, f"is {_shown(value)}, but must be two numbers such as [1, 3]")

    def positions(self, value: Any, key: str, classes: tuple[LabelClass, ...]) -> tuple[int, ...]:
        names = [label.name for label in classes]
        words = self.words(value, key)
        for word in words:
            if word not in names:
                raise self.fail(key, f"has {word!r}, which is not the name of a class")
        return tuple(names.index(word) for word in words)

    def phrases(self, value: Any, classes: tuple[LabelClass, ...]) -> tuple[tuple[str, ...], ...]:
        value = self.typed(value, "caption_style.phrases", dict, "a mapping from classes to lists of words")
        self.keys(value, "caption_style.phrases.", tuple(label.name for label in classes))
        found = []
        for label in classes:
            key = f"caption_style.phrases.{label.name}"
            phrases = self.words(value.get(label.name, []), key)
            for phrase in phrases:
                if not any(f" {spelling(word)} " in f" {spelling(phrase)} " for word in label.base):
                    raise self.fail(key, f"has {phrase!r}, which has no base name of the class in it")
            found.append(phrases)
        return tuple(found) if value else ()

    def table(self, content: Any) -> ClassTable:
        content = self.typed(content, "the file", dict, "a mapping with a name and classes")
        self.keys(content, "", ("name", "background", "ignore", "classes", "compounds", "caption_style"))
        background = content.get("background", True)
        if background not in (True, False, "background", "other"):
            raise self.fail("background", f"is {_shown(background)}, but must be true, false or other")
        background = {True: "background", False: None}.get(background, background)
        items = self.typed(content.get("classes"), "classes", list, "a list of classes")
        if not items:
            raise self.fail("classes", "is empty")
        first_id = int(background is not None)
        if len(items) + first_id > 65535:
            raise self.fail("classes", f"has {len(items)} entries, more than a 16-bit mask can hold")
        classes = tuple(self.label(item, f"classes[{i}]", first_id + i) for i, item in enumerate(items))
        table = ClassTable(
            name=self.folder(content.get("name"), "name"),
            classes=classes,
            background=background,
            compounds=self.words(content.get("compounds", []), "compounds"),
            ignore=content.get("ignore"),
            caption_style=self.caption_style(content["caption_style"], classes)
            if "caption_style" in content
            else None,
        )
        largest = 255 if len(table.names) <= 254 else 65535
        if table.ignore is not None and not (
            type(table.ignore) is int and len(table.names) <= table.ignore <= largest
        ):
            raise self.fail(
                "ignore",
                f"is {_shown(table.ignore)}, but must lie between {len(table.names)} and {largest}",
            )
        self.check_distinct(table)
        return table

    def check_distinct(self, table: ClassTable) -> None:
        owners: dict[str, tuple[int, str]] = {}
        if table.background:
            owners[table.background] = (-1, table.background)
        for index, label in enumerate(table.classes):
            for word in (label.name, *label.base, *label.aliases):
                owner, owner_name = owners.setdefault(spelling(word), (index, label.name))
                if owner != index:
                    shared = f"{owner_name!r} and {label.name!r} share the name or alias {word!r}"
                    raise self.fail("classes", shared)
        for compound in table.compounds:
            if spelling(compound) in owners:
                owner_name = owners[spelling(compound)][1]
                raise self.fail("compounds", f"{compound!r} is also a name or alias of {owner_name!r}")


def wordnet_ids(name: str) -> tuple[str, ...]:
    """The WordNet ids of a set of ImageNet-S ("n01443537"), in the order of the classes of its table."""
    return tuple(wnid for wnid, *_ in _imagenet_s_lines(name))


def _imagenet_s(name: str) -> ClassTable:
    """ImageNet-S 50, 300 or 919, from one file for all three. Its header names the sources of the words."""
    classes: list[LabelClass] = []
    for _, label, synonyms, hyponyms in _imagenet_s_lines(name):
        words = synonyms.split("; ")
        others = tuple(words[1:]) + tuple(filter(None, hyponyms.split("; ")))
        base = tuple(dict.fromkeys(form for word in words for form in (word, plural(word))))
        classes.append(LabelClass(label, base, others, default_color(len(classes) + 1)))
    file = _FOLDER / "imagenet_s.yaml"
    style = yaml.safe_load(file.read_bytes())
    names = {label.name for label in classes}
    style["phrases"] = {label: phrases for label, phrases in style["phrases"].items() if label in names}
    return ClassTable(
        name, tuple(classes), "other", caption_style=_Reader(str(file)).caption_style(style, tuple(classes))
    )


def _imagenet_s_lines(name: str) -> Iterator[list[str]]:
    """WordNet id, class name, synonyms and hyponyms of each class in a set."""
    size = int(name.rsplit("_", 1)[1])
    for line in (_FOLDER / "imagenet_s.tsv").read_text("utf-8").splitlines():
        if not line.startswith("#"):
            wnid, smallest, *words = line.split("\t")
            if int(smallest) <= size:
                yield [wnid, *words]
