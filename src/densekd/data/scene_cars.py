"""Cars of a procedural scene: an extruded profile turned to its heading, with glass, lamps and wheels."""

from __future__ import annotations

import math
import random
from itertools import pairwise

from densekd.data.scene_canvas import CAR, CIRCLE, Canvas
from densekd.data.scene_layout import Thing
from densekd.data.scene_light import Colour, jitter, mix, scaled

_PAINTS: tuple[Colour, ...] = (
    (206, 208, 210),
    (232, 232, 230),
    (44, 46, 50),
    (96, 100, 106),
    (156, 34, 34),
    (36, 66, 128),
    (58, 92, 84),
    (188, 148, 62),
    (140, 146, 152),
    (112, 52, 46),
    (196, 188, 168),
    (60, 108, 156),
)
_GLASS: Colour = (46, 56, 66)

# A profile from the front bumper over the roof to the rear: (metres from the middle, height, part).
# The part names what covers the stretch from this point to the next.
_Profile = tuple[tuple[float, float, str], ...]
_PROFILES: tuple[tuple[float, _Profile], ...] = (
    (
        1.8,
        (
            (2.1, 0.3, "nose"),
            (2.1, 0.75, "body"),
            (1.1, 0.95, "glass"),
            (0.35, 1.46, "body"),
            (-1.25, 1.46, "glass"),
            (-1.9, 0.95, "tail"),
            (-2.05, 0.3, "end"),
        ),
    ),
    (
        1.82,
        (
            (2.25, 0.3, "nose"),
            (2.25, 0.72, "body"),
            (1.15, 0.92, "glass"),
            (0.4, 1.42, "body"),
            (-0.85, 1.42, "glass"),
            (-1.5, 0.98, "body"),
            (-2.25, 0.94, "tail"),
            (-2.25, 0.3, "end"),
        ),
    ),
    (
        1.9,
        (
            (2.2, 0.36, "nose"),
            (2.2, 0.95, "body"),
            (1.2, 1.1, "glass"),
            (0.6, 1.72, "body"),
            (-1.8, 1.7, "glass"),
            (-2.1, 1.08, "tail"),
            (-2.15, 0.36, "end"),
        ),
    ),
    (
        1.95,
        (
            (2.4, 0.36, "nose"),
            (2.4, 1.0, "glass"),
            (1.7, 1.95, "body"),
            (-2.4, 2.05, "glass"),
            (-2.45, 1.2, "tail"),
            (-2.45, 0.36, "end"),
        ),
    ),
)
_WHEEL = 0.33


class _Body:
    """A car's own axes (along, aside, up) and their place in the picture."""

    def __init__(self, canvas: Canvas, thing: Thing) -> None:
        self.canvas, self.thing = canvas, thing
        self.sin, self.cos = math.sin(thing.turn), math.cos(thing.turn)

    def ground(self, along: float, aside: float) -> tuple[float, float]:
        return (
            self.thing.x + along * self.sin + aside * self.cos,
            self.thing.z + along * self.cos - aside * self.sin,
        )

    def at(self, along: float, aside: float, up: float) -> tuple[float, float]:
        x = self.thing.x + along * self.sin + aside * self.cos
        z = self.thing.z + along * self.cos - aside * self.sin
        return self.canvas.at(x, up, z)

    def depth(self, along: float, aside: float) -> float:
        return self.ground(along, aside)[1]

    def towards(self, along: float, aside: float) -> float:
        """The part of the direction to the camera, seen from the middle, that lies along this direction."""
        nx, nz = along * self.sin + aside * self.cos, along * self.cos - aside * self.sin
        return -(nx * self.thing.x + nz * self.thing.z)

    def tint(self, along: float, aside: float, up: float) -> Colour:
        return self.canvas.light.tint(along * self.sin + aside * self.cos, up, along * self.cos - aside * self.sin)


def car(canvas: Canvas, thing: Thing) -> None:
    """A car; hatchback, saloon, estate or van, in a colour of its own."""
    rng = random.Random(thing.seed)
    width, profile = rng.choices(_PROFILES, (4, 3, 3, 1))[0]
    paint = jitter(rng, rng.choice(_PAINTS), 8)
    body = _Body(canvas, thing)
    half = width / 2
    _shadow(canvas, body, profile, half)
    side = 1.0 if body.towards(0, 1) - half > 0 else -1.0 if body.towards(0, -1) - half > 0 else 0.0
    _underside(body, profile, half)
    strips = []
    for (l0, y0, part), (l1, y1, _) in pairwise(profile):
        # The outward normal of a stretch that runs from front to rear over the top.
        length = math.hypot(l1 - l0, y1 - y0)
        along, up = (y1 - y0) / length, (l0 - l1) / length
        seen = body.towards(along, 0) - along * (l0 + l1) / 2 + up * (canvas.eye - (y0 + y1) / 2)
        if seen > 0:
            strips.append((body.depth((l0 + l1) / 2, 0), (l0, y0, l1, y1), part, body.tint(along, 0, up)))
    for _, stretch, part, tint in sorted(strips, reverse=True):
        _stretch(body, stretch, half, part, paint, tint)
    if side:
        _flank(body, profile, half * side, paint, side)
    _glow(canvas, body, half)


def _shadow(canvas: Canvas, body: _Body, profile: _Profile, half: float) -> None:
    front, rear = profile[0][0], profile[-1][0]
    feet = [body.ground(a, s) for a, s in ((front, half), (front, -half), (rear, -half), (rear, half))]
    sx, sz = canvas.shadow_x * 1.3, canvas.shadow_z * 1.3
    heads = [(x + sx, z + sz) for x, z in feet]
    canvas.cast(heads)
    for i in range(4):
        j = (i + 1) % 4
        canvas.cast((feet[i], feet[j], heads[j], heads[i]))
    canvas.cast(
        [body.ground(a * 1.04, s * 1.1) for a, s in ((front, half), (front, -half), (rear, -half), (rear, half))]
    )


def _underside(body: _Body, profile: _Profile, half: float) -> None:
    c, z = body.canvas, body.thing.z
    dark = c.ink((26, 26, 28), CAR, z)
    front, rear = profile[0][0] - 0.15, profile[-1][0] + 0.15
    end = rear if body.towards(-1, 0) > 0 else front
    c.fill([body.at(end, -half, 0.4), body.at(end, half, 0.4), body.at(end, half, 0.2), body.at(end, -half, 0.2)], dark)
    for aside in (-half, half - 0.24):
        c.fill(
            [
                body.at(end, aside, 0),
                body.at(end, aside + 0.24, 0),
                body.at(end, aside + 0.24, 0.4),
                body.at(end, aside, 0.4),
            ],
            dark,
        )


def _stretch(
    body: _Body, stretch: tuple[float, float, float, float], half: float, part: str, paint: Colour, tint: Colour
) -> None:
    """One stretch of the profile across the whole width."""
    c, z = body.canvas, body.thing.z
    l0, y0, l1, y1 = stretch
    # The cabin is narrower at the top.
    w0, w1 = (half * (0.84 if y > 1.3 else 1.0) for y in (y0, y1))
    c.fill(
        [body.at(l0, -w0, y0), body.at(l0, w0, y0), body.at(l1, w1, y1), body.at(l1, -w1, y1)],
        c.ink(paint, CAR, z, tint),
    )

    def patch(left: float, right: float, low: float, high: float, colour: Colour, glow: bool = False) -> None:
        """A patch given in shares of the stretch (0 at its start)."""
        points = []
        for aside, share in ((left, low), (right, low), (right, high), (left, high)):
            points.append(body.at(l0 + (l1 - l0) * share, aside * (w0 + (w1 - w0) * share), y0 + (y1 - y0) * share))
        c.fill(points, c.ink(colour, CAR, z, (1.0, 1.0, 1.0) if glow else tint))

    if part == "glass":
        patch(-0.86, 0.86, 0.1, 0.92, mix(_GLASS, c.light.sky_low, 0.2))
    elif part == "nose":
        patch(-0.55, 0.55, 0.25, 0.75, scaled(paint, 0.35))
        lamp = (255, 248, 220) if c.light.lamps > 0.15 else (226, 228, 224)
        for side in (-1, 1):
            patch(side * 0.62, side * 0.95, 0.6, 0.95, lamp, c.light.lamps > 0.15)
        patch(-0.25, 0.25, 0.12, 0.35, (222, 222, 214))
    elif part == "tail":
        lamp = (240, 46, 36) if c.light.lamps > 0.15 else (168, 32, 30)
        for side in (-1, 1):
            patch(side * 0.66, side * 0.97, 0.08, 0.38, lamp, c.light.lamps > 0.15)
        patch(-0.28, 0.28, 0.35, 0.6, (222, 222, 214))
        patch(-0.98, 0.98, 0.8, 1.0, scaled(paint, 0.45))


def _flank(body: _Body, profile: _Profile, aside: float, paint: Colour, side: float) -> None:
    """The side: sheet metal, windows, wheels."""
    c, z = body.canvas, body.thing.z
    tint = body.tint(0, side, 0.15)
    inner = aside * 0.84
    points = [body.at(along, inner if y > 1.3 else aside, y) for along, y, _ in profile]
    c.fill(points, c.ink(paint, CAR, z, tint))
    glass = [(along, y) for along, y, _ in profile if y > 0.85]
    roof = [along for along, y in glass if y > 1.3]
    low = min(y for _, y in glass if y > 0.85) + 0.04
    top = max(y for _, y in glass) - 0.1
    front, rear = max(roof), min(roof)
    slope = 0.55 if top > 1.2 and top < 1.8 else 0.15
    pane = c.ink(mix(_GLASS, c.light.sky_low, 0.12), CAR, z, tint)
    split = (front + rear) / 2 + 0.1
    upper, lower = aside * 0.86, aside * 1.0
    for a0, a1, b0, b1 in (
        (front - 0.08, front + slope - 0.1, split + 0.05, split + 0.05),
        (split - 0.05, split - 0.05, rear + 0.1, rear - slope * 0.45),
    ):
        c.fill(
            [body.at(a0, upper, top), body.at(a1, lower, low), body.at(b1, lower, low), body.at(b0, upper, top)], pane
        )
    sill = c.ink(scaled(paint, 0.55), CAR, z, tint)
    ends = profile[0][0], profile[-1][0]
    c.fill(
        [
            body.at(ends[0] - 0.2, aside, 0.42),
            body.at(ends[1] + 0.2, aside, 0.42),
            body.at(ends[1] + 0.2, aside, 0.24),
            body.at(ends[0] - 0.2, aside, 0.24),
        ],
        sill,
    )
    tyre, rim = c.ink((24, 24, 26), CAR, z), c.ink((128, 130, 134), CAR, z)
    for middle in (ends[0] * 0.64, ends[1] * 0.62):
        c.fill([body.at(middle + _WHEEL * x, aside, _WHEEL + _WHEEL * y) for x, y in CIRCLE], tyre)
        if c.focal / max(z, 1) * _WHEEL > 2.5:
            c.fill([body.at(middle + 0.19 * x, aside, _WHEEL + 0.19 * y) for x, y in CIRCLE], rim)


def _glow(canvas: Canvas, body: _Body, half: float) -> None:
    """Lights of a driving car in the dark, for the bloom."""
    if canvas.light.lamps < 0.5:
        return
    front = body.towards(1, 0) > 0
    for aside in (-half * 0.8, half * 0.8):
        x, y = body.at(2.1 if front else -2.1, aside, 0.65)
        canvas.lights.append((x, y, 0.5 * canvas.focal / body.thing.z, (255, 240, 200) if front else (255, 60, 40)))
