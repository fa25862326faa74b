"""`densekd bench step`: a whole training step under a teacher, as public codes take it and as densekd does.

Forward pass of the teacher, forward and backward pass of the student with the task's loss and the channel-wise loss on
`logits`, and SGD's update, with all variants in turns. Data loading is no part of it.
"""

from __future__ import annotations

import math
import tempfile
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Any

import torch

from densekd.bench import runner
from densekd.bench.gpu import Target
from densekd.bench.methods import own_randomness
from densekd.bench.step_pairs import Material, Pair, choose_pairs, make_material
from densekd.bench.step_variants import DESCRIBED, PUBLIC, STUDENT, Variant, alone, cached, fast, public
from densekd.errors import ArgumentError, DensekdError, ModelError
from densekd.records import BenchCase, BenchRecord
from densekd.teacher.compiled import check_compiler

SIZE, BATCH = 256, 2
QUICK_SIZE = 64
_WARMUP = 1
#: how far the losses of a variant may be from the public ones, before anything is timed; the textbook's KL of flat maps
#: is itself off by up to a percent in float32, where it takes the difference of two sums that are nearly equal
_TOLERANCE = {"exact": 1e-2, "exact+compile": 1e-2, "cached maps": 2e-2, STUDENT: 1e-3}

#: what is judged on one thread of a CPU at the usual size: the figure, its bound, and whether that is an upper one
_TARGETS = {
    "exact": ("ratio", 1.1, False),
    "teacher bf16, student bf16": ("ratio", 2.0, False),
    "cached maps": ("times_student", 1.15, True),
}
_FIGURES = {"ratio": "speed-up of the step", "times_student": "times the student's plain step"}

Maker = Callable[[Material], Variant]


def run(
    *,
    pairs: Sequence[str] = ("pspnet", "deeplabv3"),
    device: str = "cpu",
    threads: int = 1,
    rounds: int = 5,
    size: int | None = None,
    batch: int = BATCH,
    quick: bool = False,
    compiled: bool = True,
    progress: runner.Progress | None = None,
    command: str = "densekd bench step",
) -> BenchRecord:
    """Measure every variant on every pair of networks, on one device.

    Args:
        pairs: names of `densekd.bench.step_pairs.PAIRS`.
        device: "cpu", "cuda", or "auto", which is CUDA where there is one.
        threads: of torch on the CPU, restored afterwards.
        rounds: samples of each variant.
        size: height and width of the images; None: 256, or 64 with `quick`.
        batch: images of a step.
        quick: tiny networks, nothing compiled.
        compiled: also measure a compiled teacher, where a C++ compiler is found (the record says).
        progress: called with (parts done, in all).
        command: kept in the record.

    Raises:
        ArgumentError: an unknown pair or device, a bad number.
        DensekdError: a variant gives other losses than the public one; nothing of that pair is timed then.

    Returns:
        The record; on one thread of a CPU at the usual size it also says which targets are met.
    """
    chosen = choose_pairs(pairs, quick=quick)
    place = choose_device(device)
    size = (QUICK_SIZE if quick else SIZE) if size is None else size
    _check_numbers(size, batch, rounds)
    notes = {"compiled": "not asked" if quick or not compiled else _compiler()}
    makers = _makers(compiled=notes["compiled"] == "yes")
    total = len(chosen) * (2 * (len(makers) + 1) + _WARMUP + rounds)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    load, cases = runner.machine_load(), list[BenchCase]()
    with runner.use_threads(threads), own_randomness(place):
        for name, pair in chosen.items():
            notes[f"pair {name}"] = str(pair)
            cases += _measure(name, pair, makers, place, (batch, size), rounds, tick)
    if place.type == "cpu" and (threads, size, batch, quick) == (1, SIZE, BATCH, False):
        notes |= {f"target {target.name}": target.words() for target in targets(cases)}
    shown = "cpu" if place.type == "cpu" else torch.cuda.get_device_name(place)
    return runner.make_record(
        "step", device=shown, threads=threads, command=command, load=load, cases=cases, notes=notes
    )


def choose_device(name: str) -> torch.device:
    """The device.

    Raises:
        ArgumentError: no such device, or CUDA where there is none.
    """
    cuda = torch.cuda.is_available()
    if name not in ("auto", "cpu", "cuda"):
        raise ArgumentError(f"device: expected auto, cpu or cuda, got {name!r}")
    if name == "cuda" and not cuda:
        raise ArgumentError("device: cuda was asked for, but torch sees no CUDA device; use cpu")
    return torch.device("cuda", torch.cuda.current_device()) if name != "cpu" and cuda else torch.device("cpu")


def rows(record: BenchRecord) -> list[dict[str, Any]]:
    """One flat row per case, for a table."""
    return [
        {
            "pair": case.name,
            "variant": case.variant,
            "milliseconds": round(1e3 * case.median_seconds, 1),
            "speed-up": None if case.ratio is None else round(case.ratio, 2),
            "times the student": round(case.extra["times_student"], 2),
            "CPU ms": round(1e3 * case.extra["cpu_seconds"], 1),
            "CPU speed-up": round(case.extra["cpu_ratio"], 2),
            "memory (MB)": None if case.peak_bytes is None else round(case.peak_bytes / 1e6),
            "softened error": case.error,
        }
        for case in record.cases
    ]


def targets(cases: Sequence[BenchCase]) -> list[Target]:
    """What a step under a fast teacher and under stored maps should come to, and whether it does."""
    found = []
    for case in cases:
        if case.variant in _TARGETS:
            figure, wanted, at_most = _TARGETS[case.variant]
            value = case.ratio if figure == "ratio" else case.extra["times_student"]
            found.append(Target(f"{case.name} {case.variant}, {_FIGURES[figure]}", value, wanted, at_most))
    return found


def verdicts(record: BenchRecord) -> list[str]:
    """Of the targets that the record was judged by, one line each."""
    return [words for name, words in record.environment.items() if name.startswith("target ")]


def _check_numbers(size: int, batch: int, rounds: int) -> None:
    for name, value, least in (("size", size, 32), ("batch", batch, 2), ("rounds", rounds, 1)):
        if isinstance(value, bool) or not isinstance(value, int) or value < least:
            raise ArgumentError(f"{name}: expected a whole number from {least}, got {value!r}")
    if size % 32:
        raise ArgumentError(f"size: expected a multiple of 32, which the networks take, got {size}")


def _compiler() -> str:
    try:
        check_compiler()
    except ModelError as error:
        return f"left out: {error}"
    return "yes"


def _makers(*, compiled: bool) -> dict[str, Maker]:
    """The variants that take their turns, but for the one with stored maps."""
    found: dict[str, Maker] = {PUBLIC: public, "exact": partial(fast, "exact", dtype="float32")}
    if compiled:
        found["exact+compile"] = partial(fast, "exact+compile", dtype="float32", compiled=True)
    found["teacher bf16"] = partial(fast, "teacher bf16", dtype="bfloat16")
    both = "teacher bf16, student bf16"
    found[both] = partial(fast, both, dtype="bfloat16", precision="bfloat16")
    found[STUDENT] = alone
    return found


def _measure(
    name: str,
    pair: Pair,
    makers: dict[str, Maker],
    device: torch.device,
    shape: tuple[int, int],
    rounds: int,
    tick: Callable[[], None],
) -> list[BenchCase]:
    """The cases of one pair: the losses compared, memory in a pass of its own, then time."""
    with ExitStack() as held:
        folder = Path(held.enter_context(tempfile.TemporaryDirectory(prefix="densekd-step-")))
        material = make_material(pair, *shape, device)
        variants = list(_made(makers, material, folder, held, tick))
        _require_equal(name, variants)
        peaks = {}
        for one in variants:
            one()  # compiles, and makes the optimiser's state
            peaks[one.name] = runner.peak_extra_bytes(one, device)
            tick()
        timings = runner.interleave({one.name: one for one in variants}, rounds=rounds, warmup=_WARMUP, tick=tick)
        label = f"{name}:{shape[0]}x3x{shape[1]}x{shape[1]}" + (":cuda" if device.type == "cuda" else "")
        return [_case(label, one, timings, peaks[one.name]) for one in variants]


def _made(
    makers: dict[str, Maker], material: Material, folder: Path, held: ExitStack, tick: Callable[[], None]
) -> Iterator[Variant]:
    every: dict[str, Maker] = {**makers, "cached maps": lambda material: cached(material, folder / "maps")}
    for name in DESCRIBED:
        if name in every:
            variant = every[name](material)
            held.callback(variant.close)
            tick()
            yield variant


def _require_equal(name: str, variants: Sequence[Variant]) -> None:
    found = {one.name: one.losses() for one in variants}
    for which, losses in found.items():
        for part, ours in losses.items():
            theirs = found[PUBLIC][part]
            off = abs(ours - theirs) / abs(theirs)
            if not math.isfinite(ours) or off > _TOLERANCE.get(which, math.inf):
                raise DensekdError(
                    f"bench step: {part} of variant {which!r} of {name} is {ours:.6g}, of the public one {theirs:.6g}; "
                    "nothing of this pair was timed"
                )


def _case(label: str, one: Variant, timings: dict[str, runner.Timing], peak: int) -> BenchCase:
    timing, reference, student = timings[one.name], timings[PUBLIC], timings[STUDENT]
    report = one.report
    return BenchCase(
        name=label,
        variant=one.name,
        median_seconds=timing.median,
        ratio=reference.median / timing.median,
        peak_bytes=peak,
        error=one.error,
        samples=timing.wall,
        extra={
            "what": DESCRIBED[one.name],
            "times_student": timing.median / student.median,
            "cpu_seconds": timing.cpu_median,
            "cpu_ratio": reference.cpu_median / timing.cpu_median,
            "cpu_times_student": timing.cpu_median / student.cpu_median,
            "cpu_samples": timing.cpu,
            "teacher": None if report is None else report.as_dict(),
        },
    )
