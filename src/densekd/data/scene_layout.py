"""What stands where in a procedural street scene: camera, light, street, and everything in it, in metres.

The ground plane has x to the right and z away from the camera; the camera stands at x = z = 0. Nothing here
knows about pixels: the same layout is painted at any size.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import NamedTuple

from densekd.data.scene_light import Colour, Light


@dataclass(frozen=True, slots=True)
class View:
    """The camera: focal length and horizon in image heights, eye height in metres, bend of the road in 1/m."""

    focal: float
    eye: float
    horizon: float
    centre: float
    bend: float
    mirror: bool


@dataclass(frozen=True, slots=True)
class Street:
    """The road between `left` and `right`, pavements of the given widths, and where the street ends."""

    left: float
    right: float
    pavement_left: float
    pavement_right: float
    end: float
    junction: tuple[float, float] | None
    centre_line: float
    dashed: bool
    edge_lines: bool
    parking: bool
    asphalt: Colour
    paving: Colour
    paint: Colour
    ending: str

    def side(self, sign: int) -> tuple[float, float]:
        """Kerb and facade line on the left (sign -1) or right (sign 1)."""
        if sign < 0:
            return self.left, self.left - self.pavement_left
        return self.right, self.right + self.pavement_right


class Block(NamedTuple):
    """A building (or a hedge with trees) along the street, from z0 to z1, with its facade at x."""

    sign: int
    x: float
    z0: float
    z1: float
    height: float
    depth: float
    kind: str
    corner: bool
    seed: int

    @property
    def z(self) -> float:
        """Its far end: whatever stands before it is painted later, whatever lies behind it earlier."""
        return self.z1


class Thing(NamedTuple):
    """Something on the street. `turn` is its heading in radians (0 away from the camera)."""

    kind: str
    x: float
    z: float
    turn: float
    sign: int
    seed: int


@dataclass(frozen=True, slots=True)
class Scene:
    """A complete scene; `parts` are sorted far to near."""

    view: View
    light: Light
    street: Street
    parts: tuple[Block | Thing, ...]
    seed: int
