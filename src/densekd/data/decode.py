"""Plain RGB JPEG files decoded by torchvision, which is faster; every other file is Pillow's.

PNG files among them: damaged pixel data end the whole process within torchvision's decoder (0.29: a segmentation
fault), and it is hardly faster there.

torchvision has announced (in 0.29) that its decoders will move to another package. Where it has none, or was built
without the library, Pillow reads all files: the pixels are the same.
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
_NAMES = {"JPEG": "decode_jpeg"}


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
        upright = picture.getexif().get(_ORIENTATION, 1) not in _TURNED
        return decode(torch.from_numpy(np.fromfile(path, np.uint8))) if upright else None
    except (OSError, RuntimeError):
        return None
