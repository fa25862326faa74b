"""Street furniture of a procedural scene: lamp posts, masts, bollards, traffic signs, direction boards, signals."""

from __future__ import annotations

import math
import random

from densekd.data.scene_canvas import POLE, SIGN, Canvas, Figure, Point
from densekd.data.scene_layout import Thing
from densekd.data.scene_light import Colour, jitter, scaled

_STEEL: tuple[Colour, ...] = ((120, 124, 128), (84, 88, 92), (58, 70, 66), (150, 152, 152))
_RED: Colour = (196, 34, 38)
_WHITE: Colour = (238, 238, 234)
_BLUE: Colour = (30, 84, 168)
_YELLOW: Colour = (238, 190, 42)
_BLACK: Colour = (30, 30, 32)


def lamp(canvas: Canvas, thing: Thing) -> None:
    """A tall street lamp with an arm over the road."""
    rng = random.Random(canvas.scene.seed ^ 0xA1)
    colour, height = jitter(rng, rng.choice(_STEEL), 8), rng.uniform(6.0, 8.5)
    f = Figure(canvas, thing.x, thing.z)
    ink = canvas.ink(colour, POLE, thing.z)
    reach = -thing.sign * rng.uniform(1.1, 1.9)
    f.limb((0, 0), (0, 1.1), 0.26, canvas.ink(scaled(colour, 0.9), POLE, thing.z), 0.22)
    f.limb((0, 1.0), (0, height), 0.27, ink, 0.18)
    edge = 0.06 if canvas.light.sun[0] > 0 else -0.06
    f.limb((edge, 1.0), (edge * 0.6, height), 0.07, canvas.ink(scaled(colour, 1.22), POLE, thing.z), 0.04)
    f.limb((0, height - 0.3), (reach * 0.6, height + 0.25), 0.14, ink, 0.1)
    head = canvas.ink(
        (255, 236, 190) if canvas.light.lamps > 0.2 else scaled(colour, 0.8),
        POLE,
        thing.z,
        (1, 1, 1) if canvas.light.lamps > 0.2 else None,
    )
    f.limb((reach * 0.5, height + 0.24), (reach, height + 0.2), 0.2, head, 0.16)
    _bulb(canvas, f, reach * 0.8, height + 0.1)
    canvas.cast_upright(thing.x, thing.z, 0.12, 0, height)


def lantern(canvas: Canvas, thing: Thing) -> None:
    """An old street lantern at the height of a door."""
    rng = random.Random(canvas.scene.seed ^ 0xA2)
    colour, height = jitter(rng, (48, 58, 54), 10), rng.uniform(3.2, 4.0)
    f = Figure(canvas, thing.x, thing.z)
    ink = canvas.ink(colour, POLE, thing.z)
    f.limb((0, 0), (0, 0.7), 0.4, ink, 0.24)
    f.limb((0, 0.6), (0, height), 0.22, ink, 0.16)
    lit = canvas.light.lamps > 0.2
    f.fill(
        ((-0.14, height), (0.14, height), (0.24, height + 0.5), (-0.24, height + 0.5)),
        canvas.ink((255, 226, 160) if lit else (196, 200, 196), POLE, thing.z, (1, 1, 1) if lit else None),
    )
    f.fill(((-0.3, height + 0.5), (0.3, height + 0.5), (0, height + 0.75)), ink)
    _bulb(canvas, f, 0, height + 0.25)
    canvas.cast_upright(thing.x, thing.z, 0.11, 0, height)


def mast(canvas: Canvas, thing: Thing) -> None:
    """A wooden mast with cross-bars."""
    rng = random.Random(thing.seed)
    colour, height = jitter(rng, (112, 92, 74), 10), rng.uniform(6.5, 8.5)
    f = Figure(canvas, thing.x, thing.z)
    ink = canvas.ink(colour, POLE, thing.z)
    f.limb((0, 0), (0, height), 0.28, ink, 0.2)
    for up in (height - 0.4, height - 1.1):
        f.limb((-0.8, up), (0.8, up), 0.13, canvas.ink(scaled(colour, 0.85), POLE, thing.z))
    canvas.cast_upright(thing.x, thing.z, 0.14, 0, height)


def bollard(canvas: Canvas, thing: Thing) -> None:
    """A knee-high post at the kerb."""
    f = Figure(canvas, thing.x, thing.z)
    colour = _STEEL[canvas.scene.seed % len(_STEEL)]
    f.limb((0, 0), (0, 0.95), 0.24, canvas.ink(colour, POLE, thing.z))
    f.limb((0, 0.7), (0, 0.82), 0.24, canvas.ink(_WHITE, POLE, thing.z))
    canvas.cast_upright(thing.x, thing.z, 0.1, 0, 0.95)


def _bulb(canvas: Canvas, f: Figure, x: float, y: float) -> None:
    if canvas.light.lamps > 0.2:
        px, py = f.at(x, y)
        canvas.lights.append((px, py, 0.9 * canvas.light.lamps * f.scale, (255, 214, 140)))


def sign(canvas: Canvas, thing: Thing) -> None:
    """One or two traffic signs on a stem; some show their grey back."""
    rng = random.Random(thing.seed)
    f, z = Figure(canvas, thing.x, thing.z), thing.z
    low = rng.uniform(1.9, 2.3)
    radius = rng.uniform(0.46, 0.6)
    count = 2 if rng.random() < 0.3 else 1
    f.limb((0, 0), (0, low + 2 * radius * count), 0.13, canvas.ink(rng.choice(_STEEL), POLE, z))
    back = rng.random() < 0.06
    for i in range(count):
        middle = low + radius + i * 2.1 * radius
        if back:
            f.disc(0, middle, radius, radius, canvas.ink((146, 148, 150), SIGN, z))
        else:
            rng.choice((_ban, _limit, _warn, _stop, _order, _yield, _right_of_way, _square))(f, middle, radius)
    canvas.cast_upright(thing.x, thing.z, 0.08, 0, low)
    canvas.cast_upright(thing.x, thing.z, radius, low, low + 2 * radius * count)


def _ngon(n: int, turn: float, y: float, radius: float) -> list[Point]:
    return [
        (radius * math.sin(turn + 2 * math.pi * i / n), y + radius * math.cos(turn + 2 * math.pi * i / n))
        for i in range(n)
    ]


def _paint(f: Figure, points: list[Point], colour: Colour) -> None:
    f.fill(points, f.canvas.ink(colour, SIGN, f.z, tuple(max(0.62, v) for v in f.canvas.flat)))  # type: ignore[arg-type]


def _ban(f: Figure, y: float, r: float) -> None:
    _paint(f, _ngon(14, 0, y, r), _RED)
    _paint(
        f,
        [(-0.66 * r, y - 0.16 * r), (0.66 * r, y - 0.16 * r), (0.66 * r, y + 0.16 * r), (-0.66 * r, y + 0.16 * r)],
        _WHITE,
    )


def _limit(f: Figure, y: float, r: float) -> None:
    _paint(f, _ngon(14, 0, y, r), _RED)
    _paint(f, _ngon(14, 0, y, r * 0.7), _WHITE)
    for x in (-0.24, 0.24):
        _paint(
            f,
            [((x + dx) * r, y + dy * r) for dx, dy in ((-0.13, -0.34), (0.13, -0.34), (0.13, 0.34), (-0.13, 0.34))],
            _BLACK,
        )


def _warn(f: Figure, y: float, r: float) -> None:
    _paint(f, _ngon(3, 0, y - 0.2 * r, r * 1.2), _RED)
    _paint(f, _ngon(3, 0, y - 0.2 * r, r * 0.7), _WHITE)
    _paint(
        f, [(-0.1 * r, y - 0.4 * r), (0.1 * r, y - 0.4 * r), (0.1 * r, y + 0.1 * r), (-0.1 * r, y + 0.1 * r)], _BLACK
    )


def _yield(f: Figure, y: float, r: float) -> None:
    _paint(f, _ngon(3, math.pi, y + 0.2 * r, r * 1.2), _RED)
    _paint(f, _ngon(3, math.pi, y + 0.2 * r, r * 0.7), _WHITE)


def _stop(f: Figure, y: float, r: float) -> None:
    _paint(f, _ngon(8, math.pi / 8, y, r * 1.05), _RED)
    for x in (-0.48, -0.16, 0.16, 0.48):
        _paint(
            f,
            [((x + dx) * r, y + dy * r) for dx, dy in ((-0.1, -0.22), (0.1, -0.22), (0.1, 0.22), (-0.1, 0.22))],
            _WHITE,
        )


def _order(f: Figure, y: float, r: float) -> None:
    _paint(f, _ngon(14, 0, y, r), _BLUE)
    _paint(
        f,
        [
            (-0.1 * r, y - 0.55 * r),
            (0.1 * r, y - 0.55 * r),
            (0.1 * r, y + 0.05 * r),
            (0.36 * r, y + 0.05 * r),
            (0, y + 0.6 * r),
            (-0.36 * r, y + 0.05 * r),
            (-0.1 * r, y + 0.05 * r),
        ],
        _WHITE,
    )


def _right_of_way(f: Figure, y: float, r: float) -> None:
    _paint(f, _ngon(4, 0, y, r * 1.1), _WHITE)
    _paint(f, _ngon(4, 0, y, r * 0.8), _YELLOW)


def _square(f: Figure, y: float, r: float) -> None:
    _paint(f, _ngon(4, math.pi / 4, y, r * 1.25), _BLUE)
    _paint(f, _ngon(3, 0, y - 0.1 * r, r * 0.7), _WHITE)


def board(canvas: Canvas, thing: Thing) -> None:
    """A direction board on two stems."""
    rng = random.Random(thing.seed)
    f = Figure(canvas, thing.x + thing.sign * 0.5, thing.z)
    wide, high, low = rng.uniform(0.8, 1.2), rng.uniform(0.7, 1.1), rng.uniform(1.9, 2.3)
    colour = rng.choice((_BLUE, (24, 104, 66), _WHITE, _YELLOW))
    stem = canvas.ink(rng.choice(_STEEL), POLE, thing.z)
    for x in (-0.7 * wide, 0.7 * wide):
        f.limb((x, 0), (x, low + high), 0.12, stem)
    letters = _BLACK if colour in (_WHITE, _YELLOW) else _WHITE
    for grow, ink in ((1.0, letters), (0.92, colour)):
        w, pad = wide * grow, high * (1 - grow)
        _paint(f, [(-w, low + pad), (w, low + pad), (w, low + high - pad), (-w, low + high - pad)], ink)
    for share in (0.28, 0.62):
        y, end = low + high * share, rng.uniform(0.1, 0.55) * wide
        _paint(f, [(-0.75 * wide, y - 0.07), (end, y - 0.07), (end, y + 0.07), (-0.75 * wide, y + 0.07)], letters)
    canvas.cast_upright(thing.x + thing.sign * 0.5, thing.z, wide, low, low + high)


def signal(canvas: Canvas, thing: Thing) -> None:
    """Traffic lights on a post; their housing counts as a sign."""
    rng = random.Random(thing.seed)
    f, z = Figure(canvas, thing.x, thing.z), thing.z
    low = rng.uniform(2.1, 2.5)
    f.limb((0, 0), (0, low + 1.0), 0.14, canvas.ink(rng.choice(_STEEL), POLE, z))
    housing = canvas.ink((38, 42, 40), SIGN, z)
    f.fill(((-0.24, low), (0.24, low), (0.24, low + 1.25), (-0.24, low + 1.25)), housing)
    on = rng.randrange(3)
    for i, colour in enumerate(((250, 52, 40), (255, 186, 40), (60, 224, 120))):
        y = low + 1.02 - 0.4 * i
        bright = i == on
        f.disc(
            0,
            y,
            0.15,
            0.15,
            canvas.ink(colour if bright else scaled(colour, 0.22), SIGN, z, (1, 1, 1) if bright else None),
        )
        if bright and canvas.light.lamps > 0.2:
            px, py = f.at(0, y)
            canvas.lights.append((px, py, 0.4 * f.scale, colour))
    canvas.cast_upright(thing.x, thing.z, 0.12, 0, low + 1.2)
