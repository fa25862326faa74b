"""What a comparison leaves: a folder with its record, tables and figures, and the runs."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densekd import files
from densekd.errors import DensekdError
from densekd.records import StudyRecord, dump, run_name
from densekd.report import REPORT, write_study_report
from densekd.runs import Run
from densekd.study.figures import FIGURES, write_figures
from densekd.study.tables import class_rows, classes_csv, study_rows, table_csv

STUDY = "study.json"
_TABLES = {"table.csv": table_csv, "classes.csv": classes_csv}
DRAWN = (*_TABLES, *FIGURES, REPORT)
"""Files made from the record."""


class RunsFailedError(DensekdError, RuntimeError):
    """Some runs of a study failed; the others are done, and the table names them."""

    exit_code = 3


@dataclass(frozen=True)
class Study:
    """A finished comparison.

    Attributes:
        path: of its folder.
        record: its `study.json`.
        runs: the finished runs, by method and seed.
    """

    path: Path
    record: StudyRecord
    runs: Mapping[str, Mapping[int, Run]]

    @property
    def failures(self) -> list[str]:
        """A line for each run that failed."""
        return [
            f"{run_name(line.name, failure.seed)}: {failure.reason}"
            + (f" (its output: {self.path / failure.output})" if failure.output else "")
            for line in self.record.methods
            for failure in line.failed
        ]

    def raise_if_failed(self) -> None:
        """Let nobody take the rest for the whole.

        Raises:
            RunsFailedError: some runs failed; the message names them.
        """
        if self.failures:
            total = len(self.failures) + sum(len(line.seeds) for line in self.record.methods)
            raise RunsFailedError("\n".join([f"{len(self.failures)} of {total} runs failed:", *self.failures]))

    def rows(self) -> list[dict[str, Any]]:
        """The comparison as a table."""
        return study_rows(self.record)

    def class_rows(self) -> list[dict[str, Any]]:
        """IoU per class as a table."""
        return class_rows(self.record)

    def write(self) -> Path:
        """Write tables, figures and, last, `study.json`; returns its path."""
        for name, text in _TABLES.items():
            files.write_text(self.path / name, text(self.record))
        write_figures(self.path, self.record)
        path = self.path / STUDY
        files.write_json(path, dump(self.record))
        return path

    def report(self) -> Path:
        """Write the study's page, `report.html`, from its record and its runs; returns its path."""
        return write_study_report(self.path, self.record)
