"""What stands in a home: bottles, chairs, dining tables, potted plants, sofas, televisions and monitors.

Helpers shared by the kinds: `lathe` draws turned shapes from half a profile, `leaf` a pointed leaf, and `pot`
a flower pot.
"""

from collections.abc import Sequence
from itertools import pairwise

import numpy as np

from attn2mask.builders.drawn.canvas import Color, Pen, Points, shade, smooth, tone
from attn2mask.builders.drawn.kinds import kind


def lathe(pen: Pen, profile: Points, color: Color, cx: float = 0.5, curved: bool = True) -> None:
    """A shape symmetric about `cx` from its right half as (half width, y) points from top to bottom."""
    right = smooth(profile, closed=False) if curved else np.asarray(profile, dtype=np.float64)
    left = right[::-1] * (-1, 1)
    pen.polygon(np.concatenate([right, left]) + np.array([cx, 0]), color)


def leaf(
    pen: Pen,
    x: float,
    y: float,
    length: float,
    width: float,
    angle: float,
    color: Color,
    aspect: float,
    rib: bool,
) -> None:
    """A pointed leaf growing from (x, y); `angle` in radians from upright, positive to the right."""
    t = np.array([0, 0.2, 0.45, 0.75, 1.0])
    half = width * np.array([0.12, 0.75, 1.0, 0.6, 0.0]) / 2
    side = np.concatenate([np.stack([half, t * length], 1), np.stack([-half, t * length], 1)[-2::-1]])
    c, s = np.cos(angle), np.sin(angle)

    def place(p: np.ndarray) -> np.ndarray:
        u, v = p[:, 0], p[:, 1]
        return np.stack([x + (u * c + v * s) / aspect, y + u * s - v * c], 1)

    pen.polygon(place(side), color)
    if rib:
        pen.line(place(np.array([[0, length * 0.12], [0, length * 0.8]])), 0.014, tone(color, 0.35))


def pot(pen: Pen, cx: float, top: float, half: float, color: Color) -> None:
    """A flower pot with a rim, standing on y = 1."""
    foot, style = half * pen.between(0.6, 0.8), pen.rng.integers(3)
    rim = min(0.07, (1 - top) * 0.28)
    if style == 0:
        lathe(pen, [(half * 0.7, top), (half, top + (1 - top) * 0.45), (foot, 1)], color, cx)
    else:
        lathe(pen, [(half * 0.9, top), (foot if style == 1 else half * 0.86, 1)], color, cx, curved=False)
    pen.rectangle(cx - half, top, cx + half, top + rim, tone(color, 0.22), 0.015)
    if pen.chance(0.4):
        with pen.atop():
            y = top + (1 - top) * 0.55
            pen.rectangle(cx - half, y, cx + half, y + (1 - top) * 0.2, tone(color, 0.4), outline=False)


def foliage(pen: Pen) -> tuple[Color, Color]:
    """Colors of (leaves, pot): the body is on the one or the other, and half of the leaves are green."""
    return (pen.color("green"), pen.body) if pen.chance(0.5) else (pen.body, pen.accent)


def glint(pen: Pen, x: float, y0: float, y1: float, width: float, color: Color) -> None:
    """A bright streak on a shiny body."""
    with pen.atop():
        pen.line([(x, y0), (x, y1)], width, shade(color, 1.5))


# bottles


@kind("bottle", "wine bottle", aspect=0.36)
def bottle(pen: Pen) -> None:
    """A wine or soda bottle: shoulder, neck, cap and label."""
    neck, shoulder = pen.between(0.15, 0.2), pen.between(0.36, 0.5)
    soft = pen.between(0.06, 0.14)
    body = [(neck, 0.03), (neck, shoulder - soft - 0.06), (neck * 1.3, shoulder - soft), (0.45, shoulder)]
    if pen.chance(0.35):  # a soda bottle's waist
        body += [(0.48, shoulder + 0.1), (0.4, 0.68), (0.48, 0.85), (0.47, 0.97), (0.38, 1)]
    else:
        body += [(0.48, shoulder + 0.06), (0.48, 0.8), (0.48, 0.96), (0.42, 1)]
    lathe(pen, body, pen.body)
    glint(pen, 0.16, shoulder + 0.07, 0.9, 0.045, pen.body)
    low, high = (shoulder + 0.12, pen.between(0.8, 0.9)) if pen.chance(0.85) else (0.62, 0.8)
    with pen.atop():
        pen.rectangle(0.0, low, 1.0, high, pen.pick(pen.accent, pen.light), outline=False)
        if pen.chance(0.6):
            pen.ellipse(0.5, (low + high) / 2, 0.22, 0.06, pen.pick(pen.body, pen.dark), outline=False)
        else:
            pen.rectangle(0.0, low + 0.05, 1.0, low + 0.1, pen.pick(pen.body, pen.dark), outline=False)
    cap = pen.pick(pen.accent, pen.dark, tone(pen.body, 0.45))
    pen.rectangle(0.5 - neck * 1.25, 0, 0.5 + neck * 1.25, pen.between(0.06, 0.14), cap, 0.02)


@kind("bottle", "squeeze bottle", "flask", aspect=0.46)
def squeeze_bottle(pen: Pen) -> None:
    """A plastic bottle: a broad rounded body, a collar and a nozzle or a sports cap."""
    top = pen.between(0.26, 0.36)
    cap = pen.pick(pen.accent, tone(pen.body, 0.4), pen.dark)
    if pen.chance(0.5):
        lathe(pen, [(0.05, 0), (0.11, top - 0.1)], cap, curved=False)
    else:
        pen.rectangle(0.36, 0.0, 0.64, top - 0.09, cap, 0.03)
    pen.rectangle(0.22, top - 0.12, 0.78, top, tone(cap, 0.2), 0.03)
    lathe(pen, [(0.28, top - 0.01), (0.46, top + 0.09), (0.48, 0.6), (0.47, 0.94), (0.38, 1)], pen.body)
    glint(pen, 0.17, top + 0.14, 0.9, 0.05, pen.body)
    with pen.atop():
        if pen.chance(0.5):
            y = pen.between(0.5, 0.56)
            pen.ellipse(0.52, y + 0.12, 0.3, 0.14, pen.accent, outline=False)
        else:
            pen.rectangle(0.0, 0.55, 1.0, 0.82, pen.accent, outline=False)
            pen.rectangle(0.0, 0.65, 1.0, 0.71, pen.light, outline=False)


@kind("bottle", "carafe", "decanter", aspect=0.62)
def carafe(pen: Pen) -> None:
    """A bulbous glass vessel with a thin neck, a stopper and something in it."""
    neck, middle = pen.between(0.1, 0.14), pen.between(0.7, 0.78)
    top = 0.16
    if pen.chance(0.7):
        pen.ellipse(0.5, 0.08, 0.13, 0.08, pen.accent)
    else:
        top = 0.02
    body = [
        (neck * 1.5, top),
        (neck, top + 0.06),
        (neck, 0.38),
        (0.28, 0.5),
        (0.49, middle),
        (0.42, 0.95),
        (0.3, 1),
    ]
    glassy = shade(pen.body, 1.45) if sum(pen.body) < 560 else shade(pen.body, 0.8)
    lathe(pen, body, glassy)
    fill = pen.between(0.56, 0.66)
    with pen.atop():
        rim = np.interp(fill, [0.38, 0.5, middle], [neck, 0.28, 0.49]) - 0.03
        lathe(pen, [(rim, fill), (0.44, middle), (0.38, 0.93), (0.26, 0.97)], pen.body)
        pen.ellipse(0.5, fill, rim, 0.03, tone(pen.body, 0.25), outline=False)
        pen.line([(0.22, 0.7), (0.24, 0.82)], 0.04, shade(pen.body, 1.6))


@kind("bottle", "perfume bottle", aspect=0.62)
def perfume(pen: Pen) -> None:
    """A squat flacon with a big cap."""
    top = pen.between(0.36, 0.44)
    cap = pen.pick(pen.accent, pen.dark, pen.color("yellow"))
    if pen.chance(0.5):
        pen.ellipse(0.5, 0.14, 0.23, 0.14, cap)
    else:
        pen.rectangle(0.3, 0.0, 0.7, top - 0.1, cap, 0.03)
    pen.rectangle(0.38, top - 0.13, 0.62, top + 0.03, tone(cap, 0.4))
    if pen.chance(0.5):
        pen.rectangle(0.02, top, 0.98, 1, pen.body, 0.1)
        pen.rectangle(0.14, top + 0.09, 0.86, 0.92, shade(pen.body, 1.35), 0.06, outline=False)
    else:
        lathe(pen, [(0.16, top), (0.49, top + 0.24), (0.45, 0.84), (0.3, 1)], pen.body)
        glint(pen, 0.2, top + 0.2, 0.82, 0.04, pen.body)
    pen.rectangle(0.3, 0.64, 0.7, 0.82, pen.pick(pen.light, pen.accent), 0.02)


# chairs


@kind("chair", "dining chair", aspect=0.64)
def dining_chair(pen: Pen) -> None:
    """A wooden chair in three-quarter view: back with slats at the left, seat, four legs."""
    slant, seat, w = pen.between(0.2, 0.34), pen.between(0.5, 0.58), pen.between(0.085, 0.11)
    depth, frame = pen.between(0.1, 0.15), pen.body
    far, near = 1 - slant, slant  # right end of the back edge, left end of the front edge
    lean, foot = pen.between(0.0, 0.06), 1 - depth
    dim = tone(frame, 0.3)
    for x in (0.06 + w / 2, far - w / 2):  # hind legs
        pen.rectangle(x - w / 2, seat, x + w / 2, foot, dim)
    back = pen.rng.integers(3)
    top = 0.03
    if back == 0:  # upright slats
        for x in np.linspace(0.06 + w, far - w - 0.08, 4)[1:3]:
            pen.rectangle(x, top, x + 0.08, seat, dim)
    elif back == 1:  # rungs
        for y in (0.19, 0.34):
            pen.rectangle(0.06, y, far, y + 0.07, dim)
    else:  # a padded panel
        pen.rectangle(0.06, 0.05, far, pen.between(0.34, 0.44), pen.accent, 0.03)
    for x in (0.06 + w / 2, far - w / 2):
        p = [
            (x - w / 2 - lean, top),
            (x + w / 2 - lean, top),
            (x + w / 2, seat + 0.03),
            (x - w / 2, seat + 0.03),
        ]
        pen.polygon(p, frame)
    pen.rectangle(0.03 - lean / 2, 0.0, far + 0.03 - lean, pen.between(0.08, 0.13), frame, 0.03)
    for x in (near + 0.02, 0.98 - w):  # front legs
        pen.rectangle(x, seat + depth, x + w, 1, frame)
    if pen.chance(0.4):
        pen.rectangle(near + 0.04, 0.82, 0.96, 0.86, dim)
    front = seat + depth
    top_color = pen.accent if back == 2 or pen.chance(0.4) else shade(frame, 1.18)
    pen.polygon([(0.04, seat), (far + 0.02, seat), (1, front), (near, front)], top_color)
    pen.rectangle(near, front, 1, front + 0.06, tone(frame, 0.2))


@kind("chair", "armchair", aspect=0.95)
def armchair(pen: Pen) -> None:
    """A padded chair for one from the front: tall back, one cushion, two fat arms, stubby feet."""
    arm, top, seat = pen.between(0.2, 0.25), pen.between(0.36, 0.46), pen.between(0.6, 0.66)
    cloth, legs = pen.body, pen.pick(pen.dark, pen.color("brown"))
    for x in (0.1, 0.82):
        pen.polygon([(x, 0.88), (x + 0.09, 0.88), (x + 0.075, 1), (x + 0.015, 1)], legs)
    r = pen.between(0.08, 0.24)
    pen.rectangle(0.12, 0, 0.88, 0.8, tone(cloth, 0.2), r)
    pen.rectangle(0.22, 0.1, 0.78, 0.7, cloth, r * 0.8)
    if pen.chance(0.4):
        with pen.atop():
            for x in (0.38, 0.5, 0.62):
                pen.ellipse(x, 0.26, 0.022, 0.022, tone(cloth, 0.5), outline=False)
    pen.rectangle(0.12, seat + 0.08, 0.88, 0.92, tone(cloth, 0.3))
    cushion = pen.accent if pen.chance(0.35) else shade(cloth, 1.2)
    pen.rectangle(arm - 0.04, seat, 1.04 - arm, seat + 0.15, cushion, 0.05)
    for x in (0.0, 1 - arm):
        pen.rectangle(x, top, x + arm, 0.92, cloth, arm * 0.45)
        pen.ellipse(x + arm / 2, top + arm * 0.5, arm * 0.32, arm * 0.32, tone(cloth, 0.22), outline=False)


@kind("chair", "office chair", aspect=0.66)
def office_chair(pen: Pen) -> None:
    """A swivel chair: rounded back, seat, arm rests, a pedestal and a star of casters."""
    metal = pen.pick(pen.dark, pen.color("gray"))
    seat = pen.between(0.52, 0.58)
    pen.rectangle(0.45, seat, 0.55, 0.86, metal)
    for x in (0.07, 0.28, 0.72, 0.93):
        pen.line([(0.5, 0.84), (x, 0.93)], 0.05, metal)
    for x in (0.08, 0.36, 0.64, 0.92):
        pen.ellipse(x, 0.955, 0.065, 0.045, pen.dark)
    pen.rectangle(0.46, 0.36, 0.54, seat + 0.05, metal)
    back = pen.pick([(0.3, 0.0), (0.42, 0.12), (0.36, 0.44)], [(0.34, 0.0), (0.38, 0.2), (0.4, 0.46)])
    lathe(pen, [(back[0][0] * 0.75, 0.0), *back[1:], (back[2][0] * 0.7, back[2][1] + 0.03)], pen.body)
    if pen.chance(0.6):
        with pen.atop():
            pen.rectangle(0.24, 0.09, 0.76, 0.38, tone(pen.body, 0.2), 0.08, outline=False)
    if pen.chance(0.75):
        for s in (-1, 1):
            x = 0.5 + s * 0.44
            pen.line([(x, 0.38), (x, seat + 0.03), (0.5, seat + 0.05)], 0.045, metal)
            pen.rectangle(x - 0.06, 0.34, x + 0.06, 0.4, pen.dark, 0.03)
    color = pen.pick(pen.body, shade(pen.body, 1.15), pen.accent)
    pen.rectangle(0.08, seat, 0.92, seat + 0.13, color, 0.06)


@kind("chair", "rocking chair", aspect=0.9)
def rocking_chair(pen: Pen) -> None:
    """A rocking chair from the side: leaning back, seat, arm rest and a curved runner."""
    wood, lean = pen.body, pen.between(0.06, 0.12)
    dark = tone(wood, 0.3)
    pen.line([(0.02, 0.86), (0.25, 0.955), (0.5, 0.972), (0.75, 0.95), (0.98, 0.84)], 0.06, dark, curved=True)
    for x0, x1 in ((0.32, 0.24), (0.76, 0.8)):
        pen.line([(x0, 0.62), (x1, 0.93)], 0.07, dark)
    pen.line([(0.25, 0.79), (0.79, 0.79)], 0.045, dark)
    far = 0.19
    if pen.chance(0.5):  # a woven or padded back between the posts
        p = [(lean, 0.12), (lean + far, 0.1), (0.3 + far, 0.56), (0.3, 0.58)]
        pen.polygon(p, pen.pick(pen.accent, tone(wood, 0.2)))
    else:
        for t in (0.3, 0.55, 0.8):
            x, y = lean + (0.3 - lean) * t, 0.04 + 0.52 * t
            pen.line([(x, y), (x + far, y - 0.02)], 0.055, dark)
    pen.line([(lean + far, 0.05), (0.3 + far, 0.58)], 0.06, dark)
    pen.line([(lean, 0.06), (0.3, 0.6)], 0.07, wood)
    pen.line([(lean - 0.02, 0.06), (lean + far + 0.03, 0.04)], 0.085, wood)
    pen.line([(0.24, 0.4), (0.72, 0.4)], 0.06, wood)
    pen.line([(0.7, 0.4), (0.73, 0.6)], 0.055, dark)
    pen.polygon([(0.28, 0.57), (0.86, 0.55), (0.86, 0.64), (0.28, 0.66)], pen.pick(wood, pen.accent))


@kind("chair", "bench", aspect=1.7)
def bench(pen: Pen) -> None:
    """A park bench: boards of the back, boards of the seat and two frames with arm rests."""
    frame, wood = pen.pick(pen.accent, pen.dark), pen.body
    rows, inset = int(pen.rng.integers(2, 4)), pen.between(0.1, 0.18)
    for x in (inset, 1 - inset - 0.05):
        pen.rectangle(x, 0.05, x + 0.05, 0.6, frame)
        pen.rectangle(x - 0.05, 0.55, x, 1, frame)
        pen.rectangle(x + 0.06, 0.55, x + 0.1, 0.92, tone(frame, 0.2))
    step = 0.46 / rows
    for i in range(rows):
        pen.rectangle(0.03, i * step, 0.97, i * step + step * 0.68, wood, 0.015)
    pen.rectangle(0.01, 0.53, 0.99, 0.6, shade(wood, 1.2), 0.01)
    pen.rectangle(0.0, 0.6, 1.0, 0.7, wood, 0.01)
    if pen.chance(0.6):
        for x in (0.03, 0.91):
            pen.rectangle(x, 0.34, x + 0.06, 0.62, frame, 0.02)


# tables


def table_legs(pen: Pen, xs: Sequence[tuple[float, float, float]], w: float, color: Color) -> None:
    """Straight or tapering legs; each of `xs` is (left x, top y, foot y)."""
    taper = pen.pick(0.0, 0.3)
    for x, top, foot in xs:
        pen.polygon([(x, top), (x + w, top), (x + w * (1 - taper), foot), (x + w * taper, foot)], color)


@kind("diningtable", "dining table", "kitchen table", aspect=1.55)
def dining_table(pen: Pen) -> None:
    """A table in three-quarter view: a slanted top on four legs."""
    y, thick, w = pen.between(0.3, 0.42), pen.between(0.07, 0.1), pen.between(0.06, 0.085)
    left, right = pen.pick((0.16, 0.16), (0.24, 0.02), (0.28, -0.0), (0.1, 0.1))
    wood, top = pen.body, pen.pick(shade(pen.body, 1.22), pen.accent, shade(pen.body, 1.1))
    table_legs(pen, [(left + 0.02, y, 0.8), (1 - right - w - 0.04, y, 0.8)], w * 0.85, tone(wood, 0.4))
    table_legs(pen, [(0.03, y, 1), (0.97 - w, y, 1)], w, wood)
    pen.rectangle(0.05, y, 0.95, y + thick + 0.08, tone(wood, 0.32))
    pen.polygon([(left, 0.02), (1 - right, 0.02), (1, y), (0, y)], top)
    pen.rectangle(0, y, 1, y + thick, wood)
    with pen.atop():
        cover = pen.rng.integers(3)
        if cover == 0:  # a runner
            a, b = 0.35, 0.65
            x = [left + (1 - right - left) * t for t in (a, b)]
            pen.polygon(
                [(x[0], 0.02), (x[1], 0.02), (b, y), (a, y)], pen.pick(pen.light, pen.accent), outline=False
            )
        elif cover == 1:  # boards
            for t in (0.35, 0.68):
                p = [(left * (1 - t), 0.02 + (y - 0.02) * t), (1 - right * (1 - t), 0.02 + (y - 0.02) * t)]
                pen.line(p, 0.014, tone(top, 0.25))


@kind("diningtable", "round table", aspect=1.4)
def round_table(pen: Pen) -> None:
    """A round table on a pedestal, sometimes with a hanging cloth."""
    ry, thick = pen.between(0.15, 0.21), pen.between(0.06, 0.09)
    wood, top = pen.body, pen.pick(shade(pen.body, 1.2), pen.accent)
    lathe(pen, [(0.1, ry), (0.06, 0.5), (0.07, 0.8), (0.12, 0.9)], tone(wood, 0.25))
    if pen.chance(0.5):
        lathe(pen, [(0.08, 0.86), (0.26, 0.93), (0.28, 1)], wood)
    else:
        for x in (0.2, 0.8, 0.5):
            pen.line([(0.5, 0.84), (x, 0.965)], 0.07, wood)
    if pen.chance(0.35):
        drop = pen.between(0.42, 0.55)
        wave = [(x, drop + (0.06 if i % 2 else -0.01)) for i, x in enumerate(np.linspace(0.97, 0.03, 9))]
        pen.polygon([(0, ry), (0.5, ry * 2), (1, ry), *wave], pen.body)
    t = np.linspace(0, np.pi, 15)
    edge = np.stack([0.5 + 0.5 * np.cos(t), ry + ry * np.sin(t)], 1)
    pen.polygon(np.concatenate([edge + np.array([0, thick]), edge[::-1]]), wood)
    pen.ellipse(0.5, ry, 0.5, ry, top)


@kind("diningtable", "coffee table", aspect=1.9)
def coffee_table(pen: Pen) -> None:
    """A low table with a thick top, short legs and a shelf below."""
    y, w = pen.between(0.32, 0.42), pen.between(0.06, 0.09)
    slant = pen.between(0.08, 0.2)
    wood, top = pen.body, pen.pick(shade(pen.body, 1.22), pen.glass, pen.accent)
    table_legs(pen, [(slant, y, 0.84), (1 - slant - w, y, 0.84)], w * 0.8, tone(wood, 0.4))
    if pen.chance(0.5):
        pen.polygon([(slant, 0.72), (1 - slant, 0.72), (0.95, 0.84), (0.05, 0.84)], tone(wood, 0.2))
    table_legs(pen, [(0.02, y, 1), (0.98 - w, y, 1)], w, wood)
    pen.polygon([(slant, 0.02), (1 - slant, 0.02), (1, y), (0, y)], top)
    pen.rectangle(0, y, 1, y + 0.14, wood)


@kind("diningtable", "desk", aspect=1.55)
def desk(pen: Pen) -> None:
    """A writing desk: a flat top, a block of drawers at one side and legs at the other."""
    wood, front = pen.body, pen.pick(pen.accent, shade(pen.body, 1.2), tone(pen.body, 0.2))
    y, split = pen.between(0.16, 0.24), pen.between(0.54, 0.64)
    pen.rectangle(0.16, y, 0.22, 0.88, tone(wood, 0.4))
    pen.rectangle(0.04, y, 0.12, 1, wood)
    pen.rectangle(split, y, 0.97, 1, wood)
    n = int(pen.rng.integers(2, 4))
    step = (0.95 - y - 0.14) / n
    for i in range(n):
        a = y + 0.14 + i * step
        pen.rectangle(split + 0.04, a, 0.93, a + step * 0.8, front)
        pen.ellipse((split + 0.97) / 2, a + step * 0.4, 0.035, 0.035, pen.pick(pen.dark, pen.light))
    if pen.chance(0.5):
        for x in (split + 0.02, 0.91):
            pen.rectangle(x, 0.95, x + 0.04, 1, pen.dark)
    if pen.chance(0.4):
        pen.rectangle(0.06, y, split, y + 0.2, tone(wood, 0.15))
    pen.polygon([(0.1, 0.02), (0.9, 0.02), (1, y), (0, y)], shade(wood, 1.25))
    pen.rectangle(0, y, 1, y + 0.085, wood)


# potted plants


@kind("pottedplant", "houseplant", aspect=0.82)
def leafy_plant(pen: Pen) -> None:
    """A pot with a fan of big leaves."""
    a, green, clay = 0.82, *foliage(pen)
    top, n = pen.between(0.62, 0.7), int(pen.rng.integers(6, 9))
    spread, wide = pen.between(1.0, 1.35), pen.between(0.17, 0.25)
    if pen.chance(0.35):  # round leaves on stems
        spots = [(0.16, 0.46), (0.84, 0.44), (0.2, 0.2), (0.8, 0.18), (0.36, 0.34), (0.64, 0.33), (0.5, 0.17)]
        for x, y in spots:
            pen.line(
                [(0.5, top + 0.05), (0.5 + (x - 0.5) * 0.4, y + 0.22), (x, y)],
                0.035,
                tone(green, 0.4),
                curved=True,
            )
        for i, (x, y) in enumerate(spots):
            tilt = np.arctan2(x - 0.5, 0.7 - y) - np.pi / 2
            pen.ellipse(x, y, 0.16, 0.105, (green, tone(green, 0.22))[i % 2], tilt)
        pot(pen, 0.5, top, pen.between(0.24, 0.3), clay)
        return
    angles = np.linspace(-spread, spread, n)
    order = np.argsort(-np.abs(angles) + pen.rng.normal(0, 0.2, n))
    for i in order:
        angle = angles[i]
        length = pen.between(0.54, 0.64) * (1 - 0.42 * abs(angle) / 1.35)
        tint = pen.pick(green, tone(green, 0.2), tone(green, 0.35))
        leaf(pen, 0.5 + angle * 0.04, top + 0.03, length, wide, angle, tint, a, rib=True)
    pot(pen, 0.5, top, pen.between(0.24, 0.3), clay)


@kind("pottedplant", "flower", "flower pot", aspect=0.7)
def flower(pen: Pen) -> None:
    """A pot with one to three big blossoms on stems."""
    a, green, clay = 0.7, *foliage(pen)
    petals = pen.accent if clay == pen.body else pen.color()
    heart = pen.pick(pen.color("yellow"), pen.dark, pen.light)
    top, count = pen.between(0.68, 0.75), int(pen.pick(1, 3, 3, 2))
    spots = {1: [(0.5, 0.21, 0.21)], 2: [(0.25, 0.2, 0.155), (0.74, 0.3, 0.155)]}
    spots[3] = [(0.22, 0.33, 0.14), (0.78, 0.33, 0.14), (0.5, 0.15, 0.15)]
    for x, y, _ in spots[count]:
        pen.line(
            [(x, y), (0.5 + (x - 0.5) * 0.6, 0.5), (0.5, top + 0.05)], 0.05, tone(green, 0.25), curved=True
        )
    for side in (-1, 1):
        leaf(
            pen,
            0.5,
            top + 0.03,
            pen.between(0.3, 0.36),
            0.15,
            side * pen.between(0.8, 1.15),
            green,
            a,
            rib=False,
        )
    n = int(pen.rng.integers(5, 8))
    for x, y, r in spots[count]:
        turn = pen.between(0, 1)
        for k in range(n):
            t = 2 * np.pi * k / n + turn
            px, py = x + 0.58 * r * np.cos(t) / a, y + 0.58 * r * np.sin(t)
            c, s = np.cos(t) * r * 0.44, np.sin(t) * r * 0.44
            u = np.linspace(0, 2 * np.pi, 12, endpoint=False)
            p = np.stack(
                [px + (c * np.cos(u) - 0.75 * s * np.sin(u)) / a, py + s * np.cos(u) + 0.75 * c * np.sin(u)],
                1,
            )
            pen.polygon(p, petals)
        pen.ellipse(x, y, r * 0.34 / a, r * 0.34, heart)
    pot(pen, 0.5, top, pen.between(0.25, 0.33), clay)


@kind("pottedplant", "cactus", aspect=0.72)
def cactus(pen: Pen) -> None:
    """A cactus with arms or a round one, in a pot."""
    green, clay = foliage(pen)
    top, line = pen.between(0.7, 0.76), tone(green, 0.4)
    if pen.chance(0.7):
        arms = [(-1, pen.between(0.42, 0.5)), (1, pen.between(0.34, 0.44))]
        for side, y in arms if pen.chance(0.7) else arms[:1]:
            x = 0.5 + side * 0.34
            pen.line(
                [(0.5, y), (x - side * 0.06, y), (x, y - 0.05), (x, y - pen.between(0.14, 0.22))], 0.15, green
            )
        pen.rectangle(0.36, 0, 0.64, top + 0.05, green, 0.14)
        ribs, low = (0.44, 0.56), top - 0.04
    else:
        pen.ellipse(0.5, 0.42, 0.4, 0.37, green)
        if pen.chance(0.7):
            for x in (0.38, 0.62, 0.5):
                pen.ellipse(x, 0.07, 0.11, 0.07, pen.accent)
        ribs, low = (0.26, 0.42, 0.58, 0.74), 0.6
    with pen.atop():
        for x in ribs:
            for y in np.arange(0.14, low, 0.13):
                pen.line([(x, y), (x, y + 0.05)], 0.03, line)
    pot(pen, 0.5, top, pen.between(0.3, 0.38), clay)


@kind("pottedplant", "tree", aspect=0.7)
def small_tree(pen: Pen) -> None:
    """A small tree, clipped round or like a palm or a cone, mostly in a pot."""
    green, clay = foliage(pen)
    potted = pen.chance(0.75)
    top = pen.between(0.76, 0.8) if potted else 1.0
    bark = pen.pick(pen.color("brown"), tone(green, 0.5))
    pen.rectangle(0.43, 0.3, 0.57, top + 0.02 if potted else 1, bark)
    shape = pen.rng.integers(3)
    if shape == 0:  # a crown of clumps
        lobes = [(0.25, 0.36), (0.75, 0.36), (0.3, 0.18), (0.7, 0.18), (0.5, 0.42), (0.5, 0.16)]
        for x, y in lobes:
            pen.ellipse(x, y, 0.25, 0.16, green)
        pen.ellipse(0.5, 0.28, 0.3, 0.2, green, outline=False)
        for x, y in ((0.34, 0.2), (0.66, 0.26), (0.42, 0.42)):
            pen.ellipse(x, y, 0.09, 0.05, tone(green, 0.25), outline=False)
    elif shape == 1:  # a cone in tiers
        for i, y in enumerate((0.36, 0.18, 0.0)):
            w = 0.48 - 0.11 * i
            pen.polygon(
                [(0.5, y), (0.5 + w, y + 0.26), (0.5 - w, y + 0.26)], (green, tone(green, 0.18))[i % 2]
            )
    else:  # balls one above another
        pen.ellipse(0.5, 0.42, 0.4, 0.17, green)
        pen.ellipse(0.5, 0.15, 0.3, 0.15, tone(green, 0.15))
    if potted:
        pot(pen, 0.5, top, pen.between(0.28, 0.36), clay)


# sofas


def scatter_cushions(pen: Pen, y: float, xs: tuple[float, ...]) -> None:
    """Small cushions leaning on a sofa's back."""
    for x in xs:
        c = pen.pick(pen.accent, pen.light, pen.color())
        pen.polygon(
            [(x - 0.06, y - 0.2), (x + 0.07, y - 0.17), (x + 0.06, y + 0.04), (x - 0.07, y + 0.02)], c
        )


@kind("sofa", "couch", "loveseat", aspect=1.85)
def couch(pen: Pen) -> None:
    """A couch from the front: a wide back, two or three cushions, an arm at each end, short feet."""
    n, arm = int(pen.rng.integers(2, 4)), pen.between(0.1, 0.15)
    cloth, top = pen.body, pen.between(0.22, 0.34)
    seat, r = pen.between(0.54, 0.6), pen.between(0.03, 0.1)
    legs = pen.pick(pen.dark, pen.color("brown"))
    for x in (0.06, 0.89):
        pen.rectangle(x, 0.86, x + 0.05, 1, legs)
    pen.rectangle(0.04, 0.0, 0.96, 0.8, tone(cloth, 0.22), r)
    span = (1 - 2 * arm) / n
    plush = shade(cloth, 1.2)
    for i in range(n):
        pen.rectangle(arm + i * span, 0.08, arm + (i + 1) * span - 0.012, seat + 0.06, cloth, 0.05)
    pen.rectangle(0.04, seat + 0.1, 0.96, 0.91, tone(cloth, 0.35))
    if pen.chance(0.45):
        scatter_cushions(pen, seat - 0.04, (arm + 0.1, 0.88 - arm)[: int(pen.rng.integers(1, 3))])
    seat_color = pen.accent if pen.chance(0.25) else plush
    for i in range(n):
        pen.rectangle(arm + i * span, seat, arm + (i + 1) * span - 0.012, seat + 0.19, seat_color, 0.045)
    for x in (0.0, 1 - arm):
        pen.rectangle(x, top, x + arm, 0.92, cloth, arm * pen.pick(0.2, 0.48))
        pen.rectangle(x + 0.025, top + 0.08, x + arm - 0.025, 0.86, tone(cloth, 0.14), 0.03, outline=False)


@kind("sofa", "chaise lounge", "daybed", aspect=2.0)
def chaise(pen: Pen) -> None:
    """A chaise longue: one raised, rolled end, a long seat and feet."""
    cloth, legs = pen.body, pen.pick(pen.dark, pen.color("brown"), pen.accent)
    seat = pen.between(0.46, 0.54)
    for x in (0.1, 0.85):
        pen.polygon([(x, 0.8), (x + 0.06, 0.8), (x + 0.045, 1), (x + 0.015, 1)], legs)
    if pen.chance(0.6):  # a back that runs down along the seat
        end = pen.between(0.6, 0.8)
        back = [
            (0.08, 0.8),
            (0.06, 0.1),
            (0.18, 0.06),
            (0.3, 0.2),
            (end - 0.15, seat - 0.1),
            (end, seat + 0.06),
        ]
        pen.polygon(np.concatenate([smooth(back, closed=False), [(end, 0.8)]]), tone(cloth, 0.2))
    pen.rectangle(0.06, seat + 0.14, 0.99, 0.87, tone(cloth, 0.32), 0.03)
    pen.rectangle(0.12, seat, 1, seat + 0.22, shade(cloth, 1.18), 0.06)
    pen.curve(
        [(0.03, 0.16), (0.1, 0.02), (0.18, 0.14), (0.26, seat - 0.02), (0.17, seat + 0.1), (0.1, 0.5)], cloth
    )
    if pen.chance(0.5):
        pen.rectangle(0.2, seat - 0.14, 0.4, seat + 0.05, pen.accent, 0.06)


@kind("sofa", "sectional sofa", "corner sofa", aspect=1.9)
def sectional(pen: Pen) -> None:
    """A corner sofa: a long back and seat with one part that comes forward."""
    cloth, legs = pen.body, pen.dark
    seat, corner = pen.between(0.48, 0.54), pen.between(0.62, 0.68)
    for x in (0.04, corner + 0.04, 0.93):
        pen.rectangle(x, 0.7, x + 0.04, 0.88 if x < corner else 1, legs)
    pen.rectangle(0.02, 0.0, 0.99, 0.7, tone(cloth, 0.22), 0.06)
    edges = np.linspace(0.1, 0.97, 4)
    for a, b in pairwise(edges):
        pen.rectangle(a, 0.07, b - 0.012, seat + 0.05, cloth, 0.05)
    pen.rectangle(0.02, seat + 0.1, corner + 0.02, 0.8, tone(cloth, 0.35))
    if pen.chance(0.5):
        scatter_cushions(pen, seat - 0.04, (0.2, 0.82)[: int(pen.rng.integers(1, 3))])
    for a, b in ((0.1, corner / 2 + 0.05), (corner / 2 + 0.05, corner)):
        pen.rectangle(a, seat, b - 0.012, seat + 0.17, shade(cloth, 1.2), 0.04)
    pen.rectangle(0.0, 0.24, 0.11, 0.81, cloth, 0.05)
    pen.polygon([(corner, seat), (0.96, seat), (1, 0.74), (corner, 0.74)], shade(cloth, 1.25))
    pen.rectangle(corner, 0.72, 1, 0.92, tone(cloth, 0.18), 0.03)


# televisions and monitors


def screen(pen: Pen, x0: float, y0: float, x1: float, y1: float) -> None:
    """A lit or dark screen with some simple image on it."""
    w, h = x1 - x0, y1 - y0
    pen.rectangle(x0, y0, x1, y1, pen.glass)
    what = pen.rng.integers(5)
    if what == 0:  # plain and dark, with a reflection
        pen.rectangle(x0, y0, x1, y1, pen.dark)
        a = [(x0 + 0.1 * w, y1), (x0 + 0.4 * w, y0), (x0 + 0.6 * w, y0), (x0 + 0.3 * w, y1)]
        pen.polygon(a, shade(pen.dark, 1.25), outline=False)
    elif what == 1:  # upright stripes, a test card
        for i in range(5):
            pen.rectangle(x0 + i * w / 5, y0, x0 + (i + 1) * w / 5, y1, pen.color(), outline=False)
    elif what == 2:  # hills under a sky with a sun
        pen.rectangle(x0, y0, x1, y1, pen.color("blue"), outline=False)
        pen.ellipse(x0 + 0.74 * w, y0 + 0.26 * h, 0.09 * w, 0.13 * h, pen.color("yellow"), outline=False)
        p = [(x0, y1), (x0, y0 + 0.7 * h), (x0 + 0.3 * w, y0 + 0.45 * h), (x0 + 0.65 * w, y0 + 0.75 * h)]
        pen.polygon([*p, (x1, y0 + 0.6 * h), (x1, y1)], pen.color(), outline=False)
    elif what == 3:  # windows of programs
        pen.rectangle(x0, y0, x1, y1, pen.color("teal"), outline=False)
        for a, b in ((0.1, 0.14), (0.36, 0.34)):
            pen.rectangle(
                x0 + a * w, y0 + b * h, x0 + (a + 0.52) * w, y0 + (b + 0.5) * h, pen.light, outline=False
            )
            bar = y0 + (b + 0.14) * h
            pen.rectangle(x0 + a * w, y0 + b * h, x0 + (a + 0.52) * w, bar, pen.color(), outline=False)
    else:  # bands from one color into another
        a, b = np.array(pen.color()), np.array(pen.color())
        for i in range(6):
            c = tuple(int(v) for v in a + (b - a) * i / 5)
            pen.rectangle(x0, y0 + i * h / 6, x1, y0 + (i + 1) * h / 6, c, outline=False)


@kind("tvmonitor", "flat panel monitor", "computer monitor", aspect=1.35)
def flat_screen(pen: Pen) -> None:
    """A flat screen in a frame on a neck and a foot."""
    frame = pen.pick(pen.body, pen.body, pen.dark)
    foot, low = tone(frame, 0.25) if frame == pen.body else pen.body, pen.between(0.76, 0.82)
    pen.rectangle(0.43, low - 0.02, 0.57, 0.95, foot)
    if pen.chance(0.5):
        pen.rectangle(0.24, 0.92, 0.76, 1, tone(foot, 0.15), 0.03)
    else:
        pen.ellipse(0.5, 0.945, 0.27, 0.055, tone(foot, 0.15))
    edge, chin = pen.between(0.035, 0.055), pen.between(0.06, 0.14)
    pen.rectangle(0, 0, 1, low, frame, 0.03)
    screen(pen, edge, edge * 1.35, 1 - edge, low - chin)
    if chin > 0.1:
        pen.ellipse(0.5, low - chin / 2, 0.022, 0.03, pen.light, outline=False)


@kind("tvmonitor", "television", "flat screen tv", aspect=1.6)
def wide_television(pen: Pen) -> None:
    """A wide television on two splayed feet or on a low stand."""
    frame = pen.pick(pen.body, pen.dark)
    foot = pen.body if frame == pen.dark else tone(pen.body, 0.4)
    low = 0.86
    if pen.chance(0.5):
        for x in (0.18, 0.82):
            pen.line([(x - 0.07, 0.97), (x, low - 0.03), (x + 0.07, 0.97)], 0.05, foot)
    else:
        pen.polygon([(0.42, low - 0.02), (0.58, low - 0.02), (0.74, 1), (0.26, 1)], foot)
    pen.rectangle(0, 0, 1, low, frame, 0.02)
    screen(pen, 0.035, 0.055, 0.965, low - 0.065)


@kind("tvmonitor", "crt monitor", "old television", aspect=1.05)
def tube_television(pen: Pen) -> None:
    """An old television: a thick case, a rounded screen, knobs at the side and an antenna on top."""
    aerial = pen.chance(0.7)
    top = 0.27 if aerial else 0.04
    if aerial:
        metal = pen.pick(pen.dark, pen.color("gray"))
        for x in (pen.between(0.14, 0.26), pen.between(0.74, 0.86)):
            pen.line([(0.5, top + 0.02), (x, 0.03)], 0.035, metal)
            pen.ellipse(x, 0.03, 0.03, 0.03, metal)
        pen.ellipse(0.5, top, 0.1, 0.05, metal)
    for x in (0.12, 0.78):
        pen.polygon([(x, 0.9), (x + 0.1, 0.9), (x + 0.08, 1), (x + 0.02, 1)], tone(pen.body, 0.5))
    pen.rectangle(0, top, 1, 0.94, pen.body, 0.07)
    right = pen.between(0.7, 0.76)
    pen.rectangle(0.06, top + 0.06, right, 0.88, tone(pen.body, 0.45), 0.08)
    screen(pen, 0.1, top + 0.1, right - 0.04, 0.84)
    knob = pen.pick(pen.light, pen.dark, pen.accent)
    mid = (right + 1) / 2
    for y in (top + 0.14, top + 0.29):
        pen.ellipse(mid, y, 0.06, 0.06, knob)
    for y in (0.68, 0.75, 0.82):
        pen.line([(mid - 0.06, y), (mid + 0.06, y)], 0.025, tone(pen.body, 0.4))
