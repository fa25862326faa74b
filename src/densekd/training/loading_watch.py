"""Loading processes that are gone or give nothing more: which one, and what it was reading."""

from __future__ import annotations

import multiprocessing
import signal
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch.utils.data import Subset

from densekd.errors import ResourceError
from densekd.failures import lost_process

PATIENCE = 600.0
"""Seconds that a batch may take, unless a recipe says otherwise (`runtime.loading_minutes`)."""
_TICK = 1.0
_LONGEST = 400
"""Bytes of a sample's name that are kept."""


def name_of(view: Any, key: Any) -> str:
    """What a user calls a sample of a view: the name of its image, where the view's source has names."""
    while isinstance(view, Subset):
        view, key = view.dataset, view.indices[key]
    source: Any = getattr(getattr(view, "view", view), "source", None)
    index = key[1] if isinstance(key, tuple) and len(key) == 2 else key
    return repr(source.name_of(index)) if hasattr(source, "name_of") else f"sample {key}"


class Board:
    """What each loading process is reading, where the main process sees it too.

    Args:
        workers: how many there are.
    """

    def __init__(self, workers: int) -> None:
        self._workers = workers
        self._shared = multiprocessing.RawArray("c", workers * _LONGEST)

    def note(self, worker: int, text: str) -> None:
        """Process number `worker` begins to read this; empty: it is done."""
        place = worker * _LONGEST
        self._shared[place : place + _LONGEST] = text.encode(errors="backslashreplace")[:_LONGEST].ljust(
            _LONGEST, b"\0"
        )

    def read(self) -> list[str]:
        """What each is reading; empty for one that waits."""
        shared = bytes(self._shared)
        places = range(0, self._workers * _LONGEST, _LONGEST)
        return [shared[place : place + _LONGEST].rstrip(b"\0").decode(errors="ignore") for place in places]


class Watch:
    """Sees to it that waiting for loading processes ends: kills all of them when a batch takes too long.

    By a thread of its own: a process that is stopped, or holds Python's lock, may keep the main process in a call that
    knows no limit.

    Args:
        workers: the processes.
        board: what they read.
        patience: seconds.
    """

    def __init__(self, workers: Sequence[Any], board: Board, patience: float) -> None:
        self.workers, self.board, self.patience = workers, board, patience
        self.hung: list[str] | None = None
        """What they were reading when they were killed because none was gone; None: they were not."""
        self._gone: list[tuple[int, int]] = []
        self._waiting, self._waited = False, 0.0
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, name="loading", daemon=True)
        self._thread.start()

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """The block waits for a batch."""
        self._waited, self._waiting = 0.0, True
        try:
            yield
        finally:
            self._waiting = False

    def end(self) -> None:
        """Watch no more."""
        self._over.set()
        self._thread.join()

    def _run(self) -> None:
        tick = min(_TICK, self.patience / 4)
        last = time.monotonic()
        while not self._over.wait(tick):
            now = time.monotonic()
            # No more than was watched: a program that was stopped for a night has not waited.
            self._waited += min(now - last, 2 * tick)
            last = now
            if self._waiting and self._waited > self.patience:
                self._gone = self._dead()
                self.hung = None if self._gone else self.board.read()
                for worker in self.workers:
                    worker.kill()
                return

    def error(self) -> ResourceError | None:
        """Why no batch comes any more; None where all processes are there."""
        if self.hung is not None:
            return self._hung_error(self.hung)
        gone = self._gone or self._dead()
        if not gone:
            return None
        # Where several are gone, one that was ended by force says more than one that ended itself.
        code, place = min(gone)
        reading = self.board.read()[place]
        who = f"loading process {place + 1} of {len(self.workers)} (pid {self.workers[place].pid})"
        doing = f" while it read {reading}" if reading else ""
        if code < 0:
            return lost_process(signal.strsignal(-code), who, doing)
        return ResourceError(
            f"{who} ended itself with exit code {code}{doing}: a library or code that it called did so, and may have "
            "said why on standard error; runtime.workers=0 loads in the main process"
        )

    def _dead(self) -> list[tuple[int, int]]:
        """Exit code and number of each process that is gone."""
        return [(worker.exitcode, place) for place, worker in enumerate(self.workers) if not worker.is_alive()]

    def _hung_error(self, reading: Sequence[str]) -> ResourceError:
        held = [f"process {place + 1} reads {name}" for place, name in enumerate(reading) if name]
        return ResourceError(
            f"the {len(self.workers)} loading process(es) gave no batch for {self.patience / 60:.3g} minutes "
            f"({'; '.join(held) or 'none of them is reading'}) and were ended. Look whether these files can be read "
            "(a disk or network share may hang); where reading takes so long, raise runtime.loading_minutes"
        )
