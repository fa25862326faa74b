"""What watches a run."""

from __future__ import annotations

from typing import TYPE_CHECKING, Self

from densekd.records import Scores
from densekd.training.stepper import StepResult

if TYPE_CHECKING:
    from densekd.runs.readiness import Readiness


class Quiet:
    """Progress that shows nothing; the base of those that do."""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        """Nothing to take down."""

    def checking(self, done: int, total: int) -> None:
        """So many files of the data set were checked."""

    def examining(self, done: int, images: int) -> None:
        """The pre-flight has shown the teacher so many images."""

    def caching(self, done: int, views: int) -> None:
        """The teacher's maps of so many views are stored, of those that were missing."""

    def confirm(self, question: str) -> bool | None:
        """The user's answer, yes or no; None where nobody can be asked."""
        return None

    def ready(self, readiness: Readiness) -> None:
        """The pre-flight ended."""

    def step(self, taken: int, steps: int, result: StepResult) -> None:
        """A step was taken."""

    def evaluating(self, done: int, images: int) -> None:
        """An evaluation has seen so many images."""

    def evaluated(self, taken: int, scores: Scores, best: bool) -> None:
        """An evaluation ended."""

    def looking(self, done: int, total: int) -> None:
        """So many of the looks at images that are kept for the page are taken."""

    def said(self, line: str) -> None:
        """A line the user must see."""
