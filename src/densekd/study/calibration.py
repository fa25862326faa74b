"""How long a step of each method takes, timed on real steps of real, thrown-away runs."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densekd import files
from densekd.config import Recipe
from densekd.runs import distill, train
from densekd.runs.mixing import unlabelled_share
from densekd.runs.progress import Quiet
from densekd.runs.share import images_of_step
from densekd.training.stepper import StepResult

_WARM_UP = 3
_LEAST, _MOST = 5, 30
_PATIENCE_SECONDS = 15.0


class _Enough(BaseException):
    """Ends a timed run; no error that anybody should handle on the way."""


class _Timing(Quiet):
    """Keeps the seconds of the steps after the warm-up, and ends the run when they are enough."""

    def __init__(self, watch: Quiet, warm_up: int) -> None:
        self.seconds: list[float] = []
        self._watch, self._warm_up = watch, warm_up

    def step(self, taken: int, steps: int, result: StepResult) -> None:
        self._watch.step(taken, steps, result)
        if taken > self._warm_up:
            self.seconds.append(result.seconds)
        enough = len(self.seconds) >= _LEAST and sum(self.seconds) >= _PATIENCE_SECONDS
        if enough or len(self.seconds) >= _MOST:
            raise _Enough


def warm_up_of(recipe: Recipe, images: int, unlabelled: int = 0) -> int:
    """Steps before those that are timed: three; with `data.in_memory` one pass over all images more.

    In the first pass images are read, decoded or drawn, later they are not: a run of many passes takes its time from
    the later ones. (Each loading process keeps its own; with several of them some images are read a second time.)

    Args:
        recipe: of the runs.
        images: labelled ones to train on.
        unlabelled: others to train on.
    """
    if not recipe.data.in_memory:
        return _WARM_UP
    more = unlabelled_share(recipe, used=True)[0] * recipe.train.accumulate
    passes = [images / images_of_step(recipe.train, 1), unlabelled / more if more else 0]
    return _WARM_UP + math.ceil(max(passes))


def time_methods(
    methods: Sequence[Mapping[str, Any]], folder: Path, watch: Quiet, warm_up: int
) -> dict[str, list[float]]:
    """Seconds of single steps (loading, both networks, all terms, update) of each method.

    The methods take turns, first to last and back, so that a machine that grows slower or faster meanwhile hits them
    alike. Each turn is a run of its own under `folder`, ended after the warm-up and up to 30 steps (at least 5, about
    15 seconds) and removed.

    Args:
        methods: `name`, `kind` ("train" or "distill") and `recipe` (as a mapping, with `train.steps`) of each.
        folder: where the runs go; each is removed after its turn.
        watch: sees the steps.
        warm_up: steps of each turn that are not timed, of `warm_up_of`.
    """
    found: dict[str, list[float]] = {str(method["name"]): [] for method in methods}
    for turn, method in enumerate([*methods, *reversed(methods)]):
        place = folder / f"turn-{turn}"
        timing = _Timing(watch, warm_up)
        call = train if method["kind"] == "train" else distill
        try:
            call(_short(method["recipe"], warm_up + _MOST + 1), out=place, progress=timing)
        except _Enough:
            found[str(method["name"])] += timing.seconds
        finally:
            files.remove_folder(place)
    return found


def _short(recipe: Mapping[str, Any], steps: int) -> dict[str, Any]:
    """The same steps, without evaluations and checkpoints among them, and without an exam of the teacher."""
    train_part = {
        **recipe["train"],
        "steps": max(steps, recipe["train"]["steps"]),
        "evaluate_every": None,
        "checkpoint_every": 10**9,
        "checkpoint_minutes": 10.0**6,
    }
    preflight = {**recipe["preflight"], "teacher_images": 0, "on_problem": "warn"}
    return {**recipe, "train": train_part, "preflight": preflight}


def steps_for(reference_steps: int, reference_seconds: float, seconds: float) -> int:
    """Steps of `seconds` each that take as long as `reference_steps` of `reference_seconds` each; at least one."""
    return max(1, round(reference_steps * reference_seconds / seconds))


def median_of(samples: Sequence[Sequence[float]]) -> tuple[float, int]:
    """Median of the pooled seconds, and how many there are."""
    pooled = [value for some in samples for value in some]
    return statistics.median(pooled), len(pooled)
