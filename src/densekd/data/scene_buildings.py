"""Buildings of a procedural scene: facades in perspective with windows, shops, doors, roofs; the end of the street."""

from __future__ import annotations

import random

from densekd.data.scene_canvas import BUILDING, NEAR, TREE, Canvas
from densekd.data.scene_layout import Block
from densekd.data.scene_light import Colour, jitter, mix, scaled
from densekd.data.scene_plants import bush_row

_WALLS: dict[str, tuple[Colour, ...]] = {
    "plaster": (
        (226, 206, 168),
        (214, 176, 140),
        (198, 204, 196),
        (232, 222, 206),
        (188, 198, 210),
        (222, 190, 178),
        (206, 190, 132),
    ),
    "brick": ((158, 92, 72), (140, 82, 66), (172, 116, 88), (128, 88, 78), (186, 150, 118)),
    "modern": ((150, 158, 166), (116, 124, 132), (196, 198, 198), (92, 98, 106), (170, 162, 150)),
}
_ROOFS: tuple[Colour, ...] = ((150, 78, 58), (122, 70, 58), (92, 92, 98), (74, 76, 84), (120, 96, 80))
_BOARDS: tuple[Colour, ...] = (
    (176, 44, 40),
    (32, 92, 60),
    (36, 62, 128),
    (40, 40, 44),
    (206, 160, 52),
    (120, 40, 84),
    (228, 224, 214),
)
_GLOW: Colour = (255, 206, 120)

GROUND_FLOOR, STOREY = 3.4, 3.1


def paint_block(canvas: Canvas, block: Block) -> None:
    """Paints one building or hedge."""
    if block.kind == "hedge":
        bush_row(canvas, block)
        return
    rng = random.Random(block.seed)
    wall = jitter(rng, rng.choice(_WALLS[block.kind]), 14)
    facade = _Facade(canvas, block, rng, wall)
    facade.front()
    facade.side()
    _shadow(canvas, block)


def _shadow(canvas: Canvas, block: Block) -> None:
    reach_x, reach_z = canvas.shadow_x * block.height, canvas.shadow_z * block.height
    x, z0, z1 = block.x, block.z0, block.z1
    if reach_x * block.sign < 0:
        canvas.cast(((x, z0), (x, z1), (x + reach_x, z1 + reach_z), (x + reach_x, z0 + reach_z)))
    back = x + block.sign * min(block.depth, 12.0)
    if reach_z < 0:
        canvas.cast(((x, z0), (back, z0), (back + reach_x, z0 + reach_z), (x + reach_x, z0 + reach_z)))


class _Facade:
    """The two visible walls of a building: `front` across the street's direction, `side` along the street."""

    def __init__(self, canvas: Canvas, block: Block, rng: random.Random, wall: Colour) -> None:
        self.canvas, self.block, self.rng, self.wall = canvas, block, rng, wall
        self.z0, self.z1 = max(block.z0, NEAR), block.z1
        self.tint = canvas.light.tint(-block.sign, 0, 0)
        self.trim = mix(wall, (246, 242, 234), rng.uniform(0.3, 0.8))
        self.pitched = block.kind != "modern" and rng.random() < 0.65
        self.roof = jitter(rng, rng.choice(_ROOFS), 10)
        self.glass = jitter(rng, mix((52, 62, 74), canvas.light.sky_top, 0.25), 10)
        self.width = rng.uniform(0.42, 0.6) if block.kind != "modern" else rng.uniform(0.7, 0.9)
        self.shutters = block.kind == "plaster" and rng.random() < 0.4
        self.shop = rng.random() < 0.45

    def front(self) -> None:
        """The wall that faces the camera, from the facade line outwards; rows of windows at a street corner."""
        c, b, height = self.canvas, self.block, self.block.height
        left, right = c.at(b.x, 0, self.z0)[0], c.at(b.x + b.sign * b.depth, 0, self.z0)[0]
        if max(left, right) < 0 or min(left, right) > c.width:
            return
        ink = c.ink(self.wall, BUILDING, self.z0, c.front)
        top, foot = c.at(b.x, height, self.z0)[1], c.at(b.x, 0, self.z0)[1]
        c.box(left, top, right, foot, ink)
        if self.pitched and not b.corner:
            middle = b.x + b.sign * b.depth / 2
            ridge = height + b.depth * 0.32
            c.quad(((b.x, height, self.z0), (middle, ridge, self.z0), (b.x + b.sign * b.depth, height, self.z0)), ink)
            c.quad(
                ((b.x, height, self.z0), (b.x, height, self.z1), (middle, ridge, self.z1), (middle, ridge, self.z0)),
                c.ink(self.roof, BUILDING, self.z0, c.light.tint(-b.sign * 0.5, 0.86, 0)),
            )
        scale = c.focal / self.z0
        if b.corner and scale > 8:
            self._front_windows(scale)

    def _front_windows(self, scale: float) -> None:
        c, b, rng = self.canvas, self.block, self.rng
        ink = c.ink(self.glass, BUILDING, self.z0, c.front)
        lit = c.ink(_GLOW, BUILDING, self.z0, (1, 1, 1))
        floor = 1.0
        while floor + 1.6 < b.height:
            across = 1.3
            while across < min(b.depth, 36):
                x0, y0 = c.at(b.x + b.sign * across, floor, self.z0)
                if -scale * 2 < x0 < c.width + scale * 2:
                    glow = rng.random() < 0.3 * c.light.lamps
                    c.box(x0, y0 - 1.6 * scale, x0 + c.flip * b.sign * 1.1 * scale, y0, lit if glow else ink)
                across += 2.6
            floor += STOREY

    def side(self) -> None:
        """The facade along the street: wall, plinth or shops, storeys of windows, cornice."""
        c, b = self.canvas, self.block
        height = b.height
        x0, x1 = c.at(b.x, 0, self.z0)[0], c.at(b.x, 0, self.z1)[0]
        if max(x0, x1) < 0 or min(x0, x1) > c.width:
            return
        middle = (self.z0 + self.z1) / 2
        self._wall(0, height, self.z0, self.z1, c.ink(self.wall, BUILDING, middle, self.tint))
        bays = max(2, round((self.z1 - b.z0) / (2.5 if b.kind != "modern" else 3.0)))
        self.edges = [b.z0 + (self.z1 - b.z0) * i / bays for i in range(bays + 1)]
        apart = abs(x0 - x1) / bays
        floors = max(1, round((height - GROUND_FLOOR) / STOREY)) if height > 5 else 0
        storey = (height - GROUND_FLOOR - 0.5) / max(floors, 1)
        detail = 2 if apart > 13 else 1 if apart > 3.6 else 0
        self._ground_floor(detail)
        for i in range(floors):
            base = GROUND_FLOOR + storey * i + (0.75 if b.kind != "modern" else 0.5)
            top = GROUND_FLOOR + storey * (i + 1) - (0.55 if b.kind != "modern" else 0.35)
            self._storey(base, top, detail)
        self._wall(height - 0.45, height, self.z0, self.z1, c.ink(self.trim, BUILDING, middle, self.tint))

    def _wall(self, low: float, high: float, z0: float, z1: float, ink: tuple[int, int, int, int]) -> None:
        x = self.block.x
        self.canvas.quad(((x, low, z0), (x, low, z1), (x, high, z1), (x, high, z0)), ink)

    def _ground_floor(self, detail: int) -> None:
        c, rng = self.canvas, self.rng
        if not self.shop:
            ink = c.ink(scaled(self.wall, 0.72), BUILDING, self.z0 + 3, self.tint)
            self._wall(0, 0.7, self.z0, self.z1, ink)
            door = rng.randrange(len(self.edges) - 1)
            colour = jitter(rng, rng.choice(_BOARDS), 12)
            for i, (a, b) in enumerate(zip(self.edges, self.edges[1:], strict=False)):
                if i == door:
                    self._opening(a, b, 0.05, 2.5, 0.5, c.ink(scaled(colour, 0.8), BUILDING, a, self.tint), detail)
                elif detail:
                    self._opening(a, b, 1.0, 2.6, self.width, self._pane(a), detail)
            return
        lit = 0.8 * c.light.lamps
        pane = mix(self.glass, _GLOW, lit)
        tint = mix(self.tint, (1, 1, 1), lit)
        self._wall(0.25, 2.6, self.z0, self.z1, c.ink(pane, BUILDING, self.z0 + 3, tint))
        board = jitter(rng, rng.choice(_BOARDS), 12)
        self._wall(2.6, 3.3, self.z0, self.z1, c.ink(board, BUILDING, self.z0 + 3, self.tint))
        if detail:
            post = c.ink(scaled(self.wall, 0.9), BUILDING, self.z0 + 3, self.tint)
            for edge in self.edges[1:-1]:
                self._wall(0, 2.6, edge - 0.12, edge + 0.12, post)
            if rng.random() < 0.5:
                self._awning(board)

    def _awning(self, board: Colour) -> None:
        c, b, x = self.canvas, self.block, self.block.x
        tint = c.light.tint(-b.sign * 0.5, 0.86, 0)
        stripes = (scaled(board, 1.1), mix(board, (240, 236, 226), 0.75))
        out = x - b.sign * 1.1
        for i, (a, d) in enumerate(zip(self.edges, self.edges[1:], strict=False)):
            z0, z1 = max(a, NEAR), max(d, NEAR)
            ink = c.ink(stripes[i % 2], BUILDING, z0, tint)
            c.quad(((x, 2.9, z0), (x, 2.9, z1), (out, 2.4, z1), (out, 2.4, z0)), ink)

    def _storey(self, base: float, top: float, detail: int) -> None:
        if detail == 0 or self.block.kind == "modern":
            z0, z1 = self.z0 + 0.3, self.z1 - 0.3
            share = 0.45 if self.block.kind != "modern" else 1.0
            colour = mix(self.wall, self.glass, share)
            self._wall(base, top, z0, z1, self.canvas.ink(colour, BUILDING, self.z0 + 3, self.tint))
            if detail:
                ink = self.canvas.ink(scaled(self.wall, 0.92), BUILDING, self.z0 + 3, self.tint)
                for edge in self.edges[1:-1]:
                    self._wall(base, top, edge - 0.15, edge + 0.15, ink)
            return
        for a, b in zip(self.edges, self.edges[1:], strict=False):
            self._opening(a, b, base, top, self.width, self._pane(a), detail)

    def _pane(self, z: float) -> tuple[int, int, int, int]:
        """The ink of one window pane: dark, with a curtain or blind, or lit in the evening."""
        c, rng = self.canvas, self.rng
        draw = rng.random()
        if draw < 0.45 * c.light.lamps:
            return c.ink(jitter(rng, _GLOW, 25), BUILDING, max(z, NEAR), (1, 1, 1))
        if draw > 0.86:
            return c.ink(mix(self.glass, (214, 208, 196), 0.6), BUILDING, max(z, NEAR), self.tint)
        return c.ink(scaled(self.glass, 0.8 + 0.5 * draw), BUILDING, max(z, NEAR), self.tint)

    def _opening(
        self, a: float, b: float, low: float, high: float, share: float, ink: tuple[int, int, int, int], detail: int
    ) -> None:
        """A window or door in the bay from a to b; framed when it is large enough to see."""
        margin = (b - a) * (1 - share) / 2
        z0, z1 = a + margin, b - margin
        if z0 < NEAR:
            return
        c = self.canvas
        x0, x1 = c.at(self.block.x, 0, z0)[0], c.at(self.block.x, 0, z1)[0]
        if max(x0, x1) < 0 or min(x0, x1) > c.width:
            return
        if detail == 2:
            frame = c.ink(self.trim, BUILDING, z0, self.tint)
            self._wall(low - 0.16, high + 0.14, z0 - 0.12, z1 + 0.12, frame)
            if self.shutters and low > GROUND_FLOOR:
                shutter = c.ink(scaled(self.roof, 0.9), BUILDING, z0, self.tint)
                self._wall(low, high, z0 - 0.5, z0 - 0.05, shutter)
                self._wall(low, high, z1 + 0.05, z1 + 0.5, shutter)
        self._wall(low, high, z0, z1, ink)


def paint_ending(canvas: Canvas) -> None:
    """What closes the view at the end of the street: houses across it, trees, or far hills with a skyline."""
    c, street = canvas, canvas.scene.street
    rng = random.Random(canvas.scene.seed ^ 0x5EED)
    end, kind = street.end, street.ending
    half = end * 0.95 / c.scene.view.focal * c.width / c.height
    shift = -c.scene.view.bend * end * end
    if kind == "hills":
        _skyline(c, rng, end * 3)
    x = shift - half
    while x < shift + half:
        if kind == "houses":
            width = rng.uniform(8, 16)
            _far_house(c, rng, x, width, end)
        else:
            width = rng.uniform(2.5, 5.5)
            colour = jitter(rng, (66, 96, 50), 12)
            px, py = c.at(x, rng.uniform(1.5, 3.0) if kind == "hills" else rng.uniform(2.5, 4.5), end)
            scale = c.focal / end
            radius = (2.2 if kind == "hills" else 3.8) * scale
            c.box(px - radius, py, px + radius, c.at(x, 0, end)[1], c.ink(scaled(colour, 0.8), TREE, end, c.front))
            c.disc(px, py, radius, radius * 0.9, c.ink(colour, TREE, end, c.flat))
        x += width * (0.98 if kind == "houses" else 0.8)


def _skyline(c: Canvas, rng: random.Random, far: float) -> None:
    left, right = -0.1 * c.width, 1.1 * c.width
    base = c.at(0, 0, c.scene.street.end)[1]
    x = left
    while x < right:
        width = rng.uniform(0.03, 0.09) * c.height
        height = rng.uniform(0.02, 0.12) * c.height * (2 if rng.random() < 0.15 else 1)
        ink = c.ink(jitter(rng, (128, 132, 142), 16), BUILDING, far * 0.5, c.front)
        c.box(x, c.cy - height, x + width, base, ink)
        x += width


def _far_house(c: Canvas, rng: random.Random, x: float, width: float, z: float) -> None:
    wall = jitter(rng, rng.choice(_WALLS[rng.choice(("plaster", "brick"))]), 12)
    height = rng.uniform(6, 13)
    (x0, foot), (x1, top) = c.at(x, 0, z), c.at(x + width, height, z)
    c.box(x0, top, x1, foot, c.ink(wall, BUILDING, z, c.front))
    roof = c.ink(rng.choice(_ROOFS), BUILDING, z, c.flat)
    rise = rng.uniform(0.1, 0.35) * abs(x1 - x0)
    c.fill([(x0, top), (x1, top), (x1 + (x0 - x1) * 0.3, top - rise), (x0 + (x1 - x0) * 0.3, top - rise)], roof)
    glass = c.ink(mix((60, 66, 76), _GLOW, 0.5 * c.light.lamps), BUILDING, z, c.front)
    scale = c.focal / z
    count = max(2, int(width / 2.6))
    floor = 1.2
    while floor + 1.5 < height:
        for i in range(count):
            px = x0 + (x1 - x0) * (i + 0.5) / count
            y = foot - floor * scale
            c.box(px - 0.5 * scale, y - 1.4 * scale, px + 0.5 * scale, y, glass)
        floor += STOREY
