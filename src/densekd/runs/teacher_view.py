"""Scores of a teacher in the label set of the data."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import nn

from densekd.class_map import in_student_classes
from densekd.evaluate import View
from densekd.runs.assemble import Parts


class KnownPixels:
    """A view whose labels are void where the teacher does not know the class: it could not be right there."""

    def __init__(self, view: View, unknown: Sequence[int], ignore_index: int) -> None:
        self.view, self.unknown, self.ignore_index = view, torch.tensor(list(unknown)), ignore_index

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, index: int) -> Mapping[str, Any]:
        entry = self.view[index]
        label = entry["label"]
        return {**entry, "label": label.masked_fill(torch.isin(label, self.unknown), self.ignore_index)}


@contextmanager
def scored_teacher(parts: Parts, teacher: nn.Module, view: View) -> Iterator[View]:
    """Inside the block the teacher answers in the classes of the data; gives the view to score it on.

    Both are what they were where the teacher has the data's own label set.
    """
    own = parts.teacher_classes()
    classes = None if own is None else own.map
    if classes is not None and classes.unknown:
        view = KnownPixels(view, classes.unknown, parts.data.ignore_index)
    with in_student_classes(teacher, classes, parts.task.num_outputs):
        yield view
