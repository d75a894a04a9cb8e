"""A pinhole camera above a flat street. It draws in meters, from back to front, and the mask is exact.

Points are (x to the right, y up, z ahead) in meters. The camera is above the origin and points along z. Faces
are clipped at the near plane, projected, and painted twice: their lit color on the image, and their class on
the mask. Draw the `sky` first, then all `ground`, which `light_ground` lights at once, then the things on it
from far to near.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, hypot, pi, sin
from typing import Any

import numpy as np
from PIL import Image, ImageChops, ImageDraw

from attn2mask.builders.drawn.canvas import SUPERSAMPLE, Color, Pen, Style
from attn2mask.builders.table_reader import load_table

#: Cityscapes' evaluated classes in the order of their train ids.
CITYSCAPES = load_table("cityscapes").names
UNLABELED = 255
NEAR = 0.9  # meters: what is nearer is cut off

Point = tuple[float, float, float]
Face = Callable[[float, float], Point]  # (u, v) of the unit square to a point of a flat face
CIRCLE = [(cos(t * pi / 8), sin(t * pi / 8)) for t in range(16)]


def quad(a: Point, b: Point, c: Point, d: Point) -> Face:
    """The face with corners a at (0, 0), b at (1, 0), c at (1, 1) and d at (0, 1)."""

    def at(u: float, v: float) -> Point:
        p, q, r, s = (1 - u) * (1 - v), u * (1 - v), u * v, (1 - u) * v
        x, y, z = (p * i + q * j + r * k + s * m for i, j, k, m in zip(a, b, c, d, strict=True))
        return x, y, z

    return at


class RandomChoices:
    """Random choices from one generator."""

    def __init__(self, rng: np.random.Generator) -> None:
        self.rng = rng

    def between(self, low: float, high: float) -> float:
        """A uniform random number."""
        return float(self.rng.uniform(low, high))

    def chance(self, p: float) -> bool:
        """True with probability `p`."""
        return bool(self.rng.random() < p)

    def pick(self, *options):
        """One of `options` at random."""
        return options[self.rng.integers(len(options))]

    def vary(self, color: Color, spread: float = 8) -> Color:
        """A neighbor of `color`, as much darker or lighter as it differs in hue."""
        value, *hue = (self.rng.normal(0, spread, 4) * (1, 0.33, 0.33, 0.33)).tolist()
        return tuple(min(max(int(c + value + h), 0), 255) for c, h in zip(color, hue, strict=True))


@dataclass(frozen=True)
class Light:
    """Time of day and weather.

    Attributes:
        phrases: words for it ("at dusk"), one of which describes the scene.
        zenith: the sky's color at the top of the image, RGB.
        haze: its color above the horizon, which far things take on.
        tint: factors on every color that does not shine itself.
        reach: meters after which haze hides all but 1 / e of a color.
        dark: 0 by day to 1 at night: how much lamps, headlights and windows shine.
        sun: strength of shadows, 0 to 1.
        clouds: share of the sky that is clouded, 0 to 1.
        wet: how much the road mirrors, 0 to 1; above 0 it rains.
    """

    phrases: tuple[str, ...]
    zenith: Color
    haze: Color
    tint: tuple[float, float, float]
    reach: float
    dark: float = 0.0
    sun: float = 0.0
    clouds: float = 0.0
    wet: float = 0.0


class Camera:
    """The image while it is drawn; `size` is (height, width) in pixels of the result.

    `random` is for details of what is drawn. Colors are RGB, 0 to 255, as seen in white light; labels are
    names of `CITYSCAPES`, or None to recolor a face that is there already.
    """

    def __init__(self, size: tuple[int, int], light: Light, rng: np.random.Generator) -> None:
        height, width = size
        self.light, self.random = light, RandomChoices(rng)
        self.height, self.width = height * SUPERSAMPLE, width * SUPERSAMPLE
        self.focal = self.random.between(0.72, 0.95) * max(self.height, self.width)
        self.eye = self.random.between(1.3, 1.7)
        self.center = self.random.between(0.4, 0.6) * self.width
        self.horizon = self.random.between(0.42, 0.5) * self.height
        self.image = Image.new("RGB", (self.width, self.height))
        self.ids = Image.new("L", (self.width, self.height), UNLABELED)
        self.shade = Image.new("L", (self.width, self.height))  # shadows on the ground
        self._rgb, self._ids, self._shade = (ImageDraw.Draw(i) for i in (self.image, self.ids, self.shade))
        self._haze, self._tint = np.array(light.haze, float), np.array(light.tint)

    def project(self, x: float, y: float, z: float) -> tuple[float, float]:
        """(column, row) on the supersampled canvas of a point before the near plane."""
        scale = self.focal / z
        return self.center + scale * x, self.horizon + scale * (self.eye - y)

    def outline(self, points: Sequence[Point]) -> list[tuple[float, float]]:
        """A flat polygon as it is seen, cut at the near plane; empty where nothing of it is in view."""
        if min(p[2] for p in points) < NEAR:
            kept: list[Point] = []
            for a, b in zip(points, (*points[1:], points[0]), strict=True):
                if a[2] >= NEAR:
                    kept.append(a)
                if (a[2] >= NEAR) != (b[2] >= NEAR):
                    t = (NEAR - a[2]) / (b[2] - a[2])
                    kept.append((a[0] + (b[0] - a[0]) * t, a[1] + (b[1] - a[1]) * t, NEAR))
            points = kept
        xy = [self.project(*p) for p in points]
        across, down = [p[0] for p in xy], [p[1] for p in xy]
        seen = (
            xy
            and min(across) < self.width
            and max(across) >= 0
            and min(down) < self.height
            and max(down) >= 0
        )
        return xy if seen else []

    def lit(self, color: Color | np.ndarray, z: float | np.ndarray) -> np.ndarray:
        """`color` (..., 3) in the scene's light at distance `z`: tinted, near headlights, in haze."""
        fade = np.exp(-z / self.light.reach)
        beam = (1 + self.light.dark * 1.3 * np.exp(-((z / 16) ** 2))) * fade
        if np.ndim(z):
            beam, fade = beam[..., None], fade[..., None]
        return np.asarray(color) * self._tint * beam + self._haze * (1 - fade)

    def _fill(self, xy: list[tuple[float, float]], color: Color, z: float, label: str | None) -> None:
        """Paint a polygon of the canvas; unless z is 0, in the scene's light at that distance."""
        if z:
            color = tuple(min(max(int(c), 0), 255) for c in self.lit(color, z).tolist())
        self._rgb.polygon(xy, fill=color)
        if label is not None:
            self._ids.polygon(xy, fill=CITYSCAPES.index(label))

    def face(
        self, points: Sequence[Point], color: Color, label: str | None = None, shines: bool = False
    ) -> None:
        """A flat polygon; what `shines` keeps its color in the dark."""
        xy = self.outline(points)
        if xy:
            z = max(sum(p[2] for p in points) / len(points), NEAR)
            self._fill(xy, color, 0 if shines and self.light.dark else z, label)

    def panel(
        self,
        at: Face,
        u0: float,
        v0: float,
        u1: float,
        v1: float,
        color: Color,
        label: str | None = None,
        shines: bool = False,
    ) -> None:
        """The rectangle (u0, v0) to (u1, v1) of a face."""
        self.face([at(u0, v0), at(u1, v0), at(u1, v1), at(u0, v1)], color, label, shines)

    def disc(
        self,
        x: float,
        y: float,
        z: float,
        rx: float,
        ry: float,
        color: Color,
        label: str | None = None,
        shines: bool = False,
    ) -> None:
        """An upright ellipse that faces the viewer."""
        self.face([(x + rx * c, y + ry * s, z) for c, s in CIRCLE], color, label, shines)

    def line(self, a: Point, b: Point, width: float, color: Color, label: str) -> None:
        """A bar from `a` to `b`, `width` meters across, nowhere thinner than a pixel of the result."""
        if min(a[2], b[2]) < NEAR:
            return
        (u0, v0), (u1, v1) = self.project(*a), self.project(*b)
        length = max(hypot(u1 - u0, v1 - v0), 1e-6)
        du, dv = (v0 - v1) / length / 2, (u1 - u0) / length / 2
        k, m = (max(width * self.focal / p[2], SUPERSAMPLE) for p in (a, b))
        xy = [(u0 + k * du, v0 + k * dv), (u1 + m * du, v1 + m * dv)]
        xy += [(u1 - m * du, v1 - m * dv), (u0 - k * du, v0 - k * dv)]
        self._fill(xy, color, (a[2] + b[2]) / 2, label)

    def sprite(
        self,
        draw: Callable[[Pen], None],
        x: float,
        z: float,
        width: float,
        height: float,
        label: str,
        base: float = 0.0,
        body: str | None = None,
        flip: bool = False,
    ) -> None:
        """A drawing of a `Pen` that stands upright, its middle at (x, z) and its foot at y = `base`."""
        if z < NEAR:
            return
        left, top = self.project(x - width / 2, base + height, z)
        w, h = width * self.focal / z, height * self.focal / z
        x0, x1 = (int(np.clip(v, 0, self.width)) for v in (left - 0.1 * w, left + 1.1 * w + 1))
        y0, y1 = (int(np.clip(v, 0, self.height)) for v in (top - 0.1 * h, top + 1.05 * h + 1))
        if x1 <= x0 or y1 <= y0:
            return
        mirror = -1 if flip else 1
        transform = np.array([[mirror * w, 0, left - x0 + (w if flip else 0)], [0, h, top - y0]])
        style = Style(light=0.15, light_angle=1.2, saturation=0.62, value=0.85, jitter=0.04)
        pen = Pen((x1 - x0, y1 - y0), transform, style, self.random.rng, body)
        draw(pen)
        rgb, covered = pen.finish()
        rgb = np.clip(self.lit(rgb, z), 0, 255).astype(np.uint8)
        stencil = Image.fromarray(covered)
        self.image.paste(Image.fromarray(rgb), (x0, y0), stencil)
        self.ids.paste(CITYSCAPES.index(label), (x0, y0, x1, y1), stencil)

    def glow(self, x: float, y: float, z: float, radius: float, color: Color, strength: float = 1.0) -> None:
        """Light that a lamp spreads over what is behind it: nothing by day."""
        strength *= self.light.dark
        if z < NEAR or strength <= 0:
            return
        (u, v), r = self.project(x, y, z), max(radius * self.focal / z, SUPERSAMPLE * 1.5)
        limits = (self.width, self.height) * 2
        box = np.clip((u - 2 * r, v - 2 * r, u + 2 * r, v + 2 * r), 0, limits).astype(int).tolist()
        if box[2] <= box[0] or box[3] <= box[1]:
            return
        dx, dy = np.arange(box[0], box[2]) - u, np.arange(box[1], box[3])[:, None] - v
        fall = np.maximum(np.exp(-(dx**2 + dy**2) / r**2) - 0.018, 0)[..., None]
        halo = Image.fromarray((np.array(color) * strength * fall).clip(0, 255).astype(np.uint8))
        self.image.paste(ImageChops.add(self.image.crop(box), halo), box[:2])

    # the sky and the ground

    def sky(self) -> None:
        """The sky over the whole image, with soft clouds."""
        t = np.clip(np.arange(self.height) / self.horizon, 0, 1)[:, None, None] ** 1.4
        sky = np.array(self.light.zenith) * (1 - t) + self._haze * t
        cover: Any = sum(self._noise(4 * k, 7 * k) / k for k in (1, 2, 4, 8)) / 1.875
        amount = np.clip((cover - 0.75 + 0.6 * self.light.clouds) * 3.5, 0, 1) * min(1, 3 * self.light.clouds)
        bright = np.clip(self._haze * 1.12 + 12, 0, 255) * (1 - 0.22 * cover[..., None])
        sky = sky + (bright - sky) * (0.85 * amount)[..., None]
        self.image.paste(Image.fromarray(sky.clip(0, 255).astype(np.uint8)))
        self.ids.paste(CITYSCAPES.index("sky"), (0, 0, self.width, self.height))

    def _noise(self, rows: int, columns: int) -> np.ndarray:
        """Smooth noise (height, width), 0 to 1, with as many bumps as `rows` by `columns`."""
        coarse = Image.fromarray(self.random.rng.random((rows, columns), dtype=np.float32))
        return np.asarray(coarse.resize((self.width, self.height), Image.Resampling.BICUBIC))

    def ground(
        self, x0: float, x1: float, z0: float, z1: float, color: Color, label: str | None = None
    ) -> None:
        """A rectangle of ground; it is lit later, with all of the ground."""
        xy = self.outline([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)])
        if xy:
            self._fill(xy, color, 0, label)

    def shadow(self, x0: float, x1: float, z0: float, z1: float, strength: float) -> None:
        """A shadow on a rectangle of ground."""
        xy = self.outline([(x0, 0, z0), (x1, 0, z0), (x1, 0, z1), (x0, 0, z1)])
        if xy:
            self._shade.polygon(xy, fill=int(255 * strength))

    def light_ground(self) -> None:
        """Give the ground its grain, shadows, headlights' beam and haze, by each pixel's own distance."""
        first = int(self.horizon) + 1
        rows = np.arange(first, self.height)[:, None]
        z = self.focal * self.eye / (rows + 0.5 - self.horizon)  # (rows, 1)
        x = (np.arange(self.width) - self.center) * z / self.focal
        image = np.asarray(self.image, dtype=np.float32).copy()
        grain = np.zeros(x.shape, np.float32)
        for pitch, strength in ((0.05, 0.05), (0.3, 0.04), (2.0, 0.05)):  # meters
            field = self.random.rng.normal(0, strength, (64, 64)).astype(np.float32)
            seen = np.clip(pitch * 3 * self.focal / z / 25, 0, 1)  # too fine to be seen far away
            grain += seen * field[(x / pitch).astype(int) % 64, (z / pitch / 2).astype(int) % 64]
        dim = 1 - np.asarray(self.shade, dtype=np.float32)[first:] / 255
        image[first:] = self.lit(image[first:] * ((1 + grain) * dim)[..., None], np.broadcast_to(z, x.shape))
        self.image.paste(Image.fromarray(image.clip(0, 255).astype(np.uint8)))

    # the end

    def bonnet(self, color: Color) -> None:
        """The bonnet of the car that carries the camera: unlabeled."""
        t = np.linspace(-1, 1, 33)
        y = self.height * (1 - 0.075 * (1 - 0.55 * t**2))
        edge = [*zip((0.5 + 0.62 * t) * self.width, y, strict=True)]
        below = [(self.width * 1.2, self.height + 9), (-self.width * 0.2, self.height + 9)]
        self._rgb.polygon(edge + below, fill=tuple(int(c) for c in self.lit(color, 0.0).clip(0, 255)))
        self._ids.polygon(edge + below, fill=UNLABELED)
        shine = tuple(int(c) for c in self.lit(np.asarray(color) + 45, 0.0).clip(0, 255))
        self._rgb.line(edge, fill=shine, width=2 * SUPERSAMPLE)

    def develop(self) -> tuple[np.ndarray, np.ndarray]:
        """The image (H, W, 3) uint8 and the mask (H, W) uint8 of train ids, 255 where unlabeled."""
        middle = SUPERSAMPLE // 2
        mask = np.asarray(self.ids)[middle::SUPERSAMPLE, middle::SUPERSAMPLE].copy()
        image = np.asarray(self.image.reduce(SUPERSAMPLE), dtype=np.float32).copy()
        height, width = mask.shape
        if self.light.wet:
            image = self._wet(image, mask)
        y, x = np.linspace(-1, 1, height)[:, None], np.linspace(-1, 1, width)
        image *= (1.04 - 0.16 * (0.6 * x**2 + 0.4 * y**2))[..., None]  # the lens is darker at its edge
        image += self.random.rng.normal(0, 1.5 + 2 * self.light.dark, (height, width, 1))
        return image.clip(0, 255).astype(np.uint8), mask

    def _wet(self, image: np.ndarray, mask: np.ndarray) -> np.ndarray:
        """Rain: the road mirrors what stands behind it, and drops streak the image."""
        height, width = mask.shape
        rows = np.arange(height)
        mirrored = image[np.clip(round(2 * self.horizon / SUPERSAMPLE) - rows, 0, height - 1)]
        total = np.cumsum(np.pad(mirrored, ((5, 4), (0, 0), (0, 0)), mode="edge"), 0)
        smeared = (total[9:] - total[:-9]) / 9
        smeared = np.concatenate([smeared, np.repeat(smeared[-1:], height - len(smeared), 0)])
        mirror = self.light.wet * (mask == CITYSCAPES.index("road"))[..., None]
        image = image + (smeared - image) * mirror
        drops = Image.new("L", (width, height))
        pen = ImageDraw.Draw(drops)
        for _ in range(width // 3):
            u, v, n = (
                self.random.between(0, width),
                self.random.between(0, height),
                self.random.between(2, 0.06 * height),
            )
            pen.line([(u, v), (u - 0.2 * n, v + n)], fill=255)
        return (
            image + (self._haze * 1.3 + 25 - image) * (np.asarray(drops, np.float32) / 255 * 0.13)[..., None]
        )
