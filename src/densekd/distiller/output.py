"""What a forward pass of the distiller gives."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor


class DistillOutput(NamedTuple):
    """What one forward pass gives.

    Attributes:
        student: the student's own output, untouched.
        loss: the weighted sum of the terms, a scalar in float32 or better.
        parts: `{term name: weighted value}`, detached, in the order of the terms; 0 for a term at weight 0.
    """

    student: Any
    loss: Tensor
    parts: dict[str, Tensor]


class TermValues(NamedTuple):
    """The student's own output and the terms before they are weighted.

    Attributes:
        student: the student's own output, untouched.
        values: the unweighted value of each term asked for, with its graph.
    """

    student: Any
    values: dict[str, Tensor]
