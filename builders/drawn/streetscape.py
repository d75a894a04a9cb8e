"""The world `streets`: streets as a camera in a car sees them, with exact masks of Cityscapes' 19 classes.

A street is first laid out in meters: lanes to the left and right of the camera's lane, parked cars,
pavements, buildings and other things beside them, and at times a crossing street. Then it is drawn strip by
strip, from the outer strips to the camera's lane, and each strip from far to near, because nothing in an
outer strip hides a thing in an inner one. Things beyond a crossing are drawn first, then those that cross,
then the nearer ones.

The style is not that of the other worlds: real proportions, muted colors, times of day, haze and shadows.
"""

from collections.abc import Callable
from itertools import pairwise

import numpy as np

from attn2mask.builders.drawn import roadside, traffic
from attn2mask.builders.drawn.camera import NEAR, Camera, Light, RandomChoices
from attn2mask.builders.drawn.canvas import Color, shade

LIGHTS = (
    Light(
        ("at noon", "on a sunny day", "in daylight"),
        (98, 148, 206),
        (206, 222, 236),
        (1.02, 1.0, 0.95),
        420,
        sun=0.42,
        clouds=0.35,
    ),
    Light(
        ("in the morning", "early in the day"),
        (134, 168, 206),
        (238, 224, 200),
        (1.0, 0.93, 0.82),
        260,
        sun=0.34,
        clouds=0.3,
    ),
    Light(
        ("on a cloudy day", "under a grey sky", "under clouds"),
        (164, 172, 182),
        (204, 208, 212),
        (0.86, 0.88, 0.9),
        240,
        clouds=0.9,
    ),
    Light(
        ("at dusk", "in the evening", "at sunset"),
        (84, 92, 138),
        (238, 168, 118),
        (0.66, 0.54, 0.53),
        220,
        dark=0.55,
        clouds=0.5,
    ),
    Light(
        ("at night", "in the dark", "after dark"),
        (12, 15, 32),
        (42, 42, 60),
        (0.3, 0.3, 0.38),
        160,
        dark=1.0,
        clouds=0.2,
    ),
    Light(
        ("in the rain", "on a rainy day", "in wet weather"),
        (124, 132, 142),
        (168, 174, 180),
        (0.62, 0.66, 0.71),
        110,
        dark=0.4,
        clouds=1.0,
        wet=0.3,
    ),
    Light(
        ("in fog", "on a foggy day", "in the mist"),
        (190, 194, 198),
        (200, 203, 205),
        (0.84, 0.85, 0.86),
        42,
        dark=0.25,
    ),
)
LIGHT_ODDS = (0.26, 0.13, 0.22, 0.13, 0.1, 0.1, 0.06)

#: What a street may be: words for it, and what fronts on its pavements with the odds of each.
DISTRICTS: dict[str, tuple[tuple[str, ...], dict[str, float]]] = {
    "center": (
        ("in the city centre", "on a shopping street", "downtown"),
        {"shops": 0.7, "flats": 0.22, "park": 0.08},
    ),
    "flats": (
        ("between apartment buildings", "on a wide avenue", "in the city"),
        {"flats": 0.66, "shops": 0.12, "park": 0.12, "wall": 0.1},
    ),
    "homes": (
        ("in a residential street", "in the suburbs", "between small houses"),
        {"homes": 0.82, "park": 0.1, "wall": 0.08},
    ),
    "park": (
        ("along a park", "on a street with many trees"),
        {"park": 0.56, "flats": 0.26, "homes": 0.1, "fence": 0.08},
    ),
    "edge": (
        ("at the edge of town", "on a main road", "in an industrial area"),
        {"fence": 0.34, "wall": 0.3, "works": 0.18, "park": 0.18},
    ),
}
DISTRICT_ODDS = (0.26, 0.24, 0.2, 0.14, 0.16)

ASPHALT, MARKING, STEEL = (96, 97, 100), (206, 206, 200), (152, 156, 158)
SLAB = ((150, 146, 140), (162, 150, 138), (136, 136, 138))
GRASS = ((94, 112, 58), (110, 118, 66), (84, 104, 56), (130, 120, 84))
LEAVES = (*((66, 88, 46), (78, 96, 52), (56, 78, 48), (92, 104, 54)) * 3, (140, 108, 46), (122, 74, 40), None)
BRICK = ((138, 88, 70), (158, 112, 84), (176, 150, 112), (112, 78, 68))
PLASTER = (
    (214, 206, 190),
    (196, 178, 148),
    (188, 186, 182),
    (206, 190, 164),
    (168, 156, 144),
    (178, 140, 118),
)
ROOF = ((96, 62, 54), (78, 76, 80), (112, 78, 62), (66, 66, 72))
TRIM = ((40, 74, 62), (116, 36, 38), (44, 60, 98), (66, 62, 58), (170, 136, 72))
FENCE = ((122, 96, 70), (150, 148, 142), (70, 80, 72), (60, 62, 66), (186, 182, 172))
PAINT = (
    (176, 180, 184),
    (38, 40, 44),
    (212, 212, 208),
    (98, 102, 108),
    (34, 48, 86),
    (128, 32, 34),
    (60, 64, 68),
    (150, 146, 134),
    (40, 70, 62),
    (186, 188, 190),
    (60, 96, 140),
)
LIVERY = ((196, 160, 52), (168, 40, 42), (206, 206, 200), (56, 96, 148), (70, 120, 84))

LANE, BAY, CROSSING = 3.2, 2.1, 9.0  # meters: widths of a lane, of a parking bay, of a crossing street
SIDES = (-1, 1)


class Street:
    """The plan of one street, and what stands in it in the order in which it is drawn.

    Distances (`kerb`, `edge`: where a pavement begins and ends) are from the middle of the camera's lane,
    by side: -1 is left. `crossing` is the z where a crossing street begins, infinite where there is none.
    """

    def __init__(self, camera: Camera, rng: np.random.Generator) -> None:
        self.camera, self.random = camera, RandomChoices(rng)
        self.items: list[tuple[tuple[float, float, float], Callable[[], None]]] = []
        d = self.random
        self.place = list(DISTRICTS)[rng.choice(len(DISTRICTS), p=DISTRICT_ODDS)]
        wide = self.place in ("flats", "center", "edge")
        self.tracks = wide and d.chance(0.24)
        self.lanes = {-1: 2 if wide and d.chance(0.35) else 1, 1: int(wide and d.chance(0.4))}
        self.bays = {s: d.chance(0.15 if self.place == "edge" else 0.62) for s in SIDES}
        self.kerb = {s: LANE / 2 + self.lanes[s] * LANE + self.bays[s] * BAY for s in SIDES}
        self.verge = {s: d.between(1.0, 2.0) if d.chance(0.3) else 0.0 for s in SIDES}
        self.edge = {s: self.kerb[s] + self.verge[s] + d.between(2.0, 4.2) for s in SIDES}
        self.far = d.between(60, 120)
        self.crossing = d.between(13, 34) if d.chance(0.5) else np.inf
        self.leaf, self.grass = d.pick(*LEAVES), d.pick(*GRASS)
        self.avenue = d.chance(0.75 if self.place == "park" else 0.3)
        names, odds = zip(*DISTRICTS[self.place][1].items(), strict=True)
        self.fronts = {(s, k): names[rng.choice(len(names), p=odds)] for s in SIDES for k in (0, 1)}

    def draw(self) -> None:
        """All of it."""
        self.camera.sky()
        self.pave()
        spans = [(-4.0, min(self.crossing - 3, self.far)), (self.crossing + CROSSING + 3, self.far)]
        for s in SIDES:
            for k, (z0, z1) in enumerate(spans):
                if z0 < z1:
                    self.front(s, self.fronts[s, k], z0, z1)
                    self.furnish(s, z0, z1)
            self.park(s)
        self.drive()
        self.skyline()
        if np.isfinite(self.crossing):
            self.cross()
        self.camera.light_ground()
        for _, draw in sorted(self.items, key=lambda item: item[0]):
            draw()

    def add(self, strip: float, z: float, draw: Callable, *given, layer: int | None = None) -> None:
        """Draw something later: `strip` is its distance from the camera's lane, `z` that of its far end.

        `layer`: 0 the skyline, 1 beyond the crossing, 2 in it, 3 before it; by default 1 or 3, after z.
        """
        layer = (3 if z <= self.crossing else 1) if layer is None else layer
        self.items.append(((layer, -strip, -z), lambda: draw(self.camera, *given)))

    def paint(self, *colors: Color) -> Color:
        """About one of `colors`."""
        return self.random.vary(self.random.pick(*colors))

    def shadow(self, x0: float, x1: float, z0: float, z1: float) -> None:
        """A shadow that the sun throws on the ground, where there is one."""
        if self.camera.light.sun:
            self.camera.shadow(x0, x1, z0, z1, self.camera.light.sun)

    # the ground

    def pave(self) -> None:
        """Soil, pavements and the road."""
        d, c, ground = self.random, self.crossing, self.camera.ground
        asphalt, slab = d.vary(ASPHALT, 10), self.paint(*SLAB)

        def strip(s: int, near: float, far: float, *look, z0: float = NEAR, z1: float = self.far) -> None:
            left, right = sorted((s * near, s * far))
            ground(left, right, z0, z1, *look)

        for s in SIDES:
            for k, (z0, z1) in enumerate(pairwise((NEAR, min(c, 4000), 4000))):
                paved = self.fronts[s, k] in ("shops", "flats")
                strip(s, 0, 900, *((slab, "sidewalk") if paved else (self.grass, "terrain")), z0=z0, z1=z1)
            strip(s, self.kerb[s], self.edge[s], slab, "sidewalk", z1=self.far + 30)
            if self.verge[s]:
                strip(s, self.kerb[s], self.kerb[s] + self.verge[s], self.grass, "terrain")
            strip(s, self.kerb[s], self.kerb[s] + 0.18, shade(slab, 1.25), "sidewalk")
        if np.isfinite(c):
            ground(-200, 200, c - 2.5, c + CROSSING + 2.5, slab, "sidewalk")
            ground(-300, 300, c, c + CROSSING, asphalt, "road")
        ground(-self.kerb[-1], self.kerb[1], NEAR, 2000, asphalt, "road")
        for s in SIDES:
            if self.bays[s] and d.chance(0.6):
                strip(s, self.kerb[s] - BAY, self.kerb[s], shade(asphalt, 0.9))
        for _ in range(int(d.between(1, 6))):  # patches and covers
            x, z, tint = d.between(-self.kerb[-1], self.kerb[1]), d.between(3, 30), d.pick(0.82, 0.9, 1.1)
            ground(x, x + d.between(0.5, 1.6), z, z + d.between(0.6, 5), shade(asphalt, tint))
        self.mark()

    def mark(self) -> None:
        """Lines between the lanes and along the kerbs, a stop line and a zebra crossing, a tram's rails."""
        d, ground, stop = self.random, self.camera.ground, self.crossing - 5.5
        line = shade(MARKING, 0.82 if d.chance(0.4) else 1.0)
        for k in range(-self.lanes[-1], self.lanes[1]):
            x, whole = (k + 0.5) * LANE, k == -1 and d.chance(0.25)
            if whole:
                ground(x - 0.08, x + 0.08, NEAR, min(stop, self.far), line)
            for z in () if whole else np.arange(d.between(1, 5), 80, 7.5):
                if z + 3.2 < stop or z > self.crossing + CROSSING + 3:
                    ground(x - 0.08, x + 0.08, z, z + 3.2, line)
        for s in SIDES:
            if d.chance(0.4):
                x = s * (self.kerb[s] - self.bays[s] * BAY - 0.25)
                ground(x - 0.06, x + 0.06, NEAR, min(stop, self.far), line)
        if np.isfinite(stop):
            left, right = -self.kerb[-1], self.kerb[1]
            ground(-LANE / 2 if d.chance(0.8) else left, right, stop - 1, stop - 0.5, MARKING)
            for x in np.arange(left + 0.3, right - 0.5, 1.1) if d.chance(0.7) else ():
                ground(x, x + 0.6, stop + 0.5, stop + 3.8, MARKING)
        for x in (-LANE - 0.72, -LANE + 0.72) if self.tracks else ():
            ground(x - 0.06, x + 0.06, NEAR, 300, STEEL)

    # what fronts on the street

    def front(self, s: int, what: str, z0: float, z1: float) -> None:
        """What fronts on one pavement between z0 and z1."""
        d = self.random
        if what in ("shops", "flats"):
            self.terrace(s, what == "shops", z0, z1)
        elif what in ("homes", "works"):
            self.detached(s, what == "homes", z0, z1)
            self.enclose(
                s, d.pick("hedge", "planks", "bars", "low wall") if what == "homes" else "bars", z0, z1
            )
        else:
            for z in np.arange(z0, z1, d.between(3.5, 7)):
                self.plant(s, self.edge[s] + d.between(2, 16), z + d.between(0, 3), d.between(5, 11))
            if what == "park":
                how = d.pick("bars", "hedge", None, None, None)
            else:
                how = "wall" if what == "wall" else d.pick("planks", "bars", "rail", "rail")
            self.enclose(s, how, z0, z1)

    def terrace(self, s: int, shops: bool, z0: float, z1: float) -> None:
        """Houses side by side."""
        d, z = self.random, z0
        while z < z1 - 4:
            end = min(z + d.between(7, 15 if shops else 24), z1)
            end = z1 if z1 - end < 5 else end
            x, height = s * (self.edge[s] + d.between(0, 0.4)), d.between(*((7, 15) if shops else (11, 24)))
            trim = self.paint(*TRIM) if d.chance(0.8 if shops else 0.12) else None
            roof = self.paint(*ROOF) if d.chance(0.6 if shops else 0.25) else None
            front = self.paint(*BRICK, *PLASTER, *PLASTER)
            self.add(self.edge[s], end, roadside.building, s, x, z, end, height, 10, front, roof, trim)
            if s < 0:
                self.shadow(x, x + height * 0.62, z, end)
            z = end + (d.between(2, 7) if d.chance(0.15) else 0)

    def detached(self, s: int, homes: bool, z0: float, z1: float) -> None:
        """Houses in gardens, or halls in yards."""
        d, z = self.random, z0 + self.random.between(0, 3)
        strip = self.edge[s] + d.between(*((2.5, 6) if homes else (6, 12)))
        while z < z1 - 6:
            end, height = min(z + d.between(*((8, 12) if homes else (16, 34))), z1), d.between(4.5, 7)
            roof = self.paint(*ROOF) if homes else None
            front = self.paint(*BRICK, *PLASTER)
            self.add(strip, end, roadside.building, s, s * strip, z, end, height, 9, front, roof, None)
            if d.chance(0.5):
                self.plant(s, self.edge[s] + d.between(1.2, 2.4), end, d.between(3, 6))
            z = end + d.between(2, 7)

    def plant(self, s: int, distance: float, z: float, height: float) -> None:
        """A tree at a distance from the camera's lane."""
        leaf = None if self.leaf is None else self.random.vary(self.leaf, 7)
        self.add(distance, z, roadside.tree, s * distance, z, height, leaf)
        self.shadow(s * distance - 1, s * distance + 3, z - 1, z + 1)

    def enclose(self, s: int, how: str | None, z0: float, z1: float) -> None:
        """A wall, fence or hedge at the outer edge of a pavement."""
        if how is None:
            return
        d, x = self.random, s * self.edge[s]
        stone, bricks = self.paint(*BRICK, (150, 146, 138), (126, 122, 116)), d.chance(0.6)
        tint = STEEL if how == "rail" else self.paint(*FENCE)
        tall = {
            "wall": (1.8, 3.2),
            "low wall": (0.8, 1.2),
            "hedge": (1.0, 1.9),
            "planks": (1.3, 2.0),
            "bars": (1.1, 1.7),
            "rail": (0.75, 0.85),
        }
        height = d.between(*tall[how])
        for a, b in pairwise([*np.arange(z0, z1, 5.0), z1]):
            if "wall" in how:
                self.add(self.edge[s], b, roadside.wall, x, a, b, height, stone, bricks)
            elif how == "hedge":
                self.add(self.edge[s], b, roadside.hedge, x, a, b, height, self.leaf or (72, 80, 50))
            else:
                self.add(self.edge[s], b, roadside.fence, x, a, b, height, how, tint)

    def skyline(self) -> None:
        """Far buildings and trees along the horizon, beyond the end of the street."""
        d, z = self.random, self.far + 35
        town, x = 0.62 if self.place in ("park", "edge", "homes") else 0.8, -1.1 * z
        while x < 1.1 * z:
            width = d.between(8, 20)
            if d.chance(town):
                look = width, d.between(6, 20), self.paint(*PLASTER, *BRICK)
                self.add(0, z, roadside.far_building, x, z, *look, layer=0)
            if d.chance(0.55):
                leaf, tall = d.vary(self.leaf or (96, 90, 78)), d.between(4, 9)
                crown = (x, tall / 2, z - 2, width * 0.6, tall * 0.62, leaf, 14)
                self.add(0, z - 2, roadside.foliage, *crown, layer=0)
            x += width

    # what stands on the pavements

    def furnish(self, s: int, z0: float, z1: float) -> None:
        """Lamps, trees, signs, parked bicycles and people on one pavement between z0 and z1."""
        d, strip, z0 = self.random, self.kerb[s] + 0.5, max(z0, 4.0)
        if d.chance(0.75):
            height, step, arm = d.between(5.5, 8.5), d.between(16, 26), -s * d.between(0.8, 2.0)
            for z in np.arange(z0 + d.between(0, step), z1, step):
                self.add(strip, z, roadside.lamp_post, s * strip, z, height, arm)
        if self.avenue:
            step = d.between(7, 11)
            for z in np.arange(z0 + d.between(0, step), z1, step):
                self.plant(s, strip + 0.1, z, d.between(4.5, 8))
        for _ in range(d.rng.poisson((z1 - z0) / 38)):
            z, draw = d.between(z0, z1), roadside.direction_board if d.chance(0.12) else roadside.sign
            self.add(strip, z, draw, s * (strip + 0.1), z)
        if d.chance(0.2):
            z, x = d.between(z0, z0 + 16), s * (strip + 0.7)
            for k in range(d.pick(1, 2, 3, 5)):
                given = x + d.between(-0.2, 0.2), min(z + k, z1), d.chance(0.28), d.chance(0.5), False
                self.add(strip + 0.2, z + k, traffic.cycle_side, *given)
        busy = {"center": 5.0, "flats": 2.6, "homes": 1.2, "park": 1.8, "edge": 0.7}[self.place]
        inner = self.kerb[s] + self.verge[s] + 0.9
        for _ in range(d.rng.poisson(busy)):
            z = z0 + d.rng.gamma(2, 7)
            for k in range(d.pick(1, 1, 2)):  # alone or two together
                x = s * d.between(inner, max(self.edge[s] - 0.4, inner + 0.1))
                if z + 0.2 * k < z1:
                    self.add(inner, z + 0.2 * k, roadside.person, x, z + 0.2 * k)

    # traffic

    def clear(self, z: float, length: float) -> bool:
        """Whether nothing of z to z + length is in the crossing street."""
        return z + length < self.crossing - 6 or z > self.crossing + CROSSING + 4

    def stand(self, x: float, z: float, draw: Callable, length: float, width: float, *given) -> None:
        """A vehicle along the street with its shadow; its strip is the lane or bay that x is in."""
        half = width / 2
        self.shadow(x - half, x + half + 0.5, z - 0.1, z + length)
        self.camera.shadow(x - half, x + half, z - 0.15, z + length, 0.45)
        self.add(round(abs(x) / 1.3), z + length, draw, x, z, *given)

    def park(self, s: int) -> None:
        """Parked cars on one side."""
        d, z, x = self.random, self.random.between(-3, 3), s * (self.kerb[s] - BAY / 2)
        full = d.between(0.4, 0.95) if self.bays[s] else 0.0
        while z < min(self.far, 70):
            body, tint = d.pick("hatchback", *traffic.CARS), self.paint(*PAINT)
            length, width = traffic.CARS[body][:2]
            if self.clear(z, length) and d.chance(full):
                self.stand(x, z, traffic.car, length, width, s > 0, body, tint, True)
            z += length + d.between(0.6, 1.8)

    def drive(self) -> None:
        """What drives in each lane."""
        d, heavy = self.random, {"edge": 0.3, "homes": 0.06}.get(self.place, 0.18)
        names = ("car", "truck", "bus", "tram", "motorcycle", "bicycle")
        for k in range(-self.lanes[-1], self.lanes[1] + 1):
            z, ahead = d.between(7, 38) if k == 0 else d.between(3, 30), k >= 0
            trams = 0.35 if self.tracks and k == -1 else 0.0
            odds = (0.78 - heavy - trams, heavy * 0.55, heavy * 0.45, trams, 0.1, 0.12)
            while z < 75:
                what, x = names[d.rng.choice(6, p=odds)], k * LANE
                tint, other = self.paint(*PAINT), self.paint((214, 212, 206), *PAINT)
                if what == "car":
                    body = d.pick(*traffic.CARS)
                    draw, (length, width), look = traffic.car, traffic.CARS[body][:2], (body, tint)
                    x += d.between(-0.25, 0.25)
                elif what in traffic.LONG:
                    draw, length, width = traffic.LONG[what]
                    look = (tint if what == "truck" else self.paint(*LIVERY), other)
                    z = max(z, 9.0) if k == 0 else z
                else:
                    draw, length, width, look = traffic.ridden, 1.8, 0.6, (what == "motorcycle",)
                    x += (0.0 if look[0] else 0.9 if ahead else -0.9) + d.between(-0.2, 0.2)
                if self.clear(z, length):
                    self.stand(x, z, draw, length, width, ahead, *look)
                z += length + d.between(4, 34)

    def cross(self) -> None:
        """Traffic lights about the crossing street, and who passes in it."""
        d, c = self.random, self.crossing
        lights, lit = d.chance(0.75), int(d.rng.integers(3))
        for s in SIDES if lights else ():
            x, arm = s * (self.kerb[s] + 0.6), -d.between(2.5, 4.5) if s > 0 and d.chance(0.5) else 0.0
            self.add(abs(x) - 0.3, c - 5, roadside.signals, x, c - 5, arm, lit)
            if d.chance(0.5):
                self.add(abs(x) - 0.3, c + CROSSING + 2, roadside.signals, x, c + CROSSING + 2, 0.0, lit)
        names = ("car", "bicycle", "motorcycle", "bus", "truck", "train")
        odds = (0.45, 0.2, 0.12, 0.09, 0.08, 0.06)
        for z, left in ((c + 6.5, True), (c + 2.4, False)):
            x = d.between(-22, 6)
            while x < 22:
                what = names[d.rng.choice(6, p=odds)]
                if what in ("bicycle", "motorcycle"):
                    self.add(0, z, traffic.cycle_side, x, z, what == "motorcycle", left, True, layer=2)
                elif d.chance(0.6):
                    self.add(0, z, traffic.across, x, z, what, left, layer=2)
                    self.camera.shadow(x - 2, x + 2, z - 0.6, z + 0.6, 0.4)
                x += d.between(9, 20)
        for _ in range(d.rng.poisson(1.2)):
            z = c - d.between(2.2, 4.4)
            self.add(0, z, roadside.person, d.between(-self.kerb[-1], self.kerb[1]), z, layer=2)


def draw_street(size: tuple[int, int], rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, str, str]:
    """A street scene of `size` (height, width): its image (H, W, 3) uint8, its mask (H, W) uint8 of train
    ids with 255 where unlabeled, and phrases for its place ("along a park") and light ("at dusk").
    """
    light = LIGHTS[rng.choice(len(LIGHTS), p=LIGHT_ODDS)]
    plan, details = (np.random.default_rng(rng.integers(2**32, size=4)) for _ in range(2))
    camera = Camera(size, light, details)
    street, random = Street(camera, plan), RandomChoices(rng)
    street.draw()
    if random.chance(0.2):
        camera.bonnet(random.vary(random.pick(*PAINT)))
    image, mask = camera.develop()
    if random.chance(0.4):  # where they drive on the left
        image, mask = image[:, ::-1].copy(), mask[:, ::-1].copy()
    return image, mask, random.pick(*DISTRICTS[street.place][0]), random.pick(*light.phrases)
