"""`densekd bench loss`: time, memory and accuracy of channelwise_kl, forward and backward together."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from densekd.bench import runner
from densekd.errors import ArgumentError, DensekdError
from densekd.functional import channelwise_kl
from densekd.records import BenchCase, BenchRecord

Shape = tuple[int, ...]

#: to see that it works
QUICK_SHAPES: tuple[Shape, ...] = ((2, 19, 32, 32), (2, 64, 16, 16))
SHAPES: tuple[Shape, ...] = ((8, 19, 64, 64), (8, 19, 64, 128), (8, 512, 64, 64), (2, 19, 512, 1024))
REFERENCE = "textbook"
TEMPERATURE = 4.0
#: what counts as right: relative error of the value, and of the gradient (norm of the difference), against float64
VALUE_TOLERANCE, GRADIENT_TOLERANCE = 5e-6, 2e-5


def textbook(student: Tensor, teacher: Tensor) -> Tensor:
    """The loss as it is usually written, left to autograd."""
    n, c = student.shape[:2]
    p = torch.softmax(teacher.flatten(2) / TEMPERATURE, 2)
    ideal = p * torch.log_softmax(teacher.flatten(2) / TEMPERATURE, 2)
    kl = (ideal - p * torch.log_softmax(student.flatten(2) / TEMPERATURE, 2)).sum()
    return kl * TEMPERATURE**2 / (n * c)


def _blocked(student: Tensor, teacher: Tensor) -> Tensor:
    return channelwise_kl(student, teacher, temperature=TEMPERATURE, backend="blocked")


def _plain(student: Tensor, teacher: Tensor) -> Tensor:
    return channelwise_kl(student, teacher, temperature=TEMPERATURE, backend="torch")


@dataclass
class _Errors:
    value: float
    gradient: float

    def right(self) -> bool:
        return self.value <= VALUE_TOLERANCE and self.gradient <= GRADIENT_TOLERANCE


def run(
    *,
    threads: int = 1,
    shapes: Sequence[Shape] = SHAPES,
    rounds: int = 15,
    compiled: bool = True,
    progress: runner.Progress | None = None,
    command: str = "densekd bench loss",
) -> BenchRecord:
    """Measure every variant on every shape, on the CPU.

    Every variant's value and gradient are compared with float64 before anything is timed.

    Args:
        threads: of torch, restored afterwards.
        shapes: (N, C, *spatial) each.
        rounds: samples of each variant and shape.
        compiled: also measure a `torch.compile`d call, where a C++ compiler is found (the record says).
        progress: called with (rounds done, rounds in all).
        command: kept in the record.

    Raises:
        ArgumentError: a number of threads or rounds below 1, more threads than CPUs, a shape that is none.
        DensekdError: a variant is wrong; nothing is timed then.
    """
    _check_shapes(shapes)
    load = runner.machine_load()
    with runner.use_threads(threads):
        variants: dict[str, Callable[[Tensor, Tensor], Tensor]] = {
            REFERENCE: textbook,
            "blocked": _blocked,
            "torch": _plain,
        }
        notes = {"compiled": "not asked"}
        if compiled:
            notes["compiled"] = _compiler_note()
            if not notes["compiled"].startswith("left out"):
                variants["compiled"] = torch.compile(_blocked, fullgraph=True, dynamic=False)
        errors = {shape: _check_all(variants, shape) for shape in shapes}
        cases = [case for at in range(len(shapes)) for case in _measure(variants, shapes, at, rounds, errors, progress)]
    return runner.make_record(
        "loss", device="cpu", threads=threads, command=command, load=load, cases=cases, notes=notes
    )


def rows(record: BenchRecord) -> list[dict[str, Any]]:
    """One flat row per case, for a table."""
    return [
        {
            "map": case.name,
            "variant": case.variant,
            "milliseconds": round(1e3 * case.median_seconds, 2),
            "speed-up": None if case.ratio is None else round(case.ratio, 2),
            "CPU ms": round(1e3 * case.extra["cpu_seconds"], 2),
            "CPU speed-up": round(case.extra["cpu_ratio"], 2),
            "memory (maps)": round(case.extra["peak_maps"], 2),
            "value error": case.error,
            "gradient error": case.extra["gradient_error"],
        }
        for case in record.cases
    ]


def maps(shape: Shape) -> tuple[Tensor, Tensor]:
    """Unrelated normal maps of standard deviation 4; the student asks for a gradient."""
    generator = torch.Generator().manual_seed(0)
    student, teacher = (4.0 * torch.randn(shape, generator=generator) for _ in range(2))
    return student.requires_grad_(), teacher


def _check_shapes(shapes: Sequence[Shape]) -> None:
    for shape in shapes:
        if len(shape) < 3 or min(shape) < 1:
            raise ArgumentError(f"shapes: expected (N, C, *spatial) of sizes from 1, got {tuple(shape)}")
    if not shapes or len(set(shapes)) < len(shapes):
        raise ArgumentError(f"shapes: expected different shapes, at least one, got {list(shapes)}")


def _compiler_note() -> str:
    """Whether torch.compile can run here: the compiler's name, or the reason against it."""
    from torch._inductor import config, cpp_builder, exc

    try:
        return f"C++ compiler {cpp_builder.get_cpp_compiler()}"
    except (exc.InvalidCxxCompiler, RuntimeError, OSError):
        return f"left out: no C++ compiler found (looked for {config.cpp.cxx})"


def _check_all(variants: dict[str, Callable[[Tensor, Tensor], Tensor]], shape: Shape) -> dict[str, _Errors]:
    student, teacher = maps(shape)
    value, gradient = _exact(student.detach(), teacher)
    found = {}
    for name, variant in variants.items():
        got = variant(student, teacher)
        (slope,) = torch.autograd.grad(got, student)
        off = (slope.double() - gradient).norm() / gradient.norm()
        found[name] = _Errors(abs(got.item() - value) / value, off.item())
        if not found[name].right():
            raise DensekdError(
                f"bench loss: variant {name!r} is wrong on {shape}: relative error of the value "
                f"{found[name].value:.1e} (allowed {VALUE_TOLERANCE:.0e}), of the gradient "
                f"{found[name].gradient:.1e} (allowed {GRADIENT_TOLERANCE:.0e}); nothing was timed"
            )
    return found


def _exact(student: Tensor, teacher: Tensor) -> tuple[float, Tensor]:
    """Value and gradient in float64, image by image and by the closed form."""
    n, c = student.shape[:2]
    total, gradient = 0.0, torch.empty_like(student, dtype=torch.float64)
    for image in range(n):
        s, t = (x[image].double().flatten(1) / TEMPERATURE for x in (student, teacher))
        log_q, log_p = torch.log_softmax(s, 1), torch.log_softmax(t, 1)
        total += (log_p.exp() * (log_p - log_q)).sum().item()
        gradient[image] = (TEMPERATURE / (n * c) * (log_q.exp() - log_p.exp())).view(student.shape[1:])
    return total * TEMPERATURE**2 / (n * c), gradient


def _measure(
    variants: dict[str, Callable[[Tensor, Tensor], Tensor]],
    shapes: Sequence[Shape],
    at: int,
    rounds: int,
    errors: dict[Shape, dict[str, _Errors]],
    progress: runner.Progress | None,
) -> list[BenchCase]:
    """The cases of one shape: memory first, in a pass of its own, then time."""
    shape = shapes[at]
    student, teacher = maps(shape)
    label = "x".join(map(str, shape))
    warmup = 2
    done = at * (rounds + warmup)

    def clear() -> None:
        student.grad = None

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, len(shapes) * (rounds + warmup))

    calls = {name: _step(variant, student, teacher) for name, variant in variants.items()}
    peaks = {}
    for name, call in calls.items():
        clear()
        call()  # compiles, where the check against float64 has left something to compile
        clear()
        peaks[name] = runner.peak_extra_bytes(call)
    timings = runner.interleave(calls, rounds=rounds, warmup=warmup, between=clear, tick=tick)
    reference = timings[REFERENCE]
    size = math.prod(shape) * student.element_size()
    return [
        BenchCase(
            name=label,
            variant=name,
            median_seconds=timing.median,
            ratio=reference.median / timing.median,
            peak_bytes=peaks[name],
            error=errors[shape][name].value,
            samples=timing.wall,
            extra={
                "gradient_error": errors[shape][name].gradient,
                "cpu_seconds": timing.cpu_median,
                "cpu_ratio": reference.cpu_median / timing.cpu_median,
                "peak_maps": peaks[name] / size,
                "temperature": TEMPERATURE,
            },
        )
        for name, timing in timings.items()
    ]


def _step(variant: Callable[[Tensor, Tensor], Tensor], student: Tensor, teacher: Tensor) -> Callable[[], None]:
    """Forward and backward, as a training step does them."""

    def step() -> None:
        torch.autograd.backward(variant(student, teacher))

    return step
