"""What every loss asks of its arguments, checked before any work starts."""

from __future__ import annotations

import math
from typing import Any

import torch
from torch import Tensor

from densekd.errors import ArgumentError, DtypeError, ShapeError, nearest

REDUCTIONS = ("mean", "sum", "none")
# Colder, quotients leave float32's range; hotter, the distributions differ by less than it can tell.
_COLDEST, _HOTTEST = 1e-6, 1e4
_PIECE = 262_144


def check_maps(student: Any, teacher: Any, *, same_channels: bool = True) -> None:
    """Two floating-point maps (N, C, *spatial) on one device and of one shape; if not `same_channels`, in all but C."""
    for name, value in (("student", student), ("teacher", teacher)):
        if not isinstance(value, Tensor):
            raise DtypeError(
                f"{name}: expected a tensor (N, C, *spatial), got {type(value).__name__}; "
                "pass the map itself (for a network that returns more, its entry 'out' or '.logits')"
            )
        check_dense(name, value)
        if not value.is_floating_point():
            raise DtypeError(
                f"{name}: expected floating-point logits or features, got {value.dtype}; "
                "pass the map before argmax, or convert it with .float()"
            )
        if value.dtype.itemsize < 2:
            raise DtypeError(
                f"{name}: expected float16, bfloat16, float32 or float64, got {value.dtype}, in which torch does not "
                "compute; convert the map with .to(torch.bfloat16) and multiply it with the scale it was stored with"
            )
        if value.ndim < 3:
            raise ShapeError(
                f"{name}: expected (N, C, *spatial) with at least one spatial axis, got {tuple(value.shape)}; "
                "these losses compare maps, for vectors (N, C) add an axis or use a classification loss"
            )
        if value.numel() == 0:
            raise ShapeError(f"{name}: expected at least one element, got the empty shape {tuple(value.shape)}")
    if student.device != teacher.device:
        raise ArgumentError(
            f"student is on {student.device}, teacher on {teacher.device}; move one of them with .to(device)"
        )
    compared = [x.shape if same_channels else x.shape[:1] + x.shape[2:] for x in (student, teacher)]
    if compared[0] != compared[1]:
        raise ShapeError(_shape_message(student.shape, teacher.shape, same_channels))


def _shape_message(student: torch.Size, teacher: torch.Size, same_channels: bool) -> str:
    expected = "one shape" if same_channels else "one shape in all but the channels"
    head = f"student and teacher must have {expected}, got {tuple(student)} and {tuple(teacher)}"
    if student[0] != teacher[0]:
        return f"{head}; the batch sizes differ: give both networks the same images"
    if same_channels and student[1] != teacher[1]:
        return f"{head}; the channels differ: put a 1x1 convolution on the student (the Distiller makes one)"
    same_area = math.prod(student[2:]) == math.prod(teacher[2:])
    note = " (the areas are equal, the positions are not)" if same_area else ""
    return f"{head}; the sizes differ{note}: resize the student's map first (the Distiller does)"


def check_dense(name: str, value: Tensor) -> None:
    """An ordinary tensor: neither sparse nor nested nor in a layout of one library."""
    if value.is_nested or value.layout != torch.strided:
        came = "a nested tensor" if value.is_nested else str(value.layout)
        advice = "pad it with torch.nested.to_padded_tensor" if value.is_nested else "convert it with .to_dense()"
        raise DtypeError(f"{name}: expected a dense tensor, got {came}; {advice}")


def check_flag(name: str, value: Any) -> bool:
    """True or False; a text such as "no" would count as True."""
    if not isinstance(value, bool):
        raise DtypeError(f"{name}: expected True or False, got {value!r}")
    return value


def check_temperature(temperature: Any) -> float:
    """A number from 1e-6 to 10000."""
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)):
        raise DtypeError(f"temperature: expected a number, got {type(temperature).__name__}; for example 4.0")
    if not 0.0 < temperature < math.inf:
        raise ArgumentError(f"temperature: expected a positive finite number, got {temperature}; for example 4.0")
    if not _COLDEST <= temperature <= _HOTTEST:
        raise ArgumentError(
            f"temperature: expected a number from {_COLDEST:g} to {_HOTTEST:g}, got {temperature}: beyond, float32 "
            "cannot tell the distributions apart; for example 4.0"
        )
    return float(temperature)


def check_factor(name: str, value: Any) -> float:
    """A finite number that is not negative."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        raise DtypeError(f"{name}: expected a number, got {type(value).__name__}; for example 1.0")
    if not 0.0 <= value < math.inf:
        raise ArgumentError(f"{name}: expected a finite number that is not negative, got {value}; for example 1.0")
    return float(value)


def check_ignore_index(value: Any) -> int:
    """A whole number, of either sign."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise DtypeError(f"ignore_index: expected the label of void, a whole number, got {value!r}; for example 255")
    return value


def check_mask(mask: Any, like: Tensor, name: str = "mask") -> None:
    """None, or bool (N, *spatial) on the device of the maps; `name` is what the caller's argument is called."""
    if mask is None:
        return
    if not isinstance(mask, Tensor):
        raise DtypeError(f"{name}: expected a bool tensor or None, got {type(mask).__name__}")
    check_dense(name, mask)
    if mask.dtype != torch.bool:
        raise DtypeError(
            f"{name}: expected bool, True where a position counts, got {mask.dtype}; for labels: labels != ignore_index"
        )
    _check_positions(name, mask, like)


def check_labels(labels: Any, like: Tensor, num_classes: int, ignore_index: int) -> None:
    """Integers (N, *spatial) on the device of the maps: ids below `num_classes`, or `ignore_index`.

    On an accelerator this waits for the labels; an id out of range would end the whole process there. In a compiled
    graph values cannot be looked at: there it is the indexing that fails.
    """
    check_label_type(labels)
    check_ignore_index(ignore_index)
    _check_positions("labels", labels, like)
    check_label_values(labels, num_classes, ignore_index)


def check_label_type(labels: Any) -> None:
    """A dense tensor of integers."""
    if not isinstance(labels, Tensor):
        raise DtypeError(f"labels: expected an integer tensor (N, *spatial), got {type(labels).__name__}")
    check_dense("labels", labels)
    if labels.is_floating_point() or labels.is_complex() or labels.dtype == torch.bool:
        raise DtypeError(f"labels: expected integer class ids, got {labels.dtype}; convert them with .long()")


def check_label_values(labels: Tensor, num_classes: int, ignore_index: int) -> None:
    """Ids below `num_classes`, or `ignore_index`; nothing is looked at in a compiled graph."""
    if torch.compiler.is_compiling():
        return
    # In pieces on the CPU: a copy of all labels could outweigh what a loss itself needs.
    step = _PIECE if labels.device.type == "cpu" else max(1, labels.numel())
    parts = torch.split(labels.flatten(), step)
    ends = [torch.stack(torch.aminmax(part.masked_fill(part == ignore_index, 0))) for part in parts]
    low, high = torch.stack(torch.aminmax(torch.stack(ends))).tolist()
    if low < 0 or high >= num_classes:
        raise ArgumentError(
            f"labels: values from {low} to {high}; expected class ids 0 to {num_classes - 1} or the ignore_index "
            f"{ignore_index}"
        )


def _check_positions(name: str, values: Tensor, like: Tensor) -> None:
    """One value per position of the map, on its device."""
    expected = (like.shape[0], *like.shape[2:])
    if tuple(values.shape) != expected:
        raise ShapeError(
            f"{name}: expected (N, *spatial) = {expected}, got {tuple(values.shape)}; "
            "one value per position of the map (resize it with mode='nearest'), without a channel axis"
        )
    if values.device != like.device:
        raise ArgumentError(f"{name} is on {values.device}, the maps on {like.device}; move it with .to(device)")


def check_choice(name: str, value: Any, known: tuple[str, ...]) -> None:
    """One of the known words."""
    if value not in known:
        hint = nearest(value, known) if isinstance(value, str) else ""
        listed = ", ".join(repr(k) for k in known)
        raise ArgumentError(f"{name}: expected one of {listed}, got {value!r}{hint}")


def check_reduction(reduction: Any) -> None:
    check_choice("reduction", reduction, REDUCTIONS)


def working_type(student: Tensor, teacher: Tensor) -> torch.dtype:
    """float64 where one of the maps is float64, else float32, whatever autocast says."""
    return torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)


def reduce_positions(pixels: Tensor, mask: Tensor | None, reduction: str) -> Tensor:
    """Values (N, *spatial): their mean over valid positions (zero where there is none), their sum, or themselves."""
    if mask is not None:
        pixels = torch.where(mask, pixels, 0.0)
    if reduction == "none":
        return pixels
    if reduction == "sum":
        return pixels.sum()
    # Divided before it is summed: the sum of huge values must not overflow where their mean does not.
    return (pixels / (pixels.numel() if mask is None else mask.sum().clamp(min=1))).sum()
