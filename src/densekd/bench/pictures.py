"""Pictures with masks, drawn into files for `densekd bench data`."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Literal, NamedTuple

import torch
from PIL import Image, ImageFilter

from densekd.data.check import Pair
from densekd.data.folder import FolderSet
from densekd.data.masks import MaskReader
from densekd.data.scenes import CLASSES, PALETTE, ScenesSet
from densekd.data.specs import MasksSpec

VOID = 255
_BLUR = 1.0


class Kind(NamedTuple):
    """What files are measured: format, size as stored, and the crop that training takes of them."""

    format: Literal["png", "jpg"]
    size: tuple[int, int]
    crop: tuple[int, int]

    def __str__(self) -> str:
        (height, width), (tall, wide) = self.size, self.crop
        return f"{self.format} {height}x{width}, crop {tall}x{wide}"


def draw_pictures(folder: Path, kind: Kind, count: int, drawn: Callable[[], None]) -> FolderSet:
    """Drawn scenes (`densekd.data.scenes`) of seed 0, blurred as a lens does, with their masks as 8-bit PNGs.

    The blur (Gaussian, one pixel) brings a PNG of 1024 x 2048 to about 2 MB, near photographs of that size; without it
    the grain of the scenes makes 3.5 MB. PNGs as Pillow writes them by default, JPEGs of quality 90.

    Args:
        drawn: called after each.
    """
    scenes = ScenesSet("train", count, kind.size, 0)
    pairs = []
    for index in range(count):
        image, label = scenes.load(index)
        name = f"{kind.format}-{kind.size[0]}x{kind.size[1]}-{index}"
        pair = Pair(name, folder / f"{name}.{kind.format}", folder / f"{name}-mask.png")
        picture = Image.fromarray(image.permute(1, 2, 0).contiguous().numpy())
        picture.filter(ImageFilter.GaussianBlur(_BLUR)).save(pair.image, quality=90)
        Image.fromarray(label.to(torch.uint8).numpy()).save(pair.mask)
        pairs.append(pair)
        drawn()
    return FolderSet(pairs, MaskReader(MasksSpec(), CLASSES, VOID), PALETTE)
