"""What the distiller asks of its options and of each step's labels and mask."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from densekd.errors import ArgumentError, DtypeError, ShapeError
from densekd.teacher import Batch, FrozenTeacher, TeacherInput


def check_options(teacher_input: Any, num_classes: Any) -> None:
    """Raises:
    ArgumentError: `teacher_input` is no `TeacherInput`, `num_classes` no positive whole number.
    """
    if teacher_input is not None and not isinstance(teacher_input, TeacherInput):
        raise DtypeError(
            f"teacher_input must be a densekd.TeacherInput or None, got a {type(teacher_input).__name__}; write "
            "TeacherInput(mean, std, student_mean, student_std, size=None)"
        )
    if num_classes is None:
        return
    if isinstance(num_classes, bool) or not isinstance(num_classes, int) or num_classes < 1:
        raise ArgumentError(f"num_classes must be a whole number from 1, or None, got {num_classes!r}")


def check_sizes(teacher: Any, teacher_input: TeacherInput | None) -> None:
    """Raises:
    ArgumentError: a `FrozenTeacher` brings its images to one size, `teacher_input` to another.
    """
    own = teacher.size if isinstance(teacher, FrozenTeacher) else None
    asked = None if teacher_input is None or teacher_input.size is None else tuple(teacher_input.size)
    if own is not None and asked is not None and own != asked:
        raise ArgumentError(
            f"teacher_input brings the images to {asked[0]}x{asked[1]}, and the FrozenTeacher resizes them again, to "
            f"{own[0]}x{own[1]}: give the size once"
        )


def check_valid(valid: Any, batch: Batch) -> None:
    """Raises:
    DtypeError, ShapeError, ArgumentError: given, but not bool (N, H, W) at the size and on the device of the images.
    """
    if valid is None:
        return
    _check_at_image_size("valid", valid, batch.images)
    if valid.dtype != torch.bool:
        raise DtypeError(
            f"valid: expected a bool tensor, True where a pixel counts, got {valid.dtype}; for labels: labels != "
            "ignore_index"
        )


def check_labels(labels: Any, batch: Batch) -> None:
    """Raises:
    DtypeError, ShapeError, ArgumentError: given, but not integers (N, H, W) at the size and on the device of the
        images.
    """
    if labels is None:
        return
    _check_at_image_size("labels", labels, batch.images)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DtypeError(f"labels: expected integers, the ids of the classes, got {labels.dtype}; convert with .long()")


def check_value(value: Any, name: str) -> Tensor:
    """What a term's loss returned.

    Raises:
        DtypeError, ShapeError: no scalar tensor.
    """
    if not isinstance(value, Tensor):
        raise DtypeError(f"the loss of term {name!r} must return a scalar tensor, got a {type(value).__name__}")
    if value.dim() != 0:
        raise ShapeError(
            f"the loss of term {name!r} must return a scalar, got shape {tuple(value.shape)}; let its forward take the "
            "mean"
        )
    return value


def _check_at_image_size(name: str, values: Any, images: Tensor) -> None:
    expected = (images.shape[0], images.shape[2], images.shape[3])
    if not isinstance(values, Tensor):
        raise DtypeError(f"{name}: expected a tensor (N, H, W) = {expected} or None, got a {type(values).__name__}")
    if tuple(values.shape) != expected:
        raise ShapeError(
            f"{name}: expected {expected}, one value per pixel of the images and no axis of channels, got "
            f"{tuple(values.shape)}"
        )
    if values.device != images.device:
        raise ArgumentError(
            f"{name}: expected on {images.device}, where the images are, got {values.device}; move with .to(device)"
        )
