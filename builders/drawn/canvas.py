"""Vector drawing with exact masks: a pen that draws one thing as polygons, and the styles of drawing.

Every primitive becomes a polygon in the box of the thing (x to the right, y DOWN, both 0 to 1). One affine
transform maps it to the supersampled canvas. There it is painted twice: its color on the RGB layer, and its
area on the coverage layer. So the mask is exact by construction. The colors of a thing do not depend on its
kind: `Pen.color` chooses them from one palette for all kinds, so that color alone does not reveal the class.
"""

import colorsys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

Points = Sequence[tuple[float, ...]] | np.ndarray  # each is (x, y)
Color = tuple[int, ...]  # red, green, blue, each 0 to 255

SUPERSAMPLE = 3

#: Named body colors as (hue in degrees, saturation, value); the names are the color words of the captions.
PALETTE: dict[str, tuple[float, float, float]] = {
    "red": (2, 0.78, 0.80),
    "orange": (26, 0.82, 0.90),
    "yellow": (49, 0.75, 0.92),
    "green": (118, 0.55, 0.60),
    "teal": (176, 0.60, 0.62),
    "blue": (214, 0.68, 0.78),
    "purple": (276, 0.50, 0.66),
    "pink": (338, 0.42, 0.92),
    "brown": (25, 0.58, 0.48),
    "tan": (34, 0.36, 0.80),
    "white": (40, 0.04, 0.95),
    "gray": (215, 0.06, 0.58),
    "black": (220, 0.20, 0.20),
}


@dataclass(frozen=True)
class Style:
    """How a whole scene is drawn.

    Attributes:
        outline: width of the dark outline in output pixels at 128; 0 draws none.
        light: strength of the light ramp over each thing, 0 (flat) to about 0.4.
        light_angle: direction the light comes from, radians.
        saturation: factor on the palette's saturation.
        value: factor on the palette's value.
        jitter: spread of hue (in turns), saturation and value about the named color.
        grain: standard deviation of fine noise, in 0 to 255 units.
        wobble: how far outline points are shaken, in the thing's own units.
        hatch: strength of diagonal pencil hatching, 0 (none) to 1.
    """

    outline: float = 0.0
    light: float = 0.2
    light_angle: float = 0.8
    saturation: float = 1.0
    value: float = 1.0
    jitter: float = 0.05
    grain: float = 2.0
    wobble: float = 0.0
    hatch: float = 0.0


def shade(color: Color, factor: float) -> Color:
    """`color` darkened (factor below 1) or lightened towards white (above 1)."""
    if factor <= 1:
        return tuple(int(c * factor) for c in color)
    mix = min(factor - 1, 1.0)
    return tuple(int(c + (255 - c) * mix) for c in color)


def tone(color: Color, strength: float = 0.28) -> Color:
    """A shade that differs visibly from `color`: darker, or lighter if `color` is dark."""
    return shade(color, 1 + strength * 0.9) if sum(color) < 230 else shade(color, 1 - strength)


def named_color(name: str, style: Style, rng: np.random.Generator) -> Color:
    """An RGB color about the palette's `name` in `style`."""
    hue, saturation, value = PALETTE[name]
    hue = (hue / 360 + rng.normal(0, style.jitter * 0.35)) % 1.0
    saturation = np.clip(saturation * style.saturation + rng.normal(0, style.jitter), 0, 1)
    value = np.clip(value * style.value + rng.normal(0, style.jitter), 0.05, 1)
    return tuple(int(255 * c) for c in colorsys.hsv_to_rgb(hue, saturation, value))


def smooth(points: Points, closed: bool = True, steps: int = 6) -> np.ndarray:
    """A Catmull-Rom curve through `points` as an (N, 2) array."""
    p = np.asarray(points, dtype=np.float64)
    if closed:
        p = np.concatenate([p[-1:], p, p[:2]])
    else:
        p = np.concatenate([2 * p[:1] - p[1:2], p, 2 * p[-1:] - p[-2:-1]])
    t = np.linspace(0, 1, steps, endpoint=False)[:, None, None]
    a, b, c, d = p[None, :-3], p[None, 1:-2], p[None, 2:-1], p[None, 3:]
    curve = 0.5 * (2 * b + (c - a) * t + (2 * a - 5 * b + 4 * c - d) * t**2 + (3 * b - a - 3 * c + d) * t**3)
    curve = curve.transpose(1, 0, 2).reshape(-1, 2)  # (step, segment) -> along the curve
    return curve if closed else np.concatenate([curve, p[-2:-1]])


class Pen:
    """Draws one thing into its unit box; whatever it draws is the thing's mask.

    `pen.rng` is the thing's own generator: use it for every random choice (shape, pose, parts).
    `pen.body` is the body color, `pen.accent` a second one that differs from it; `pen.dark`,
    `pen.light` and `pen.glass` are neutral colors for tires, windows, eyes. Widths are in units of the
    box's height.
    """

    def __init__(
        self,
        size: tuple[int, int],
        transform: np.ndarray,
        style: Style,
        rng: np.random.Generator,
        body: str | None = None,
    ) -> None:
        """`size` is (width, height) of the supersampled canvas, `transform` the 2 x 3 map from box to
        canvas.
        """
        self.style, self.rng = style, rng
        self.transform = transform
        self.unit = float(np.sqrt(abs(np.linalg.det(transform[:, :2]))))  # canvas pixels per unit of the box
        self.rgb = Image.new("RGB", size)
        self.coverage = Image.new("L", size)
        self._rgb, self._coverage = ImageDraw.Draw(self.rgb), ImageDraw.Draw(self.coverage)
        self._covers = True
        names = list(PALETTE)
        self.body_name = body or names[rng.integers(len(names))]
        self.body = named_color(self.body_name, style, rng)
        others = [n for n in names if n != self.body_name]
        self.accent = named_color(others[rng.integers(len(others))], style, rng)
        self.dark = shade(named_color("black", style, rng), 0.8)
        self.light = named_color("white", style, rng)
        glass = ["blue", "gray", "black", "white", "teal"]
        self.glass = shade(named_color(glass[rng.integers(5)], style, rng), rng.uniform(0.6, 1.3))
        self.ink = shade(self.body, 0.3)

    def color(self, name: str | None = None) -> Color:
        """A random palette color, or the palette's `name`, in the scene's style."""
        names = list(PALETTE)
        return named_color(name or names[self.rng.integers(len(names))], self.style, self.rng)

    def pick(self, *options):
        """One of `options` at random."""
        return options[self.rng.integers(len(options))]

    def chance(self, p: float) -> bool:
        """True with probability `p`."""
        return bool(self.rng.random() < p)

    def between(self, low: float, high: float) -> float:
        """A uniform random number."""
        return float(self.rng.uniform(low, high))

    def polygon(self, points: Points | np.ndarray, color: Color, outline: bool = True) -> None:
        """A filled polygon; with `outline` it gets the style's outline where the style has one."""
        p = np.asarray(points, dtype=np.float64)
        if self.style.wobble:
            p = p + self.rng.normal(0, self.style.wobble, p.shape)
        p = p @ self.transform[:, :2].T + self.transform[:, 2]
        xy = [tuple(q) for q in p]
        self._rgb.polygon(xy, fill=color)
        if self._covers:
            self._coverage.polygon(xy, fill=255)
        if outline and self.style.outline > 0:
            width = max(1, round(self.style.outline * SUPERSAMPLE))
            self._rgb.line([*xy, xy[0]], fill=self.ink, width=width, joint="curve")
            if self._covers:
                self._coverage.line([*xy, xy[0]], fill=255, width=width, joint="curve")

    def curve(self, points: Points, color: Color, outline: bool = True) -> None:
        """A filled closed smooth curve through `points`."""
        self.polygon(smooth(points), color, outline)

    def ellipse(
        self,
        cx: float,
        cy: float,
        rx: float,
        ry: float,
        color: Color,
        angle: float = 0.0,
        outline: bool = True,
    ) -> None:
        """A filled ellipse about (cx, cy); `angle` in radians, clockwise as seen (y is down)."""
        t = np.linspace(0, 2 * np.pi, 28, endpoint=False)
        x, y = rx * np.cos(t), ry * np.sin(t)
        c, s = np.cos(angle), np.sin(angle)
        self.polygon(np.stack([cx + x * c - y * s, cy + x * s + y * c], 1), color, outline)

    def rectangle(
        self,
        x0: float,
        y0: float,
        x1: float,
        y1: float,
        color: Color,
        radius: float = 0.0,
        outline: bool = True,
    ) -> None:
        """A filled rectangle with corners rounded by `radius` (in the box's units)."""
        r = min(radius, abs(x1 - x0) / 2, abs(y1 - y0) / 2)
        if r <= 0:
            self.polygon([(x0, y0), (x1, y0), (x1, y1), (x0, y1)], color, outline)
            return
        t = np.linspace(0, np.pi / 2, 5)
        corners = [(x1 - r, y1 - r, 0), (x0 + r, y1 - r, 1), (x0 + r, y0 + r, 2), (x1 - r, y0 + r, 3)]
        points = [
            np.stack([cx + r * np.cos(t + q * np.pi / 2), cy + r * np.sin(t + q * np.pi / 2)], 1)
            for cx, cy, q in corners
        ]
        self.polygon(np.concatenate(points), color, outline)

    def line(self, points: Points, width: float, color: Color, curved: bool = False) -> None:
        """A stroke with round ends; `width` in the box's units, never thinner than 1 output pixel."""
        p = smooth(points, closed=False) if curved else np.asarray(points, dtype=np.float64)
        p = p @ self.transform[:, :2].T + self.transform[:, 2]
        w = max(width * self.unit, SUPERSAMPLE * 1.0)
        xy = [tuple(q) for q in p]
        layers = [(self._rgb, color)] + ([(self._coverage, 255)] if self._covers else [])
        for draw, fill in layers:
            draw.line(xy, fill=fill, width=round(w), joint="curve")
            for x, y in (xy[0], xy[-1]):
                draw.ellipse([x - w / 2, y - w / 2, x + w / 2, y + w / 2], fill=fill)

    def ring(self, cx: float, cy: float, r: float, width: float, color: Color) -> None:
        """A circle's outline: only the ring itself belongs to the thing, not what is seen through it."""
        t = np.linspace(0, 2 * np.pi, 33)
        self.line(np.stack([cx + r * np.cos(t), cy + r * np.sin(t)], 1), width, color)

    @contextmanager
    def atop(self) -> Iterator[None]:
        """Within it, drawing only recolors what the thing covers already (stripes, patches), never adds to
        it.
        """
        self._covers = False
        try:
            yield
        finally:
            self._covers = True

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """The lit RGB layer (H, W, 3) uint8 and the coverage (H, W) bool, both supersampled."""
        rgb, covered = np.asarray(self.rgb, dtype=np.float32), np.asarray(self.coverage) > 127
        if self.style.light > 0 and covered.any():
            ys, xs = np.nonzero(covered)
            h, w = covered.shape
            y = (np.arange(h, dtype=np.float32)[:, None] - ys.mean()) / max(np.ptp(ys), 1)
            x = (np.arange(w, dtype=np.float32)[None, :] - xs.mean()) / max(np.ptp(xs), 1)
            ramp = -(np.cos(self.style.light_angle) * x + np.sin(self.style.light_angle) * y)
            rgb = rgb * (1 + self.style.light * 1.6 * ramp)[..., None]
        return np.clip(rgb, 0, 255).astype(np.uint8), covered
