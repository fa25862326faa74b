"""Colours for classes that came without any."""

from __future__ import annotations

import colorsys

_GOLDEN = 0.618033988749895


def made_palette(count: int) -> tuple[tuple[int, int, int], ...]:
    """`count` different colours: hues by steps of the golden ratio, apart however many there are.

    Saturation and brightness alternate, so that neighbours in hue differ in lightness. None is black, which
    is left for void.
    """
    found: list[tuple[int, int, int]] = []
    step = 0
    while len(found) < count:
        hue = (0.58 + step * _GOLDEN) % 1.0
        saturation, value = ((0.55, 0.95), (0.75, 0.75), (0.40, 0.85), (0.85, 0.55))[step % 4]
        red, green, blue = colorsys.hsv_to_rgb(hue, saturation, value)
        color = (round(255 * red), round(255 * green), round(255 * blue))
        if color not in found:
            found.append(color)
        step += 1
    return tuple(found)
