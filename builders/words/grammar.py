"""The built-in grammar: captions in the style of COCO's, for any class table and for the drawn worlds.

`caption` writes the captions of a build that is given none: of one to three things, or, for a table with a
caption style, of a whole scene.
"""

from collections.abc import Collection, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import yaml

from attn2mask.builders.classes import ClassTable, LabelClass, spelling
from attn2mask.builders.words.english import UNCOUNTABLE, article, plural

USUAL = 0.9  # probability that a caption names a class that is usual in the table's caption style
WORDS: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("grammar.yaml").read_text("utf-8"))


def nouns(label: LabelClass) -> list[str]:
    """The base names of a class without those that are the plural of another; all of them if none is left."""
    base = list(label.base)
    many = {spelling(plural(word)) for word in base} | {"people", "men", "women", "busses"}
    single = [word for word in base if spelling(word) not in many or plural(word) == word]
    return single or base


def usual_places(label: LabelClass) -> list[str]:
    """Where a class usually is; all places if the grammar does not say it."""
    usual = WORDS["usual_places"]
    return next((usual[word] for word in label.base if word in usual), WORDS["places"])


def pick(options: Sequence[str], rng: np.random.Generator) -> str:
    """One of the options, each with the same probability."""
    return options[int(rng.integers(len(options)))]


def phrase(noun: str, count: int, rng: np.random.Generator, adjective: str = "") -> str:
    """A noun phrase for `count` things: "a red bus", "two dogs", "three sheep", "greenery"."""
    lead = f"{adjective} " if adjective else ""
    if count > 1:
        return f"{pick(WORDS['numbers'][min(count, 3)], rng)} {lead}{plural(noun)}"
    return lead + noun if noun in UNCOUNTABLE else f"{article(lead + noun)} {lead}{noun}"


def sentence(phrases: Sequence[str], place: str, rng: np.random.Generator) -> str:
    """A caption in the style of COCO's, made of one to three noun phrases and a place (may be empty)."""
    opening, verb = pick(WORDS["openings"], rng), pick(WORDS["verbs"], rng)
    if len(phrases) == 3:
        subject = f"{phrases[0]}, {phrases[1]} and {phrases[2]}"
    else:
        subject = f" {pick(WORDS['joints'], rng)} ".join(phrases)
    if verb and place:
        place = f"{verb} {place}"
    return _punctuated(" ".join(filter(None, (opening, subject, place))), rng)


def caption(table: ClassTable, rng: np.random.Generator, balance_class: int | None = None) -> str:
    """A caption that names classes of `table`: as many as its caption style asks for, or else one to three.
    `balance_class` (a position in `table.classes`) is one of them if it is given.
    """
    if table.caption_style is not None:
        return scene_caption(table, rng, balance_class)
    first = int(rng.integers(len(table.classes))) if balance_class is None else balance_class
    count = min(int(rng.choice([1, 2, 3], p=[0.65, 0.28, 0.07])), len(table.classes))
    others = [c for c in rng.permutation(len(table.classes))[: count + 1] if c != first][: count - 1]
    chosen = [table.classes[c] for c in (first, *others)]
    phrases = []
    for label in chosen:
        options = nouns(label)
        noun = options[rng.integers(min(2, len(options)))]
        number = 2 if label.thing and count == 1 and rng.random() < 0.12 else 1
        adjective = pick(WORDS["adjectives"], rng) if rng.random() < 0.1 else ""
        phrases.append(phrase(noun, number, rng, adjective) if label.thing else f"the {noun}")
    places = usual_places(chosen[0]) if rng.random() < 0.75 else WORDS["places"]
    return sentence(phrases, pick(places, rng), rng)


def scene_caption(table: ClassTable, rng: np.random.Generator, balance_class: int | None = None) -> str:
    """A caption in the caption style of `table`: "a photo of two cars and a road downtown at dusk". The token
    limit of a model cuts off the phrases after the classes first.
    """
    style = table.caption_style
    named = describe(table, scene_classes(table, rng, range(len(table.classes)), balance_class), rng)
    opening, *rest = (
        pick(options, rng) if options and rng.random() < 0.6 else ""
        for options in (style.openings, style.places, style.weather, style.light)
    )
    return _punctuated(" ".join(filter(None, [opening, named, *rest])), rng)


def _punctuated(text: str, rng: np.random.Generator) -> str:
    if rng.random() < 0.5:
        text = text[:1].upper() + text[1:]
    return text + ("." if rng.random() < 0.5 else "")


def scene_classes(
    table: ClassTable, rng: np.random.Generator, among: Collection[int], balance_class: int | None = None
) -> list[int]:
    """The classes that a caption names, from `among` (positions in `table.classes`, at least one), with
    `balance_class` if it is given.
    """
    style = table.caption_style
    chosen = [] if balance_class is None else [balance_class]
    for thing, (least, most) in ((True, style.things), (False, style.stuff)):
        others = [k for k in among if table.classes[k].thing == thing and k not in (*chosen, *style.usual)]
        count = int(rng.integers(least, most + 1)) - sum(table.classes[k].thing == thing for k in chosen)
        chosen += [int(k) for k in rng.permutation(others)[: max(count, 0)]]
    chosen += [k for k in style.usual if k in among and k not in chosen and rng.random() < USUAL]
    return chosen or [int(rng.choice(list(among)))]


def describe(table: ClassTable, classes: Collection[int], rng: np.random.Generator) -> str:
    """Classes (positions) in the words of the table's style, things first: "two cars, trees and a road"."""
    ordered = sorted(classes, key=lambda k: not table.classes[k].thing)
    phrases = [_scene_phrase(table, k, rng) for k in ordered]
    return " and ".join(filter(None, [", ".join(phrases[:-1]), phrases[-1]]))


def _scene_phrase(table: ClassTable, class_index: int, rng: np.random.Generator) -> str:
    """How a caption of a scene names a class: by one of the table's phrases, or else by a base name."""
    label = table.classes[class_index]
    options = table.caption_style.phrases[class_index] if table.caption_style.phrases else ()
    if options:
        return pick(options, rng)
    noun = nouns(label)[rng.integers(min(2, len(nouns(label))))]
    number = 2 if label.thing and noun not in UNCOUNTABLE and rng.random() < 0.12 else 1
    return phrase(noun, number, rng) if label.thing else f"the {noun}"
