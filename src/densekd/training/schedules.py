"""Learning rate and term weights as pure functions of the step: nothing to save, nothing to drift on a resume."""

from __future__ import annotations

import math

from densekd.training.specs import ScheduleSpec, TermSpec


def _cosine(start: float, end: float, share: float) -> float:
    return end + (start - end) * (1 + math.cos(math.pi * share)) / 2


def learning_rate_factor(spec: ScheduleSpec, step: int, steps: int) -> float:
    """Factor of the peak learning rate at `step` of `steps` (steps count from 0).

    * poly: `floor + (1 - floor) * (1 - step/steps)**power`, after a linear warm-up if asked;
    * onecycle: cosine from `1/div_factor` up to 1 over `pct_start` of the steps, then cosine down to
      `1/(div_factor*final_div_factor)` (Smith and Topin, arXiv 1708.07120, in the two-phase cosine form);
    * constant: 1, after the warm-up.
    """
    if spec.name == "onecycle":
        top = max(1.0, spec.pct_start * steps - 1)
        if step <= top:
            return _cosine(1 / spec.div_factor, 1.0, step / top)
        low = 1 / (spec.div_factor * spec.final_div_factor)
        return _cosine(1.0, low, min(1.0, (step - top) / max(1.0, steps - 1 - top)))
    factor = spec.floor + (1 - spec.floor) * (1 - step / steps) ** spec.power if spec.name == "poly" else 1.0
    if step < spec.warmup_steps:
        factor *= spec.warmup_factor + (1 - spec.warmup_factor) * step / spec.warmup_steps
    return factor


def term_weight(spec: TermSpec, step: int, steps: int) -> float:
    """Weight of a term at `step`: linear warm-up, then constant or decaying (linear, cosine), 0 from its end."""
    end = min(spec.end_step or steps, steps)
    if step >= end:
        return 0.0
    weight = spec.weight
    if step < spec.warmup_steps:
        weight *= (step + 1) / spec.warmup_steps
    if spec.decay == "linear":
        weight *= 1 - step / end
    elif spec.decay == "cosine":
        weight *= _cosine(1.0, 0.0, step / end)
    return weight
