"""Reading pictures: whatever the file holds, as RGB with 8 bits a channel and upright."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from densekd.data.decode import decoded
from densekd.errors import DataError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})

_ORIENTATION = 0x0112
_ON_ITS_SIDE = frozenset({5, 6, 7, 8})
_SIXTEEN_BIT = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_AS_PILLOW_CONVERTS = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})


def open_picture(path: Path) -> Image.Image:
    """Open a picture file; its pixels are read later, on first use.

    Raises:
        DataError: no picture, or a TIFF of several pages, of which only one could be meant.
    """
    try:
        picture = Image.open(path)
    except (OSError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from None
    if picture.format == "TIFF" and getattr(picture, "n_frames", 1) > 1:
        picture.close()
        raise DataError(f"{path}: holds several pages; save the one that is meant as a file of its own")
    return picture


def _decode(picture: Image.Image, path: Path) -> None:
    try:
        picture.load()
    except (OSError, ValueError, SyntaxError, EOFError, MemoryError, Image.DecompressionBombError) as error:
        raise DataError(f"{path}: cannot be read as an image ({error})") from None


def upright(picture: Image.Image, path: Path) -> Image.Image:
    """Decode the pixels and turn them as the file's EXIF orientation says.

    Raises:
        DataError: the pixel data is damaged or ends early.
    """
    _decode(picture, path)
    return ImageOps.exif_transpose(picture)


def _grey_to_8_bits(picture: Image.Image, path: Path) -> Image.Image:
    values = np.asarray(picture)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise DataError(f"{path}: grey values from {values.min()} to {values.max()}; expected 0 to 65535 at most")
    return Image.fromarray((values.astype(np.uint16) >> 8).astype(np.uint8))


def to_rgb(picture: Image.Image, path: Path) -> Image.Image:
    """The picture in RGB, 8 bits a channel.

    Grey and palette pictures repeat or look up their colour; an alpha channel is dropped (not blended); CMYK
    is converted by Pillow's formula without a colour profile; 16-bit grey keeps its upper 8 bits.

    Raises:
        DataError: a kind of pixel for which no faithful conversion is known (floating point, Lab, HSV).
    """
    if picture.mode in _SIXTEEN_BIT:
        picture = _grey_to_8_bits(picture, path)
    if picture.mode not in _AS_PILLOW_CONVERTS:
        raise DataError(f"{path}: pixels of kind {picture.mode!r} are not understood; save it as 8-bit RGB")
    return picture if picture.mode == "RGB" else picture.convert("RGB")


def read_image(path: Path) -> Tensor:
    """Read an image file as a uint8 tensor `(3, H, W)` in RGB, upright (other pixels: see `to_rgb`).

    The tensor has channels innermost in memory, which torchvision resizes fastest.

    Raises:
        DataError: the file is missing, damaged, no image, or of a kind that is not understood.
    """
    with open_picture(path) as picture:
        pixels = decoded(picture, path)
        if pixels is not None:
            return pixels
        values = np.array(to_rgb(upright(picture, path), path))
    return torch.from_numpy(values).permute(2, 0, 1)


def check_image(path: Path) -> tuple[int, int]:
    """Read an image only to see that it can be read; its upright (height, width).

    A JPEG is decoded at an eighth of its size: every byte of the file is still read, in a third of the time.

    Raises:
        DataError: as `read_image`.
    """
    with open_picture(path) as picture:
        width, height = picture.size
        if picture.format in {"JPEG", "MPO"}:
            picture.draft(None, (1, 1))
        _decode(picture, path)
        turned = picture.getexif().get(_ORIENTATION, 1) in _ON_ITS_SIDE
        if picture.mode != "RGB":
            to_rgb(picture, path)
    return (width, height) if turned else (height, width)
