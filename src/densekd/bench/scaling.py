"""`densekd bench scaling`: how time and memory of every distillation loss grow with N, C, H and W.

Forward and backward on ready class maps, as in `densekd bench methods`: around a base map each size is doubled
several times while the others stay. The channels are the classes. A cheap loss goes to larger maps than a dear one:
on small ones what a call costs anyway would hide how it grows.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
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
#: fewest and most; more than the fewest only while a call takes less than `_LONG` seconds
DOUBLINGS = (3, 5)
#: to see that it works
QUICK_MAP: Shape = (2, 4, 16, 16)
QUICK_DOUBLINGS = (2, 2)
#: the method that has to be linear
LINEAR = "channelwise"
_WARMUP, _LONG = 1, 0.05


@dataclass
class _Sized:
    """A method on one map: what changed against the base, the map's shape, and the loss bound to it."""

    axis: str
    shape: Shape
    one: Contender


def run(
    *,
    methods: Sequence[str] | None = None,
    base: Shape = BASE_MAP,
    doublings: tuple[int, int] = DOUBLINGS,
    threads: int = 1,
    rounds: int = 5,
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
        doublings: how many times at least, and at most for a loss that is quick.
        threads: of torch, restored afterwards.
        rounds: samples of each method and map.
        judge: write into the record's environment whether channelwise is linear; on small maps what a call costs
            anyway hides it.
        progress: called with (parts done, in all).
        command: kept in the record.

    Raises:
        ArgumentError: an unknown method, a bad shape or number.
        DensekdError: a loss gives a value or a gradient that is zero or not finite.
    """
    names = list(METHODS) if methods is None else list(methods)
    check_names(names)
    if len(base) != 4 or min(base) < 1 or not 1 <= doublings[0] <= doublings[1]:
        raise ArgumentError(
            "expected a base (N, C, H, W) of sizes from 1, and doublings from 1, fewest and most; got "
            f"{tuple(base)} and {tuple(doublings)}"
        )
    parts = 2 + _WARMUP + rounds  # the maps, memory, rounds
    total, done = len(names) * parts, 0

    def tick(steps: int = 1) -> None:
        nonlocal done
        done += steps
        if progress is not None:
            progress(done, total)

    load, cases, notes = runner.machine_load(), list[BenchCase](), dict[str, str]()
    with runner.use_threads(threads), own_randomness(torch.device("cpu")):
        for name in names:
            try:
                found = _contenders(name, base, doublings)
            except DensekdError as error:
                notes[f"left out: {name}"] = str(error)
                tick(parts)
            else:
                tick()
                cases += _measure(found, rounds, tick)
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


def _grown(base: Shape, place: int, doubling: int) -> Shape:
    sizes = list(base)
    sizes[place] <<= doubling
    return sizes[0], sizes[1], sizes[2], sizes[3]


def _words(shape: Shape) -> str:
    return "x".join(map(str, shape))


def _contenders(name: str, base: Shape, doublings: tuple[int, int]) -> dict[str, _Sized]:
    """The method on every map, by the name of the case; called once where that decides how far an axis goes."""
    found = {f"{BASE}:{_words(base)}": _Sized(BASE, base, _bound(name, base))}
    fewest, most = doublings
    for place, axis in enumerate(AXES):
        seconds = 0.0
        for doubling in range(1, most + 1):
            if doubling > fewest and seconds > _LONG:
                break
            shape = _grown(base, place, doubling)
            one = _bound(name, shape)
            found[f"{axis}:{_words(shape)}"] = _Sized(axis, shape, one)
            if doubling >= fewest:
                begin = time.process_time()
                one()
                seconds = time.process_time() - begin
                one.clear()
    return found


def _bound(name: str, shape: Shape) -> Contender:
    student, teacher, labels = make_maps(shape, shape[1], torch.device("cpu"))
    return contender(name, student, teacher, labels, shape[1])


def _measure(found: dict[str, _Sized], rounds: int, tick: Callable[[], None]) -> list[BenchCase]:
    """The cases of one method: memory first, in a pass of its own, then time."""

    def clear() -> None:
        for sized in found.values():
            sized.one.clear()

    peaks = {}
    for label, sized in found.items():
        clear()
        peaks[label] = sized.one.held_bytes() + runner.peak_extra_bytes(sized.one)
        sized.one.require_effect(label)
    tick()
    calls = {label: sized.one for label, sized in found.items()}
    timings = runner.interleave(calls, rounds=rounds, warmup=_WARMUP, between=clear, tick=tick)
    cases = [_case(label, found[label], timing, peaks[label]) for label, timing in timings.items()]
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


def _case(label: str, sized: _Sized, timing: runner.Timing, peak: int) -> BenchCase:
    one = sized.one
    return BenchCase(
        name=label,
        variant=one.name,
        median_seconds=timing.median,
        ratio=None,
        peak_bytes=peak,
        samples=timing.wall,
        extra={
            "axis": sized.axis,
            "shape": list(sized.shape),
            "cpu_seconds": timing.cpu_median,
            "cpu_samples": timing.cpu,
            "peak_maps": peak / (4 * math.prod(sized.shape)),
            "cost": "not stated" if one.loss is None else one.loss.cost or "not stated",
        },
    )
