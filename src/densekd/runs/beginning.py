"""Where the training of a run begins: at step 0, or at the newest checkpoint that is whole."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from densekd.errors import RunError
from densekd.runs.claim import Claim
from densekd.runs.ranks import Ranks
from densekd.runs.restore import restore_student
from densekd.training.checkpointer import Checkpointer, Position
from densekd.training.loop import Loop

_NONE = "none"


@dataclass(frozen=True)
class Beginning:
    """What finds the position that a run goes on from, and brings its parts to it.

    Attributes:
        claim: the folder, and whether it is gone on with.
        ranks: the processes of the run.
        said: called with lines for the user.
        say: called with lines for the user that the record keeps.
    """

    claim: Claim
    ranks: Ranks
    said: Callable[[str], None]
    say: Callable[[str], None]

    def position(self, loop: Loop) -> Position:
        """Where the run stands: the first process chooses the checkpoint, all read it.

        Raises:
            CheckpointError: there are checkpoints and every one is damaged, or one does not fit.
            RunError: another process does not see the folder.
        """
        if not self.claim.resume:
            return Position()
        chosen = self.ranks.from_first("the checkpoint", lambda: self._chosen(loop.checkpointer))
        if chosen == _NONE:
            return Position()
        path = Path(chosen)
        position = self.ranks.agreed("the checkpoint", lambda: self._loaded(loop, path))
        self.said(f"resuming from {path} (step {position.taken} of {loop.steps})")
        return position

    def _chosen(self, checkpointer: Checkpointer) -> str:
        found = checkpointer.latest()
        for reason in found.damage:
            self.say(f"checkpoint passed over: {reason}")
        if found.path is None:
            self.said(f"{self.claim.folder}: no checkpoint was written yet; starting from step 0")
            return _NONE
        return str(found.path)

    def _loaded(self, loop: Loop, path: Path) -> Position:
        if not path.is_dir():
            raise RunError(f"{path}: not seen by process {self.ranks.launch.rank}; all machines must share the folder")
        position = loop.checkpointer.load(path, loop.stepper)
        loop.recorder.resume_at(position.taken)
        if self.ranks.first:
            loop.checkpointer.settle(position)
        if position.last is not None and not position.evaluations:
            self.say("the evaluations before this resume were not kept: an earlier version of densekd began the run")
        if position.best is not None and self.ranks.first:
            step, known = int(position.best["step"]), position.student_sha256
            restored = restore_student(self.claim.folder, self.claim.recipe, step, known)
            position.student_sha256 = restored.sha256
            if restored.line is not None:
                self.say(restored.line)
        return position
