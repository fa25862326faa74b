"""Puts a street scene together: the street, its buildings, and who and what is on it.

Small things stand mostly near the camera, just inside the picture: at a distance they would be a pixel or two.
"""

from __future__ import annotations

import math
import random

from densekd.data.scene_layout import Block, Scene, Street, Thing, View
from densekd.data.scene_light import jitter, pick_light

# The aspect for which a layout is composed; wider or narrower pictures see more or less of the same street.
NOMINAL_ASPECT = 4 / 3


def compose(rng: random.Random) -> Scene:
    """Draws a scene from a generator; equal generator states give equal scenes."""
    view = View(
        focal=rng.uniform(0.95, 1.25),
        eye=rng.choice((rng.uniform(1.3, 1.8), rng.uniform(1.5, 2.6))),
        horizon=rng.uniform(0.40, 0.54),
        centre=rng.gauss(0.0, 0.09),
        bend=rng.gauss(0.0, 0.0007),
        mirror=rng.random() < 0.5,
    )
    light = pick_light(rng)
    street = _street(rng)
    crowd = _Crowd(view, rng)
    _trees_and_poles(crowd, street)
    _traffic(crowd, street)
    _riders(crowd, street)
    _signs(crowd, street)
    _people(crowd, street)
    parts: list[Block | Thing] = [*crowd.things]
    for sign in (-1, 1):
        parts += _row(rng, street, sign)
    parts.sort(key=lambda part: -part.z)
    return Scene(view, light, street, tuple(parts), rng.getrandbits(32))


def _street(rng: random.Random) -> Street:
    lanes = rng.choice((2, 2, 2, 2, 3))
    parking = rng.random() < 0.6
    width = lanes * rng.uniform(2.8, 3.3) + (4.2 if parking else 0.6)
    # Where the camera stands across the road: mostly in its own lane, sometimes by the kerb.
    across = rng.uniform(0.5, 0.78) if rng.random() < 0.8 else rng.uniform(0.8, 1.02)
    left = -across * width
    grey = rng.uniform(70, 118)
    junction = None
    if rng.random() < 0.4:
        start = rng.uniform(13, 34)
        junction = (start, start + rng.uniform(7, 10))
    return Street(
        left=left,
        right=left + width,
        pavement_left=rng.uniform(2.4, 4.6),
        pavement_right=rng.uniform(2.4, 4.6),
        end=rng.uniform(55, 110),
        junction=junction,
        centre_line=left + width / 2 + (width / lanes / 2 if lanes == 3 else 0.0),
        dashed=rng.random() < 0.75,
        edge_lines=rng.random() < 0.4,
        parking=parking,
        asphalt=jitter(rng, (grey, grey, grey + 3), 5),
        paving=jitter(rng, rng.choice(((150, 146, 140), (165, 158, 148), (128, 126, 126), (158, 138, 124))), 9),
        paint=rng.choice(((232, 232, 226), (232, 232, 226), (226, 190, 84))),
        ending=rng.choice(("houses", "houses", "trees", "hills")),
    )


def _row(rng: random.Random, street: Street, sign: int) -> list[Block]:
    """The buildings along one side, with gaps, a side street, and now and then a park."""
    facade = street.side(sign)[1]
    park = rng.random() < 0.14
    storeys = rng.choice((2, 3, 3, 4))
    style = rng.choice(("plaster", "plaster", "brick", "modern"))
    blocks = []
    z, corner = rng.uniform(1.5, 6.0), False
    while z < street.end:
        length = rng.uniform(7.0, 15.0)
        if street.junction and z < street.junction[1] + 2.5 and z + length > street.junction[0] - 2.5:
            if z < street.junction[0] - 7:
                length = street.junction[0] - 2.5 - z
            else:
                z, corner = street.junction[1] + 2.5, True
                continue
        kind = "hedge" if park else (style if rng.random() < 0.7 else rng.choice(("plaster", "brick", "modern")))
        height = 3.1 * max(1, storeys + rng.choice((-1, 0, 0, 0, 1))) + rng.uniform(0.4, 1.4)
        back = 70.0 if corner else rng.uniform(8.0, 13.0)
        setback = 0.0 if rng.random() < 0.75 else rng.uniform(0.3, 1.5)
        blocks.append(
            Block(sign, facade + sign * setback, z, z + length, height, back, kind, corner, rng.getrandbits(32))
        )
        z += length + (rng.uniform(1.5, 5.0) if rng.random() < 0.16 else 0.0)
        corner = False
    return blocks


class _Crowd:
    """Collects things so that they stand apart and inside the picture."""

    def __init__(self, view: View, rng: random.Random) -> None:
        self.view, self.rng = view, rng
        self.things: list[Thing] = []
        self._taken: list[tuple[float, float, float, float]] = []

    def seen(self, x: float, z: float) -> bool:
        across = self.view.centre + self.view.focal * (x / z + self.view.bend * z)
        return abs(across) < NOMINAL_ASPECT / 2

    def near(self, x: float, least: float, reach: float) -> float:
        """A distance from just inside the picture (at least `least` metres) to `exp(reach)` times that."""
        inside = self.view.focal * abs(x) / (NOMINAL_ASPECT / 2 - 0.06)
        return max(least, inside) * math.exp(self.rng.uniform(0.0, reach))

    def add(self, kind: str, x: float, z: float, turn: float = 0.0, room: tuple[float, float] = (0.4, 0.4)) -> bool:
        """Places a thing if it can be seen and its room (half widths in metres) is free."""
        if not self.seen(x, z):
            return False
        for px, pz, hx, hz in self._taken:
            if abs(x - px) < room[0] + hx and abs(z - pz) < room[1] + hz:
                return False
        self._taken.append((x, z, *room))
        self.things.append(Thing(kind, x, z, turn, 1 if x > 0 else -1, self.rng.getrandbits(32)))
        return True


def _trees_and_poles(crowd: _Crowd, street: Street) -> None:
    rng = crowd.rng
    lamp = rng.choice(("lamp", "lamp", "lantern", "mast"))
    for sign in (-1, 1):
        kerb, facade = street.side(sign)
        if rng.random() < 0.48:
            z, step = rng.uniform(4.2, 9.0), rng.uniform(16, 26)
            while z < min(street.end, 34):
                crowd.add(lamp, kerb + sign * 0.5, z)
                z += step
        if rng.random() < 0.55:
            z, step = rng.uniform(7, 15), rng.uniform(7, 14)
            kind = rng.choice(("tree", "tree", "tree", "conifer"))
            while z < street.end - 5:
                if rng.random() < 0.8:
                    crowd.add(kind, kerb + sign * rng.uniform(0.7, 1.1), z, room=(0.5, 1.0))
                z += step * rng.uniform(0.85, 1.15)
        for _ in range(rng.choice((0, 0, 0, 0, 2, 3))):
            crowd.add("bollard", kerb + sign * 0.35, rng.uniform(5, 11))
        if rng.random() < 0.25:
            crowd.add("bush", facade - sign * 0.7, rng.uniform(9, 25), room=(0.8, 0.9))


def _traffic(crowd: _Crowd, street: Street) -> None:
    rng = crowd.rng
    if street.parking:
        for sign in (-1, 1):
            if rng.random() < 0.75:
                x = street.side(sign)[0] - sign * 1.15
                z = rng.uniform(6, 12)
                while z < 50:
                    if rng.random() < 0.62 and not _crossing(street, z):
                        crowd.add("car", x, z, math.pi * (sign < 0) + rng.gauss(0, 0.02), (0.9, 2.3))
                    z += rng.uniform(5.2, 6.4)
    inset = 3.6 if street.parking else 1.7
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        away = rng.random() < 0.5
        x = street.right - inset if away else street.left + inset
        turn = (0.0 if away else math.pi) + rng.gauss(0, 0.05)
        crowd.add("car", x + rng.gauss(0, 0.25), math.exp(rng.uniform(2.05, 3.5)), turn, (1.0, 3.0))
    if street.junction and rng.random() < 0.5:
        z = (street.junction[0] + street.junction[1]) / 2
        crowd.add(
            "car",
            rng.uniform(-7, 7),
            z + rng.uniform(-1.6, 1.6),
            rng.choice((-1, 1)) * math.pi / 2,
            (2.4, 1.2),
        )


def _crossing(street: Street, z: float) -> bool:
    return street.junction is not None and street.junction[0] - 6 < z < street.junction[1] + 3


def _riders(crowd: _Crowd, street: Street) -> None:
    rng = crowd.rng
    for _ in range(rng.choice((0, 1, 1, 1, 2))):
        for _ in range(8):
            sign = rng.choice((-1, 1))
            inset = rng.uniform(2.7, 3.4) if street.parking else rng.uniform(0.7, 1.6)
            crosses = rng.random() < 0.3
            turn = rng.uniform(1.0, 2.1) * rng.choice((-1, 1)) if crosses else math.pi * (sign < 0) + rng.gauss(0, 0.3)
            x = rng.uniform(street.left + 1, street.right - 1) if crosses else street.side(sign)[0] - sign * inset
            if crowd.add("rider", x, crowd.near(x, 4.8, 0.5), turn, (0.5, 1.0)):
                break


def _nearer_side(rng: random.Random, street: Street) -> int:
    """A side of the street, the more likely the nearer its kerb is to the camera."""
    left, right = abs(street.left) + 1, abs(street.right) + 1
    return 1 if rng.random() < left / (left + right) else -1


def _signs(crowd: _Crowd, street: Street) -> None:
    rng = crowd.rng
    for _ in range(rng.choice((1, 1, 2, 2, 3))):
        kind = rng.choice(("sign", "sign", "sign", "board", "signal"))
        for _ in range(8):
            sign = _nearer_side(rng, street)
            x = street.side(sign)[0] + sign * rng.uniform(0.5, 0.9)
            if crowd.add(kind, x, crowd.near(x, 5.2, 0.45)):
                break


def _people(crowd: _Crowd, street: Street) -> None:
    rng = crowd.rng
    for _ in range(rng.choice((2, 2, 3, 3, 4, 5))):
        for _ in range(8):
            sign = _nearer_side(rng, street)
            kerb, facade = street.side(sign)
            crosses = rng.random() < 0.22
            x = (
                rng.uniform(street.left, street.right)
                if crosses
                else rng.uniform(kerb + sign * 0.7, facade - sign * 0.4)
            )
            z = street.junction[0] - 1.8 if crosses and street.junction else crowd.near(x, 4.6, 0.5)
            turn = rng.choice((-1, 1)) * math.pi / 2 if crosses else rng.choice((0.0, math.pi)) + rng.gauss(0, 0.7)
            if crowd.add("person", x, z, turn, (0.3, 0.3)):
                break
