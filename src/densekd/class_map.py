"""The teacher's class map in the student's label set."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from densekd.errors import ArgumentError
from densekd.taps import main_output

# The logit of a class that the teacher does not know: a probability of zero, and finite through a resize in float16.
_NEVER = -1e4


class ClassMap:
    """Which teacher classes each student class stands for, and the teacher's logits in the student's label set.

    For teacher logits `z_c` and the group `G_k` of teacher classes of student class k, the mapped logit is
    `m_k = logsumexp_{c in G_k} z_c = log sum_{c in G_k} exp z_c`. Then `softmax(m)_k = sum_{c in G_k} exp z_c /
    sum_j sum_{c in G_j} exp z_c`: the teacher's probability of the whole group, given that the pixel is of a class in
    some group. Where every teacher class is in a group that is `sum_{c in G_k} softmax(z)_c`: probabilities add up.
    Teacher classes in no group are dropped; theirs is shared out over the others in proportion.

    A student of two classes with one logit s, `sigmoid(s) = p_1`, has the mapped logit `m_1 - m_0` of the same meaning.

    Args:
        groups: for each student class its teacher classes; none in two groups, because its probability would count
            twice. An empty list: the teacher does not know this class, and its channel is compared for neither network.

    Raises:
        ArgumentError: not a list of lists of class numbers, a teacher class named twice, or no class with a teacher
            class.

    >>> classes = ClassMap([[0], [1, 2]])  # the student's second class is two classes of the teacher
    >>> teacher = torch.tensor([0.2, 0.3, 0.5]).log().view(1, 3, 1, 1)
    >>> classes.teacher(teacher).softmax(1).flatten()
    tensor([0.2000, 0.8000])
    """

    def __init__(self, groups: Sequence[Sequence[int]]) -> None:
        self.groups: list[list[int]] = []
        if isinstance(groups, str) or not isinstance(groups, Sequence):
            raise ArgumentError(
                "class_map: expected for each student class a list of teacher class numbers, as in [[0], [1, 2]], got "
                f"a {type(groups).__name__}"
            )
        owners: dict[int, int] = {}
        for place, group in enumerate(groups):
            if not isinstance(group, Sequence) or any(not isinstance(c, int) or c < 0 for c in group):
                raise ArgumentError(
                    f"class_map: expected for student class {place} a list of teacher class numbers, got {group!r}"
                )
            if len(set(group)) != len(group):
                raise ArgumentError(f"class_map: student class {place} names a teacher class twice: {list(group)}")
            for c in group:
                if owners.setdefault(c, place) != place:
                    raise ArgumentError(
                        f"class_map: teacher class {c} is in the groups of student classes {owners[c]} and {place}: "
                        "its probability would count twice; name it once"
                    )
            self.groups.append(list(group))
        if not any(self.groups):
            raise ArgumentError("class_map: no student class has a teacher class; expected a list of lists")
        self.known = [place for place, group in enumerate(self.groups) if group]

    @property
    def unknown(self) -> list[int]:
        """Student classes that the teacher does not know."""
        return [place for place, group in enumerate(self.groups) if not group]

    def check(self, student_classes: int, teacher_classes: int) -> None:
        """Refuse networks that the map does not fit.

        Args:
            student_classes, teacher_classes: how many there are.

        Raises:
            ArgumentError: the map has another number of student classes, or names a teacher class there is not; a
                student with one logit whose teacher knows one of its two classes alone.
        """
        if self._one_logit(student_classes):
            if len(self.known) < 2:
                raise ArgumentError(
                    "class_map: a student with one logit needs teacher classes for both of its classes, background and "
                    f"foreground, got {self.groups}"
                )
        elif len(self.groups) != student_classes:
            raise ArgumentError(
                f"class_map has {len(self.groups)} entries, the student has {student_classes} classes: expected one "
                "list of teacher classes per student class"
            )
        highest = max(max(group) for group in self.groups if group)
        if highest >= teacher_classes:
            raise ArgumentError(
                f"class_map names teacher class {highest}, but the teacher has {teacher_classes} classes "
                f"(0..{teacher_classes - 1})"
            )

    def _one_logit(self, student_classes: int) -> bool:
        return student_classes == 1 and len(self.groups) == 2

    def channels(self, student_classes: int) -> int:
        """Channels of both maps once mapped, of a student with so many: 1, or the classes the teacher knows.

        Args:
            student_classes: how many there are.
        """
        return 1 if self._one_logit(student_classes) else len(self.known)

    def teacher(self, logits: Tensor, student_classes: int | None = None) -> Tensor:
        """`(N, teacher classes, H, W)` -> `(N, known student classes, H, W)`, float32 or better.

        Args:
            logits: of the teacher.
            student_classes: channels of the student's map; 1 for a student with one logit, whose mapped logit
                `(N, 1, H, W)` is the difference. Default: one for each class.
        """
        logits = logits if logits.dtype == torch.float64 else logits.float()
        merged = [
            logits[:, group[0]] if len(group) == 1 else torch.stack([logits[:, c] for c in group]).logsumexp(0)
            for group in self.groups
            if group
        ]
        if student_classes is not None and self._one_logit(student_classes):
            merged = [merged[1] - merged[0]]
        return torch.stack(merged, dim=1)

    def student(self, logits: Tensor) -> Tensor:
        """`(N, student classes, H, W)` -> the channels of the classes the teacher knows.

        Args:
            logits: of the student.
        """
        if len(self.known) == len(self.groups):
            return logits
        return torch.stack([logits[:, place] for place in self.known], dim=1)

    def whole(self, logits: Tensor, student_classes: int) -> Tensor:
        """The teacher's logits as a class map of the student's: `(N, student_classes, H, W)`.

        A class that the teacher does not know has a logit so low that it is never answered.

        Args:
            logits: of the teacher.
            student_classes: how many there are.
        """
        mapped = self.teacher(logits, student_classes)
        if mapped.shape[1] == student_classes:
            return mapped
        every = mapped.new_full((len(mapped), student_classes, *mapped.shape[2:]), _NEVER)
        every[:, self.known] = mapped
        return every


@contextmanager
def in_student_classes(teacher: nn.Module, classes: ClassMap | None, student_classes: int) -> Iterator[None]:
    """Inside the block the teacher's output is its class map in the student's label set, as scores need it.

    Args:
        teacher: gives `(N, teacher classes, h, w)`; a forward hook maps it, which is removed at the end.
        classes: None: nothing is mapped.
        student_classes: channels of the student's class map.
    """
    if classes is None:
        yield
        return

    def mapped(_module: nn.Module, _args: Any, output: Any) -> Tensor:
        return classes.whole(main_output(output), student_classes)

    handle = teacher.register_forward_hook(mapped)
    try:
        yield
    finally:
        handle.remove()
