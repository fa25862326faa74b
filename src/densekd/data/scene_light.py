"""Light of a procedural street scene: time of day, sun, sky colours, haze."""

from __future__ import annotations

import math
import random
from dataclasses import dataclass

Colour = tuple[float, float, float]


def jitter(rng: random.Random, colour: Colour, amount: float) -> Colour:
    """The colour moved by up to `amount` (of 255) in brightness and a third of it in each channel."""
    shift = amount * (2 * rng.random() - 1)
    third = amount / 3
    return (
        max(0.0, colour[0] + shift + third * (2 * rng.random() - 1)),
        max(0.0, colour[1] + shift + third * (2 * rng.random() - 1)),
        max(0.0, colour[2] + shift + third * (2 * rng.random() - 1)),
    )


def mix(a: Colour, b: Colour, share: float) -> Colour:
    """`a` where share is 0, `b` where it is 1."""
    return (a[0] + (b[0] - a[0]) * share, a[1] + (b[1] - a[1]) * share, a[2] + (b[2] - a[2]) * share)


def scaled(colour: Colour, factor: float) -> Colour:
    """The colour times a factor."""
    return (colour[0] * factor, colour[1] * factor, colour[2] * factor)


@dataclass(frozen=True, slots=True)
class Light:
    """Ambient and direct light (factors per channel), the direction to the sun, sky, haze.

    `sun` is a unit vector (x, y up, z). `haze_depth` is the distance in metres at which the haze hides 63%.
    `lamps` is how strongly windows and street lamps glow (0 by day).
    """

    name: str
    ambient: Colour
    direct: Colour
    sun: Colour
    sky_top: Colour
    sky_low: Colour
    cloud: Colour
    cloudiness: float
    haze: Colour
    haze_depth: float
    lamps: float

    def tint(self, nx: float, ny: float, nz: float) -> Colour:
        """Light on a surface with this unit normal."""
        facing = max(0.0, nx * self.sun[0] + ny * self.sun[1] + nz * self.sun[2])
        return (
            self.ambient[0] + self.direct[0] * facing,
            self.ambient[1] + self.direct[1] * facing,
            self.ambient[2] + self.direct[2] * facing,
        )

    @property
    def shadow(self) -> tuple[float, float]:
        """Where the shadow of a point one metre above the ground falls, relative to its foot (x, z)."""
        up = max(self.sun[1], 0.28)
        return -self.sun[0] / up, -self.sun[2] / up


# name, weight, ambient, direct, sun elevation in degrees, sky top, sky low, cloud, cloudiness, haze depth, lamps
_TIMES: tuple[
    tuple[str, float, Colour, Colour, tuple[float, float], Colour, Colour, Colour, float, float, float], ...
] = (
    (
        "clear",
        0.34,
        (0.58, 0.62, 0.70),
        (0.64, 0.60, 0.52),
        (32, 62),
        (62, 120, 205),
        (184, 214, 238),
        (250, 250, 250),
        0.35,
        260,
        0.0,
    ),
    (
        "cloudy",
        0.24,
        (0.78, 0.80, 0.84),
        (0.16, 0.15, 0.13),
        (35, 60),
        (128, 148, 176),
        (206, 214, 222),
        (236, 238, 242),
        0.75,
        170,
        0.0,
    ),
    (
        "golden",
        0.20,
        (0.55, 0.53, 0.58),
        (0.86, 0.60, 0.34),
        (11, 24),
        (88, 122, 186),
        (252, 206, 148),
        (255, 226, 196),
        0.4,
        150,
        0.12,
    ),
    (
        "mist",
        0.10,
        (0.82, 0.83, 0.84),
        (0.0, 0.0, 0.0),
        (40, 50),
        (186, 194, 202),
        (216, 218, 220),
        (226, 228, 230),
        0.3,
        48,
        0.16,
    ),
    (
        "dusk",
        0.12,
        (0.52, 0.50, 0.62),
        (0.05, 0.03, 0.03),
        (8, 12),
        (38, 50, 104),
        (226, 142, 112),
        (200, 120, 120),
        0.4,
        170,
        1.0,
    ),
)


def pick_light(rng: random.Random) -> Light:
    """A time of day with its sun, sky and haze, each a little different."""
    (name, _, ambient, direct, heights, top, low, cloud, cloudiness, depth, lamps) = rng.choices(
        _TIMES, [row[1] for row in _TIMES]
    )[0]
    elevation = math.radians(rng.uniform(*heights))
    azimuth = rng.uniform(-math.pi, math.pi)
    sky_low = jitter(rng, low, 12)
    return Light(
        name=name,
        ambient=scaled(ambient, rng.uniform(0.9, 1.1)),
        direct=scaled(direct, rng.uniform(0.85, 1.1)),
        sun=(
            math.cos(elevation) * math.sin(azimuth),
            math.sin(elevation),
            math.cos(elevation) * math.cos(azimuth),
        ),
        sky_top=jitter(rng, top, 14),
        sky_low=sky_low,
        cloud=cloud,
        cloudiness=min(1.0, cloudiness * rng.uniform(0.3, 1.5)),
        haze=mix(sky_low, (190, 196, 204), 0.35 if lamps < 1 else 0.0),
        haze_depth=depth * rng.uniform(0.75, 1.3),
        lamps=lamps,
    )
