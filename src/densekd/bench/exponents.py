"""How a cost grows: exponents fitted to the cases of `densekd bench scaling`.

Time is the process's CPU time, which other processes disturb less than wall time.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, get_args

from densekd.errors import ArgumentError
from densekd.records import BenchCase, BenchRecord

Axis = Literal["N", "C", "H", "W"]

AXES: tuple[Axis, ...] = get_args(Axis)
BASE = "base"
#: how many sizes of an axis are fitted, from the largest down: at the small ones what a call costs anyway weighs more
FITTED = 3
#: exponents that count as linear: of time, and of memory, which is counted and not timed
TIME_BAND, MEMORY_BAND = (0.85, 1.15), (0.98, 1.02)


@dataclass(frozen=True)
class Exponent:
    """Cost of a method as size^exponent along one axis.

    `time` is fitted to the medians of the largest `sizes`; `low` and `high` are the smallest and largest exponent of
    single rounds. `memory` is fitted to what each doubling of all sizes adds: a workspace of fixed size does not count.
    """

    method: str
    axis: Axis
    time: float
    low: float
    high: float
    memory: float
    sizes: tuple[int, ...]

    def linear(self) -> bool:
        """Whether time and memory grow with exponents that count as 1."""
        return TIME_BAND[0] <= self.time <= TIME_BAND[1] and MEMORY_BAND[0] <= self.memory <= MEMORY_BAND[1]


def slope(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The least-squares slope of log(cost) over log(size).

    Raises:
        ArgumentError: fewer than two different sizes, or something that is not above 0.
    """
    if len(sizes) != len(costs) or len(set(sizes)) < 2 or min(*sizes, *costs) <= 0:
        raise ArgumentError(f"expected two sizes or more, and costs above 0; got {list(sizes)} and {list(costs)}")
    x, y = ([math.log(value) for value in values] for values in (sizes, costs))
    x_mean, y_mean = sum(x) / len(x), sum(y) / len(y)
    above = sum((a - x_mean) * (b - y_mean) for a, b in zip(x, y, strict=True))
    return above / sum((a - x_mean) ** 2 for a in x)


def growth(sizes: Sequence[float], costs: Sequence[float]) -> float:
    """The exponent e of a cost a + b size^e, from sizes that each are twice the one before.

    What a doubling adds is b (2^e - 1) size^e, whatever the fixed part a. A cost that does not grow has exponent 0; one
    that grows only now and then, or two sizes alone, are fitted as they are.
    """
    added = [after - before for before, after in itertools.pairwise(costs)]
    if costs[-1] <= costs[0]:
        return 0.0
    if len(added) < 2 or min(added) <= 0:
        return slope(sizes, costs)
    return slope(sizes[:-1], added)


def along(cases: Sequence[BenchCase], axis: Axis) -> list[BenchCase]:
    """The cases of one method along one axis, the base first."""
    found = [case for case in cases if case.extra["axis"] in {BASE, axis}]
    return sorted(found, key=lambda case: case.extra["shape"][AXES.index(axis)])


def exponent(cases: Sequence[BenchCase], axis: Axis) -> Exponent:
    """The fit of one method along one axis.

    Args:
        cases: of one method; each with as many samples as the others, those in one place of one round.
        axis: which size changes.

    Raises:
        ArgumentError: fewer than two sizes.
    """
    found = along(cases, axis)
    every = [case.extra["shape"][AXES.index(axis)] for case in found]
    fitted, sizes = found[-FITTED:], every[-FITTED:]
    rounds = [slope(sizes, costs) for costs in zip(*(case.extra["cpu_samples"] for case in fitted), strict=True)]
    return Exponent(
        method=fitted[-1].variant,
        axis=axis,
        time=slope(sizes, [case.extra["cpu_seconds"] for case in fitted]),
        low=min(rounds),
        high=max(rounds),
        memory=growth(every, [case.peak_bytes or 0 for case in found]),
        sizes=tuple(sizes),
    )


def exponents(record: BenchRecord) -> dict[str, dict[Axis, Exponent]]:
    """Every fit of a record, by method and axis."""
    return {
        method: {axis: exponent([case for case in record.cases if case.variant == method], axis) for axis in AXES}
        for method in dict.fromkeys(case.variant for case in record.cases)
    }


def verdict(fits: Sequence[Exponent]) -> str:
    """Whether one method is linear along every axis, and what speaks against it."""
    bands = "time {}..{}, memory {}..{}".format(*TIME_BAND, *MEMORY_BAND)
    against = [f"{fit.axis}: time {fit.time:.2f}, memory {fit.memory:.2f}" for fit in fits if not fit.linear()]
    where = ", ".join(fit.axis for fit in fits)
    if against:
        return f"{fits[0].method} is not linear ({bands}): {'; '.join(against)}"
    return f"{fits[0].method} is linear in {where} ({bands})"
