"""The stage `loss` of `benchmarks/gpu.py`: channel-wise KL against the copy bandwidth and the textbook formulation."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from densekd.bench import runner
from densekd.bench.gpu import (
    Keep,
    Outcome,
    Target,
    backward_of,
    device_timings,
    forget,
    kernel_backend,
)
from densekd.bench.loss import TEMPERATURE, textbook
from densekd.functional import channelwise_kl
from densekd.records import BenchCase

Shape = tuple[int, int, int, int]

SHAPES: tuple[Shape, ...] = ((16, 150, 128, 128), (8, 512, 128, 128))
TINY_SHAPES: tuple[Shape, ...] = ((2, 3, 8, 8),)
DTYPES = (torch.bfloat16, torch.float32)
#: what a call has to read and write at least: student, teacher, gradient
PASSES = 3
#: share of the copy bandwidth, times faster than the textbook, maps of memory beside student and teacher
SHARE, SPEEDUP, MAPS = 0.70, 4.0, 1.1


def run(device: torch.device, *, tiny: bool = False, keep: Keep = forget) -> Outcome:
    """Forward and backward of every variant on every map.

    `copy` writes one map into another: two passes over a map. Bandwidth of a loss counts three, whatever it reads
    again. Times are the device's (`densekd.bench.gpu.seconds_on`); `extra.waited_seconds` is one call with a wait.

    Args:
        device: where.
        tiny: one small map, few rounds.
        keep: called after every map with what is known so far.
    """
    backend, why = kernel_backend(device)
    outcome = Outcome(notes={} if why is None else {"backend": why})
    for shape in TINY_SHAPES if tiny else SHAPES:
        for dtype in DTYPES:
            _measure(shape, dtype, device, backend, tiny, outcome)
            keep(outcome)
    return outcome


def _measure(
    shape: Shape, dtype: torch.dtype, device: torch.device, backend: str, tiny: bool, outcome: Outcome
) -> None:
    student, teacher, target = (torch.empty(shape, dtype=dtype, device=device) for _ in range(3))
    generator = torch.Generator(device).manual_seed(0)
    for values in (student, teacher):
        values.normal_(0.0, 4.0, generator=generator)
    student.requires_grad_()

    def kernel(x: Tensor) -> Tensor:
        return channelwise_kl(x, teacher, temperature=TEMPERATURE, backend=backend)

    def plain(x: Tensor) -> Tensor:
        return channelwise_kl(x, teacher, temperature=TEMPERATURE, backend="torch")

    variants: dict[str, Callable[[], object]] = {
        "copy": lambda: target.copy_(teacher),
        "textbook": backward_of(lambda x: textbook(x, teacher), student),
        "torch": backward_of(plain, student),
        backend: backward_of(kernel, student),
    }
    size = math.prod(shape) * dtype.itemsize
    calls, rounds, warmup = (1, 1, 1) if tiny else (10, 9, 3)
    timings = device_timings(variants, device, rounds=rounds, calls=calls, warmup=warmup)
    copied = 2 * size / timings["copy"].median
    label = f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"
    for name, timing in timings.items():
        passes = 2 if name == "copy" else PASSES
        peak = runner.peak_extra_bytes(variants[name], device)
        outcome.cases.append(
            BenchCase(
                name=label,
                variant=name,
                median_seconds=timing.median,
                ratio=timings["textbook"].median / timing.median,
                peak_bytes=peak,
                samples=timing.wall,
                extra={
                    "bytes_per_second": passes * size / timing.median,
                    "share_of_copy": passes * size / timing.median / copied,
                    "peak_maps": peak / size,
                    "waited_seconds": timing.cpu_median,
                },
            )
        )
    own = outcome.cases[-1]
    outcome.targets += [
        Target(f"channel-wise KL {label}, share of the copy bandwidth", own.extra["share_of_copy"], SHARE),
        Target(f"channel-wise KL {label}, times the textbook's speed", own.ratio, SPEEDUP),
        Target(f"channel-wise KL {label}, maps of extra memory", own.extra["peak_maps"], MAPS, at_most=True),
    ]
