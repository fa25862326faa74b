"""What the distiller and the training loop know of a loss."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn


@dataclass(frozen=True)
class Adversary:
    """A network that plays against the student, and how the training loop trains it.

    Attributes:
        network: has its own optimiser and is never part of `distiller.parameters()`.
        loss: its loss on the maps of the last forward pass, which it sees detached: a scalar to minimise.
        lr, betas: of its Adam; the rate follows the schedule of the run.
    """

    network: nn.Module
    loss: Callable[[], Tensor]
    lr: float
    betas: tuple[float, float]


class DistillationLoss(nn.Module):
    """A loss between a student map and a teacher map, both (N, C, *spatial).

    It knows nothing of networks, taps, weights or recipes.

    >>> class Absolute(DistillationLoss):
    ...     name = "absolute"
    ...     def forward(self, student_map, teacher_map, labels=None, mask=None):
    ...         return (student_map.float() - teacher_map.float()).abs().mean()
    >>> densekd.Term(Absolute(), student="encoder.layer4", teacher="encoder.layer4").name
    'absolute:encoder.layer4'
    """

    #: name on the command line and in recipes
    name: ClassVar[str]
    #: what `forward` needs beside the maps, for instance {"labels"}; an instance may need less or more by its options
    needs: frozenset[str] = frozenset()
    #: True where the channels must be classes: such a loss is refused on feature maps
    logits_only: ClassVar[bool] = False
    #: False where maps of different channel counts can be compared: the student's map then gets no 1x1 convolution
    equal_channels: ClassVar[bool] = True
    #: how time and memory grow, constants left out: N images, C channels (K where they must be classes), P positions;
    #: for instance "N C P"; empty where nobody said
    cost: ClassVar[str] = ""
    #: True where the value of a batch is not the mean of its images' values: then the processes of a run, each with
    #: images of its own, do not add up to one with all of them
    batch_wide: ClassVar[bool] = False
    #: weight of a term on logits where nobody chose one, as in `densekd compare --methods NAME`
    default_weight: ClassVar[float] = 1.0

    def bind(self, student_shape: torch.Size, teacher_shape: torch.Size, num_classes: int | None) -> None:
        """Called once, before training, with the shapes of the adapted maps, to build what depends on them.

        Args:
            student_shape: of the student's map, adapted.
            teacher_shape: of the teacher's map.
            num_classes: of the labels; None where nobody knows.
        """

    def adversary(self) -> Adversary | None:
        """A network that plays against the student, with its own loss and optimiser; most losses have none."""
        return None

    def forward(
        self,
        student_map: Tensor,
        teacher_map: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        """A scalar, float32 or better, zero where the student has nothing to learn.

        Args:
            student_map: `(N, C, *spatial)`, adapted to the teacher's.
            teacher_map: `(N, C, *spatial)`; it carries no gradient.
            labels: integers `(N, *spatial)` at the size of the maps, where `needs` has them.
            mask: bool `(N, *spatial)`, True where a position counts; None: everywhere.
        """
        raise NotImplementedError(f"{type(self).__name__} does not define forward")
