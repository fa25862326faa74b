"""What the stages of `benchmarks/gpu.py` share: times on a device, targets, and what a stage leaves behind.

On the CPU everything here works too, with tiny maps: so that no line runs for the first time on the day a GPU comes.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import torch
from torch import Tensor

from densekd.bench import runner
from densekd.kernels import triton_obstacle
from densekd.records import BenchCase

#: how long a device is kept busy before the calls that are timed, so that they wait for it and not it for Python
_HEAD_START_CYCLES = 60_000_000


@dataclass(frozen=True)
class Target:
    """A figure, and what it should be: at least `wanted`, or at most. `value` None: it was not measured."""

    name: str
    value: float | None
    wanted: float
    at_most: bool = False

    @property
    def met(self) -> bool:
        if self.value is None or not self._finite:
            return False
        return self.value <= self.wanted if self.at_most else self.value >= self.wanted

    @property
    def _finite(self) -> bool:
        return self.value is not None and math.isfinite(self.value)

    def words(self) -> str:
        """One line: met or not, the figure, and the target."""
        found = "not measured" if self.value is None else f"{self.value:.3g}"
        return f"{'met' if self.met else 'NOT MET'}: {self.name}: {found} ({self._bound()} {self.wanted:g})"

    def _bound(self) -> str:
        return "at most" if self.at_most else "at least"

    def as_dict(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "value": self.value if self._finite else None,
            "wanted": self.wanted,
            "bound": self._bound(),
            "met": self.met,
        }


@dataclass
class Outcome:
    """What a stage measured."""

    cases: list[BenchCase] = field(default_factory=list)
    targets: list[Target] = field(default_factory=list)
    notes: dict[str, str] = field(default_factory=dict)


Keep = Callable[[Outcome], None]


def forget(outcome: Outcome) -> None:
    """A `Keep` that keeps nothing."""


def device_name(device: torch.device) -> str:
    """As a record names it."""
    return torch.cuda.get_device_name(device) if device.type == "cuda" else device.type


def kernel_backend(device: torch.device) -> tuple[str, str | None]:
    """The backend that is measured, and why it is not "triton" where it is not."""
    obstacle = triton_obstacle(device.type, device.index)
    return ("triton", None) if obstacle is None else ("auto", f"Triton cannot run here: {obstacle}")


def versions() -> dict[str, str]:
    """What else the times depend on."""
    found = {"cuda": str(torch.version.cuda), "cudnn": str(torch.backends.cudnn.version())}  # type: ignore[no-untyped-call]
    found["tf32"] = f"convolutions {torch.backends.cudnn.allow_tf32}, products {torch.backends.cuda.matmul.allow_tf32}"
    with suppress(PackageNotFoundError):
        found["triton"] = version("triton")
    return found


def synchronise(device: torch.device) -> None:
    """Wait until the device has done what it was given."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def seconds_on(device: torch.device, call: Callable[[], object], calls: int) -> float:
    """Seconds of one call on the device, from events around `calls` of them.

    On CUDA the device first waits on the spot while Python queues the calls: what is timed is the device's work, not
    Python's. On the CPU it is wall time.
    """
    if device.type != "cuda":
        begin = time.perf_counter()
        for _ in range(calls):
            call()
        return (time.perf_counter() - begin) / calls
    start, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))  # type: ignore[no-untyped-call]
    synchronise(device)
    torch.cuda._sleep(_HEAD_START_CYCLES)  # type: ignore[no-untyped-call]
    start.record()
    for _ in range(calls):
        call()
    end.record()
    synchronise(device)
    return float(start.elapsed_time(end)) / 1e3 / calls


def device_timings(
    variants: Mapping[str, Callable[[], object]],
    device: torch.device,
    *,
    rounds: int,
    calls: int = 10,
    warmup: int = 3,
) -> dict[str, runner.Timing]:
    """Seconds of one call of each variant on the device; the variants take turns, forwards and backwards alternately.

    `cpu` of a timing holds wall seconds of one call with a wait after it, Python included: what a loop that does
    nothing else would pay.
    """
    timings = {name: runner.Timing() for name in variants}
    order = list(variants)
    for name in order:
        for _ in range(warmup):
            variants[name]()
    for _ in range(rounds):
        for name in order:
            timings[name].wall.append(seconds_on(device, variants[name], calls))
            synchronise(device)
            begin = time.perf_counter()
            variants[name]()
            synchronise(device)
            timings[name].cpu.append(time.perf_counter() - begin)
        order.reverse()
    return timings


def backward_of(loss: Callable[[Tensor], Tensor], student: Tensor) -> Callable[[], None]:
    """Forward and backward of a loss, the gradient dropped: a call that can be repeated."""

    def call() -> None:
        torch.autograd.grad(loss(student), student)

    return call


def relative(found: Tensor, expected: Tensor) -> float:
    """Norm of the difference over the norm of what was expected."""
    difference, norm = (found.double() - expected).norm(), expected.norm()
    return float(difference / norm) if norm > 0 else float(difference)
