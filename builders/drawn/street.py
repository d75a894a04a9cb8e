"""The street and what is behind things: Cityscapes' things, plain surfaces, and scenery without things.

`draw_ground` fills an image with one surface of `GROUNDS`. `draw_backdrop` draws a calm scene of
`BACKDROPS` that holds nothing with a class of its own, and says where its ground begins.
"""

import colorsys
from collections.abc import Callable
from dataclasses import replace
from itertools import pairwise
from typing import Any

import numpy as np
from PIL import Image

from attn2mask.builders.drawn.canvas import SUPERSAMPLE, Color, Pen, Style, shade, smooth, tone
from attn2mask.builders.drawn.kinds import kind


def lean_green(pen: Pen) -> Color:
    """The body color, which becomes green half of the time."""
    if pen.chance(0.5):
        pen.body_name, pen.body = "green", pen.color("green")
        pen.ink = shade(pen.body, 0.3)
    return pen.body


def metal(pen: Pen) -> Color:
    """The color of a post."""
    return pen.pick(pen.dark, pen.color("gray"), pen.accent, tone(pen.body, 0.4))


# poles, lights and signs


@kind("pole", "lamp post", "street light", aspect=0.42)
def lamp_post(pen: Pen) -> None:
    """A street lamp: a tall post with a base and one or two lamps on arms."""
    post, two, glow = pen.body, pen.chance(0.4), pen.pick(pen.color("yellow"), pen.light)
    cx, reach = (0.5, 0.34) if two else (0.2, 0.56)
    pen.rectangle(cx - 0.06, 0.08, cx + 0.06, 1, post)
    pen.polygon([(cx - 0.1, 0.8), (cx + 0.1, 0.8), (cx + 0.18, 1), (cx - 0.18, 1)], tone(post, 0.25))
    for side in (-1, 1) if two else (1,):
        x = cx + side * reach
        pen.line([(cx, 0.13), (cx + side * reach * 0.4, 0.04), (x, 0.05)], 0.075, post, curved=True)
        pen.polygon([(x - 0.1, 0.03), (x + 0.1, 0.03), (x + 0.17, 0.12), (x - 0.17, 0.12)], tone(post, 0.25))
        pen.ellipse(x, 0.125, 0.13, 0.035, glow)


@kind("pole", "lantern", aspect=0.3)
def lantern(pen: Pen) -> None:
    """An old street lamp with a lantern or a globe on top."""
    post, glow = pen.body, pen.pick(pen.color("yellow"), pen.light, pen.glass)
    pen.rectangle(0.4, 0.2, 0.6, 1, post)
    pen.polygon([(0.32, 0.8), (0.68, 0.8), (0.86, 1), (0.14, 1)], tone(post, 0.25))
    pen.rectangle(0.26, 0.27, 0.74, 0.31, tone(post, 0.25))
    if pen.chance(0.5):
        pen.ellipse(0.5, 0.13, 0.43, 0.13, glow)
    else:
        pen.polygon([(0.1, 0.07), (0.9, 0.07), (0.7, 0.23), (0.3, 0.23)], glow)
        pen.polygon([(0.5, 0), (0.98, 0.08), (0.02, 0.08)], post)
        pen.rectangle(0.46, 0.07, 0.54, 0.23, post)


@kind("pole", aspect=0.24)
def plain_pole(pen: Pen) -> None:
    """A plain post on a base, banded or with a ball on top, or a pole with cross bars."""
    shape = pen.rng.integers(3)
    pen.rectangle(0.38, 0.05, 0.62, 1, pen.body)
    if shape == 0:
        pen.rectangle(0.34, 0, 0.66, 0.06, tone(pen.body, 0.3), 0.02)
        with pen.atop():
            for y in np.arange(0.12, 0.8, 0.22):
                pen.rectangle(0.3, y, 0.7, y + 0.11, pen.accent, outline=False)
    elif shape == 1:
        pen.ellipse(0.5, 0.045, 0.2, 0.048, tone(pen.body, 0.3))
    else:
        for y in (0.08, 0.2):
            pen.rectangle(0.02, y, 0.98, y + 0.045, tone(pen.body, 0.3))
            for x in (0.08, 0.92):
                pen.ellipse(x, y - 0.012, 0.08, 0.02, pen.light)
    pen.polygon([(0.3, 0.9), (0.7, 0.9), (0.86, 1), (0.14, 1)], tone(pen.body, 0.35))


def signal(
    pen: Pen, x0: float, y0: float, x1: float, y1: float, aspect: float, case: Color, lit: int
) -> None:
    """A housing with three round lamps one above another; lamp `lit` shines (3: all do)."""
    pen.rectangle(x0, y0, x1, y1, case, 0.05)
    step = (y1 - y0) / 3
    r = min(step * 0.4, (x1 - x0) * aspect * 0.4)
    for i, name in enumerate(("red", "yellow", "green")):
        color = pen.color(name)
        color = shade(color, 1.08) if lit in (i, 3) else shade(color, 0.42)
        pen.ellipse((x0 + x1) / 2, y0 + (i + 0.5) * step, r / aspect, r, color)


@kind("traffic light", "stoplight", aspect=0.36)
def traffic_light(pen: Pen) -> None:
    """A traffic light from the front on its post."""
    case, low = pen.pick(pen.body, pen.body, pen.dark), pen.between(0.6, 0.7)
    pen.rectangle(0.41, low, 0.59, 1, metal(pen) if case == pen.body else pen.body)
    if pen.chance(0.4):
        pen.rectangle(0.24, 0.93, 0.76, 1, pen.dark, 0.02)
    if pen.chance(0.45):  # a backing plate, or hoods at the sides
        pen.rectangle(0.0, 0, 1, low, pen.light if pen.chance(0.5) else tone(case, 0.4), 0.08)
        signal(pen, 0.14, 0.03, 0.86, low - 0.03, 0.36, case, int(pen.rng.integers(4)))
    else:
        for i in range(3):
            y = 0.05 + i * (low - 0.04) / 3
            pen.polygon([(0, y), (1, y), (0.8, y + low * 0.2), (0.2, y + low * 0.2)], tone(case, 0.3))
        signal(pen, 0.1, 0, 0.9, low, 0.36, case, int(pen.rng.integers(4)))


@kind("traffic light", aspect=0.68)
def hanging_light(pen: Pen) -> None:
    """A traffic light that hangs from the arm of a mast at its side."""
    case, mast = pen.pick(pen.body, pen.body, pen.dark), metal(pen)
    pen.rectangle(0.04, 0.04, 0.15, 1, mast)
    pen.rectangle(0.0, 0.93, 0.2, 1, tone(mast, 0.25))
    pen.rectangle(0.04, 0.04, 0.8, 0.1, mast)
    low = pen.between(0.68, 0.78)
    pen.rectangle(0.64, 0.06, 0.74, 0.16, mast)
    signal(pen, 0.42, 0.12, 0.96, low, 0.68, case, int(pen.rng.integers(4)))


def sign_board(pen: Pen, shape: str, cy: float, ry: float, aspect: float, face: Color, rim: Color) -> None:
    """A board of a `shape` about (0.5, cy) with a rim."""
    for scale, color in ((1.0, rim), (0.78, face)):
        h, w = ry * scale, ry * scale / aspect
        if shape == "round":
            pen.ellipse(0.5, cy, w, h, color)
        elif shape == "square":
            pen.rectangle(0.5 - w, cy - h, 0.5 + w, cy + h, color, 0.03)
        else:
            n, turn = {"octagon": (8, np.pi / 8), "diamond": (4, 0.0), "triangle": (3, -np.pi / 2)}[shape]
            t = np.arange(n) * 2 * np.pi / n + turn
            sink = 0.22 * ry if shape == "triangle" else 0.0
            grow = 1.12 if shape == "triangle" else 1.06 if shape == "octagon" else 1.0
            pen.polygon(np.stack([0.5 + w * grow * np.cos(t), cy + sink + h * grow * np.sin(t)], 1), color)


def sign_post(pen: Pen) -> None:
    """The post of a sign."""
    pen.rectangle(0.44, 0.2, 0.56, 1, metal(pen))


@kind("traffic sign", "stop sign", aspect=0.54)
def stop_sign(pen: Pen) -> None:
    """An octagon with a white bar (or bold letters' blocks) on a post."""
    sign_post(pen)
    red = pen.chance(0.5)
    face = pen.color("red") if red else pen.body
    if red:
        pen.body_name, pen.body = "red", face
    sign_board(pen, "octagon", 0.265, 0.25, 0.54, face, pen.light)
    if pen.chance(0.5):
        pen.rectangle(0.2, 0.22, 0.8, 0.31, pen.light, outline=False)
    else:
        letters: tuple[list[tuple[float, float]], ...] = (
            [(1, 0), (0, 0), (0, 0.5), (1, 0.5), (1, 1), (0, 1)],
            [(0, 0), (1, 0), (0.5, 0), (0.5, 1)],
            [(0, 0), (1, 0), (1, 1), (0, 1), (0, 0)],
            [(0, 1), (0, 0), (1, 0), (1, 0.5), (0, 0.5)],
        )
        left = 1 if pen.transform[0, 0] > 0 else -1  # letters are never mirrored
        for i, letter in enumerate(letters):
            x0 = 0.5 + left * (-0.345 + 0.19 * i)
            pen.line([(x0 + left * 0.12 * u, 0.205 + 0.12 * v) for u, v in letter], 0.034, pen.light)


@kind("traffic sign", "warning sign", aspect=0.54)
def warning_sign(pen: Pen) -> None:
    """A triangle with a thick rim, or a diamond, with a simple mark on it."""
    sign_post(pen)
    if pen.chance(0.65):
        face, cy = pen.pick(pen.light, pen.accent, pen.color("yellow")), 0.25
        sign_board(pen, "triangle", cy, 0.25, 0.54, face, pen.body)
        cy = 0.29
    else:
        face, cy = pen.body, 0.26
        sign_board(pen, "diamond", cy, 0.26, 0.54, face, pen.dark)
    ink = pen.dark if sum(face) > 260 else pen.light
    pen.rectangle(0.45, cy - 0.1, 0.55, cy + 0.02, ink, outline=False)
    pen.ellipse(0.5, cy + 0.065, 0.06, 0.032, ink, outline=False)


@kind("traffic sign", "road sign", aspect=0.54)
def round_sign(pen: Pen) -> None:
    """A round or square sign: a bar, an arrow, a slash or a plain face within a rim."""
    sign_post(pen)
    face, rim = pen.pick((pen.light, pen.body), (pen.body, pen.light), (pen.accent, pen.body))
    cy, ry = 0.26, 0.25
    sign_board(pen, pen.pick("round", "round", "square"), cy, ry, 0.54, face, rim)
    ink = rim if rim != pen.light or sum(face) < 500 else pen.dark
    mark = pen.rng.integers(3)
    if mark == 0:
        pen.rectangle(0.24, cy - 0.045, 0.76, cy + 0.045, ink, outline=False)
    elif mark == 1:
        pen.rectangle(0.44, cy - 0.04, 0.56, cy + 0.14, ink, outline=False)
        pen.polygon([(0.5, cy - 0.16), (0.76, cy - 0.02), (0.24, cy - 0.02)], ink, outline=False)
    else:
        pen.line([(0.28, cy - 0.11), (0.72, cy + 0.11)], 0.08, ink)


# fences, walls, buildings


@kind("fence", "picket fence", aspect=1.9)
def picket_fence(pen: Pen) -> None:
    """Pointed or flat pickets on two rails, with gaps to see through."""
    n, pointed = int(pen.rng.integers(6, 9)), pen.chance(0.75)
    rail = tone(pen.body, 0.25)
    for y in (0.3, 0.72):
        pen.rectangle(0, y, 1, y + 0.1, rail)
    step = 1 / n
    w = step * pen.between(0.5, 0.62)
    for i in range(n):
        x = (i + 0.5) * step - w / 2
        tip = 0.14 if pointed else 0.0
        pen.polygon([(x, tip), (x + w / 2, 0.0), (x + w, tip), (x + w, 1), (x, 1)], pen.body)


@kind("fence", "wire fence", "rail fence", aspect=1.9)
def rail_fence(pen: Pen) -> None:
    """Thick posts with rails, crossed boards or a wide mesh between them."""
    n, how = int(pen.rng.integers(3, 5)), pen.rng.integers(3)
    xs = np.linspace(0.045, 0.955, n)
    thin = tone(pen.body, 0.2)
    if how == 0:
        for y in (0.2, 0.46, 0.72):
            pen.rectangle(0, y, 1, y + 0.1, thin)
    elif how == 1:
        pen.rectangle(0, 0.14, 1, 0.22, thin)
        for a, b in pairwise(xs):
            pen.line([(a, 0.2), (b, 0.88)], 0.06, thin)
            pen.line([(a, 0.88), (b, 0.2)], 0.06, thin)
    else:
        wire = pen.pick(thin, pen.color("gray"))
        for x in np.arange(-0.35, 1, 0.15):
            for a, b in ((x, x + 0.35), (x + 0.35, x)):
                p0, p1 = np.array([a, 0.12]), np.array([b, 0.9])
                t = np.clip((np.array([0.02, 0.98]) - p0[0]) / (p1[0] - p0[0]), 0, 1)
                q = [tuple(p0 + (p1 - p0) * v) for v in np.sort(t)]
                pen.line(q, 0.03, wire)
        pen.rectangle(0, 0.1, 1, 0.16, thin)
    for x in xs:
        pen.rectangle(x - 0.04, 0.0, x + 0.04, 1, pen.body, 0.01)


@kind("wall", "brick wall", aspect=1.9)
def brick_wall(pen: Pen) -> None:
    """A free-standing brick wall, sometimes with a coping or a broken end."""
    rows, cols = int(pen.rng.integers(4, 7)), int(pen.rng.integers(4, 6))
    joint = pen.pick(shade(pen.body, 1.55), tone(pen.body, 0.5))
    top = 0.12 if pen.chance(0.5) else 0.0
    pen.rectangle(0.02 if top else 0, top, 0.98 if top else 1, 1, joint)
    h, w = (1 - top) / rows, 1 / cols
    with pen.atop():
        for r in range(rows):
            for c in range(cols + 1):
                x = (c - 0.5 * (r % 2)) * w
                tint = pen.pick(pen.body, pen.body, tone(pen.body, 0.14))
                y = top + r * h
                pen.rectangle(x + 0.01, y + 0.018, x + w - 0.01, y + h - 0.018, tint, outline=False)
    if top:
        pen.rectangle(0, 0, 1, top + 0.03, pen.accent)


@kind("wall", "stone wall", aspect=1.9)
def stone_wall(pen: Pen) -> None:
    """A dry wall of round stones of several sizes."""
    joint = tone(pen.body, 0.55)
    rows = 4
    ends = pen.rng.uniform(-0.02, 0.03, 8)
    crest = [(x, 0.06 + d) for x, d in zip(np.linspace(0.01, 0.99, 8), ends, strict=True)]
    pen.polygon([*crest, (1, 1), (0, 1)], joint)
    for r in range(rows):
        y0, x = 0.03 + r * 0.97 / rows, 0.0
        h = 0.97 / rows
        while x < 0.97:
            w = min(pen.between(0.15, 0.27), 1 - x)
            w = 1 - x if 1 - x - w < 0.1 else w
            tint = pen.pick(pen.body, shade(pen.body, 1.2), tone(pen.body, 0.15))
            k = pen.rng.uniform(0.12, 0.3, 4)
            x0, x1, y1 = x + 0.008, x + w - 0.008, y0 + h - 0.015
            p = [(x0, y0 + k[0] * h), (x0 + k[1] * w, y0), (x1 - k[2] * w, y0), (x1, y0 + k[3] * h)]
            p += [(x1, y1 - k[1] * h), (x1 - k[0] * w, y1), (x0 + k[3] * w, y1), (x0, y1 - k[2] * h)]
            pen.polygon(p, tint)
            x += w


def windows(
    pen: Pen,
    x0: float,
    y0: float,
    x1: float,
    y1: float,
    cols: int,
    rows: int,
    color: Color,
    fill: float = 0.6,
) -> None:
    """A grid of windows over a rectangle."""
    w, h = (x1 - x0) / cols, (y1 - y0) / rows
    mx, my = w * (1 - fill) / 2, h * (1 - fill) / 2
    for r in range(rows):
        for c in range(cols):
            x, y = x0 + c * w, y0 + r * h
            pen.rectangle(x + mx, y + my, x + w - mx, y + h - my, color)


def pane(pen: Pen, wall: Color) -> Color:
    """A window color that differs from the color of the wall."""
    for c in (pen.glass, pen.color("yellow"), pen.dark):
        if abs(sum(c) - sum(wall)) > 130:
            return c
    return pen.light if sum(wall) < 380 else pen.dark


@kind("building", "house", aspect=1.05)
def house(pen: Pen) -> None:
    """A house: a pitched roof with a chimney, a door and windows."""
    wall, roof = pen.body, pen.accent
    eaves, glass = pen.between(0.38, 0.46), pane(pen, pen.body)
    if pen.chance(0.6):
        x = pen.pick(0.2, 0.68)
        pen.rectangle(x, 0.04, x + 0.12, 0.35, tone(roof, 0.35))
    pen.rectangle(0.07, eaves - 0.03, 0.93, 1, wall)
    if pen.chance(0.6):
        pen.polygon([(0.5, 0), (1, eaves), (0, eaves)], roof)
    else:
        pen.polygon([(0.2, 0.08), (0.8, 0.08), (1, eaves), (0, eaves)], roof)
    door = pen.pick(0.42, 0.14, 0.42)
    pen.rectangle(door, 0.66, door + 0.17, 1, pen.pick(pen.dark, tone(wall, 0.5), roof))
    spots = (0.14, 0.68) if door > 0.3 else (0.4, 0.68)
    for x in spots:
        pen.rectangle(x, 0.56, x + 0.2, 0.77, pen.light)
        pen.rectangle(x + 0.025, 0.585, x + 0.175, 0.745, glass)
        if pen.chance(0.7):
            pen.rectangle(x + 0.085, 0.58, x + 0.115, 0.75, pen.light, outline=False)
    if pen.chance(0.4):
        pen.ellipse(0.5, eaves * 0.66, 0.06, 0.06, glass)


@kind("building", "apartment building", "skyscraper", aspect=0.6)
def tower(pen: Pen) -> None:
    """A tall block with rows of windows and a door, flat, stepped or pointed at the top."""
    cols, rows, top = int(pen.rng.integers(2, 5)), int(pen.rng.integers(4, 7)), 0.0
    glass = pane(pen, pen.body)
    shape = pen.rng.integers(3)
    if shape == 1:
        pen.rectangle(0.25, 0.0, 0.75, 0.2, tone(pen.body, 0.2))
        top = 0.1
    elif shape == 2:
        pen.rectangle(0.46, 0.0, 0.54, 0.15, pen.dark)
        pen.polygon([(0.5, 0.06), (0.97, 0.2), (0.03, 0.2)], pen.accent)
        top = 0.18
    pen.rectangle(0.03, top, 0.97, 1, pen.body)
    if shape == 0:
        pen.rectangle(0, 0, 1, 0.05, tone(pen.body, 0.35))
    windows(pen, 0.07, top + 0.06, 0.93, 0.84, cols, rows, glass, 0.62)
    pen.rectangle(0.38, 0.86, 0.62, 1, pen.pick(pen.dark, pen.accent))


@kind("building", "shop", "store", aspect=1.2)
def shop(pen: Pen) -> None:
    """A shop: a sign board, a striped awning, a big window and a door, some windows above."""
    glass = pane(pen, pen.body)
    pen.rectangle(0.04, 0.02, 0.96, 1, pen.body)
    pen.rectangle(0, 0, 1, 0.07, tone(pen.body, 0.35))
    windows(pen, 0.08, 0.09, 0.92, 0.34, int(pen.rng.integers(2, 4)), 1, glass, 0.66)
    pen.rectangle(0.1, 0.64, 0.6, 0.93, glass)
    pen.rectangle(0.68, 0.6, 0.88, 1, pen.pick(pen.dark, tone(pen.body, 0.5)))
    n = 6
    for i in range(n):
        a, b = i / n, (i + 1) / n
        stripe = pen.accent if i % 2 else pen.light
        pen.polygon([(0.06 + 0.88 * a, 0.4), (0.06 + 0.88 * b, 0.4), (b, 0.58), (a, 0.58)], stripe)
        pen.ellipse((a + b) / 2, 0.58, 0.5 / n, 0.045, stripe, outline=False)


# plants and soil


def clumps(pen: Pen, spots: np.ndarray, rx: float, ry: float, color: Color) -> None:
    """Overlapping round clumps of leaves in three shades, each with a brighter top."""
    shades = (color, tone(color, 0.17), shade(color, 1.12))
    turn = int(pen.rng.integers(3))
    for i, (x, y) in enumerate(spots):
        k, tint = pen.between(0.88, 1.12), shades[(i + turn) % 3]
        pen.ellipse(x, y, rx * k, ry * k, tint)
        pen.ellipse(x - rx * 0.15, y - ry * 0.35, rx * 0.5, ry * 0.4, shade(tint, 1.14), outline=False)


def leaves(pen: Pen, spots: np.ndarray, size: float, color: Color, aspect: float, seen: bool = True) -> None:
    """Pointed leaves about `spots` in lighter and darker shades; only those `seen` add to the mask."""
    shades = (tone(color, 0.3), shade(color, 1.25), tone(color, 0.18))
    for i, (x, y) in enumerate(spots):
        c, s = np.cos(angle := pen.between(-2.6, -0.5)), np.sin(angle)
        p = [(1, 0), (0.1, 0.42), (-0.8, 0), (0.1, -0.42)]
        tint = color if seen else shades[i % 3]
        q = [(x + size * (u * c - v * s) / aspect, y + size * (u * s + v * c)) for u, v in p]
        pen.polygon(q, tint, outline=seen)


@kind("vegetation", "bush", "shrub", aspect=1.35)
def bush(pen: Pen) -> None:
    """A round bush with a lobed, leafy edge, sometimes with berries or blossoms."""
    color, n = lean_green(pen), int(pen.rng.integers(6, 9))
    t = np.linspace(np.pi, 2 * np.pi, n)
    rim = np.stack([0.5 + 0.38 * np.cos(t), 0.8 + 0.6 * np.sin(t) * pen.rng.uniform(0.88, 1.0, n)], 1)
    leaves(pen, rim + (rim - (0.5, 0.8)) * 0.24, 0.12, color, 1.35)
    for outline in (
        (True, False) if pen.style.outline else (False,)
    ):  # the second time without the lines within
        for x, y in rim:
            pen.ellipse(x, min(y, 0.82), 0.12, 0.17, color, outline=outline)
        pen.curve([(0.1, 0.9), (0.16, 0.55), (0.5, 0.25), (0.84, 0.55), (0.9, 0.9)], color, outline=False)
        pen.rectangle(0.06, 0.7, 0.94, 1, color, 0.1, outline=outline)
    inner = [
        (x, y)
        for y, n in ((0.42, 3), (0.58, 5), (0.74, 6), (0.9, 5))
        for x in np.linspace(0.5 - n * 0.066, 0.5 + n * 0.066, n)
    ]
    leaves(pen, np.array(inner) + pen.rng.normal(0, 0.02, (len(inner), 2)), 0.09, color, 1.35, seen=False)
    if pen.chance(0.35):
        for _ in range(7):
            pen.ellipse(
                pen.between(0.15, 0.85), pen.between(0.4, 0.9), 0.035, 0.047, pen.accent, outline=False
            )


@kind("vegetation", "tree", aspect=0.82)
def tree(pen: Pen) -> None:
    """A tree: a trunk with a clumped crown, or a fir in tiers."""
    color = lean_green(pen)
    bark = pen.pick(pen.color("brown"), tone(color, 0.5), pen.accent)
    if pen.chance(0.65):
        pen.polygon([(0.43, 0.4), (0.57, 0.4), (0.62, 1), (0.38, 1)], bark)
        pen.line([(0.5, 0.75), (0.7, 0.55)], 0.06, bark)
        pen.ellipse(0.5, 0.33, 0.34, 0.27, color, outline=False)
        t = np.arange(7) * 2 * np.pi / 7 + pen.between(0, 0.8)
        spots = np.stack([0.5 + 0.31 * np.cos(t), 0.33 + 0.19 * np.sin(t)], 1)
        clumps(pen, np.concatenate([spots, [(0.5, 0.33)]]), 0.18, 0.14, color)
    else:
        pen.rectangle(0.42, 0.8, 0.58, 1, bark)
        tiers = int(pen.rng.integers(3, 5))
        for i in range(tiers):
            y = 0.62 - i * 0.62 / (tiers - 1)
            w = 0.49 - 0.27 * i / (tiers - 1)
            c = color if i % 2 else tone(color, 0.2)
            pen.polygon([(0.5, y - 0.02 if y > 0.05 else 0), (0.5 + w, y + 0.27), (0.5 - w, y + 0.27)], c)


@kind("vegetation", "hedge", aspect=2.0)
def hedge(pen: Pen) -> None:
    """A long clipped hedge with a leafy top."""
    color = lean_green(pen)
    low, xs = pen.between(0.14, 0.2), np.linspace(0.07, 0.93, int(pen.rng.integers(8, 11)))
    leaves(pen, np.stack([xs, np.full(len(xs), low)], 1), 0.15, color, 2.0)
    pen.rectangle(0.0, low, 1, 1, color, 0.06)
    leaves(pen, np.stack([xs, np.full(len(xs), low + 0.03)], 1), 0.13, color, 2.0, seen=False)
    inner = np.array(
        [
            (x + (i % 2) * 0.07, y)
            for i, y in enumerate((0.42, 0.64, 0.87))
            for x in np.arange(0.09, 0.9, 0.14)
        ]
    )
    leaves(pen, inner + pen.rng.normal(0, 0.015, inner.shape), 0.125, color, 2.0, seen=False)


def tuft(pen: Pen, x: float, y: float, h: float, color: Color, aspect: float) -> None:
    """Three blades of grass."""
    w = h / aspect
    p = [(-0.45, 0), (-0.6, -0.75), (-0.15, -0.3), (0, -1), (0.15, -0.3), (0.6, -0.75), (0.45, 0)]
    pen.polygon([(x + u * w, y + v * h) for u, v in p], color)


@kind("terrain", "mound", "hill", aspect=2.0)
def mound(pen: Pen) -> None:
    """A low hill of grass or soil with tufts and stones."""
    color, peak = lean_green(pen), pen.between(0.4, 0.6)
    side = [(0, 1), (0.06, 0.76), (peak - 0.24, 0.3), (peak, 0.16), (peak + 0.24, 0.3), (0.94, 0.76), (1, 1)]
    pen.polygon(smooth(side, closed=False), color)
    tint = tone(color, 0.25)
    with pen.atop():
        pen.curve([(0, 1.02), (0.25, 0.74), (0.6, 0.86), (1, 1.0), (0.5, 1.1)], tint, outline=False)
    grass = tone(color, 0.38)
    for x, y in (
        (peak, 0.18),
        (peak - 0.2, 0.52),
        (peak + 0.18, 0.56),
        (0.18, 0.86),
        (0.52, 0.84),
        (0.82, 0.88),
    ):
        tuft(pen, x + pen.between(-0.03, 0.03), y + 0.02, 0.2, grass, 2.0)


@kind("terrain", "patch of grass", "lawn", aspect=2.2)
def grass_patch(pen: Pen) -> None:
    """A flat patch of ground with blades of grass along its far edge, tufts and stones."""
    color, y = lean_green(pen), pen.between(0.36, 0.46)
    tall = pen.pick(1.0, 1.0, 0.65)
    for x in np.linspace(0.05, 0.95, int(pen.rng.integers(11, 15))):
        h = pen.between(0.26, y - 0.02) * tall
        pen.polygon([(x - 0.05, y + 0.2), (x + pen.between(-0.04, 0.04), y - h), (x + 0.05, y + 0.2)], color)
    pen.curve(
        [
            (0.02, 0.6),
            (0.1, y),
            (0.5, y - 0.03),
            (0.9, y),
            (0.98, 0.6),
            (0.9, 0.94),
            (0.5, 0.99),
            (0.1, 0.94),
        ],
        color,
    )
    for i in range(7):
        x, v = 0.14 + i * 0.12, 0.62 + 0.2 * (i % 2) + pen.between(-0.04, 0.04)
        if pen.chance(0.7):
            tuft(pen, x, v + 0.1, 0.17, tone(color, 0.3), 2.2)
        else:
            pen.ellipse(x, v, 0.035, 0.06, pen.light)


# whole images


def _canvas(size: tuple[int, int], style: Style, rng: np.random.Generator) -> Pen:
    """A pen whose unit box is the whole image and that draws without outlines."""
    w, h = size[0] * SUPERSAMPLE, size[1] * SUPERSAMPLE
    return Pen((w, h), np.array([[w, 0.0, 0.0], [0.0, h, 0.0]]), replace(style, outline=0.0, wobble=0.0), rng)


def _image(pen: Pen) -> np.ndarray:
    """The image at output resolution."""
    return np.asarray(pen.rgb.reduce(SUPERSAMPLE))


def _hsv(pen: Pen, hue: float, saturation: float, value: float, spread: float = 1.0) -> Color:
    """A color about (hue in degrees, saturation, value) in the pen's style."""
    style = pen.style
    h = (hue / 360 + pen.rng.normal(0, 0.02 * spread)) % 1
    s = np.clip(saturation * style.saturation + pen.rng.normal(0, 0.05 * spread), 0, 1)
    v = np.clip(value * style.value + pen.rng.normal(0, 0.05 * spread), 0.04, 1)
    return tuple(int(255 * c) for c in colorsys.hsv_to_rgb(h, s, v))


def _ramp(pen: Pen, y0: float, y1: float, top: Color, bottom: Color) -> None:
    """Fill the rows from `y0` to `y1` with a gradient."""
    w, h = pen.rgb.size
    a, b = round(y0 * h), round(y1 * h)
    if b > a:
        t = np.linspace(0, 1, b - a)[:, None]
        rows = (np.array(top) * (1 - t) + np.array(bottom) * t).astype(np.uint8)[:, None]
        pen.rgb.paste(Image.fromarray(np.broadcast_to(rows, (b - a, w, 3)).copy()), (0, a))


def _clouds(pen: Pen, color: Color, low: float, n: int) -> None:
    """Soft flat-bottomed clouds above `low`."""
    for _ in range(n):
        x, y, r = pen.between(0, 1), pen.between(0.05, max(low - 0.08, 0.08)), pen.between(0.06, 0.12)
        for dx, dy, k in ((-1.1, 0.1, 0.65), (0, -0.15, 1), (1.1, 0.1, 0.7), (2.0, 0.25, 0.4)):
            pen.ellipse(x + dx * r, y + dy * r, r * k * 1.25, r * k * 0.6, color)


def _sky(pen: Pen, low: float, mood: str | None = None, clouds: bool = True) -> None:
    """A sky down to `low`: day, grey, dusk or night."""
    mood = mood or pen.pick("day", "day", "day", "grey", "dusk")
    if mood == "day":
        top, bottom = _hsv(pen, pen.between(196, 218), 0.55, 0.86), _hsv(pen, 204, 0.22, 0.95)
    elif mood == "grey":
        top, bottom = _hsv(pen, 212, 0.1, 0.7), _hsv(pen, 212, 0.05, 0.87)
    elif mood == "dusk":
        top, bottom = (
            _hsv(pen, pen.pick(265, 230, 330), 0.4, 0.6),
            _hsv(pen, pen.pick(24, 38, 350), 0.55, 0.97),
        )
    else:
        top, bottom = _hsv(pen, 232, 0.6, 0.13), _hsv(pen, pen.pick(225, 250), 0.5, 0.33)
    _ramp(pen, 0, low, top, bottom)
    if clouds and mood != "night":
        mixed = tuple((a + 2 * b) // 3 for a, b in zip(top, bottom, strict=True))
        _clouds(pen, shade(mixed, 1.65 if mood == "day" else 1.25), low, int(pen.rng.integers(0, 4)))


def _bricks(
    pen: Pen, y0: float, y1: float, rows: int, cols: int, brick: Color, joint: Color, gap: float
) -> None:
    """Courses of bricks between two heights."""
    _ramp(pen, y0, y1, joint, joint)
    h, w = (y1 - y0) / rows, 1 / cols
    for r in range(rows):
        for c in range(cols + 1):
            x, y, tint = (c - 0.5 * (r % 2)) * w, y0 + r * h, shade(brick, pen.between(0.88, 1.1))
            pen.rectangle(x + gap, y + gap, x + w - gap, y + h - gap, tint)


def _perspective(pen: Pen, low: float, vx: float, half_far: float, half_near: float, color: Color) -> None:
    """A strip that runs from the bottom edge to the vanishing point (vx, low)."""
    p = [(vx - half_far, low), (vx + half_far, low), (0.5 + half_near, 1), (0.5 - half_near, 1)]
    pen.polygon(p, color)


def _lane_marks(pen: Pen, low: float, vx: float, color: Color) -> None:
    """Dashes down the middle of a road in perspective."""
    edges = (0.04, 0.1, 0.18, 0.3, 0.46, 0.66, 0.98)
    for a, b in zip(edges[::2], edges[1::2], strict=False):
        quad = []
        for t, side in ((a, -1), (a, 1), (b, 1), (b, -1)):
            quad.append((vx + (0.5 - vx) * t + side * (0.004 + 0.03 * t), low + (1 - low) * t))
        pen.polygon(quad, color)


def _planks(pen: Pen, low: float, color: Color, n: int) -> None:
    """Floor boards towards a vanishing point far above."""
    dark = tone(color, 0.16)
    for i in range(n + 1):
        t = (i / n - 0.5) * 2
        pen.line([(0.5 + t * 0.62, low), (0.5 + t * 1.1, 1)], 0.008, dark)


def _asphalt(pen: Pen) -> Color:
    """A road's grey."""
    return _hsv(pen, pen.pick(215, 215, 30), 0.06, pen.between(0.3, 0.56), 0.6)


def _blades(pen: Pen, y0: float, y1: float, n: int, color: Color) -> None:
    """Short ticks scattered over the ground, larger near the bottom."""
    for _ in range(n):
        x, y = pen.between(0, 1), pen.between(y0, y1)
        h = 0.015 + 0.035 * (y - y0) / (y1 - y0 + 1e-6)
        pen.polygon([(x - h * 0.4, y), (x + h * 0.3, y - h), (x + h * 0.4, y)], color)


def _ground_road(pen: Pen) -> None:
    grey = _asphalt(pen)
    _ramp(pen, 0, 1, shade(grey, 1.12), shade(grey, 0.92))
    paint = pen.pick(_hsv(pen, 45, 0.04, 0.92), _hsv(pen, 47, 0.7, 0.9))
    how = pen.rng.integers(4)
    if how == 0:
        vx = pen.between(0.35, 0.65)
        _lane_marks(pen, -0.1, vx, paint)
        for s in (-1, 1):
            pen.polygon(
                [(vx + s * 0.12, -0.1), (vx + s * 0.14, -0.1), (0.5 + s * 0.5, 1), (0.5 + s * 0.43, 1)], paint
            )
    elif how == 1:
        x, w = pen.between(0.3, 0.7), pen.between(0.04, 0.07)
        for y in np.arange(pen.between(-0.2, 0), 1, 0.36):
            pen.rectangle(x, y, x + w, y + 0.22, paint)
    elif how == 2:  # a crossing
        y, n = pen.between(0.2, 0.5), int(pen.rng.integers(5, 8))
        for i in range(n):
            pen.rectangle((i + 0.2) / n, y, (i + 0.75) / n, y + 0.32, paint)
    else:
        y = pen.between(0.3, 0.7)
        pen.polygon([(0, y), (1, y - pen.between(-0.2, 0.2)), (1, y + 0.08), (0, y + 0.07)], paint)
    for _ in range(8):
        pen.ellipse(pen.between(0, 1), pen.between(0, 1), 0.03, 0.012, shade(grey, pen.pick(0.85, 1.15)))


def _ground_sidewalk(pen: Pen) -> None:
    slab = _hsv(pen, pen.pick(30, 40, 215, 10), pen.between(0.03, 0.2), pen.between(0.6, 0.84), 0.6)
    joint, n, w = shade(slab, 0.68), int(pen.rng.integers(4, 7)), 0.009
    _ramp(pen, 0, 1, slab, shade(slab, 0.93))
    for _ in range(6):
        x, y = pen.rng.integers(0, n, 2) / n
        pen.rectangle(x, y, x + 1 / n, y + 1 / n, shade(slab, pen.between(0.88, 1.12)))
    if pen.chance(0.5):  # seen in perspective
        for i in range(-n, 2 * n + 1):
            pen.line([(0.5 + (i / n - 0.5) * 0.55, 0), (0.5 + (i / n - 0.5) * 1.4, 1)], w, joint)
        for t in np.linspace(0, 1, n + 1):
            pen.line([(0, t**1.5), (1, t**1.5)], w, joint)
    else:
        stagger = pen.chance(0.5)
        for i in range(n + 1):
            pen.line([(0, i / n), (1, i / n)], w, joint)
            for j in range(n + 1):
                x = (j + (0.5 if stagger and i % 2 else 0)) / n
                pen.line([(x, i / n), (x, (i + 1) / n)], w, joint)


def _ground_terrain(pen: Pen) -> None:
    hue, s, v = pen.pick((105, 0.5, 0.55), (85, 0.5, 0.6), (42, 0.5, 0.66), (28, 0.48, 0.48))
    soil = _hsv(pen, hue, s, v)
    _ramp(pen, 0, 1, shade(soil, 1.12), shade(soil, 0.9))
    for _ in range(4):
        pen.ellipse(pen.between(0, 1), pen.between(0, 1), 0.22, 0.06, shade(soil, pen.pick(0.9, 1.1)))
    _blades(pen, 0, 1, 30, shade(soil, 0.72))
    _blades(pen, 0, 1, 20, shade(soil, 1.25))


def _ground_sky(pen: Pen) -> None:
    _sky(pen, 1.0, clouds=False)
    _clouds(pen, _hsv(pen, 210, 0.04, 0.95), 1.0, int(pen.rng.integers(1, 5)))


def _ground_wall(pen: Pen) -> None:
    hue, s, v = pen.pick(
        (12, 0.55, 0.62), (25, 0.4, 0.6), (40, 0.15, 0.8), (215, 0.06, 0.58), (pen.between(0, 360), 0.4, 0.65)
    )
    brick = _hsv(pen, hue, s, v)
    rows = int(pen.rng.integers(6, 11))
    joint = pen.pick(shade(brick, 1.5), shade(brick, 0.6))
    _bricks(pen, 0, 1, rows, int(pen.rng.integers(3, 6)), brick, joint, 0.008)


def _ground_vegetation(pen: Pen) -> None:
    hue = pen.pick(110, 120, 95, 75, 38, 140)
    leaf = _hsv(pen, hue, 0.55, 0.5)
    _ramp(pen, 0, 1, shade(leaf, 0.7), shade(leaf, 0.55))
    r = pen.between(0.06, 0.11)
    for k in (0.75, 0.95, 1.15):
        for _ in range(19):
            p = (pen.between(0, 1), pen.between(0, 1))
            pen.ellipse(*p, r, r * 0.75, shade(leaf, k * pen.between(0.9, 1.1)), angle=pen.between(0, 3))


def _ground_building(pen: Pen) -> None:
    wall = pen.pick(pen.body, _hsv(pen, 30, 0.25, 0.75), _hsv(pen, 215, 0.08, 0.65))
    _ramp(pen, 0, 1, shade(wall, 1.08), shade(wall, 0.92))
    cols, rows = int(pen.rng.integers(3, 6)), int(pen.rng.integers(3, 6))
    glass, frame = pane(pen, wall), pen.pick(pen.light, shade(wall, 0.7))
    fx, fy = pen.between(0.24, 0.33), pen.between(0.24, 0.36)
    for r in range(rows):
        for c in range(cols):
            x, y = (c + 0.5) / cols, (r + 0.5) / rows
            w, h = fx / cols, fy / rows
            pen.rectangle(x - w - 0.012, y - h - 0.012, x + w + 0.012, y + h + 0.012, frame)
            pen.rectangle(x - w, y - h, x + w, y + h, glass)
    if pen.chance(0.5):
        for r in range(1, rows):
            pen.rectangle(0, r / rows - 0.012, 1, r / rows + 0.012, shade(wall, 0.75))


#: Surfaces that fill a whole image, by the Cityscapes class they show.
_GROUND: dict[str, Callable[[Pen], None]] = {
    "road": _ground_road,
    "sidewalk": _ground_sidewalk,
    "terrain": _ground_terrain,
    "sky": _ground_sky,
    "wall": _ground_wall,
    "vegetation": _ground_vegetation,
    "building": _ground_building,
}
GROUNDS = tuple(_GROUND)


def draw_ground(name: str, size: tuple[int, int], style: Style, rng: np.random.Generator) -> np.ndarray:
    """An image (H, W, 3) uint8 of `size` (width, height) that is all one surface of `GROUNDS`."""
    pen = _canvas(size, style, rng)
    with pen.atop():
        _GROUND[name](pen)
    return _image(pen)


#: Scenery without things of any class, with the phrases that describe it.
BACKDROPS: dict[str, tuple[str, ...]] = {
    "field": (
        "in a grassy field",
        "on the grass",
        "in a green field",
        "in a meadow",
        "in a field",
        "in a park",
    ),
    "beach": ("on a sandy beach", "on the beach", "by the sea", "at the beach"),
    "road": ("on a road", "on the street", "on a city street", "on the side of the road", "in a parking lot"),
    "dirt": ("on a dirt road", "in the dirt", "on a dirt path"),
    "tracks": ("on the tracks", "on train tracks", "on a railway"),
    "runway": ("on a runway", "on the tarmac", "at an airport"),
    "room": ("in a room", "in a living room", "in a bedroom", "inside a house", "indoors", "in an office"),
    "floor": ("on a wooden floor", "on the floor", "on wooden boards"),
    "rug": ("on a rug", "on a carpet", "on a blanket"),
    "kitchen": ("in a kitchen", "on a tiled floor", "in a bathroom"),
    "water": ("on the water", "in the ocean", "on a lake", "in the water", "on a river"),
    "sky": ("in the sky", "in the clouds", "in a blue sky", "flying in the air"),
    "snow": ("in the snow", "on a snowy field", "in winter"),
    "desert": ("in the desert", "on the sand", "in a sandy desert"),
    "mountains": ("in front of mountains", "in the mountains", "with mountains in the background"),
    "night": ("at night", "under the stars", "in the dark"),
    "sunset": ("at sunset", "at dusk", "in front of a sunset"),
    "plain": ("", "in front of a plain background", "on a plain background", "against a plain wall"),
    "pattern": ("", "in front of a patterned wallpaper", "on a patterned background"),
}


def _grass(pen: Pen, low: float) -> None:
    """Grass from `low` down: mostly green, sometimes yellow or brown."""
    hue, s, v = pen.pick(
        (105, 0.48, 0.6),
        (90, 0.5, 0.68),
        (125, 0.42, 0.55),
        (95, 0.4, 0.72),
        (52, 0.5, 0.76),
        (36, 0.42, 0.62),
    )
    grass = _hsv(pen, hue, s, v)
    _ramp(pen, low, 1, shade(grass, 1.18), shade(grass, 0.86))
    if pen.chance(0.5):
        y = pen.between(low + 0.05, 0.9)
        pen.ellipse(pen.between(0, 1), y, 0.6, 0.05, shade(grass, pen.pick(1.12, 0.92)))
    if pen.chance(0.6):
        _blades(pen, low + 0.03, 1, int(pen.rng.integers(8, 22)), shade(grass, 0.85))


def _hills(pen: Pen, low: float, color: Color, height: float) -> None:
    """Soft far hills that stand on `low`."""
    xs = np.linspace(-0.1, 1.1, 6)
    ys = low - height * pen.rng.uniform(0.2, 1, 6)
    pen.polygon(
        [*smooth(list(zip(xs, ys, strict=True)), closed=False), (1.1, low + 0.01), (-0.1, low + 0.01)], color
    )


def _back_field(pen: Pen, low: float) -> None:
    _sky(pen, low)
    if pen.chance(0.5):
        _hills(pen, low, _hsv(pen, pen.pick(110, 150, 210), 0.28, 0.62), pen.between(0.05, 0.14))
    _grass(pen, low)


def _back_beach(pen: Pen, low: float) -> None:
    sea = low - pen.between(0.08, 0.2)
    _sky(pen, sea, pen.pick("day", "day", "dusk", "grey"))
    water = _hsv(pen, pen.between(180, 212), 0.5, 0.68)
    _ramp(pen, sea, low, shade(water, 0.85), shade(water, 1.25))
    sand = _hsv(pen, pen.between(34, 46), 0.34, 0.88)
    _ramp(pen, low, 1, shade(sand, 0.94), sand)
    xs = np.linspace(-0.1, 1.1, 7)
    shore = smooth([(x, low + pen.between(-0.005, 0.035)) for x in xs], closed=False)
    pen.polygon([*shore, (1.1, low - 0.03), (-0.1, low - 0.03)], shade(water, 1.6))


def _back_road(pen: Pen, low: float) -> None:
    far = low - pen.between(0.0, 0.1)
    _sky(pen, far)
    if pen.chance(0.5):
        _hills(pen, far, _hsv(pen, pen.pick(110, 210), 0.2, 0.66), 0.1)
    _grass(pen, far)
    grey = _asphalt(pen)
    paint = pen.pick(_hsv(pen, 45, 0.04, 0.92), _hsv(pen, 47, 0.65, 0.9))
    if pen.chance(0.5):  # towards the horizon
        vx = pen.between(0.35, 0.65)
        _perspective(pen, far, vx, 0.05, pen.between(0.6, 0.85), grey)
        _lane_marks(pen, far, vx, paint)
    else:  # across the image
        _ramp(pen, low, 1, shade(grey, 1.1), shade(grey, 0.94))
        kerb = _hsv(pen, 40, 0.05, 0.78)
        pen.rectangle(0, low - 0.03, 1, low + 0.012, kerb)
        y = low + (1 - low) * pen.between(0.45, 0.6)
        for x in np.arange(pen.between(-0.25, 0), 1, 0.32):
            pen.rectangle(x, y, x + 0.18, y + 0.025, paint)


def _back_dirt(pen: Pen, low: float) -> None:
    _sky(pen, low)
    _grass(pen, low)
    dirt = _hsv(pen, pen.between(20, 38), 0.42, pen.between(0.5, 0.72))
    vx = pen.between(0.3, 0.7)
    _perspective(pen, low, vx, 0.08, pen.between(0.6, 0.9), dirt)
    for s in (-1, 1):
        pen.polygon(
            [(vx + s * 0.03, low), (vx + s * 0.04, low), (0.5 + s * 0.35, 1), (0.5 + s * 0.25, 1)],
            shade(dirt, 0.86),
        )


def _back_tracks(pen: Pen, low: float) -> None:
    _sky(pen, low - 0.06)
    _grass(pen, low - 0.06)
    bed = _hsv(pen, 30, pen.between(0.05, 0.25), pen.between(0.5, 0.66))
    sleeper, rail = shade(bed, 0.62), _hsv(pen, 215, 0.08, pen.between(0.3, 0.75))
    _ramp(pen, low, 1, bed, shade(bed, 0.88))
    if pen.chance(0.5):  # towards the horizon
        vx = pen.between(0.4, 0.6)
        for t in (0.05, 0.1, 0.17, 0.26, 0.38, 0.53, 0.72, 0.93):
            x, y, w = vx + (0.5 - vx) * t, low + (1 - low) * t, 0.03 + 0.42 * t
            pen.rectangle(x - w, y, x + w, y + 0.008 + 0.03 * t, sleeper)
        for s in (-1, 1):
            p = [(vx + s * 0.012, low), (vx + s * 0.02, low), (0.5 + s * 0.32, 1), (0.5 + s * 0.27, 1)]
            pen.polygon(p, rail)
        return
    y0 = low + (1 - low) * pen.between(0.3, 0.55)
    y1 = y0 + (1 - low) * pen.between(0.18, 0.26)
    for x in np.arange(-0.2, 1.2, 0.12):
        pen.polygon([(x, y0 - 0.012), (x + 0.05, y0 - 0.012), (x, y1 + 0.04), (x - 0.06, y1 + 0.04)], sleeper)
    pen.rectangle(0, y0, 1, y0 + 0.016, rail)
    pen.rectangle(0, y1, 1, y1 + 0.024, rail)


def _back_runway(pen: Pen, low: float) -> None:
    _sky(pen, low)
    grey = _asphalt(pen)
    strip = low + (1 - low) * pen.between(0.05, 0.22)
    _grass(pen, low)
    _ramp(pen, strip, 1, shade(grey, 1.2), grey)
    y = strip + (1 - strip) * pen.between(0.3, 0.7)
    paint = pen.pick(_hsv(pen, 45, 0.04, 0.92), _hsv(pen, 47, 0.7, 0.9))
    pen.rectangle(0, strip + 0.02, 1, strip + 0.035, paint)
    for x in np.arange(pen.between(-0.2, 0), 1, 0.28):
        pen.polygon([(x, y), (x + 0.17, y), (x + 0.15, y + 0.03), (x - 0.03, y + 0.03)], paint)


def _wall_color(pen: Pen) -> Color:
    """A calm wall of any hue."""
    return _hsv(pen, pen.between(0, 360), pen.between(0.05, 0.4), pen.between(0.62, 0.92), 0.5)


def _wood(pen: Pen) -> Color:
    """A wooden floor's color."""
    return _hsv(pen, pen.between(20, 36), pen.between(0.35, 0.6), pen.between(0.42, 0.78), 0.6)


def _back_room(pen: Pen, low: float) -> None:
    wall = _wall_color(pen)
    _ramp(pen, 0, low, shade(wall, 1.08), shade(wall, 0.96))
    deco = pen.rng.integers(4)
    if deco == 0:  # a bright window between curtains
        x, w = pen.pick(0.08, 0.56), 0.36
        h = min(low - 0.12, 0.34)
        pen.rectangle(x, 0.06, x + w, 0.06 + h, _hsv(pen, 40, 0.03, 0.95))
        pen.rectangle(x + 0.02, 0.08, x + w - 0.02, 0.04 + h, _hsv(pen, 202, 0.25, 0.93))
        pen.rectangle(x + w / 2 - 0.01, 0.06, x + w / 2 + 0.01, 0.06 + h, _hsv(pen, 40, 0.03, 0.95))
        curtain = _wall_color(pen)
        for a, b in ((x - 0.05, x + 0.06), (x + w - 0.06, x + w + 0.05)):
            pen.rectangle(a, 0.03, b, 0.1 + h, shade(curtain, 0.85))
    elif deco == 1:  # panelling
        y = low - pen.between(0.12, 0.2)
        pen.rectangle(0, y, 1, low, shade(wall, 0.86))
        pen.rectangle(0, y - 0.015, 1, y + 0.005, shade(wall, 1.4))
    elif deco == 2:  # a corner of the room
        x = pen.between(0.15, 0.85)
        side = [(0, 0), (x, 0), (x, low), (0, low)] if x < 0.5 else [(1, 0), (x, 0), (x, low), (1, low)]
        pen.polygon(side, shade(wall, 0.87))
    floor = _wood(pen) if pen.chance(0.6) else _wall_color(pen)
    floor = shade(floor, 0.85)
    _ramp(pen, low, 1, shade(floor, 1.08), shade(floor, 0.94))
    if pen.chance(0.5):
        _planks(pen, low, floor, int(pen.rng.integers(5, 9)))
    pen.rectangle(0, low - 0.03, 1, low + 0.005, pen.pick(_hsv(pen, 40, 0.04, 0.94), shade(wall, 0.7)))


def _back_floor(pen: Pen, low: float) -> None:
    wood = _wood(pen)
    if pen.chance(0.5):
        wall = _wall_color(pen)
        _ramp(pen, 0, low, wall, shade(wall, 0.94))
        _ramp(pen, low, 1, shade(wood, 1.1), shade(wood, 0.95))
        _planks(pen, low, wood, int(pen.rng.integers(6, 10)))
        return
    _ramp(pen, 0, 1, shade(wood, 1.08), shade(wood, 0.95))
    n = int(pen.rng.integers(4, 8))
    for i in range(n):
        x = pen.between(-0.2, 0.8)
        pen.rectangle(0, i / n, 1, (i + 1) / n, shade(wood, pen.between(0.94, 1.1)))
        pen.rectangle(0, (i + 1) / n - 0.008, 1, (i + 1) / n, shade(wood, 0.75))
        pen.rectangle(x, i / n, x + 0.008, (i + 1) / n, shade(wood, 0.75))


def _back_rug(pen: Pen, low: float) -> None:
    wall, floor = _wall_color(pen), _wood(pen)
    _ramp(pen, 0, low, wall, shade(wall, 0.95))
    _ramp(pen, low, 1, shade(floor, 1.05), floor)
    rug, trim = _hsv(pen, pen.between(0, 360), 0.4, 0.66), _wall_color(pen)
    if pen.chance(0.5):
        y = (low + 1) / 2 + 0.04
        for k, c in ((1, rug), (0.84, trim), (0.76, rug)):
            pen.ellipse(0.5, y, 0.49 * k, (1 - low) * 0.42 * k, c)
    else:
        for k, c in ((0.0, rug), (0.05, trim), (0.09, rug)):
            pen.polygon(
                [
                    (0.16 + k, low + 0.06 + k / 2),
                    (0.84 - k, low + 0.06 + k / 2),
                    (0.98 - k, 0.97 - k / 2),
                    (0.02 + k, 0.97 - k / 2),
                ],
                c,
            )


def _back_kitchen(pen: Pen, low: float) -> None:
    tile = _hsv(pen, pen.between(0, 360), pen.between(0.02, 0.25), pen.between(0.8, 0.95), 0.5)
    _ramp(pen, 0, low, tile, shade(tile, 0.96))
    n, joint = int(pen.rng.integers(5, 9)), shade(tile, 0.86)
    for i in range(n + 1):
        pen.rectangle(i / n - 0.005, 0, i / n + 0.005, low, joint)
    for y in np.arange(low, 0, -1 / n):
        pen.rectangle(0, y - 0.005, 1, y + 0.005, joint)
    if pen.chance(0.5):
        y = low - int(pen.rng.integers(1, 3)) / n
        pen.rectangle(0, y - 0.5 / n, 1, y, _wall_color(pen))
    floor = shade(_wall_color(pen), 0.85)
    _ramp(pen, low, 1, floor, shade(floor, 0.95))
    other, rows = shade(floor, 1.35) if pen.chance(0.5) else shade(floor, 0.85), 4
    for r in range(rows):
        a, b = (r / rows) ** 1.3, ((r + 1) / rows) ** 1.3
        for c in range(-4, 5):
            if (c + r) % 2:
                continue
            q = [
                (0.5 + (c + d) * (0.16 + 0.14 * t), low + (1 - low) * t)
                for t, d in ((a, 0), (a, 1), (b, 1), (b, 0))
            ]
            pen.polygon(q, other)


def _back_water(pen: Pen, low: float) -> None:
    mood = pen.pick("day", "day", "grey", "dusk")
    _sky(pen, low, mood)
    if pen.chance(0.35):
        _hills(pen, low, _hsv(pen, pen.pick(110, 210, 220), 0.25, 0.6), 0.08)
    hue = pen.between(178, 222) if mood != "dusk" else pen.pick(210, 240, 300)
    water = _hsv(pen, hue, 0.5 if mood != "grey" else 0.2, pen.between(0.5, 0.78))
    _ramp(pen, low, 1, shade(water, 1.22), shade(water, 0.85))
    for _ in range(int(pen.rng.integers(4, 10))):
        y = pen.between(low + 0.02, 0.98)
        w = 0.04 + 0.14 * (y - low) / (1 - low)
        pen.ellipse(pen.between(0, 1), y, w, 0.005 + w * 0.06, shade(water, pen.pick(1.4, 1.3, 0.85)))


def _back_sky(pen: Pen, low: float) -> None:
    _sky(pen, 1.0, pen.pick("day", "day", "day", "grey", "dusk"), clouds=False)
    _clouds(pen, _hsv(pen, 210, 0.04, 0.97, 0.4), 1.0, int(pen.rng.integers(1, 6)))


def _back_snow(pen: Pen, low: float) -> None:
    _sky(pen, low, pen.pick("grey", "day", "grey"))
    snow = _hsv(pen, 210, 0.05, 0.95, 0.4)
    if pen.chance(0.6):
        _hills(pen, low, shade(snow, 0.86), pen.between(0.06, 0.16))
    _ramp(pen, low, 1, snow, shade(snow, 0.93))
    pen.ellipse(pen.between(0, 1), pen.between(low + 0.1, 0.95), 0.55, 0.05, shade(snow, 0.92))
    if pen.chance(0.6):
        for _ in range(16):
            x, y = pen.between(0, 1), pen.between(0, low)
            pen.ellipse(x, y, 0.011, 0.011, (255, 255, 255))


def _back_desert(pen: Pen, low: float) -> None:
    _sky(pen, low, pen.pick("day", "dusk", "day"))
    sand = _hsv(pen, pen.between(24, 42), 0.5, 0.84)
    _hills(pen, low, shade(sand, 0.86), pen.between(0.06, 0.16))
    _ramp(pen, low, 1, sand, shade(sand, 0.88))
    for _ in range(int(pen.rng.integers(1, 4))):
        pen.ellipse(pen.between(0, 1), pen.between(low + 0.05, 0.95), 0.4, 0.03, shade(sand, 0.9))


def _back_mountains(pen: Pen, low: float) -> None:
    _sky(pen, low)
    rock = _hsv(pen, pen.pick(215, 230, 260, 30, 160), pen.between(0.12, 0.3), pen.between(0.45, 0.66))
    snow = pen.chance(0.6)
    for k in (1.2, 1.0):
        for _ in range(2):
            x, h, w = pen.between(0.05, 0.95), low * pen.between(0.45, 0.8), pen.between(0.3, 0.48)
            pen.polygon([(x, low - h), (x + w, low), (x - w, low)], shade(rock, k))
            if snow:
                t = 0.28
                p = [(x, low - h), (x + w * t, low - h * (1 - t)), (x + w * 0.08, low - h * 0.8)]
                pen.polygon([*p, (x - w * t, low - h * (1 - t))], _hsv(pen, 210, 0.03, 0.96, 0.3))
    if pen.chance(0.7):
        _grass(pen, low)
    else:
        ground = _hsv(pen, 30, 0.25, 0.6)
        _ramp(pen, low, 1, shade(ground, 1.1), ground)


def _back_night(pen: Pen, low: float) -> None:
    _sky(pen, low, "night")
    for _ in range(int(pen.rng.integers(6, 16))):
        r = pen.between(0.005, 0.009)
        pen.ellipse(pen.between(0, 1), pen.between(0, low - 0.03), r, r, (235, 235, 215))
    if pen.chance(0.6):
        x, y, r = pen.between(0.1, 0.9), pen.between(0.1, 0.22), pen.between(0.05, 0.08)
        pen.ellipse(x, y, r, r, (240, 234, 200))
        if pen.chance(0.5):
            sky: Any = pen.rgb.getpixel((2, int(y * pen.rgb.size[1])))
            pen.ellipse(x + r * 0.5, y - r * 0.2, r * 0.85, r * 0.85, sky)
    ground = _hsv(pen, pen.pick(120, 220, 250, 30), 0.3, 0.24)
    _ramp(pen, low, 1, shade(ground, 1.1), shade(ground, 0.75))


def _back_sunset(pen: Pen, low: float) -> None:
    _sky(pen, low, "dusk")
    r, x = pen.between(0.08, 0.14), pen.between(0.15, 0.85)
    pen.ellipse(x, low - pen.between(0, 0.12), r, r, _hsv(pen, pen.pick(48, 20), 0.5, 1.0, 0.5))
    if pen.chance(0.5):
        _hills(pen, low, _hsv(pen, pen.pick(265, 330, 230), 0.35, 0.45), 0.1)
    hue, s = pen.pick((210, 0.4), (265, 0.3), (30, 0.4), (110, 0.35))
    ground = _hsv(pen, hue, s, 0.48)
    _ramp(pen, low, 1, shade(ground, 1.15), shade(ground, 0.8))


def _back_plain(pen: Pen, low: float) -> None:
    s, v = (
        pen.between(0.0, 0.5),
        pen.pick(pen.between(0.55, 0.95), pen.between(0.75, 0.97), pen.between(0.2, 0.5)),
    )
    base = _hsv(pen, pen.between(0, 360), s, v, 0.3)
    how = pen.rng.integers(3)
    if how == 0:
        _ramp(pen, 0, 1, base, base)
    elif how == 1:
        _ramp(pen, 0, 1, shade(base, 1.2), shade(base, 0.85))
    else:
        _ramp(pen, 0, low, base, shade(base, 1.12))
        _ramp(pen, low, 1, shade(base, 0.84), shade(base, 0.92))


def _back_pattern(pen: Pen, low: float) -> None:
    base = _wall_color(pen)
    mark = shade(base, pen.pick(0.82, 0.88, 1.35)) if pen.chance(0.6) else _wall_color(pen)
    _ramp(pen, 0, 1, base, base)
    n, how = int(pen.rng.integers(4, 9)), pen.rng.integers(5)
    if how == 0:
        for i in range(n):
            pen.rectangle((i + 0.25) / n, 0, (i + 0.75) / n, 1, mark)
    elif how == 1:
        for i in range(n):
            pen.rectangle(0, (i + 0.25) / n, 1, (i + 0.75) / n, mark)
    elif how == 2:
        for i in range(-n, n):
            x = i / n
            pen.polygon([(x, 0), (x + 0.5 / n, 0), (x + 1 + 0.5 / n, 1), (x + 1, 1)], mark)
    elif how == 3:
        for i in range(n):
            for j in range(n):
                pen.ellipse((i + 0.5 * (j % 2) + 0.25) / n, (j + 0.5) / n, 0.2 / n, 0.2 / n, mark)
    else:
        n = min(n, 6)
        for i in range(n):
            for j in range(i % 2, n, 2):
                pen.rectangle(i / n, j / n, (i + 1) / n, (j + 1) / n, mark)


_BACK: dict[str, Callable[[Pen, float], None]] = {
    "field": _back_field,
    "beach": _back_beach,
    "road": _back_road,
    "dirt": _back_dirt,
    "tracks": _back_tracks,
    "runway": _back_runway,
    "room": _back_room,
    "floor": _back_floor,
    "rug": _back_rug,
    "kitchen": _back_kitchen,
    "water": _back_water,
    "sky": _back_sky,
    "snow": _back_snow,
    "desert": _back_desert,
    "mountains": _back_mountains,
    "night": _back_night,
    "sunset": _back_sunset,
    "plain": _back_plain,
    "pattern": _back_pattern,
}


def draw_backdrop(
    name: str, size: tuple[int, int], style: Style, rng: np.random.Generator
) -> tuple[np.ndarray, float]:
    """An image (H, W, 3) uint8 of a scene of `BACKDROPS`, and where its ground begins (0 top)."""
    pen = _canvas(size, style, rng)
    horizon = pen.between(0.35, 0.75)
    with pen.atop():
        _BACK[name](pen, horizon)
    return _image(pen), horizon
