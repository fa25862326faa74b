"""`student.safetensors` from the checkpoint of the best step, where the file itself is gone or another one."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from densekd import files
from densekd.config import Recipe
from densekd.errors import CheckpointError
from densekd.records import RunRecord, dump
from densekd.report import REPORT
from densekd.runs.folder import Run
from densekd.runs.page import unless_written
from densekd.training.checkpointer import Checkpointer

STUDENT = "student.safetensors"
_AVERAGED = "module."


class Restored(NamedTuple):
    """What was found of `student.safetensors`, or made of it.

    Attributes:
        line: for the user; None when the file was there as it should be.
        sha256: of the file; empty where nothing tells whether it is as it should be.
        damaged: the file is known to be another one, and stays as it is.
    """

    line: str | None
    sha256: str
    damaged: bool = False


def restore_student(folder: Path, recipe: Recipe, best_step: int, expected: str = "") -> Restored:
    """Write the best student again if it is missing or has other bytes; its bytes are those that were there.

    Other bytes: a disk's fault, or a kill after a better student was written and before its checkpoint was.

    Args:
        folder: the run, claimed by the caller.
        recipe: the run's; a moving average was evaluated and shipped where it asks for one.
        best_step: the step whose evaluation was the best.
        expected: SHA-256 of the file as that evaluation left it; empty: not known.

    Raises:
        CheckpointError: it is missing, and the checkpoint of that step is gone or damaged.
    """
    path = folder / STUDENT
    present = files.sha256_file(path) if path.is_file() else None
    if present is not None and present == expected:
        return Restored(None, expected)
    checkpoints = Checkpointer(folder)
    source = checkpoints.path(best_step)
    reason = checkpoints.damage(source)
    if reason is not None and present is None:
        raise CheckpointError(
            f"{path}: missing, and cannot be restored from the best step's checkpoint: {reason}. Put the file back, or "
            "start again with --force"
        )
    if reason is not None and expected:
        return Restored(
            f"{path}: not the student of step {best_step}, the best one: its SHA-256 differs from the one recorded. It "
            f"cannot be restored from that step's checkpoint, and is left as it is: {reason}",
            expected,
            damaged=True,
        )
    if reason is not None:
        if not source.exists():  # removed to save room
            return Restored(None, "")
        line = f"{path}: could not be compared with the best step's checkpoint, and is left as it is: {reason}"
        return Restored(line, "")
    data = files.tensor_bytes(_best(source, recipe))
    digest = files.sha256(data)
    if present == digest:
        return Restored(None, digest)
    files.write_bytes(path, data)
    was = f"was not the student of step {best_step}, the best one" if present is not None else "was missing"
    return Restored(f"{path}: {was}; restored from {source}, whose checksums hold", digest)


def _best(source: Path, recipe: Recipe) -> dict[str, torch.Tensor]:
    if recipe.train.ema_decay is None:
        return files.read_tensors(source / STUDENT)
    average = files.read_tensors(source / "average.safetensors")
    return {name.removeprefix(_AVERAGED): tensor for name, tensor in average.items() if name.startswith(_AVERAGED)}


def leave_finished(run: Run, said: Callable[[str], None]) -> None:
    """What a resume of a finished run does: it restores a student that is missing or damaged, which the record keeps,
    notes its checksum where an earlier version did not, and writes the page that a kill may have kept from being
    written.

    Args:
        run: claimed by the caller.
        said: called with the lines for the user.

    Raises:
        CheckpointError: the student is missing or damaged, and cannot be restored.
    """
    files.sweep_temporaries(run.path)
    record = run.record
    if record.best is not None:
        _keep_student(run, record, record.best.step, said)
    if run.recipe.report.page and not (run.path / REPORT).is_file():
        left_out = unless_written(run.report)
        said(f"{run.path / REPORT}: was missing; written again" if left_out is None else left_out)
    said(f"{run.path}: this run is done already; nothing to resume")


def _keep_student(run: Run, record: RunRecord, best_step: int, said: Callable[[str], None]) -> None:
    found = restore_student(run.path, run.recipe, best_step, record.student_sha256 or "")
    if found.damaged:
        raise CheckpointError(f"{found.line}. Put the file back, or start again with --force")
    if found.line is not None:
        said(found.line)
        record = record.model_copy(update={"warnings": [*record.warnings, found.line]})
    if found.sha256:
        record = record.model_copy(update={"student_sha256": found.sha256})
    if record != run.record:
        files.write_json(run.path / "record.json", dump(record))
