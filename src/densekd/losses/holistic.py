"""Holistic distillation (HO): the student's maps as a whole must pass for the teacher's."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Size, Tensor
from torch.func import functional_call
from torch.nn.attention import SDPBackend, sdpa_kernel

from densekd.errors import ArgumentError, ShapeError
from densekd.functional.checks import check_choice, check_factor, check_maps, check_mask, working_type
from densekd.losses.base import Adversary, DistillationLoss
from densekd.losses.discriminator import Discriminator

OBJECTIVES = ("hinge", "wgan-gp")
#: channels of the discriminator's first layer at most: its parameters grow with their square, to some 500 million here
WIDEST = 1024


class Holistic(DistillationLoss):
    r"""A discriminator D scores class maps; the student learns to score as its teacher does.

        L = -E[D(S)]                                                          the term, for the student
        hinge:    E[max(0, 1 - D(T))] + E[max(0, 1 + D(S))]                    for D
        wgan-gp:  E[D(S)] - E[D(T)] + penalty * E[(|| dD/dX (X) ||_2 - 1)**2]  for D, X = a T + (1 - a) S

    with E the mean over the images of the batch (those with a valid position), and a drawn evenly from [0, 1] for each
    image. L has no lower bound, and equal maps do not make it 0.

    D is neither a sub-module nor among the parameters or in the state of this loss, and gets no gradient from L. It
    is built by `bind` and trained through `adversary()`, whose loss takes the maps of the last forward pass in
    training mode, detached. D computes in its own type, float32, whatever autocast says. Void positions are 0 in both
    maps before D sees them.

    Args:
        objective: "hinge" or "wgan-gp".
        penalty: weight of the gradient penalty in "wgan-gp".
        lr, beta1, beta2: of D's Adam.
        width: channels of D's first layer; its last has 8 times as many; 1 to 1024.

    Raises:
        ArgumentError, DtypeError: an option that cannot be, by its value or its type.

    >>> loss = Holistic(width=4)
    >>> loss.bind(torch.Size([2, 5, 16, 16]), torch.Size([2, 5, 16, 16]), num_classes=5)
    >>> value = loss(torch.rand(2, 5, 16, 16), torch.rand(2, 5, 16, 16))
    >>> loss.adversary().loss().requires_grad  # what the training loop steps its own optimiser on
    True
    >>> len(list(loss.parameters()))  # the network that plays against the student is no part of the loss
    0
    """

    name: ClassVar[str] = "holistic"
    logits_only: ClassVar[bool] = True
    default_weight: ClassVar[float] = 0.001
    cost: ClassVar[str] = "N P W (K + W), W the width of a network"

    _network: Discriminator | None
    _seen: tuple[Tensor, Tensor, Tensor] | None

    def __init__(
        self,
        objective: str = "hinge",
        penalty: float = 10.0,
        lr: float = 4e-4,
        beta1: float = 0.9,
        beta2: float = 0.99,
        width: int = 64,
    ) -> None:
        super().__init__()
        check_choice("objective", objective, OBJECTIVES)
        self.objective = objective
        self.penalty, self.lr = check_factor("penalty", penalty), check_factor("lr", lr)
        self.betas = (_share("beta1", beta1), _share("beta2", beta2))
        if isinstance(width, bool) or not isinstance(width, int) or not 1 <= width <= WIDEST:
            raise ArgumentError(f"width: expected a whole number from 1 to {WIDEST}, got {width!r}; for example 64")
        self.width = width
        self._hide(None)
        self._seen = None

    def bind(self, student_shape: Size, teacher_shape: Size, num_classes: int | None) -> None:
        """Build the discriminator for maps of as many channels as the teacher's.

        Args:
            student_shape: of the student's map, adapted.
            teacher_shape: of the teacher's map.
            num_classes: of the labels; None where nobody knows.
        """
        self._hide(Discriminator(teacher_shape[1], self.width))
        self._seen = None

    def adversary(self) -> Adversary:
        """The discriminator and its loss.

        Raises:
            ArgumentError: `bind` was not called.
        """
        return Adversary(self._bound(), self.adversary_loss, self.lr, self.betas)

    def forward(
        self,
        student_map: Tensor,
        teacher_map: Tensor,
        labels: Tensor | None = None,
        mask: Tensor | None = None,
    ) -> Tensor:
        network = self._bound()
        check_maps(student_map, teacher_map)
        check_mask(mask, student_map)
        if student_map.ndim != 4 or student_map.shape[1] != network.channels:
            raise ShapeError(
                f"Holistic: expected maps (N, {network.channels}, H, W) as it was bound to, got "
                f"{tuple(student_map.shape)}"
            )
        student, teacher = (self._prepared(x, mask) for x in (student_map, teacher_map.detach()))
        counts = student.new_ones(len(student)) if mask is None else mask.flatten(1).any(1).to(student.dtype)
        if self.training:
            self._seen = (student.detach(), teacher, counts)
        # Frozen: the term teaches the student alone, and in evaluation mode a forward pass leaves no trace in D.
        frozen = {name: parameter.detach() for name, parameter in network.named_parameters()}
        with torch.autocast(student.device.type, enabled=False):
            scores = functional_call(network.eval(), frozen, (student,))
        return -_mean(scores, counts).to(working_type(student_map, teacher_map))

    def adversary_loss(self) -> Tensor:
        """The discriminator's loss on the maps of the last forward pass in training mode.

        Raises:
            ArgumentError: there was none.
        """
        network = self._bound()
        if self._seen is None:
            raise ArgumentError(
                "Holistic: the discriminator learns from the maps of a forward pass in training mode; there was none"
            )
        student, teacher, counts = self._seen
        with torch.autocast(student.device.type, enabled=False):
            # A norm whose channels_last input needs no gradient ends the process in torch 2.11's backward pass.
            maps = torch.cat([student, teacher]).requires_grad_()
            fake, real = network.train()(maps).chunk(2)
            if self.objective == "hinge":
                return _mean(F.relu(1 - real), counts) + _mean(F.relu(1 + fake), counts)
            steepness = _slopes(network.eval(), student, teacher)
            return _mean(fake - real, counts) + self.penalty * _mean((steepness - 1).square(), counts)

    def _prepared(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """In the type of the discriminator; whatever stands in void positions, NaN included, becomes zero."""
        x = x.to(next(self._bound().parameters()).dtype)
        return x if mask is None else torch.where(mask[:, None], x, 0.0)

    def _bound(self) -> Discriminator:
        if self._network is None:
            raise ArgumentError("Holistic: call bind(student_shape, teacher_shape, num_classes) first")
        return self._network

    def _hide(self, network: Discriminator | None) -> None:
        # past nn.Module's own bookkeeping, which would list the discriminator among what the student's optimiser trains
        object.__setattr__(self, "_network", network)

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Holistic:
        super()._apply(fn, recurse)  # type: ignore[no-untyped-call]
        if self._network is not None:
            self._network._apply(fn)  # type: ignore[no-untyped-call]
        self._seen = None
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_seen": None}

    def extra_repr(self) -> str:
        shown = f"objective={self.objective!r}, lr={self.lr}, betas={self.betas}, width={self.width}"
        return shown if self.objective == "hinge" else f"{shown}, penalty={self.penalty}"


def _share(name: str, value: float) -> float:
    if check_factor(name, value) >= 1:
        raise ArgumentError(f"{name}: expected a number of at least 0 and below 1, got {value}; for example 0.9")
    return float(value)


def _mean(values: Tensor, counts: Tensor) -> Tensor:
    """Over the images that count; zero where none does."""
    return (values * counts).sum() / counts.sum().clamp(min=1)


def _slopes(network: Discriminator, student: Tensor, teacher: Tensor) -> Tensor:
    """Length of the gradient of each score at a random point between the maps, (N,), with its own derivative."""
    share = torch.rand(len(student), 1, 1, 1, device=student.device, dtype=student.dtype)
    mixed = torch.lerp(student, teacher, share).requires_grad_()
    # The fused kernels of attention have no second derivative.
    with sdpa_kernel(SDPBackend.MATH):
        (slope,) = torch.autograd.grad(network(mixed).sum(), mixed, create_graph=True)
    squares = slope.flatten(1).square().sum(1)
    # The root has no derivative at zero: flat scores take another value there, and are zeroed after it.
    return torch.where(squares > 0, torch.where(squares > 0, squares, 1.0).sqrt(), 0.0)
