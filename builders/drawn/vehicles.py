"""Vector drawings of vehicles: aeroplanes, bicycles, boats, buses, cars, motorbikes, trains and trucks.

Every drawing works in units of its own height: x from 0 to its aspect, y from 0 (top) to 1 (wheels, keel), so
circles are round and widths are alike along and across; `vehicle` sets the pen up for that.
"""

from collections.abc import Callable
from functools import wraps

import numpy as np

from attn2mask.builders.drawn.canvas import Color, Pen, Points, shade
from attn2mask.builders.drawn.kinds import kind

Draw = Callable[[Pen], None]
Place = Callable[[float, float], tuple[float, float]]


def vehicle(thing: str, *names: str, aspect: float = 1.0, place: str = "ground") -> Callable[[Draw], Draw]:
    """Register a drawing made in units of its height: x from 0 to `aspect`, y from 0 to 1."""

    def register(draw: Draw) -> Draw:
        @wraps(draw)
        def drawn(pen: Pen) -> None:
            transform, unit, glass = pen.transform, pen.unit, pen.glass
            pen.transform, pen.unit = transform * np.array([1 / aspect, 1, 1]), unit / aspect**0.5
            pen.glass = apart(glass, pen.body)
            try:
                draw(pen)
            finally:
                pen.transform, pen.unit, pen.glass = transform, unit, glass

        return kind(thing, *names, aspect=aspect, place=place)(drawn)

    return register


# ---- helpers ------------------------------------------------------------


def apart(color: Color, other: Color, gap: float = 70) -> Color:
    """`color`, made darker or lighter where it is too close to `other` to be seen on it."""
    brightness, ground = sum(color) / 3, sum(other) / 3
    if abs(brightness - ground) >= gap:
        return color
    return shade(color, 0.4) if ground > 120 else shade(color, 1.65)


def turn(pen: Pen, angle: float, size: float, cx: float, cy: float) -> None:
    """From here on, draw turned by `angle` and scaled by `size` about (cx, cy)."""
    c, s = size * np.cos(angle), size * np.sin(angle)
    linear = np.array([[c, -s], [s, c]])
    shift = np.array([cx, cy]) - linear @ np.array([cx, cy])
    m = pen.transform
    pen.transform = np.concatenate([m[:, :2] @ linear, (m[:, :2] @ shift + m[:, 2])[:, None]], 1)
    pen.unit *= size


def soft(points: Points, cut: float = 0.18) -> np.ndarray:
    """The polygon `points` with its corners cut off twice."""
    p = np.asarray(points, dtype=np.float64)
    for _ in range(2):
        after = np.roll(p, -1, 0)
        p = np.stack([p + cut * (after - p), after + cut * (p - after)], 1).reshape(-1, 2)
    return p


def face(a: tuple, b: tuple, c: tuple, d: tuple) -> Place:
    """Maps (u, v) of the unit square into the face with corners a (top left), then clockwise b, c, d."""
    p, q, r, s = (np.array(k, dtype=float) for k in (a, b, c, d))
    return lambda u, v: tuple((1 - v) * ((1 - u) * p + u * q) + v * ((1 - u) * s + u * r))


def panel(
    pen: Pen, at: Place, u0: float, v0: float, u1: float, v1: float, color: Color, outline: bool = True
) -> None:
    """The rectangle (u0, v0) to (u1, v1) of a face."""
    pen.polygon([at(u0, v0), at(u1, v0), at(u1, v1), at(u0, v1)], color, outline)


def panes(
    pen: Pen, at: Place, u0: float, v0: float, u1: float, v1: float, n: int, gap: float = 0.16, color=None
) -> None:
    """A row of `n` windows on a face; `gap` is the share of a window's pitch left between two."""
    pitch = (u1 - u0) / n
    for i in range(n):
        left = u0 + (i + gap / 2) * pitch
        panel(pen, at, left, v0, left + (1 - gap) * pitch, v1, color or pen.glass, outline=False)


def box(x0: float, y0: float, x1: float, y1: float) -> Place:
    """An upright rectangular face."""
    return face((x0, y0), (x1, y0), (x1, y1), (x0, y1))


def wheel(pen: Pen, cx: float, r: float, rim: Color | None = None, base: float = 1.0) -> None:
    """A tyre of radius `r` with a rim, standing on y = `base`."""
    rim = rim or pen.light
    pen.ellipse(cx, base - r, r, r, pen.dark)
    pen.ellipse(cx, base - r, r * 0.58, r * 0.58, shade(rim, 0.8), outline=False)
    pen.ellipse(cx, base - r, r * 0.2, r * 0.2, pen.dark, outline=False)


def metal(pen: Pen) -> Color:
    """A grey for engines, forks and rims."""
    return shade(pen.color("gray"), pen.between(0.85, 1.4))


# ---- aeroplanes ------------------------------------------------------------


@vehicle("aeroplane", "airliner", "passenger jet", aspect=1.9, place="air")
def airliner(pen: Pen) -> None:
    """Side view: a tube with a tall fin, a swept wing towards the viewer and engines under it."""
    turn(pen, pen.between(-0.25, 0.08), 0.97, 0.95, 0.55)
    r, y, stripe = pen.between(0.155, 0.19), 0.52, apart(pen.accent, pen.body, 40)
    wing, far = shade(pen.body, pen.pick(0.7, 1.45)), pen.between(0.16, 0.24)
    pen.polygon([(1.24, y - 0.06), (0.86, far), (0.74, far), (0.86, y - 0.06)], shade(wing, 0.8))
    pen.polygon([(0.54, y - r * 0.8), (0.24, 0.0), (0.04, 0.0), (0.1, y - r * 0.5)], pen.accent)
    tube = [(0.0, y - r * 0.75), (0.45, y - r), (1.55, y - r), (1.76, y - r * 0.75), (1.9, y + r * 0.1)]
    tube += [(1.86, y + r * 0.6), (1.66, y + r), (0.72, y + r), (0.28, y + r * 0.35)]
    pen.polygon(soft(tube), pen.body)
    if pen.chance(0.6):
        with pen.atop():
            pen.rectangle(0.0, y + r * 0.2, 1.9, y + r * 0.6, stripe, outline=False)
    panes(pen, box(0.45, y - r * 0.5, 1.52, y - r * 0.05), 0, 0, 1, 1, int(pen.between(7, 11)), 0.45)
    pen.polygon(
        [(1.62, y - r * 0.62), (1.74, y - r * 0.55), (1.81, y - r * 0.1), (1.64, y - r * 0.1)], pen.glass
    )
    pen.polygon([(0.42, y - r * 0.2), (0.08, y + 0.12), (-0.02, y + 0.12), (0.14, y - r * 0.3)], wing)
    for x in pen.pick((1.1,), (1.16, 0.86)):
        pod = [(x - 0.22, 0.73), (x + 0.13, 0.71), (x + 0.13, 0.88), (x - 0.16, 0.86)]
        pen.polygon(soft(pod), pen.accent)
    pen.polygon([(1.26, y + r * 0.3), (0.66, 1.0), (0.42, 1.0), (0.72, y + r * 0.3)], wing)


@vehicle("aeroplane", "jet plane", aspect=1.1, place="air")
def plane_from_below(pen: Pen) -> None:
    """The outline from below or above: swept wings, tailplane and engines, at some heading."""
    turn(pen, pen.between(-0.75, 0.3), 0.9, 0.55, 0.5)
    sweep, span, wing = pen.between(0.25, 0.36), pen.between(0.42, 0.5), shade(pen.body, pen.pick(0.75, 1.35))
    near = pen.between(0.75, 1.0)  # how much of its length the wing on one side shows
    engines = pen.pick((0.45,), (0.36, 0.68))
    for side, reach in ((-1, span), (1, span * near)):
        for e in engines:
            ey, ex = 0.5 + side * reach * e, 0.72 - sweep * e
            pen.rectangle(ex - 0.12, ey - 0.033, ex + 0.07, ey + 0.033, pen.accent, radius=0.03)
        w = [(0.78, 0.5), (0.74 - sweep, 0.5 + side * reach), (0.64 - sweep, 0.5 + side * reach), (0.46, 0.5)]
        pen.polygon(w, wing)
        t = 0.19 * reach / 0.46
        pen.polygon([(0.24, 0.5), (0.1, 0.5 + side * t), (0.02, 0.5 + side * t), (0.07, 0.5)], wing)
    r = pen.between(0.055, 0.075)
    pen.curve(
        [
            (0.0, 0.5),
            (0.25, 0.5 - r * 0.9),
            (0.9, 0.5 - r),
            (1.08, 0.5),
            (0.9, 0.5 + r),
            (0.25, 0.5 + r * 0.9),
        ],
        pen.body,
    )
    if pen.chance(0.7):
        pen.polygon([(0.98, 0.46), (1.02, 0.48), (1.02, 0.52), (0.98, 0.54)], pen.glass, outline=False)
        pen.polygon([(0.28, 0.485), (0.0, 0.47), (0.0, 0.53), (0.28, 0.515)], pen.accent, outline=False)


@vehicle("aeroplane", "seaplane", aspect=1.6, place="air")
def seaplane(pen: Pen) -> None:
    """A high wing over a stubby body with a propeller, on two floats."""
    turn(pen, pen.between(-0.15, 0.05), 0.96, 0.8, 0.5)
    strut = apart(metal(pen), pen.body, 40)
    for x, back in ((0.62, 0.08), (1.12, -0.06)):
        pen.line([(x, 0.6), (x + back, 0.88)], 0.035, strut)
    pen.polygon(
        soft([(0.22, 0.82), (1.28, 0.8), (1.5, 0.82), (1.38, 0.95), (0.75, 1.0), (0.6, 0.94)]), pen.accent
    )
    pen.polygon([(0.4, 0.45), (0.16, 0.1), (0.02, 0.1), (0.02, 0.46)], pen.accent)
    body = [
        (0.0, 0.4),
        (0.6, 0.36),
        (0.78, 0.24),
        (1.08, 0.24),
        (1.2, 0.38),
        (1.48, 0.42),
        (1.5, 0.58),
        (1.3, 0.67),
    ]
    pen.polygon(soft([*body, (0.6, 0.65), (0.0, 0.48)]), pen.body)
    pen.polygon([(1.0, 0.27), (1.07, 0.27), (1.2, 0.42), (1.0, 0.42)], pen.glass)
    panes(pen, box(0.68, 0.3, 0.98, 0.43), 0, 0, 1, 1, 2, 0.2)
    pen.polygon([(0.3, 0.44), (0.0, 0.4), (-0.02, 0.46), (0.28, 0.5)], shade(pen.body, 0.7))
    pen.line([(0.9, 0.6), (0.95, 0.22)], 0.03, strut)
    pen.polygon(
        soft([(0.56, 0.13), (1.24, 0.13), (1.26, 0.23), (0.52, 0.23)]), shade(pen.body, pen.pick(0.7, 1.4))
    )
    pen.ellipse(1.54, 0.49, 0.022, pen.between(0.24, 0.3), pen.dark, outline=False)
    pen.ellipse(1.51, 0.49, 0.06, 0.06, pen.accent)


@vehicle("aeroplane", "jetliner", aspect=1.8, place="air")
def plane_from_ahead(pen: Pen) -> None:
    """From ahead: a round nose, wings raised to both sides, engines below them, the fin above."""
    turn(pen, pen.between(-0.16, 0.16), 0.97, 0.9, 0.52)
    r, rise, wing = pen.between(0.2, 0.25), pen.between(0.08, 0.22), shade(pen.body, pen.pick(0.7, 1.45))
    y, gear, spread = 0.6, pen.chance(0.5), pen.between(0.4, 0.46)
    pen.polygon([(0.84, 0.45), (0.87, 0.0), (0.93, 0.0), (0.96, 0.45)], pen.accent)
    for side in (-1, 1):
        tip, end = y + 0.06 - rise, 0.9 + side * 0.9
        pen.polygon([(0.9, 0.36), (0.9 + side * 0.4, 0.27), (0.9 + side * 0.4, 0.32), (0.9, 0.48)], wing)
        pen.polygon([(0.9, y - 0.04), (end, tip - 0.03), (end, tip + 0.03), (0.9, y + 0.2)], wing)
        pen.ellipse(0.9 + side * spread, y + 0.17 - rise * 0.35, 0.12, 0.12, pen.accent)
        pen.ellipse(0.9 + side * spread, y + 0.17 - rise * 0.35, 0.08, 0.08, pen.dark, outline=False)
    for x in (0.68, 0.9, 1.12) if gear else ():
        pen.line([(x, y + 0.1), (x, 0.93)], 0.035, pen.dark)
        pen.ellipse(x, 0.93, 0.05, 0.07, pen.dark)
    pen.ellipse(0.9, y, r, r, pen.body)
    pen.polygon([(0.74, y - 0.04), (0.79, y - 0.13), (1.01, y - 0.13), (1.06, y - 0.04)], pen.glass)


@vehicle("aeroplane", "fighter jet", aspect=1.8, place="air")
def fighter(pen: Pen) -> None:
    """Side view: a needle nose, bubble canopy, delta wing and fin."""
    turn(pen, pen.between(-0.35, 0.05), 0.94, 0.9, 0.5)
    wing, stripe = shade(pen.body, pen.pick(0.7, 1.45)), apart(pen.accent, pen.body, 40)
    pen.polygon([(0.6, 0.42), (0.26, 0.02), (0.08, 0.02), (0.14, 0.45)], wing)
    pen.ellipse(1.18, 0.39, 0.25, 0.13, pen.glass)
    hull = [(0.03, 0.4), (0.7, 0.35), (1.2, 0.38), (1.78, 0.57), (1.2, 0.66), (0.8, 0.7), (0.03, 0.63)]
    pen.polygon(hull, pen.body)
    pen.polygon([(0.0, 0.42), (0.14, 0.41), (0.14, 0.63), (0.0, 0.61)], pen.dark)
    pen.polygon([(1.22, 0.55), (0.56, 0.98), (0.36, 0.98), (0.42, 0.55)], wing)
    pen.polygon([(0.36, 0.55), (0.1, 0.74), (-0.02, 0.74), (0.1, 0.55)], shade(wing, 0.85))
    if pen.chance(0.6):
        pen.line([(0.56, 0.94), (0.98, 0.94)], 0.06, pen.accent)
    if pen.chance(0.6):
        pen.ellipse(0.76, 0.46, 0.06, 0.06, stripe, outline=False)


# ---- bicycles ------------------------------------------------------------


def spoked(pen: Pen, cx: float, cy: float, r: float, width: float, spokes: int) -> None:
    """A thin wheel one can see through."""
    grey = shade(pen.light, 0.72)
    start = pen.between(0, np.pi)
    for k in range(spokes):
        c, s = np.cos(start + k * np.pi / spokes), np.sin(start + k * np.pi / spokes)
        pen.line([(cx - r * c, cy - r * s), (cx + r * c, cy + r * s)], 0.014, grey)
    pen.ring(cx, cy, r - width / 2, width, pen.dark)
    pen.ellipse(cx, cy, 0.04, 0.04, pen.dark, outline=False)


def saddle(pen: Pen, x: float, y: float) -> None:
    """A bicycle's saddle with its nose to the right."""
    pen.polygon(
        soft([(x - 0.13, y - 0.05), (x + 0.03, y - 0.03), (x + 0.16, y), (x, y + 0.04), (x - 0.1, y + 0.04)]),
        pen.dark,
        outline=False,
    )


def cranks(pen: Pen, x: float, y: float, r: float) -> None:
    """Chainring, cranks and pedals."""
    pen.ring(x, y, r, 0.035, pen.dark)
    a = pen.between(-1.2, 1.2)
    c, s = 0.14 * np.cos(a), 0.14 * np.sin(a)
    pen.line([(x - c, y - s), (x + c, y + s)], 0.03, pen.dark)
    for side in (-1, 1):
        pen.line([(x + side * c - 0.05, y + side * s), (x + side * c + 0.05, y + side * s)], 0.04, pen.dark)


def cycle(pen: Pen, aspect: float, r: float, seat: float, head: float, style: str) -> None:
    """A bicycle `aspect` long on wheels of radius r; y of saddle and head tube, style of bar and frame."""
    tube, tyre = pen.between(0.05, 0.07), pen.between(0.045, 0.065) + (0.02 if style == "bmx" else 0)
    rear, front, axle = r + 0.01, aspect - r - 0.01, 1 - r
    spokes = int(pen.between(4, 7))
    for x in (rear, front):
        spoked(pen, x, axle, r, tyre, spokes)
    bracket, frame = (rear + (front - rear) * 0.42, axle + 0.04), pen.body
    lean = pen.between(0.08, 0.14)
    post = (bracket[0] - lean, seat + 0.1)
    neck = (front - 0.24 * r / 0.3, head + 0.06)
    fork = (neck[0] + 0.05, neck[1] + 0.14)
    top = (post[0] + 0.02, post[1] + (0.08 if style != "bmx" else 0.12))
    pen.line([(bracket[0], bracket[1]), (rear, axle), top], tube * 0.75, frame)
    pen.line([neck, fork, (front - 0.04, axle - 0.12), (front, axle)], tube, shade(frame, 0.75))
    if style == "tandem":
        second = (rear + (front - rear) * 0.74, axle + 0.04)
        post2 = (second[0] - lean, seat + 0.1)
        pen.line([bracket, second], tube, frame)
        pen.line([second, (post2[0], post2[1])], tube, frame)
        pen.line([fork, second, top], tube, frame)
        pen.line([(post2[0], post2[1]), (post2[0] - 0.02, seat)], 0.04, pen.dark)
        saddle(pen, post2[0], seat)
        pen.line(
            [(post2[0] - 0.02, seat + 0.17), (post2[0] - 0.12, seat - 0.02), (post2[0] - 0.24, seat - 0.01)],
            0.035,
            pen.dark,
        )
        cranks(pen, *second, 0.08)
    if style == "city":  # a low, curved tube to step through
        mid = ((neck[0] + bracket[0]) / 2 - 0.03, axle - 0.12)
        pen.line([neck, mid, bracket], tube * 1.15, frame, curved=True)
        t = np.linspace(np.pi * 1.0, np.pi * 1.75, 9)
        pen.line([(rear + (r + 0.03) * np.cos(a), axle + (r + 0.03) * np.sin(a)) for a in t], 0.035, frame)
        t = np.linspace(np.pi * 1.2, np.pi * 1.8, 9)
        pen.line([(front + (r + 0.03) * np.cos(a), axle + (r + 0.03) * np.sin(a)) for a in t], 0.035, frame)
    else:
        pen.line([top, (neck[0], neck[1] + 0.03)], tube, frame)
        if style != "tandem":
            pen.line([fork, bracket], tube, frame)
    pen.line([bracket, post], tube, frame)
    pen.line([post, (post[0] - 0.02, seat)], 0.04, pen.dark)
    cranks(pen, *bracket, 0.085)
    saddle(pen, post[0] - 0.01, seat)
    x, y = neck
    if style == "road":
        pen.line([neck, (x - 0.02, y - 0.08), (x + 0.12, y - 0.09)], 0.04, pen.dark)
        hook = [
            (x + 0.06, y - 0.09),
            (x + 0.2, y - 0.08),
            (x + 0.24, y + 0.02),
            (x + 0.15, y + 0.1),
            (x + 0.03, y + 0.1),
        ]
        pen.line(hook, 0.05, pen.accent, curved=True)
    elif style == "bmx":
        pen.line([neck, (x - 0.05, y - 0.1), (x - 0.02, 0.08)], 0.055, pen.dark)
        pen.line([(x + 0.03, 0.1), (x - 0.2, 0.05)], 0.06, pen.dark)
        pen.line([(x - 0.12, 0.07), (x - 0.22, 0.045)], 0.075, pen.accent)
    elif style == "city":
        pen.line([neck, (x - 0.04, 0.1), (x + 0.03, 0.05), (x - 0.2, 0.09)], 0.05, pen.dark)
        if pen.chance(0.5):
            pen.polygon([(x + 0.04, 0.12), (x + 0.36, 0.12), (x + 0.3, 0.34), (x + 0.08, 0.34)], pen.accent)
    else:
        pen.line([neck, (x - 0.05, y - 0.13), (x + 0.05, y - 0.15)], 0.045, pen.dark)
        pen.line([(x + 0.07, y - 0.15), (x - 0.1, y - 0.14)], 0.06, pen.dark)


@vehicle("bicycle", "mountain bike", aspect=1.6)
def diamond_bicycle(pen: Pen) -> None:
    """The common bicycle with a diamond frame and flat bar."""
    cycle(pen, 1.6, pen.between(0.31, 0.35), pen.between(0.06, 0.14), pen.between(0.14, 0.2), "flat")


@vehicle("bicycle", "road bike", "racing bicycle", aspect=1.6)
def road_bike(pen: Pen) -> None:
    """A racing bicycle with drop bars."""
    cycle(pen, 1.6, pen.between(0.33, 0.36), pen.between(0.05, 0.08), pen.between(0.1, 0.16), "road")


@vehicle("bicycle", "city bike", aspect=1.6)
def city_bike(pen: Pen) -> None:
    """A step-through frame with mudguards, high bar and perhaps a basket."""
    cycle(pen, 1.6, pen.between(0.3, 0.33), pen.between(0.16, 0.22), pen.between(0.18, 0.24), "city")


@vehicle("bicycle", "BMX bike", aspect=1.45)
def bmx(pen: Pen) -> None:
    """Small fat wheels, a low saddle and a high bar."""
    cycle(pen, 1.45, pen.between(0.28, 0.31), pen.between(0.28, 0.34), pen.between(0.26, 0.3), "bmx")


@vehicle("bicycle", "tandem bicycle", aspect=2.1)
def tandem(pen: Pen) -> None:
    """Two saddles and two cranks on one long frame."""
    cycle(pen, 2.1, pen.between(0.32, 0.35), pen.between(0.08, 0.14), pen.between(0.14, 0.2), "tandem")


# ---- boats ------------------------------------------------------------


@vehicle("boat", "sailboat", "sailing boat", aspect=0.85, place="water")
def sailboat(pen: Pen) -> None:
    """A hull with a mast, a mainsail and a jib."""
    mast, deck = pen.between(0.4, 0.5), pen.between(0.76, 0.82)
    sail = pen.pick(pen.light, pen.body, pen.accent)
    pen.line([(mast, 0.02), (mast, deck + 0.03)], 0.03, pen.color("brown"))
    foot = deck - 0.05
    pen.polygon(
        [(mast - 0.025, 0.03), (mast - 0.1, 0.4), (pen.between(0.02, 0.1), foot), (mast - 0.025, foot)], sail
    )
    jib = [(mast + 0.03, 0.1), (0.7, 0.5), (pen.between(0.76, 0.82), foot + 0.02), (mast + 0.03, foot - 0.02)]
    pen.polygon(jib, pen.pick(sail, shade(sail, 0.8), pen.accent))
    if pen.chance(0.5):
        y = pen.between(0.4, 0.55)
        with pen.atop():
            pen.polygon(
                [(mast - 0.04, y), (mast - 0.04, y + 0.09), (0.0, y + 0.09), (0.0, y)],
                pen.accent,
                outline=False,
            )
    hull = [(0.04, deck), (0.3, deck + 0.03), (0.85, deck - 0.02), (0.7, 0.98), (0.45, 1.0), (0.14, 0.98)]
    pen.polygon(hull, pen.body)
    with pen.atop():
        pen.line(
            [(0.0, deck + 0.05), (0.3, deck + 0.075), (0.85, deck + 0.04)],
            0.03,
            apart(pen.accent, pen.body, 40),
        )


@vehicle("boat", "rowboat", "rowing boat", aspect=2.1, place="water")
def rowboat(pen: Pen) -> None:
    """An open boat from a little above: rim, inside, benches and oars."""
    rim, low = 0.34, pen.between(0.5, 0.58)
    hull = [
        (0.08, rim + 0.02),
        (1.0, rim + 0.14),
        (2.06, rim - 0.18),
        (1.86, 0.7),
        (1.55, 0.97),
        (0.9, 1.0),
        (0.3, 0.96),
    ]
    pen.polygon(soft(hull, 0.12), pen.body)
    inside = [
        (0.1, rim + 0.06),
        (0.5, rim - 0.06),
        (1.2, rim - 0.08),
        (2.02, rim - 0.16),
        (1.6, low),
        (1.0, low + 0.06),
    ]
    pen.polygon(soft([*inside, (0.4, low)], 0.12), shade(pen.body, 0.5))
    for x in (0.6, 1.25):
        pen.polygon(
            [(x, rim - 0.04), (x + 0.16, rim - 0.05), (x + 0.2, low + 0.05), (x + 0.02, low + 0.05)],
            pen.accent,
        )
    with pen.atop():
        pen.line([(0.1, 0.62), (0.9, 0.74), (1.9, 0.55)], 0.045, apart(pen.accent, pen.body, 40), curved=True)
    wood = pen.color("brown")
    pen.line([(0.85, 0.1), (0.42, 0.8)], 0.045, wood)
    pen.ellipse(0.37, 0.88, 0.065, 0.13, wood, angle=0.5)
    if pen.chance(0.6):
        pen.line([(1.35, 0.4), (1.62, 0.05)], 0.045, wood)


@vehicle("boat", "canoe", aspect=2.3, place="water")
def canoe(pen: Pen) -> None:
    """Long and low with raised ends, and a paddle laid across."""
    top = pen.between(0.42, 0.5)
    pen.polygon(
        soft(
            [
                (0.02, top - 0.26),
                (0.3, top + 0.05),
                (1.15, top + 0.12),
                (2.0, top + 0.05),
                (2.28, top - 0.26),
                (2.22, 0.78),
                (1.8, 0.97),
                (1.15, 1.0),
                (0.5, 0.97),
                (0.08, 0.78),
            ],
            0.14,
        ),
        pen.body,
    )
    pen.curve(
        [(0.3, top + 0.12), (1.15, top + 0.03), (2.0, top + 0.12), (1.15, top + 0.26)], shade(pen.body, 0.45)
    )
    with pen.atop():
        pen.line([(0.1, 0.72), (1.15, 0.86), (2.2, 0.72)], 0.06, apart(pen.accent, pen.body, 40), curved=True)
    x, wood = pen.between(0.7, 1.3), apart(pen.accent, pen.body, 40)
    pen.line([(x, 0.84), (x + 0.5, 0.14)], 0.05, wood)
    for px, py in ((x - 0.03, 0.86), (x + 0.53, 0.11)):
        pen.ellipse(px, py, 0.07, 0.14, wood, angle=0.62)


@vehicle("boat", "speedboat", "motorboat", aspect=2.0, place="water")
def speedboat(pen: Pen) -> None:
    """A sharp raised bow, a raked windscreen and an outboard motor."""
    deck, roofed = pen.between(0.48, 0.54), pen.chance(0.4)
    for x in (0.5, 1.0) if roofed else ():
        pen.line([(x, deck), (x + 0.06, 0.1)], 0.04, pen.dark)
    if roofed:
        pen.rectangle(0.36, 0.02, 1.3, 0.14, pen.accent, radius=0.05)
    pen.rectangle(0.0, deck - 0.16, 0.26, 0.74, pen.dark, radius=0.08)
    pen.rectangle(0.08, 0.7, 0.18, 0.98, pen.dark)
    seat = pen.pick(pen.accent, pen.light)
    for x in (0.38, 0.7):
        pen.rectangle(x, deck - 0.16, x + 0.17, deck + 0.06, seat, radius=0.06)
    pen.polygon([(0.94, deck + 0.03), (0.98, deck - 0.27), (1.08, deck - 0.27), (1.5, deck)], pen.glass)
    pen.line([(0.98, deck - 0.27), (1.08, deck - 0.27), (1.5, deck)], 0.035, shade(pen.body, 0.6))
    pen.polygon(
        [(0.16, deck + 0.04), (1.2, deck), (2.0, deck - 0.14), (1.8, 0.74), (1.4, 1.0), (0.22, 1.0)], pen.body
    )
    band = [(0.1, 0.7), (1.2, 0.66), (2.0, 0.45), (1.9, 0.62), (1.3, 0.82), (0.1, 0.84)]
    with pen.atop():
        pen.polygon(band, apart(pen.accent, pen.body, 40), outline=False)


@vehicle("boat", "fishing boat", "trawler", aspect=1.4, place="water")
def fishing_boat(pen: Pen) -> None:
    """A deep hull with a high bow, a wheelhouse, mast and boom."""
    x, wood = pen.between(0.42, 0.52), pen.color("brown")
    roof = pen.between(0.28, 0.34)
    pen.line([(x - 0.08, 0.02), (x - 0.08, 0.66)], 0.035, wood)
    pen.line([(x - 0.08, 0.1), (0.08, 0.6)], 0.03, wood)
    pen.line([(x - 0.08, 0.08), (1.3, 0.58)], 0.015, pen.dark)
    cabin = pen.pick(pen.light, pen.accent)
    pen.rectangle(x, roof, x + 0.42, 0.72, cabin)
    pen.rectangle(x - 0.05, roof - 0.06, x + 0.49, roof + 0.02, apart(pen.accent, cabin, 40))
    panes(
        pen,
        box(x, roof, x + 0.42, 0.72),
        0.06,
        0.18,
        0.94,
        0.5,
        int(pen.between(2, 4)),
        0.25,
        apart(pen.glass, cabin),
    )
    hull = [(0.05, 0.66), (0.5, 0.7), (1.0, 0.66), (1.38, 0.52), (1.2, 0.86), (1.12, 1.0), (0.16, 1.0)]
    pen.polygon(hull, pen.body)
    with pen.atop():
        pen.polygon([(0.0, 0.9), (1.4, 0.9), (1.4, 1.0), (0.0, 1.0)], shade(pen.accent, 0.8), outline=False)
        pen.line([(0.04, 0.69), (0.5, 0.73), (1.0, 0.69), (1.38, 0.55)], 0.04, pen.light)
    if pen.chance(0.6):
        for k in range(3):
            pen.ellipse(0.35 + 0.27 * k, 0.81, 0.045, 0.055, pen.dark, outline=False)


@vehicle("boat", "ship", "ferry", aspect=2.1, place="water")
def ship(pen: Pen) -> None:
    """A big hull with a raked bow, decks of windows and a funnel or two."""
    decks, left = int(pen.between(2, 4)), pen.between(0.12, 0.25)
    upper = pen.pick(pen.light, pen.light, pen.accent)
    glass = apart(pen.glass, upper)
    height = 0.38 / decks
    for x in pen.pick((0.6,), (0.5, 0.9)):
        pen.polygon([(x, 0.02), (x + 0.17, 0.02), (x + 0.2, 0.3), (x, 0.3)], pen.body)
        pen.polygon([(x, 0.02), (x + 0.17, 0.02), (x + 0.175, 0.09), (x, 0.09)], pen.dark)
    for k in range(decks):
        y1 = 0.62 - k * height
        right = 1.72 - 0.16 * k
        pen.polygon(
            [(left + 0.07 * k, y1 - height), (right - 0.06, y1 - height), (right, y1), (left + 0.07 * k, y1)],
            upper,
        )
        panes(
            pen,
            box(left + 0.1 + 0.07 * k, y1 - height * 0.75, right - 0.12, y1 - height * 0.25),
            0,
            0,
            1,
            1,
            int(pen.between(7, 11)),
            0.4,
            glass,
        )
    pen.polygon([(0.03, 0.6), (1.6, 0.6), (2.09, 0.5), (1.82, 1.0), (0.12, 1.0)], pen.body)
    with pen.atop():
        pen.rectangle(0.0, 0.88, 2.1, 1.0, shade(pen.accent, 0.75), outline=False)
    if pen.chance(0.6):
        pen.line([(1.5, 0.5), (1.5, 0.1)], 0.025, pen.dark)


# ---- buses ------------------------------------------------------------


@vehicle("bus", "city bus", "coach", aspect=2.15)
def single_decker(pen: Pen) -> None:
    """Side view: one long box of windows with a door at the front."""
    top, r = pen.between(0.03, 0.1), pen.between(0.13, 0.15)
    pen.rectangle(0.02, top, 2.14, 0.89, pen.body, radius=0.08)
    low = pen.between(0.46, 0.52)
    with pen.atop():
        y = pen.between(low + 0.05, 0.68)
        pen.rectangle(0, y, 2.14, y + pen.between(0.06, 0.14), pen.accent, outline=False)
    panes(pen, box(0.08, top + 0.12, 1.66, low), 0, 0, 1, 1, int(pen.between(4, 8)), 0.14)
    panes(pen, box(1.68, top + 0.12, 1.96, 0.84), 0, 0, 1, 1, 2, 0.16)
    pen.polygon([(1.99, top + 0.12), (2.12, top + 0.12), (2.14, low + 0.08), (1.99, low + 0.08)], pen.glass)
    for x in (pen.between(0.38, 0.5), pen.between(1.46, 1.54)):
        wheel(pen, x, r)
    pen.rectangle(2.06, 0.72, 2.14, 0.8, pen.light, outline=False)


@vehicle("bus", "double-decker bus", "double decker", aspect=1.4)
def double_decker(pen: Pen) -> None:
    """Side view: two rows of windows, one over the other."""
    r = pen.between(0.1, 0.12)
    pen.rectangle(0.02, 0.01, 1.38, 0.92, pen.body, radius=0.07)
    n = int(pen.between(4, 7))
    with pen.atop():
        if pen.chance(0.6):
            pen.rectangle(0, 0.37, 1.4, pen.between(0.42, 0.47), pen.accent, outline=False)
    panes(pen, box(0.07, 0.1, 1.22, 0.32), 0, 0, 1, 1, n, 0.16)
    pen.rectangle(1.24, 0.1, 1.37, 0.32, pen.glass, outline=False)
    panes(pen, box(0.07, 0.5, 1.0, 0.7), 0, 0, 1, 1, n - 1, 0.16)
    pen.rectangle(1.03, 0.5, 1.2, 0.88, pen.glass)
    pen.rectangle(1.24, 0.48, 1.37, 0.72, pen.glass, outline=False)
    for x in (0.33, 0.88):
        wheel(pen, x, r)
    pen.rectangle(1.32, 0.8, 1.38, 0.86, pen.light, outline=False)


@vehicle("bus", "school bus", aspect=2.15)
def school_bus(pen: Pen) -> None:
    """A long box of windows with a short bonnet ahead of it."""
    r = pen.between(0.14, 0.16)
    top = pen.between(0.03, 0.08)
    pen.polygon(soft([(1.6, 0.46), (1.98, 0.48), (2.12, 0.54), (2.14, 0.88), (1.6, 0.88)], 0.1), pen.body)
    pen.polygon(soft([(0.02, top), (1.62, top), (1.74, 0.5), (1.74, 0.88), (0.02, 0.88)], 0.05), pen.body)
    with pen.atop():
        for y in (0.54, 0.66):
            pen.rectangle(0.0, y, 1.74, y + 0.035, pen.dark, outline=False)
    panes(pen, box(0.07, top + 0.12, 1.3, 0.45), 0, 0, 1, 1, int(pen.between(5, 8)), 0.2)
    pen.rectangle(1.34, top + 0.12, 1.54, 0.84, pen.glass)
    pen.polygon([(1.57, top + 0.12), (1.62, top + 0.12), (1.71, 0.46), (1.57, 0.46)], pen.glass)
    pen.rectangle(2.06, 0.56, 2.14, 0.66, pen.light, outline=False)
    pen.rectangle(1.98, 0.8, 2.15, 0.88, pen.dark)
    for x in (0.42, 1.83):
        wheel(pen, x, r)


def bus_front(pen: Pen, at: Place, decks: int = 1) -> None:
    """The front of a bus on a face: sign, windscreen, headlights, bumper."""
    if decks == 2:
        panel(pen, at, 0.08, 0.08, 0.92, 0.3, pen.glass)
        panel(pen, at, 0.2, 0.36, 0.8, 0.44, pen.dark)
        panel(pen, at, 0.08, 0.5, 0.92, 0.76, pen.glass)
    else:
        panel(pen, at, 0.15, 0.04, 0.85, 0.13, pen.dark)
        panel(pen, at, 0.22, 0.065, 0.7, 0.105, pen.color("orange"), outline=False)
        panel(pen, at, 0.06, 0.17, 0.94, pen.between(0.54, 0.62), pen.glass)
    for u in (0.08, 0.72):
        panel(pen, at, u, 0.81, u + 0.2, 0.89, pen.light)
    panel(pen, at, 0.34, 0.79, 0.66, 0.87, shade(pen.body, 0.6), outline=False)
    panel(pen, at, 0.0, 0.92, 1.0, 1.0, pen.dark, outline=False)


@vehicle("bus", aspect=0.92)
def bus_from_ahead(pen: Pen) -> None:
    """Front view: sign, a big windscreen, mirrors, headlights."""
    decks, inset = 1, pen.between(0.08, 0.11)
    for x in (inset + 0.08, 0.92 - inset - 0.2):
        pen.rectangle(x, 0.85, x + 0.13, 1.0, pen.dark, radius=0.03)
    for x in (0.0, 0.92 - inset + 0.015):
        pen.rectangle(x, 0.2, x + inset - 0.015, 0.38, pen.dark, radius=0.03)
    pen.rectangle(inset, 0.01, 0.92 - inset, 0.93, pen.body, radius=0.08)
    at = box(inset, 0.01, 0.92 - inset, 0.93)
    bus_front(pen, at, decks)
    if pen.chance(0.7):
        panel(pen, at, 0.485, 0.17, 0.515, 0.58, shade(pen.body, 0.8), outline=False)
    with pen.atop():
        panel(pen, at, 0.0, 0.68, 1.0, pen.between(0.72, 0.77), pen.accent, outline=False)


@vehicle("bus", aspect=1.45)
def bus_in_perspective(pen: Pen) -> None:
    """From the front corner: the front to the right, the long side running back."""
    x, back = pen.between(0.82, 1.0), pen.between(0.1, 0.2)
    decks = pen.pick(1, 1, 2)
    side = face((0.02, back), (x, 0.01), (x, 0.94), (0.02, 0.86))
    front = face((x, 0.01), (1.43, 0.06), (1.43, 0.88), (x, 0.94))
    for u, s in ((0.28, 0.09), (0.76, 0.115)):
        px, py = side(u, 0.95)
        pen.ellipse(px, py, s * 0.75, s, pen.dark)
        pen.ellipse(px, py, s * 0.42, s * 0.55, shade(pen.light, 0.8), outline=False)
    pen.rectangle(1.28, 0.85, 1.39, 0.97, pen.dark, radius=0.03)
    dim = shade(pen.body, 0.78)
    panel(pen, side, 0, 0, 1, 1, dim)
    if decks == 1:
        panel(pen, side, 0, 0.66, 1, 0.76, shade(pen.accent, 0.8), outline=False)
    n = int(pen.between(4, 7))
    for v0, v1 in ((0.08, 0.3), (0.5, 0.72)) if decks == 2 else ((0.15, 0.55),):
        panes(pen, side, 0.04, v0, 0.98, v1, n, 0.16, apart(pen.glass, dim))
    for u, s in ((0.28, 0.085), (0.76, 0.11)):
        px, py = side(u, 0.95)
        pen.ellipse(px, py, s * 0.75, s, pen.dark, outline=False)
        pen.ellipse(px, py, s * 0.42, s * 0.55, shade(pen.light, 0.8), outline=False)
    panel(pen, front, 0, 0, 1, 1, pen.body)
    bus_front(pen, front, decks)


# ---- cars ------------------------------------------------------------


def car(
    pen: Pen,
    profile: Points,
    cabin: tuple[float, float, float, float],
    roof: float,
    belt: float,
    wheels: Points,
    windows: int = 2,
) -> None:
    """Side view of a body `profile` on `wheels`, given as (x, radius).

    The side windows lie between the `cabin`'s x (base and roof rear, roof and base front) at heights
    `roof` and `belt`.
    """
    pen.polygon(soft(profile, 0.16), pen.body)
    base0, roof0, roof1, base1 = cabin
    at = face((roof0, roof), (roof1, roof), (base1, belt), (base0, belt))
    panes(pen, at, 0, 0, 1, 1, windows, 0.09)
    right, left = max(p[0] for p in profile), min(p[0] for p in profile)
    with pen.atop():
        pen.line([(left, belt + 0.14), (right, belt + 0.14)], 0.02, shade(pen.body, 0.7))
        for x, r in wheels:
            pen.ellipse(x, 1 - r, r * 1.2, r * 1.2, shade(pen.body, 0.35), outline=False)
    for x, r in wheels:
        wheel(pen, x, r)
    pen.ellipse(right - 0.07, belt + 0.15, 0.055, 0.05, pen.light)
    pen.rectangle(left + 0.015, belt + 0.1, left + 0.08, belt + 0.19, pen.color("red"), outline=False)
    for x in [base0 + (base1 - base0) * (k + 0.25) / windows for k in range(windows)]:
        pen.line([(x, belt + 0.08), (x + 0.08, belt + 0.08)], 0.025, shade(pen.body, 0.45))


@vehicle("car", "sedan", aspect=2.2)
def sedan(pen: Pen) -> None:
    """Three boxes: bonnet, cabin, boot."""
    belt, r, top = pen.between(0.4, 0.45), pen.between(0.2, 0.22), 0.04
    rear, front = pen.between(0.6, 0.72), pen.between(1.2, 1.3)
    profile = [
        (0.02, 0.86),
        (0.0, belt + 0.08),
        (0.1, belt),
        (rear - 0.3, belt - 0.02),
        (rear, top),
        (front, top - 0.02),
    ]
    profile += [(front + 0.38, belt), (2.05, belt + 0.06), (2.2, belt + 0.18), (2.18, 0.86)]
    car(
        pen,
        profile,
        (rear - 0.16, rear + 0.04, front - 0.02, front + 0.26),
        top + 0.08,
        belt,
        ((0.46, r), (1.74, r)),
    )


@vehicle("car", "hatchback", aspect=1.85)
def hatchback(pen: Pen) -> None:
    """Short, with a steep tail and no boot."""
    belt, r, top = pen.between(0.42, 0.46), pen.between(0.18, 0.2), 0.02
    rear, front = pen.between(0.18, 0.3), pen.between(0.9, 1.02)
    profile = [(0.02, 0.88), (0.0, belt + 0.06), (0.06, belt - 0.05), (rear, top + 0.02), (front, top)]
    profile += [(front + 0.42, belt), (1.75, belt + 0.1), (1.85, belt + 0.22), (1.83, 0.88)]
    car(
        pen, profile, (0.14, rear + 0.06, front - 0.02, front + 0.28), top + 0.1, belt, ((0.38, r), (1.44, r))
    )


@vehicle("car", "SUV", "jeep", aspect=1.8)
def suv(pen: Pen) -> None:
    """Tall and upright on big wheels, with a roof rack or a spare wheel."""
    belt, r, top = pen.between(0.38, 0.43), pen.between(0.2, 0.23), 0.05
    front = pen.between(1.0, 1.12)
    if pen.chance(0.5):
        pen.rectangle(0.3, 0.0, front - 0.1, 0.05, pen.dark)
    if pen.chance(0.5):
        pen.rectangle(0.0, 0.38, 0.1, 0.72, pen.dark, radius=0.04)
    profile = [
        (0.08, 0.86),
        (0.06, top + 0.02),
        (front, top),
        (front + 0.24, belt),
        (1.7, belt + 0.04),
        (1.78, belt + 0.14),
    ]
    car(
        pen,
        [*profile, (1.78, 0.86)],
        (0.15, 0.17, front - 0.04, front + 0.15),
        top + 0.08,
        belt,
        ((0.42, r), (1.42, r)),
        3,
    )
    pen.rectangle(1.68, 0.76, 1.8, 0.86, pen.dark)


@vehicle("car", "pickup truck", "pickup", aspect=2.2)
def pickup(pen: Pen) -> None:
    """A cab with an open bed behind it."""
    belt, r = pen.between(0.4, 0.44), pen.between(0.2, 0.23)
    cab, front = pen.between(0.8, 0.9), pen.between(1.32, 1.4)
    profile = [
        (0.02, 0.84),
        (0.01, belt + 0.08),
        (cab - 0.04, belt + 0.08),
        (cab, belt + 0.04),
        (cab + 0.05, 0.0),
    ]
    profile += [(front, 0.0), (front + 0.28, belt), (2.1, belt + 0.06), (2.18, belt + 0.18), (2.18, 0.84)]
    windows = pen.pick(1, 2)
    car(
        pen,
        profile,
        (cab + 0.09, cab + 0.12, front - 0.03, front + 0.18),
        0.09,
        belt,
        ((0.42, r), (1.76, r)),
        windows,
    )
    pen.rectangle(0.0, belt + 0.03, cab - 0.02, belt + 0.12, shade(pen.body, 0.5))
    pen.rectangle(2.1, 0.74, 2.2, 0.84, pen.dark)


@vehicle("car", "convertible", "roadster", aspect=2.2)
def convertible(pen: Pen) -> None:
    """Low and open: a windscreen, seats and no roof."""
    belt, r, seat = pen.between(0.38, 0.42), pen.between(0.22, 0.24), pen.pick(pen.dark, pen.accent)
    for x in (0.6, 0.88):
        pen.polygon(
            soft([(x - 0.04, belt - 0.22), (x + 0.12, belt - 0.22), (x + 0.22, 0.6), (x, 0.6)], 0.2), seat
        )
    pen.polygon(
        [(1.14, belt - 0.34), (1.2, belt - 0.35), (1.56, belt + 0.05), (1.22, belt + 0.05)], pen.glass
    )
    pen.line([(1.17, belt - 0.34), (1.54, belt + 0.04)], 0.045, shade(pen.body, 0.6))
    profile = [
        (0.04, 0.86),
        (0.0, belt + 0.1),
        (0.12, belt),
        (0.5, belt),
        (0.62, belt + 0.05),
        (1.2, belt + 0.06),
    ]
    profile += [(1.44, belt), (2.0, belt + 0.06), (2.2, belt + 0.22), (2.17, 0.86)]
    car(pen, profile, (0.9, 0.9, 1.2, 1.2), belt + 0.1, belt + 0.1, ((0.46, r), (1.72, r)), 1)


@vehicle("car", "compact car", aspect=1.9)
def beetle(pen: Pen) -> None:
    """A small rounded old car: a dome over round wings."""
    r = pen.between(0.19, 0.21)
    pen.curve(
        [
            (0.1, 0.85),
            (0.16, 0.5),
            (0.5, 0.1),
            (0.9, 0.01),
            (1.25, 0.14),
            (1.42, 0.42),
            (1.72, 0.55),
            (1.8, 0.85),
        ],
        pen.body,
    )
    at = face((0.52, 0.15), (1.14, 0.15), (1.3, 0.42), (0.36, 0.42))
    panes(pen, at, 0, 0, 1, 1, 2, 0.12)
    wing = shade(pen.body, 0.8)
    for x in (0.42, 1.5):
        pen.curve([(x - 0.38, 0.88), (x - 0.28, 0.62), (x, 0.5), (x + 0.28, 0.62), (x + 0.38, 0.88)], wing)
        wheel(pen, x, r)
    pen.rectangle(0.78, 0.84, 1.14, 0.9, pen.dark)
    pen.ellipse(1.72, 0.62, 0.06, 0.07, pen.light)
    pen.line([(0.8, 0.52), (0.9, 0.52)], 0.03, shade(pen.body, 0.45))


@vehicle("car", aspect=1.25)
def car_from_ahead(pen: Pen) -> None:
    """Front view: windscreen over bonnet, grille between two headlights, tires below."""
    belt, lean = pen.between(0.42, 0.47), pen.between(0.14, 0.2)
    for x in (0.08, 0.95):
        pen.rectangle(x, 0.7, x + 0.22, 1.0, pen.dark, radius=0.05)
    for x in (0.0, 1.13):
        pen.rectangle(x, belt - 0.1, x + 0.12, belt + 0.01, shade(pen.body, 0.75), radius=0.03)
    pen.polygon(
        soft([(0.08, belt + 0.06), (0.09 + lean, 0.02), (1.16 - lean, 0.02), (1.17, belt + 0.06)], 0.12),
        pen.body,
    )
    pen.polygon([(0.2, belt - 0.01), (0.14 + lean, 0.1), (1.11 - lean, 0.1), (1.05, belt - 0.01)], pen.glass)
    low = [(0.1, belt), (1.15, belt), (1.23, belt + 0.14), (1.22, 0.9), (0.03, 0.9), (0.02, belt + 0.14)]
    pen.polygon(soft(low, 0.12), pen.body)
    y = belt + 0.2
    round_lights = pen.chance(0.5)
    for x in (0.19, 1.06):
        if round_lights:
            pen.ellipse(x, y, 0.095, 0.09, pen.light)
        else:
            pen.rectangle(x - 0.13, y - 0.06, x + 0.13, y + 0.06, pen.light, radius=0.04)
    pen.rectangle(0.36, y - 0.06, 0.89, y + 0.08, pen.dark, radius=0.03)
    pen.rectangle(0.06, 0.79, 1.19, 0.86, shade(pen.body, 0.55), radius=0.03)
    pen.rectangle(0.48, 0.78, 0.77, 0.86, pen.light, outline=False)


# ---- motorbikes ------------------------------------------------------------


def fat_wheel(pen: Pen, cx: float, r: float, tyre: float) -> None:
    """A motorbike's wheel: a thick tyre, a brake disc and a few broad spokes."""
    cy, rim = 1 - r, metal(pen)
    if pen.chance(0.5):
        pen.ellipse(cx, cy, r - tyre, r - tyre, shade(rim, 0.75), outline=False)
    start = pen.between(0, np.pi)
    for k in range(3):
        c, s = (r - tyre) * np.cos(start + k * np.pi / 3), (r - tyre) * np.sin(start + k * np.pi / 3)
        pen.line([(cx - c, cy - s), (cx + c, cy + s)], 0.035, rim)
    pen.ring(cx, cy, r - tyre / 2, tyre, pen.dark)
    pen.ellipse(cx, cy, r * 0.33, r * 0.33, rim, outline=False)


def engine(pen: Pen, x: float, y: float, size: float) -> None:
    """A finned engine block about (x, y)."""
    grey = metal(pen)
    pen.ellipse(x, y + size * 0.35, size * 0.75, size * 0.6, grey)
    pen.polygon(
        [
            (x - size * 0.15, y + size * 0.2),
            (x - size * 0.35, y - size),
            (x + size * 0.35, y - size),
            (x + size * 0.5, y + size * 0.2),
        ],
        shade(grey, 0.8),
    )
    for k in range(3):
        yy = y - size * (0.8 - 0.32 * k)
        pen.line([(x - size * 0.3, yy), (x + size * 0.38, yy)], 0.02, pen.dark)
    pen.ellipse(x, y + size * 0.38, size * 0.3, size * 0.28, shade(grey, 0.6), outline=False)


@vehicle("motorbike", "motorcycle", aspect=1.6)
def motorcycle(pen: Pen) -> None:
    """Tank, seat, engine and exhaust between two fat wheels; sometimes a fairing."""
    r, tyre = pen.between(0.27, 0.3), pen.between(0.085, 0.11)
    rear, front, axle = r, 1.6 - r, 1 - r
    grey = metal(pen)
    for x in (rear, front):
        fat_wheel(pen, x, r, tyre)
    pen.line([(rear, axle), (0.72, axle + 0.02)], 0.075, shade(grey, 0.7))
    pen.line([(1.08, 0.2), (front, axle)], 0.075, grey)
    pen.polygon([(0.55, 0.5), (1.1, 0.42), (1.02, 0.82), (0.62, 0.84)], pen.dark)
    engine(pen, 0.82, 0.68, 0.2)
    pen.line([(0.98, 0.62), (0.96, 0.86), (0.7, 0.9), (0.14, 0.82)], 0.075, pen.light, curved=True)
    fairing = pen.chance(0.45)
    tail = pen.between(0.26, 0.36)
    pen.polygon(soft([(0.08, tail), (0.5, 0.4), (0.74, 0.42), (0.66, 0.54), (0.3, 0.48)]), pen.body)
    pen.polygon(
        soft([(0.16, tail - 0.03), (0.42, tail + 0.03), (0.72, 0.38), (0.7, 0.47), (0.44, 0.44)]), pen.dark
    )
    pen.curve([(0.64, 0.42), (0.72, 0.26), (0.98, 0.22), (1.1, 0.32), (1.04, 0.48), (0.76, 0.5)], pen.body)
    if fairing:
        pen.polygon([(1.02, 0.24), (1.12, 0.04), (1.2, 0.08), (1.3, 0.28)], pen.glass)
        pen.polygon(
            soft(
                [(1.0, 0.22), (1.2, 0.22), (1.4, 0.36), (1.22, 0.46), (1.12, 0.74), (0.8, 0.84), (0.92, 0.5)]
            ),
            pen.body,
        )
        pen.polygon([(1.06, 0.42), (1.16, 0.42), (0.98, 0.76), (0.88, 0.76)], pen.accent, outline=False)
        pen.ellipse(1.29, 0.35, 0.06, 0.045, pen.light)
    else:
        pen.ellipse(1.21, 0.29, 0.085, 0.085, pen.light)
    pen.line([(1.08, 0.22), (1.06, 0.1), (0.92, 0.1)], 0.055, pen.dark)
    t = np.linspace(np.pi * 1.15, np.pi * 1.75, 8)
    pen.line([(front + (r + 0.03) * np.cos(a), axle + (r + 0.03) * np.sin(a)) for a in t], 0.055, pen.body)


@vehicle("motorbike", "scooter", "moped", aspect=1.3)
def scooter(pen: Pen) -> None:
    """Small wheels, a step-through floor, a front shield and a bulging rear."""
    r = pen.between(0.16, 0.18)
    wheel(pen, 0.28, r, metal(pen))
    pen.line([(0.96, 0.2), (1.1, 1 - r)], 0.06, metal(pen))
    wheel(pen, 1.1, r, metal(pen))
    pen.polygon(
        soft([(0.3, 0.76), (0.86, 0.76), (0.98, 0.66), (1.02, 0.74), (0.9, 0.88), (0.3, 0.88)]),
        shade(pen.body, 0.6),
    )
    pen.polygon(
        soft([(0.02, 0.62), (0.14, 0.44), (0.52, 0.42), (0.64, 0.8), (0.34, 0.84), (0.08, 0.78)], 0.22),
        pen.body,
    )
    pen.polygon(soft([(0.06, 0.38), (0.2, 0.3), (0.62, 0.34), (0.62, 0.44), (0.1, 0.47)], 0.22), pen.dark)
    pen.polygon(
        soft([(0.84, 0.24), (0.98, 0.2), (1.08, 0.5), (1.02, 0.8), (0.88, 0.8), (0.96, 0.56)]), pen.body
    )
    pen.curve(
        [(0.88, 0.78), (0.96, 0.62), (1.14, 0.58), (1.28, 0.72), (1.1, 0.74)], pen.pick(pen.body, pen.accent)
    )
    pen.line([(0.9, 0.26), (0.88, 0.12), (0.76, 0.1)], 0.06, pen.dark)
    pen.ellipse(0.97, 0.17, 0.085, 0.085, pen.body)
    pen.ellipse(1.0, 0.17, 0.06, 0.065, pen.light, outline=False)
    if pen.chance(0.5):
        pen.line([(0.86, 0.1), (0.8, 0.02)], 0.03, pen.dark)
    if pen.chance(0.4):
        pen.rectangle(0.0, 0.12, 0.22, 0.32, pen.accent, radius=0.03)
    else:
        pen.ellipse(0.34, 0.62, 0.14, 0.07, pen.accent)


@vehicle("motorbike", "chopper", aspect=1.9)
def chopper(pen: Pen) -> None:
    """A long raked fork, a high bar, a low seat and a fat rear wheel."""
    r, fr = pen.between(0.28, 0.31), pen.between(0.24, 0.27)
    rear, front = r + 0.06, 1.9 - fr
    grey = metal(pen)
    fat_wheel(pen, rear, r, 0.12)
    fat_wheel(pen, front, fr, 0.075)
    pen.line([(1.0, 0.2), (front, 1 - fr)], 0.075, grey)
    pen.line([(rear, 1 - r), (0.6, 0.86), (1.0, 0.84), (1.1, 0.36)], 0.07, shade(grey, 0.7))
    engine(pen, 0.84, 0.7, 0.2)
    for y in (0.86, 0.94):
        pen.line([(0.95, y - 0.08), (0.75, y), (0.1, y - 0.02)], 0.06, pen.light)
    t = np.linspace(np.pi * 0.95, np.pi * 1.7, 10)
    pen.line([(rear + (r + 0.02) * np.cos(a), 1 - r + (r + 0.02) * np.sin(a)) for a in t], 0.13, pen.body)
    pen.curve([(0.66, 0.52), (0.78, 0.32), (1.0, 0.24), (1.2, 0.3), (1.12, 0.5)], pen.body)
    pen.polygon(
        soft([(0.3, 0.34), (0.42, 0.3), (0.5, 0.44), (0.76, 0.42), (0.76, 0.54), (0.42, 0.54)]), pen.dark
    )
    if pen.chance(0.6):
        pen.line([(0.3, 0.44), (0.2, 0.1)], 0.045, grey)
        pen.line([(0.24, 0.24), (0.2, 0.1)], 0.09, pen.dark)
    pen.line([(1.06, 0.26), (1.02, 0.04), (0.84, 0.06)], 0.05, grey)
    pen.line([(0.92, 0.04), (0.82, 0.06)], 0.065, pen.dark)
    pen.ellipse(1.22, 0.27, 0.08, 0.08, pen.light)


# ---- trains ------------------------------------------------------------


def rail(pen: Pen, length: float) -> None:
    """A thin rail to stand on."""
    pen.rectangle(0.0, 0.965, length, 1.0, shade(pen.color("gray"), 0.6), outline=False)


def bogie(pen: Pen, cx: float, r: float = 0.065) -> None:
    """A frame with two small wheels under a railway car."""
    pen.rectangle(cx - 0.19, 0.8, cx + 0.19, 0.9, pen.dark)
    for x in (cx - 0.11, cx + 0.11):
        wheel(pen, x, r, base=0.97)


@vehicle("train", "steam locomotive", "steam train", aspect=1.9)
def steam_locomotive(pen: Pen) -> None:
    """Boiler, chimney, dome, cab, big coupled wheels and a cowcatcher."""
    rail(pen, 1.9)
    top, bottom, grey = pen.between(0.28, 0.34), 0.66, metal(pen)
    pen.rectangle(1.1, 0.2, 1.28, 0.4, pen.accent, radius=0.08)
    pen.rectangle(0.74, 0.22, 0.86, 0.4, pen.accent, radius=0.06)
    flare = pen.between(0.08, 0.14)
    pen.polygon([(1.5 - flare, 0.01), (1.5 + flare, 0.01), (1.56, 0.34), (1.44, 0.34)], pen.dark)
    pen.rectangle(0.5, top, 1.56, bottom, pen.body, radius=0.05)
    pen.rectangle(1.4, top - 0.015, 1.7, bottom + 0.015, pen.dark, radius=0.06)
    for x in (0.75, 1.05, 1.3):
        pen.rectangle(x, top, x + 0.035, bottom, pen.accent, outline=False)
    pen.ellipse(1.7, top + 0.1, 0.06, 0.065, pen.light)
    pen.rectangle(0.06, 0.14, 0.58, 0.76, pen.body)
    pen.rectangle(0.0, 0.07, 0.66, 0.16, shade(pen.body, 0.55), radius=0.03)
    panes(pen, box(0.12, 0.24, 0.54, 0.44), 0, 0, 1, 1, pen.pick(1, 2), 0.25)
    pen.rectangle(0.04, 0.68, 1.74, 0.76, shade(pen.body, 0.5))
    pen.polygon([(1.6, 0.74), (1.74, 0.74), (1.9, 0.96), (1.56, 0.96)], pen.accent)
    n = pen.pick(2, 3)
    r = 0.2 if n == 2 else 0.165
    xs = (0.36, 0.85) if n == 2 else (0.26, 0.64, 1.02)
    for x in xs:
        pen.ellipse(x, 0.97 - r, r, r, pen.dark)
        pen.ellipse(x, 0.97 - r, r * 0.75, r * 0.75, shade(pen.accent, 0.9), outline=False)
        pen.ellipse(x, 0.97 - r, r * 0.28, r * 0.28, pen.dark, outline=False)
    for x in (1.26, 1.48) if n == 3 else (1.2, 1.45):
        wheel(pen, x, 0.1, base=0.97)
    dx, dy = pen.between(-0.06, 0.06), pen.between(-0.05, 0.06)
    pen.line([(xs[0] + dx, 0.97 - r + dy), (xs[-1] + dx, 0.97 - r + dy)], 0.045, grey)
    pen.line([(xs[-1] + dx, 0.97 - r + dy), (1.5, 0.8)], 0.035, grey)
    pen.rectangle(1.38, 0.74, 1.62, 0.84, pen.dark)


@vehicle("train", "bullet train", "high-speed train", aspect=2.2)
def bullet_train(pen: Pen) -> None:
    """Side view: a long pointed nose, a band of windows and part of the next car."""
    rail(pen, 2.2)
    nose, gap, stripe = pen.between(1.05, 1.3), pen.between(0.42, 0.55), apart(pen.accent, pen.body, 40)
    top, y = pen.between(0.1, 0.18), pen.between(0.58, 0.66)
    for x in (0.2, gap + 0.3, nose + 0.36):
        bogie(pen, x)
    pen.rectangle(gap - 0.05, top + 0.1, gap + 0.06, 0.82, pen.dark, outline=False)
    pen.rectangle(0.0, top, gap - 0.015, 0.87, pen.body)
    front = [(gap + 0.05, top), (nose, top), (nose + 0.3, top + 0.1), (2.0, 0.62), (2.19, 0.78), (2.1, 0.87)]
    pen.polygon([*front, (gap + 0.05, 0.87)], pen.body)
    with pen.atop():
        for x0, x1 in ((0.0, gap - 0.015), (gap + 0.05, 2.2)):
            pen.rectangle(x0, y, x1, y + pen.between(0.08, 0.14), stripe, outline=False)
    panes(pen, box(0.0, top + 0.16, gap - 0.05, 0.5), 0, 0, 1, 1, 2, 0.25)
    panes(pen, box(gap + 0.1, top + 0.16, nose, 0.5), 0, 0, 1, 1, int(pen.between(3, 5)), 0.25)
    pen.polygon(
        [(nose + 0.12, top + 0.14), (nose + 0.3, top + 0.16), (nose + 0.58, 0.5), (nose + 0.2, 0.5)],
        pen.glass,
    )
    pen.ellipse(2.02, 0.71, 0.08, 0.04, pen.light, angle=0.5)
    if pen.chance(0.5):
        pen.line([(0.14, top), (0.26, 0.03), (0.44, 0.02)], 0.03, pen.dark)


@vehicle("train", "commuter train", "passenger train", aspect=2.2)
def commuter_train(pen: Pen) -> None:
    """Side view: two coupled cars with doors and windows, current collector above, rail below."""
    rail(pen, 2.2)
    top, band = pen.between(0.12, 0.18), apart(pen.accent, pen.body, 40)
    pen.rectangle(0.9, top + 0.1, 1.2, 0.78, pen.dark)
    for x in (0.24, 0.8, 1.34, 1.94):
        bogie(pen, x, 0.075)
    slope = pen.between(0.04, 0.16)
    pen.rectangle(0.0, top, 1.0, 0.84, pen.body)
    pen.polygon([(1.1, top), (2.16 - slope, top), (2.19, 0.54), (2.19, 0.84), (1.1, 0.84)], pen.body)
    with pen.atop():
        for x in (0.0, 1.1):
            pen.rectangle(x, 0.6, x + 1.1, pen.between(0.68, 0.76), band, outline=False)
        pen.rectangle(1.0, 0.0, 1.1, 1.0, pen.dark, outline=False)
    door = shade(pen.body, 0.55)
    for x0, x1, n in ((0.06, 0.94, 2), (1.16, 1.86, pen.pick(1, 2))):
        middle = (x0 + x1) / 2
        pen.rectangle(middle - 0.1, top + 0.1, middle + 0.1, 0.8, door)
        panes(
            pen,
            box(middle - 0.08, top + 0.15, middle + 0.08, 0.5),
            0,
            0,
            1,
            1,
            2,
            0.3,
            apart(pen.glass, door),
        )
        panes(pen, box(x0, top + 0.13, middle - 0.12, 0.5), 0, 0, 1, 1, n, 0.2)
        panes(pen, box(middle + 0.12, top + 0.13, x1, 0.5), 0, 0, 1, 1, n, 0.2)
    pen.polygon([(1.96, top + 0.1), (2.15 - slope * 0.8, top + 0.1), (2.18, 0.54), (1.96, 0.54)], pen.glass)
    pen.rectangle(2.1, 0.68, 2.19, 0.77, pen.light, outline=False)
    if pen.chance(0.75):
        x = pen.between(0.3, 0.6)
        pen.line([(x, top), (x + 0.12, 0.08), (x + 0.02, 0.02)], 0.03, pen.dark)
        pen.line([(x - 0.12, 0.02), (x + 0.16, 0.02)], 0.03, pen.dark)


@vehicle("train", "diesel locomotive", aspect=2.1)
def diesel_locomotive(pen: Pen) -> None:
    """Side view: a long engine hood with grilles, a cab near one end, many wheels."""
    rail(pen, 2.1)
    stripe, top = apart(pen.accent, pen.body, 40), pen.between(0.12, 0.2)
    for cx in (0.44, 1.64):
        pen.rectangle(cx - 0.34, 0.78, cx + 0.34, 0.9, pen.dark)
        for k in (-1, 0, 1):
            wheel(pen, cx + 0.23 * k, 0.1, base=0.97)
    pen.rectangle(0.84, 0.74, 1.24, 0.92, pen.dark, radius=0.04)
    for x in (0.4, 0.75):
        pen.rectangle(x, top - 0.08, x + 0.18, top + 0.04, pen.dark)
    pen.rectangle(0.1, top, 1.36, 0.76, pen.body)
    pen.polygon([(1.74, 0.38), (2.0, 0.42), (2.02, 0.76), (1.74, 0.76)], pen.body)
    pen.rectangle(1.32, top - 0.1, 1.78, 0.76, pen.body)
    pen.rectangle(1.28, top - 0.12, 1.82, top - 0.04, shade(pen.body, 0.5))
    panes(pen, box(1.35, top + 0.02, 1.76, top + 0.2), 0, 0, 1, 1, 2, 0.2)
    panes(pen, box(0.2, top + 0.1, 1.1, top + 0.3), 0, 0, 1, 1, pen.pick(3, 4, 5), 0.3, shade(pen.body, 0.5))
    with pen.atop():
        pen.rectangle(0.1, 0.54, 2.02, 0.64, stripe, outline=False)
    pen.rectangle(0.02, 0.72, 2.08, 0.8, pen.dark)
    pen.ellipse(1.98, 0.48, 0.045, 0.045, pen.light)
    for x in (0.05, 2.06):
        pen.line([(x, 0.74), (x, 0.5)], 0.022, pen.light)


def train_front(pen: Pen, at: Place, door: bool) -> None:
    """The front of a train on a face: split windscreen, middle door or lamp, low lights."""
    if door:
        panel(pen, at, 0.08, 0.2, 0.34, 0.5, pen.glass)
        panel(pen, at, 0.66, 0.2, 0.92, 0.5, pen.glass)
        panel(pen, at, 0.38, 0.14, 0.62, 0.9, shade(pen.body, 0.7))
        panel(pen, at, 0.42, 0.2, 0.58, 0.5, pen.glass, outline=False)
    else:
        panel(pen, at, 0.08, 0.2, 0.92, 0.48, pen.dark)
        panel(pen, at, 0.12, 0.23, 0.48, 0.45, pen.glass, outline=False)
        panel(pen, at, 0.52, 0.23, 0.88, 0.45, pen.glass, outline=False)
    for u in (0.1, 0.74):
        panel(pen, at, u, 0.66, u + 0.16, 0.76, pen.light)


def track(pen: Pen, near: float, far: float, cx: float, y0: float, shift: float = 0.0) -> None:
    """Two rails and sleepers coming towards the viewer, from y0 down to 1."""
    for k in range(3):
        y = y0 + (0.99 - y0) * (k + 0.5) / 3
        w = far + (near - far) * (k + 0.5) / 3 + 0.06
        pen.rectangle(cx - w, y - 0.015, cx + w, y + 0.025, pen.color("brown"), outline=False)
    for side in (-1, 1):
        pen.line([(cx + side * far, y0), (cx + side * near + shift, 0.98)], 0.035, shade(pen.light, 0.65))


@vehicle("train", "subway train", "metro train", aspect=0.85)
def metro_front(pen: Pen) -> None:
    """Front view: an arched face with a middle door, coupler and rails below."""
    track(pen, 0.36, 0.27, 0.425, 0.84)
    top = [(0.04, 0.82), (0.03, 0.25), (0.12, 0.07), (0.425, 0.0), (0.73, 0.07), (0.82, 0.25), (0.81, 0.82)]
    pen.polygon(soft(top, 0.12), pen.body)
    at = box(0.04, 0.02, 0.81, 0.86)
    with pen.atop():
        panel(pen, at, 0.0, 0.56, 1.0, pen.between(0.62, 0.8), apart(pen.accent, pen.body, 40), outline=False)
    train_front(pen, at, pen.chance(0.65))
    pen.rectangle(0.28, 0.06, 0.57, 0.12, pen.dark)
    pen.ellipse(0.425, 0.09, 0.04, 0.03, pen.light, outline=False)
    pen.rectangle(0.07, 0.8, 0.78, 0.87, pen.dark)
    pen.rectangle(0.36, 0.78, 0.49, 0.92, shade(pen.light, 0.5))


@vehicle("train", aspect=1.7)
def train_in_perspective(pen: Pen) -> None:
    """From the front corner: a tall face to the right and several cars running far back."""
    x, far = pen.between(1.0, 1.1), pen.between(0.36, 0.42)
    side = face((0.0, far), (x, 0.02), (x, 0.9), (0.0, far + 0.26))
    front = face((x, 0.02), (1.6, 0.06), (1.6, 0.84), (x, 0.9))
    pen.polygon(
        [(0.0, far + 0.26), (x, 0.86), (1.56, 0.84), (1.66, 0.99), (1.02, 1.0), (0.0, far + 0.34)],
        shade(pen.color("gray"), 0.5),
    )
    pen.line([(0.02, far + 0.31), (1.12, 0.98)], 0.03, shade(pen.light, 0.7))
    pen.line([(1.5, 0.86), (1.62, 0.98)], 0.03, shade(pen.light, 0.7))
    dim, stripe = shade(pen.body, 0.78), apart(pen.accent, pen.body, 40)
    panel(pen, side, 0, 0, 1, 1, dim)
    panel(pen, side, 0, 0.6, 1, 0.74, shade(stripe, 0.8), outline=False)
    joints = (0.0, 0.2, 0.5, 1.0)
    for a, b, n in zip(joints, joints[1:], (2, 3, 4), strict=False):
        panes(pen, side, a + 0.03, 0.2, b - 0.02, 0.5, n, 0.25, apart(pen.glass, dim))
        if a > 0:
            panel(pen, side, a - 0.012, 0.0, a + 0.012, 1, pen.dark, outline=False)
    slant = pen.between(0.0, 0.08)
    nose = [front(0, 0), front(1, 0), front(1 + slant, 0.5), front(1 + slant, 1), front(slant * 0.5, 1.02)]
    pen.polygon(nose, pen.body)
    panel(pen, front, 0.0, 0.58, 1.0 + slant, 0.7, stripe, outline=False)
    train_front(pen, front, pen.chance(0.4))
    panel(pen, front, 0.4, 0.06, 0.6, 0.13, pen.light, outline=False)
    panel(pen, front, 0.02, 0.88, 1.0, 1.0, pen.dark, outline=False)


# ---- trucks ------------------------------------------------------------


def cab(pen: Pen, x: float, width: float, top: float, color: Color) -> None:
    """A lorry's upright cab with window, light and bumper."""
    w = width
    pen.polygon(
        soft([(x, 0.86), (x, top), (x + w * 0.7, top), (x + w, top + 0.3), (x + w, 0.86)], 0.06), color
    )
    glass = [
        (x + w * 0.28, top + 0.08),
        (x + w * 0.66, top + 0.08),
        (x + w * 0.92, top + 0.3),
        (x + w * 0.28, top + 0.3),
    ]
    pen.polygon(glass, apart(pen.glass, color))
    pen.line([(x + w * 0.3, top + 0.38), (x + w * 0.48, top + 0.38)], 0.025, shade(color, 0.5))
    pen.rectangle(x + w - 0.09, 0.66, x + w, 0.74, pen.light, outline=False)
    pen.rectangle(x + w - 0.2, 0.78, x + w + 0.02, 0.87, pen.dark)


def cargo(pen: Pen) -> Color:
    """The color of a truck's load box: the cab's own, a neutral one or another."""
    return pen.pick(pen.body, pen.body, pen.light, pen.accent)


@vehicle("truck", "lorry", "box truck", aspect=1.9)
def box_truck(pen: Pen) -> None:
    """A cab and, clearly apart from it, a taller box for the load."""
    x, load = pen.between(1.3, 1.4), cargo(pen)
    r = pen.between(0.14, 0.16)
    pen.rectangle(0.04, 0.74, 1.8, 0.84, pen.dark)
    cab(pen, x + 0.03, 1.88 - x - 0.03, pen.between(0.24, 0.34), pen.body)
    pen.rectangle(0.01, 0.02, x - 0.03, 0.76, load)
    if pen.chance(0.5):
        pen.rectangle(0.2, 0.26, x - 0.22, 0.46, apart(pen.body, load, 40), outline=False)
    else:
        for k in range(1, 5):
            pen.line([(x * k / 5, 0.06), (x * k / 5, 0.72)], 0.018, shade(load, 0.75))
    for wx in pen.pick((0.3, 1.58), (0.25, 0.6, 1.58)):
        wheel(pen, wx, r)


@vehicle("truck", "tanker truck", "tank truck", aspect=2.1)
def tanker(pen: Pen) -> None:
    """A cab pulling a long round tank."""
    r, load = pen.between(0.14, 0.16), cargo(pen)
    pen.rectangle(0.04, 0.72, 2.0, 0.84, pen.dark)
    cab(pen, 1.56, 0.52, pen.between(0.14, 0.22), pen.body)
    pen.rectangle(0.7, 0.1, 0.86, 0.22, shade(load, 0.6))
    pen.rectangle(0.01, 0.18, 1.52, 0.74, load, radius=0.27)
    with pen.atop():
        pen.rectangle(0.0, 0.58, 1.52, 0.74, shade(load, 0.72), outline=False)
        pen.rectangle(0.0, 0.24, 1.52, 0.31, shade(load, 1.4), outline=False)
        for x in (0.35, 0.76, 1.17):
            pen.rectangle(x, 0.18, x + 0.035, 0.74, shade(load, 0.5), outline=False)
    for x in (0.28, 0.62, 1.32, 1.8):
        wheel(pen, x, r)


@vehicle("truck", "dump truck", "tipper", aspect=1.75)
def dump_truck(pen: Pen) -> None:
    """A cab and an open, slanted body, sometimes heaped or tipped."""
    r = pen.between(0.16, 0.19)
    load = cargo(pen)
    pen.rectangle(0.04, 0.7, 1.6, 0.84, pen.dark)
    cab(pen, 1.22, 0.5, pen.between(0.18, 0.26), pen.body)
    if pen.chance(0.4):
        pen.line([(0.62, 0.74), (0.92, 0.4)], 0.07, metal(pen))
        pen.polygon([(0.0, 0.42), (0.02, 0.74), (0.32, 0.76), (1.2, 0.34), (1.22, 0.02), (0.95, 0.02)], load)
        pen.polygon([(0.24, 0.46), (0.36, 0.66), (0.44, 0.62), (0.34, 0.42)], shade(load, 0.6), outline=False)
        pen.polygon([(0.76, 0.19), (0.86, 0.44), (0.94, 0.4), (0.86, 0.15)], shade(load, 0.6), outline=False)
    else:
        if pen.chance(0.7):
            pen.curve(
                [(0.12, 0.34), (0.35, 0.1), (0.62, 0.04), (0.95, 0.14), (1.12, 0.34), (0.6, 0.4)],
                pen.color("brown"),
            )
        pen.polygon([(0.0, 0.26), (1.16, 0.26), (1.16, 0.7), (0.2, 0.72)], load)
        pen.polygon([(1.1, 0.06), (1.5, 0.06), (1.5, 0.12), (1.18, 0.14), (1.18, 0.6), (1.1, 0.6)], load)
        for x in (0.32, 0.6, 0.88):
            pen.rectangle(x, 0.3, x + 0.06, 0.68, shade(load, 0.6), outline=False)
    for x in (0.32, 0.72, 1.42) if r < 0.175 else (0.46, 1.4):
        wheel(pen, x, r)


@vehicle("truck", "semi truck", "semi-trailer", aspect=2.3)
def semi_truck(pen: Pen) -> None:
    """A bonneted tractor with exhaust stacks, pulling a long trailer."""
    r, load = pen.between(0.13, 0.15), cargo(pen)
    pen.rectangle(0.04, 0.72, 2.2, 0.84, pen.dark)
    pen.rectangle(0.01, 0.06, 1.46, 0.72, load)
    if pen.chance(0.6):
        pen.rectangle(0.01, 0.3, 1.46, pen.between(0.4, 0.5), apart(pen.body, load, 40), outline=False)
    pen.line([(1.56, 0.02), (1.56, 0.6)], 0.05, metal(pen))
    pen.polygon(soft([(1.9, 0.48), (2.22, 0.5), (2.27, 0.56), (2.27, 0.86), (1.9, 0.86)], 0.08), pen.body)
    pen.polygon(soft([(1.6, 0.84), (1.6, 0.16), (1.82, 0.16), (1.96, 0.48), (1.96, 0.84)], 0.06), pen.body)
    pen.polygon([(1.68, 0.25), (1.8, 0.25), (1.9, 0.47), (1.68, 0.47)], pen.glass)
    pen.rectangle(2.18, 0.58, 2.28, 0.67, pen.light, outline=False)
    pen.rectangle(2.14, 0.8, 2.3, 0.88, pen.dark)
    for x in (0.25, 0.56, 1.4, 1.7, 2.08):
        wheel(pen, x, r)


@vehicle("truck", aspect=1.5)
def truck_in_perspective(pen: Pen) -> None:
    """From the front corner: a cab's face to the right, and the taller load box running back."""
    x, load = pen.between(0.94, 1.02), cargo(pen)
    for wx, r in ((0.2, 0.11), (0.4, 0.115), (0.86, 0.15)):
        pen.ellipse(wx, 0.85 if wx < 0.5 else 0.845, r * 0.7, r, pen.dark)
        pen.ellipse(wx, 0.85 if wx < 0.5 else 0.845, r * 0.36, r * 0.5, shade(pen.light, 0.7), outline=False)
    pen.rectangle(1.32, 0.84, 1.46, 0.99, pen.dark, radius=0.04)
    pen.rectangle(0.04, 0.72, 0.8, 0.8, pen.dark, outline=False)
    panel(pen, face((0.02, 0.12), (0.72, 0.01), (0.72, 0.76), (0.02, 0.74)), 0, 0, 1, 1, shade(load, 0.86))
    panel(pen, face((0.72, 0.01), (1.34, 0.05), (1.34, 0.6), (0.72, 0.76)), 0, 0, 1, 1, load)
    side = face((0.74, 0.26), (x, 0.24), (x, 0.88), (0.74, 0.82))
    front = face((x, 0.24), (1.49, 0.27), (1.49, 0.88), (x, 0.92))
    dim = shade(pen.body, 0.75)
    panel(pen, side, 0, 0, 1, 1, dim)
    panel(pen, side, 0.2, 0.12, 0.9, 0.46, apart(pen.glass, dim))
    pen.ellipse(0.86, 0.85, 0.1, 0.14, pen.dark, outline=False)
    pen.ellipse(0.86, 0.85, 0.055, 0.075, shade(pen.light, 0.7), outline=False)
    panel(pen, front, 0, 0, 1, 1, pen.body)
    panel(pen, front, 0.07, 0.1, 0.93, 0.44, pen.glass)
    panel(pen, front, 0.2, 0.54, 0.8, 0.76, pen.dark)
    for k in (0.6, 0.68):
        panel(pen, front, 0.22, k, 0.78, k + 0.03, shade(pen.light, 0.7), outline=False)
    for u in (0.03, 0.8):
        panel(pen, front, u, 0.78, u + 0.17, 0.88, pen.light)
    panel(pen, front, 0, 0.9, 1, 1, pen.dark, outline=False)
