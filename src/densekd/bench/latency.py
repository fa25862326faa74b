"""`densekd bench latency`: a run's teacher, its student and the exported student, on this machine.

One image at a time (median, 95th percentile), images per second at the best of a few batch sizes, memory of the forward
pass, size of the file. The contestants take turns, so that a slow minute hits them alike; a turn is one call that is
not counted and several that are, so that each runs as it would alone, its weights in the cache.
"""

from __future__ import annotations

import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch

from densekd.bench import runner
from densekd.bench.latency_contestants import FORMATS, STUDENT, Contestant, Gathering, check_given, size_of
from densekd.bench.latency_memory import resident_growth
from densekd.bench.latency_right import off_by
from densekd.bench.step import choose_device
from densekd.errors import ArgumentError
from densekd.inspection.subject import Size
from densekd.records import BenchCase, BenchRecord

BATCHES = (1, 2, 4, 8)
SECONDS = 10.0
_ROUNDS = 7
_MOST_CALLS = 40


@dataclass
class Turns:
    """Seconds of every counted call of one contestant at one batch size; `cpu` is the process's time per call."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)


def run(
    given: Sequence[str],
    *,
    sizes: Sequence[Size] | None = None,
    batches: Sequence[int] = BATCHES,
    formats: Sequence[str] = FORMATS,
    device: str = "cpu",
    threads: int = 1,
    seconds: float = SECONDS,
    progress: runner.Progress | None = None,
    command: str = "densekd bench latency",
    trust: bool = False,
) -> BenchRecord:
    """Measure everything that was given at every size.

    Args:
        given: folders of runs (their teacher, student, and exports of the student made for this), exported files, names
            of models.
        sizes: heights and widths; None: that of the first run's recipe.
        batches: images in a call; latency is taken at 1, which is always among them.
        formats: exports to make of every run: `onnx`, `pt2`.
        device: "cpu", "cuda", or "auto", which is CUDA where there is one.
        threads: of one call, on the CPU.
        seconds: about how long each size and batch size is measured, all contestants together.
        progress: called with (parts done, in all).
        command: kept in the record.
        trust: execute code that a run or a file names, though it was not made here.

    Raises:
        ArgumentError: a number, a device or a name that cannot be.
        DensekdError: something cannot be loaded, or an exported file gives something else than its student; then
            nothing is timed.
    """
    check_given(given, formats)
    counts = _checked(sizes, batches, seconds)
    place = choose_device(device)
    chosen = list(sizes) if sizes is not None else [size_of(given, trust=trust)]
    ticks = _ticks(progress, len(chosen) * (len(given) + 1 + len(counts) * (_ROUNDS + 1)))
    load, cases, notes = runner.machine_load(), list[BenchCase](), list[str]()
    with runner.use_threads(threads), tempfile.TemporaryDirectory(prefix="densekd-latency-") as folder:
        for number, size in enumerate(chosen):
            inside = Path(folder) / str(number)
            inside.mkdir()
            gathered = Gathering(size, place, threads, inside, trust=trust)
            for text in given:
                gathered.add(text, formats)
                next(ticks)
            gathered.relate()
            notes += gathered.notices
            cases += _measured(gathered.contestants, counts, seconds, ticks)
    shown = "cpu" if place.type == "cpu" else torch.cuda.get_device_name(place)
    about = {"notices": "; ".join(dict.fromkeys(notes)) or "none", "memory": _about_memory(place)}
    return runner.make_record(
        "latency", device=shown, threads=threads, command=command, load=load, cases=cases, notes=about
    )


def rows(record: BenchRecord) -> list[dict[str, Any]]:
    """One flat row per case, for a table."""
    return [
        {
            "network": case.name,
            "variant": case.variant,
            "ms": round(1e3 * case.median_seconds, 2),
            "p95 ms": round(1e3 * case.extra["p95_seconds"], 2),
            "times the teacher": None if case.ratio is None else round(case.ratio, 2),
            "images/s": round(case.extra["images_per_second"], 1),
            "at batch": case.extra["best_batch"],
            "memory (MB)": None if case.peak_bytes is None else round(case.peak_bytes / 1e6, 1),
            "file (MB)": round(case.extra["file_bytes"] / 1e6, 2),
            "error": _error(case),
        }
        for case in record.cases
    ]


def _error(case: BenchCase) -> str | None:
    """Of a file; networks in torch are compared with nothing."""
    if not case.variant.removeprefix(f"{STUDENT} ").startswith(FORMATS):
        return None
    return "not compared" if case.error is None else f"{case.error:.1e}"


def busy(record: BenchRecord, cpus: int) -> str | None:
    """A line where other programs used a good part of the CPUs when the measurement began."""
    if not record.load or record.load[0] < 0.5 * cpus:
        return None
    return (
        f"load average {record.load[0]:g} on {cpus} CPUs: other programs compute here, so times are too long (ratios "
        "less so); measure in a quiet hour"
    )


def turns(
    calls: dict[str, Callable[[], object]], *, seconds: float, rounds: int = _ROUNDS, tick: Callable[[], None]
) -> dict[str, Turns]:
    """Time calls in turns, forwards and backwards alternately, about `seconds` in all.

    Every turn begins with a call that is not counted; the counted ones share the time evenly over contestants, at least
    one and at most 40 a turn.

    Args:
        calls: what to call, by name; each waits for its result.
        tick: called after every round, the first one (which sets the number of calls) included.
    """
    share = seconds / (rounds * len(calls))
    each = {name: min(_MOST_CALLS, max(1, int(share / _once(call)))) for name, call in calls.items()}
    tick()
    found, order = {name: Turns() for name in calls}, list(calls)
    for _ in range(rounds):
        for name in order:
            calls[name]()
            for _ in range(each[name]):
                cpu, wall = time.process_time(), time.perf_counter()
                calls[name]()
                found[name].wall.append(time.perf_counter() - wall)
                found[name].cpu.append(time.process_time() - cpu)
        order.reverse()
        tick()
    return found


def _once(call: Callable[[], object]) -> float:
    """Seconds of a second call."""
    call()
    begin = time.perf_counter()
    call()
    return max(1e-6, time.perf_counter() - begin)


def _checked(sizes: Sequence[Size] | None, batches: Sequence[int], seconds: float) -> list[int]:
    """The batch sizes with 1 among them."""
    for size in sizes or ():
        if min(size) < 1:
            raise ArgumentError(f"sizes: expected heights and widths from 1, got {size[0]}x{size[1]}")
    if sizes is not None and not sizes:
        raise ArgumentError("sizes: expected at least one, for instance 512x1024")
    if any(isinstance(batch, bool) or batch < 1 for batch in batches):
        raise ArgumentError(f"batch sizes: expected whole numbers from 1, got {list(batches)}")
    if not seconds > 0:
        raise ArgumentError(f"seconds: expected a positive number, got {seconds}")
    return sorted({1, *batches})


def _measured(
    contestants: Sequence[Contestant], batches: Sequence[int], seconds: float, ticks: Iterator[None]
) -> list[BenchCase]:
    """The cases of one size: memory in each one's first call, outputs compared, then time."""
    peaks = [_peak(one) for one in contestants]
    errors = [off_by(one) for one in contestants]
    next(ticks)
    timed: dict[int, list[Turns]] = {}
    for batch in batches:
        calls = {str(place): _call(one, batch) for place, one in enumerate(contestants)}
        timed[batch] = list(turns(calls, seconds=seconds, tick=lambda: next(ticks)).values())
    places = {id(one): place for place, one in enumerate(contestants)}
    return [
        _case(
            one,
            {batch: timed[batch][place] for batch in batches},
            None if one.reference is None else timed[1][places[id(one.reference)]],
            peaks[place],
            errors[place],
        )
        for place, one in enumerate(contestants)
    ]


def _call(one: Contestant, batch: int) -> Callable[[], object]:
    images = one.images(batch)

    def call() -> None:
        one.call(images)
        if one.device.type == "cuda":
            torch.cuda.synchronize(one.device)

    return call


def _peak(one: Contestant) -> int | None:
    call = _call(one, 1)
    if one.device.type == "cuda":
        return runner.peak_extra_bytes(call, one.device)
    return resident_growth(call)


def _case(
    one: Contestant, timed: dict[int, Turns], reference: Turns | None, peak: int | None, error: float | None
) -> BenchCase:
    medians = {batch: float(np.median(found.wall)) for batch, found in timed.items()}
    rates = {batch: batch / median for batch, median in medians.items()}
    best = max(rates, key=lambda batch: rates[batch])
    single = timed[1]
    return BenchCase(
        name=f"{one.label}:{one.size[0]}x{one.size[1]}",
        variant=one.variant,
        median_seconds=medians[1],
        ratio=1.0 if one.variant == "teacher" else None if reference is None else _ratio(reference, single),
        peak_bytes=peak,
        error=error,
        samples=[round(value, 7) for value in single.wall],
        extra={
            "p95_seconds": float(np.percentile(single.wall, 95)),
            "cpu_seconds": float(np.median(single.cpu)),
            "images_per_second": rates[best],
            "best_batch": best,
            "by_batch": {str(batch): rate for batch, rate in rates.items()},
            "file_bytes": one.file_bytes,
            "parameters": one.parameters,
            "flops": one.flops,
            "runs_by": one.how,
            "calls": {str(batch): len(found.wall) for batch, found in timed.items()},
        },
    )


def _ratio(reference: Turns, own: Turns) -> float:
    return float(np.median(reference.wall) / np.median(own.wall))


def _about_memory(device: torch.device) -> str:
    if device.type == "cuda":
        return "the most that torch's allocator held during a call of one image, beyond what it held before"
    return "growth of this process's resident memory during the first call of one image, weights not included"


def _ticks(progress: runner.Progress | None, total: int) -> Iterator[None]:
    for done in range(1, total + 1):
        if progress is not None:
            progress(done, total)
        yield
