"""Progress of a study on stderr: every run that is at work in one place."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING, Self

from rich.progress import Progress, TaskID

from densekd.cli.asking import asked
from densekd.cli.guard import complain
from densekd.cli.printable import printable
from densekd.cli.show import bars
from densekd.cli.waiting import Waiting
from densekd.runs.progress import Quiet
from densekd.study.progress import Silent

if TYPE_CHECKING:
    from densekd.records import Scores
    from densekd.training.stepper import StepResult

_PLAIN_SECONDS = 10.0


class Board(Silent):
    """A bar for the study and one for each run at work; where stderr is no terminal, plain lines.

    A line that several runs say is shown once, under the name of the first.
    """

    def __init__(self) -> None:
        self._bars = bars()
        self._whole: TaskID | None = None
        self._rows: dict[str, _Row] = {}
        self._told: set[str] = set()

    def __enter__(self) -> Self:
        if self._bars is not None:
            self._bars.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bars is not None:
            self._bars.stop()

    def run(self, name: str) -> Quiet:
        self._drop(name)
        self._rows[name] = _Row(self, name, self._bars)
        return self._rows[name]

    def counting(self, what: str, done: int, total: int) -> None:
        if what not in self._rows:
            self._rows[what] = _Row(self, what, self._bars)
        self._rows[what].count("", done, total)

    def ended(self, name: str, words: str) -> None:
        self._drop(name)
        self.said(f"{name}: {words}")

    def counted(self, done: int, total: int) -> None:
        if self._bars is None:
            complain(f"runs\t{done}/{total}")
            return
        if self._whole is None:
            for name in list(self._rows):
                self._drop(name)  # the checks before the runs
            self._whole = self._bars.add_task("runs", total=total, note="")
        self._bars.update(self._whole, completed=done)

    def said(self, line: str) -> None:
        self._told.add(line)
        if self._bars is not None:
            self._bars.console.print(printable(line), markup=False, highlight=False)
        else:
            complain(line)

    def said_by(self, name: str, line: str) -> None:
        """A line of one run's: shown if neither the checks nor another run have said the same."""
        if not any(told.endswith(line) for told in self._told):
            self.said(f"{name}: {line}")

    def _drop(self, name: str) -> None:
        row = self._rows.pop(name, None)
        if row is not None:
            row.drop()


class _Row(Quiet):
    """One run's part of the board."""

    def __init__(self, board: Board, name: str, bars: Progress | None) -> None:
        self._board, self._name, self._bars = board, name, bars
        self._task: TaskID | None = None
        self._what, self._miou, self._last = "", "", time.monotonic()
        self._waiting = Waiting()

    def drop(self) -> None:
        if self._bars is not None and self._task is not None:
            self._bars.remove_task(self._task)
            self._task = None

    def count(self, what: str, done: int, total: int, note: str = "") -> None:
        """So much of some work is done; a bar for each kind of it, one at a time."""
        if self._bars is None:
            if time.monotonic() - self._last > _PLAIN_SECONDS:
                self._last = time.monotonic()
                complain("\t".join(filter(None, (self._name, what, f"{done}/{total}", note))))
            return
        name = f"{self._name}: {what}" if what else self._name
        if what != self._what:  # a bar of its own, so that the time left is of this work alone
            self.drop()
            self._what = what
        if self._task is None:
            self._task = self._bars.add_task(printable(name), total=total, note="")
        self._bars.update(self._task, completed=done, total=total, note=note)

    def checking(self, done: int, total: int) -> None:
        self.count("checking files", done, total)

    def caching(self, done: int, views: int) -> None:
        self.count("storing the teacher's maps", done, views)

    def confirm(self, question: str) -> bool | None:
        return asked(question, self._bars)

    def examining(self, done: int, images: int) -> None:
        self.count("examining the teacher", done, images)

    def looking(self, done: int, total: int) -> None:
        self.count("keeping pictures", done, total)

    def evaluating(self, done: int, images: int) -> None:
        self.count("evaluating", done, images)

    def step(self, taken: int, steps: int, result: StepResult) -> None:
        self.count("training", taken, steps, f"loss {result.loss:.3f}{self._miou}{self._waiting.after(result)}")

    def evaluated(self, taken: int, scores: Scores, best: bool) -> None:
        self._miou = f"  mIoU {100 * scores.miou:.1f}"
        if self._bars is None:
            complain(f"{self._name}: step {taken}: mIoU {100 * scores.miou:.2f}{' (best so far)' if best else ''}")

    def said(self, line: str) -> None:
        self._board.said_by(self._name, line)
