"""Reading pictures: whatever the file holds, as RGB with 8 bits a channel and upright."""

from __future__ import annotations

import errno
import stat
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from densekd.data.decode import decoded
from densekd.errors import DataError, DensekdError, ResourceError

IMAGE_SUFFIXES = frozenset({".jpg", ".jpeg", ".png", ".tif", ".tiff"})

MOST_PIXELS = 2 * (Image.MAX_IMAGE_PIXELS or 89_478_485)
"""Pictures of more are refused by the size that they claim, before they are decoded: Pillow's own limit."""

# Pillow warns of half that number. What is refused is an error; the rest is read, and needs no line.
warnings.filterwarnings("ignore", category=Image.DecompressionBombWarning)

# Whatever the suffix says, nothing is handed to other programs, as Pillow does with PostScript.
_FORMATS = ("JPEG", "PNG", "TIFF", "JPEG2000", "WEBP", "BMP", "GIF", "PPM")
_SHORT = frozenset({errno.EMFILE, errno.ENFILE, errno.ENOMEM})
_ORIENTATION = 0x0112
_ON_ITS_SIDE = frozenset({5, 6, 7, 8})
_SIXTEEN_BIT = frozenset({"I", "I;16", "I;16B", "I;16L", "I;16N"})
_AS_PILLOW_CONVERTS = frozenset({"1", "L", "LA", "La", "P", "PA", "RGB", "RGBA", "RGBa", "RGBX", "CMYK", "YCbCr"})


@contextmanager
def _told(path: Path) -> Iterator[None]:
    """Inside the block, what Pillow raises becomes an error that names the file."""
    try:
        yield
    except DensekdError:
        raise
    except Image.DecompressionBombError as error:
        raise DataError(
            f"{path}: not decoded: {str(error).rstrip('.')}; pictures of up to {MOST_PIXELS:,} pixels are read: cut it "
            "into tiles, or make it smaller"
        ) from None
    except Exception as error:  # a damaged file makes Pillow's readers raise whatever comes
        raise _unreadable(path, error) from None


def _unreadable(path: Path, error: Exception) -> DensekdError:
    short = isinstance(error, MemoryError) or (isinstance(error, OSError) and error.errno in _SHORT)
    if short:  # no fault of the file's: it must not count as one that cannot be used
        return ResourceError(f"{path}: cannot be read now: {str(error) or 'out of memory'}")
    words = getattr(error, "strerror", None) or str(error) or type(error).__name__
    if isinstance(error, UnidentifiedImageError):
        words = "no picture of a known kind, or its beginning is damaged"
    return DataError(f"{path}: cannot be read as an image ({words})")


def open_picture(path: Path) -> Image.Image:
    """Open a picture file; its pixels are read later, on first use.

    Raises:
        DataError: no picture, one of more than `MOST_PIXELS`, or a TIFF of several pages, of which one could be meant.
    """
    with _told(path):
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would keep the reader waiting for ever
            raise DataError(f"{path}: cannot be read as an image (it is no regular file)")
        if not found.st_size:
            raise DataError(f"{path}: cannot be read as an image (the file is empty)")
        picture = Image.open(path, formats=_FORMATS)
        several = picture.format == "TIFF" and getattr(picture, "n_frames", 1) > 1
    if several:
        picture.close()
        raise DataError(f"{path}: holds several pages; save the one that is meant as a file of its own")
    return picture


def upright(picture: Image.Image, path: Path) -> Image.Image:
    """Decode the pixels and turn them as the file's EXIF orientation says.

    Raises:
        DataError: the pixel data is damaged or ends early.
    """
    with _told(path):
        picture.load()
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
        with _told(path):
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
    with open_picture(path) as picture, _told(path):
        width, height = picture.size
        if picture.format in {"JPEG", "MPO"}:
            picture.draft(None, (1, 1))
        picture.load()
        turned = picture.getexif().get(_ORIENTATION, 1) in _ON_ITS_SIDE
        if picture.mode != "RGB":
            to_rgb(picture, path)
    return (width, height) if turned else (height, width)
