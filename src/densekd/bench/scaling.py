"""`densekd bench scaling`: how time and memory of every distillation loss grow with N, C, H and W.

Forward and backward on ready class maps, as in `densekd bench methods`: around a base map each size is doubled
several times while the others stay. The channels are the classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch

from densekd.bench import runner
from densekd.bench.contender import Contender, Shape, contender, make_maps
from densekd.bench.exponents import AXES, BASE, FITTED, along, exponent, exponents, verdict
from densekd.bench.methods import check_names, own_randomness
from densekd.errors import ArgumentError, DensekdError
from densekd.losses.catalog import METHODS
from densekd.records import BenchCase, BenchRecord

BASE_MAP: Shape = (2, 32, 64, 64)
DOUBLINGS = 3
#: to see that it works
QUICK_MAP: Shape = (2, 4, 16, 16)
QUICK_DOUBLINGS = 2
#: the method that has to be linear
LINEAR = "channelwise"
_WARMUP = 1


def run(
    *,
    methods: Sequence[str] | None = None,
    base: Shape = BASE_MAP,
    doublings: int = DOUBLINGS,
    threads: int = 1,
    rounds: int = 7,
    judge: bool = True,
    progress: runner.Progress | None = None,
    command: str = "densekd bench scaling",
) -> BenchRecord:
    """Measure the losses with their default options on every map, on the CPU.

    The sizes of one method take turns, so that a busy moment meets them alike. A method that refuses one of the maps
    is left out, and the record's environment says why. The largest case of each axis holds the fit
    (`densekd.bench.exponents`) in `extra`.

    Args:
        methods: names of the catalog; None: all.
        base: (N, C, H, W) from which each size is doubled.
        doublings: how many times; a fit needs one, the usual three.
        threads: of torch, restored afterwards.
        rounds: samples of each method and map.
        judge: write into the record's environment whether channelwise is linear; on small maps what a call costs
            anyway hides it.
        progress: called with (calls and rounds done, in all).
        command: kept in the record.

    Raises:
        ArgumentError: an unknown method, a bad shape or number.
        DensekdError: a loss gives a value or a gradient that is zero or not finite.
    """
    names = list(METHODS) if methods is None else list(methods)
    check_names(names)
    if len(base) != 4 or min(base) < 1 or doublings < 1:
        raise ArgumentError(
            f"expected a base (N, C, H, W) of sizes from 1 and doublings from 1, got {tuple(base)} and {doublings}"
        )
    shapes = _shapes(base, doublings)
    total, done = len(names) * (len(shapes) + _WARMUP + rounds), 0

    def tick(steps: int = 1) -> None:
        nonlocal done
        done += steps
        if progress is not None:
            progress(done, total)

    load, cases, notes = runner.machine_load(), list[BenchCase](), dict[str, str]()
    with runner.use_threads(threads), own_randomness(torch.device("cpu")):
        for name in names:
            before = done
            try:
                found = _contenders(name, shapes)
            except DensekdError as error:
                notes[f"left out: {name}"] = str(error)
            else:
                cases += _measure(found, shapes, rounds, tick)
            tick(before + len(shapes) + _WARMUP + rounds - done)
    record = runner.make_record(
        "scaling", device="cpu", threads=threads, command=command, load=load, cases=cases, notes=notes
    )
    if judge:
        record.environment.update(_verdict(record))
    return record


def rows(record: BenchRecord) -> list[dict[str, Any]]:
    """One flat row per method, for a table: exponents of CPU time with those of single rounds, and of memory."""
    cost = {case.variant: case.extra["cost"] for case in record.cases}
    return [
        {
            "method": method,
            **{f"time, {axis}": f"{fit.time:.2f} ({fit.low:.2f} to {fit.high:.2f})" for axis, fit in fits.items()},
            **{f"memory, {axis}": round(fit.memory, 2) for axis, fit in fits.items()},
            "grows as": cost[method],
        }
        for method, fits in exponents(record).items()
    ]


def left_out(record: BenchRecord) -> list[str]:
    """A line for each method that refused a map."""
    return [f"{name}: {why}" for name, why in record.environment.items() if name.startswith("left out")]


def _verdict(record: BenchRecord) -> dict[str, str]:
    fits = exponents(record).get(LINEAR)
    return {} if fits is None else {"linear": verdict(list(fits.values()))}


def _shapes(base: Shape, doublings: int) -> dict[str, tuple[str, Shape]]:
    """What changed and the shape, by the name of the case."""
    found: dict[str, tuple[str, Shape]] = {f"{BASE}:{_words(base)}": (BASE, base)}
    for place, axis in enumerate(AXES):
        for doubling in range(1, doublings + 1):
            sizes = list(base)
            sizes[place] <<= doubling
            shape = (sizes[0], sizes[1], sizes[2], sizes[3])
            found[f"{axis}:{_words(shape)}"] = (axis, shape)
    return found


def _words(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _contenders(name: str, shapes: dict[str, tuple[str, Shape]]) -> dict[str, Contender]:
    found = {}
    for label, (_, shape) in shapes.items():
        student, teacher, labels = make_maps(shape, shape[1], torch.device("cpu"))
        found[label] = contender(name, student, teacher, labels, shape[1])
    found[next(iter(found))]()  # what refuses a map only when it sees one
    return found


def _measure(
    found: dict[str, Contender], shapes: dict[str, tuple[str, Shape]], rounds: int, tick: Callable[[], None]
) -> list[BenchCase]:
    """The cases of one method: memory first, in a pass of its own, then time."""

    def clear() -> None:
        for one in found.values():
            one.clear()

    peaks = {}
    for label, one in found.items():
        clear()
        peaks[label] = one.held_bytes() + runner.peak_extra_bytes(one)
        one.require_effect(label)
        tick()
    timings = runner.interleave(found, rounds=rounds, warmup=_WARMUP, between=clear, tick=tick)
    cases = [_case(label, *shapes[label], found[label], timing, peaks[label]) for label, timing in timings.items()]
    for axis in AXES:
        fit = exponent(cases, axis)
        along(cases, axis)[-1].extra.update(
            exponent=fit.time,
            exponent_low=fit.low,
            exponent_high=fit.high,
            memory_exponent=fit.memory,
            fitted=f"the {min(FITTED, len(fit.sizes))} largest: {axis} = {', '.join(map(str, fit.sizes))}",
        )
    return cases


def _case(label: str, axis: str, shape: Shape, one: Contender, timing: runner.Timing, peak: int) -> BenchCase:
    return BenchCase(
        name=label,
        variant=one.name,
        median_seconds=timing.median,
        ratio=None,
        peak_bytes=peak,
        samples=timing.wall,
        extra={
            "axis": axis,
            "shape": list(shape),
            "cpu_seconds": timing.cpu_median,
            "cpu_samples": timing.cpu,
            "peak_maps": peak / (4 * math.prod(shape)),
            "cost": "not stated" if one.loss is None else one.loss.cost or "not stated",
        },
    )
