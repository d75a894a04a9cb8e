"""Living things: birds, cats, cows, dogs, horses, sheep, people and riders, each as a few bold shapes.

A drawing is first laid out in free coordinates (x to the right, y UP, the ground at 0, any unit) on a
`Sketch`, which then fits it into the pen's box in every pose. Shapes added together share one
silhouette: only their common outline is inked, so a body, its neck and its near legs read as one animal.
"""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import wraps

import numpy as np

from attn2mask.builders.drawn.canvas import Color, Pen, shade, smooth
from attn2mask.builders.drawn.kinds import kind

Spot = tuple[float, float]


def oval(cx: float, cy: float, rx: float, ry: float | None = None, angle: float = 0.0) -> np.ndarray:
    """An ellipse, turned counter-clockwise by `angle`."""
    t = np.linspace(0, 2 * np.pi, 24, endpoint=False)
    x, y = rx * np.cos(t), (rx if ry is None else ry) * np.sin(t)
    c, s = np.cos(angle), np.sin(angle)
    return np.stack([cx + x * c - y * s, cy + x * s + y * c], 1)


def blob(*points: Spot) -> np.ndarray:
    """A smooth closed shape through `points`."""
    return smooth(points)


def poly(*points: Spot) -> np.ndarray:
    """A straight-edged shape."""
    return np.array(points, dtype=np.float64)


def limb(points: list[Spot], widths: list[float]) -> np.ndarray:
    """A curved stroke through `points` of varying width, with round ends."""
    c = smooth(points, closed=False, steps=5)
    w = np.interp(np.linspace(0, len(points) - 1, len(c)), np.arange(len(points)), widths)[:, None] / 2
    d = np.gradient(c, axis=0)
    d /= np.maximum(np.linalg.norm(d, axis=1, keepdims=True), 1e-9)
    n = np.stack([-d[:, 1], d[:, 0]], 1)
    t = np.linspace(0, np.pi, 6)[1:-1, None]
    head = c[-1] + w[-1] * (np.cos(t) * n[-1] + np.sin(t) * d[-1])
    tail = c[0] + w[0] * (-np.cos(t) * n[0] - np.sin(t) * d[0])
    return np.concatenate([c + n * w, head, (c - n * w)[::-1], tail])


def cloud(cx: float, cy: float, rx: float, ry: float, bumps: int, depth: float = 0.13) -> np.ndarray:
    """An ellipse with a scalloped rim: wool, pompoms, curls."""
    t = np.linspace(0, 2 * np.pi, bumps * 8, endpoint=False)
    r = 1 - depth + depth * 2 * (np.abs(np.sin(t * bumps / 2)) - 0.5)
    return np.stack([cx + rx * r * np.cos(t), cy + ry * r * np.sin(t)], 1)


def contrast(pen: Pen, color: Color) -> Color:
    """A color for noses and mouths that shows on `color`."""
    return pen.dark if sum(color) > 270 else shade(color, 1.55)


class Sketch:
    """Shapes in free coordinates, y up; `finish` fits them into the pen's box and draws them."""

    def __init__(self, pen: Pen) -> None:
        self.pen = pen
        self._layers: list[tuple[Color, list[np.ndarray], bool, bool]] = []
        self._matrix, self._shift = np.eye(2), np.zeros(2)

    def add(self, color: Color, *shapes: np.ndarray, atop: bool = False, outline: bool = True) -> None:
        """Add `shapes` as one silhouette; `atop` ones only recolor what is there."""
        placed = [s @ self._matrix.T + self._shift for s in shapes]
        self._layers.append((color, placed, atop, outline and not atop))

    @contextmanager
    def frame(self, x: float, y: float, angle: float = 0.0, size: float = 1.0) -> Iterator[None]:
        """Within it, coordinates are local: scaled, turned counter-clockwise by `angle`, moved to x, y."""
        old = self._matrix, self._shift
        c, s = np.cos(angle), np.sin(angle)
        local = np.array([[c, -s], [s, c]]) * size
        self._shift = old[0] @ np.array([x, y]) + old[1]
        self._matrix = old[0] @ local
        try:
            yield
        finally:
            self._matrix, self._shift = old

    def finish(self, aspect: float, centerd: bool = False) -> None:
        """Draw everything, as large as the box allows (stretched by at most 12 per cent)."""
        every = np.concatenate([p for _, shapes, atop, _ in self._layers if not atop for p in shapes])
        low, high = every.min(0), every.max(0)
        full = np.array([aspect, 1.0]) / (high - low)
        scale = np.minimum(full, full.min() * 1.12)
        middle = (low + high) / 2
        offset = np.array([0.5, 0.5 if centerd else 1 - (middle[1] - low[1]) * scale[1]])
        for color, shapes, atop, outline in self._layers:
            fitted = [(p - middle) * scale * [1 / aspect, -1] + offset for p in shapes]
            if atop:
                with self.pen.atop():
                    for p in fitted:
                        self.pen.polygon(p, color, outline=False)
                continue
            for p in fitted:
                self.pen.polygon(p, color, outline)
            if outline and self.pen.style.outline > 0 and len(fitted) > 1:  # hide inner lines
                for p in fitted:
                    self.pen.polygon(p, color, outline=False)


def animal(
    thing: str,
    *names: str,
    aspect: float = 1.0,
    place: str = "ground",
    scale: tuple[float, float] = (0.62, 0.92),
) -> Callable[[Callable[[Sketch], None]], Callable[[Pen], None]]:
    """Register a drawing made on a `Sketch`."""

    def register(sketch: Callable[[Sketch], None]) -> Callable[[Pen], None]:
        @kind(thing, *names, aspect=aspect, place=place, scale=scale)
        @wraps(sketch)
        def draw(pen: Pen) -> None:
            s = Sketch(pen)
            sketch(s)
            s.finish(aspect, centerd=place == "air")

        return draw

    return register


def eye(s: Sketch, x: float, y: float, r: float, look: float = 0.15) -> None:
    """A round light eye with a dark pupil."""
    s.add(s.pen.light, oval(x, y, r), outline=False)
    s.add(s.pen.dark, oval(x + r * look, y, r * 0.66), outline=False)


Legs = tuple[list[np.ndarray], list[np.ndarray], list[np.ndarray]]


def four_legs(
    pen: Pen,
    hind: float,
    fore: float,
    top: float,
    thick: float,
    thin: float,
    stride: float,
    hock: float = 0.0,
    paw: float = 0.0,
    shift: float = 0.1,
    lift: float = 0.0,
) -> Legs:
    """Far legs, near legs and hooves (as shapes) of a four-legged body whose legs start at height `top`.

    `hock` bends the hind legs backwards, `paw` adds a foot that points forwards, else the feet end in
    hooves; `shift` moves the far legs inwards, `lift` raises feet that swing forwards.
    """
    p = pen.between(0, 2 * np.pi)
    far: list[np.ndarray] = []
    near: list[np.ndarray] = []
    hooves: list[np.ndarray] = []
    for x, turn, hindleg, side in (
        (hind + shift, p + np.pi, True, far),
        (fore - shift, p, False, far),
        (hind, p, True, near),
        (fore, p + np.pi, False, near),
    ):
        fx, fy = x + stride * np.sin(turn), lift * max(0.0, np.cos(turn))
        middle = (x + fx) / 2
        if hindleg:
            path = [
                (x, top),
                (middle + hock * 0.4, top * 0.66),
                (fx - hock, top * 0.36 + fy),
                (fx, thin * 0.4 + fy),
            ]
        else:
            path = [
                (x, top),
                (middle, top * 0.7),
                (middle * 0.6 + fx * 0.4 + lift * 0.3, top * 0.45 + fy * 0.8),
            ]
            path.append((fx - fy * 0.5, thin * 0.4 + fy))
        side.append(limb(path, [thick, thick * 0.8, thin, thin]))
        ex, ey = path[-1]
        if paw:
            side.append(oval(ex + paw * 0.5, ey - thin * 0.4 + paw * 0.45, paw, paw * 0.5))
        else:
            w, y0 = thin * 0.66, ey - thin * 0.4
            h = thin * 0.9
            hooves.append(
                poly((ex - w, y0), (ex + w * 1.2, y0), (ex + w * 0.8, y0 + h), (ex - w * 0.8, y0 + h))
            )
    return far, near, hooves


# Horses


def horse_head(s: Sketch, mane: Color, size: float) -> None:
    """A long wedge of a head along the local x axis, the poll at the origin."""
    pen = s.pen
    with s.frame(0, 0, 0, size):
        s.add(shade(pen.body, 0.75), poly((-0.05, 0.06), (-0.12, 0.3), (0.1, 0.12)))
        s.add(
            pen.body,
            blob(
                (-0.1, 0.1),
                (0.12, 0.13),
                (0.42, 0.08),
                (0.58, 0.05),
                (0.62, -0.05),
                (0.54, -0.12),
                (0.35, -0.1),
                (0.16, -0.19),
                (-0.04, -0.16),
            ),
            poly((-0.12, 0.05), (-0.02, 0.33), (0.08, 0.1)),
        )
        s.add(
            shade(pen.body, 0.6),
            blob((0.47, 0.06), (0.59, 0.04), (0.62, -0.05), (0.54, -0.11), (0.46, -0.08)),
            outline=False,
        )
        s.add(mane, blob((-0.12, 0.16), (0.02, 0.19), (0.2, 0.09), (0.08, 0.06)), outline=False)
        eye(s, 0.17, 0.03, 0.05)


def equine(
    s: Sketch, leg: float, neck: float, nod: float, head: float, mane: float, gait: str, heavy: float = 1.0
) -> None:
    """A horse on legs of length `leg`: `neck` and `nod` are the neck's and head's angles."""
    pen = s.pen
    body, far = pen.body, shade(pen.body, 0.7)
    hair = pen.pick(pen.accent, shade(pen.body, 0.45), pen.dark, pen.light)
    back, belly = leg + 0.47, leg + 0.47 - 0.42 * heavy
    nx, ny = 0.36 + 0.72 * np.cos(neck), back - 0.14 + 0.72 * np.sin(neck)
    # tail
    flow = pen.between(0.0, 1.0) if gait != "gallop" else 2.2
    tail = [
        (-0.6, back - 0.04),
        (-0.76 - 0.08 * flow, back - 0.06),
        (-0.84 - 0.17 * flow, back - 0.42 + 0.12 * flow),
        (-0.8 - 0.26 * flow, back - 0.75 + 0.22 * flow),
    ]
    s.add(hair, limb(tail, [0.09, 0.16 * mane, 0.2 * mane, 0.05]))
    # legs
    if gait == "gallop":
        u = pen.between(-0.08, 0.08)
        top = belly + 0.14
        near = [
            limb(
                [(0.36, top), (0.68, top - 0.06 + u), (0.86, belly - 0.1), (1.08, belly - 0.28 + u)],
                [0.24, 0.17, 0.1, 0.09],
            ),
            limb(
                [(-0.46, top + 0.1), (-0.58, belly), (-0.86, belly - 0.16), (-1.1, belly - 0.42 + u)],
                [0.36, 0.26, 0.11, 0.09],
            ),
        ]
        distant = [
            limb(
                [(0.4, top), (0.7, top + 0.05), (0.82, belly - 0.08), (0.68, belly - 0.24)],
                [0.2, 0.15, 0.1, 0.09],
            ),
            limb(
                [(-0.4, top), (-0.44, belly - 0.05), (-0.66, belly - 0.28), (-0.8, belly - 0.55)],
                [0.3, 0.2, 0.11, 0.09],
            ),
        ]
        hooves = [
            oval(1.1, belly - 0.3 + u, 0.08, 0.06, -0.6),
            oval(-1.13, belly - 0.45 + u, 0.08, 0.06, 0.7),
        ]
    else:
        lift = 0.16 if gait == "trot" else 0.0
        stout, stride = (0.23 * heavy, 0.085 * heavy), 0.2 if lift else 0.09
        distant, near, hooves = four_legs(pen, -0.44, 0.36, belly + 0.18, *stout, stride, 0.09, lift=lift)
    s.add(far, *distant)
    trunk = blob(
        (-0.5, back),
        (-0.15, back - 0.06),
        (0.3, back + 0.02),
        (0.54, back - 0.18),
        (0.46, belly + 0.06),
        (0.1, belly),
        (-0.25, belly + 0.06),
        (-0.55, belly + 0.12),
        (-0.66, back - 0.16),
    )
    bend = (0.5 * 0.34 + 0.5 * nx + 0.05, 0.5 * (back - 0.14) + 0.5 * ny - 0.03)
    path = [(0.3, back - 0.18), bend, (nx, ny)]
    s.add(body, trunk, limb(path, [0.5, 0.33, 0.23]), *near)
    s.add(pen.dark if sum(body) > 200 else shade(body, 1.4), *hooves, outline=False)
    # mane along the back of the neck, then the head over it
    d = np.array([np.cos(neck), np.sin(neck)])
    n = np.array([-d[1], d[0]])
    poll, withers = np.array([nx, ny]), np.array([0.2, back - 0.02])
    base = [
        withers + (poll - withers) * t + n * o for t, o in ((0.0, 0.0), (0.35, 0.1), (0.7, 0.1), (1.0, 0.1))
    ]
    wave = [
        withers + (poll - withers) * t + n * (0.13 + 0.09 * mane * (1 + (i % 2) * 0.6)) - d * 0.05
        for i, t in enumerate((1.0, 0.84, 0.68, 0.52, 0.36, 0.2))
    ]
    inner = [p - n * 0.12 * mane for p in base]
    s.add(hair, smooth([tuple(p) for p in inner + wave]))
    with s.frame(nx, ny + 0.02, nod):
        horse_head(s, hair, head)
    if pen.chance(0.2) and gait != "gallop":  # a saddle
        s.add(
            pen.accent,
            blob(
                (-0.2, back - 0.02),
                (0.05, back + 0.03),
                (0.18, back + 0.0),
                (0.12, back - 0.25),
                (-0.12, back - 0.25),
            ),
        )


@animal("horse", aspect=1.1)
def horse(s: Sketch) -> None:
    """Standing or trotting: long legs, arched neck, mane and flowing tail."""
    pen = s.pen
    neck = pen.between(0.75, 1.15)
    equine(
        s,
        pen.between(0.6, 0.72),
        neck,
        neck - pen.between(1.45, 1.75),
        pen.between(0.88, 1.0),
        pen.between(0.8, 1.1),
        pen.pick("stand", "trot"),
    )


@animal("horse", aspect=1.65)
def galloping_horse(s: Sketch) -> None:
    """At full stretch, the legs thrown out and the tail flying."""
    pen = s.pen
    neck = pen.between(0.55, 0.85)
    equine(s, 0.6, neck, neck - pen.between(1.2, 1.4), 1.02, pen.between(0.9, 1.2), "gallop")


@animal("horse", "pony", aspect=1.28)
def pony(s: Sketch) -> None:
    """Shorter legs, a stout body and neck, a thick mane."""
    pen = s.pen
    neck = pen.between(0.7, 1.0)
    equine(
        s,
        pen.between(0.4, 0.46),
        neck,
        neck - pen.between(1.5, 1.75),
        pen.between(1.0, 1.1),
        pen.between(1.5, 1.8),
        "stand",
        1.15,
    )


# Cows


def horn_pair(s: Sketch, size: float, color: Color) -> None:
    """Two curved horns on a frontal head of half width 1."""
    for d in (-1, 1):
        path = [
            (d * 0.55, 0.75),
            (d * (0.75 + 0.35 * size), 0.95),
            (d * (0.8 + 0.45 * size), 1.0 + 0.75 * size),
        ]
        s.add(color, limb(path, [0.3, 0.26, 0.08]))


def cow_face(s: Sketch, muzzle: Color, horn: Color, horns: float, blaze: Color | None) -> None:
    """A frontal head about the origin, half width about 1: side ears, horns, a broad muzzle."""
    pen = s.pen
    horn_pair(s, horns, horn)
    for d in (-1, 1):
        s.add(shade(pen.body, 0.7), oval(d * 1.12, 0.42, 0.45, 0.22, -d * 0.25))
    s.add(
        pen.body,
        blob((-0.7, 0.75), (0, 0.92), (0.7, 0.75), (0.72, 0.1), (0.55, -0.8), (-0.55, -0.8), (-0.72, 0.1)),
    )
    if blaze:
        s.add(blaze, blob((0, 0.88), (0.24, 0.5), (0.16, -0.4), (-0.16, -0.4), (-0.24, 0.5)), atop=True)
    s.add(muzzle, oval(0, -0.75, 0.72, 0.46))
    for d in (-1, 1):
        s.add(shade(muzzle, 0.4), oval(d * 0.3, -0.7, 0.12, 0.15), outline=False)
        eye(s, d * 0.42, 0.22, 0.19, 0.0)


def cow_profile(s: Sketch, muzzle: Color, horn: Color, horns: float) -> None:
    """A head seen from the side, the poll at the origin, the face along the local x axis."""
    pen = s.pen
    s.add(
        shade(horn, 0.75),
        limb([(0.02, 0.12), (0.14, 0.2 + 0.1 * horns), (0.12, 0.24 + 0.26 * horns)], [0.1, 0.08, 0.03]),
    )
    s.add(
        pen.body,
        blob(
            (-0.14, 0.12),
            (0.05, 0.19),
            (0.3, 0.12),
            (0.55, 0.09),
            (0.6, -0.05),
            (0.52, -0.18),
            (0.25, -0.17),
            (0.05, -0.24),
            (-0.15, -0.18),
        ),
    )
    s.add(muzzle, oval(0.5, -0.05, 0.13, 0.155))
    s.add(shade(muzzle, 0.4), oval(0.55, 0.0, 0.03, 0.035), outline=False)
    s.add(shade(pen.body, 0.65), oval(-0.16, 0.02, 0.2, 0.09, 0.5))
    s.add(
        horn,
        limb([(-0.05, 0.14), (0.0, 0.22 + 0.1 * horns), (-0.06, 0.28 + 0.28 * horns)], [0.12, 0.1, 0.03]),
    )
    eye(s, 0.16, 0.04, 0.055)


def bovine(s: Sketch, horns: float, bull: bool = False, patches: bool = False) -> None:
    """A blocky body on short legs, with an udder unless it is a `bull`."""
    pen = s.pen
    body, far = pen.body, shade(pen.body, 0.7)
    leg = pen.between(0.36, 0.46)
    low, back = leg - 0.06, leg + 0.56
    hump = 0.16 if bull else 0.0
    muzzle = pen.pick(
        shade(pen.accent, 1.3), shade(body, 1.5) if sum(body) < 560 else shade(body, 0.7), pen.color("pink")
    )
    horn = pen.pick(pen.light, shade(pen.light, 0.85), shade(pen.accent, 1.5))
    swing = pen.between(-0.08, 0.08)
    tail = [
        (-0.76, back - 0.03),
        (-0.9, back - 0.1),
        (-0.9 + swing, back - 0.4),
        (-0.9 + 2 * swing, back - 0.62),
    ]
    s.add(far, limb(tail, [0.07, 0.06, 0.05, 0.05]))
    s.add(contrast(pen, body), oval(-0.9 + 2 * swing, back - 0.68, 0.065, 0.12), outline=False)
    distant, near, hooves = four_legs(
        pen, -0.58, 0.44, low + 0.2, 0.25, 0.125, pen.between(0.03, 0.12), 0.05, shift=0.15
    )
    s.add(far, *distant)
    if not bull:
        udder = pen.pick(pen.color("pink"), shade(pen.accent, 1.4))
        s.add(
            udder,
            oval(-0.3, low + 0.02, 0.17, 0.15),
            oval(-0.36, low - 0.13, 0.035, 0.06),
            oval(-0.24, low - 0.13, 0.035, 0.06),
        )
    up = pen.between(-0.2, 0.12)
    hx, hy = 0.92, back - 0.08 + up + hump * 0.3
    trunk = blob(
        (-0.77, back - 0.05),
        (-0.66, back + 0.02),
        (-0.2, back - 0.01),
        (0.25, back + hump),
        (0.56, back + hump * 0.7),
        (0.7, back - 0.25),
        (0.6, low + 0.0),
        (0.2, low - 0.01),
        (-0.2, low + 0.02),
        (-0.62, low + 0.05),
        (-0.78, low + 0.2),
    )
    s.add(body, trunk, limb([(0.45, back - 0.24), (hx - 0.06, hy - 0.05)], [0.56 + hump, 0.34]), *near)
    s.add(pen.dark if sum(body) > 200 else shade(body, 1.4), *hooves, outline=False)
    if patches:
        for x, r in ((-0.56, 0.2), (-0.1, 0.24), (0.36, 0.2)):
            y = pen.between(low + 0.3, back - 0.04)
            spot = [
                (
                    x + r * pen.between(0.6, 1.25) * np.cos(a),
                    y + min(r, y - low - 0.06) * pen.between(0.7, 1.2) * np.sin(a),
                )
                for a in np.linspace(0, 2 * np.pi, 7)[:-1]
            ]
            s.add(pen.accent, blob(*spot), atop=True)
        if pen.chance(0.5):
            s.add(pen.accent, oval(pen.pick(-0.3, 0.14), low + 0.18, 0.1, 0.08), atop=True)
    if pen.chance(0.5):
        with s.frame(hx, hy, 0, 0.29 if bull else 0.27):
            cow_face(s, muzzle, horn, horns, pen.accent if patches or pen.chance(0.25) else None)
    else:
        with s.frame(hx - 0.06, hy + 0.06, -pen.between(0.35, 0.8), 1.05):
            cow_profile(s, muzzle, horn, horns)


@animal("cow", aspect=1.55)
def cow(s: Sketch) -> None:
    """A plain standing cow."""
    bovine(s, s.pen.between(0.5, 0.9))


@animal("cow", "holstein", "dairy cow", aspect=1.6)
def holstein(s: Sketch) -> None:
    """A cow with patches of a second color."""
    bovine(s, s.pen.between(0.3, 0.7), patches=True)


@animal("cow", "bull", "steer", aspect=1.5)
def bull(s: Sketch) -> None:
    """Big horns, a hump of a shoulder, no udder."""
    bovine(s, s.pen.between(1.2, 1.6), bull=True)


# Sheep


def sheep_face(s: Sketch, face: Color, wool: Color, ram: bool = False) -> None:
    """A frontal head about the origin, half height about 1: a long face, drooping ears, a cap of wool."""
    pen = s.pen
    for d in (-1, 1):
        s.add(shade(face, 0.8), oval(d * 0.85, 0.25, 0.5, 0.22, d * -0.35))
    s.add(
        face,
        blob((-0.55, 0.7), (0, 0.9), (0.55, 0.7), (0.5, -0.2), (0.3, -0.95), (-0.3, -0.95), (-0.5, -0.2)),
    )
    s.add(wool, cloud(0, 0.8, 0.72, 0.45, 7, 0.16))
    if ram:
        horn_curl(s)
    for d in (-1, 1):
        eye(s, d * 0.3, 0.1, 0.17, 0.0)
    s.add(contrast(pen, face), poly((-0.2, -0.55), (0.2, -0.55), (0.0, -0.78)), outline=False)


def horn_curl(s: Sketch) -> None:
    """Two spiral horns beside a frontal head."""
    color = s.pen.pick(s.pen.light, shade(s.pen.accent, 1.3))
    for d in (-1, 1):
        path = [(0.35, 0.8), (0.95, 0.95), (1.3, 0.4), (1.05, -0.2), (0.72, 0.05), (0.85, 0.35)]
        s.add(color, limb([(d * x, y) for x, y in path], [0.36, 0.4, 0.36, 0.28, 0.2, 0.12]))


def face_color(pen: Pen) -> Color:
    """The bare skin of a sheep: dark, light or a shade of the wool."""
    return pen.pick(shade(pen.dark, 1.12), shade(pen.body, 0.45), pen.accent, shade(pen.accent, 0.6))


def wool_curls(s: Sketch, wool: Color, spots: list[Spot], r: float) -> None:
    """Little arcs of curls on the fleece."""
    for x, y in spots:
        path = [(x + r * np.cos(t), y + r * np.sin(t)) for t in (3.3, 4.2, 5.1, 6.1)]
        s.add(shade(wool, 0.8), limb(path, [0.035] * 4), atop=True)


def ovine(s: Sketch, head: Spot, profile: bool, ram: bool = False, size: float = 0.25) -> None:
    """A cloud of wool on thin legs, the head about `head`."""
    pen = s.pen
    wool, face = pen.body, face_color(pen)
    leg = pen.between(0.26, 0.36)
    distant, near, _ = four_legs(
        pen, -0.42, 0.4, leg + 0.15, 0.11, 0.09, pen.between(0.02, 0.09), 0.02, shift=0.16
    )
    s.add(shade(face, 0.75), *distant)
    s.add(face, *near)
    s.add(wool, cloud(-0.72, leg + 0.42, 0.15, 0.17, 5, 0.15))
    s.add(wool, cloud(0, leg + 0.34, 0.76, 0.44, pen.pick(12, 13, 14), 0.09))
    wool_curls(
        s,
        wool,
        [(-0.42, leg + 0.45), (-0.1, leg + 0.28), (-0.08, leg + 0.6), (0.24, leg + 0.46), (-0.4, leg + 0.14)],
        0.09,
    )
    x, y = head[0], head[1] + leg
    if not profile:
        with s.frame(x, y, 0, size * 1.2):
            sheep_face(s, face, wool, ram)
        return
    with s.frame(x, y, -pen.between(0.5, 0.8), size * 1.15):
        s.add(
            face,
            blob(
                (-0.75, 0.45),
                (0, 0.62),
                (0.75, 0.35),
                (1.2, 0.2),
                (1.25, -0.25),
                (0.7, -0.45),
                (-0.1, -0.6),
                (-0.7, -0.4),
            ),
        )
        s.add(contrast(pen, face), oval(1.18, 0.05, 0.1, 0.12), outline=False)
        eye(s, 0.35, 0.15, 0.17)
        s.add(wool, cloud(-0.5, 0.38, 0.62, 0.48, 7, 0.16))
        s.add(shade(face, 0.8), oval(-0.45, -0.15, 0.52, 0.2, 0.6))


@animal("sheep", aspect=1.4)
def sheep(s: Sketch) -> None:
    """A cloud on thin legs, the face to the side or to the viewer."""
    pen = s.pen
    ovine(
        s, (pen.between(0.74, 0.82), pen.between(0.42, 0.66)), pen.chance(0.5), size=pen.between(0.24, 0.29)
    )


@animal("sheep", "ewe", aspect=1.6)
def ewe(s: Sketch) -> None:
    """Hornless, long-faced, often with the head low."""
    pen = s.pen
    ovine(s, (0.84, pen.between(0.12, 0.5)), True, size=0.29)


@animal("sheep", "ram", aspect=1.35)
def ram(s: Sketch) -> None:
    """With a pair of spiral horns."""
    pen = s.pen
    ovine(s, (pen.between(0.62, 0.72), pen.between(0.48, 0.66)), False, ram=True, size=0.26)


@animal("sheep", aspect=0.95)
def frontal_sheep(s: Sketch) -> None:
    """Seen from the front: a ball of wool, the face in its middle."""
    pen = s.pen
    wool, face = pen.body, face_color(pen)
    for d in (-1, 1):
        s.add(shade(face, 0.7), limb([(d * 0.2, 0.4), (d * 0.2, 0.05)], [0.1, 0.1]))
    for d in (-1, 1):
        s.add(face, limb([(d * 0.33, 0.4), (d * pen.between(0.33, 0.4), 0.05)], [0.13, 0.11]))
    s.add(wool, cloud(0, 0.66, 0.62, 0.5, pen.pick(11, 12, 13), 0.1))
    wool_curls(s, wool, [(-0.42, 0.7), (0.42, 0.7), (-0.25, 0.36), (0.25, 0.36)], 0.08)
    with s.frame(pen.between(-0.06, 0.06), pen.between(0.68, 0.82), 0, pen.between(0.33, 0.38)):
        sheep_face(s, face, wool)


# Dogs


def dog_profile(s: Sketch, ear: Color, snout: float = 1.0, floppy: bool = True) -> None:
    """A head seen from the side, the skull's middle at the origin and its radius 1."""
    pen = s.pen
    body, mark = pen.body, contrast(pen, pen.body)
    tip = 1.0 + 1.05 * snout
    if pen.chance(0.4):  # the tongue
        s.add(pen.color("pink"), limb([(tip - 0.55, -0.5), (tip - 0.5, -1.0)], [0.34, 0.36]))
    s.add(
        body,
        oval(0, 0, 1.0, 0.95),
        blob(
            (0.4, 0.42), (tip - 0.2, 0.22), (tip, 0.0), (tip - 0.1, -0.42), (0.6, -0.72), (-0.2, -0.8), (0, 0)
        ),
    )
    s.add(
        shade(mark, 1.0),
        limb([(tip - 0.15, -0.36), (tip - 0.6, -0.4), (tip - 0.95, -0.26)], [0.1, 0.1, 0.1]),
        atop=True,
    )
    s.add(mark, oval(tip - 0.06, 0.12, 0.26, 0.22), outline=False)
    eye(s, 0.48, 0.28, 0.2)
    if floppy:
        s.add(
            ear,
            blob(
                (-0.55, 0.8),
                (-0.05, 0.72),
                (0.05, 0.1),
                (-0.1, -0.85),
                (-0.5, -1.05),
                (-0.85, -0.6),
                (-0.8, 0.2),
            ),
        )
    else:
        s.add(ear, blob((-0.75, 0.5), (-0.5, 1.7), (-0.3, 1.6), (0.2, 0.75), (-0.2, 0.5)))


def collar(s: Sketch, a: Spot, b: Spot, width: float) -> None:
    """A band across a neck."""
    s.add(s.pen.accent, limb([a, b], [width, width]), outline=False)


@animal("dog", aspect=1.22)
def dog(s: Sketch) -> None:
    """Standing, side view: snout, floppy ear, tucked belly, raised tail."""
    pen = s.pen
    body, far = pen.body, shade(pen.body, 0.7)
    ear = pen.pick(pen.accent, shade(body, 0.55), shade(body, 0.6))
    leg = pen.between(0.3, 0.48)
    back = leg + 0.26
    curl = pen.between(0.0, 1.0)
    tail = [
        (-0.46, back - 0.06),
        (-0.66, back + 0.1),
        (-0.72 + 0.12 * curl, back + 0.33),
        (-0.66 + 0.22 * curl, back + 0.42),
    ]
    s.add(body, limb(tail, [0.13, 0.1, 0.08, 0.04]))
    distant, near, _ = four_legs(
        pen, -0.42, 0.28, leg + 0.1, 0.19, 0.085, pen.between(0.04, 0.16), 0.08, paw=0.085
    )
    s.add(far, *distant)
    hx, hy = 0.5 + pen.between(-0.04, 0.04), back + pen.between(0.24, 0.36)
    trunk = blob(
        (-0.48, back),
        (0, back - 0.02),
        (0.3, back + 0.04),
        (0.45, back - 0.14),
        (0.34, leg - 0.06),
        (0.05, leg + 0.0),
        (-0.25, leg + 0.07),
        (-0.52, leg + 0.06),
    )
    s.add(body, trunk, limb([(0.26, back - 0.12), (hx - 0.04, hy - 0.02)], [0.34, 0.24]), *near)
    if pen.chance(0.35):
        s.add(
            pen.accent,
            blob((-0.3, back + 0.02), (0.1, back + 0.02), (0.08, back - 0.16), (-0.2, back - 0.18)),
            atop=True,
        )
    if pen.chance(0.6):
        collar(s, (hx - 0.23, hy - 0.1), (hx + 0.05, hy - 0.21), 0.07)
    with s.frame(hx, hy, pen.between(-0.2, 0.25), 0.2):
        dog_profile(s, ear, pen.between(0.8, 1.25), pen.chance(0.85))


@animal("dog", "puppy", aspect=1.0)
def puppy(s: Sketch) -> None:
    """Sitting, side view, with a big head."""
    pen = s.pen
    body, far = pen.body, shade(pen.body, 0.7)
    ear = pen.pick(pen.accent, shade(body, 0.55), shade(body, 0.6))
    up = pen.between(0.1, 0.5)
    s.add(body, limb([(-0.3, 0.1), (-0.52, 0.12), (-0.64, 0.2 + up * 0.6)], [0.12, 0.11, 0.06]))
    s.add(far, limb([(0.2, 0.45), (0.26, 0.05)], [0.15, 0.12]), oval(0.31, 0.05, 0.1, 0.05))
    s.add(
        body,
        blob(
            (-0.12, 0.62),
            (0.12, 0.76),
            (0.28, 0.62),
            (0.3, 0.35),
            (0.1, 0.06),
            (-0.3, 0.03),
            (-0.44, 0.2),
            (-0.34, 0.45),
        ),
        limb([(0.16, 0.5), (0.14, 0.05)], [0.2, 0.14]),
        oval(0.2, 0.055, 0.12, 0.055),
    )
    s.add(shade(body, 0.82), oval(-0.16, 0.2, 0.2, 0.19), oval(-0.06, 0.05, 0.18, 0.05), outline=False)
    s.add(shade(body, 1.4), oval(0.22, 0.5, 0.09, 0.18, 0.2), atop=True)
    if pen.chance(0.6):
        collar(s, (-0.06, 0.64), (0.27, 0.62), 0.08)
    with s.frame(0.12, 0.88, pen.between(-0.1, 0.25), pen.between(0.26, 0.3)):
        dog_profile(s, ear, pen.between(0.55, 0.8))


@animal("dog", "poodle", aspect=1.0)
def poodle(s: Sketch) -> None:
    """Slim, with pompoms on head, chest, legs and tail."""
    pen = s.pen
    body, far = pen.body, shade(pen.body, 0.7)
    fur = pen.pick(shade(body, 0.8), shade(body, 1.3), pen.accent)
    s.add(body, limb([(-0.4, 0.66), (-0.5, 0.82), (-0.52, 1.0)], [0.07, 0.06, 0.06]))
    s.add(fur, cloud(-0.52, 1.04, 0.13, 0.13, 7))
    for x in (-0.24, 0.2):
        s.add(far, limb([(x, 0.5), (x + pen.between(-0.05, 0.05), 0.04)], [0.12, 0.07]))
        s.add(shade(fur, 0.7), cloud(x, 0.17, 0.1, 0.11, 6))
    legs = [
        limb([(x, 0.55), (x + b, 0.3), (x, 0.04)], [0.18, 0.09, 0.07])
        for x, b in ((-0.38, -0.02), (0.32, 0.0))
    ]
    paws = [oval(x + 0.04, 0.035, 0.08, 0.035) for x in (-0.38, 0.32)]
    s.add(
        body,
        blob((-0.44, 0.7), (0, 0.66), (0.36, 0.72), (0.4, 0.5), (0, 0.48), (-0.44, 0.46)),
        *legs,
        *paws,
        limb([(0.3, 0.66), (0.46, 0.95)], [0.2, 0.14]),
    )
    for x in (-0.38, 0.32):
        s.add(fur, cloud(x, 0.17, 0.13, 0.12, 7))
    s.add(fur, cloud(0.26, 0.6, 0.25, 0.24, 9, 0.1))
    s.add(fur, cloud(-0.4, 0.6, 0.15, 0.15, 7))
    with s.frame(0.52, 1.02, pen.between(-0.1, 0.2), 0.15):
        s.add(body, oval(0, 0, 0.9), blob((0.3, 0.45), (2.0, 0.1), (2.1, -0.2), (1.7, -0.45), (0.3, -0.7)))
        s.add(contrast(pen, body), oval(2.0, 0.02, 0.26, 0.23), outline=False)
        s.add(fur, cloud(-0.15, 1.0, 1.05, 0.85, 8))
        eye(s, 0.62, 0.12, 0.21)
        s.add(fur, cloud(-0.55, -0.45, 0.6, 1.05, 8))


@animal("dog", "bulldog", aspect=1.0)
def bulldog(s: Sketch) -> None:
    """A frontal face with jowls, a flat nose and an underbite."""
    pen = s.pen
    body = pen.body
    mark = contrast(pen, body)
    jowl = pen.pick(shade(body, 1.35), pen.light, pen.accent)
    s.add(
        shade(body, 0.8),
        blob((-0.95, -1.3), (-0.85, -0.7), (0, -0.5), (0.85, -0.7), (0.95, -1.3), (0, -1.32)),
    )
    s.add(
        pen.accent if jowl != pen.accent else shade(body, 0.4),
        limb([(-0.7, -0.9), (0, -1.12), (0.7, -0.9)], [0.2] * 3),
        outline=False,
    )
    for d in (-1, 1):
        s.add(
            shade(body, 0.6),
            blob((d * 0.45, 0.95), (d * 0.85, 1.05), (d * 1.12, 0.6), (d * 1.08, 0.3), (d * 0.75, 0.55)),
        )
    s.add(
        body,
        blob(
            (-0.75, 0.75),
            (0, 0.92),
            (0.75, 0.75),
            (0.95, 0.2),
            (1.0, -0.45),
            (0.6, -0.9),
            (-0.6, -0.9),
            (-1.0, -0.45),
            (-0.95, 0.2),
        ),
    )
    if pen.chance(0.5):
        s.add(jowl, blob((-0.14, 0.88), (0.14, 0.88), (0.22, 0.0), (-0.22, 0.0)), atop=True)
    s.add(shade(jowl, 0.6), oval(0, -0.68, 0.5, 0.26))
    for d in (-1, 1):
        s.add(pen.light, poly((d * 0.3, -0.66), (d * 0.46, -0.66), (d * 0.38, -0.44)), outline=False)
    for d in (-1, 1):
        s.add(
            jowl,
            blob(
                (0, 0.05), (d * 0.45, 0.1), (d * 0.82, -0.3), (d * 0.78, -0.75), (d * 0.42, -0.68), (0, -0.42)
            ),
        )
        eye(s, d * 0.48, 0.32, 0.17, 0.0)
        s.add(
            shade(body, 0.6), limb([(d * 0.2, 0.48), (d * 0.45, 0.6), (d * 0.68, 0.5)], [0.07] * 3), atop=True
        )
    s.add(
        contrast(pen, jowl),
        blob((-0.26, 0.1), (0, 0.16), (0.26, 0.1), (0.18, -0.12), (0, -0.2), (-0.18, -0.12)),
        outline=False,
    )
    s.add(mark if jowl == body else shade(jowl, 0.4), limb([(0, -0.15), (0, -0.45)], [0.06, 0.06]), atop=True)


# Cats


def cat_head(s: Sketch, stripes: Color | None = None, whiskers: bool = False, big: float = 1.0) -> None:
    """A frontal head about the origin, half width about 1: pricked ears, slit eyes (`big` times larger)."""
    pen = s.pen
    body = pen.body
    mark = contrast(pen, body)
    iris = shade(pen.color(pen.pick("yellow", "green", "orange", "teal", "blue")), 1.2)
    ears = [poly((d * 0.98, 0.25), (d * 0.9, 1.32), (d * 0.2, 0.72)) for d in (-1, 1)]
    s.add(body, oval(0, 0, 1.05, 0.88), *ears)
    for d in (-1, 1):
        inner = shade(body, 0.6) if sum(body) > 330 else shade(body, 1.45)
        s.add(inner, poly((d * 0.84, 0.5), (d * 0.82, 1.08), (d * 0.42, 0.74)), outline=False)
    if stripes:
        for x in (-0.28, 0, 0.28):
            s.add(stripes, limb([(x, 0.9), (x * 0.8, 0.45)], [0.16, 0.07]), atop=True)
        for d in (-1, 1):
            s.add(stripes, poly((d * 1.1, 0.05), (d * 1.1, -0.12), (d * 0.72, -0.08)), atop=True)
            s.add(stripes, poly((d * 1.05, -0.3), (d * 1.0, -0.46), (d * 0.66, -0.34)), atop=True)
    s.add(
        shade(body, 1.45) if sum(body) < 600 else shade(body, 0.85),
        oval(-0.22, -0.44, 0.3, 0.25),
        oval(0.22, -0.44, 0.3, 0.25),
        outline=False,
    )
    for d in (-1, 1):
        s.add(iris, oval(d * 0.45, 0.1, 0.26 * big, 0.24 * big), outline=False)
        s.add(pen.dark, oval(d * 0.45, 0.1, 0.1 * big**2.5, 0.22 * big), outline=False)
        if big > 1:
            s.add(pen.light, oval(d * 0.45 + 0.1, 0.22, 0.08), outline=False)
    s.add(
        pen.pick(mark, pen.dark, pen.color("pink")),
        poly((-0.16, -0.2), (0.16, -0.2), (0, -0.4)),
        outline=False,
    )
    for d in (-1, 1):
        s.add(pen.dark, limb([(0, -0.42), (d * 0.12, -0.58), (d * 0.3, -0.52)], [0.06] * 3), atop=True)
    if whiskers:
        for d in (-1, 1):
            for y, e in ((-0.32, -0.2), (-0.5, -0.58)):
                s.add(
                    pen.pick(pen.dark, pen.light),
                    limb([(d * 0.55, y), (d * 1.4, e)], [0.05, 0.04]),
                    outline=False,
                )


def sitting_cat(s: Sketch, stripes: Color | None, head: float = 0.25) -> None:
    """Sitting, seen from the front: a pear of a body, the tail curving up beside it."""
    pen = s.pen
    body = pen.body
    reach = pen.between(0.42, 0.55)
    if pen.chance(0.5):
        tail = [(0.15, 0.1), (reach, 0.1), (reach + 0.06, 0.38), (reach - 0.08, 0.58), (reach + 0.04, 0.74)]
    else:
        tail = [(0.15, 0.08), (reach, 0.08), (reach + 0.1, 0.24), (reach, 0.42)]
    s.add(shade(body, 0.85), limb(tail, [0.12, 0.12, 0.11, 0.1, 0.08][: len(tail)]))
    if stripes:
        s.add(stripes, oval(*tail[-1], 0.06), oval(*tail[2], 0.05), atop=True)
    s.add(
        body,
        blob(
            (0, 0.72),
            (0.2, 0.6),
            (0.28, 0.35),
            (0.37, 0.12),
            (0.22, 0.0),
            (-0.22, 0.0),
            (-0.37, 0.12),
            (-0.28, 0.35),
            (-0.2, 0.6),
        ),
    )
    if stripes:
        for d in (-1, 1):
            for y in (0.2, 0.34, 0.48):
                s.add(stripes, poly((d * 0.4, y + 0.06), (d * 0.4, y - 0.03), (d * 0.14, y)), atop=True)
    s.add(shade(body, 1.4) if sum(body) < 600 else shade(body, 0.85), oval(0, 0.47, 0.13, 0.16), atop=True)
    for d in (-1, 1):
        s.add(body, limb([(d * 0.09, 0.42), (d * 0.1, 0.06)], [0.15, 0.13]), oval(d * 0.11, 0.045, 0.1, 0.05))
    line = shade(body, 0.5) if sum(body) > 250 else shade(body, 1.3)
    s.add(line, limb([(0, 0.38), (0, 0.03)], [0.025, 0.025]), atop=True)
    with s.frame(pen.between(-0.04, 0.04), 0.64 + head, pen.between(-0.15, 0.15), head):
        cat_head(s, stripes, whiskers=pen.chance(0.6))


def walking_cat(s: Sketch, stripes: Color | None) -> None:
    """Side view: a long low body, the tail raised high, the face to the viewer."""
    pen = s.pen
    body, far = pen.body, shade(pen.body, 0.7)
    leg = pen.between(0.22, 0.3)
    back = leg + 0.25
    hook = pen.between(-0.16, 0.16)
    tail = [
        (-0.48, back - 0.06),
        (-0.68, back + 0.02),
        (-0.74, back + 0.25),
        (-0.7 + hook * 0.3, back + 0.42),
        (-0.7 + hook, back + 0.52),
    ]
    s.add(body, limb(tail, [0.11, 0.1, 0.09, 0.09, 0.08]))
    distant, near, _ = four_legs(
        pen, -0.42, 0.34, leg + 0.08, 0.17, 0.085, pen.between(0.05, 0.14), 0.06, paw=0.07
    )
    s.add(far, *distant)
    hx, hy = 0.54, back + pen.between(0.06, 0.18)
    s.add(
        body,
        blob(
            (-0.52, back - 0.02),
            (-0.3, back + 0.02),
            (0.05, back - 0.03),
            (0.36, back + 0.0),
            (0.48, back - 0.14),
            (0.32, leg - 0.02),
            (0, leg + 0.02),
            (-0.3, leg + 0.03),
            (-0.56, leg + 0.08),
        ),
        limb([(0.34, back - 0.12), (hx, hy)], [0.26, 0.22]),
        *near,
    )
    if stripes:
        for x in (-0.42, -0.27, -0.12, 0.03, 0.18):
            s.add(
                stripes,
                poly((x - 0.04, back + 0.03), (x + 0.04, back + 0.03), (x + 0.03, back - 0.17)),
                atop=True,
            )
        for p in tail[2:]:
            s.add(stripes, oval(*p, 0.055, 0.032), atop=True)
    with s.frame(hx, hy, pen.between(-0.15, 0.15), 0.21):
        cat_head(s, stripes, whiskers=pen.chance(0.4))


def stripe_color(pen: Pen) -> Color:
    """The stripes of a tabby: the body's own color, darker or lighter."""
    return shade(pen.body, 0.5) if sum(pen.body) > 250 else shade(pen.body, 1.4)


@animal("cat", aspect=0.8)
def cat_sitting(s: Sketch) -> None:
    """A plain cat that sits."""
    sitting_cat(s, None, s.pen.between(0.23, 0.27))


@animal("cat", aspect=1.25)
def cat_walking(s: Sketch) -> None:
    """A plain cat that walks."""
    walking_cat(s, None)


@animal("cat", "tabby cat", aspect=0.95)
def tabby_cat(s: Sketch) -> None:
    """A striped cat."""
    s.pen.pick(sitting_cat, walking_cat)(s, stripe_color(s.pen))


@animal("cat", "kitten", aspect=1.0)
def kitten(s: Sketch) -> None:
    """A close-up of a big face over small shoulders."""
    pen = s.pen
    body = pen.body
    s.add(
        shade(body, 0.85), blob((-0.6, -1.25), (-0.5, -0.7), (0, -0.4), (0.5, -0.7), (0.6, -1.25), (0, -1.28))
    )
    s.add(shade(body, 1.4) if sum(body) < 600 else shade(body, 0.8), oval(0, -1.0, 0.26, 0.3), atop=True)
    if pen.chance(0.3):
        s.add(pen.accent, limb([(-0.45, -0.85), (0, -0.98), (0.45, -0.85)], [0.13] * 3), outline=False)
    with s.frame(0, 0, pen.between(-0.12, 0.12), 1.0):
        cat_head(s, stripe_color(pen) if pen.chance(0.3) else None, True, pen.between(1.2, 1.35))


# Birds


def bird_foot(s: Sketch, x: float, top: float, color: Color) -> None:
    """A thin leg with a forked foot on the ground."""
    s.add(
        color,
        limb([(x, top), (x + 0.02, 0.03)], [0.045, 0.04]),
        limb([(x - 0.06, 0.02), (x + 0.12, 0.02)], [0.04, 0.04]),
        outline=False,
    )


@animal("bird", "songbird", "sparrow", aspect=1.3)
def songbird(s: Sketch) -> None:
    """A plump little bird in profile: round head, short beak, folded wing, thin legs."""
    pen = s.pen
    body = pen.body
    wing = pen.pick(pen.accent, shade(body, 0.6))
    beak = pen.pick(pen.color("orange"), pen.color("yellow"), pen.dark, pen.accent)
    leg = pen.between(0.16, 0.26)
    tilt = pen.between(-0.1, 0.3)
    feet = pen.pick(beak, pen.dark)
    for x in (-0.04, 0.12):
        bird_foot(s, x, leg + 0.12, feet)
    with s.frame(0, leg + 0.32, tilt):
        s.add(wing, poly((-0.25, 0.08), (-0.86, -0.02), (-0.88, -0.16), (-0.25, -0.12)))
        s.add(beak, poly((0.52, 0.4), (0.82, 0.29), (0.5, 0.2)))
        s.add(
            body,
            blob(
                (-0.45, 0.02),
                (-0.1, 0.24),
                (0.1, 0.42),
                (0.35, 0.52),
                (0.56, 0.38),
                (0.54, 0.14),
                (0.42, -0.16),
                (0.1, -0.33),
                (-0.25, -0.24),
            ),
        )
        s.add(
            pen.pick(shade(body, 1.5), pen.accent, shade(body, 1.3)),
            blob((0.5, 0.12), (0.42, -0.14), (0.1, -0.32), (0.02, -0.22), (0.26, 0.02)),
            atop=True,
        )
        s.add(wing, blob((0.16, 0.16), (0.18, -0.06), (-0.1, -0.17), (-0.62, -0.1), (-0.3, 0.1)))
        eye(s, 0.4, 0.34, 0.07)


def flying_bird(s: Sketch, fork: bool, reach: float) -> None:
    """Wings spread wide, seen a little from the side; `reach` is the wings' length."""
    pen = s.pen
    body = pen.body
    wing = pen.pick(shade(body, 0.75), pen.accent, shade(body, 0.6))
    up = pen.between(0.3, 0.75)
    s.add(
        shade(wing, 0.7),
        blob(
            (0.05, 0.06),
            (0.22, 0.28 * up + 0.2),
            (0.5, up * 0.7 * reach + 0.12),
            (0.52 * reach + 0.2, up * reach),
            (0.5, up * 0.45 + 0.1),
            (0.36, 0.02),
        ),
    )
    if fork:
        for d in (-1, 1):
            s.add(
                body, limb([(-0.3, 0), (-0.6, d * 0.06 - 0.02), (-0.98, d * 0.24 - 0.05)], [0.16, 0.12, 0.02])
            )
    else:
        s.add(body, poly((-0.3, 0.1), (-0.78, 0.1), (-0.84, -0.02), (-0.74, -0.14), (-0.3, -0.08)))
    s.add(
        pen.pick(pen.color("orange"), pen.color("yellow"), pen.dark),
        poly((0.56, 0.12), (0.8, 0.02), (0.56, -0.02)),
    )
    s.add(
        body,
        blob(
            (-0.45, 0.02),
            (-0.1, 0.13),
            (0.3, 0.14),
            (0.5, 0.18),
            (0.62, 0.06),
            (0.5, -0.08),
            (0.1, -0.17),
            (-0.25, -0.1),
        ),
    )
    s.add(
        wing,
        blob(
            (0.26, 0.08),
            (0.1, 0.3 * up + 0.26),
            (-0.16, up * 0.75 * reach + 0.2),
            (-0.62 * reach - 0.15, up * reach + 0.12),
            (-0.4, up * 0.45 + 0.1),
            (-0.2, 0.0),
            (0.1, -0.03),
        ),
    )
    if pen.chance(0.5):
        s.add(
            shade(wing, 0.4),
            poly(
                (-0.62 * reach - 0.2, up * reach + 0.22),
                (-0.62 * reach - 0.2, up * reach),
                (-0.34 * reach, up * 0.8 * reach),
                (-0.28 * reach, up * reach),
            ),
            atop=True,
        )
    eye(s, 0.48, 0.07, 0.05)


@animal("bird", "seagull", aspect=1.5, place="air")
def seagull(s: Sketch) -> None:
    """Flying on long wings, with a fan of a tail."""
    with s.frame(0, 0, s.pen.between(-0.15, 0.3)):
        flying_bird(s, False, s.pen.between(1.1, 1.35))


@animal("bird", "swallow", aspect=1.5, place="air")
def swallow(s: Sketch) -> None:
    """Flying, with a deeply forked tail."""
    with s.frame(0, 0, s.pen.between(-0.2, 0.35)):
        flying_bird(s, True, s.pen.between(0.9, 1.15))


@animal("bird", "owl", aspect=0.72)
def owl(s: Sketch) -> None:
    """Frontal, upright, with ear tufts and two huge eyes."""
    pen = s.pen
    body = pen.body
    wing = pen.pick(shade(body, 0.6), pen.accent)
    disc = shade(body, 1.45) if sum(body) < 560 else shade(body, 0.8)
    beak = pen.pick(pen.color("orange"), pen.color("yellow"), pen.dark)
    for d in (-1, 1):
        s.add(beak, *[oval(d * 0.17 + t, 0.03, 0.045, 0.06) for t in (-0.07, 0.0, 0.07)], outline=False)
    tuft = pen.between(0.05, 0.2)
    ears = [poly((d * 0.4, 1.05), (d * 0.42, 1.25 + tuft), (d * 0.06, 1.2)) for d in (-1, 1)]
    s.add(
        body,
        blob(
            (-0.4, 1.14),
            (0, 1.22),
            (0.4, 1.14),
            (0.46, 0.8),
            (0.46, 0.4),
            (0.26, 0.05),
            (-0.26, 0.05),
            (-0.46, 0.4),
            (-0.46, 0.8),
        ),
        *ears,
    )
    s.add(disc, oval(0, 0.4, 0.29, 0.32), atop=True)
    for y in (0.52, 0.36, 0.2):
        for x in (-0.14, 0, 0.14):
            s.add(
                shade(disc, 0.7), poly((x - 0.055, y + 0.03), (x + 0.055, y + 0.03), (x, y - 0.05)), atop=True
            )
    for d in (-1, 1):
        s.add(
            wing, blob((d * 0.4, 0.76), (d * 0.53, 0.5), (d * 0.44, 0.16), (d * 0.3, 0.1), (d * 0.28, 0.45))
        )
        s.add(disc, oval(d * 0.2, 0.93, 0.24))
    iris = pen.color(pen.pick("yellow", "orange", "white"))
    for d in (-1, 1):
        s.add(iris, oval(d * 0.2, 0.93, 0.16), outline=False)
        s.add(pen.dark, oval(d * 0.19, 0.93, 0.09), outline=False)
    s.add(beak, poly((-0.08, 0.86), (0.08, 0.86), (0, 0.66)))


@animal("bird", "parrot", aspect=0.55)
def parrot(s: Sketch) -> None:
    """Upright, with a big hooked beak and a long tail hanging down."""
    pen = s.pen
    body = pen.body
    wing, tail = pen.accent, pen.pick(pen.color(), pen.accent, shade(body, 0.7))
    beak = pen.pick(pen.dark, pen.color("orange"), pen.light, pen.color("yellow"))
    with s.frame(0, 0, pen.between(-0.12, 0.08)):
        s.add(tail, poly((-0.22, 0.75), (-0.34, 0.04), (-0.2, 0.0), (0.04, 0.7)))
        s.add(shade(tail, 0.7), poly((-0.1, 0.7), (-0.2, 0.16), (-0.1, 0.14), (0.08, 0.7)))
        s.add(beak, blob((0.22, 1.44), (0.4, 1.42), (0.5, 1.26), (0.44, 1.08), (0.36, 1.2), (0.22, 1.22)))
        s.add(
            body,
            blob(
                (-0.2, 1.38),
                (0.04, 1.52),
                (0.26, 1.42),
                (0.28, 1.18),
                (0.26, 0.9),
                (0.12, 0.62),
                (-0.16, 0.56),
                (-0.28, 0.85),
                (-0.24, 1.15),
            ),
        )
        s.add(
            shade(body, 1.6) if sum(body) < 560 else shade(body, 0.75),
            oval(0.16, 1.32, 0.13, 0.11),
            atop=True,
        )
        s.add(wing, blob((-0.2, 1.14), (0.0, 1.08), (0.06, 0.85), (-0.1, 0.55), (-0.26, 0.38), (-0.32, 0.8)))
        s.add(
            pen.color(),
            blob((-0.12, 0.72), (0.02, 0.72), (-0.1, 0.52), (-0.26, 0.38), (-0.24, 0.6)),
            atop=True,
        )
        for x in (0.06, 0.16):
            s.add(pen.dark, oval(x, 0.58, 0.05, 0.07), outline=False)
        eye(s, 0.15, 1.33, 0.065)


# People

SKINS = ((236, 196, 168), (224, 172, 138), (198, 140, 100), (158, 104, 70), (118, 76, 52), (84, 54, 40))
HAIRS = ((38, 30, 28), (74, 48, 32), (120, 78, 44), (206, 166, 96), (150, 70, 36), (160, 158, 156))


def tones(pen: Pen) -> tuple[Color, Color]:
    """A person's skin and hair."""
    wash = lambda c: tuple(int(np.clip(v * pen.style.value + pen.rng.normal(0, 5), 0, 255)) for v in c)  # noqa: E731
    return wash(pen.pick(*SKINS)), wash(pen.pick(*HAIRS))


def long_hair(hair_length: float = 1.6) -> np.ndarray:
    """Hair that falls behind a frontal head to `hair_length` below its middle."""
    y = -hair_length
    return blob(
        (-0.95, 0.4), (0, 1.22), (0.95, 0.4), (1.15, y * 0.5), (1.05, y), (-1.05, y), (-1.15, y * 0.5)
    )


def face(s: Sketch, skin: Color, hair: Color, hat: Color | None = None, beard: bool = False) -> None:
    """A frontal head about the origin, half height about 1."""
    pen = s.pen
    s.add(skin, oval(0, 0, 0.8, 1.0), oval(-0.82, -0.05, 0.16, 0.22), oval(0.82, -0.05, 0.16, 0.22))
    if beard:
        s.add(
            hair,
            blob(
                (-0.8, -0.1),
                (-0.55, -0.35),
                (0, -0.3),
                (0.55, -0.35),
                (0.8, -0.1),
                (0.6, -0.95),
                (0, -1.15),
                (-0.6, -0.95),
            ),
        )
    if hat:
        s.add(
            hat,
            blob((-0.75, 0.4), (-0.65, 1.25), (0, 1.35), (0.65, 1.25), (0.75, 0.4)),
            oval(0, 0.48, 1.35, 0.2),
        )
        s.add(shade(hat, 0.5), poly((-0.74, 0.62), (0.74, 0.62), (0.72, 0.82), (-0.72, 0.82)), atop=True)
    else:
        part = pen.between(-0.4, 0.4)
        s.add(
            hair,
            blob(
                (-0.9, 0.0),
                (-0.88, 0.7),
                (0, 1.2),
                (0.88, 0.7),
                (0.9, 0.0),
                (0.68, 0.4),
                (part, 0.55),
                (-0.68, 0.4),
            ),
        )
    for d in (-1, 1):
        s.add(pen.light, oval(d * 0.32, 0.08, 0.17, 0.12), outline=False)
        s.add(pen.dark, oval(d * 0.32, 0.08, 0.1, 0.12), outline=False)
    s.add(shade(skin, 0.75), limb([(0.0, 0.02), (0.05, -0.25)], [0.09, 0.14]), outline=False)
    s.add(
        shade(pen.color("red"), 0.85),
        limb([(-0.26, -0.5), (0, -0.58), (0.26, -0.5)], [0.1, 0.13, 0.1]),
        outline=False,
    )


def arm(s: Sketch, d: int, shoulder: Spot, sleeve: Color, skin: Color, pose: str, bare: bool) -> None:
    """An arm on side `d` (-1 or 1) of a frontal body, hanging, akimbo or raised."""
    pen, (x, y) = s.pen, shoulder
    spread = pen.between(0.05, 0.1)
    elbow, hand = {
        "down": ((x + d * spread * 0.7, y - 0.17), (x + d * spread, y - 0.33)),
        "hip": ((x + d * 0.13, y - 0.15), (x, y - 0.27)),
        "up": ((x + d * 0.14, y + 0.02), (x + d * 0.17, y + 0.2)),
    }[pose]
    s.add(skin, limb([shoulder, elbow, hand], [0.075, 0.06, 0.05]), oval(*hand, 0.036))
    stop = (elbow[0] * 0.2 + hand[0] * 0.8, elbow[1] * 0.2 + hand[1] * 0.8)
    if bare:
        s.add(sleeve, limb([shoulder, elbow], [0.09, 0.078]))
    else:
        s.add(sleeve, limb([shoulder, elbow, stop], [0.09, 0.075, 0.066]))


def standing(
    s: Sketch, skirt: bool = False, long: bool = False, hat: bool = False, beard: bool = False
) -> None:
    """A person seen from the front, about 1 tall."""
    pen = s.pen
    skin, hair = tones(pen)
    shirt, lower = pen.body, pen.accent
    shoe = pen.pick(pen.dark, pen.color())
    gap, tilt = pen.between(0.05, 0.085), pen.between(-0.08, 0.08)
    if long:
        with s.frame(0, 0.915, tilt, 0.112):
            s.add(hair, long_hair(pen.between(1.5, 2.2)))
    for d in (-1, 1):
        if skirt:
            s.add(skin, limb([(d * 0.055, 0.35), (d * 0.055, 0.05)], [0.075, 0.05]))
        else:
            s.add(
                shade(lower, 1.0 if d > 0 else 0.85),
                limb([(d * 0.055, 0.47), (d * gap, 0.05)], [0.125, 0.085]),
            )
        s.add(shoe, oval(d * (0.07 if skirt else gap + 0.015), 0.025, 0.055, 0.028))
    poses = pen.pick(("down", "down"), ("down", "hip"), ("hip", "hip"), ("down", "up"), ("down", "down"))
    wide = 0.115 if skirt else 0.145
    bare = pen.chance(0.5)
    for d, pose in zip((-1, 1), poses, strict=True):
        arm(s, d, (d * wide, 0.755), shade(shirt, 0.85), skin, pose, bare)
    s.add(skin, limb([(0, 0.76), (0, 0.84)], [0.075, 0.075]))
    waist = 0.085 if skirt else 0.12
    s.add(
        shirt,
        blob(
            (-wide, 0.79),
            (-0.05, 0.81),
            (0.05, 0.81),
            (wide, 0.79),
            (wide * 0.95, 0.64),
            (waist, 0.5),
            (0.1, 0.445),
            (-0.1, 0.445),
            (-waist, 0.5),
            (-wide * 0.95, 0.64),
        ),
    )
    if skirt:
        hem, flare = pen.between(0.2, 0.32), pen.between(0.19, 0.25)
        dress = shirt if pen.chance(0.5) else lower
        s.add(dress, poly((-0.08, 0.54), (0.08, 0.54), (flare, hem), (0, hem - 0.025), (-flare, hem)))
    elif pen.chance(0.4):
        s.add(shade(shirt, 0.6), poly((-0.02, 0.8), (0.02, 0.8), (0.02, 0.45), (-0.02, 0.45)), atop=True)
    with s.frame(0, 0.915, tilt, 0.112):
        face(s, skin, hair, shade(pen.color(), 0.9) if hat else None, beard)


@animal("person", aspect=0.5)
def person_standing(s: Sketch) -> None:
    """Someone in shirt and trousers, from the front."""
    standing(s, long=s.pen.chance(0.4))


@animal("person", "woman", aspect=0.48)
def woman(s: Sketch) -> None:
    """In a skirt or dress, with long hair."""
    standing(s, skirt=True, long=True)


@animal("person", "man", aspect=0.48)
def man(s: Sketch) -> None:
    """With a brimmed hat, sometimes a beard."""
    standing(s, hat=True, beard=s.pen.chance(0.5))


@animal("person", aspect=0.85)
def portrait(s: Sketch) -> None:
    """Head and shoulders."""
    pen = s.pen
    skin, hair = tones(pen)
    long = pen.chance(0.5)
    if long:
        s.add(hair, long_hair())
    s.add(skin, limb([(0, -0.7), (0, -1.5)], [0.62, 0.7]))
    s.add(
        pen.body,
        blob(
            (-0.4, -1.25),
            (-1.0, -1.42),
            (-1.4, -1.75),
            (-1.5, -2.4),
            (0, -2.42),
            (1.5, -2.4),
            (1.4, -1.75),
            (1.0, -1.42),
            (0.4, -1.25),
            (0, -1.5),
        ),
    )
    if pen.chance(0.5):
        s.add(pen.accent, poly((-0.12, -1.5), (0.12, -1.5), (0.2, -2.5), (-0.2, -2.5)), atop=True)
    face(
        s,
        skin,
        hair,
        shade(pen.color(), 0.9) if not long and pen.chance(0.2) else None,
        not long and pen.chance(0.35),
    )


def side_head(s: Sketch, skin: Color, hair: Color, helmet: Color | None = None, long: bool = False) -> None:
    """A head in profile about the origin, half height about 1."""
    if long:
        s.add(hair, blob((-0.9, 0.5), (-0.2, 0.7), (-0.3, -0.6), (-0.7, -1.4), (-1.2, -1.3)))
    s.add(
        skin,
        blob(
            (-0.75, 0.4),
            (0, 0.98),
            (0.7, 0.6),
            (0.76, 0.15),
            (1.0, -0.2),
            (0.76, -0.32),
            (0.66, -0.85),
            (0.1, -0.95),
            (-0.6, -0.6),
        ),
    )
    if helmet:
        s.add(helmet, blob((-1.05, 0.2), (-0.85, 0.95), (0, 1.35), (0.85, 0.95), (1.1, 0.35), (0.3, 0.3)))
        s.add(shade(helmet, 0.55), limb([(-0.8, 0.5), (0.0, 0.85), (0.8, 0.6)], [0.16] * 3), atop=True)
    else:
        s.add(
            hair,
            blob(
                (-0.6, -0.7),
                (-1.0, 0.2),
                (-0.7, 1.0),
                (0.1, 1.2),
                (0.8, 0.8),
                (0.65, 0.45),
                (0.0, 0.5),
                (-0.15, -0.1),
            ),
        )
    s.add(s.pen.dark, oval(0.5, 0.1, 0.12, 0.15), outline=False)


@animal("person", aspect=0.47)
def person_walking(s: Sketch) -> None:
    """In mid-stride, side view."""
    pen = s.pen
    skin, hair = tones(pen)
    shirt, lower = pen.body, pen.accent
    shoe = pen.pick(pen.dark, pen.color())
    step, swing = pen.between(0.11, 0.2), pen.between(0.08, 0.17)

    def leg(d: float, color: Color) -> None:
        foot = (d * step, 0.055 + (0.04 if d < 0 else 0))
        s.add(shoe, oval(foot[0] + 0.04, foot[1] - 0.022, 0.068, 0.03, -0.5 if d < 0 else 0.12))
        s.add(color, limb([(0, 0.48), (d * step * 0.5 + 0.035, 0.28), foot], [0.14, 0.105, 0.08]))

    def hand(d: float, color: Color) -> None:
        end = (0.02 + d * swing * 1.2 + 0.05, 0.5)
        s.add(skin, oval(*end, 0.036))
        s.add(color, limb([(0.01, 0.755), (d * swing * 0.7 - 0.01, 0.62), end], [0.085, 0.075, 0.06]))

    hand(-1, shade(shirt, 0.65))
    front = pen.pick(-1, 1)
    leg(-front, shade(lower, 0.7))
    leg(front, lower)
    s.add(skin, limb([(0.02, 0.76), (0.03, 0.84)], [0.08, 0.08]))
    s.add(
        shirt,
        blob(
            (-0.08, 0.77),
            (0.02, 0.81),
            (0.09, 0.76),
            (0.105, 0.62),
            (0.08, 0.45),
            (-0.08, 0.45),
            (-0.09, 0.62),
        ),
    )
    hand(1, shade(shirt, 0.85))
    with s.frame(0.04, 0.91, pen.between(-0.1, 0.1), 0.11):
        side_head(s, skin, hair, long=pen.chance(0.4))


def astride(
    s: Sketch, lean: float, knee: Spot, foot: Spot, far: tuple[Spot, Spot], hand: Spot, helmet: bool
) -> None:
    """Someone who sits on nothing: the hip at the origin, the torso leaning forwards by `lean`."""
    pen = s.pen
    skin, hair = tones(pen)
    shirt, lower = pen.body, pen.accent
    shoe = pen.pick(pen.dark, pen.color())
    up = np.array([np.sin(lean), np.cos(lean)])
    shoulder, top = up * 0.38, up * 0.44
    head = up * 0.575 + [0.03, 0.0]

    def leg(knee: Spot, foot: Spot, color: Color) -> None:
        s.add(shoe, oval(foot[0] + 0.045, foot[1] - 0.03, 0.085, 0.04, 0.05))
        s.add(
            color,
            limb([(0, 0), (knee[0] * 0.55, knee[1] * 0.5 + 0.015), knee, foot], [0.17, 0.15, 0.12, 0.085]),
        )

    def reach(color: Color, drop: float) -> None:
        elbow = ((shoulder[0] + hand[0]) / 2 - 0.02, (shoulder[1] + hand[1]) / 2 - drop)
        s.add(skin, oval(hand[0] + 0.01, hand[1], 0.043))
        s.add(color, limb([tuple(shoulder), elbow, hand], [0.1, 0.085, 0.065]))

    leg(*far, shade(lower, 0.65))
    reach(shade(shirt, 0.65), 0.03)
    s.add(skin, limb([tuple(top - up * 0.05), tuple(head)], [0.09, 0.09]))
    s.add(shirt, limb([(0, 0.0), tuple(up * 0.2 + [-0.02, 0.01]), tuple(up * 0.38)], [0.18, 0.2, 0.18]))
    leg(knee, foot, lower)
    reach(shade(shirt, 0.85), 0.06)
    with s.frame(head[0], head[1], -lean * 0.3, 0.125):
        side_head(s, skin, hair, pen.color() if helmet else None, long=pen.chance(0.3))


@animal("rider", aspect=0.65)
def cyclist(s: Sketch) -> None:
    """Leaning forwards over handlebars, one knee up, one leg down."""
    pen = s.pen
    lean = pen.between(0.3, 0.75)
    hand = (0.46 + 0.16 * lean, pen.between(0.14, 0.24))
    high = ((0.3, -0.06), (0.16, -0.3))
    low = ((0.2, -0.22), (0.1, -0.5))
    near, far = (high, low) if pen.chance(0.5) else (low, high)
    astride(s, lean, *near, far, hand, pen.chance(0.65))


@animal("rider", aspect=0.43)
def saddle_rider(s: Sketch) -> None:
    """Upright as in a saddle, the knees bent, the hands held before the body."""
    pen = s.pen
    lean = pen.between(0.0, 0.2)
    back = pen.between(-0.05, 0.08)
    knee, foot = (0.25, -0.2), (0.15 + back, -0.52)
    hand = (pen.between(0.26, 0.36), pen.between(0.1, 0.18))
    astride(s, lean, knee, foot, ((0.3, -0.17), (0.24 + back, -0.47)), hand, pen.chance(0.5))
