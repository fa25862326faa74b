"""The canvas of a procedural scene: perspective, and one draw call that paints colour and label together.

The picture is a four-channel image at twice the size: red, green, blue, and the class id. Every polygon writes
its colour and its class in one call, so image and mask cannot drift apart. The mode is called "CMYK" only
because Pillow treats the fourth channel of that mode as plain data (alpha would be blended and premultiplied).
"""

from __future__ import annotations

import math
from collections.abc import Sequence

from PIL import Image, ImageDraw

from densekd.data.scene_layout import Scene
from densekd.data.scene_light import Colour, scaled

Point = tuple[float, float]
Ink = tuple[int, int, int, int]

SKY, BUILDING, ROAD, PAVEMENT, TREE, CAR, PERSON, POLE, SIGN, RIDER = range(10)

SUPERSAMPLING = 2
# Nothing nearer than this is projected: in front of it the perspective runs to infinity.
NEAR = 0.9

CIRCLE: tuple[Point, ...] = tuple((math.cos(i * math.pi / 7), math.sin(i * math.pi / 7)) for i in range(14))


class Canvas:
    """Paints polygons given in metres; far things first."""

    def __init__(self, scene: Scene, background: Image.Image) -> None:
        self.scene, self.light = scene, scene.light
        self.image = background
        self.width, self.height = background.size
        self.shade = Image.new("L", background.size)
        self._draw, self._shade = ImageDraw.Draw(self.image), ImageDraw.Draw(self.shade)
        view = scene.view
        self.focal = view.focal * self.height
        self.flip = -1.0 if view.mirror else 1.0
        # (x, y, radius, colour) in pixels: what glows in the dark.
        self.lights: list[tuple[float, float, float, tuple[int, int, int]]] = []
        self.cx = self.width / 2 + self.flip * view.centre * self.height
        self.cy = view.horizon * self.height
        self.eye = view.eye
        # Distance to (share of the colour that comes through, haze added).
        self._air: dict[float, tuple[float, Colour]] = {}
        self._bend = self.focal * view.bend
        self.up = self.light.tint(0, 1, 0)
        self.front = self.light.tint(0, 0.15, -0.98)
        self.flat = self.light.tint(0.0, 0.55, -0.8)
        self.shadow_x, self.shadow_z = self.light.shadow

    def at(self, x: float, y: float, z: float) -> Point:
        """The pixel of a point in metres."""
        if z < NEAR:
            z = NEAR
        scale = self.focal / z
        return self.cx + self.flip * (scale * x + self._bend * z), self.cy + scale * (self.eye - y)

    def ink(self, colour: Colour, label: int, z: float, tint: Colour | None = None) -> Ink:
        """The colour under this light at this distance, with the label."""
        tint = tint or self.flat
        if z not in self._air:
            clear = math.exp(-z / self.light.haze_depth)
            self._air[z] = (clear, scaled(self.light.haze, 1 - clear))
        clear, (red, green, blue) = self._air[z]
        r = int(colour[0] * tint[0] * clear + red)
        g = int(colour[1] * tint[1] * clear + green)
        b = int(colour[2] * tint[2] * clear + blue)
        return (r if r < 255 else 255, g if g < 255 else 255, b if b < 255 else 255, label)

    def fill(self, points: Sequence[Point], ink: Ink) -> None:
        """Fills a polygon given in pixels."""
        self._draw.polygon(points, ink)

    def box(self, left: float, top: float, right: float, bottom: float, ink: Ink) -> None:
        """Fills an upright rectangle given in pixels, in any order of its sides."""
        if right < left:
            left, right = right, left
        if bottom < top:
            top, bottom = bottom, top
        self._draw.rectangle((left, top, right, bottom), ink)

    def disc(self, x: float, y: float, rx: float, ry: float, ink: Ink) -> None:
        """Fills an upright ellipse given in pixels."""
        if rx < 2 and ry < 2:
            self.box(x - rx, y - ry, x + rx, y + ry, ink)
        else:
            self._draw.polygon([(x + rx * c, y + ry * s) for c, s in CIRCLE], ink)

    def quad(self, corners: Sequence[tuple[float, float, float]], ink: Ink) -> None:
        """Fills a polygon given in metres."""
        at = self.at
        self._draw.polygon([at(x, y, z) for x, y, z in corners], ink)

    def strip(self, left: float, right: float, depths: Sequence[float], ink: Ink) -> None:
        """Fills a band on the ground that follows the bend of the road."""
        there = [self.at(left, 0, z) for z in depths]
        back = [self.at(right, 0, z) for z in reversed(depths)]
        self._draw.polygon(there + back, ink)

    def cast(self, ground: Sequence[Point]) -> None:
        """Shades a polygon on the ground (x, z in metres) that lies in some thing's shadow."""
        self._shade.polygon([self.at(x, 0, z) for x, z in ground], 255)

    def cast_upright(self, x: float, z: float, half: float, low: float, high: float) -> None:
        """Shades the shadow of an upright slab that is `2 * half` wide and reaches from `low` to `high`."""
        sx, sz = self.shadow_x, self.shadow_z
        length = math.hypot(sx, sz) or 1.0
        # Across the direction in which the shadow falls.
        ax, az = half * sz / length, -half * sx / length
        x0, z0, x1, z1 = x + sx * low, z + sz * low, x + sx * high, z + sz * high
        self.cast(((x0 - ax, z0 - az), (x0 + ax, z0 + az), (x1 + ax, z1 + az), (x1 - ax, z1 - az)))

    def sample(self, x: float, y: float) -> Colour:
        """The colour now at a pixel (clamped into the picture)."""
        px = min(max(int(x), 0), self.width - 1)
        py = min(max(int(y), 0), self.height - 1)
        return self.image.getpixel((px, py))[:3]  # type: ignore[index,return-value]


class Figure:
    """A flat figure standing at (x, z), facing the camera: local metres (across, up) to pixels."""

    def __init__(self, canvas: Canvas, x: float, z: float, squeeze: float = 1.0) -> None:
        self.canvas, self.z = canvas, z
        self.x0, self.y0 = canvas.at(x, 0, z)
        self.scale = canvas.focal / max(z, NEAR)
        self.across = self.scale * canvas.flip * squeeze

    def at(self, x: float, y: float) -> Point:
        return self.x0 + self.across * x, self.y0 - self.scale * y

    def fill(self, points: Sequence[Point], ink: Ink) -> None:
        self.canvas.fill([self.at(*point) for point in points], ink)

    def limb(self, a: Point, b: Point, width: float, ink: Ink, end: float | None = None) -> None:
        """A straight limb from a to b, `width` metres wide at a and `end` at b (never thinner than a pixel)."""
        (ax, ay), (bx, by) = self.at(*a), self.at(*b)
        dx, dy = bx - ax, by - ay
        length = math.hypot(dx, dy) or 1.0
        wa = max(width * self.scale, 1.0) / 2 / length
        wb = wa if end is None else max(end * self.scale, 1.0) / 2 / length
        self.canvas.fill(
            [
                (ax - dy * wa, ay + dx * wa),
                (ax + dy * wa, ay - dx * wa),
                (bx + dy * wb, by - dx * wb),
                (bx - dy * wb, by + dx * wb),
            ],
            ink,
        )

    def disc(self, x: float, y: float, rx: float, ry: float, ink: Ink) -> None:
        px, py = self.at(x, y)
        self.canvas.disc(px, py, abs(rx * self.across), ry * self.scale, ink)
