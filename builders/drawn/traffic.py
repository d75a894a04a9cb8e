"""What drives and rides in a street, drawn by a `Camera`: solids of a few faces, riders on two wheels.

A vehicle stands at (x, z), z that of its near end; `ahead` says that it drives away from the camera, which
sees its rear.
"""

from attn2mask.builders.drawn import animals, furnishings, street, vehicles  # noqa: F401 (they register their kinds)
from attn2mask.builders.drawn.camera import CIRCLE, Camera, Face, quad
from attn2mask.builders.drawn.canvas import Color, Pen, shade
from attn2mask.builders.drawn.kinds import kinds_of

CLOTHES = ("black", "gray", "blue", "brown", "white", "red", "teal", "tan", "black", "gray")
FRAMES = ("black", "red", "blue", "gray")
PASSING = "sedan hatchback suv single_decker double_decker box_truck tanker commuter_train".split()
GLASS, TYRE = (58, 68, 78), (26, 26, 28)


# ---- solids ------------------------------------------------------------


def tapered(camera: Camera, low: tuple, high: tuple, color: Color, label: str) -> tuple[Face, Face]:
    """A block between two level rectangles (x0, x1, z0, z1, y); returns its near end and its side in view.

    (u, v) of the end run from left to right and down; of the side from near to far and down.
    """
    (a0, a1, an, af, ay), (b0, b1, bn, bf, by) = low, high
    end = quad((b0, by, bn), (b1, by, bn), (a1, ay, an), (a0, ay, an))
    right = (a0 + a1) / 2 < 0  # the side towards the camera's lane
    bx, ax = (b1, a1) if right else (b0, a0)
    side = quad((bx, by, bn), (bx, by, bf), (ax, ay, af), (ax, ay, an))
    if by < camera.eye:
        camera.face([(b0, by, bn), (b1, by, bn), (b1, by, bf), (b0, by, bf)], shade(color, 1.12), label)
    if ax * (1 if right else -1) < 0:
        camera.panel(side, 0, 0, 1, 1, shade(color, 0.78), label)
    else:
        side = lambda u, v: (0, 0, -1)  # noqa: E731 (hidden: nothing on it is seen)
    camera.panel(end, 0, 0, 1, 1, color, label)
    return end, side


def block(
    camera: Camera,
    x0: float,
    x1: float,
    y0: float,
    y1: float,
    z0: float,
    z1: float,
    color: Color,
    label: str,
) -> tuple[Face, Face]:
    """An upright block; see `tapered`."""
    return tapered(camera, (x0, x1, z0, z1, y0), (x0, x1, z0, z1, y1), color, label)


def tires(camera: Camera, x: float, half: float, z: float, top: float, label: str) -> None:
    """The two tires at the near end of a vehicle `half` as wide to either side, up to `top`."""
    for s in (-1, 1):
        a, b = x + s * half * 0.92, x + s * half * 0.6
        camera.face([(a, top, z), (b, top, z), (b, 0, z), (a, 0, z)], TYRE, label)


def wheels(camera: Camera, x: float, width: float, places: tuple[float, ...], r: float, label: str) -> None:
    """Tyres in the plane of the side of a vehicle that is seen."""
    if abs(x) <= width / 2:
        return
    plane = x - width / 2 if x > 0 else x + width / 2
    for z in places:
        for k, color in ((1.0, TYRE), (0.55, (128, 130, 134))):
            camera.face([(plane, r + k * r * s, z + k * r * c) for c, s in CIRCLE], color, label)


def lamps(
    camera: Camera, end: Face, us: tuple[float, ...], v0: float, v1: float, rear: bool, on: bool = True
) -> None:
    """A vehicle's lights on its end, which shine when it is dark and they are `on`."""
    dark = on and camera.light.dark > 0.2
    color = (226, 40, 34) if rear and dark else (150, 34, 32) if rear else (236, 238, 232)
    for u in us:
        camera.panel(end, u - 0.07, v0, u + 0.07, v1, color, shines=dark)
        if dark:
            radius, light = (0.35, (255, 40, 30)) if rear else (0.6, (255, 244, 214))
            camera.glow(*end(u, (v0 + v1) / 2), radius, light, 0.8)


# ---- vehicles ------------------------------------------------------------

#: Cars by body: length, width, height, height of the windows' foot, and where the windows begin and end along
#: the roof and at their foot, from the rear, as shares of the length.
CARS = {
    "hatchback": (3.9, 1.75, 1.48, 0.9, (0.12, 0.6), (0.02, 0.76)),
    "sedan": (4.6, 1.8, 1.44, 0.92, (0.24, 0.6), (0.12, 0.76)),
    "estate": (4.6, 1.8, 1.5, 0.92, (0.07, 0.6), (0.01, 0.76)),
    "suv": (4.5, 1.9, 1.72, 1.05, (0.05, 0.62), (0.01, 0.76)),
    "van": (5.0, 1.95, 2.15, 1.15, (0.01, 0.72), (0.0, 0.86)),
}


def car(
    camera: Camera, x: float, z: float, ahead: bool, body: str, paint: Color, parked: bool = False
) -> None:
    """A car whose near end is at z, seen from behind where it drives `ahead`."""
    length, width, height, belt, roof, foot = CARS[body]
    half, far = width / 2, z + length
    if not ahead:
        roof, foot = (1 - roof[1], 1 - roof[0]), (1 - foot[1], 1 - foot[0])
    tires(camera, x, half, z + 0.1, 0.5, "car")
    low = (x - half, x + half, z, far, 0.24)
    high = (x - half * 0.96, x + half * 0.96, z + 0.08, far - 0.1, belt)
    end, _ = tapered(camera, low, high, paint, "car")
    wheels(camera, x, width, (z + 0.2 * length, z + 0.8 * length), 0.32, "car")
    camera.panel(end, 0.03, 0.72, 0.97, 1, shade(paint, 0.45))
    camera.panel(end, 0.35, 0.55 if ahead else 0.74, 0.65, 0.7 if ahead else 0.87, (214, 214, 200))
    if not ahead:
        camera.panel(end, 0.3, 0.3, 0.7, 0.6, (36, 37, 40))
    cabin = (x - half * 0.93, x + half * 0.93, z + foot[0] * length, z + foot[1] * length, belt)
    k = 0.86 if body == "van" else 0.74
    top = (x - half * k, x + half * k, z + roof[0] * length, z + roof[1] * length, height)
    window, flank = tapered(camera, cabin, top, paint, "car")
    camera.panel(window, 0.09, 0.12, 0.91, 0.9, GLASS)
    for a, b in ((0.06, 0.48), (0.53, 0.93)):
        if body != "van" or (a > 0.5) == ahead:
            camera.panel(flank, a, 0.14, b, 0.94, shade(GLASS, 0.8))
    lamps(camera, end, (0.1, 0.9), 0.22, 0.5, ahead, not parked)


def truck(camera: Camera, x: float, z: float, ahead: bool, paint: Color, load: Color) -> None:
    """A lorry with a box."""
    length, half = 7.6, 1.2
    cab = (z + length - 2, z + length) if ahead else (z, z + 2)
    box = (z, z + length - 2.2) if ahead else (z + 2.2, z + length)

    def draw_cab() -> None:
        high = (x - half * 0.96, x + half * 0.96, cab[0] + (0 if ahead else 0.2), cab[1], 2.7)
        end, side = tapered(camera, (x - half, x + half, *cab, 0.45), high, paint, "truck")
        if not ahead:
            camera.panel(end, 0.06, 0.1, 0.94, 0.45, GLASS)
            camera.panel(end, 0.25, 0.58, 0.75, 0.78, (40, 41, 44))
            camera.panel(end, 0, 0.88, 1, 1, (52, 53, 56))
            lamps(camera, end, (0.12, 0.88), 0.78, 0.87, rear=False)
        camera.panel(side, 0.25, 0.12, 0.85, 0.45, shade(GLASS, 0.8))

    def draw_box() -> None:
        block(camera, x - half * 0.9, x + half * 0.9, 0.35, 1.0, *box, (44, 45, 48), "truck")
        end, side = block(camera, x - half, x + half, 0.95, 3.4, *box, load, "truck")
        if ahead:
            camera.panel(end, 0.49, 0.03, 0.51, 0.97, shade(load, 0.6))
            camera.panel(end, 0, 0.95, 1, 1, (60, 60, 62))
            lamps(camera, end, (0.1, 0.9), 0.95, 1.0, rear=True)
        elif camera.random.chance(0.5):
            camera.panel(end, 0, 0, 1, 0.1, shade(load, 0.8))
        camera.panel(side, 0.2, 0.3, 0.8, 0.55, shade(paint, 0.8))

    tires(camera, x, half, z + 0.1, 0.9, "truck")
    for draw in (draw_cab, draw_box) if ahead else (draw_box, draw_cab):
        draw()
    wheels(camera, x, 2 * half, (z + 1.1, z + length - 1.1, z + length / 2 + 1.4), 0.48, "truck")


def bus(camera: Camera, x: float, z: float, ahead: bool, paint: Color, trim: Color) -> None:
    """A city bus."""
    length, half, label = 11.0, 1.25, "bus"
    tires(camera, x, half, z + 0.2, 0.6, label)
    end, side = block(camera, x - half, x + half, 0.3, 3.1, z, z + length, paint, label)
    camera.panel(side, 0, 0.66, 1, 0.8, shade(trim, 0.8))
    for k in range(6):
        camera.panel(side, 0.03 + k * 0.16, 0.16, 0.165 + k * 0.16, 0.52, shade(GLASS, 0.8))
    for u in (0.3, 0.78) if not ahead else (0.2, 0.68):
        camera.panel(side, u, 0.14, u + 0.09, 0.92, shade(GLASS, 0.7))
    wheels(camera, x, 2 * half, (z + 2.6, z + length - 2.6), 0.48, label)
    camera.panel(end, 0.05, 0.13, 0.95, 0.42 if ahead else 0.58, GLASS)
    camera.panel(end, 0, 0.66, 1, 0.78, trim)
    camera.panel(end, 0.2, 0.03, 0.8, 0.11, (24, 24, 26))
    camera.panel(end, 0.28, 0.045, 0.66, 0.095, (232, 160, 50), shines=True)
    camera.panel(end, 0, 0.93, 1, 1, (46, 47, 50))
    lamps(camera, end, (0.1, 0.9), 0.8, 0.88, ahead)


def tram(camera: Camera, x: float, z: float, ahead: bool, paint: Color, trim: Color) -> None:
    """A tram, which Cityscapes counts among trains."""
    length, half, label = 21.0, 1.2, "train"
    block(camera, x - half * 0.8, x + half * 0.8, 0.05, 0.5, z + 0.8, z + length, (44, 45, 48), label)
    for k in (1, 0):  # the rear car first
        near, far = z + 10.6 * k, z + 10.6 * k + 10.3
        low, high = (x - half, x + half, near, far, 0.35), (x - half * 0.92, x + half * 0.92, near, far, 3.4)
        end, side = tapered(camera, low, (*high[:2], near + (0 if k else 0.5), *high[3:]), paint, label)
        camera.panel(side, 0, 0.58, 1, 0.72, shade(trim, 0.8))
        for j in range(5):
            camera.panel(side, 0.04 + j * 0.19, 0.16, 0.19 + j * 0.19, 0.5, shade(GLASS, 0.8))
    camera.panel(end, 0.08, 0.16, 0.92, 0.52, shade(GLASS, 0.75))
    camera.panel(end, 0, 0.6, 1, 0.76, trim)
    camera.panel(end, 0.25, 0.05, 0.75, 0.13, (24, 24, 26))
    camera.panel(end, 0.36, 0.065, 0.58, 0.115, (232, 160, 50), shines=True)
    camera.panel(end, 0.1, 0.92, 0.9, 1, (46, 47, 50))
    lamps(camera, end, (0.2, 0.8), 0.8, 0.87, ahead)
    for a, b in (((x, 3.4, z + 5), (x - 0.4, 4.0, z + 6)), ((x - 0.4, 4.0, z + 6), (x, 4.6, z + 5))):
        camera.line(a, b, 0.06, (60, 60, 62), label)
    camera.line((x - 0.7, 4.6, z + 5), (x + 0.7, 4.6, z + 5), 0.06, (60, 60, 62), label)


#: What is long: how it is drawn, its length and width in meters.
LONG = {"truck": (truck, 7.6, 2.4), "bus": (bus, 11.0, 2.5), "tram": (tram, 21.0, 2.4)}


def cycle_end(pen: Pen, motor: bool) -> None:
    """A bicycle or motorcycle from ahead or behind, 0.8 m wide and 1.8 m tall."""
    tyre = 0.09 if motor else 0.04
    pen.rectangle(0.5 - tyre, 0.62, 0.5 + tyre, 1.0, pen.dark, 0.02)
    pen.line([(0.12, 0.42), (0.38, 0.45), (0.62, 0.45), (0.88, 0.42)], 0.018, pen.dark)
    pen.line([(0.5, 0.45), (0.5, 0.68)], 0.04, pen.body)
    if motor:
        pen.ellipse(0.5, 0.6, 0.26, 0.12, pen.body)
        pen.rectangle(0.24, 0.68, 0.76, 0.8, pen.dark, 0.04)
        pen.ellipse(0.5, 0.58, 0.12, 0.045, pen.light)


def rider_end(pen: Pen, helmet: bool) -> None:
    """Who rides on it, in the same box."""
    skin, legs = pen.color("tan"), pen.accent
    for s, foot in ((-1, 0.88), (1, 0.8)):
        pen.line([(0.5 + s * 0.12, 0.56), (0.5 + s * 0.24, 0.68), (0.5 + s * 0.17, foot)], 0.07, legs)
        elbow, hand = (0.5 + s * 0.36, 0.36), (0.5 + s * 0.34, 0.44)
        pen.line([(0.5 + s * 0.2, 0.27), elbow, hand], 0.05, shade(pen.body, 0.85))
    pen.curve([(0.26, 0.26), (0.5, 0.19), (0.74, 0.26), (0.7, 0.56), (0.5, 0.61), (0.3, 0.56)], pen.body)
    pen.ellipse(0.5, 0.13, 0.13, 0.075, skin)
    pen.ellipse(0.5, 0.09 if helmet else 0.1, 0.16, 0.065, pen.color() if helmet else pen.dark)


def ridden(camera: Camera, x: float, z: float, ahead: bool, motor: bool) -> None:
    """A bicycle or motorcycle with its rider, along the street."""
    random, name, box = (
        camera.random,
        "motorcycle" if motor else "bicycle",
        (x, z, 0.95 if motor else 0.8, 1.8),
    )
    helmet, paint, coat = motor or random.chance(0.5), random.pick(*FRAMES), random.pick(*CLOTHES)
    cycle = (lambda pen: cycle_end(pen, motor)), *box, name
    rider = (lambda pen: rider_end(pen, helmet)), *box, "rider"
    if ahead:
        camera.sprite(*cycle, body=paint)
        camera.sprite(*rider, body=coat)
        camera.sprite(
            (lambda pen: pen.rectangle(0.46, 0.6, 0.54, 1.0, pen.dark, 0.02)), *box, name
        )  # its tyre
    else:
        camera.sprite(*rider, body=coat)
        camera.sprite(*cycle, body=paint)
    camera.glow(x, 0.7, z, 0.3, (255, 40, 30) if ahead else (255, 244, 214), 0.7)


def cycle_side(camera: Camera, x: float, z: float, motor: bool, flip: bool, rider: bool) -> None:
    """A bicycle or motorcycle from the side, with or without its rider."""
    random, name, height = camera.random, *(("motorcycle", 1.12) if motor else ("bicycle", 1.05))
    kind = random.pick(*(kinds_of("motorbike")[:2] if motor else kinds_of("bicycle")[:3]))
    camera.sprite(kind.draw, x, z, height * kind.aspect, height, name, body=random.pick(*FRAMES), flip=flip)
    if rider:
        draw, width, height = (animals.saddle_rider, 0.6, 1.4) if motor else (animals.cyclist, 0.94, 1.45)
        camera.sprite(draw, x, z, width, height, "rider", base=0.28, body=random.pick(*CLOTHES), flip=flip)


def across(camera: Camera, x: float, z: float, thing: str, flip: bool) -> None:
    """A vehicle in a crossing street, from the side."""
    kind = camera.random.pick(*(k for k in kinds_of(thing) if k.draw.__name__ in PASSING))
    height = {"car": 1.55, "truck": 3.3, "bus": 3.1, "train": 3.6}[thing] * (1.3 if kind.aspect == 1.4 else 1)
    body = camera.random.pick("gray", "black", "white", "blue", "red", "white", "gray", "tan")
    camera.sprite(kind.draw, x, z, height * kind.aspect, height, thing, body=body, flip=flip)
