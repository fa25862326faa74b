"""What a network costs: live parameters and floating-point operations."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, NamedTuple

import torch
from torch import nn
from torch.nn.attention import SDPBackend, sdpa_kernel
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import FlopCounterMode

from densekd.errors import ModelError
from densekd.taps import preserved


class Measured(NamedTuple):
    """The cost of a network for one image.

    Attributes:
        parameters: elements of the live parameters: those that the forward pass reads, in eval or in train mode.
        dead_parameters: elements of the others.
        dead_names: the largest modules that hold dead parameters alone, else the parameters' own names.
        flops: operations of one forward pass in eval mode over one image of the example's size; a multiplication and
            the addition that follows count as two. Convolutions, matrix products and attention are counted;
            normalisation, activations and up-sampling are not.
    """

    parameters: int
    dead_parameters: int
    dead_names: tuple[str, ...]
    flops: int


def measure(network: nn.Module, example: torch.Tensor) -> Measured:
    """Count live parameters and operations of `network` on the first image of `example`.

    A parameter is live if the forward pass reads it. The network is run in eval mode; where parameters remain that were
    not read, once more in train mode on two images, because some heads take part only there. Modes, buffers, random
    state and gradients are as before afterwards.

    Args:
        network: takes `(N, 3, h, w)`.
        example: `(N, 3, h, w)`, N >= 1, on the network's device.

    Raises:
        ModelError: the network cannot be run on the example; its own words are given.
    """
    if example.ndim != 4 or len(example) == 0:
        raise ModelError(f"measure expects images (N, C, h, w) with N >= 1, got shape {tuple(example.shape)}")
    image = example[:1]
    counter = FlopCounterMode(display=False)
    with preserved(network), torch.no_grad():
        _set_modes(network, False)
        # Plain attention is matrix products, which every version of the counter knows; so are unfused encoder layers.
        with _plain_attention(), _Reads() as reads, counter:
            _run(network, image)
        if any(not reads.has(parameter) for parameter in network.parameters()):
            _set_modes(network, True)
            with reads:
                _run(network, torch.cat([image, image]))
    dead = {name: p.numel() for name, p in network.named_parameters() if not reads.has(p)}
    total = sum(parameter.numel() for parameter in network.parameters())
    return Measured(
        parameters=total - sum(dead.values()),
        dead_parameters=sum(dead.values()),
        dead_names=_summary(network, set(dead)),
        flops=int(counter.get_total_flops()),
    )


def _run(network: nn.Module, images: torch.Tensor) -> None:
    try:
        network(images)
    except Exception as error:
        mode = "train" if network.training else "eval"
        shape = tuple(images.shape)
        raise ModelError(
            f"the network fails in {mode} mode on images {shape}: {type(error).__name__}: {error}"
        ) from error


def _set_modes(network: nn.Module, training: bool) -> None:
    # Not network.train(): libraries override it, and modes are to be restored module by module.
    for module in network.modules():
        module.training = training


class _Reads(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Records the storage of every tensor that an operator is given."""

    def __init__(self) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._storages: set[int] = set()

    def has(self, parameter: nn.Parameter) -> bool:
        return _storage(parameter) in self._storages

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        given = tree_leaves((args, kwargs or {}))
        self._storages.update(_storage(value) for value in given if isinstance(value, torch.Tensor))
        return func(*args, **(kwargs or {}))


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def _plain_attention() -> Iterator[None]:
    fused = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(False)
    try:
        with sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mha.set_fastpath_enabled(fused)


def _summary(network: nn.Module, dead: set[str]) -> tuple[str, ...]:
    """Dead parameters as the largest modules that hold nothing else."""
    found: list[str] = []

    def visit(module: nn.Module, prefix: str) -> None:
        names = [f"{prefix}{name}" for name, _ in module.named_parameters()]
        if not dead.intersection(names):
            return
        if prefix and dead.issuperset(names):
            found.append(prefix.removesuffix("."))
            return
        found.extend(
            f"{prefix}{name}" for name, _ in module.named_parameters(recurse=False) if f"{prefix}{name}" in dead
        )
        for name, child in module.named_children():
            visit(child, f"{prefix}{name}.")

    visit(network, "")
    return tuple(found)
