"""The training loop: evaluate when due, save when due, stop when asked, else take a step."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import closing
from dataclasses import dataclass, field
from typing import Any, NamedTuple, Protocol

from densekd import files
from densekd.errors import NonFiniteError
from densekd.records import BestScores, Scores
from densekd.training.batcher import Batcher
from densekd.training.checkpointer import Checkpointer, Position
from densekd.training.failed_step import kept_error
from densekd.training.numbers import note_losses, note_overflow, note_zeros, remembered
from densekd.training.peers import Peers
from densekd.training.recorder import Recorder
from densekd.training.signals import Interrupted, StopSignals
from densekd.training.soundness import require_sound
from densekd.training.specs import TrainSpec
from densekd.training.stepper import Stepper, StepResult


class Progress(Protocol):
    """What a user watches while a run trains."""

    def step(self, taken: int, steps: int, result: StepResult) -> None: ...

    def evaluating(self, done: int, images: int) -> None: ...

    def evaluated(self, taken: int, scores: Scores, best: bool) -> None: ...

    def said(self, line: str) -> None: ...


class Evaluation(NamedTuple):
    """Scores over a split, and the pixels they come from: `matrix[true][predicted]`.

    `images`: of each image in order its own mIoU and pixel accuracy; None where nothing in it is labelled.
    """

    scores: Scores
    matrix: list[list[int]]
    images: list[tuple[float, float] | None]


Evaluate = Callable[[Callable[[int, int], None]], Evaluation]


def _unheard(line: str) -> None:
    """Nobody listens."""


class Abandoned(Exception):  # noqa: N818 - not an error: the loop asks why
    """An evaluation was left in the middle: a process was asked to stop. Raised in all of them."""


@dataclass
class Loop:
    """The parts of one training run, joined by `run`."""

    spec: TrainSpec
    steps: int
    batcher: Batcher
    stepper: Stepper
    recorder: Recorder
    checkpointer: Checkpointer
    evaluate: Evaluate
    progress: Progress
    signals: StopSignals
    peers: Peers = field(default_factory=Peers)
    name_of: Callable[[int], str] = str
    """Names of the training images, by index."""
    say: Callable[[str], None] = _unheard
    """Tells the user a line that the record keeps."""
    heard: Callable[[], Iterable[str]] = tuple
    """New lines on the other processes, for `say`."""
    _saved: tuple[int, bool] | None = None
    """Steps and evaluation of the newest checkpoint: it need not be written again."""
    _saved_at: float = field(default_factory=time.monotonic)

    def run(self, position: Position) -> Position:
        """Train from `position` to the last step.

        Raises:
            Interrupted: Ctrl-C or SIGTERM, in any process; a checkpoint of this very moment is written.
            NonFiniteError: a loss or gradient is not finite, and the step is kept; or weights after a step, or the
                student's output in an evaluation. The last good checkpoint stands.
            SilentTermError: a term had no effect for many steps.
        """
        micro = self.spec.accumulate
        self._saved = (position.taken, position.evaluated) if position.taken else None
        with closing(self.batcher.batches(position.taken * micro, self.steps * micro)) as batches:
            return self._run(position, batches)

    def _run(self, position: Position, batches: Iterator[dict[str, Any]]) -> Position:
        while True:
            if self._evaluation_due(position):
                self._evaluate(position)
                self._save(position)
            elif position.taken and self._checkpoint_due(position):
                self._save(position)
            if position.taken == self.steps:
                return position
            self.leave_if_asked(position)
            result = self._step(position, batches)
            position.taken += 1
            position.evaluated = False
            position.skipped_steps += result.skipped
            self.peers.took(position.taken, result.seconds)
            for line in self.heard():
                self.say(line)
            self.recorder.log(position.taken, result)
            self._watch(position, result)
            self.progress.step(position.taken, self.steps, result)

    def _step(self, position: Position, batches: Iterator[dict[str, Any]]) -> StepResult:
        try:
            return self.stepper.step(position.taken, batches)
        except NonFiniteError as error:
            raise kept_error(error, self.stepper, self.recorder.folder, self.name_of) from error

    def _watch(self, position: Position, result: StepResult) -> None:
        """What the losses say: spikes are told; a term without effect, or a loss scale that collapsed, ends the run."""
        numbers = remembered(position.numbers)
        line = note_losses(numbers, position.taken, {"loss": result.loss, **result.parts})
        if line is not None:
            self.say(line)
        note_zeros(numbers, position.taken, result.acting, result.parts, result.empty)
        note_overflow(numbers, position.taken, result.skipped, result.scale)
        position.numbers = dict(numbers)

    def _evaluation_due(self, position: Position) -> bool:
        if position.evaluated or position.taken == 0:
            return False
        every = self.spec.evaluate_every
        return position.taken == self.steps or (every is not None and position.taken % every == 0)

    def _evaluate(self, position: Position) -> None:
        require_sound(self.stepper.plain, position.taken)
        scores, matrix, images = self.evaluated(self.evaluate, position)
        best = position.best is None or scores.miou > position.best["miou"]
        position.last = scores.model_dump(mode="json")
        counted = {"step": position.taken, "matrix": matrix}
        position.confusion["final"] = counted
        position.images["final"] = {"step": position.taken, "scores": images}
        position.evaluations.append(
            {"step": position.taken, "miou": scores.miou, "pixel_accuracy": scores.pixel_accuracy}
        )
        if best:
            position.best = {**position.last, "step": position.taken}
            position.confusion["best"] = counted
            position.images["best"] = position.images["final"]
            # A kill between here and the checkpoint is harmless: the resumed run comes here again with equal bits.
            if self.peers.first:
                data = files.tensor_bytes(self.stepper.shipped.state_dict())
                files.write_bytes(self.recorder.folder / "student.safetensors", data)
                position.student_sha256 = files.sha256(data)
        position.evaluated = True
        self.progress.evaluated(position.taken, scores, best)

    def _checkpoint_due(self, position: Position) -> bool:
        # By the clock too: with seconds a step, a count of steps alone could lose an hour to a kill.
        waited = time.monotonic() - self._saved_at
        due = position.taken % self.spec.checkpoint_every == 0 or waited >= 60 * self.spec.checkpoint_minutes
        return bool(self.peers.most(due))

    def _save(self, position: Position) -> None:
        if self._saved == (position.taken, position.evaluated):
            return
        if position.taken:
            require_sound(self.stepper.plain, position.taken)
        self.peers.pulse.at("writing a checkpoint", patient=True)
        self.recorder.write_log()
        self.checkpointer.save(self.stepper, position)
        self._saved, self._saved_at = (position.taken, position.evaluated), time.monotonic()
        if position.evaluated:
            self.recorder.write_evaluations(position)
        self.recorder.update(**scores_of(position))
        self.peers.pulse.at("going on")

    def evaluated(self, evaluate: Evaluate, position: Position) -> Evaluation:
        """What `evaluate` gives, watched.

        Raises:
            Interrupted: a signal came before its end.
            NonFiniteError: the student's output holds NaN or infinity.
        """

        def watch(done: int, images: int) -> None:
            self.peers.pulse.at(f"evaluating, {done} of {images} images done")
            if self.peers.world == 1:
                self.leave_if_asked(position)
            elif self.signals.asked is not None:
                raise Abandoned
            self.progress.evaluating(done, images)

        try:
            return evaluate(watch)
        except Abandoned:
            self.leave_if_asked(position)
            raise
        except NonFiniteError as error:
            raise NonFiniteError(f"evaluation after step {position.taken}: {error}") from error

    def leave_if_asked(self, position: Position) -> None:
        """Save and leave when a signal came, to whichever process.

        Raises:
            Interrupted: one did.
        """
        asked = self.peers.most(self.signals.asked or 0)
        if not asked:
            return
        self._save(position)
        raise Interrupted(f"stopped after step {position.taken} of {self.steps}; everything is saved", asked)


def scores_of(position: Position) -> dict[str, Any]:
    """The record's fields that a position determines."""
    found: dict[str, Any] = {"skipped_steps": position.skipped_steps}
    if position.last is not None:
        found["final"] = Scores(**position.last)
    if position.best is not None:
        found["best"] = BestScores(**position.best)
        found["student_sha256"] = position.student_sha256 or None
    return found
