"""What stands beside a street, drawn by a `Camera`: people, trees, poles, signs, houses, walls, fences.

What fronts on the street runs along it from z0 to z1 at x; what stands on the pavement stands at (x, z).
"""

import numpy as np

from attn2mask.builders.drawn import animals, furnishings, street, vehicles  # noqa: F401 (they register their kinds)
from attn2mask.builders.drawn.camera import Camera, Face, quad
from attn2mask.builders.drawn.canvas import Color, Pen, shade
from attn2mask.builders.drawn.kinds import kinds_of
from attn2mask.builders.drawn.traffic import CLOTHES, GLASS, block

LAMP = (255, 226, 168)


# ---- people, plants and what stands at the kerb -----------------------------


def person(camera: Camera, x: float, z: float) -> None:
    """Someone on foot, standing or walking."""
    kind = camera.random.pick(*(k for k in kinds_of("person") if k.draw.__name__ != "portrait"))
    height = camera.random.between(1.58, 1.88) * camera.random.pick(1, 1, 1, 1, 0.72)
    body = camera.random.pick(*CLOTHES)
    flip = camera.random.chance(0.5)
    camera.sprite(kind.draw, x, z, height * kind.aspect, height, "person", body=body, flip=flip)


def foliage(camera: Camera, x: float, y: float, z: float, rx: float, ry: float, leaf: Color, n: int) -> None:
    """A crown of leaves: dark within and below, bright above."""
    camera.disc(x, y, z, rx * 0.85, ry * 0.85, shade(leaf, 0.62), "vegetation")
    angle, reach = camera.random.rng.uniform(0, 2 * np.pi, n), np.sqrt(camera.random.rng.random(n))
    spots = np.stack([np.cos(angle) * reach, np.sin(angle) * reach], 1)
    for u, v in spots[np.argsort(spots[:, 1] + camera.random.rng.normal(0, 0.35, n))]:
        size = camera.random.between(0.16, 0.34)
        tint = shade(camera.random.vary(leaf, 5), 0.86 + 0.34 * v + camera.random.between(-0.1, 0.1))
        camera.disc(x + u * rx * 0.8, y + v * ry * 0.8, z, rx * size, ry * size * 0.85, tint, "vegetation")


def tree(camera: Camera, x: float, z: float, height: float, leaf: Color | None) -> None:
    """A tree; without leaves where `leaf` is None."""
    bark, crown = camera.random.vary((84, 72, 60)), height * camera.random.between(0.28, 0.36)
    camera.line((x, 0, z), (x, height * 0.55, z), height * 0.045, bark, "vegetation")
    if leaf is not None:
        n = int(np.clip(camera.focal * crown / z / 6, 10, 60))
        foliage(camera, x, height - crown * 1.05, z, crown * 0.85, crown * 1.05, leaf, n)
        return

    def grow(a: float, y: float, angle: float, length: float, depth: int) -> None:
        b, top = a + length * np.sin(angle), y + length * np.cos(angle)
        camera.line((a, y, z), (b, top, z), length * 0.07, bark, "vegetation")
        if depth:
            for turn in (-0.5, 0.1, 0.55):
                grow(b, top, angle + turn + camera.random.between(-0.2, 0.2), length * 0.66, depth - 1)

    grow(x, height * 0.3, camera.random.between(-0.1, 0.1), height * 0.28, 3)


def lamp_post(camera: Camera, x: float, z: float, height: float, arm: float) -> None:
    """A street lamp whose arm reaches `arm` meters to the right."""
    metal = (88, 92, 94)
    camera.line((x, 0, z), (x, height, z), 0.16, metal, "pole")
    camera.line((x, height - 0.1, z), (x + arm, height + 0.15, z), 0.1, metal, "pole")
    head = x + arm, height + 0.12
    camera.line((head[0] - 0.3, head[1], z), (head[0] + 0.3, head[1], z), 0.16, (150, 152, 150), "pole")
    if camera.light.dark > 0.3:
        camera.disc(x + arm, height, z, 0.32, 0.1, LAMP, "pole", shines=True)
        camera.glow(x + arm, height, z, 1.7, (255, 196, 120), 0.75)


def signals(camera: Camera, x: float, z: float, arm: float, lit: int) -> None:
    """A traffic light on its post, and another on an arm of `arm` meters where that is not 0."""
    post, heads = (70, 74, 76), [(x, 2.5)]
    camera.line((x, 0, z), (x, 5.9 if arm else 3.3, z), 0.15, post, "pole")
    if arm:
        camera.line((x, 5.8, z), (x + arm, 5.9, z), 0.12, post, "pole")
        heads.append((x + arm, 4.7))
    for u, y in heads:
        case = quad((u - 0.23, y + 1.2, z), (u + 0.23, y + 1.2, z), (u + 0.23, y, z), (u - 0.23, y, z))
        camera.panel(case, 0, 0, 1, 1, (30, 32, 32), "traffic light")
        for k, color in enumerate(((238, 52, 44), (246, 178, 46), (50, 214, 128))):
            on = k == lit
            camera.disc(u, y + 1.0 - 0.4 * k, z, 0.15, 0.15, color if on else shade(color, 0.2), shines=on)
            if on:
                camera.glow(u, y + 1.0 - 0.4 * k, z, 0.5, color, 0.8)


#: Boards of signs: shape, face, rim.
SIGNS = (
    ("round", (232, 232, 228), (186, 34, 38)),
    ("round", (36, 82, 160), (226, 228, 228)),
    ("triangle", (232, 232, 226), (186, 34, 38)),
    ("square", (36, 86, 166), (226, 228, 228)),
    ("octagon", (180, 32, 36), (226, 226, 222)),
    ("diamond", (236, 196, 62), (230, 230, 226)),
    ("round", (180, 32, 36), (226, 226, 222)),
)


def sign(camera: Camera, x: float, z: float) -> None:
    """A traffic sign or two on a post."""
    y = camera.random.between(1.9, 2.4)
    camera.line((x, 0, z), (x, y + 0.8, z), 0.08, (132, 136, 138), "pole")
    for k in range(camera.random.pick(1, 1, 2)):
        shape, board, rim = camera.random.pick(*SIGNS)

        def draw(pen: Pen, shape=shape, board=board, rim=rim) -> None:
            street.sign_board(pen, shape, 0.5, 0.5, 1.0, board, rim)
            if shape in ("round", "square"):
                pen.rectangle(0.3, 0.44, 0.7, 0.56, rim)

        camera.sprite(draw, x, z, 0.85, 0.85, "traffic sign", base=y - 0.95 * k)


def direction_board(camera: Camera, x: float, z: float) -> None:
    """A large board with place names on two posts."""
    board = camera.random.pick((34, 78, 150), (30, 98, 70), (228, 226, 214))
    for s in (-1, 1):
        camera.line((x + s, 0, z), (x + s, 3.6, z), 0.1, (126, 130, 132), "pole")
    at = quad((x - 1.4, 3.7, z), (x + 1.4, 3.7, z), (x + 1.4, 2.1, z), (x - 1.4, 2.1, z))
    ink = (40, 40, 44) if sum(board) > 500 else (230, 230, 228)
    camera.panel(at, 0, 0, 1, 1, ink, "traffic sign")
    camera.panel(at, 0.03, 0.05, 0.97, 0.95, board)
    for v in (0.22, 0.48, 0.72):
        camera.panel(at, 0.12, v, camera.random.between(0.5, 0.85), v + 0.1, ink)


# ---- what fronts on the street ------------------------------------------------------------


def windows(camera: Camera, at: Face, length: float, height: float, wall: Color, foot: float) -> None:
    """Rows of windows above `foot` meters; some are lit when it is dark."""
    random, dark = camera.random, camera.light.dark
    cols, rows = max(1, round(length / 2.5)), max(1, round((height - foot) / 3.1))
    frame = random.pick(shade(wall, 1.4), shade(wall, 0.7), (224, 222, 214))
    tall, wide = random.between(0.45, 0.62), random.between(0.4, 0.58)
    top = 1 - foot / height
    for r in range(rows):
        for c in range(cols):
            u, v = (c + 0.5) / cols, top * (r + 0.52) / rows
            du, dv = wide / cols / 2, top * tall / rows / 2
            lit = dark > 0.3 and random.chance(0.3)
            glass = shade(LAMP, random.between(0.55, 0.9)) if lit else shade(GLASS, random.between(0.7, 1.2))
            camera.panel(at, u - du * 1.2, v - dv * 1.12, u + du * 1.2, v + dv * 1.12, frame)
            camera.panel(at, u - du, v - dv, u + du, v + dv, glass, shines=lit)


def shop_front(camera: Camera, at: Face, length: float, height: float, trim: Color) -> None:
    """A ground floor of glass under a colored board."""
    lit, v = camera.light.dark > 0.2, 1 - 3.4 / height
    camera.panel(at, 0, v, 1, 1, shade(trim, 0.7))
    camera.panel(at, 0.02, v + 0.02, 0.98, v + 0.7 / height, trim, shines=False)
    panes = max(2, round(length / 2.6))
    for k in range(panes):
        u, bright = k / panes, camera.random.between(0.7, 0.95)
        glass = shade(LAMP, bright) if lit else shade(GLASS, 2 * bright - 0.7)
        foot = 1 if k == panes // 2 else 1 - 0.5 / height
        camera.panel(at, u + 0.08 / panes, v + 0.9 / height, u + 0.92 / panes, foot, glass, shines=lit)


def building(
    camera: Camera,
    side: int,
    x: float,
    z0: float,
    z1: float,
    height: float,
    depth: float,
    wall: Color,
    roof: Color | None,
    trim: Color | None,
) -> None:
    """A building from z0 to z1 whose front is at `x`, with a `roof` (or flat) and a shop in `trim`."""
    sunny = 1.0 if camera.light.sun and side > 0 else 0.8
    end, front = shade(wall, 0.9), shade(wall, sunny)
    back, label = x + side * depth, "building"
    if roof is not None:
        ridge, rise = x + side * depth / 2, min(depth * 0.42, 4.0)
        camera.face([(x, height, z0), (back, height, z0), (ridge, height + rise, z0)], end, label)
        crest = height + rise
        camera.face([(x, height, z0), (ridge, crest, z0), (ridge, crest, z1), (x, height, z1)], roof, label)
        if camera.random.chance(0.6):  # a chimney
            c, a = camera.random.between(z0 + 1, z1 - 1), x + side * depth * 0.4
            lower, upper = height + rise * 0.7, crest + 0.7
            left, right = sorted((a, a + side * 0.8))
            block(camera, left, right, lower, upper, c, c + 0.8, shade(roof, 0.9), label)
    gable = quad((x, height, z0), (back, height, z0), (back, 0, z0), (x, 0, z0))
    camera.panel(gable, 0, 0, 1, 1, end, label)
    if z0 > 3 and camera.random.chance(0.6):
        windows(camera, gable, depth, height, end, 3.4 if trim else 0.6)
    at = quad((x, height, z0), (x, height, z1), (x, 0, z1), (x, 0, z0))
    camera.panel(at, 0, 0, 1, 1, front, label)
    camera.panel(at, 0, 1 - 0.5 / height, 1, 1, shade(front, 0.75))
    length = z1 - z0
    if roof is None:
        camera.panel(at, 0, 0, 1, 0.6 / height, shade(front, 0.8))
    windows(camera, at, length, height, front, 3.6 if trim else 0.7)
    if trim:
        shop_front(camera, at, length, height, trim)
    else:
        u, door = (
            camera.random.between(0.2, 0.75),
            camera.random.pick((70, 52, 42), (44, 56, 66), (92, 34, 32)),
        )
        camera.panel(at, u, 1 - 2.3 / height, u + 1.1 / length, 1, door)


def far_building(camera: Camera, x: float, z: float, width: float, height: float, color: Color) -> None:
    """One of the skyline, its front to the camera."""
    at = quad((x, height, z), (x + width, height, z), (x + width, 0, z), (x, 0, z))
    camera.panel(at, 0, 0, 1, 1, color, "building")
    windows(camera, at, width * 0.7, height, color, 0.5)


def wall(camera: Camera, x: float, z0: float, z1: float, height: float, color: Color, bricks: bool) -> None:
    """A free-standing wall along the street with a coping."""
    at = quad((x, height, z0), (x, height, z1), (x, 0, z1), (x, 0, z0))
    camera.panel(at, 0, 0, 1, 1, color, "wall")
    rows = int(height / 0.3) if bricks else 2
    for r in range(1, rows):
        camera.panel(at, 0, r / rows, 1, r / rows + 0.025 / height, shade(color, 0.78))
    for u in np.arange(0.08, 1, 0.23):
        camera.panel(at, u, 0, u + 0.01, 1, shade(color, 0.82))
    camera.panel(at, 0, 0, 1, 0.14 / height, shade(color, 1.25))


def fence(camera: Camera, x: float, z0: float, z1: float, height: float, how: str, color: Color) -> None:
    """A fence of planks, a railing of bars or a guard rail, along the street."""
    at, length = quad((x, height, z0), (x, height, z1), (x, 0, z1), (x, 0, z0)), z1 - z0
    if how == "planks":
        camera.panel(at, 0, 0, 1, 0.97, color, "fence")
        for u in np.arange(0, 1, 0.35 / length):
            camera.panel(at, u, 0, min(u + 0.06 / length, 1), 0.97, shade(color, 0.7))
    elif how == "rail":
        for z in np.arange(z0, z1, 2.0):
            camera.line((x, 0, z), (x, height, z), 0.14, shade(color, 0.7), "fence")
        camera.panel(at, 0, 0.08, 1, 0.55, color, "fence")
        camera.panel(at, 0, 0.26, 1, 0.36, shade(color, 0.7))
    else:
        gap = 0.3 / length
        for u in np.arange(0, 1, gap):
            camera.panel(at, u, 0.06, min(u + gap * 0.45, 1), 0.94, color, "fence")
        for v in (0.06, 0.8):
            camera.panel(at, 0, v, 1, v + 0.09, color, "fence")


def hedge(camera: Camera, x: float, z0: float, z1: float, height: float, leaf: Color) -> None:
    """A clipped hedge along the street."""
    at = quad((x, height, z0), (x, height, z1), (x, 0, z1), (x, 0, z0))
    camera.panel(at, 0, 0, 1, 1, shade(leaf, 0.75), "vegetation")
    for _ in range(int(8 * (z1 - z0))):
        u, v = camera.random.between(0, 1), camera.random.between(0, 0.95)
        z, y = z0 + u * (z1 - z0), height * (1 - v)
        tint = shade(camera.random.vary(leaf), 1.15 - 0.5 * v)
        camera.disc(x, y, z, 0.22, 0.16, tint, "vegetation")
