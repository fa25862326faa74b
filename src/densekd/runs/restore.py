"""`student.safetensors` from the checkpoint of the best step, where the file itself is gone."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

from densekd import files
from densekd.config import Recipe
from densekd.errors import CheckpointError
from densekd.records import dump
from densekd.runs.folder import Run
from densekd.training.checkpointer import Checkpointer

STUDENT = "student.safetensors"
_AVERAGED = "module."


def restore_student(folder: Path, recipe: Recipe, best_step: int) -> str | None:
    """Write the best student again if it is missing; its bytes are those that were there.

    Args:
        folder: the run, claimed by the caller.
        recipe: the run's; a moving average was evaluated and shipped where it asks for one.
        best_step: the step whose evaluation was the best.

    Returns:
        A line for the user; None when the file is there.

    Raises:
        CheckpointError: it is missing, and the checkpoint of that step is gone or damaged.
    """
    path = folder / STUDENT
    if path.is_file():
        return None
    checkpoints = Checkpointer(folder)
    source = checkpoints.path(best_step)
    reason = checkpoints.damage(source)
    if reason is not None:
        raise CheckpointError(
            f"{path}: missing, and cannot be restored from the best step's checkpoint: {reason}. Put the file back, or "
            "start again with --force"
        )
    if recipe.train.ema_decay is None:
        tensors = files.read_tensors(source / STUDENT)
    else:
        average = files.read_tensors(source / "average.safetensors")
        tensors = {
            name.removeprefix(_AVERAGED): tensor for name, tensor in average.items() if name.startswith(_AVERAGED)
        }
    files.write_tensors(path, tensors)
    return f"{path}: was missing; restored from {source}, whose checksums hold"


def leave_finished(run: Run, said: Callable[[str], None]) -> None:
    """What a resume of a finished run does: it restores a missing student, which the record keeps, and nothing else.

    Args:
        run: claimed by the caller where its student is missing.
        said: called with the lines for the user.

    Raises:
        CheckpointError: the student is missing and cannot be restored.
    """
    record = run.record
    line = None if record.best is None else restore_student(run.path, run.recipe, record.best.step)
    if line is not None:
        said(line)
        files.write_json(
            run.path / "record.json", dump(record.model_copy(update={"warnings": [*record.warnings, line]}))
        )
    said(f"{run.path}: this run is done already; nothing to resume")
