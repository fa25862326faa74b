"""The zero to which a step's terms are added: it reaches what the step leaves out."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from densekd.errors import TapError
from densekd.taps import main_output


def zero(output: Any, values: Mapping[str, Tensor], left_out: Sequence[nn.Module], student: nn.Module) -> Tensor:
    """A zero that depends on what a step leaves out, so that every parameter still gets a gradient.

    The sum over an empty slice: zero and with zero gradient even where the values are not finite.

    Args:
        output: the student's.
        values: of the terms that the step has.
        left_out: adapters and losses of the terms that it has not.
        student: its output stands for it where the step has no term at all.
    """
    reached: list[Tensor] = [p for module in left_out for p in module.parameters() if p.requires_grad]
    if not values:
        reached.append(_student_tensor(output, student))
    total = next(iter(values.values())).new_zeros(()) if values else torch.zeros((), device=reached[-1].device)
    for tensor in reached:
        total = total + tensor.reshape(-1)[:0].sum()
    return total


def _student_tensor(output: Any, student: nn.Module) -> Tensor:
    try:
        main = main_output(output)
    except TapError:
        return next(p for p in student.parameters() if p.requires_grad)
    return main
