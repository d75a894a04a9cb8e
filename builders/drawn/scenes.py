"""Scenes of the drawn worlds: images with exact masks, and the facts that their captions mention.

The embedded painter is trained on `objects` and `studies`, and has never seen the other worlds.

    objects    one to three things of VOC's 20 classes in front of a calm backdrop
    variety    the same with all kinds of things that can be drawn, most of them unknown to the painter
    shifted    the things of `objects` in another style: outlines, hatching and pale colors on toned paper
    studies    the words of Cityscapes as single things and plain grounds, never as a street
    streets    streets as a camera in a car sees them; every pixel has one of Cityscapes' classes

Every scene is a function of its seed:

    scene = draw_scene("objects", np.random.default_rng([seed, index]))
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache

import numpy as np
from PIL import Image

from attn2mask.builders.drawn import animals, furnishings, street, vehicles  # noqa: F401 (they register their kinds)
from attn2mask.builders.drawn.canvas import PALETTE, SUPERSAMPLE, Pen, Style
from attn2mask.builders.drawn.kinds import Kind, kinds_of
from attn2mask.builders.drawn.street import BACKDROPS, GROUNDS, draw_backdrop, draw_ground
from attn2mask.builders.drawn.streetscape import draw_street
from attn2mask.builders.table_reader import load_table

VOC_THINGS = load_table("voc").names[1:]  # without the background
STUDY_THINGS = tuple(
    "building|wall|fence|pole|traffic light|traffic sign|vegetation|terrain|rider|truck".split("|")
)
#: The kinds in `objects` and `shifted`, two or three of each class. The embedded painter learns these; it is
#: too small for more. It knows the words of other kinds ("canoe", "armchair") as synonyms of their class.
PAINTED = frozenset(
    "airliner plane_from_below diamond_bicycle city_bike songbird owl sailboat ship bottle squeeze_bottle "
    "single_decker double_decker sedan pickup cat_sitting kitten dining_chair office_chair cow holstein "
    "dining_table round_table dog puppy horse pony motorcycle scooter person_standing woman portrait "
    "leafy_plant cactus sheep frontal_sheep couch sectional steam_locomotive bullet_train flat_screen "
    "tube_television".split()
)
WORLDS = ("objects", "variety", "shifted", "studies", "streets")

_WATER, _AIR = "water beach".split(), "sky sky mountains sunset night plain field".split()
_INDOORS = "room floor kitchen rug plain pattern room".split()
_OUTDOORS = "field field beach road dirt snow desert mountains night sunset plain".split()
_HABITAT = {
    "train": ("tracks", "tracks", "field", "mountains", "plain"),
    "aeroplane": ("sky", "sky", "runway", "mountains", "sunset", "plain"),
    **dict.fromkeys(("bottle", "chair", "diningtable", "sofa", "tvmonitor"), _INDOORS),
    **dict.fromkeys(("cat", "dog", "person", "pottedplant"), (*_INDOORS, *_OUTDOORS)),
    **dict.fromkeys(("bus", "car", "motorbike", "bicycle", "truck"), ("road", "road", *_OUTDOORS)),
}


@dataclass(frozen=True)
class Thing:
    """What was drawn: its kind, and the palette's name of its body color."""

    kind: Kind
    color: str


@dataclass(frozen=True)
class DrawnScene:
    """A drawn image with its exact mask.

    Attributes:
        image: (H, W, 3) uint8.
        mask: (H, W) uint8. 0 is background, k is the k-th of `VOC_THINGS`, counted from 1. In `studies` the
            thing is 255. In `streets` these are Cityscapes' train ids, and 255 is unlabeled.
        things: from back to front; empty for a plain ground and for streets.
        place: the phrase of the backdrop ("on a sandy beach", may be empty), or the ground's name.
        light: the phrase of the time of day or weather in `streets` ("at dusk"), else empty.
    """

    image: np.ndarray
    mask: np.ndarray
    things: tuple[Thing, ...]
    place: str
    light: str = ""


def shown_in(world: str, kind: Kind) -> bool:
    """Whether scenes of `world` may show `kind`."""
    return world == "variety" or kind.thing not in VOC_THINGS or kind.draw.__name__ in PAINTED


def random_style(world: str, rng: np.random.Generator) -> Style:
    """The drawing style of one scene. That of `shifted` is unknown to the painter."""
    if world == "shifted":
        return Style(
            outline=rng.uniform(1.2, 2.0),
            light=0.0,
            saturation=rng.uniform(0.25, 0.55),
            value=rng.uniform(0.75, 1.1),
            jitter=0.12,
            grain=rng.uniform(6, 12),
            wobble=rng.uniform(0.004, 0.012),
            hatch=rng.uniform(0.25, 0.5),
        )
    return Style(
        outline=float(rng.choice([0, 0, 0.6, 0.9])),
        light=rng.uniform(0.05, 0.3),
        light_angle=rng.uniform(0.6, 2.5),
        saturation=rng.uniform(0.75, 1.1),
        value=rng.uniform(0.85, 1.05),
        grain=0.0,
    )


def random_things(rng: np.random.Generator, pool: Sequence[str], shares: Sequence[float]) -> tuple[str, ...]:
    """Classes of the things of one scene. `shares` are the probabilities of one thing, two things and so on.

    At times, all of them are of one class.
    """
    count = 1 + int(rng.choice(len(shares), p=shares)) if len(shares) > 1 else 1
    things = tuple(pool[i] for i in rng.integers(len(pool), size=count))
    return (things[0],) * count if count > 1 and rng.random() < 0.15 else things


def draw_scene(
    world: str,
    rng: np.random.Generator,
    size: int | tuple[int, int] = 128,
    things: tuple[str, ...] | None = None,
) -> DrawnScene:
    """One scene of `world` with `size` x `size` pixels, or (height, width), which may differ for `streets`.

    `things` are the classes of its things, which are random by default. Streets have no such choice. Raises
    ValueError for an unknown world, and for a size or things that the world does not have.
    """
    if world not in WORLDS:
        raise ValueError(f"no drawn world named {world!r}; there are {', '.join(WORLDS)}")
    height, width = (size, size) if isinstance(size, int) else size
    if world == "streets":
        if things is not None:
            raise ValueError("the things of a street can't be chosen")
        image, mask, place, light = draw_street((height, width), rng)
        return DrawnScene(image, mask, (), place, light)
    if height != width:
        raise ValueError(f"scenes of {world!r} are square, not {height} x {width}")
    size = height
    style = random_style(world, rng)
    if world == "studies" and things is None and rng.random() < 0.4:
        name = GROUNDS[rng.integers(len(GROUNDS))]
        image = draw_ground(name, (size, size), style, rng)
        return DrawnScene(_finish(image, style, rng), np.full((size, size), 255, np.uint8), (), name)
    if things is None:
        pool = STUDY_THINGS if world == "studies" else VOC_THINGS
        things = random_things(rng, pool, (1.0,) if world == "studies" else (0.55, 0.35, 0.10))
    kinds = [_choose([k for k in kinds_of(t) if shown_in(world, k)], rng) for t in things]
    backdrop = _choose_backdrop(kinds, rng)
    image, horizon = draw_backdrop(backdrop, (size, size), style, rng)
    side = size * SUPERSAMPLE
    canvas = np.asarray(Image.fromarray(image).resize((side, side), Image.Resampling.BILINEAR)).copy()
    ids = np.zeros((side, side), np.uint8)
    drawn = []
    for kind, transform in _arrange(kinds, horizon, side, rng):
        color = list(PALETTE)[rng.integers(len(PALETTE))]
        pen = Pen((side, side), transform, style, rng, color)
        kind.draw(pen)
        rgb, covered = pen.finish()
        canvas[covered] = rgb[covered]
        ids[covered] = VOC_THINGS.index(kind.thing) + 1 if kind.thing in VOC_THINGS else 255
        drawn.append(Thing(kind, pen.body_name))  # some kinds choose green or red
    image = np.asarray(Image.fromarray(canvas).resize((size, size), Image.Resampling.BOX))
    center = SUPERSAMPLE // 2
    phrases = BACKDROPS[backdrop]
    return DrawnScene(
        _finish(image, style, rng),
        ids[center::SUPERSAMPLE, center::SUPERSAMPLE].copy(),
        tuple(drawn),
        phrases[rng.integers(len(phrases))],
    )


def _choose(options: list, rng: np.random.Generator):
    return options[rng.integers(len(options))]


def _choose_backdrop(kinds: list[Kind], rng: np.random.Generator) -> str:
    """A backdrop where the first thing may be; at times any, so that it does not reveal the class."""
    if rng.random() < 0.2:
        return _choose(sorted(BACKDROPS), rng)
    first = kinds[0]
    default = {"water": _WATER, "air": _AIR}.get(first.place, _OUTDOORS)
    return _choose(list(_HABITAT.get(first.thing, default) if first.place != "air" else _AIR), rng)


def _arrange(
    kinds: list[Kind], horizon: float, side: int, rng: np.random.Generator
) -> list[tuple[Kind, np.ndarray]]:
    """Positions of the things, from back to front: side by side in random order, the lower ones in front."""
    n = len(kinds)
    shrink = {1: 1.0, 2: 0.7, 3: 0.55}[n]
    order = rng.permutation(n)
    placed = []
    for slot, k in enumerate(order):
        kind = kinds[k]
        larger = side * rng.uniform(*kind.scale) * shrink * rng.uniform(0.92, 1.08)
        w, h = (larger, larger / kind.aspect) if kind.aspect >= 1 else (larger * kind.aspect, larger)
        slack = max(0.0, side - w)
        middle = side * (slot + 0.5) / n + rng.normal(0, side * 0.04)
        x = float(np.clip(middle - w / 2, 0, slack)) if n > 1 else rng.uniform(0.1, 0.9) * slack
        if kind.place == "air":
            foot = h + rng.uniform(0.05, 0.75) * max(0.0, side - h)
        else:  # stands on the ground: its foot lies below the horizon
            foot = side * rng.uniform(min(horizon + 0.18, 0.9), 0.97)
            foot = min(max(foot, h + 0.01 * side), side * 0.99)
        flip = -1 if rng.random() < 0.5 else 1
        angle = rng.normal(0, 0.12 if kind.place == "air" else 0.025)
        c, s = np.cos(angle), np.sin(angle)
        linear = np.array([[c, -s], [s, c]]) @ np.diag([flip * w, h])
        center = np.array([x + w / 2, foot - h / 2])
        placed.append((foot, kind, np.column_stack([linear, center - linear @ [0.5, 0.5]])))
    return [(kind, transform) for _, kind, transform in sorted(placed, key=lambda p: p[0])]


@cache
def _hatching(size: int) -> np.ndarray:
    y, x = np.mgrid[:size, :size]
    return np.sin((x + y) * 2 * np.pi / 5).astype(np.float32)


def _finish(image: np.ndarray, style: Style, rng: np.random.Generator) -> np.ndarray:
    """Add grain and hatching to the whole image."""
    if not style.grain and not style.hatch:
        return image
    out = image.astype(np.float32)
    if style.hatch:
        darkness = 1 - out.mean(-1, keepdims=True) / 255
        out = out * (1 - style.hatch * darkness * (_hatching(len(out))[..., None] > 0))
    out += rng.normal(0, style.grain, out.shape)
    return np.clip(out, 0, 255).astype(np.uint8)
