"""What the pre-flight found."""

from __future__ import annotations

from dataclasses import asdict, dataclass, field
from typing import Any

from densekd.errors import DensekdError


@dataclass
class TermRow:
    """One term on the pre-flight batch.

    Attributes:
        name: the term's.
        student_tap, teacher_tap: what it reads.
        student_shape, teacher_shape: the tapped maps as (N, C, H, W), before the adapter.
        weight: the term's, now.
        value: the weighted value; None where it was not computed.
        gradient_norm: Euclidean norm of the weighted term's gradient at the student's trainable parameters.
        ratio: that norm over the task's, both at the parameters that both reach; None where the task has none.
        proposed_weight: the weight at which `ratio` would be 1 (two digits); with several terms, each by itself.
        problem: why the term is not in order, or None.
    """

    name: str
    student_tap: str
    teacher_tap: str
    student_shape: tuple[int, ...]
    teacher_shape: tuple[int, ...]
    weight: float
    value: float | None = None
    gradient_norm: float | None = None
    ratio: float | None = None
    proposed_weight: float | None = None
    problem: str | None = None

    @property
    def ok(self) -> bool:
        return self.problem is None


@dataclass
class Report:
    """The result of `densekd.preflight`.

    Attributes:
        terms: a row for each term.
        problems: what must be put right before training.
        notices: what is worth knowing.
        task_value: the task's loss.
        task_gradient_norm: norm of its gradient at the student's trainable parameters.
    """

    terms: list[TermRow] = field(default_factory=list)
    problems: list[str] = field(default_factory=list)
    notices: list[str] = field(default_factory=list)
    task_value: float | None = None
    task_gradient_norm: float | None = None

    @property
    def ok(self) -> bool:
        """Whether nothing stands against training."""
        return not self.problems

    def rows(self) -> list[dict[str, str]]:
        """One row of short texts per term, in the order of the columns of a table."""
        return [
            {
                "term": row.name,
                "student map": "x".join(map(str, row.student_shape)),
                "teacher map": "x".join(map(str, row.teacher_shape)),
                "weight": f"{row.weight:g}",
                "value": _number(row.value),
                "gradient": _number(row.gradient_norm),
                "of the task's": _number(row.ratio),
                "proposed weight": _number(row.proposed_weight),
                "state": _state(row),
            }
            for row in self.terms
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        return {"ok": self.ok, **asdict(self)}

    def raise_if_failed(self) -> None:
        """Let nothing go on that the pre-flight stands against.

        Raises:
            DensekdError: with every problem, if there is one.
        """
        if self.problems:
            raise DensekdError("the pre-flight failed: " + "; ".join(self.problems))


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.3g}"


def _state(row: TermRow) -> str:
    if row.problem is not None:
        return "problem"
    return "off" if row.weight == 0 else "ok"
