"""Work in processes of its own, some at a time: watched together, stopped together, each failing alone.

A process a run: its time and peak memory are its own, and what kills it kills no other.
"""

from __future__ import annotations

import json
import os
import queue
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any, Literal

from densekd.runs.progress import Quiet
from densekd.study.progress import Silent, replay
from densekd.training.signals import Interrupted, StopSignals

_LOOK_SECONDS = 0.2
# The search path is ours: the process finds this very densekd, and a network of the user's what it imports.
_WORKER = "import json, sys; sys.path[:] = json.loads(sys.argv.pop()); from densekd.study.worker import main; main()"


@dataclass(frozen=True)
class Job:
    """One piece of work: its name, what its process is asked, and the file that keeps what it prints."""

    name: str
    request: Mapping[str, Any]
    output: Path


@dataclass(frozen=True)
class Outcome:
    """How a job ended; `told` are the events that were no progress."""

    job: Job
    status: Literal["done", "failed", "interrupted"]
    reason: str = ""
    told: tuple[dict[str, Any], ...] = ()


def run_jobs(
    jobs: Sequence[Job],
    places: Sequence[Mapping[str, str]],
    watch: Silent,
    ended: Callable[[Outcome], None] = lambda _outcome: None,
) -> list[Outcome]:
    """Do the jobs, as many at a time as there are places; a job that fails stops no other.

    Args:
        jobs: in the order in which they begin.
        places: for each job at a time, what the environment of its process adds.
        watch: sees every job.
        ended: called after each.

    Raises:
        Interrupted: Ctrl-C or SIGTERM; every process has saved and left. A second Ctrl-C kills them instead.
    """
    waiting, free = list(jobs), list(reversed(range(len(places))))
    running: dict[int, _Process] = {}
    outcomes: list[Outcome] = []
    with StopSignals(watch.said) as signals:
        try:
            while running or (waiting and signals.asked is None):
                while waiting and free and signals.asked is None:
                    place, job = free.pop(), waiting.pop(0)
                    running[place] = _Process(job, places[place], watch.run(job.name))
                if signals.asked is not None:
                    for process in running.values():
                        process.ask_to_stop()
                for place, process in list(running.items()):
                    outcome = process.look(_LOOK_SECONDS / len(running))
                    if outcome is not None:
                        del running[place]
                        free.append(place)
                        outcomes.append(outcome)
                        ended(outcome)
        finally:
            for process in running.values():
                process.kill()
        if signals.asked is not None:
            raise Interrupted("stopped", signals.asked)
    return outcomes


@dataclass
class _Process:
    """A running job."""

    job: Job
    place: Mapping[str, str]
    watch: Quiet
    _events: queue.Queue[dict[str, Any]] = field(default_factory=queue.Queue)
    _told: list[dict[str, Any]] = field(default_factory=list)
    _end: dict[str, Any] | None = None

    def __post_init__(self) -> None:
        self.job.output.parent.mkdir(parents=True, exist_ok=True)
        with self.job.output.open("wb") as output:
            # A session of its own: the terminal's Ctrl-C is ours to hand on.
            self._child = subprocess.Popen(
                [sys.executable, "-c", _WORKER, json.dumps(sys.path)],
                stdin=subprocess.PIPE,
                stdout=subprocess.PIPE,
                stderr=output,
                env={**os.environ, **self.place},
                start_new_session=True,
            )
        assert self._child.stdin is not None
        assert self._child.stdout is not None
        self._reader = threading.Thread(target=_read, args=(self._child.stdout, self._events), daemon=True)
        self._reader.start()
        with suppress(OSError):  # it died at once: its exit code tells
            self._child.stdin.write(json.dumps(self.job.request).encode() + b"\n")
            self._child.stdin.flush()

    def ask_to_stop(self) -> None:
        """Close its standard input: it finishes its step, saves, and leaves."""
        assert self._child.stdin is not None
        with suppress(OSError):  # it is gone already
            self._child.stdin.close()

    def kill(self) -> None:
        """End it at once; its last checkpoint stands."""
        self._child.kill()
        self._child.wait()
        self.ask_to_stop()

    def look(self, seconds: float) -> Outcome | None:
        """Hand on what it told, waiting up to `seconds` for the first; its outcome when it has ended."""
        over = self._child.poll() is not None
        if over:
            self._reader.join(timeout=5.0)  # a loading process may hold the line open for a moment
        try:
            self._handle(self._events.get(timeout=0 if over else seconds))
            while True:
                self._handle(self._events.get_nowait())
        except queue.Empty:
            pass
        return self._outcome() if over else None

    def _handle(self, event: dict[str, Any]) -> None:
        if "call" in event:
            replay(event, self.watch)
        elif "end" in event:
            self._end = event
        else:
            self._told.append(event)

    def _outcome(self) -> Outcome:
        self.ask_to_stop()
        if self._end is None:
            return Outcome(self.job, "failed", _death(self._child.returncode))
        reason = " ".join(str(self._end.get("reason", "")).split())
        return Outcome(self.job, self._end["end"], reason, tuple(self._told))


def _read(stream: IO[bytes], events: queue.Queue[dict[str, Any]]) -> None:
    with stream:
        for line in stream:
            with suppress(ValueError):  # cut off by a kill
                events.put(json.loads(line))


def _death(code: int) -> str:
    if code >= 0:
        return f"its process ended with exit code {code} and no word"
    name = signal.Signals(-code).name if -code in signal.valid_signals() else f"signal {-code}"
    hint = " (the system does so where memory runs out)" if -code == getattr(signal, "SIGKILL", 9) else ""
    return f"its process was ended by {name}{hint}"
