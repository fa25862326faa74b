"""What the training thread of a process is at, for threads that watch it."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NamedTuple


class Mark(NamedTuple):
    """What a thread was at from a moment on.

    Attributes:
        step: counted from 1; 0 before training.
        order: grows with every mark of a step; processes that do the same have the same marks.
        what: in words.
        waiting: it waits for the other processes, and cannot be what they wait for.
        patient: work that may take long without a mark in between.
        since: of the monotonic clock, in seconds.
    """

    step: int
    order: int
    what: str
    waiting: bool
    patient: bool
    since: float


class Pulse:
    """The newest mark. To set it is one assignment: who reads it sees the one before or the one after."""

    def __init__(self) -> None:
        self.now = Mark(0, 0, "starting", False, False, time.monotonic())

    def at(self, what: str, *, step: int | None = None, patient: bool = False) -> None:
        """From now on the thread is at `what`.

        Args:
            step: begins this step; None: within the one before.
            patient: as of `Mark`.
        """
        before = self.now
        number, order = (before.step, before.order + 1) if step is None else (step, 0)
        self.now = Mark(number, order, what, False, patient, time.monotonic())

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """Inside the block the thread waits for the other processes; after it, it is at what it was at before."""
        step, order, what, waiting, patient, _ = self.now
        self.now = Mark(step, order + 1, what, True, patient, time.monotonic())
        try:
            yield
        finally:
            self.now = Mark(step, self.now.order + 1, what, waiting, patient, time.monotonic())
