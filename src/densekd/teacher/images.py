"""The images as the teacher wants them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from densekd.errors import ArgumentError, ShapeError


@dataclass(frozen=True)
class TeacherInput:
    """The images as the teacher wants them: its own normalisation and, if given, its own size.

    `teacher = ((student * student_std + student_mean) - mean) / std`, per channel, then a bilinear resize to
    `size` (anti-aliased, corners not aligned).

    Args:
        mean, std: the teacher's normalisation, per channel.
        student_mean, student_std: the normalisation the images have when they reach the distiller, in the same
            unit (images in 0..1, or all four in 0..255).
        size: `(height, width)` the teacher gets, or None for the images' own.

    Raises:
        ArgumentError: what is no list of numbers, lengths that differ, a standard deviation that is not positive, a
            size that is none.

    >>> TeacherInput(mean=[0.5] * 3, std=[0.5] * 3, student_mean=[0.0] * 3, student_std=[1.0] * 3, size=(512, 512)).size
    (512, 512)
    """

    mean: Sequence[float]
    std: Sequence[float]
    student_mean: Sequence[float]
    student_std: Sequence[float]
    size: tuple[int, int] | None = None

    def __post_init__(self) -> None:
        numbers = {name: _numbers(name, getattr(self, name)) for name in ("mean", "std", "student_mean", "student_std")}
        lengths = {name: len(values) for name, values in numbers.items()}
        if len(set(lengths.values())) != 1 or 0 in lengths.values():
            raise ArgumentError(f"TeacherInput: expected one number per channel in each list, got lengths {lengths}")
        for name in ("std", "student_std"):
            if min(numbers[name]) <= 0:
                raise ArgumentError(f"TeacherInput: {name} must be positive, got {tuple(numbers[name])}")
        if self.size is not None and not is_size(self.size):
            raise ArgumentError(
                "TeacherInput: size must be (height, width), two whole numbers of pixels from 1, or None for the "
                f"images' own, got {self.size!r}"
            )


def _numbers(name: str, values: Any) -> list[float]:
    try:
        numbers = [float(value) for value in values]
    except (TypeError, ValueError):
        raise ArgumentError(
            f"TeacherInput: {name} must be a list of numbers, one per channel, for instance [0.485, 0.456, 0.406], "
            f"got {values!r}"
        ) from None
    if not all(map(math.isfinite, numbers)):
        raise ArgumentError(f"TeacherInput: {name} must be finite, got {tuple(numbers)}")
    return numbers


def is_size(size: Any) -> bool:
    """Whether it is two whole numbers of pixels from 1."""
    return (
        isinstance(size, (tuple, list))
        and len(size) == 2
        and all(isinstance(side, int) and not isinstance(side, bool) and side > 0 for side in size)
    )


class TeacherImages(nn.Module):
    """Turns the student's images into the teacher's as a `TeacherInput` says; holds no saved state."""

    scale: Tensor
    shift: Tensor

    def __init__(self, spec: TeacherInput) -> None:
        super().__init__()
        self.size = spec.size
        std, student_std = (torch.tensor(list(values)) for values in (spec.std, spec.student_std))
        mean, student_mean = (torch.tensor(list(values)) for values in (spec.mean, spec.student_mean))
        self.register_buffer("scale", (student_std / std).view(1, -1, 1, 1), persistent=False)
        self.register_buffer("shift", ((student_mean - mean) / std).view(1, -1, 1, 1), persistent=False)

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[1] != self.scale.shape[1]:
            raise ShapeError(
                f"TeacherInput has {self.scale.shape[1]} channels, the images have {images.shape[1]}: give one mean "
                "and one std per channel"
            )
        images = (images * self.scale + self.shift).to(images.dtype)
        return images if self.size is None else resize(images, self.size)


def resize(images: Tensor, size: tuple[int, int]) -> Tensor:
    """Images `(N, C, H, W)` at another `(height, width)`: bilinear, anti-aliased, corners not aligned."""
    if tuple(images.shape[2:]) == tuple(size):
        return images
    return F.interpolate(images, size=tuple(size), mode="bilinear", align_corners=False, antialias=True)
