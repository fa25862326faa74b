"""What watches a study, and how a run in another process is watched."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict
from typing import Any, Self

from densekd.records import Scores, dump
from densekd.runs.progress import Quiet
from densekd.training.stepper import StepResult

Send = Callable[[Mapping[str, Any]], None]

_SECONDS_BETWEEN = 0.5


class Silent:
    """Watches a study and shows nothing; the base of those that do."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to take down."""

    def run(self, name: str) -> Quiet:
        """What watches the run (or the check) of this name, which begins."""
        return Quiet()

    def counting(self, what: str, done: int, total: int) -> None:
        """So much of the work before the runs is done."""

    def ended(self, name: str, words: str) -> None:
        """The run of this name ended: how."""

    def counted(self, done: int, total: int) -> None:
        """So many of the study's runs are over."""

    def said(self, line: str) -> None:
        """A line the user must see."""


class Relay(Quiet):
    """In the process of a run: tells what happens to the process that watches. Counts are told twice a second."""

    def __init__(self, send: Send) -> None:
        self._send = send
        self._told: dict[str, float] = {}

    def _tell(self, call: str, *values: Any) -> None:
        self._send({"call": call, "values": values})

    def _count(self, call: str, done: int, total: int, *more: Any) -> None:
        now = time.monotonic()
        if done < total and now - self._told.get(call, -_SECONDS_BETWEEN) < _SECONDS_BETWEEN:
            return
        self._told[call] = now
        self._tell(call, done, total, *more)

    def checking(self, done: int, total: int) -> None:
        self._count("checking", done, total)

    def examining(self, done: int, images: int) -> None:
        self._count("examining", done, images)

    def looking(self, done: int, total: int) -> None:
        self._count("looking", done, total)

    def evaluating(self, done: int, images: int) -> None:
        self._count("evaluating", done, images)

    def step(self, taken: int, steps: int, result: StepResult) -> None:
        self._count("step", taken, steps, {**asdict(result), "empty": sorted(result.empty)})

    def evaluated(self, taken: int, scores: Scores, best: bool) -> None:
        self._tell("evaluated", taken, dump(scores), best)

    def caching(self, done: int, views: int) -> None:
        self._count("caching", done, views)

    def said(self, line: str) -> None:
        self._tell("said", line)


def replay(event: Mapping[str, Any], watch: Quiet) -> None:
    """In the process that watches: what a `Relay` told, to `watch`."""
    call, values = event["call"], list(event["values"])
    if call == "step":
        told = values[2]
        values[2] = StepResult(**{**told, "acting": tuple(told["acting"]), "empty": frozenset(told["empty"])})
    elif call == "evaluated":
        values[1] = Scores(**values[1])
    getattr(watch, call)(*values)
