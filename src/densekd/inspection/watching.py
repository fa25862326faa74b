"""One forward pass with every module watched: what each returned, how often it was called, what it computed."""

from __future__ import annotations

import copy
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode
from torch.utils.weak import WeakTensorKeyDictionary

from densekd.adapters import find_layout
from densekd.errors import TapError
from densekd.models.measure import Measured, measure, plain_attention, run_network
from densekd.taps import preserved

Size = tuple[int, int]
#: A tensor as it was when a module returned it: its number, and how often it had been changed in place.
Identity = tuple[int, int]


class Output(NamedTuple):
    """One tensor that a module returned.

    Attributes:
        item: the way to it, `[out]` or `[hidden_states][2]`; empty where the module returned the tensor itself.
        shape: as returned.
        map: the same as `(N, C, H, W)`; None where it has no spatial axes that fit the image.
        identity: equal for the same tensor with the same values.
    """

    item: str
    shape: tuple[int, ...]
    map: tuple[int, int, int, int] | None
    identity: Identity


@dataclass
class Seen:
    """What a module did in the pass; `outputs` are those of its last call, `inputs` what it was given then."""

    outputs: list[Output] = field(default_factory=list)
    inputs: list[Identity] = field(default_factory=list)
    calls: int = 0
    flops: int = 0
    ended: int = -1
    """Its place in the order in which modules were done."""


@dataclass(frozen=True)
class Watched:
    """A network's pass over one image of `size`.

    Attributes:
        modules: by dotted name, in the order of `named_modules`; the network itself is the empty name.
        measured: its live parameters and operations.
        entry: the image itself, where a module returns it untouched.
        on_meta: whether shapes were computed without values.
    """

    size: Size
    modules: dict[str, Seen]
    measured: Measured
    entry: Identity
    on_meta: bool


def watch(network: nn.Module, size: Size) -> Watched:
    """Run a network on one image of `size` (height, width): if it can on torch's meta device, where shapes alone count.

    Modes, buffers and random states are as before afterwards. Networks that look at values (or cannot be copied) run on
    the CPU, on noise.

    Raises:
        ModelError: the network fails on an image of this size.
    """
    try:
        return _watch(copy.deepcopy(network).to("meta"), size, "meta")
    except Exception:  # whatever it is: on the CPU it comes again, or does not
        return _watch(network, size, "cpu")


def stride(image: Size, shape: tuple[int, ...]) -> tuple[float, float]:
    """Pixels of the image between neighbouring positions of a map `(N, C, H, W)`, down and across."""
    return image[0] / shape[2], image[1] / shape[3]


def _watch(network: nn.Module, size: Size, device: str) -> Watched:
    image = torch.rand(1, 3, *size, generator=torch.Generator().manual_seed(0)).to(device)
    measured = measure(network, image)
    counter = FlopCounterMode(display=False)
    watcher = _Watcher(size, counter)
    with preserved(network), torch.no_grad(), plain_attention(), watcher.on(network), counter:
        for module in network.modules():
            module.training = False
        entry = watcher.identity(image)
        run_network(network, image)
    return Watched(size, watcher.seen, measured, entry, device == "meta")


class _Watcher:
    """The hooks of one pass."""

    def __init__(self, size: Size, counter: FlopCounterMode) -> None:
        self.seen: dict[str, Seen] = {}
        self._size, self._counter = size, counter
        self._begun: dict[str, list[int]] = {}
        # Not by id(): that of a tensor that is gone is given again.
        self._numbers = WeakTensorKeyDictionary()
        self._count = self._ended = 0

    @contextmanager
    def on(self, network: nn.Module) -> Iterator[None]:
        handles = []
        try:
            for name, module in network.named_modules():
                self.seen[name] = Seen()
                self._begun[name] = []
                # The arguments before the call: a module that works in place changes them.
                handles.append(module.register_forward_pre_hook(self._before(name), with_kwargs=True))
                handles.append(module.register_forward_hook(self._after(name)))
            yield
        finally:
            for handle in handles:
                handle.remove()

    def identity(self, tensor: Tensor) -> Identity:
        """The tensor's number, given at first sight, with its version."""
        if tensor not in self._numbers:
            self._numbers[tensor] = self._count
            self._count += 1
        return int(self._numbers[tensor]), tensor._version

    def _before(self, name: str) -> Any:
        def hook(_module: nn.Module, args: Any, kwargs: Any) -> None:
            self._begun[name].append(int(self._counter.get_total_flops()))
            given = [*args, *kwargs.values()]
            self.seen[name].inputs = [self.identity(value) for value in given if isinstance(value, Tensor)]

        return hook

    def _after(self, name: str) -> Any:
        def hook(_module: nn.Module, _args: Any, output: Any) -> None:
            seen = self.seen[name]
            seen.calls += 1
            seen.flops += int(self._counter.get_total_flops()) - self._begun[name].pop()
            seen.outputs = [self._described(item, tensor) for item, tensor in tensors_of(output)]
            seen.ended = self._ended
            self._ended += 1

        return hook

    def _described(self, item: str, tensor: Tensor) -> Output:
        shape = tuple(tensor.shape)
        return Output(item, shape, as_map(shape, self._size), self.identity(tensor))


def tensors_of(value: Any, item: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor in what a module returned, with the way to it: tuples, lists and mappings are gone through."""
    if isinstance(value, Tensor):
        yield item, value
    elif isinstance(value, Mapping):
        for key, entry in value.items():
            yield from tensors_of(entry, f"{item}[{key}]")
    elif isinstance(value, list | tuple):
        for place, entry in enumerate(value):
            yield from tensors_of(entry, f"{item}[{place}]")


def as_map(shape: tuple[int, ...], image: Size) -> tuple[int, int, int, int] | None:
    """A shape as `(N, C, H, W)`, read as the distiller reads maps; None where it has no spatial axes."""
    if len(shape) not in (3, 4) or 0 in shape or shape[0] != 1:
        return None
    try:
        layout = find_layout(shape, image, "map")
        found = layout.to_nchw(torch.empty(shape, device="meta"), image).shape
    except TapError:
        return None
    return found[0], found[1], found[2], found[3]
