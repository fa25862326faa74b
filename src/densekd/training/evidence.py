"""A step that ended in a value that is not finite, as it is kept: what went in, what came out, and where."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, NamedTuple

import torch
from torch import Tensor, nn

from densekd.distiller import Distiller

HIDDEN = "\0"
"""How names of values begin that are looked at in every step and are no part of the loss; no term can be called so."""

Kind = Literal["loss", "teacher", "gradient", "adversary"]


class Shown(NamedTuple):
    """A micro-batch as the objective got it; `pixels`: what the task's loss was divided by."""

    batch: Mapping[str, Any]
    pixels: Tensor | None


@dataclass
class Evidence:
    """What a step was doing.

    Attributes:
        number: the step, counted from 0.
        shown: its micro-batches so far.
        weights: of the terms.
        learning_rate: of the step.
        kind: what was not finite; None as long as nothing was.
        bad: the values, terms' maps or parameters that were not finite, by name.
        values: loss (`""`) and parts of the newest micro-batch in this process.
        mine: whether this process saw it; of a gradient, which is the sum over processes, all have.
    """

    number: int = 0
    shown: list[Shown] = field(default_factory=list)
    weights: dict[str, float] = field(default_factory=dict)
    learning_rate: float = 0.0
    kind: Kind | None = None
    bad: list[str] = field(default_factory=list)
    values: dict[str, float] = field(default_factory=dict)
    mine: bool = True

    def found(self, kind: Kind, bad: Sequence[str], *, mine: bool = True) -> None:
        """Note what was not finite."""
        self.kind, self.bad, self.mine = kind, list(bad), mine


class TeacherPeaks:
    """The largest magnitude in each map of the teacher, as the terms get it: not finite where a value is not.

    A loss may be finite over such a map (a mask can hide the place), and the teacher is broken all the same. One pass
    over each map, on its device; nothing is waited for.

    Args:
        distiller: its terms are watched.
    """

    def __init__(self, distiller: Distiller) -> None:
        self._peaks: dict[str, Tensor] = {}
        for plan in distiller.plans:
            distiller.adapters[plan.key].register_forward_pre_hook(_Peak(self._peaks, HIDDEN + plan.name))

    def taken(self) -> dict[str, Tensor]:
        """Those of the last forward pass, by term after `HIDDEN`; they are forgotten."""
        found = dict(self._peaks)
        self._peaks.clear()
        return found


class _Peak:
    """A hook as a plain object: it can be copied with its network."""

    def __init__(self, peaks: dict[str, Tensor], name: str) -> None:
        self._peaks, self._name = peaks, name

    def __call__(self, module: nn.Module, args: tuple[Any, ...]) -> None:
        teacher = args[1].detach()
        if teacher.numel():
            low, high = (value.float().abs() for value in torch.aminmax(teacher))
            self._peaks[self._name] = torch.maximum(low, high)
