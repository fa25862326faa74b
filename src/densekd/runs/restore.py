"""`student.safetensors` from the checkpoint of the best step, where the file itself is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import torch

from densekd import files
from densekd.config import Recipe
from densekd.errors import CheckpointError
from densekd.records import dump
from densekd.report import REPORT
from densekd.runs.folder import Run
from densekd.runs.page import unless_written
from densekd.training.checkpointer import Checkpointer

STUDENT = "student.safetensors"
_AVERAGED = "module."


def restore_student(folder: Path, recipe: Recipe, best_step: int) -> str | None:
    """Write the best student again if it is missing or has other bytes; its bytes are those that were there.

    Other bytes: a disk's fault, or a kill after a better student was written and before its checkpoint was.

    Args:
        folder: the run, claimed by the caller.
        recipe: the run's; a moving average was evaluated and shipped where it asks for one.
        best_step: the step whose evaluation was the best.

    Returns:
        A line for the user; None when the file is there as it should be.

    Raises:
        CheckpointError: it is missing, and the checkpoint of that step is gone or damaged.
    """
    path = folder / STUDENT
    there = path.is_file()
    checkpoints = Checkpointer(folder)
    source = checkpoints.path(best_step)
    reason = checkpoints.damage(source)
    if reason is not None and there:
        if not source.exists():  # removed to save room
            return None
        return f"{path}: could not be compared with the best step's checkpoint, and is left as it is: {reason}"
    if reason is not None:
        raise CheckpointError(
            f"{path}: missing, and cannot be restored from the best step's checkpoint: {reason}. Put the file back, or "
            "start again with --force"
        )
    data = files.tensor_bytes(_best(source, recipe))
    if there and files.sha256_file(path) == files.sha256(data):
        return None
    files.write_bytes(path, data)
    was = f"was not the student of step {best_step}, the best one" if there else "was missing"
    return f"{path}: {was}; restored from {source}, whose checksums hold"


def _best(source: Path, recipe: Recipe) -> dict[str, torch.Tensor]:
    if recipe.train.ema_decay is None:
        return files.read_tensors(source / STUDENT)
    average = files.read_tensors(source / "average.safetensors")
    return {name.removeprefix(_AVERAGED): tensor for name, tensor in average.items() if name.startswith(_AVERAGED)}


def leave_finished(run: Run, said: Callable[[str], None]) -> None:
    """What a resume of a finished run does: it restores a student that is missing or damaged, which the record keeps,
    and the page that a kill may have kept from being written.

    Args:
        run: claimed by the caller.
        said: called with the lines for the user.

    Raises:
        CheckpointError: the student is missing and cannot be restored.
    """
    files.sweep_temporaries(run.path)
    record = run.record
    line = None if record.best is None else restore_student(run.path, run.recipe, record.best.step)
    if line is not None:
        said(line)
        files.write_json(
            run.path / "record.json", dump(record.model_copy(update={"warnings": [*record.warnings, line]}))
        )
    if run.recipe.report.page and not (run.path / REPORT).is_file():
        left_out = unless_written(run.report)
        said(f"{run.path / REPORT}: was missing; written again" if left_out is None else left_out)
    said(f"{run.path}: this run is done already; nothing to resume")
