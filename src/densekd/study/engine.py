"""The fast copy of a study's teacher: its number format is chosen once, for every method and every seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace

from densekd.config import Recipe
from densekd.records import PlannedTeacher, StudyPlan
from densekd.runs.asked_teacher import require_teacher
from densekd.runs.execute import resolve
from densekd.runs.fast_teacher import fast_teacher
from densekd.study.check import Opened
from densekd.study.methods import Method, tapping
from densekd.teacher import FrozenTeacher

_DTYPE = "teacher.engine.dtype"


@dataclass(frozen=True)
class Settled:
    """A study whose teacher is settled.

    Attributes:
        opened: its parts, whose recipe names the number format.
        base: the study's recipe, which names it too, and so do those of all runs.
        fast: the copy, with the taps of all methods.
        planned: for the study's plan.
    """

    opened: Opened
    base: Recipe
    fast: FrozenTeacher
    planned: PlannedTeacher


def settle(opened: Opened, base: Recipe, methods: Sequence[Method], before: StudyPlan | None) -> Settled:
    """Choose the number format, unless the recipe or the study's plan has one for these weights.

    Args:
        opened: data and networks of the study.
        base: the study's recipe.
        methods: all that it compares.
        before: the plan, if there is one.

    Raises:
        DensekdError: as of `fast_teacher`.
    """
    asked: str = require_teacher(opened.parts.recipe).engine.dtype
    held = None if before is None else before.teacher
    if asked == "auto" and held is not None and held.sha256 == opened.sha256:
        asked = held.dtype
    taps = {"terms": [term.model_dump(mode="json") for term in tapping(methods)], _DTYPE: asked}
    parts = replace(opened.parts, recipe=resolve(opened.parts.recipe, None, taps))
    fast = fast_teacher(parts, opened.teacher, scored=asked == "auto")
    named = {_DTYPE: fast.report.dtype}
    return Settled(
        replace(opened, parts=replace(opened.parts, recipe=resolve(opened.parts.recipe, None, named))),
        resolve(base, None, named),
        fast,
        PlannedTeacher(dtype=fast.report.dtype, sha256=opened.sha256),
    )


def settled_words(settled: Settled) -> str:
    """What a reader of the study should know of it."""
    report = settled.fast.report
    return f"teacher: its fast copy runs in {report.dtype} in all runs ({report.why}), {report.speedup:.2f}x as fast"
