"""How a run ends: its record says that it is done or why it is not, and so does what is raised."""

from __future__ import annotations

import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from densekd.failures import explained
from densekd.records import Cost, Status
from densekd.runs.folder import Run
from densekd.runs.ranks import ElsewhereError, Ranks
from densekd.training.recorder import Recorder
from densekd.training.signals import Interrupted

_LONGEST = 20_000
"""Characters of a traceback that the record keeps: its end, where the error is."""


@dataclass(frozen=True)
class Ending:
    """What keeps the record of a run that is done, interrupted or fails.

    Attributes:
        folder: of the run.
        ranks: its processes.
        said: called with lines for the user.
        cost: what the run has cost so far.
    """

    folder: Path
    ranks: Ranks
    said: Callable[[str], None]
    cost: Callable[[Recorder], Cost]

    @contextmanager
    def recorded(self, recorder: Recorder) -> Iterator[None]:
        """Inside the block, what ends the run is written into its record, and raised as what it is in this process.

        Raises:
            ElsewhereError: it failed in another process first.
        """
        try:
            yield
        except (Interrupted, KeyboardInterrupt, SystemExit) as stop:
            said = str(stop) if isinstance(stop, Interrupted) else self._left_at_once()
            self._leave(recorder, "interrupted", said)
            if isinstance(stop, Interrupted):  # in all processes; the first says it
                stop.told_elsewhere = not self.ranks.first
                raise
            raise self.ranks.told(stop) from None
        except BaseException as error:
            found = self.ranks.told(error)
            known = (explained(found) if isinstance(found, OSError) else None) or found
            words = str(found) if isinstance(found, ElsewhereError) else f"{type(known).__name__}: {known}"
            self._leave(recorder, "failed", words, "".join(traceback.format_exception(error))[-_LONGEST:])
            if found is error:
                raise
            raise found from error

    @contextmanager
    def stopped(self, recorder: Recorder) -> Iterator[None]:
        """Inside the block, after the training, only who stops the run is written into its record."""
        try:
            yield
        except (KeyboardInterrupt, SystemExit):
            self._leave(recorder, "interrupted", self._left_at_once())
            raise

    def done(self, recorder: Recorder) -> None:
        """Write that the run is done; its cost is without the seconds that the looks took.

        A record that has its name and could not be flushed to disk is there: that is said, and is no error.

        Raises:
            OSError: the record could not be written; the run is gone on with by a resume.
        """
        try:
            recorder.update(status="done", cost=recorder.record.cost)
        except OSError as error:
            if Run.load(self.folder).record.status != "done":
                raise
            self.said(
                f"{self.folder}: the run is done, but the disk did not confirm the last write "
                f"({error.strerror or error}): after a power cut go on with --resume"
            )

    def _leave(self, recorder: Recorder, status: Status, error: str, trace: str | None = None) -> None:
        for line in recorder.leave(status=status, error=error, traceback=trace, cost=self.cost(recorder)):
            if line not in error:  # which is told in any case
                self.said(line)

    def _left_at_once(self) -> str:
        saved = (self.folder / "checkpoints" / "latest").is_file()
        return f"left at once; {'the last checkpoint stands' if saved else 'no checkpoint was written yet'}"
