"""Processes that make their part of a step long after the others: who waited for whom, and when that is told."""

from __future__ import annotations

import statistics
import time
from collections import deque
from collections.abc import Mapping, Sequence
from typing import NamedTuple

from densekd.training.numbers import MOST_LINES, WINDOW, is_spike

NOTICED = 1.0
"""Seconds of waiting below which nothing is said."""
_APART = 600.0
"""Seconds between two lines about one process."""
KEPT = 32
"""Newest waits that a process tells the others."""


class Wait(NamedTuple):
    """One long wait: the step, its seconds, and how long a step usually takes here without waiting."""

    step: int
    seconds: float
    usual: float


class Waits:
    """The long waits of this process for the others."""

    def __init__(self) -> None:
        self._work: deque[float] = deque(maxlen=WINDOW)
        self.taken = 0
        self.long: deque[Wait] = deque(maxlen=KEPT)

    def note(self, step: int, seconds: float, waited: float) -> None:
        """A step of so many seconds, of which this process waited for the others.

        A wait counts as long from a second on, where it lies as far above the work of the 100 steps before as a loss
        would to be a spike: `waited > median + 10 * 1.4826 * MAD` and `waited > 2 * median`, over at least 20 steps.
        """
        if waited >= NOTICED:
            work = list(self._work)
            if is_spike(waited, work):
                self.long.append(Wait(step, waited, statistics.median(work)))
        self._work.append(max(seconds - waited, 1e-9))
        self.taken = step


class Late:
    """What is told of processes that the others wait for; one place has the waits of all.

    Args:
        world: number of processes.
    """

    def __init__(self, world: int) -> None:
        self.world = world
        self._judged = 0
        self._said_at: dict[int, float] = {}
        self._counts: dict[int, tuple[int, float]] = {}
        self._lines = 0
        self._untold = False

    def lines(self, taken: Mapping[int, int], waits: Mapping[int, Sequence[Wait]]) -> list[str]:
        """Lines to say now: at most one in ten minutes about a process, and 20 in all.

        A process is late at a step where at least half of the processes waited long, and it did not.

        Args:
            taken: the last step that each process has told of.
            waits: the long waits of each.
        """
        last = min((taken.get(rank, 0) for rank in range(self.world)), default=0)
        found = {wait.step for ones in waits.values() for wait in ones if self._judged < wait.step <= last}
        said = []
        for step in sorted(found):
            at = {rank: wait for rank, ones in waits.items() for wait in ones if wait.step == step}
            late = [rank for rank in range(self.world) if rank not in at]
            if late and 2 * len(at) >= self.world:
                said += [line for rank in late if (line := self._late(rank, step, list(at.values()))) is not None]
        self._judged = max(self._judged, last)
        return said

    def last_words(self) -> list[str]:
        """What is told at the end, where not every late step had its line."""
        if not self._untold:
            return []
        return [
            f"process {rank} was late in {count} steps in all: the others waited {seconds:.1f} s for it"
            for rank, (count, seconds) in sorted(self._counts.items())
        ]

    def _late(self, rank: int, step: int, waits: list[Wait]) -> str | None:
        seconds, usual = (
            statistics.median(values) for values in zip(*((w.seconds, w.usual) for w in waits), strict=True)
        )
        count, before = self._counts.get(rank, (0, 0.0))
        self._counts[rank] = (count + 1, before + seconds)
        now = time.monotonic()
        if now - self._said_at.get(rank, -_APART) < _APART or self._lines >= MOST_LINES:
            self._untold = True
            return None
        self._said_at[rank] = now
        self._lines += 1
        return (
            f"process {rank} of {self.world} was late at step {step}: the others waited {seconds:.1f} s for it (a step "
            f"takes {usual:.2g} s without waiting, the median of the steps before)"
        )
