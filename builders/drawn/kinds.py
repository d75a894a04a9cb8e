"""The register of things that can be drawn: each kind of a class is one function that draws it with a pen."""

from collections.abc import Callable
from dataclasses import dataclass

from attn2mask.builders.drawn.canvas import Pen


@dataclass(frozen=True)
class Kind:
    """One drawable kind of a class.

    Attributes:
        thing: the class it belongs to: a VOC name ("bus", "diningtable") or a Cityscapes name ("traffic
            light").
        names: words of this kind alone ("double-decker bus"); words of the class in general come from its
            table.
        draw: draws it into the pen's unit box, facing right if it faces anywhere, standing on y = 1.
        aspect: width over height of its natural box.
        place: where it stands: "ground", "air" or "water".
        scale: the larger side of its box over the image's side, as the largest object of a scene.
    """

    thing: str
    names: tuple[str, ...]
    draw: Callable[[Pen], None]
    aspect: float = 1.0
    place: str = "ground"
    scale: tuple[float, float] = (0.62, 0.92)


KINDS: list[Kind] = []


def kind(
    thing: str,
    *names: str,
    aspect: float = 1.0,
    place: str = "ground",
    scale: tuple[float, float] = (0.62, 0.92),
):
    """Register the decorated `draw(pen)` as a kind of `thing`."""

    def register(draw: Callable[[Pen], None]) -> Callable[[Pen], None]:
        KINDS.append(Kind(thing, names, draw, aspect, place, scale))
        return draw

    return register


def kinds_of(thing: str) -> list[Kind]:
    """All kinds registered for a class, in the order of their registration."""
    return [k for k in KINDS if k.thing == thing]
