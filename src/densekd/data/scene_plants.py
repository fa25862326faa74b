"""Trees, hedges and bushes of a procedural scene."""

from __future__ import annotations

import math
import random
from functools import lru_cache

from densekd.data.scene_canvas import CIRCLE, TREE, Canvas, Figure, Point
from densekd.data.scene_layout import Block, Thing
from densekd.data.scene_light import Colour, jitter, mix, scaled

_LEAVES: tuple[Colour, ...] = (
    (78, 118, 52),
    (92, 128, 58),
    (62, 100, 56),
    (104, 132, 60),
    (148, 128, 48),
    (158, 98, 48),
)
_BARK: Colour = (96, 76, 60)


@lru_cache(maxsize=1)
def _rounds() -> tuple[tuple[Point, ...], ...]:
    """Sixteen ragged circles of radius about 1."""
    rng = random.Random(8)
    shapes = []
    for _ in range(16):
        spread = [rng.uniform(0.8, 1.16) for _ in CIRCLE]
        shapes.append(tuple((r * c, 0.92 * r * s) for r, (c, s) in zip(spread, CIRCLE, strict=True)))
    return tuple(shapes)


def _blob(
    figure: Figure, rng: random.Random, x: float, y: float, radius: float, ink: tuple[int, int, int, int]
) -> None:
    """A ragged round of leaves."""
    px, py = figure.at(x, y)
    size = radius * figure.scale
    shape = _rounds()[int(rng.random() * 16)]
    figure.canvas.fill([(px + size * c, py + size * s) for c, s in (shape if size > 6 else shape[::2])], ink)


def _crown(figure: Figure, rng: random.Random, centre: float, radius: float, tall: float, colour: Colour) -> None:
    """Rounds of leaves: dark below and away from the light, bright towards it."""
    canvas = figure.canvas
    if not -1.3 * radius * figure.scale < figure.x0 < canvas.width + 1.3 * radius * figure.scale:
        return
    towards = canvas.light.sun[0] * 0.7
    inks = [canvas.ink(scaled(colour, 0.6 + 0.72 * i / 7), TREE, figure.z, canvas.flat) for i in range(8)]

    def leaves(dx: float, dy: float, size: float, chance: float) -> None:
        shine = 0.5 + 0.5 * (dx * towards + dy * 0.7) / radius + chance
        _blob(figure, rng, dx, centre + dy, size, inks[max(0, min(7, int(shine * 8)))])

    size = figure.scale * radius
    count = 11 if size > 24 else 8 if size > 9 else 4
    grow = radius * (1 if count > 4 else 1.3)
    for i in range(count):
        angle, reach = i * 2.4, radius * 0.62 * math.sqrt((i + 0.5) / count)
        leaves(reach * math.cos(angle), reach * math.sin(angle) * tall, grow * (0.42 + 0.16 * rng.random()), 0.0)
    if size < 16:
        return
    for _ in range(min(60, int(size / 2.6))):
        angle, reach = 6.28 * rng.random(), radius * 0.92 * math.sqrt(rng.random())
        dx, dy = reach * math.cos(angle), reach * math.sin(angle) * tall
        leaves(dx, dy, radius * (0.06 + 0.08 * rng.random()), 0.5 * rng.random() - 0.2)


def tree(canvas: Canvas, thing: Thing) -> None:
    """A street tree with a round or tall crown."""
    rng = random.Random(thing.seed)
    season = _LEAVES[int(canvas.scene.seed % 7 % len(_LEAVES))]
    colour = jitter(rng, mix(rng.choice(_LEAVES[:4]), season, 0.5), 12)
    figure = Figure(canvas, thing.x, thing.z)
    radius, tall = rng.uniform(1.5, 2.5), rng.uniform(0.9, 1.45)
    centre = rng.uniform(2.0, 2.7) + radius * tall
    bark = canvas.ink(jitter(rng, _BARK, 12), TREE, thing.z, canvas.front)
    figure.limb((0, 0), (rng.uniform(-0.15, 0.15), centre), rng.uniform(0.26, 0.42), bark, 0.16)
    for side in (-0.5, 0.55):
        figure.limb((0, centre - radius * tall * 0.95), (side * radius, centre), 0.13, bark, 0.06)
    _crown(figure, rng, centre, radius, tall, colour)
    canvas.cast_upright(thing.x, thing.z, 0.15, 0, centre)
    sx, sz = canvas.shadow_x * centre, canvas.shadow_z * centre
    canvas.cast([(thing.x + sx + radius * 1.1 * c, max(1.0, thing.z + sz + radius * 1.1 * s)) for c, s in CIRCLE])


def conifer(canvas: Canvas, thing: Thing) -> None:
    """A fir: tiers of ragged triangles."""
    rng = random.Random(thing.seed)
    colour = jitter(rng, (52, 86, 58), 12)
    figure = Figure(canvas, thing.x, thing.z)
    height, half = rng.uniform(4.5, 8.0), rng.uniform(1.2, 1.8)
    figure.limb((0, 0), (0, 1.2), 0.3, canvas.ink(_BARK, TREE, thing.z, canvas.front))
    tiers = 5
    for i in range(tiers):
        low = 0.7 + (height - 0.7) * i / tiers * 0.95
        top = min(height, low + height * 0.38)
        wide = half * (1 - i / tiers * 0.8)
        for dark, reach in ((0.72, 1.0), (1.08, 0.55)):
            ink = canvas.ink(scaled(colour, dark + 0.05 * i), TREE, thing.z, canvas.flat)
            lean = -0.25 * wide if dark > 1 and canvas.light.sun[0] < 0 else 0.25 * wide if dark > 1 else 0.0
            figure.fill(((lean - wide * reach, low), (0, top), (lean + wide * reach, low), (lean, low - 0.18)), ink)
    canvas.cast_upright(thing.x, thing.z, half * 0.7, 0.3, height * 0.8)


def bush(canvas: Canvas, thing: Thing) -> None:
    """A shrub by the wall."""
    rng = random.Random(thing.seed)
    figure = Figure(canvas, thing.x, thing.z)
    colour = jitter(rng, rng.choice(_LEAVES[:3]), 12)
    dark = canvas.ink(scaled(colour, 0.7), TREE, thing.z, canvas.flat)
    figure.fill(((-0.7, 0), (0.7, 0), (0.85, 0.5), (-0.85, 0.5)), dark)
    for dx, dy, tone in ((-0.45, 0.5, 0.8), (0.45, 0.55, 0.95), (0, 0.8, 1.1)):
        _blob(figure, rng, dx, dy, 0.5, canvas.ink(scaled(colour, tone), TREE, thing.z, canvas.flat))
    canvas.cast_upright(thing.x, thing.z, 0.8, 0, 0.9)


def bush_row(canvas: Canvas, block: Block) -> None:
    """A hedge along the street with trees behind it: the edge of a park."""
    rng = random.Random(block.seed)
    colour = jitter(rng, (64, 94, 50), 10)
    x, z0, z1 = block.x, max(block.z0, 1.0), block.z1
    tint = canvas.light.tint(-block.sign * 0.8, 0.5, -0.2)
    count = 4
    for i in reversed(range(count)):
        z = z0 + (z1 - z0) * (i + 0.5) / count
        figure = Figure(canvas, x + block.sign * rng.uniform(2.0, 4.5), z)
        leaves = jitter(rng, rng.choice(_LEAVES[:4]), 12)
        figure.limb((0, 0), (0, 4), 0.35, canvas.ink(_BARK, TREE, z, canvas.front), 0.2)
        _crown(figure, rng, rng.uniform(3.6, 4.8), rng.uniform(2.3, 3.1), 1.1, leaves)
    far = x + block.sign * 60
    ground = canvas.ink(scaled(colour, 1.25), TREE, z0 + 6, canvas.up)
    high = 1.2
    canvas.quad(((x, 0, z0), (x, 0, z1), (far, 0, z1), (far, 0, z0)), ground)
    canvas.quad(((x, 0, z0), (x, 0, z1), (x, high, z1), (x, high, z0)), canvas.ink(colour, TREE, z0 + 3, tint))
    ends = x + block.sign * 0.9
    canvas.quad(
        ((x, 0, z0), (ends, 0, z0), (ends, high, z0), (x, high, z0)),
        canvas.ink(scaled(colour, 0.8), TREE, z0, canvas.front),
    )
    canvas.quad(
        ((x, high, z0), (x, high, z1), (ends, high, z1), (ends, high, z0)),
        canvas.ink(scaled(colour, 1.2), TREE, z0, canvas.up),
    )
    canvas.cast(((x, z0), (x, z1), (x + canvas.shadow_x * high, z1), (x + canvas.shadow_x * high, z0)))
