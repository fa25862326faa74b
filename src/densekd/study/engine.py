"""The fast copy of a study's teacher: what it is like is chosen once, for every method and every seed."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from densekd.config import Recipe
from densekd.records import PlannedTeacher, StudyPlan
from densekd.runs.asked_teacher import require_teacher
from densekd.runs.execute import resolve
from densekd.runs.fast_teacher import decided, fast_teacher
from densekd.study.check import Opened
from densekd.study.methods import Method, tapping
from densekd.teacher import FrozenTeacher

_ENGINE = "teacher.engine."


@dataclass(frozen=True)
class Settled:
    """A study whose teacher is settled.

    Attributes:
        opened: its parts, whose recipe names the number format, and whether convolutions are in Winograd's form.
        base: the study's recipe, which names them too, and so do those of all runs.
        fast: the copy, with the taps of all methods.
        planned: for the study's plan.
    """

    opened: Opened
    base: Recipe
    fast: FrozenTeacher
    planned: PlannedTeacher


def settle(opened: Opened, base: Recipe, methods: Sequence[Method], before: StudyPlan | None) -> Settled:
    """Choose what the recipe leaves to `auto`, unless the study's plan has it for these weights.

    Args:
        opened: data and networks of the study.
        base: the study's recipe.
        methods: all that it compares.
        before: the plan, if there is one.

    Raises:
        DensekdError: as of `fast_teacher`.
    """
    asked = _asked(opened, None if before is None else before.teacher)
    taps = {"terms": [term.model_dump(mode="json") for term in tapping(methods)], **_keys(asked)}
    parts = replace(opened.parts, recipe=resolve(opened.parts.recipe, None, taps))
    fast = fast_teacher(parts, opened.teacher, scored=asked["dtype"] == "auto")
    found = decided(fast)
    kept = {key: found[key] if value == "auto" else value for key, value in asked.items()}
    named = _keys(kept)
    return Settled(
        replace(opened, parts=replace(opened.parts, recipe=resolve(opened.parts.recipe, None, named))),
        resolve(base, None, named),
        fast,
        PlannedTeacher(**kept, sha256=opened.sha256),
    )


def _asked(opened: Opened, held: PlannedTeacher | None) -> dict[str, Any]:
    """What the recipe says, or the plan where the recipe leaves it open.

    A plan of a version without Winograd's form says nothing of it, and neither do the recipes of that study's runs.
    """
    spec = require_teacher(opened.parts.recipe).engine
    asked: dict[str, Any] = {"dtype": spec.dtype, "winograd": spec.winograd}
    if held is None or held.sha256 != opened.sha256:
        return asked
    if held.winograd is None and spec.winograd == "auto":
        del asked["winograd"]
    return {key: getattr(held, key) if value == "auto" else value for key, value in asked.items()}


def _keys(engine: dict[str, Any]) -> dict[str, Any]:
    return {f"{_ENGINE}{key}": value for key, value in engine.items()}


def settled_words(settled: Settled) -> str:
    """What a reader of the study should know of it."""
    report = settled.fast.report
    return (
        f"teacher: its fast copy runs in {report.dtype} in all runs ({report.why}), {report.speedup:.2f}x as fast; its "
        f"error was measured at temperature {report.temperature:g}, the lowest of the channel-wise terms of all methods"
    )
