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
from densekd.failures import out_of_memory, own_place
from densekd.taps import main_output, preserved


class Measured(NamedTuple):
    """The cost of a network for one image.

    Attributes:
        parameters: elements of the live parameters: those that the output depends on, in eval or in train mode.
        dead_parameters: elements of the others.
        dead_names: the largest modules that hold dead parameters alone, else the parameters' own names.
        flops: operations of one forward pass in eval mode over one image of the example's size; a multiplication and
            the addition that follows count as two. Convolutions, matrix products and attention are counted, also
            those whose result the network throws away; normalisation, activations and up-sampling are not.
    """

    parameters: int
    dead_parameters: int
    dead_names: tuple[str, ...]
    flops: int


def measure(network: nn.Module, example: torch.Tensor) -> Measured:
    """Count live parameters and operations of `network` on the first image of `example`.

    A parameter is live if its value flows into the output; whether a gradient flows back does not matter. Stages that
    segmentation-models-pytorch keeps at a smaller `encoder_depth`, and in some encoders even runs, are dead. The
    network is run in eval mode; where dead parameters remain, once more in train mode on two images, because some heads
    take part only there. Modes, buffers, random state and gradients are as before afterwards.

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
    flow = _Flow(network)
    with preserved(network), torch.no_grad():
        _set_modes(network, False)
        # Plain attention is matrix products, which every version of the counter knows; so are unfused encoder layers.
        with plain_attention(), flow, counter:
            output = run_network(network, image)
        flow.arrive(output)
        if flow.dead():
            _set_modes(network, True)
            with flow:
                output = run_network(network, torch.cat([image, image]))
            flow.arrive(output)
    dead = flow.dead()
    total = sum(parameter.numel() for parameter in network.parameters())
    return Measured(
        parameters=total - sum(dead.values()),
        dead_parameters=sum(dead.values()),
        dead_names=_summary(network, set(dead)),
        flops=int(counter.get_total_flops()),
    )


def run_network(network: nn.Module, images: torch.Tensor) -> Any:
    """The network's output for `images`.

    Raises:
        ModelError: it fails on them; its own words are given.
    """
    try:
        return network(images)
    except Exception as error:
        if out_of_memory(error):
            raise  # no fault of the network's
        mode = "train" if network.training else "eval"
        shape = tuple(images.shape)
        place = own_place(error)
        raise ModelError(
            f"the network fails in {mode} mode on images {shape}: {f'{place}: ' if place else ''}"
            f"{type(error).__name__}: {error}"
        ) from error


def _set_modes(network: nn.Module, training: bool) -> None:
    # Not network.train(): libraries override it, and modes are to be restored module by module.
    for module in network.modules():
        module.training = training


class _Flow(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Follows parameters from operator to operator: for each storage, the set of parameters that its values depend on.

    Sets are integers with one bit for each parameter.
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._parameters = dict(network.named_parameters())
        self._sets: dict[int, int] = {}
        self._arrived = 0
        for bit, parameter in enumerate(self._parameters.values()):
            self._sets[_storage(parameter)] = self._sets.get(_storage(parameter), 0) | 1 << bit

    def arrive(self, output: Any) -> None:
        """Count what `output` depends on as live."""
        leaves = [leaf for leaf in tree_leaves(output) if isinstance(leaf, torch.Tensor)] or [main_output(output)]
        for leaf in leaves:
            self._arrived |= self._sets.get(_storage(leaf), 0)

    def dead(self) -> dict[str, int]:
        """Names and sizes of the parameters that no output so far depends on."""
        named = enumerate(self._parameters.items())
        return {name: parameter.numel() for bit, (name, parameter) in named if not self._arrived >> bit & 1}

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        depends = 0
        for value in tree_leaves((args, kwargs or {})):
            if isinstance(value, torch.Tensor):
                depends |= self._sets.get(_storage(value), 0)
        returned = tree_leaves(result)
        for value in [*returned, *_written(func, args, kwargs or {})]:
            if isinstance(value, torch.Tensor):
                # A storage may have the address of one that is gone: what it holds now is all that counts.
                self._sets[_storage(value)] = depends
            elif isinstance(value, (bool, int, float, complex)):
                # A number read from a tensor: where it goes cannot be followed.
                self._arrived |= depends
        return result


def _written(func: Any, args: Any, kwargs: Any) -> list[Any]:
    """Tensors that the operator changes without returning them."""
    if not func._schema.is_mutable or func._schema.returns:
        return []
    named = zip(func._schema.arguments, args, strict=False)
    given = [(argument, value) for argument, value in named]
    given += [(argument, kwargs[argument.name]) for argument in func._schema.arguments if argument.name in kwargs]
    return tree_leaves([value for argument, value in given if argument.alias_info and argument.alias_info.is_write])


def _storage(tensor: torch.Tensor) -> int:
    return tensor.untyped_storage()._cdata


@contextmanager
def plain_attention() -> Iterator[None]:
    """Attention as matrix products, and encoder layers that are not fused: what every version of the counter knows."""
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
