"""People and cyclists of a procedural scene: flat jointed figures, seen from any side."""

from __future__ import annotations

import math
import random

from densekd.data.scene_canvas import CIRCLE, PERSON, RIDER, Canvas, Figure, Point
from densekd.data.scene_layout import Thing
from densekd.data.scene_light import Colour, jitter, mix, scaled

_CLOTHES: tuple[Colour, ...] = (
    (176, 44, 46),
    (40, 62, 122),
    (52, 54, 58),
    (216, 212, 204),
    (62, 112, 78),
    (206, 156, 52),
    (116, 66, 118),
    (98, 132, 164),
    (150, 104, 72),
    (222, 122, 74),
    (126, 128, 130),
    (208, 120, 140),
)
_TROUSERS: tuple[Colour, ...] = (
    (44, 52, 78),
    (46, 46, 48),
    (96, 88, 76),
    (128, 128, 128),
    (72, 84, 108),
    (148, 132, 106),
)
_SKIN: tuple[Colour, ...] = ((232, 190, 160), (208, 158, 122), (164, 112, 80), (112, 76, 56))
_HAIR: tuple[Colour, ...] = ((40, 32, 28), (86, 58, 38), (168, 132, 78), (140, 140, 140), (28, 28, 30))


def person(canvas: Canvas, thing: Thing) -> None:
    """Somebody who walks or stands; now and then a child, a coat, a bag or an umbrella."""
    rng = random.Random(thing.seed)
    side = abs(math.sin(thing.turn))
    ahead = 1.0 if math.sin(thing.turn) >= 0 else -1.0
    tall = rng.uniform(0.92, 1.1) if rng.random() < 0.9 else rng.uniform(0.62, 0.8)
    figure = Figure(canvas, thing.x, thing.z, tall)
    figure.scale *= tall
    z = thing.z
    coat, trousers = jitter(rng, rng.choice(_CLOTHES), 14), jitter(rng, rng.choice(_TROUSERS), 12)
    skin, hair = rng.choice(_SKIN), rng.choice(_HAIR)
    stride = rng.uniform(0.1, 0.34) * (0.35 + 0.65 * side) if rng.random() < 0.8 else 0.05
    spread = 0.1 + 0.06 * (1 - side)
    leg, back = canvas.ink(trousers, PERSON, z), canvas.ink(scaled(trousers, 0.8), PERSON, z)
    shoe = canvas.ink((42, 36, 34), PERSON, z)
    chest = 0.21 - 0.05 * side
    for sign, ink in ((-1, back), (1, leg)):
        foot = sign * max(stride * side, spread * (1 - side)) * ahead
        lift = 0.06 if sign < 0 and stride > 0.15 else 0.0
        figure.limb((sign * spread * 0.5, 0.88), (foot * 0.55, 0.46), 0.19, ink, 0.15)
        figure.limb((foot * 0.55, 0.48), (foot, 0.06 + lift), 0.15, ink, 0.11)
        figure.limb((foot - 0.04 * ahead, 0.04 + lift), (foot + 0.14 * ahead * side, 0.04 + lift), 0.09, shoe)
    sleeve = canvas.ink(scaled(coat, 0.78), PERSON, z)
    swing = stride * 0.8 * ahead
    figure.limb((-chest * 0.9, 1.4), (-chest * 1.15 - swing * side, 0.84), 0.11, sleeve, 0.09)
    hem = 0.52 if rng.random() < 0.25 else 0.8
    figure.fill(
        (
            (-chest, 1.42),
            (-0.06, 1.5),
            (0.06, 1.5),
            (chest, 1.42),
            (chest * 0.86, 1.1),
            (chest * 1.02, hem),
            (-chest * 1.02, hem),
            (-chest * 0.86, 1.1),
        ),
        canvas.ink(coat, PERSON, z),
    )
    lit = canvas.ink(mix(coat, (255, 255, 255), 0.12), PERSON, z)
    edge = chest if canvas.light.sun[0] > 0 else -chest
    figure.fill(((edge * 0.95, 1.42), (edge * 0.45, 1.46), (edge * 0.45, hem), (edge, hem)), lit)
    figure.limb((chest * 0.9, 1.4), (chest * 1.15 + swing * side, 0.86), 0.11, sleeve, 0.09)
    if rng.random() < 0.3:
        bag = canvas.ink(jitter(rng, rng.choice(_CLOTHES), 10), PERSON, z)
        figure.fill(((-chest * 1.5, 0.95), (-chest * 0.6, 0.95), (-chest * 0.55, 0.62), (-chest * 1.55, 0.62)), bag)
    _head(figure, rng, 0.03 * ahead * side, 1.62, skin, hair, thing, PERSON)
    if rng.random() < (0.25 if canvas.light.name in ("mist", "cloudy") else 0.04):
        _umbrella(figure, rng)
    canvas.cast_upright(thing.x, thing.z, 0.2, 0, 1.7 * tall)


def _head(
    figure: Figure, rng: random.Random, x: float, y: float, skin: Colour, hair: Colour, thing: Thing, label: int
) -> None:
    """Neck, face and hair; from behind only hair is seen."""
    canvas = figure.canvas
    away = math.cos(thing.turn) > 0.4
    figure.limb((x, y - 0.2), (x, y - 0.05), 0.1, canvas.ink(scaled(skin, 0.85), label, thing.z))
    figure.disc(x, y, 0.11, 0.14, canvas.ink(hair if away else skin, label, thing.z))
    if not away:
        ink = canvas.ink(hair, label, thing.z)
        figure.fill([(x + 0.12 * c, y + 0.045 + 0.11 * abs(s)) for c, s in CIRCLE[:8]], ink)
    elif rng.random() < 0.4:
        figure.limb((x, y), (x, y - 0.26), 0.2, canvas.ink(hair, label, thing.z), 0.16)


def _umbrella(figure: Figure, rng: random.Random) -> None:
    canvas = figure.canvas
    colour = jitter(rng, rng.choice(_CLOTHES), 10)
    figure.limb((0.2, 1.1), (0.15, 2.0), 0.03, canvas.ink((50, 50, 52), PERSON, figure.z))
    dome = [(0.12 + 0.55 * c, 1.85 + 0.36 * s) for c, s in CIRCLE[:8]]
    figure.fill(dome, canvas.ink(colour, PERSON, figure.z, canvas.up))
    figure.fill([(0.12, 1.85), *dome[4:]], canvas.ink(scaled(colour, 0.82), PERSON, figure.z, canvas.up))


def rider(canvas: Canvas, thing: Thing) -> None:
    """A cyclist with the bicycle; seen from the side squeezed by the heading, or from behind or the front."""
    rng = random.Random(thing.seed)
    coat, trousers = jitter(rng, rng.choice(_CLOTHES), 14), jitter(rng, rng.choice(_TROUSERS), 12)
    helmet = rng.choice(_CLOTHES) if rng.random() < 0.6 else rng.choice(_HAIR)
    frame = jitter(rng, rng.choice(_CLOTHES), 12)
    skin = rng.choice(_SKIN)
    side = math.sin(thing.turn)
    if abs(side) > 0.5:
        _from_the_side(canvas, thing, rng, (coat, trousers, helmet, frame, skin), side)
    else:
        _from_behind(canvas, thing, rng, (coat, trousers, helmet, frame, skin))
    canvas.cast_upright(thing.x, thing.z, 0.25 + 0.4 * abs(side), 0, 1.6)


_Colours = tuple[Colour, Colour, Colour, Colour, Colour]


def _from_the_side(canvas: Canvas, thing: Thing, rng: random.Random, colours: _Colours, side: float) -> None:
    coat, trousers, helmet, frame, skin = colours
    f, z = Figure(canvas, thing.x, thing.z, side), thing.z
    tyre, steel = canvas.ink((34, 34, 36), RIDER, z), canvas.ink(frame, RIDER, z)
    for hub in (-0.54, 0.54):
        _wheel(f, hub, tyre)
    pedal = rng.uniform(0, 6.28)
    leg, back = canvas.ink(trousers, RIDER, z), canvas.ink(scaled(trousers, 0.75), RIDER, z)
    crank = (-0.06, 0.34)
    _leg(f, crank, pedal + math.pi, back, canvas.ink((42, 38, 38), RIDER, z))
    for a, b in (
        ((-0.54, 0.34), (-0.2, 0.82)),
        ((-0.54, 0.34), crank),
        (crank, (-0.2, 0.82)),
        (crank, (0.4, 0.8)),
        ((-0.18, 0.76), (0.4, 0.8)),
        ((0.4, 0.92), (0.54, 0.34)),
    ):
        f.limb(a, b, 0.055, steel)
    f.limb((-0.32, 0.9), (-0.06, 0.9), 0.09, tyre)
    _leg(f, crank, pedal, leg, canvas.ink((42, 38, 38), RIDER, z))
    body = canvas.ink(coat, RIDER, z)
    f.fill(((-0.34, 0.9), (-0.06, 0.88), (0.26, 1.34), (0.16, 1.5), (-0.04, 1.46), (-0.3, 1.12)), body)
    f.limb((0.16, 1.4), (0.3, 1.12), 0.11, canvas.ink(scaled(coat, 0.8), RIDER, z))
    f.limb((0.3, 1.13), (0.46, 1.04), 0.09, canvas.ink(skin, RIDER, z))
    f.limb((0.38, 0.98), (0.5, 1.04), 0.06, tyre)
    f.limb((0.15, 1.42), (0.2, 1.56), 0.11, canvas.ink(scaled(skin, 0.85), RIDER, z))
    f.disc(0.23, 1.62, 0.12, 0.13, canvas.ink(skin, RIDER, z))
    f.fill([(0.21 + 0.15 * c, 1.64 + 0.13 * s) for c, s in CIRCLE[:8]], canvas.ink(helmet, RIDER, z))


def _wheel(f: Figure, hub: float, tyre: tuple[int, int, int, int]) -> None:
    """A wheel: what is behind it shows through the spokes, a little darker, and belongs to the rider."""
    canvas = f.canvas
    seen = canvas.sample(*f.at(hub, 0.34))
    f.disc(hub, 0.34, 0.35, 0.35, tyre)
    shade = tuple(int(v * 0.86) for v in seen)
    f.disc(hub, 0.34, 0.27, 0.27, (shade[0], shade[1], shade[2], RIDER))


def _leg(
    f: Figure, crank: Point, angle: float, ink: tuple[int, int, int, int], shoe: tuple[int, int, int, int]
) -> None:
    foot = (crank[0] + 0.17 * math.cos(angle), crank[1] + 0.17 * math.sin(angle))
    hip = (-0.2, 0.95)
    # The knee lies in front of the line from hip to foot.
    knee = ((hip[0] + foot[0]) / 2 + 0.2, (hip[1] + foot[1]) / 2 + 0.1)
    f.limb(hip, knee, 0.19, ink, 0.14)
    f.limb(knee, foot, 0.14, ink, 0.1)
    f.limb((foot[0] - 0.06, foot[1]), (foot[0] + 0.14, foot[1]), 0.08, shoe)


def _from_behind(canvas: Canvas, thing: Thing, rng: random.Random, colours: _Colours) -> None:
    coat, trousers, helmet, frame, skin = colours
    f, z = Figure(canvas, thing.x, thing.z), thing.z
    front = math.cos(thing.turn) < 0
    tyre = canvas.ink((34, 34, 36), RIDER, z)
    f.limb((0, 0), (0, 0.7), 0.09, tyre)
    f.limb((0, 0.5), (0, 0.92), 0.07, canvas.ink(frame, RIDER, z))
    phase = rng.uniform(-0.12, 0.12)
    leg = canvas.ink(trousers, RIDER, z)
    for sign in (-1, 1):
        f.limb((sign * 0.11, 0.95), (sign * 0.17, 0.62 + sign * phase), 0.18, leg, 0.14)
        f.limb((sign * 0.17, 0.64 + sign * phase), (sign * 0.14, 0.24 + sign * phase), 0.14, leg, 0.1)
        f.limb(
            (sign * 0.14, 0.22 + sign * phase),
            (sign * 0.15, 0.18 + sign * phase),
            0.1,
            canvas.ink((42, 38, 38), RIDER, z),
        )
    f.limb((-0.27, 1.04), (0.27, 1.04), 0.05, tyre)
    f.limb((-0.2, 1.38), (-0.27, 1.06), 0.11, canvas.ink(scaled(coat, 0.8), RIDER, z))
    f.limb((0.2, 1.38), (0.27, 1.06), 0.11, canvas.ink(scaled(coat, 0.8), RIDER, z))
    f.fill(
        ((-0.21, 1.42), (-0.07, 1.5), (0.07, 1.5), (0.21, 1.42), (0.17, 0.9), (-0.17, 0.9)), canvas.ink(coat, RIDER, z)
    )
    if rng.random() < 0.3 and not front:
        f.fill(((-0.13, 1.4), (0.13, 1.4), (0.14, 1.02), (-0.14, 1.02)), canvas.ink(frame, RIDER, z))
    f.limb((0, 1.46), (0, 1.58), 0.1, canvas.ink(scaled(skin, 0.85), RIDER, z))
    f.disc(0, 1.62, 0.11, 0.13, canvas.ink(skin if front else scaled(helmet, 0.8), RIDER, z))
    f.fill([(0.135 * c, 1.63 + 0.13 * s) for c, s in CIRCLE[:8]], canvas.ink(helmet, RIDER, z))
    if canvas.light.lamps > 0.5:
        x, y = f.at(0, 0.8)
        canvas.lights.append((x, y, 0.25 * f.scale, (255, 240, 200) if front else (255, 60, 40)))
