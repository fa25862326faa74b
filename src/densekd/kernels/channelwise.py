"""Channel-wise KL on the CPU, in blocks of rows that stay in the cache.

A row is one channel of one image: P positions. For rows s (student) and t (teacher), in base 2 because
`exp2` is several times faster than `exp` on many CPUs, with k = log2(e) / temperature:

    u = k * (s - max s),  v = k * (t - max t)
    q = exp2(u) / sum exp2(u),  p = exp2(v) / sum exp2(v)
    KL = sum p * (log p - log q) + sum (q - p)

The last sum is zero in exact arithmetic. In floating point it cancels the first-order error of the
normalisers, which would otherwise drown the tiny divergence of nearly equal maps. It is the sum of the
gradient, and that is made here in the forward pass: the backward pass is one multiplication.

Extra memory: the gradient and two blocks of scratch; up to three more where maps must be brought into rows first.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

# Elements of a block: enough that calling torch costs little, few enough to stay in the cache.
BLOCK = 262_144


@dataclass
class _Group:
    """Rows handled together: student, teacher and gradient with rows first, positions after."""

    student: Tensor
    teacher: Tensor
    gradient: Tensor | None
    positions: Tensor | None  # indices that count, where a mask is given
    start: int  # number of the first row


class _Sums:
    """What the rows' KLs are made of, block by block, in the working type."""

    def __init__(self, rows: int, like: Tensor) -> None:
        self._rows, self._like = rows, like
        self._parts: list[tuple[slice, Tensor]] = []

    def add(self, at: slice, q_scale: Tensor, p_scale: Tensor, mass: Tensor, gap: Tensor, excess: Tensor) -> None:
        """Of some rows: scale / sum exp2(u), scale / sum exp2(v), sum exp2(v), sum exp2(v) * (v - u), and the sum of
        scale * (q - p)."""
        self._parts.append((at, torch.stack((q_scale, p_scale, mass, gap, excess))))

    def divergence(self, temperature: float) -> Tensor:
        """`scale * temperature * KL` per row, zero for rows never added; what is left per row is done in float64."""
        rows = self._like.new_zeros(self._rows, dtype=torch.float64)
        for at, part in _joined(self._parts):
            q, p, mass, gap, excess = part.double()
            mean_gap = p * (math.log(2.0) * gap + mass * torch.log(p / q))
            rows[at] = (temperature * (mean_gap + excess)).clamp_(min=0.0)
        return rows


def _joined(parts: list[tuple[slice, Tensor]]) -> list[tuple[slice, Tensor]]:
    """Neighbouring blocks as one."""
    runs: list[list[tuple[slice, Tensor]]] = []
    for at, part in parts:
        if runs and runs[-1][-1][0].stop == at.start:
            runs[-1].append((at, part))
        else:
            runs.append([(at, part)])
    return [(slice(run[0][0].start, run[-1][0].stop), torch.cat([part for _, part in run], 1)) for run in runs]


class _Scratch:
    """Buffers of one block, reused for every block; those that no block needs are never touched."""

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self._size, self._dtype = size, dtype
        self._buffers: dict[str, Tensor] = {}

    def take(self, name: str, shape: torch.Size) -> Tensor:
        if name not in self._buffers:
            self._buffers[name] = torch.empty(self._size, dtype=self._dtype)
        return self._buffers[name][: shape.numel()].view(shape)

    def load(self, name: str, block: Tensor) -> Tensor:
        """The block as (rows, positions), contiguous, in the working type; copied only where it is not."""
        if block.dtype != self._dtype or not block.is_contiguous():
            block = self.take(name, block.shape).copy_(block)
        return block.view(block.shape[0], -1)


def blocked(
    student: Tensor,
    teacher: Tensor,
    mask: Tensor | None,
    temperature: float,
    want_gradient: bool,
    factor: float = 1.0,
) -> tuple[Tensor, Tensor]:
    """`factor * temperature**2 * KL` of every row in float64, (N, C), and its gradient.

    The gradient has the student's shape and is empty where it is not wanted. Rows without a valid position
    give zero. Where the logits' spread leaves the working type's range the value is not finite: the
    caller's business.
    """
    working = torch.promote_types(torch.promote_types(student.dtype, teacher.dtype), torch.float32)
    n, c = student.shape[:2]
    gradient = torch.empty_like(student, dtype=working) if want_gradient else student.new_empty(0, dtype=working)
    if mask is not None:
        gradient.zero_()
    sums = _Sums(n * c, gradient)
    positions = student[0, 0].numel()
    scratch = _Scratch(min(n * c * positions, max(BLOCK, positions)), working)
    for group in _groups(student, teacher, gradient if want_gradient else None, mask):
        _run_group(group, sums, temperature, temperature * factor, scratch)
    return sums.divergence(temperature).view(n, c), gradient


def _groups(student: Tensor, teacher: Tensor, gradient: Tensor | None, mask: Tensor | None) -> Iterator[_Group]:
    """All rows at once where memory lies in rows, else image by image."""
    c = student.shape[1]
    tensors = [t for t in (student, teacher, gradient) if t is not None]
    if mask is None and all(t.is_contiguous() for t in tensors):
        flat = [t.flatten(0, 1) for t in tensors]
        yield _Group(flat[0], flat[1], flat[2] if gradient is not None else None, None, 0)
        return
    for image in range(student.shape[0]):
        index = None
        if mask is not None:
            index = mask[image].flatten().nonzero().squeeze(1)
            if index.numel() == 0:
                continue
            index = None if index.numel() == mask[image].numel() else index
        slope = None if gradient is None else gradient[image]
        yield _Group(student[image], teacher[image], slope, index, image * c)


def _run_group(group: _Group, sums: _Sums, temperature: float, scale: float, scratch: _Scratch) -> None:
    rows = group.student.shape[0]
    width = group.student[0].numel() if group.positions is None else group.positions.numel()
    if width == 1:
        # One position has probability 1 in both maps: nothing to compare, whatever the rounding.
        if group.gradient is not None:
            group.gradient.zero_()
        return
    step = max(1, BLOCK // width)
    for first in range(0, rows, step):
        here = slice(first, min(first + step, rows))
        student, teacher = group.student[here], group.teacher[here]
        if group.positions is not None:
            # Only what counts is read: whatever stands elsewhere, NaN included, takes no part.
            student = student.flatten(1).index_select(1, group.positions)
            teacher = teacher.flatten(1).index_select(1, group.positions)
        s, t = scratch.load("student", student), scratch.load("teacher", teacher)
        target = None if group.gradient is None else group.gradient[here]
        direct = target is not None and group.positions is None and target.is_contiguous()
        out = target.view(s.shape) if direct and target is not None else scratch.take("gradient", s.shape)
        at = slice(group.start + here.start, group.start + here.stop)
        _run_block(s, t, out, scratch, sums, at, temperature, scale)
        if target is None or direct:
            continue
        if group.positions is None:
            target.copy_(out.view(target.shape))
        else:
            _scatter(target, group.positions, out)


def _scatter(target: Tensor, positions: Tensor, values: Tensor) -> None:
    if target.is_contiguous():
        target.view(target.shape[0], -1).index_copy_(1, positions, values)
    else:
        whole = values.new_zeros(target.shape[0], target[0].numel()).index_copy_(1, positions, values)
        target.copy_(whole.view(target.shape))


def _run_block(
    s: Tensor, t: Tensor, out: Tensor, scratch: _Scratch, sums: _Sums, at: slice, temperature: float, scale: float
) -> None:
    """Fill `out` with scale * (q - p) and the sums of these rows; `s` and `t` are (rows, positions)."""
    k = math.log2(math.e) / temperature
    v, gap = scratch.take("v", s.shape), scratch.take("gap", s.shape)
    # add(bias, x, alpha=k) is one pass: k * x - k * max
    torch.add(torch.amax(s, 1, keepdim=True).mul_(-k), s, alpha=k, out=out)
    torch.add(torch.amax(t, 1, keepdim=True).mul_(-k), t, alpha=k, out=v)
    torch.sub(v, out, out=gap)
    q, p = out.exp2_(), v.exp2_()
    mass = p.sum(1)
    q_scale, p_scale = scale / q.sum(1), scale / mass
    gap_sum = gap.mul_(p).sum(1)
    # Both products are rounded before the difference: equal maps then give exactly zero.
    torch.sub(q.mul_(q_scale[:, None]), p.mul_(p_scale[:, None]), out=out)
    sums.add(at, q_scale, p_scale, mass, gap_sum, out.sum(1))
