"""How long each method trains: fixed before its first run, kept in `plan.json`, the same after a resume."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from pydantic import ValidationError

from densekd import files
from densekd.config import Recipe
from densekd.errors import CheckpointError, RunError
from densekd.records import STUDENT_ALONE, Budget, PlannedMethod, StudyPlan, dump
from densekd.study.calibration import median_of, steps_for
from densekd.study.machine import Share
from densekd.study.methods import Method
from densekd.study.progress import Silent
from densekd.study.tasks import digest_of
from densekd.study.timing import timed

PLAN = "plan.json"


def read_plan(folder: Path) -> StudyPlan | None:
    """The study's plan; None before there is one.

    Raises:
        RunError: it is there and cannot be read.
    """
    path = folder / PLAN
    if not path.is_file():
        return None
    try:
        return StudyPlan.model_validate(files.read_json(path))
    except ValidationError as error:
        first = error.errors()[0]
        where = ".".join(map(str, first["loc"])) or "the whole"
        raise RunError(f"{path}: not a plan of schema 1: {where}: {first['msg']}; remove it to plan anew") from None
    except CheckpointError as error:
        raise RunError(f"{error}; remove it to plan anew") from None


def write_plan(folder: Path, plan: StudyPlan) -> None:
    """Write `plan.json` whole."""
    files.write_json(folder / PLAN, dump(plan))


def planned_steps(plan: StudyPlan | None, methods: Sequence[Method]) -> dict[str, int | None]:
    """Steps of each method as a run's recipe has them; None: the recipe's own, and so for the student alone."""
    known = {} if plan is None or plan.budget == "steps" else {entry.name: entry.steps for entry in plan.methods}
    return {method.name: None if method.name == STUDENT_ALONE else known.get(method.name) for method in methods}


def current(plan: StudyPlan | None, base: Recipe, methods: Sequence[Method]) -> dict[str, PlannedMethod]:
    """The plan's entries that still hold: of methods whose recipe, and that of the student alone, are unchanged."""
    digests = {method.name: digest_of(method.recipe(base, 0)) for method in methods}
    entries = {} if plan is None else {entry.name: entry for entry in plan.methods}
    if STUDENT_ALONE in entries and entries[STUDENT_ALONE].recipe_sha256 != digests[STUDENT_ALONE]:
        return {}
    return {name: entry for name, entry in entries.items() if digests.get(name) == entry.recipe_sha256}


def plan_by_steps(
    before: StudyPlan | None, base: Recipe, methods: Sequence[Method], steps: Mapping[str, int], share: Share
) -> StudyPlan:
    """Every method trains for the recipe's steps."""
    made = [
        PlannedMethod(name=m.name, steps=steps[m.name], recipe_sha256=digest_of(m.recipe(base, 0))) for m in methods
    ]
    return _joined(before, "steps", None, made, share)


def plan_by_seconds(
    before: StudyPlan | None,
    base: Recipe,
    methods: Sequence[Method],
    steps: Mapping[str, int],
    share: Share,
    folder: Path,
    watch: Silent,
    warm_up: int,
) -> StudyPlan:
    """Every method trains for as long as the student alone takes for its steps.

    `steps = round(steps of the student alone * its seconds per step / the method's seconds per step)`, both times from
    one calibration on this machine, as many at a time as runs will be. The student alone is the reference because its
    time depends on the recipe and not on which methods are compared: a method that is added later changes no other.

    Raises:
        RunError: a method could not be timed.
    """
    held = current(before, base, methods)
    missing = [method for method in methods if method.name not in held]
    if not missing:
        assert before is not None
        return before
    first = [methods[0], *(method for method in missing if method.name != STUDENT_ALONE)]
    watch.said(f"budget: timing a few steps of {', '.join(method.name for method in first)}")
    alone = steps[STUDENT_ALONE]
    seconds = _calibrate(base, first, alone, share, folder, watch, warm_up)
    reference, _ = seconds[STUDENT_ALONE]
    made = []
    for method in missing:
        own, count = seconds[method.name]
        length = alone if method.name == STUDENT_ALONE else steps_for(alone, reference, own)
        made.append(
            PlannedMethod(
                name=method.name,
                steps=length,
                seconds_per_step=own,
                reference_seconds_per_step=reference,
                samples=count,
                recipe_sha256=digest_of(method.recipe(base, 0)),
            )
        )
    budget = alone * reference if before is None or STUDENT_ALONE not in held else before.seconds
    return _joined(before, "seconds", budget, [*held.values(), *made], share)


def _joined(
    before: StudyPlan | None, budget: Budget, seconds: float | None, entries: Sequence[PlannedMethod], share: Share
) -> StudyPlan:
    """The plan with these entries, and those of methods that are not asked for this time."""
    fresh = {entry.name: entry for entry in entries}
    others = [] if before is None or before.budget != budget else [e for e in before.methods if e.name not in fresh]
    return StudyPlan(
        budget=budget,
        seconds=seconds,
        jobs=len(share.places),
        threads=share.threads,
        methods=[*fresh.values(), *others],
    )


def _calibrate(
    base: Recipe, methods: Sequence[Method], steps: int, share: Share, folder: Path, watch: Silent, warm_up: int
) -> dict[str, tuple[float, int]]:
    """Median seconds of a step of each method, and from how many: one calibration per run at a time, side by side."""
    asked = [
        {
            "name": method.name,
            "kind": method.kind,
            "recipe": method.recipe(base, base.seed, steps=steps, threads=share.threads).model_dump(mode="json"),
        }
        for method in methods
    ]
    samples = timed(asked, share.places, folder / ".calibration.part", watch, warm_up)  # swept away if we are killed
    return {method.name: median_of([some[method.name] for some in samples]) for method in methods}


def told(plan: StudyPlan, methods: Sequence[Method]) -> list[str]:
    """Lines for the user: what each method may spend."""
    entries = {entry.name: entry for entry in plan.methods}
    if plan.budget == "steps":
        return []
    lines = [
        f"budget: {plan.seconds:.1f} s of training for each method, as long as the student alone takes for its "
        f"{entries[STUDENT_ALONE].steps} steps"
    ]
    for method in methods[1:]:
        entry = entries[method.name]
        own, reference = entry.seconds_per_step or 0.0, entry.reference_seconds_per_step or 1.0
        lines.append(
            f"budget: {method.name}: {entry.steps} steps, each {own / reference:.2f} times one of the student alone"
        )
    return lines
