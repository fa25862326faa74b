"""What a run or a study has kept in its folder, as far as a page shows it; what is missing is said, never an error."""

from __future__ import annotations

import csv
import math
import os
from array import array
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import BaseModel, ValidationError

from densekd import files
from densekd.errors import CheckpointError, RunError
from densekd.records import ConfusionRecord, RunRecord, StudyRecord, run_name

RUN, STUDY = "record.json", "study.json"

M = TypeVar("M", bound=BaseModel)
T = TypeVar("T")
Columns = Mapping[str, Sequence[float]]


@dataclass(frozen=True)
class KeptRun:
    """A run as its folder has it.

    Attributes:
        name: of the folder.
        recipe: resolved, as plain values; empty where it is missing.
        log: the columns of `log.csv`; NaN where a row has no value. Empty where nothing was logged.
        evaluations: the columns of `evaluations.csv`; empty where none were kept.
        confusion: of the final and the best evaluation.
        missing: a line for each file that is not there or cannot be read.
    """

    folder: Path
    name: str
    record: RunRecord
    recipe: dict[str, Any]
    log: Columns
    evaluations: Columns
    confusion: ConfusionRecord | None
    missing: tuple[str, ...]

    @property
    def taken(self) -> int:
        """Steps that were logged."""
        return int(self.log["step"][-1]) if self.log else 0


def read_run(folder: Path, record: RunRecord | None = None) -> KeptRun:
    """A run's folder, read.

    Args:
        folder: the run's.
        record: its record, where it was read already.

    Raises:
        RunError: `record.json` is missing or not a record.
    """
    found = record or read_model(folder / RUN, RunRecord)
    missing: list[str] = []

    def tried(name: str, read: Callable[[Path], T], otherwise: T, absent: str) -> T:
        path = folder / name
        if not path.is_file():
            missing.append(f"{name} is not there: {absent}")
            return otherwise
        try:
            return read(path)
        except (OSError, ValueError, KeyError, TypeError, yaml.YAMLError, RunError, csv.Error) as error:
            words = " ".join(str(error).split())[:200]
            missing.append(f"{name} cannot be read ({type(error).__name__}: {words}): what it holds is not shown")
            return otherwise

    def columns(path: Path) -> Columns:
        shown = read_columns(path)
        if _ends_within_a_line(path):
            missing.append(f"{path.name} ends within a line, as after a crash or a full disk: that line is not shown")
        return shown

    kept = "an earlier version of densekd kept none" if found.final is not None else "nothing was evaluated"
    return KeptRun(
        folder,
        folder.absolute().name,
        found,
        tried("recipe.yaml", _recipe, {}, "the settings cannot be shown"),
        tried("log.csv", columns, {}, "no curves can be drawn"),
        tried("evaluations.csv", columns, {}, f"no mIoU over the evaluations; {kept}"),
        tried("confusion.json", lambda path: read_model(path, ConfusionRecord), None, f"no confusion matrix; {kept}"),
        tuple(missing),
    )


def read_study(folder: Path) -> StudyRecord:
    """A study's record.

    Raises:
        RunError: `study.json` is missing or not a record.
    """
    return read_model(folder / STUDY, StudyRecord)


def runs_of(folder: Path, record: StudyRecord) -> dict[str, Path]:
    """The folders of a study's finished runs that are still there, by name, in the order of the record."""
    names = [run_name(method.name, seed) for method in record.methods for seed in method.seeds]
    # A name with a separator would lead elsewhere.
    return {name: folder / name for name in names if Path(name).name == name and (folder / name / RUN).is_file()}


def read_model(path: Path, model: type[M]) -> M:
    """A JSON file as a record.

    Raises:
        RunError: it is missing, no JSON, or something else.
    """
    try:
        return model.model_validate(files.read_json(path))
    except CheckpointError as error:
        raise RunError(str(error)) from None
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise RunError(f"{path}: not a record of schema 1: {where}: {first['msg']}") from None


def read_columns(path: Path) -> Columns:
    """A CSV file of numbers, by column; an empty cell is NaN. A last line without its end is left out.

    Raises:
        ValueError: a cell is no number, or rows differ in length.
        OSError, UnicodeDecodeError: it cannot be read.
    """
    # Row by row: texts of a long run's numbers would take ten times the memory of the numbers.
    with path.open(encoding="utf-8", newline="") as stream:
        rows = csv.reader(line for line in stream if line.endswith("\n"))
        names = next(rows, [])
        columns = [array("d") for _ in names]
        for number, row in enumerate(rows, start=2):
            if len(row) != len(names):
                raise ValueError(f"line {number} has {len(row)} cells, the first line {len(names)}")
            for column, cell in zip(columns, row, strict=True):
                column.append(float(cell) if cell else math.nan)
    return dict(zip(names, columns, strict=True)) if columns and columns[0] else {}


def _ends_within_a_line(path: Path) -> bool:
    with path.open("rb") as stream:
        size = stream.seek(0, os.SEEK_END)
        stream.seek(max(0, size - 1))
        return stream.read() not in (b"", b"\n")


def _recipe(path: Path) -> dict[str, Any]:
    found = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(found, dict):
        raise ValueError("expected keys and values")
    return found
