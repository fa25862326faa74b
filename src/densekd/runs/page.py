"""The page that a run ends with; what fails here costs a line, never the run."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from densekd.report import write_report
from densekd.training.recorder import Recorder

_LONGEST = 300


def leave_page(recorder: Recorder, say: Callable[[str], None]) -> None:
    """Write `report.html` into the folder of a run that is done.

    Args:
        recorder: the run's; of several processes only the one that writes leaves a page.
        say: for a line that the user sees.
    """
    if not recorder.writes:
        return
    line = unless_written(lambda: write_report(recorder.folder, recorder.record))
    if line is not None:
        say(line)
        record = recorder.record
        try:
            recorder.update(warnings=[*record.warnings, line], cost=record.cost)  # without the seconds that this took
        except OSError as error:  # the run is done, and its record says so
            say(f"{error.filename or recorder.folder}: does not keep that line: {error.strerror or error}")


def unless_written(write: Callable[[], Path]) -> str | None:
    """Write a page; why there is none, where that fails."""
    try:
        write()
    except Exception as error:
        words = " ".join(f"{type(error).__name__}: {error}".split())[:_LONGEST]
        return f"report.html could not be written, all else is there: {words}"
    return None
