"""`densekd bench task`: up-sampling and cross-entropy in one step, against one after the other; on the CPU."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from densekd.bench import runner
from densekd.errors import ArgumentError, DensekdError
from densekd.functional import upsampled_cross_entropy
from densekd.records import BenchCase, BenchRecord

REFERENCE, FUSED = "interpolate + cross_entropy", "upsampled_cross_entropy"
VOID = 255
#: what counts as right: relative error of the value, and of the gradient (norm of the difference), against float64
VALUE_TOLERANCE, GRADIENT_TOLERANCE = 1e-6, 1e-5


class Case(NamedTuple):
    """Logits `(N, K, h, w)` and the labels' height and width."""

    logits: tuple[int, int, int, int]
    labels: tuple[int, int]
    align_corners: bool = False

    def __str__(self) -> str:
        corners = ", aligned corners" if self.align_corners else ""
        return f"{'x'.join(map(str, self.logits))} -> {self.labels[0]}x{self.labels[1]}{corners}"


#: to see that it works
QUICK_CASES = (Case((2, 5, 16, 16), (64, 64)),)
#: 19 classes at strides 8 and 4, 11 at stride 8, 150 at stride 8
CASES = (
    Case((2, 19, 64, 128), (512, 1024)),
    Case((2, 19, 64, 128), (512, 1024), align_corners=True),
    Case((8, 19, 64, 128), (512, 1024)),
    Case((2, 19, 128, 256), (512, 1024)),
    Case((8, 11, 45, 60), (360, 480)),
    Case((2, 150, 64, 64), (512, 512)),
)


def one_after_the_other(logits: Tensor, labels: Tensor, align_corners: bool) -> Tensor:
    """As it is usually written, left to autograd."""
    large = F.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=align_corners)
    return F.cross_entropy(large, labels, ignore_index=VOID)


def fused(logits: Tensor, labels: Tensor, align_corners: bool) -> Tensor:
    return upsampled_cross_entropy(logits, labels, align_corners=align_corners, ignore_index=VOID)


VARIANTS: dict[str, Callable[[Tensor, Tensor, bool], Tensor]] = {REFERENCE: one_after_the_other, FUSED: fused}


def run(
    *,
    threads: int = 1,
    cases: Sequence[Case] = CASES,
    rounds: int = 7,
    progress: runner.Progress | None = None,
    command: str = "densekd bench task",
) -> BenchRecord:
    """Measure both ways on every case, forward and backward.

    Every value and gradient is compared with float64 before anything is timed.

    Args:
        threads: of torch, restored afterwards.
        cases: sizes.
        rounds: samples of each variant and case.
        progress: called with (rounds done, rounds in all).
        command: kept in the record.

    Raises:
        ArgumentError: a number of threads or rounds below 1, more threads than CPUs, no or equal cases.
        DensekdError: a variant is wrong; nothing is timed then.
    """
    if not cases or len(set(cases)) < len(cases):
        raise ArgumentError(f"cases: expected different ones, at least one, got {list(map(str, cases))}")
    load = runner.machine_load()
    with runner.use_threads(threads):
        errors = {case: _errors(case) for case in cases}
        found = [one for at in range(len(cases)) for one in _measure(cases, at, rounds, errors, progress)]
    return runner.make_record("task", device="cpu", threads=threads, command=command, load=load, cases=found)


def rows(record: BenchRecord) -> list[dict[str, Any]]:
    """One flat row per case, for a table."""
    return [
        {
            "logits -> labels": case.name,
            "variant": case.variant,
            "milliseconds": round(1e3 * case.median_seconds, 2),
            "speed-up": None if case.ratio is None else round(case.ratio, 2),
            "CPU speed-up": round(case.extra["cpu_ratio"], 2),
            "memory (MB)": None if case.peak_bytes is None else round(case.peak_bytes / 1e6, 1),
            "share of memory": round(case.extra["memory_share"], 3),
            "value error": case.error,
            "gradient error": case.extra["gradient_error"],
        }
        for case in record.cases
    ]


def tensors(case: Case) -> tuple[Tensor, Tensor]:
    """Logits of standard deviation 4 that ask for a gradient; labels in patches, a tenth of the pixels void."""
    generator = torch.Generator().manual_seed(0)
    logits = 4.0 * torch.randn(case.logits, generator=generator)
    (n, classes), (height, width) = case.logits[:2], case.labels
    patches = torch.randint(0, classes, (n, 1, -(-height // 16), -(-width // 16)), generator=generator)
    labels = patches.repeat_interleave(16, 2).repeat_interleave(16, 3)[:, 0, :height, :width].contiguous()
    labels[torch.rand(labels.shape, generator=generator) < 0.1] = VOID
    return logits.requires_grad_(), labels


def _errors(case: Case) -> dict[str, tuple[float, float]]:
    """Of every variant: relative error of value and gradient."""
    logits, labels = tensors(case)
    double = logits.detach().double().requires_grad_()
    expected = one_after_the_other(double, labels, case.align_corners)
    (slope,) = torch.autograd.grad(expected, double)
    found = {}
    for name, variant in VARIANTS.items():
        value = variant(logits, labels, case.align_corners)
        (gradient,) = torch.autograd.grad(value, logits)
        off = (gradient.double() - slope).norm() / slope.norm()
        error = abs(value.item() - expected.item()) / expected.item()
        found[name] = error, off.item()
        if error > VALUE_TOLERANCE or off > GRADIENT_TOLERANCE:
            raise DensekdError(
                f"bench task: {name} is wrong on {case}: relative error of the value {error:.1e} (allowed "
                f"{VALUE_TOLERANCE:.0e}), of the gradient {off:.1e} (allowed {GRADIENT_TOLERANCE:.0e}); nothing was "
                "timed"
            )
    return found


def _measure(
    cases: Sequence[Case],
    at: int,
    rounds: int,
    errors: dict[Case, dict[str, tuple[float, float]]],
    progress: runner.Progress | None,
) -> list[BenchCase]:
    """Memory first, in a pass of its own, then time."""
    case, warmup = cases[at], 2
    logits, labels = tensors(case)
    done = at * (rounds + warmup)

    def clear() -> None:
        logits.grad = None

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(cases) * (rounds + warmup))

    def step(variant: Callable[[Tensor, Tensor, bool], Tensor]) -> Callable[[], None]:
        return lambda: torch.autograd.backward(variant(logits, labels, case.align_corners))

    calls = {name: step(variant) for name, variant in VARIANTS.items()}
    peaks = {}
    for name, call in calls.items():
        clear()
        peaks[name] = runner.peak_extra_bytes(call)
    timings = runner.interleave(calls, rounds=rounds, warmup=warmup, between=clear, tick=tick)
    reference = timings[REFERENCE]
    return [
        BenchCase(
            name=str(case),
            variant=name,
            median_seconds=timing.median,
            ratio=reference.median / timing.median,
            peak_bytes=peaks[name],
            error=errors[case][name][0],
            samples=timing.wall,
            extra={
                "gradient_error": errors[case][name][1],
                "cpu_seconds": timing.cpu_median,
                "cpu_ratio": reference.cpu_median / timing.cpu_median,
                "memory_share": peaks[name] / peaks[REFERENCE],
            },
        )
        for name, timing in timings.items()
    ]
