"""What a process holds while runs go on: memory, open files, threads, objects; and how fast each of them grows.

Freed memory is not given back to the system for the measurement, and Python's collector is called only where asked.
"""

from __future__ import annotations

import gc
import os
import statistics
import time
from collections.abc import Sequence
from dataclasses import astuple, dataclass, fields
from itertools import pairwise
from typing import Any

import psutil
import torch

from densekd.errors import ArgumentError

MB = 1e6
#: megabytes of resident memory in 1,000 steps, under which a run counts as flat
ALLOWED = 1.0
#: share of the readings that is left out at the start
WARM_UP = 0.2
#: parts of a series, each of which is left out once for the slope's spread
PARTS = 5


@dataclass(frozen=True)
class Reading:
    """One look at this process.

    `rss`, `own` and `children_rss` in bytes. `own` is resident memory without the pages of files and what is shared,
    which the system takes and gives back as it likes (Linux; elsewhere as `rss`); the last is the sum over the
    processes below this one, in which shared pages count several times. `files`: open descriptors (handles on
    Windows); `objects`: what Python's collector tracks; `tensors`: torch's tensors among them.
    """

    step: int
    seconds: float
    rss: int
    own: int
    children_rss: int
    children: int
    files: int
    threads: int
    objects: int
    tensors: int


NAMES = tuple(field.name for field in fields(Reading))


@dataclass(frozen=True)
class Slope:
    """Growth in 1,000 steps by least squares; the smallest and largest such slope with one of five parts left out."""

    value: float
    low: float
    high: float
    n: int


def read(step: int) -> Reading:
    """Look at this process now."""
    process = psutil.Process()
    with process.oneshot():
        memory, threads = process.memory_info(), process.num_threads()
        files = process.num_handles() if os.name == "nt" else process.num_fds()
    below = [_rss(child) for child in process.children(recursive=True)]
    kinds = list(map(type, gc.get_objects()))  # of the types alone: some objects answer to anything that is asked
    tensors = sum(issubclass(kind, torch.Tensor) for kind in kinds)
    own = memory.rss - getattr(memory, "shared", 0)
    running = sum(size > 0 for size in below)
    return Reading(step, time.monotonic(), memory.rss, own, sum(below), running, files, threads, len(kinds), tensors)


def _rss(child: psutil.Process) -> int:
    try:
        return int(child.memory_info().rss)
    except psutil.Error:  # it has ended meanwhile
        return 0


class Gauge:
    """Reads at regular steps.

    Args:
        every: steps between readings.
        collect: call Python's collector before each.
    """

    def __init__(self, every: int, *, collect: bool = False) -> None:
        if every < 1:
            raise ArgumentError(f"expected a reading after a whole number of steps from 1, got {every!r}")
        self.every, self.collect, self.readings = every, collect, list[Reading]()

    def step(self, taken: int) -> None:
        """Step number `taken` is over."""
        if taken % self.every == 0:
            if self.collect:
                gc.collect()
            self.readings.append(read(taken))


def settled(readings: Sequence[Reading]) -> Sequence[Reading]:
    """The readings after warm-up: without the first fifth.

    Raises:
        ArgumentError: too few are left for a slope with each part left out once.
    """
    rest = readings[int(WARM_UP * len(readings)) :]
    if len(rest) < 2 * PARTS:
        raise ArgumentError(f"{len(rest)} readings after warm-up, expected {2 * PARTS} or more: take more steps")
    return rest


def slope(steps: Sequence[float], values: Sequence[float]) -> Slope:
    """How fast values grow with the steps, in their unit in 1,000 steps."""
    if len(steps) != len(values) or len(steps) < 2 * PARTS:
        raise ArgumentError(f"expected {2 * PARTS} values or more and as many steps, got {len(values)}, {len(steps)}")
    edges = [round(part * len(steps) / PARTS) for part in range(PARTS + 1)]
    without = [
        _fit([*steps[:first], *steps[last:]], [*values[:first], *values[last:]]) for first, last in pairwise(edges)
    ]
    return Slope(_fit(steps, values), min(without), max(without), len(steps))


def _fit(steps: Sequence[float], values: Sequence[float]) -> float:
    return 1000 * statistics.linear_regression(steps, values).slope


def growth(readings: Sequence[Reading]) -> dict[str, Any]:
    """Figures of a series, for a record: everything after warm-up.

    `own_slope`, `rss_slope`, `children_slope`: megabytes (1e6 bytes) in 1,000 steps, with the spread of `Slope` beside
    the first; `objects_slope`, `tensors_slope`: so many in 1,000 steps; and the extremes of the counts. `met`: own
    memory and that of the processes below grow by less than a megabyte in 1,000 steps, and the second half of the
    series never has more open files or threads than the first had.
    """
    rest = settled(readings)
    steps = [float(reading.step) for reading in rest]
    own, rss = (slope(steps, [getattr(one, name) / MB for one in rest]) for name in ("own", "rss"))
    children = slope(steps, [reading.children_rss / MB for reading in rest])
    objects, tensors = (slope(steps, [float(getattr(one, name)) for one in rest]) for name in ("objects", "tensors"))
    files = [reading.files for reading in rest]
    threads = [reading.threads for reading in rest]
    return {
        "steps": readings[-1].step,
        "readings": len(rest),
        "own_slope": own.value,
        "own_slope_low": own.low,
        "own_slope_high": own.high,
        "own_mean": statistics.mean(reading.own for reading in rest) / MB,
        "own_sd": statistics.stdev(reading.own for reading in rest) / MB,
        "own_last": rest[-1].own / MB,
        "rss_slope": rss.value,
        "rss_last": rest[-1].rss / MB,
        "children_slope": children.value,
        "children_most": max(reading.children for reading in rest),
        "children_rss_most": max(reading.children_rss for reading in rest) / MB,
        "files_most": max(files),
        "files_last": files[-1],
        "threads_most": max(threads),
        "threads_last": threads[-1],
        "objects_slope": objects.value,
        "tensors_slope": tensors.value,
        "tensors_last": rest[-1].tensors,
        "met": max(own.value, children.value) < ALLOWED and _flat(files) and _flat(threads),
        "columns": list(NAMES),
        "series": [list(astuple(reading)) for reading in readings],
    }


def _flat(counts: Sequence[int]) -> bool:
    half = len(counts) // 2
    return max(counts[half:]) <= max(counts[:half])
