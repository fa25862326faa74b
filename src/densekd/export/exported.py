"""An exported student, opened: the same few words whatever its format."""

from __future__ import annotations

from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor

from densekd.errors import ShapeError
from densekd.export.manifest import Manifest


class Exported(Protocol):
    """A student that was exported.

    Attributes:
        path: the file or folder.
        manifest: what it says of itself.
    """

    path: Path
    manifest: Manifest

    def __call__(self, images: Tensor) -> Tensor:
        """What the file gives for images `(N, 3, H, W)`, float32, as `manifest.input` says; a tensor on the CPU.

        Logits and probabilities are float32 `(N, K, H, W)`, class ids int64 `(N, H, W)` (`manifest.inside.output`).

        Raises:
            ShapeError: images of another kind or size than the manifest says.
        """
        ...


def check_images(images: Tensor, manifest: Manifest, where: object) -> None:
    """Refuse images that the file does not take.

    Raises:
        ShapeError: another number of axes or channels, another type, or a size that the file does not take.
    """
    wanted, shape = manifest.input, tuple(images.shape)
    if images.ndim != 4 or shape[1] != wanted.channels or images.dtype != torch.float32:
        kind = str(images.dtype).removeprefix("torch.")
        raise ShapeError(f"{where}: expected images float32 (N, {wanted.channels}, H, W), got {kind} {shape}")
    if isinstance(wanted.batch, int) and shape[0] != wanted.batch:
        raise ShapeError(f"{where}: takes batches of {wanted.batch}, got {shape[0]} images")
    size = shape[2:]
    if wanted.size is not None and size != tuple(wanted.size):
        raise ShapeError(
            f"{where}: takes images of {wanted.size[0]}x{wanted.size[1]} (height x width) alone, got "
            f"{size[0]}x{size[1]}; resize them, or export again with --size or --resize"
        )
    if any(side % wanted.multiple_of for side in size):
        raise ShapeError(
            f"{where}: takes heights and widths that are multiples of {wanted.multiple_of}, got {size[0]}x{size[1]}; "
            "pad the images and cut the output back"
        )
