"""What to do about a value that is not finite, from what a step did when it was taken again."""

from __future__ import annotations

from densekd.config import Recipe
from densekd.training.examined import Examination


def advise(run: Examination, plain: Examination, recipe: Recipe) -> list[str]:
    """Sentences, the likeliest cause first.

    Args:
        run: the pass as in the run.
        plain: the same in float32 with the plain teacher.
        recipe: the run's.
    """
    said = []
    if run.bad("images"):
        said.append("the images are not finite: look at the files of this step (samples) and data.augment.mean and std")
    for who, key in (
        ("student", "the newest checkpoint before it is good: --resume"),
        ("teacher", "teacher.checkpoint"),
    ):
        if run.bad(f"{who} weights"):
            said.append(f"the {who} holds weights that are not finite: {key}")
    if run.bad("teacher map") and not run.bad("teacher weights"):
        said.append(_teacher(run, plain, recipe))
    if run.bad("student map") and not run.bad("student weights"):
        said.append(_student(plain))
    if not said and (run.bad("term") or run.bad("task")):
        names = ", ".join(look.what for look in [*run.bad("term"), *run.bad("task")])
        said.append(f"the maps are finite and {names} is not: lower its weight, or raise its temperature")
    if not said and (run.bad("gradient") or run.backward):
        where = f" (first at {run.backward})" if run.backward else ""
        said.append(
            f"the loss is finite and its gradient is not{where}: lower train.optimizer.lr, or the terms' weights"
        )
    if not said:
        said.append(
            "everything is finite here: the step cannot be taken again exactly (other device, versions or threads), or "
            "the value came from what is not kept: maps of distill.cache, or the sum over several processes"
        )
    return said


def _teacher(run: Examination, plain: Examination, recipe: Recipe) -> str:
    where = f" (first: {run.teacher})" if run.teacher else ""
    if not plain.bad("teacher map"):
        return (
            f"the teacher's maps are not finite{where}, and in float32 without its fast copy they are: set "
            "teacher.engine.dtype=float32"
        )
    stored = "; a stored set was made by it: densekd cache verify" if recipe.distill.cache is not None else ""
    return (
        f"the teacher's maps are not finite, in float32 too{where or f' (first: {plain.teacher})'}: the teacher "
        f"overflows on these images; look at them, at teacher.mean and std, and at its checkpoint{stored}"
    )


def _student(plain: Examination) -> str:
    if not plain.bad("student map"):
        return "the student's maps are not finite, and in float32 they are: set runtime.precision=bfloat16 or float32"
    where = f" (first: {plain.student})" if plain.student else ""
    return (
        f"the student's maps are not finite, in float32 too{where}: its weights grew too large; start again (--force) "
        "with a lower train.optimizer.lr, train.clip_norm, or lower weights of the terms"
    )
