"""How long a run is."""

from __future__ import annotations

import math
from fractions import Fraction

from densekd.config import Recipe
from densekd.errors import ConfigError
from densekd.runs.share import images_of_step


def total_steps(recipe: Recipe, images: int, per_step: int | None = None) -> int:
    """Optimiser steps of the whole run; epochs are rounded up to whole steps.

    Args:
        images: to train on.
        per_step: labelled images a step; default those of one process.

    Raises:
        ConfigError: a warm-up or a term that would not end, or not begin, within them.
    """
    steps = recipe.train.steps
    if steps is None:
        assert recipe.train.epochs is not None  # TrainSpec has exactly one of them
        per_step = per_step or images_of_step(recipe.train, 1)
        # As a fraction of the number as written: 1.1 epochs of 10 images are 11 images, not 11.000000000000002.
        steps = math.ceil(Fraction(repr(recipe.train.epochs)) * images / per_step)
    _check_within("train.schedule", recipe.train.schedule.warmup_steps, steps, "steps of the run")
    for place, term in enumerate(recipe.terms):
        end = min(term.end_step or steps, steps)
        _check_within(f"terms.{place}", term.warmup_steps, end, "steps of the term")
    return steps


def _check_within(key: str, warmup: int, steps: int, what: str) -> None:
    if warmup and warmup >= steps:
        raise ConfigError(f"{key}.warmup_steps: {warmup} of {steps} {what}: the warm-up would never end")


def epochs_of(steps: int, per_step: int, images: int) -> float:
    """Passes over the training images that so many steps make."""
    return round(steps * per_step / images, 4)
