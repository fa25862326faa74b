"""Everything that can be told before the first run: data, networks, and every method's terms once on real images."""

from __future__ import annotations

import copy
import json
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import torch
from torch import nn

from densekd.config import Recipe
from densekd.errors import ConfigError, DensekdError
from densekd.failures import explained
from densekd.losses.catalog import make_loss
from densekd.models.digest import weights_digest
from densekd.records import STUDENT_ALONE
from densekd.runs.assemble import Parts, assemble, build_distiller, build_teacher
from densekd.runs.forecast import Forecast
from densekd.runs.length import total_steps
from densekd.runs.progress import Quiet
from densekd.runs.readiness import check_readiness
from densekd.runs.rehearsal import rehearse
from densekd.study.methods import Method
from densekd.study.progress import Silent
from densekd.teacher import FrozenTeacher


@dataclass(frozen=True)
class Opened:
    """The parts that all runs of a study share, and its one teacher."""

    parts: Parts
    teacher: nn.Module
    sha256: str


def open_study(recipe: Recipe, watch: Quiet) -> Opened:
    """Open data and networks as a run does; the student has run once, the teacher too.

    Args:
        recipe: of one run under the teacher.

    Raises:
        DensekdError: what the run itself would raise.
    """
    parts = assemble(recipe, watch=watch.checking, said=watch.said)
    rehearse(parts)
    teacher = build_teacher(parts)
    return Opened(parts, teacher, weights_digest(teacher))


def lengths(opened: Opened, base: Recipe, methods: Sequence[Method], seed: int) -> dict[str, int]:
    """Steps of each method at the recipe's own length.

    Raises:
        ConfigError: a warm-up or a term that would not end within them.
    """
    return lengths_of([(method, method.recipe(base, seed)) for method in methods], len(opened.parts.data.train))


def lengths_of(recipes: Sequence[tuple[Method, Recipe]], images: int) -> dict[str, int]:
    """Steps of each method by its recipe, the last one where there are several.

    Args:
        images: of the training set.

    Raises:
        ConfigError: as `lengths`.
    """
    found = {}
    for method, recipe in recipes:
        try:
            found[method.name] = total_steps(recipe, images)
        except ConfigError as error:
            raise ConfigError(_of(method, str(error))) from None
    return found


def require_ready(
    opened: Opened, teacher: FrozenTeacher, recipes: Sequence[tuple[Method, Recipe]], folder: Path, watch: Silent
) -> tuple[dict[str, Forecast], list[str]]:
    """Build every method's distiller and check it on the first training batch, the teacher with the first of them.

    Args:
        teacher: the fast copy, with the taps of all methods.
        recipes: the methods that have runs to do, with the recipe of one of them.
        folder: the study's, for the free disk.
        watch: sees how many were checked.

    Returns:
        What a run of each method will cost, and lines for the user.

    Raises:
        ConfigError: a method that cannot work here, and why; all problems that the checks of the others found.
    """
    told: dict[str, list[Method]] = {}
    problems: list[str] = []
    forecasts: dict[str, Forecast] = {}
    looked: dict[str, Forecast] = {}
    distilled = [(method, recipe) for method, recipe in recipes if method.name != STUDENT_ALONE]
    for place, (method, recipe) in enumerate(distilled):
        watch.counting("checking methods", place, len(distilled))
        kind = _kind(method)
        if kind in looked:
            forecasts[method.name] = looked[kind]
            continue
        if looked:
            recipe = recipe.model_copy(update={"preflight": recipe.preflight.model_copy(update={"teacher_images": 0})})
        cost, lines, wrong = _look(opened, method, recipe, folder, watch.run("check"), teacher)
        for line in lines:
            told.setdefault(line, []).append(method)
        problems += wrong
        if cost is None:  # its forward pass fails: no warning would make that a run
            raise ConfigError("\n".join(wrong))
        forecasts[method.name] = looked[kind] = cost
    if problems and opened.parts.recipe.preflight.on_problem == "stop":
        raise ConfigError("\n".join([*problems, "nothing was trained; preflight.on_problem=warn trains all the same"]))
    # What several methods say is of the networks, not of the methods.
    said = [_of(which[0], line) if len(which) == 1 < len(looked) else line for line, which in told.items()]
    return forecasts, [*opened.parts.unseen, *said, *problems]


def _kind(method: Method) -> str:
    """What a check depends on: settings of one loss that differ in weight, temperature and schedule are checked once.

    Raises:
        ConfigError: an option that the loss does not have, or a value that cannot be.
    """
    kinds = []
    for term in method.terms:
        try:
            make_loss(term.method, dict(term.options))
        except DensekdError as error:
            raise ConfigError(_of(method, str(error))) from None
        options = {key: value for key, value in term.options.items() if key != "temperature"}
        kinds.append([term.method, term.student, term.teacher, term.name, sorted(options.items())])
    return json.dumps(kinds)


def _look(
    opened: Opened, method: Method, recipe: Recipe, folder: Path, watch: Quiet, teacher: FrozenTeacher
) -> tuple[Forecast | None, list[str], list[str]]:
    """Forecast, notices and problems of one method; the shared networks stay as they were."""
    # A copy, because a distiller freezes what takes no part in its own terms.
    parts = replace(opened.parts, recipe=recipe, student=copy.deepcopy(opened.parts.student), notices=[])
    steps = total_steps(recipe, len(parts.data.train))
    try:
        distiller = build_distiller(parts, teacher)  # not closed: it would close the teacher too
        found = check_readiness(parts, distiller, opened.teacher, steps=steps, folder=folder, watch=watch.examining)
    except Exception as error:
        known = explained(error)
        if known is None:
            raise
        raise ConfigError(_of(method, str(known))) from error
    finally:
        if parts.device.type == "cuda":
            torch.cuda.empty_cache()
    teachers = [] if found.exam is None else found.exam.problems  # no method's
    problems = [problem if problem in teachers else _of(method, problem) for problem in found.problems]
    return found.forecast, [*parts.notices, *found.notices], problems


def _of(method: Method, line: str) -> str:
    return f"method {method.name!r}: {line}"
