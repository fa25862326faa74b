"""Tables and progress: rich on a terminal, plain tab-separated lines elsewhere, JSON when asked."""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table
from rich.text import Text

from densekd.cli.asking import asked
from densekd.cli.guard import complain
from densekd.cli.printable import printable
from densekd.cli.waiting import Waiting

if TYPE_CHECKING:
    from densekd.records import Scores
    from densekd.runs.readiness import Readiness
    from densekd.training.stepper import StepResult

_PLAIN_SECONDS = 10.0


def _text(value: Any) -> str:
    if value is None:
        return "-"
    if isinstance(value, float):
        return f"{value:.10g}"
    return printable(str(value))


def table(rows: Sequence[Mapping[str, Any]], *, as_json: bool = False, title: str | None = None) -> None:
    """Print rows of equal keys on stdout."""
    if as_json:
        sys.stdout.write(json.dumps(list(rows), indent=2, ensure_ascii=False, default=str) + "\n")
        return
    columns = list(dict.fromkeys(key for row in rows for key in row))
    if not columns:
        return
    if not sys.stdout.isatty():
        sys.stdout.write("\t".join(map(printable, columns)) + "\n")
        for row in rows:
            cells = (_text(row.get(column)).replace("\t", " ").replace("\n", " ") for column in columns)
            sys.stdout.write("\t".join(cells) + "\n")
        return
    # As `Text`: in a plain string rich would read [brackets] as its own marks.
    drawn = Table(title=None if title is None else Text(printable(title)), title_justify="left", title_style="bold")
    for column in columns:
        numeric = all(isinstance(row.get(column), int | float | None) for row in rows)
        drawn.add_column(Text(printable(column)), justify="right" if numeric else "left", overflow="fold")
    for row in rows:
        drawn.add_row(*(Text(_text(row.get(column))) for column in columns))
    Console().print(drawn)


def bars() -> Progress | None:
    """Progress bars on stderr; None where that is no terminal."""
    if not sys.stderr.isatty():
        return None
    return Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[note]}", markup=False),
        console=Console(stderr=True),
        transient=True,
    )


class Watch:
    """Progress of a run on stderr; the shape of `densekd.runs.execute.Quiet`."""

    def __init__(self, label: str = "") -> None:
        self.label = label
        self._bar = bars()
        self._tasks: dict[str, TaskID] = {}
        self._last = 0.0
        self._miou: float | None = None
        self._header = False
        self._waiting = Waiting()

    def __enter__(self) -> Watch:
        if self._bar is not None:
            self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._bar is not None:
            self._bar.stop()

    def begin(self, name: str) -> None:
        """The run of that name starts: its bars replace those of the run before."""
        self.label, self._miou, self._header = f"{name}: ", None, False
        self._waiting = Waiting()
        if self._bar is not None:
            for task in self._tasks.values():
                self._bar.remove_task(task)
        self._tasks.clear()

    def _advance(self, what: str, done: int, total: int, note: str = "") -> None:
        if self._bar is None:
            return
        if what not in self._tasks:
            self._tasks[what] = self._bar.add_task(printable(f"{self.label}{what}"), total=total, note="")
        self._bar.update(self._tasks[what], completed=done, total=total, note=note, visible=done < total)

    def counting(self, what: str, done: int, total: int) -> None:
        """Any counted work: a bar on a terminal, a line every ten seconds elsewhere."""
        self._advance(what, done, total)
        if self._bar is None and (done == total or time.monotonic() - self._last > _PLAIN_SECONDS):
            self._last = time.monotonic()
            complain(f"{self.label}{what}\t{done}/{total}")

    def step(self, taken: int, steps: int, result: StepResult) -> None:
        score = "" if self._miou is None else f"  mIoU {100 * self._miou:.1f}"
        self._advance("training", taken, steps, f"loss {result.loss:.3f}{score}{self._waiting.after(result)}")
        if self._bar is None and (taken == steps or time.monotonic() - self._last > _PLAIN_SECONDS):
            self._last = time.monotonic()
            if not self._header:
                self._header = True
                complain("\t".join(("step", "steps", "loss", "lr", "seconds", "data_wait", *result.parts)))
            numbers = (
                result.loss,
                result.learning_rate,
                result.seconds,
                result.data_wait,
                *result.parts.values(),
            )
            complain("\t".join((f"{self.label}{taken}", str(steps), *(f"{number:.5g}" for number in numbers))))

    def evaluating(self, done: int, images: int) -> None:
        self._advance("evaluating", done, images)

    def evaluated(self, taken: int, scores: Scores, best: bool) -> None:
        self._miou = scores.miou
        mark = " (best so far)" if best else ""
        self.said(
            f"step {taken}: mIoU {100 * scores.miou:.2f}, pixel accuracy {100 * scores.pixel_accuracy:.2f} "
            f"on {scores.counted} images{mark}"
        )

    def said(self, line: str) -> None:
        if self._bar is not None:
            self._bar.console.print(printable(f"{self.label}{line}"), markup=False, highlight=False)
        else:
            complain(f"{self.label}{line}")

    def checking(self, done: int, total: int) -> None:
        self._advance("checking files", done, total)

    def caching(self, done: int, views: int) -> None:
        self.counting("storing the teacher's maps", done, views)

    def confirm(self, question: str) -> bool | None:
        return asked(question, self._bar)

    def examining(self, done: int, images: int) -> None:
        self._advance("examining the teacher", done, images)

    def looking(self, done: int, total: int) -> None:
        self._advance("keeping pictures", done, total)

    def ready(self, readiness: Readiness) -> None:
        for row in readiness.rows():
            self.said("\t".join(_text(value) for value in row.values()))
