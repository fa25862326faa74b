"""The networks that play against the student: each has its own Adam and is stepped with it, on the same maps."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch
from accelerate import Accelerator
from torch import Tensor, nn

from densekd.errors import NonFiniteError
from densekd.losses import Adversary


def column(term: str) -> str:
    """The column of `log.csv` that holds the loss of the adversary of a term."""
    return f"{term}/adversary"


class Adversaries:
    """The adversaries of a run's terms, by term, and their optimisers; most runs have none.

    A step has two halves, so that nothing has changed yet where a value is not finite: `backward`, before the
    student's update, and `update` after it. The losses take detached maps, which that update leaves as they are.
    """

    def __init__(self, accelerator: Accelerator, found: Mapping[str, Adversary]) -> None:
        self._accelerator = accelerator
        self.found = dict(found)
        self.optimizers: dict[str, torch.optim.Optimizer] = {
            name: torch.optim.Adam(adversary.network.parameters(), lr=adversary.lr, betas=adversary.betas)
            for name, adversary in found.items()
        }
        self._ready: list[str] = []

    def backward(self, terms: Sequence[str]) -> dict[str, float]:
        """Loss and gradients of the adversaries of these terms; all losses by column, 0 for the others.

        Raises:
            NonFiniteError: a loss or a gradient is NaN or infinite; the message names the column.
        """
        self._ready = list(terms)
        return {column(name): self._backward(name) if name in self._ready else 0.0 for name in self.found}

    def update(self, factor: float) -> None:
        """One step of each adversary that `backward` worked on, at `factor` times its peak rate."""
        for name in self._ready:
            optimizer = self.optimizers[name]
            for group in optimizer.param_groups:
                group["lr"] = self.found[name].lr * factor
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
        self._ready = []

    def _backward(self, name: str) -> float:
        value = self.found[name].loss()
        # The mean over the ranks is not finite where one is not: no rank goes on alone.
        mean = float(self._accelerator.reduce(value.detach().clone(), reduction="mean"))
        if not math.isfinite(mean):
            raise NonFiniteError(f"{column(name)} = {mean}")
        value.backward()  # type: ignore[no-untyped-call]
        gradients = self._averaged(self.found[name].network)
        if not bool(torch.isfinite(nn.utils.get_total_norm(gradients))):
            raise NonFiniteError(f"the gradient of {column(name)}")
        return mean

    def _averaged(self, network: nn.Module) -> list[Tensor]:
        """The gradients, averaged over the ranks: these networks are wrapped by nothing that does it."""
        gradients = []
        for parameter in network.parameters():
            if parameter.grad is not None:
                parameter.grad = self._accelerator.reduce(parameter.grad, reduction="mean")
                gradients.append(parameter.grad)
        return gradients
