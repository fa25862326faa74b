"""A run's trackers, from its first step to its end; none of them ever ends a run."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Self

import numpy as np

from densekd.config import Recipe
from densekd.records import Scores, TrackerRecord
from densekd.runs.assemble import Parts
from densekd.runs.tracking.kinds import KINDS, Kind, Start
from densekd.runs.tracking.pictures import Pictures
from densekd.runs.tracking.values import of_record, of_row, of_scores
from densekd.training.checkpointer import Position
from densekd.training.loop import Loop, Progress
from densekd.training.recorder import Recorder
from densekd.training.stepper import StepResult


class Tracking:
    """The trackers of one run; as a context it ends them, however the run ends.

    `require_trackers` came first: what a user can be told is told before any work. From `begin` on an error of a
    tracker is said and kept in the record's warnings, the tracker gets nothing more, and training goes on.

    Args:
        recipe: says which; of several processes only one has any.
        folder: the run's.
        said: shows the user a line.
        say: shows a line, which the record keeps too.
        on: whether this process is the one.
    """

    def __init__(
        self,
        recipe: Recipe,
        folder: Path,
        said: Callable[[str], None],
        say: Callable[[str], None],
        *,
        on: bool = True,
    ) -> None:
        self.recipe, self.folder, self.said, self.say = recipe, folder, said, say
        self.names = recipe.track.to if on else ()
        self.live: dict[str, Kind] = {}
        self.records: dict[str, TrackerRecord] = {}
        self.recorder: Recorder | None = None
        self.pictures: Pictures | None = None

    def begin(self, loop: Loop, position: Position, parts: Parts, *, resumed: bool) -> None:
        """Open the trackers where the run stands, and let the loop tell them of every step and evaluation."""
        if not self.names:
            return
        recorder = self.recorder = loop.recorder
        before = dict(recorder.record.trackers)
        # An evaluation that the interrupted run may have told of comes again at this very step.
        again = position.taken > 0 and not position.evaluated
        first = position.taken if again or not position.taken else position.taken + 1
        for name in self.names:
            self._begin(name, Start(self.folder, self.recipe, first if resumed else None, before.get(name)))
        if again and recorder.rows and int(recorder.rows[-1]["step"]) == position.taken:
            self.row(recorder.rows[-1])
        if self.recipe.track.images and self.live:
            self.pictures = Pictures(parts, self.recipe.track.images)
            self.images(self.pictures.legend, 0, lambda kind: kind.start.fresh)
        loop.progress = Tracked(loop.progress, self, loop)

    def _begin(self, name: str, start: Start) -> None:
        try:
            kind = KINDS[name](start)
            self.records[name] = kind.record
            self._keep()  # before it begins: a W&B run that a kill follows must be found by its id
            line = kind.begin()
        except Exception as error:
            self._drop(name, error)
            return
        self.live[name], self.records[name] = kind, kind.record
        self._keep()
        self.said(line)

    def row(self, row: Mapping[str, str]) -> None:
        """A row of `log.csv`."""
        self._each(lambda kind: kind.log(of_row(row), int(row["step"])))

    def evaluated(self, step: int, scores: Scores) -> None:
        """The scores of an evaluation on `val`."""
        self._each(lambda kind: kind.log(of_scores("val", scores), step))

    def images(
        self, draw: Callable[[], dict[str, np.ndarray]], step: int, takes: Callable[[Kind], bool] = lambda kind: True
    ) -> None:
        """Pictures, drawn only where somebody takes them; where that fails there are no more."""
        if not any(map(takes, self.live.values())):
            return
        try:
            drawn = draw()
        except Exception as error:
            self.pictures = None
            self.say(f"track: no more pictures of validation images: {_reason(error)}; the training goes on")
            return
        self._each(lambda kind: kind.log_images(drawn, step) if takes(kind) else None)

    def done(self, steps: int) -> None:
        """The scores the run ends with; its record is complete."""
        recorder = self.recorder
        if recorder is not None:
            self._each(lambda kind: kind.log(of_record(recorder.record), steps))

    def _each(self, tell: Callable[[Kind], None]) -> None:
        for name, kind in list(self.live.items()):
            try:
                tell(kind)
            except Exception as error:
                del self.live[name]
                self._drop(name, error)

    def _drop(self, name: str, error: Exception) -> None:
        reason = _reason(error)
        if name in self.records:
            self.records[name] = self.records[name].model_copy(update={"failed": reason})
        self.say(f"track: {name} failed and is told nothing more ({reason}); the training goes on")
        self._keep()

    def _keep(self) -> None:
        if self.recorder is not None:
            self.recorder.update(trackers={**self.recorder.record.trackers, **self.records})

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for name, tracker in list(self.live.items()):
            try:
                left = tracker.finish(whole=kind is None)
            except Exception as reason:
                self._drop(name, reason)
                continue
            if left is not None:
                self.say(left)
                self._keep()
        self.live.clear()


@dataclass
class Tracked:
    """What watches a run, and its trackers behind it."""

    progress: Progress
    tracking: Tracking
    loop: Loop

    def step(self, taken: int, steps: int, result: StepResult) -> None:
        self.progress.step(taken, steps, result)
        rows = self.loop.recorder.rows
        if rows and rows[-1]["step"] == str(taken):
            self.tracking.row(rows[-1])

    def evaluating(self, done: int, images: int) -> None:
        self.progress.evaluating(done, images)

    def evaluated(self, taken: int, scores: Scores, best: bool) -> None:
        self.progress.evaluated(taken, scores, best)
        self.tracking.evaluated(taken, scores)
        pictures = self.tracking.pictures
        if pictures is not None:
            self.tracking.images(lambda: pictures.draw(self.loop.stepper.shipped), taken)

    def said(self, line: str) -> None:
        self.progress.said(line)


def _reason(error: Exception) -> str:
    """An error in one line."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:300]
