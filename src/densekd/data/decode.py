"""Plain 8-bit PNG and JPEG files decoded by torchvision, which is faster; every other file is Pillow's.

torchvision has announced (in 0.29) that its decoders will move to another package. Where it has none, or was built
without the libraries, Pillow reads all files: the pixels are the same.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path

import numpy as np
import torch
from PIL import Image
from torch import Tensor

_TURNED = range(2, 9)
_ORIENTATION = 0x0112
# What it announces is known here, and no news to who trains.
warnings.filterwarnings("ignore", "The image decoding and encoding capabilities of TorchVision", DeprecationWarning)
_NAMES = {"PNG": "decode_png", "JPEG": "decode_jpeg"}
_TEXT = frozenset({b"tEXt", b"zTXt", b"iTXt"})


@cache
def _decoders() -> Mapping[str, Callable[[Tensor], Tensor]]:
    # torchvision takes seconds to load, and a recipe needs none of it.
    from torchvision import io

    return {kind: getattr(io, name) for kind, name in _NAMES.items() if hasattr(io, name)}


def decoder_of() -> str:
    """Which package reads plain files here."""
    found = _decoders()
    return f"torchvision ({', '.join(found)}), Pillow" if found else "Pillow"


def decoded(picture: Image.Image, path: Path) -> Tensor | None:
    """The pixels of an opened picture, uint8 `(3, H, W)` with channels innermost in memory, equal to Pillow's.

    Returns:
        None where Pillow must read: another format, another kind of pixels, a picture that is turned, several
        pictures, or one that is damaged (so that there is one place that says so).
    """
    decode = _decoders().get(str(picture.format))
    if decode is None or picture.mode != "RGB" or getattr(picture, "n_frames", 1) > 1:
        return None
    try:
        data = torch.from_numpy(np.fromfile(path, np.uint8))
        plain = _plain_png(picture, data.numpy().data) if picture.format == "PNG" else _upright_jpeg(picture)
        return decode(data) if plain else None
    except (OSError, RuntimeError):
        return None


def _upright_jpeg(picture: Image.Image) -> bool:
    return picture.getexif().get(_ORIENTATION, 1) not in _TURNED


def _plain_png(picture: Image.Image, data: memoryview) -> bool:
    # 16-bit colours have other raw pixels. libpng complains on stderr of colour profiles it finds wrong.
    raw = [tile[3] for tile in getattr(picture, "tile", ())]
    return raw == ["RGB"] and not {"transparency", "icc_profile"} & picture.info.keys() and not _may_be_turned(data)


def _may_be_turned(data: memoryview) -> bool:
    """Whether a PNG file holds metadata that can say so. They may follow the pixels, so all its parts are looked at."""
    place = 8
    while place + 8 <= len(data):
        length, kind = int.from_bytes(data[place : place + 4]), bytes(data[place + 4 : place + 8])
        word = bytes(data[place + 8 : place + 8 + min(length, 20)])
        if kind == b"eXIf" or (kind in _TEXT and word.startswith((b"Raw profile type", b"XML:com.adobe.xmp", b"exif"))):
            return True
        place += 12 + length
    return False
