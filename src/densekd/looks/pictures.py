"""Images, truths and answers as small files, and back again."""

from __future__ import annotations

import io
from collections.abc import Mapping, Sequence

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from densekd import files
from densekd.looks.softened import fitting
from densekd.pictures import photograph

LONGEST = 480
"""Pixels of the longer side of a picture that is kept."""


def packed(pictures: Mapping[str, bytes], tensors: Mapping[str, Tensor] | None = None) -> bytes:
    """Several small files, by name, as one safetensors file of their bytes, beside plain tensors.

    One file, because each is flushed to disk by itself.
    """
    held = {name: torch.frombuffer(bytearray(data), dtype=torch.uint8) for name, data in pictures.items()}
    return files.tensor_bytes({**held, **(tensors or {})})


def unpacked(held: Tensor) -> bytes:
    """The bytes of one of them."""
    return held.numpy().tobytes()


def photo_file(image: Tensor, longest: int = LONGEST) -> bytes:
    """An image uint8 `(3, H, W)` as a JPEG file whose longer side is `longest` at most."""
    picture = photograph(image)
    height, width = fitting((picture.height, picture.width), longest)
    stream = io.BytesIO()
    picture.resize((width, height), Image.Resampling.LANCZOS).save(stream, "JPEG", quality=88)
    return stream.getvalue()


def seen_file(image: Tensor, mean: Sequence[float], std: Sequence[float], longest: int = LONGEST) -> bytes:
    """As `photo_file` of an image `(3, H, W)` that is normalised for a network; padding has the mean colour."""
    shift, scale = (torch.tensor(values).view(3, 1, 1) for values in (mean, std))
    pixels = (image.float().cpu() * scale + shift) * 255
    return photo_file(pixels.round().clamp(0, 255).to(torch.uint8), longest)


def ids_file(ids: Tensor, classes: int, longest: int = LONGEST) -> bytes:
    """Class ids `(H, W)` as a PNG file of ids, each pixel kept being one of the map's own; any other id is `classes`.

    16 bits where 8 do not hold them.
    """
    plain = torch.where((ids >= 0) & (ids < classes), ids.long(), classes).cpu()
    height, width = fitting((int(ids.shape[0]), int(ids.shape[1])), longest)
    rows, columns = _centres(height, len(plain)), _centres(width, plain.shape[1])
    small = plain[rows[:, None], columns[None, :]].numpy()
    stream = io.BytesIO()
    Image.fromarray(small.astype(np.uint8 if classes < 256 else np.uint16)).save(stream, "PNG", optimize=True)
    return stream.getvalue()


def read_ids(data: bytes) -> Tensor:
    """The class ids of such a file, int64 `(h, w)`."""
    with Image.open(io.BytesIO(data)) as picture:
        return torch.from_numpy(np.asarray(picture).astype(np.int64))


def _centres(count: int, length: int) -> Tensor:
    """The pixel under the centre of each of `count` cells."""
    return ((2 * torch.arange(count) + 1) * length) // (2 * count)
