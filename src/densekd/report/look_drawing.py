"""Pictures of a page from kept label maps and softened maps: colours, errors, heat."""

from __future__ import annotations

import io
from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from densekd.pictures import Color, colourise

SHOWN = 240
"""Pixels of the longer side that a picture has at least; smaller ones are enlarged, their own pixels visible."""
WRONG: Color = (168, 20, 28)
"""Darker than every grey of an error map: also those who see no red tell it apart."""
HATCH: tuple[Color, Color] = (44, 46, 52), (176, 179, 186)
"""Stripes where nothing is labelled. One colour could be that of a class."""
COLORMAP = "inferno"
_STRIPE = 4
_FADED = 0.4
_STEP = 6
_UNDER = 0.35


def photograph(data: bytes) -> Image.Image:
    """A kept image."""
    with Image.open(io.BytesIO(data)) as picture:
        return picture.convert("RGB")


def stretched(ids: Tensor, size: tuple[int, int]) -> Tensor:
    """A label map `(h, w)` at the width and height of a picture; each pixel is one of the map's own."""
    rows, columns = (torch.arange(side) * old // side for side, old in zip(size[::-1], ids.shape, strict=True))
    return ids[rows[:, None], columns[None, :]]


def classes_picture(ids: Tensor, palette: Sequence[Color]) -> Image.Image:
    """Every class in its colour, what has no label hatched."""
    return _hatched(np.array(colourise(ids, palette)), (ids >= len(palette)).numpy())


def errors_picture(image: Image.Image, truth: Tensor, answer: Tensor, classes: int) -> Image.Image:
    """The image in pale grey, red where the answer is wrong, hatched where nothing is labelled.

    The grey has few levels: kept without loss, for the sake of the red, the picture is less than half as large.

    Args:
        truth, answer: class ids `(h, w)`; `classes` or more stands for no label.
    """
    height, width = truth.shape
    grey = np.asarray(image.convert("L").resize((width, height)), dtype=np.float32)
    few = 255 - np.rint(_FADED * (255 - grey) / _STEP) * _STEP
    pale = np.repeat(few[..., None], 3, axis=2).astype(np.uint8)
    unlabelled = (truth >= classes).numpy()
    pale[(truth != answer).numpy() & ~unlabelled] = WRONG
    return _hatched(pale, unlabelled)


def _hatched(pixels: np.ndarray, where: np.ndarray) -> Image.Image:
    """A picture uint8 `(h, w, 3)` with diagonal stripes on some of its pixels."""
    height, width = where.shape
    diagonals = (np.arange(height)[:, None] + np.arange(width)) // _STRIPE
    stripes = np.array(HATCH, dtype=np.uint8)[diagonals % 2]
    return Image.fromarray(np.where(where[..., None], stripes, pixels))


def hatch() -> str:
    """The same stripes as a CSS background."""
    dark, light = (f"rgb({red} {green} {blue})" for red, green, blue in HATCH)
    width = f"{_STRIPE / 2**0.5:.1f}px"
    return f"repeating-linear-gradient(135deg, {dark} 0 {width}, {light} {width} calc(2 * {width}))"


def share_wrong(truth: Tensor, answer: Tensor, classes: int) -> float | None:
    """The share of the labelled pixels of a picture where the answer is wrong; None where nothing is labelled."""
    labelled = truth < classes
    if not bool(labelled.any()):
        return None
    return float(((truth != answer) & labelled).sum() / labelled.sum())


def heat_picture(image: Image.Image, plane: Tensor, low: float, high: float) -> Image.Image:
    """A softened map over the image in grey: dark where a position has a small share, bright where it has a large one.

    Args:
        plane: multiples of the even share `(h, w)`.
        low, high: what has the darkest and the brightest colour; everything beyond has it too.
    """
    import matplotlib

    full = enlarged(image)
    values = Image.fromarray(((plane.numpy() - low) / max(high - low, 1e-12)).astype(np.float32))
    values = values.resize(full.size, Image.Resampling.BILINEAR)
    heat = matplotlib.colormaps[COLORMAP](np.asarray(values).clip(0, 1))[..., :3] * 255
    grey = np.asarray(full.convert("L"), dtype=np.float32)[..., None]
    return Image.fromarray(np.rint(heat * (1 - _UNDER) + grey * _UNDER).clip(0, 255).astype(np.uint8))


def gradient(steps: int = 9) -> str:
    """The colours of `heat_picture` over middle grey, as stops of a CSS gradient."""
    import matplotlib

    colors = matplotlib.colormaps[COLORMAP](np.linspace(0, 1, steps))[:, :3] * 255 * (1 - _UNDER) + 128 * _UNDER
    return ", ".join(f"rgb({red:.0f} {green:.0f} {blue:.0f})" for red, green, blue in colors)


def enlarged(picture: Image.Image, *, smooth: bool = True) -> Image.Image:
    """A small picture by a whole factor, so that its longer side is `SHOWN` or more."""
    factor = max(1, -(-SHOWN // max(picture.size)))
    if factor == 1:
        return picture
    how = Image.Resampling.BICUBIC if smooth else Image.Resampling.NEAREST
    return picture.resize((picture.width * factor, picture.height * factor), how)


def webp(picture: Image.Image, *, lossless: bool) -> bytes:
    """The picture's file: exact for flat colours, small for photographs."""
    stream = io.BytesIO()
    if lossless:
        picture.save(stream, "WEBP", lossless=True, quality=60, method=4)
    else:
        picture.save(stream, "WEBP", quality=78, method=4)
    return stream.getvalue()


def shares(ids: Tensor, classes: Sequence[str]) -> list[tuple[str, float]]:
    """The classes in a label map with their share of its labelled pixels, largest first."""
    counts = torch.bincount(ids.flatten().clamp(0, len(classes)), minlength=len(classes) + 1)[: len(classes)]
    total = int(counts.sum())
    found = [(classes[place], int(count) / total) for place, count in enumerate(counts.tolist()) if count]
    return sorted(found, key=lambda entry: -entry[1])
