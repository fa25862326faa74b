"""What a run's own losses say of it while it trains: spikes, terms without effect, steps the loss scaler left out.

All of it is a pure function of the losses of the steps taken, which every process has alike, and stands in the
checkpoint: a resumed run says the same lines at the same steps.
"""

from __future__ import annotations

import statistics
from collections.abc import Collection, Iterable, Mapping
from typing import Any, TypedDict

from densekd.errors import NonFiniteError, SilentTermError

WINDOW, ENOUGH = 100, 20
"""Steps that a value is compared with, and how few of them are enough."""
_DEVIATIONS, _TIMES = 10.0, 2.0
_SIGMA = 1.4826
"""A median absolute deviation times this is the standard deviation of normal values."""
MOST_LINES = 20
"""Spikes that are told one by one; more are counted."""
SILENT_STEPS = 50
"""Steps in a row in which a term may be exactly zero."""
OVERFLOWS = 25
"""Steps in a row that the loss scaler may leave out: it halves its scale at each, from 65536 to below 0.002."""


class Numbers(TypedDict):
    """What is remembered from step to step.

    `recent`: the newest values of the loss and its parts; `zeros`: steps in a row in which a term was exactly zero;
    `empty`: steps in which it had nothing to compare; `overflows`: steps in a row that the scaler left out;
    `lines`: spikes as they were told; `untold`: how many more there were.
    """

    recent: dict[str, list[float]]
    zeros: dict[str, int]
    empty: dict[str, int]
    overflows: int
    lines: list[str]
    untold: int


def remembered(state: Mapping[str, Any]) -> Numbers:
    """The numbers of a checkpoint; nothing where it has none (a start, or a checkpoint of an earlier version)."""
    nothing: Numbers = {"recent": {}, "zeros": {}, "empty": {}, "overflows": 0, "lines": [], "untold": 0}
    return {**nothing, **state}  # type: ignore[typeddict-item]


def is_spike(value: float, before: list[float]) -> bool:
    """Whether a loss lies far above those of the steps before it.

    `value > median + 10 * 1.4826 * MAD` and `value > 2 * median`, over at least 20 and at most 100 steps; MAD is the
    median absolute deviation from the median. Spikes among the steps before move neither. Nothing spikes over a
    median of zero: there a term was off.

    Args:
        value: the loss of a step.
        before: those of the steps before it, the newest last.

    >>> is_spike(9.0, [1.0, 1.2, 0.8, 1.1] * 5), is_spike(1.9, [1.0, 1.2, 0.8, 1.1] * 5), is_spike(9.0, [1.0])
    (True, False, False)
    """
    if len(before) < ENOUGH:
        return False
    median = statistics.median(before)
    if median <= 0 or value <= _TIMES * median:
        return False
    deviation = statistics.median(abs(one - median) for one in before)
    return value > median + _DEVIATIONS * _SIGMA * deviation


def note_losses(numbers: Numbers, taken: int, losses: Mapping[str, float]) -> str | None:
    """Remember the losses of the step that brought the count to `taken`; a line to tell where they spike.

    Args:
        losses: the loss (`loss`) and its parts, by name.
    """
    high = []
    for name, value in losses.items():
        before = numbers["recent"].setdefault(name, [])
        if is_spike(value, before):
            high.append(f"{name} = {value:.4g} (median of the {len(before)} steps before: {_median(before)})")
        before.append(value)
        del before[:-WINDOW]
    if not high:
        return None
    if len(numbers["lines"]) >= MOST_LINES:
        numbers["untold"] += 1
        return None
    line = f"loss spike at step {taken}: {', '.join(high)}"
    numbers["lines"].append(line)
    return line


def note_zeros(
    numbers: Numbers, taken: int, acting: Iterable[str], parts: Mapping[str, float], empty: Collection[str]
) -> None:
    """Count the steps in a row in which a term that should act was exactly zero.

    Args:
        acting: the terms at a weight above 0 in this step.
        parts: weighted values by term.
        empty: of the terms that are zero, those that had nothing to compare: no valid pixel, or no labelled one where
            the term reads labels. These steps are counted apart, and neither end nor lengthen a row.

    Raises:
        SilentTermError: a term was exactly zero in so many steps in a row.
    """
    for name in acting:
        if parts[name] != 0:
            numbers["zeros"].pop(name, None)
        elif name in empty:
            numbers["empty"][name] = numbers["empty"].get(name, 0) + 1
        else:
            numbers["zeros"][name] = numbers["zeros"].get(name, 0) + 1
    silent = [name for name, count in numbers["zeros"].items() if count >= SILENT_STEPS]
    if silent:
        raise SilentTermError(
            f"step {taken}: term {silent[0]!r} was exactly 0 in {SILENT_STEPS} steps in a row and its weight is not: "
            "it has no effect. The maps are equal, have a single position, or a module gives zeros (a dead ReLU); tap "
            "another module, or take the term out. Where it is to end, say so: end_step or decay"
        )


def note_overflow(numbers: Numbers, taken: int, skipped: bool, scale: float | None) -> None:
    """Count the steps in a row that the loss scaler left out because gradients overflowed float16.

    Raises:
        NonFiniteError: so many that its scale has collapsed: nothing is learned any more.
    """
    numbers["overflows"] = numbers["overflows"] + 1 if skipped else 0
    if numbers["overflows"] < OVERFLOWS:
        return
    fallen = "" if scale is None else f" and the loss scale has fallen to {scale:.3g}"
    raise NonFiniteError(
        f"step {taken}: the gradient overflowed float16 in {OVERFLOWS} steps in a row{fallen}: none of them changed a "
        "weight. Use runtime.precision=bfloat16 or float32, or lower the weight of a term"
    )


def last_words(numbers: Numbers, skipped: int, steps: int) -> list[str]:
    """What is told at the end of a run of `steps` steps, of which the loss scaler left `skipped` out."""
    found = [f"{skipped} of {steps} steps were skipped by the loss scaler (overflow)"] if skipped else []
    found += [
        f"term {name!r} had nothing to compare in {count} steps (no valid pixel, or no labelled one)"
        for name, count in numbers["empty"].items()
    ]
    if numbers["untold"]:
        found.append(f"{numbers['untold']} more loss spikes after the first {MOST_LINES}: see log.csv")
    return found


def _median(values: list[float]) -> str:
    return f"{statistics.median(values):.4g}"
