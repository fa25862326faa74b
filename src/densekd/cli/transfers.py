"""Progress of work that is counted in bytes, on stderr: a bar with its rate, or a plain line every ten seconds."""

from __future__ import annotations

import sys
import time
from typing import Self

from rich.console import Console
from rich.progress import (
    BarColumn,
    DownloadColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeRemainingColumn,
    TransferSpeedColumn,
)

from densekd.cli.guard import complain

_PLAIN_SECONDS = 10.0


class Transfers:
    """One bar at a time, for the work that moves; silent if `quiet`, but for what is `said`."""

    def __init__(self, quiet: bool = False) -> None:
        self._quiet = quiet
        self._bar: Progress | None = None
        self._task: TaskID | None = None
        self._what = ""
        self._begun, self._last, self._first = 0.0, 0.0, 0

    def __enter__(self) -> Self:
        if sys.stderr.isatty() and not self._quiet:
            self._bar = Progress(
                TextColumn("{task.description}"),
                BarColumn(),
                DownloadColumn(),
                TransferSpeedColumn(),
                TimeRemainingColumn(),
                console=Console(stderr=True),
                transient=True,
            )
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def moved(self, what: str, done: int, total: int | None) -> None:
        """So many bytes of some work are done; None where nobody knows how many there are."""
        if self._quiet:
            return
        now = time.monotonic()
        if what != self._what or done < self._first:
            self._what, self._begun, self._last, self._first = what, now, now, done
            self._show_anew(what, done, total)
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)
        elif now - self._last > _PLAIN_SECONDS:
            self._last = now
            rate = (done - self._first) / (now - self._begun) / 1e6
            complain(f"{what}\t{done / 1e6:.1f}/{'?' if total is None else f'{total / 1e6:.1f}'} MB\t{rate:.1f} MB/s")

    def said(self, line: str) -> None:
        """A line for the user."""
        if self._bar is not None:
            self._bar.console.print(line, markup=False, highlight=False)
        elif not self._quiet:
            complain(line)

    def _show_anew(self, what: str, done: int, total: int | None) -> None:
        if self._bar is None:
            return
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(what, total=total, completed=done)
