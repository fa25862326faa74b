"""A network as the teacher: run on every batch, frozen."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
from torch import Tensor, nn

from densekd.taps import TapReader
from densekd.teacher.source import Batch


def freeze(network: nn.Module) -> None:
    """Evaluation mode and no gradients, for good. The network itself is changed, not a copy of it."""
    network.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)


class LiveTeacher:
    """A network that is run on every batch, frozen and without a graph.

    Not an `nn.Module` on purpose: whatever holds it does not list the teacher's parameters, save them, or wrap
    them for distributed training.

    Args:
        network: the teacher. Its `requires_grad` flags are set to False and it is put in evaluation mode.
        taps: the taps to read.

    >>> from densekd.teacher import Batch
    >>> network = torch.nn.Conv2d(3, 5, 1)
    >>> teacher = LiveTeacher(network, taps=["output"])
    >>> teacher.maps(Batch((torch.rand(2, 3, 4, 4),), {}))["output"].requires_grad
    False
    """

    def __init__(self, network: nn.Module, taps: Iterable[str] = ("output",)) -> None:
        self.network = network
        self.reader = TapReader(network, taps, who="teacher")
        freeze(network)

    def maps(self, batch: Batch) -> dict[str, Tensor]:
        """The tapped maps of one forward pass under `no_grad`, always in evaluation mode.

        Args:
            batch: what the network gets.
        """
        if self.network.training:
            self.network.eval()
        with torch.no_grad():
            return self.reader.run(self.network, batch.args, batch.kwargs)[1]

    def train(self, mode: bool = True) -> LiveTeacher:
        """Stays in evaluation mode, whatever `mode` says.

        Args:
            mode: without effect.
        """
        self.network.eval()
        return self

    def close(self) -> None:
        """Remove the hooks."""
        self.reader.close()

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LiveTeacher:
        self.network._apply(fn)  # type: ignore[no-untyped-call]
        return self
