"""What a run records of itself, written whole: `log.csv`, `record.json`, `evaluations.csv`, `confusion.json`."""

from __future__ import annotations

import csv
import io
import json
import statistics
import time
from pathlib import Path
from typing import Any

from densekd import files
from densekd.errors import CheckpointError, RunError
from densekd.records import ConfusionRecord, RunRecord, dump
from densekd.training.checkpointer import Position
from densekd.training.columns import AFTER, BEFORE, EVALUATIONS
from densekd.training.log_rows import LogRows
from densekd.training.presence import Presence
from densekd.training.stepper import StepResult

_FLUSH_SECONDS = 20.0
_WARM_UP, _ENOUGH = 3, 10
"""Logged steps that pay for start-up, and how many more a share of the time needs."""


class Recorder:
    """Collects a row per logged step and keeps `record.json` up to date; of several processes, only one `writes`.

    `step` in a row counts from 1: the number of steps taken. Floats are written with `repr`, so that two logs can be
    compared bit for bit. On a resume the rows after the checkpoint are dropped: those steps are taken again.
    """

    def __init__(self, folder: Path, record: RunRecord, log_every: int, *, writes: bool = True) -> None:
        self.folder, self.record, self.log_every, self.writes = folder, record, log_every, writes
        self.rows = LogRows()
        self._presence = Presence(folder)
        self._written = time.monotonic()
        self._seconds_before = record.cost.total_seconds
        self._begin = time.monotonic()

    @property
    def log_path(self) -> Path:
        return self.folder / "log.csv"

    def resume_at(self, step: int) -> None:
        """Read the log of the interrupted run up to `step`.

        Raises:
            CheckpointError: rows that must be there are not, or cannot be read.
        """
        if step < self.log_every or not self.writes:
            return
        try:
            rows = LogRows()
            for row in csv.DictReader(io.StringIO(self.log_path.read_text(encoding="utf-8"))):
                if int(row["step"]) <= step and float(row["seconds"]) >= 0:
                    rows.append(row)
            self.rows = rows
        except FileNotFoundError:
            raise CheckpointError(f"{self.log_path}: no such file, but a checkpoint at step {step} exists") from None
        except (OSError, UnicodeDecodeError, csv.Error, KeyError, TypeError, ValueError) as error:
            raise CheckpointError(f"{self.log_path}: not the log of a run ({type(error).__name__}: {error})") from None

    def log(self, taken: int, result: StepResult) -> None:
        """Add the row of the step that brought the count to `taken`."""
        if taken % self.log_every:
            return
        norm = "" if result.grad_norm is None else repr(result.grad_norm)
        times = (f"{result.seconds:.6f}", f"{result.data_wait:.6f}")
        self.rows.append(
            {
                **dict(zip(BEFORE, (str(taken), repr(result.loss)), strict=True)),
                **{name: repr(value) for name, value in result.parts.items()},
                **dict(zip(AFTER, (repr(result.learning_rate), norm, *times), strict=True)),
            }
        )
        if time.monotonic() - self._written > _FLUSH_SECONDS:
            self.write_log()

    def write_log(self) -> None:
        """Write `log.csv`."""
        if self.rows and self.writes:
            self._presence.require()
            files.write_text(self.log_path, self.rows.pieces())
        self._written = time.monotonic()

    def write_evaluations(self, position: Position) -> None:
        """Write `evaluations.csv` and `confusion.json` as a position has them; remove them where it has none."""
        if not self.writes:
            return
        self._presence.require()
        table, counts = self.folder / "evaluations.csv", self.folder / "confusion.json"
        if not position.evaluations or position.last is None:
            files.remove(table)
            files.remove(counts)
            return
        stream = io.StringIO()
        writer = csv.writer(stream, lineterminator="\n")
        writer.writerow(EVALUATIONS)
        writer.writerows([repr(row[name]) for name in EVALUATIONS] for row in position.evaluations)
        files.write_text(table, stream.getvalue())
        found = ConfusionRecord.model_validate(
            {"split": self.record.split, "classes": list(position.last["iou"]), **position.confusion}
        )
        # On one line: indented, every one of the many counts would have its own.
        files.write_text(counts, json.dumps(dump(found), ensure_ascii=False) + "\n")

    def leave(self, **changes: Any) -> list[str]:
        """Write log and record of a run that ends early; why one could not be written: a full disk, a folder gone.

        Those are no errors of their own: what ended the run is to be told.
        """
        problems = []
        for write in (self.write_log, lambda: self.update(**changes)):
            try:
                write()
            except OSError as error:
                problems.append(f"{error.filename or self.folder}: could not be written: {error.strerror or error}")
            except RunError as error:
                problems.append(str(error))
        return list(dict.fromkeys(problems))

    def update(self, **changes: Any) -> None:
        """Change fields of the record and write it."""
        self.refresh(**changes)
        if self.writes:
            self._presence.require()
            files.write_json(self.folder / "record.json", dump(self.record))

    def refresh(self, **changes: Any) -> None:
        """Change fields of the record without writing it; the cost is as of now unless it is given."""
        cost = self.record.cost.model_copy(
            update={
                "seconds_per_step": self.seconds_per_step(),
                "data_wait": self.data_wait(),
                "total_seconds": round(self._seconds_before + time.monotonic() - self._begin, 3),
            }
        )
        changed = {"cost": changes.pop("cost", cost), **changes}
        self.record = self.record.model_copy(update=changed)

    def seconds_per_step(self) -> float | None:
        """Median seconds of a step, the first three left out (they pay for start-up)."""
        seconds = self.rows.seconds[_WARM_UP:] or self.rows.seconds
        return round(statistics.median(seconds), 6) if seconds else None

    def data_wait(self) -> float | None:
        """Share of the steps' seconds that was spent waiting for images; None for too few steps to tell.

        The sum of the waits of all logged steps after the first three over the sum of their seconds.
        """
        waits, seconds = self.rows.data_wait[_WARM_UP:], sum(self.rows.seconds[_WARM_UP:])
        if len(waits) < _ENOUGH or seconds <= 0:
            return None
        return round(sum(waits) / seconds, 4)
