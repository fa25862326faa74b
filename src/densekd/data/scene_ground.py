"""The ground of a procedural scene: pavements, road, kerbs, lane markings, crossings, patches."""

from __future__ import annotations

import random

from densekd.data.scene_canvas import PAVEMENT, ROAD, Canvas
from densekd.data.scene_light import scaled

# Depths at which long bands follow the bend of the road.
_DEPTHS = (1.0, 4.0, 8.0, 13.0, 20.0, 30.0, 45.0, 65.0)


def paint_ground(canvas: Canvas) -> None:
    """Paints everything that lies flat. Haze, grain and shadows of the ground come later, for each pixel."""
    c, street = canvas, canvas.scene.street
    rng = random.Random(canvas.scene.seed ^ 0x6120)
    depths = [z for z in _DEPTHS if z < street.end] + [street.end]
    road, paving, paint = (
        _flat(c, colour, label)
        for colour, label in ((street.asphalt, ROAD), (street.paving, PAVEMENT), (street.paint, ROAD))
    )
    c.box(-1, c.at(0, 0, street.end)[1], c.width, c.height, paving)
    _slabs(c, depths[-1])
    c.strip(street.left, street.right, depths, road)
    kerb = _flat(c, scaled(street.paving, 1.14), PAVEMENT)
    gutter = _flat(c, scaled(street.asphalt, 0.8), ROAD)
    for sign in (-1, 1):
        edge = street.side(sign)[0]
        c.strip(edge, edge + sign * 0.22, depths, kerb)
        c.strip(edge - sign * 0.3, edge, depths, gutter)
    _patches(c, rng)
    if street.junction:
        z0, z1 = street.junction
        c.quad(((-70, 0, z0), (-70, 0, z1), (70, 0, z1), (70, 0, z0)), road)
        _zebra(c, z0 - 3.4, z0 - 1.0, paint)
    _lines(c, depths, paint)


def _flat(c: Canvas, colour: tuple[float, float, float], label: int) -> tuple[int, int, int, int]:
    """The ink of a surface on the ground, without haze."""
    return c.ink(colour, label, 0.0, c.up)


def _slabs(c: Canvas, end: float) -> None:
    """Joints between the slabs of the pavement."""
    street = c.scene.street
    joint = _flat(c, scaled(street.paving, 0.84), PAVEMENT)
    z, reach = 3.0, 30.0 if c.height > 400 else 16.0
    while z < min(end, reach):
        for sign in (-1, 1):
            kerb, facade = street.side(sign)
            if c.focal / z * 0.05 > 0.35:
                c.quad(((kerb, 0, z), (facade, 0, z), (facade, 0, z + 0.07), (kerb, 0, z + 0.07)), joint)
        z += 1.6


def _patches(c: Canvas, rng: random.Random) -> None:
    """Repairs in the asphalt and manhole covers."""
    street = c.scene.street
    for _ in range(rng.choice((0, 1, 2, 3))):
        x, z = rng.uniform(street.left + 1, street.right - 1), rng.uniform(4, 20)
        wide, deep = rng.uniform(0.4, 1.4), rng.uniform(0.8, 4)
        ink = _flat(c, scaled(street.asphalt, rng.choice((0.8, 0.86, 1.12))), ROAD)
        c.quad(((x, 0, z), (x + wide, 0, z), (x + wide, 0, z + deep), (x, 0, z + deep)), ink)
    for _ in range(rng.choice((0, 0, 1, 1, 2))):
        x, z = rng.uniform(street.left + 1, street.right - 1), rng.uniform(4, 14)
        px, py = c.at(x, 0, z)
        far = c.at(x, 0, z + 0.33)[1]
        c.disc(px, py, 0.33 * c.focal / z, abs(py - far), _flat(c, scaled(street.asphalt, 0.6), ROAD))


def _lines(c: Canvas, depths: list[float], ink: tuple[int, int, int, int]) -> None:
    street = c.scene.street
    blocked = street.junction or (1e9, 1e9)
    if street.dashed:
        z = 1.5
        while z < min(street.end, 60):
            if not blocked[0] - 4 < z + 1.5 < blocked[1]:
                c.strip(street.centre_line - 0.08, street.centre_line + 0.08, (z, z + 3.0), ink)
            z += 7.0
    else:
        for low, high in ((1.0, min(blocked[0] - 3.6, street.end)), (blocked[1], street.end)):
            if low < high:
                inner = [low, *(z for z in depths if low < z < high), high]
                for shift in (-0.16, 0.08):
                    c.strip(street.centre_line + shift, street.centre_line + shift + 0.1, inner, ink)
    if street.edge_lines:
        for sign in (-1, 1):
            x = street.side(sign)[0] - sign * (2.3 if street.parking else 0.5)
            inner = [z for z in depths if z < blocked[0] - 3.6]
            if len(inner) > 1:
                c.strip(x, x + 0.14, inner, ink)


def _zebra(c: Canvas, z0: float, z1: float, ink: tuple[int, int, int, int]) -> None:
    street = c.scene.street
    x = street.left + 0.35
    while x + 0.5 < street.right:
        c.quad(((x, 0, z0), (x + 0.5, 0, z0), (x + 0.5, 0, z1), (x, 0, z1)), ink)
        x += 1.0
