"""A distiller and the task's loss as one module, for the Trainer of transformers."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from torch import Tensor, nn

from densekd.distiller.distiller import Distiller
from densekd.errors import ArgumentError, DtypeError
from densekd.taps import main_output


class ForTrainer(nn.Module):
    """What transformers' `Trainer` trains: the task's loss plus the terms of a distiller.

    The Trainer hands on the columns of a data set that the signature of `forward` names, and drops all others
    (`remove_unused_columns`): here those are `pixel_values`, `labels` and `valid`, so that its defaults do. In
    evaluation mode the student runs alone: the loss is the task's, and the teacher rests.

    Checkpoints hold `distiller.student.*`, and `distiller.adapters.*` where there are adapters; never the teacher.
    The student alone is `distiller.student`.

    Args:
        distiller: as built; the terms' losses may read `labels`.
        task_loss: `task_loss(student_output, labels)`, a scalar; as of `densekd.preflight`.

    Attributes:
        parts: the terms' weighted values of the last training step, for a callback that logs them.

    Raises:
        DtypeError: no distiller, or a loss that cannot be called.
    """

    accepts_loss_kwargs = False
    """The Trainer then divides the loss by its accumulation steps itself, and passes nothing on for that."""

    def __init__(self, distiller: Distiller, task_loss: Callable[[Any, Tensor], Tensor]) -> None:
        super().__init__()
        if not isinstance(distiller, Distiller):
            raise DtypeError(f"ForTrainer needs a Distiller first, got a {type(distiller).__name__}")
        if not callable(task_loss):
            raise DtypeError(f"task_loss must be a function (student_output, labels) -> scalar, got {task_loss!r}")
        self.distiller, self.task_loss = distiller, task_loss
        self.parts: dict[str, Tensor] = {}

    def forward(
        self, pixel_values: Tensor, labels: Tensor | None = None, valid: Tensor | None = None
    ) -> dict[str, Tensor]:
        """One forward pass.

        Args:
            pixel_values: images `(N, C, H, W)`, given to both networks under this name.
            labels: as the task's loss takes them; None only in evaluation mode, and there is no loss then.
            valid: `(N, H, W)` bool, True where a pixel counts for the terms.

        Returns:
            `loss`, a scalar, and `logits`, the main tensor of the student's own output.

        Raises:
            ArgumentError: no labels in training.
            DensekdError: as of the distiller.
        """
        if not self.training:
            return self._alone(pixel_values, labels)
        if labels is None:
            raise ArgumentError("ForTrainer: no labels in training: the data set needs a column `labels`")
        out = self.distiller(pixel_values=pixel_values, labels=self._for_terms(labels), valid=valid)
        self.parts = out.parts
        return {"loss": self.task_loss(out.student, labels) + out.loss, "logits": main_output(out.student)}

    def _alone(self, pixel_values: Tensor, labels: Tensor | None) -> dict[str, Tensor]:
        output = self.distiller.student(pixel_values=pixel_values)
        logits = {"logits": main_output(output)}
        return logits if labels is None else {"loss": self.task_loss(output, labels), **logits}

    def _for_terms(self, labels: Tensor) -> Tensor | None:
        """Labels that no term reads are the task's alone, and need not be a class for each pixel."""
        return labels if any(plan.needs_labels for plan in self.distiller.plans) else None
