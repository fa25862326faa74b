"""Whether `student.safetensors` of a run is the student that the run's record tells of."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from densekd.errors import CheckpointError
from densekd.files import read_json, sha256_file

STUDENT = "student.safetensors"


def unrecorded(path: Path) -> str | None:
    """The line for a run's student of which the record keeps no checksum; None of any other file.

    Args:
        path: a file of weights.
    """
    record = _record(path)
    if record is None or isinstance(record.get("student_sha256"), str):
        return None
    return (
        f"{path}: its record.json keeps no checksum of it, so it is not compared: an earlier version of densekd began "
        "the run (of a finished one --resume adds it)"
    )


def require_recorded(path: Path) -> None:
    """Refuse a run's student that has other bytes than `record.json` beside it says.

    Args:
        path: a file of weights; one that is no run's student is let pass, and one that is `unrecorded`.

    Raises:
        CheckpointError: they are others. Of a run that is not finished that may be a moment between the two files;
            else the student is damaged.
    """
    record = _record(path)
    expected = None if record is None else record.get("student_sha256")
    if record is None or not isinstance(expected, str) or sha256_file(path) == expected:
        return
    if record.get("status") != "done":
        raise CheckpointError(
            f"checkpoint {path}: not the student that its record.json tells of: the run is not finished, and is "
            "between writing the one and the other just now, or was ended there. Try again in a moment, or go on with "
            "the run by --resume, which puts it right"
        )
    raise CheckpointError(
        f"checkpoint {path}: damaged: its SHA-256 differs from the one in record.json. --resume of that run writes it "
        "again from the checkpoint of its best step"
    )


def _record(path: Path) -> dict[str, Any] | None:
    """The record of the run whose student `path` is."""
    beside = path.parent / "record.json"
    if path.name != STUDENT or not beside.is_file():
        return None
    found = read_json(beside)
    return found if isinstance(found, dict) and "recipe_sha256" in found else None
