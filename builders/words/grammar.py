"""The built-in grammar: captions in the style of COCO's, for any class table and for the drawn worlds.

`caption` writes the captions of a build that is given none: of one to three things, or, for a table with a
caption style, of a whole scene.
"""

from collections.abc import Collection, Sequence

import numpy as np

from attn2mask.builders.classes import ClassTable, LabelClass, spelling
from attn2mask.builders.words.english import UNCOUNTABLE, article, plural

USUAL = 0.9  # probability that a caption names a class that is usual in the table's caption style
NUMBERS = {2: ("two", "two", "a couple of"), 3: ("three", "three", "several")}
OPENINGS = ("", "", "", "", "", "a picture of ", "a photo of ", "there is ", "a close up of ", "a view of ")
ADJECTIVES = tuple("large small big little old new nice colorful bright".split())
VERBS = tuple("||||standing|sitting|shown|seen|resting|waiting|that is|parked|placed".split("|"))
JOINTS = ("and", "and", "and", "next to", "beside", "with", "near", "by")

# Where a thing may be. Captions of tables of things choose from all of them, for every class.
PLACES = tuple(
    "in a grassy field|on the grass|in a meadow|in a park|on the beach|by the sea|on a road|on a city street"
    "|in a parking lot|on a dirt road|in a living room|in a bedroom|on a wooden floor|on a rug|in a kitchen"
    "|on a tiled floor|in the snow|in the desert|in front of mountains|at night|at sunset"
    "|in front of a plain background||".split("|")
)
# Where the classes of some base names usually are. Three of four captions of such a class choose from these.
HAUNTS = {
    "boat": ("on the water", "in the ocean", "on a lake", "on a river", "on the beach"),
    "airplane": ("in the sky", "in a blue sky", "on a runway", "at an airport", "in the clouds"),
    "train": ("on the tracks", "on train tracks", "on a railway", "in front of mountains"),
    "bus": ("on a road", "on the street", "on a city street", "in a parking lot"),
    "sofa": ("in a living room", "in a room", "on a wooden floor", "against a plain wall"),
    "monitor": ("in a room", "in an office", "on the floor", "against a plain wall"),
    "table": ("in a kitchen", "in a room", "on a wooden floor", "on a rug"),
    "bottle": ("in a kitchen", "in front of a plain background", "on the floor", "on a tiled floor"),
    "chair": ("in a room", "in an office", "on a rug", "on a wooden floor"),
}


def nouns(label: LabelClass) -> list[str]:
    """The base names of a class without those that are the plural of another; all of them if none is left."""
    base = list(label.base)
    many = {spelling(plural(word)) for word in base} | {"people", "men", "women", "busses"}
    single = [word for word in base if spelling(word) not in many or plural(word) == word]
    return single or base


def phrase(noun: str, count: int, rng: np.random.Generator, adjective: str = "") -> str:
    """A noun phrase for `count` things: "a red bus", "two dogs", "three sheep", "greenery"."""
    lead = f"{adjective} " if adjective else ""
    if count > 1:
        options = NUMBERS[min(count, 3)]
        return f"{options[rng.integers(len(options))]} {lead}{plural(noun)}"
    return lead + noun if noun in UNCOUNTABLE else f"{article(lead + noun)} {lead}{noun}"


def sentence(phrases: Sequence[str], place: str, rng: np.random.Generator) -> str:
    """A caption in the style of COCO's, made of one to three noun phrases and a place (may be empty)."""
    opening = OPENINGS[rng.integers(len(OPENINGS))]
    verb = VERBS[rng.integers(len(VERBS))]
    if len(phrases) == 3:
        subject = f"{phrases[0]}, {phrases[1]} and {phrases[2]}"
    else:
        subject = f" {JOINTS[rng.integers(len(JOINTS))]} ".join(phrases)
    if verb and place:
        place = f"{verb} {place}"
    return _punctuated(f"{opening}{subject} {place}".strip(), rng)


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
        adjective = ADJECTIVES[rng.integers(len(ADJECTIVES))] if rng.random() < 0.1 else ""
        phrases.append(phrase(noun, number, rng, adjective) if label.thing else f"the {noun}")
    places = PLACES
    if rng.random() < 0.75:
        places = next((HAUNTS[word] for word in chosen[0].base if word in HAUNTS), PLACES)
    return sentence(phrases, places[rng.integers(len(places))], rng)


def scene_caption(table: ClassTable, rng: np.random.Generator, balance_class: int | None = None) -> str:
    """A caption in the caption style of `table`: "a photo of two cars and a road downtown at dusk". The token
    limit of a model cuts off the phrases after the classes first.
    """
    style = table.caption_style
    named = describe(table, scene_classes(table, rng, range(len(table.classes)), balance_class), rng)
    opening, *rest = (
        options[rng.integers(len(options))] if options and rng.random() < 0.6 else ""
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
        return options[rng.integers(len(options))]
    noun = nouns(label)[rng.integers(min(2, len(nouns(label))))]
    number = 2 if label.thing and noun not in UNCOUNTABLE and rng.random() < 0.12 else 1
    return phrase(noun, number, rng) if label.thing else f"the {noun}"
