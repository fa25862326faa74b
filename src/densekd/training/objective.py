"""What a step minimises: the task loss of the student alone, or with the distillation terms added."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from densekd.distiller import Distiller
from densekd.errors import ArgumentError, TapError
from densekd.losses import Adversary
from densekd.models.auxiliary import auxiliary_of
from densekd.tasks.upsampling import PutOff
from densekd.training.adversaries import column
from densekd.training.evidence import TeacherPeaks
from densekd.training.last_upsampling import LastUpsampling, putting_off

Samples = Sequence[Sequence[int]]
"""(view, index) of each image of a batch. Numbers, because what wraps an objective sends tensors to its device."""


def samples_of(batch: Mapping[str, Any]) -> Samples | None:
    """Which view of which image a batch holds; None where its views are new in every epoch."""
    found = batch.get("sample")
    return None if found is None else found.tolist()


class TaskLoss(Protocol):
    """The part of a task that training needs."""

    @property
    def parts(self) -> tuple[str, ...]:
        """Names of the parts that `loss` returns."""

    def loss(
        self, output: Any, labels: Tensor, pixels: Tensor | None = None, put_off: PutOff | None = None
    ) -> tuple[Tensor, dict[str, Tensor]]: ...

    def pixels(self, labels: Tensor) -> Tensor | None: ...


class Objective(nn.Module):
    """Module from a batch to (total loss, detached parts by name); what Accelerate prepares and DDP wraps.

    Beside the parts, under names that begin with `HIDDEN`: what a step looks at and no log holds.
    """

    student: nn.Module

    def forward(
        self,
        image: Tensor,
        label: Tensor,
        valid: Tensor | None,
        pixels: Tensor | None = None,
        samples: Samples | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """The total and its parts.

        Args:
            pixels: what the task's sum over labelled pixels is divided by; None: their number in this batch.
            samples: (view, index) of each image, for a teacher whose maps are stored.
        """
        raise NotImplementedError(f"{type(self).__name__} must define forward")

    def pixels(self, label: Tensor) -> Tensor | None:
        """What the task's sum over the pixels of this batch is divided by; None where no such number is known."""
        return None

    def extra_state(self) -> nn.Module | None:
        """What is trained besides the student (adapters, loss parameters, auxiliary head), for checkpoints."""
        return None

    def set_weights(self, weights: dict[str, float]) -> None:
        """Set the weights of the distillation terms for the coming step."""

    def adversaries(self) -> dict[str, Adversary]:
        """By term: the networks that play against the student."""
        return {}

    def at_play(self) -> list[str]:
        """The terms whose adversaries a step trains: those at a weight above 0."""
        return []

    def reads_labels(self) -> set[str]:
        """The terms that have nothing to compare where nothing is labelled."""
        return set()


class Alone(Objective):
    """The student alone: `total = task loss`.

    Args:
        last: the up-samplings that the student ends in and that are left to the task's loss; None: none.
    """

    def __init__(self, student: nn.Module, task: TaskLoss, last: LastUpsampling | None = None) -> None:
        super().__init__()
        self._last = last
        self.student = student
        self.auxiliary = auxiliary_of(student)
        self._task = task

    def forward(
        self,
        image: Tensor,
        label: Tensor,
        valid: Tensor | None,
        pixels: Tensor | None = None,
        samples: Samples | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        with putting_off(self.student, self._last) as put_off:
            output = self.student(image)
        return task_loss(self._task, output, label, pixels, put_off())

    def pixels(self, label: Tensor) -> Tensor | None:
        return self._task.pixels(label)

    def extra_state(self) -> nn.Module | None:
        return self.auxiliary


class Distilled(Objective):
    """The student with its teacher: `total = task loss + sum of weighted terms`.

    Args:
        last: as of `Alone`.

    Raises:
        ArgumentError: a term has the name of a part of the task's loss, or of another term's adversary: one of the two
            would be lost from the log.
    """

    def __init__(self, distiller: Distiller, task: TaskLoss, last: LastUpsampling | None = None) -> None:
        super().__init__()
        self._last = last
        twice = [plan.name for plan in distiller.plans if plan.name in task.parts]
        if twice:
            raise ArgumentError(
                f"a term cannot be called {twice[0]!r}: it is a part of the task's loss (its parts: "
                f"{', '.join(task.parts)}); give the term another name"
            )
        played = {column(name) for name in distiller.adversaries}.intersection(plan.name for plan in distiller.plans)
        if played:
            raise ArgumentError(
                f"a term cannot be called {min(played)!r}: so is the loss of another term's adversary in the log; give "
                "the term another name"
            )
        self.distiller = distiller
        self.auxiliary = auxiliary_of(distiller.student)
        self._task = task
        self._peaks = TeacherPeaks(distiller)

    @property
    def student(self) -> nn.Module:  # type: ignore[override]
        return self.distiller.student

    def forward(
        self,
        image: Tensor,
        label: Tensor,
        valid: Tensor | None,
        pixels: Tensor | None = None,
        samples: Samples | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        looked_up = None if samples is None else torch.tensor(samples)
        with putting_off(self.student, self._last) as put_off:
            try:
                out = self.distiller(image, labels=label, valid=valid, samples=looked_up)
            except TapError as error:
                raise TapError(f"{error} ({_readers(self.distiller, str(error))})") from error
        task, parts = task_loss(self._task, out.student, label, pixels, put_off())
        return task + out.loss, {**parts, **out.parts, **self._peaks.taken()}

    def pixels(self, label: Tensor) -> Tensor | None:
        return self._task.pixels(label)

    def extra_state(self) -> nn.Module | None:
        if self.auxiliary is None:
            return self.distiller.adapters
        return nn.ModuleDict({"adapters": self.distiller.adapters, "auxiliary": self.auxiliary})

    def set_weights(self, weights: dict[str, float]) -> None:
        self.distiller.set_weights(weights)

    def adversaries(self) -> dict[str, Adversary]:
        return self.distiller.adversaries

    def at_play(self) -> list[str]:
        return [name for name in self.distiller.adversaries if self.distiller.weights[name] > 0]

    def reads_labels(self) -> set[str]:
        return {plan.name for plan in self.distiller.plans if plan.needs_labels}


def _readers(distiller: Distiller, said: str) -> str:
    """The terms whose taps an error names; a tap such as `logits` is named by its module there: then all that act."""
    acting = [plan for plan in distiller.plans if distiller.weights[plan.name] > 0]
    named = [plan for plan in acting if any(f"tap {side.tap!r}" in said for side in (plan.student, plan.teacher))]
    return f"read by term {', '.join(repr(plan.name) for plan in named or acting)}"


def task_loss(
    task: TaskLoss, output: Any, label: Tensor, pixels: Tensor | None, put_off: PutOff | None
) -> tuple[Tensor, dict[str, Tensor]]:
    """The task's loss of what the student gave, and its parts; `put_off`: the up-samplings left to it, None: none."""
    if put_off is None:
        return task.loss(output, label, pixels)
    return task.loss(output, label, pixels, put_off)


def placed(
    batch: Mapping[str, Any], device: torch.device, *, channels_last: bool
) -> tuple[Tensor, Tensor, Tensor | None]:
    """Images, labels and padding mask of a batch, as an objective gets them."""
    image = batch["image"].to(device, non_blocking=True)
    if channels_last:
        image = image.contiguous(memory_format=torch.channels_last)
    label = batch["label"].to(device, non_blocking=True)
    mask = padding_mask(batch["valid"])
    return image, label, None if mask is None else mask.to(device, non_blocking=True)


def padding_mask(valid: Tensor) -> Tensor | None:
    """The mask of real pixels, or None when no image of the batch was padded (the common case costs nothing)."""
    return None if bool(torch.all(valid)) else valid
