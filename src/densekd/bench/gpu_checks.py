"""The first stage of `benchmarks/gpu.py`: values and gradients of the kernels against float64 on the same device."""

from __future__ import annotations

import itertools
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from densekd.bench.gpu import Keep, Outcome, Target, forget, kernel_backend, relative, synchronise
from densekd.functional import channelwise_kl, pixelwise_kl, upsampled_cross_entropy
from densekd.records import BenchCase

Shape = tuple[int, int, int, int]
Values = tuple[Tensor, Tensor]

DTYPES = (torch.float32, torch.bfloat16, torch.float16)
LAYOUTS = (torch.contiguous_format, torch.channels_last)
#: rows that are divided, ones that fit on chip, odd ones, and ones of 16 positions; those of training come first, in
#: case that compiling takes all the time there is
SHAPES: tuple[Shape, ...] = ((2, 19, 512, 1024), (2, 19, 128, 256), (2, 150, 64, 64), (3, 19, 13, 29), (2, 5, 4, 4))
TINY_SHAPE: Shape = (1, 3, 3, 5)
#: relative errors that count as right: of a value (arithmetic in float32), and of a gradient, kept in the map's type,
#: each entry of which may be off by one unit in its last place
VALUE = 1e-5
GRADIENT = {torch.float32: 2e-5, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
_VOID = 255


@dataclass(frozen=True)
class _Case:
    shape: Shape
    dtype: torch.dtype
    layout: torch.memory_format
    masked: bool

    def words(self) -> str:
        kind = str(self.dtype).removeprefix("torch.")
        layout = "channels_last" if self.layout == torch.channels_last else "contiguous"
        return f"{'x'.join(map(str, self.shape))} {kind} {layout}{' masked' if self.masked else ''}"


def run(device: torch.device, *, tiny: bool = False, keep: Keep = forget) -> Outcome:
    """Every kernel on every dtype, layout and shape; a case's `error` is the larger of its errors over its
    allowance; null: not finite.

    Nothing is timed for comparison: `median_seconds` is the one call, compilation included.

    Args:
        device: where.
        tiny: small maps alone.
        keep: called after every map with what is known so far.
    """
    backend, why = kernel_backend(device)
    outcome = Outcome(notes={} if why is None else {"backend": why})
    for case in _cases(tiny):
        for name, check in _CHECKS.items():
            begin = time.perf_counter()
            worst = check(case, device, backend)
            synchronise(device)
            seconds = time.perf_counter() - begin
            outcome.cases.append(
                BenchCase(
                    name=case.words(),
                    variant=f"{name}:{backend}",
                    median_seconds=seconds,
                    ratio=None,
                    error=worst if math.isfinite(worst) else None,
                    samples=[seconds],
                )
            )
        # A stage that is stopped has shown nothing to be right, but what was wrong until then is.
        outcome.targets = [target for target in _targets(outcome, backend) if not target.met]
        keep(outcome)
    outcome.targets = _targets(outcome, backend)
    return outcome


def _targets(outcome: Outcome, backend: str) -> list[Target]:
    targets = []
    for name in _CHECKS:
        found = [case.error for case in outcome.cases if case.variant == f"{name}:{backend}"]
        worst = max(math.inf if error is None else error for error in found)
        targets.append(Target(f"{name}, largest error over its allowance", worst, 1.0, at_most=True))
    return targets


def _cases(tiny: bool) -> Iterator[_Case]:
    if tiny:
        for dtype, layout in itertools.product(DTYPES, LAYOUTS):
            yield _Case(TINY_SHAPE, dtype, layout, masked=layout == torch.channels_last)
        return
    for shape, dtype, layout, masked in itertools.product(SHAPES, DTYPES, LAYOUTS, (False, True)):
        yield _Case(shape, dtype, layout, masked)


def _maps(case: _Case, device: torch.device) -> Iterator[Tensor]:
    generator = torch.Generator().manual_seed(0)
    for _ in range(2):
        values = 4.0 * torch.randn(case.shape, generator=generator)
        yield values.to(device=device, dtype=case.dtype, memory_format=case.layout)


def _mask(case: _Case, device: torch.device) -> Tensor | None:
    if not case.masked:
        return None
    n, _, h, w = case.shape
    return (torch.rand((n, h, w), generator=torch.Generator().manual_seed(1)) < 0.7).to(device)


def _both(loss: Callable[[Tensor], Tensor], student: Tensor) -> Values:
    leaf = student.detach().requires_grad_()
    value = loss(leaf)
    return value.detach(), torch.autograd.grad(value, leaf)[0]


def _worst(found: Values, expected: Values, dtype: torch.dtype) -> float:
    errors = (
        relative(found[0], expected[0].double()) / VALUE,
        relative(found[1], expected[1].double()) / GRADIENT[dtype],
    )
    # NaN compares with nothing: it must not hide behind the other one.
    return max(math.inf if math.isnan(error) else error for error in errors)


def _channelwise(case: _Case, device: torch.device, backend: str) -> float:
    student, teacher = _maps(case, device)
    mask = _mask(case, device)
    found = _both(lambda x: channelwise_kl(x, teacher, mask=mask, backend=backend), student)
    exact = teacher.double()
    expected = _both(lambda x: channelwise_kl(x, exact, mask=mask, backend="torch"), student.double())
    return _worst(found, expected, case.dtype)


def _pixelwise(case: _Case, device: torch.device, backend: str) -> float:
    student, teacher = _maps(case, device)
    mask = _mask(case, device)
    found = _both(lambda x: pixelwise_kl(x, teacher, mask=mask, backend=backend), student)
    exact = teacher.double()
    expected = _both(lambda x: pixelwise_kl(x, exact, mask=mask, backend="torch"), student.double())
    return _worst(found, expected, case.dtype)


def _task(case: _Case, device: torch.device, backend: str) -> float:
    student, _ = _maps(case, device)
    n, classes, h, w = case.shape
    # Small maps are the logits themselves, at an eighth; those of training are what they are up-sampled to.
    rows, columns = (h, w) if h * w < 100_000 else (h // 8, w // 8)
    logits = student[:, :, :rows, :columns].contiguous(memory_format=case.layout)
    labels = torch.randint(classes, (n, 8 * rows, 8 * columns), generator=torch.Generator().manual_seed(2)).to(device)
    if case.masked:
        labels[:, ::3] = _VOID
    found = _both(lambda x: upsampled_cross_entropy(x, labels, ignore_index=_VOID, backend=backend), logits)

    def whole(x: Tensor) -> Tensor:
        full = F.interpolate(x, labels.shape[1:], mode="bilinear", align_corners=False)
        return F.cross_entropy(full, labels, ignore_index=_VOID)

    return _worst(found, _both(whole, logits.double()), case.dtype)


_CHECKS: dict[str, Callable[[_Case, torch.device, str], float]] = {
    "channelwise": _channelwise,
    "pixelwise": _pixelwise,
    "upsampled cross-entropy": _task,
}
