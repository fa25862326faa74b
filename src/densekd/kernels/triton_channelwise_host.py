"""Channel-wise KL in Triton: which kernels of `densekd.kernels.triton_channelwise` start, and on what.

Extra memory: the gradient, in the student's type, and a few numbers per row. Beyond that only maps whose positions are
not evenly spaced are copied. The host waits for nothing and looks at no value.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from functools import cache
from typing import Any, NamedTuple

import torch
from torch import Tensor

from densekd.kernels import triton_channelwise as kernels
from densekd.kernels.channelwise_plan import Plan, gradient_scale, make_plan, power_of_two
from densekd.kernels.launching import Launch
from densekd.kernels.strides import Strided, as_strided, position_order, strided

# Of an H200; where kernels are interpreted there is no device to ask.
_MULTIPROCESSORS = 132
# Elements that a program of the backward pass handles at a time, and partial results that one of the last start does.
_TILE, _JOINED = 2048, 1024


class Maps(NamedTuple):
    """What the kernels read and write, all positions in one order.

    `result` is the gradient as the caller gets it, `turned` the same with its positions in that order; `gradient` is
    what is written: `turned`, or a buffer to be copied there where its positions are not evenly spaced.
    """

    student: Strided
    teacher: Strided
    mask: Tensor | None
    rows: Tensor
    result: Tensor
    turned: Tensor
    gradient: Strided | None

    @property
    def shape(self) -> tuple[int, int, int]:
        n, c = self.student.tensor.shape[:2]
        return n, c, self.student.tensor[0, 0].numel()


def triton_rows(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    temperature: float,
    want_gradient: bool,
    factor: float = 1.0,
    plan: Plan | None = None,
) -> tuple[Tensor, Tensor]:
    """`factor * temperature**2 * KL` of every row in float32, (N, C), and its gradient.

    The gradient has the student's shape, layout and type (empty where it is not wanted), and is q - p times the first
    of `gradient_scale`. Rows without a valid position give zero.

    Args:
        plan: how rows are spread; default what the table says.
    """
    maps = prepared(student, teacher, mask, want_gradient)
    for launch in planned(maps, temperature, factor, plan):
        launch.run(student.device)
    if maps.gradient is not None and maps.gradient.tensor is not maps.turned:
        maps.turned.copy_(maps.gradient.tensor)
    return maps.rows, maps.result


def prepared(student: Tensor, teacher: Tensor, mask: Tensor | None, want_gradient: bool) -> Maps:
    """The maps by strides, and new ones for what is computed."""
    order = position_order(student)
    result = torch.empty_like(student) if want_gradient else student.new_empty(0)
    turned = result.permute(order) if want_gradient else result
    target = None
    if want_gradient:
        target = strided(turned) or as_strided(torch.empty_like(turned, memory_format=torch.contiguous_format))
    rows = torch.empty(student.shape[:2], dtype=torch.float32, device=student.device)
    void = None if mask is None else mask.permute(0, *(axis - 1 for axis in order[2:])).contiguous().view(torch.uint8)
    s, t = as_strided(student.permute(order)), as_strided(teacher.permute(order))
    return Maps(s, t, void, rows, result, turned, target)


def scale_rows(gradient: Tensor, upstream: Tensor, factor: float) -> Tensor:
    """The gradient, in place, times `factor` and what comes from above, (N, C); not touched where that is 1."""
    target = strided(gradient.permute(position_order(gradient)))
    if target is None:
        return gradient.mul_((upstream * factor).view(*upstream.shape, *(1 for _ in gradient.shape[2:])))
    scaling(target, upstream, factor).run(gradient.device)
    return gradient


def planned(maps: Maps, temperature: float, factor: float, plan: Plan | None = None) -> Iterator[Launch]:
    """What is started, in this order; `plan`: how rows are spread, default what the table says."""
    plan = plan or _table(maps)
    yield from (_whole if plan.way != "split" else _split)(maps, _numbers(maps, temperature, factor), plan)


def scaling(target: Strided, upstream: Tensor, factor: float) -> Launch:
    """The backward pass in place."""
    n, c, *_ = target.tensor.shape
    positions = target.tensor[0, 0].numel()
    width = 1 if target.positions == 1 else min(power_of_two(c), 32)
    tile = _TILE // width
    part = tile * min(8, -(-positions // tile))
    parts = -(-positions // part)
    arguments = {
        **{"gradient": target.tensor, "upstream": upstream, "channels": c, "positions": positions},
        **{"part": part, "parts": parts, "factor": factor},
        **_strides("g", target),
        **{"u_n": upstream.stride(0), "u_c": upstream.stride(1)},
    }
    return Launch(kernels.scale, n * -(-c // width) * parts, arguments, {"block_c": width, "block_p": tile}, 8)


def _numbers(maps: Maps, temperature: float, factor: float) -> dict[str, Any]:
    """The arguments that all kernels share, by name; each takes its own."""
    _, c, positions = maps.shape
    slope, _ = gradient_scale(maps.student.tensor.dtype, temperature, factor)
    like = maps.student if maps.gradient is None else maps.gradient  # never written where no gradient is wanted
    return {
        **{"student": maps.student.tensor, "teacher": maps.teacher.tensor, "gradient": like.tensor},
        **{"mask": maps.student.tensor if maps.mask is None else maps.mask, "rows": maps.rows},
        **{"channels": c, "positions": positions},
        **{**_strides("s", maps.student), **_strides("t", maps.teacher), **_strides("g", like)},
        **{"k": math.log2(math.e) / (temperature * kernels.UNIT.value), "slope": slope},
        **{"temperature": temperature, "factor": factor},
        **{"limit": torch.finfo(torch.float32).max / (2 * maps.rows.numel())},
        **{"masked": maps.mask is not None, "wanted": maps.gradient is not None, "group": _group(maps)},
    }


def _group(maps: Maps) -> int:
    """Neighbouring positions that one thread loads at once; where channels are innermost it loads one."""
    pair = (maps.student, maps.teacher)
    return 16 // max(x.tensor.dtype.itemsize for x in pair) if all(x.positions == 1 for x in pair) else 1


def _whole(maps: Maps, numbers: dict[str, Any], plan: Plan) -> Iterator[Launch]:
    n, c, _ = maps.shape
    numbers = {**numbers, "block_c": plan.channels, "block_p": plan.positions}
    kernel = kernels.resident if plan.way == "resident" else kernels.streamed
    yield _launch(kernel, n * -(-c // plan.channels), numbers, plan.warps)


def _split(maps: Maps, numbers: dict[str, Any], plan: Plan) -> Iterator[Launch]:
    n, c, _ = maps.shape
    found = torch.empty((kernels.FIELDS, n * c, plan.parts), dtype=torch.float32, device=maps.rows.device)
    compared = torch.empty((2, n * c, plan.parts), dtype=torch.float32, device=maps.rows.device)
    joined = power_of_two(plan.parts)
    block_r = min(power_of_two(n * c), max(1, _JOINED // joined), 32)
    numbers = {
        **{**numbers, "block_c": plan.channels, "block_p": plan.positions, "block_r": block_r, "joined": joined},
        **{"found": found, "compared": compared, "part": plan.part, "parts": plan.parts},
        **{"count": n * c, "size": n * c * plan.parts},
    }
    programs = n * -(-c // plan.channels) * plan.parts
    yield _launch(kernels.part_sums, programs, numbers, plan.warps)
    yield _launch(kernels.part_slopes, programs, numbers, plan.warps)
    yield _launch(kernels.part_values, -(-n * c // block_r), numbers, 4)


def _launch(kernel: Any, programs: int, numbers: dict[str, Any], warps: int) -> Launch:
    """The kernel with those of the numbers that it takes."""
    taken = {name: numbers[name] for name in kernel.arg_names}
    constants = {name: taken.pop(name) for name in _CONSTANTS if name in taken}
    return Launch(kernel, programs, taken, constants, warps)


_CONSTANTS = ("masked", "wanted", "block_c", "block_p", "block_r", "joined", "group")


def _strides(letter: str, of: Strided) -> dict[str, int]:
    return {f"{letter}_n": of.images, f"{letter}_c": of.channels, f"{letter}_p": of.positions}


def _table(maps: Maps) -> Plan:
    pair = (maps.student, maps.teacher)
    return make_plan(
        *maps.shape,
        itemsize=max(x.tensor.dtype.itemsize for x in pair),
        rows_lie_flat=all(x.positions == 1 for x in pair),
        multiprocessors=_multiprocessors(maps.rows.device),
    )


@cache
def _multiprocessors(device: torch.device) -> int:
    if device.type != "cuda":
        return _MULTIPROCESSORS
    return torch.cuda.get_device_properties(device).multi_processor_count
