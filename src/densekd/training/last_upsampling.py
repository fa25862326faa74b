"""Many networks end in a bilinear up-sampling of their class map; in training it can be left to the loss.

`observed` tells from one forward pass whether that is so: the tensor that the network returns is the very one that
`torch.nn.functional.interpolate` gave, and nothing else was computed from it. `putting_off` then runs the network
without that step: it returns the small map, and the loss does the rest without a full-size map
(`densekd.functional.upsampled_cross_entropy`). Nothing of the network is changed for that: both work by torch's
function modes, which see the calls of one thread, and by hooks that are gone afterwards.
"""

from __future__ import annotations

import inspect
import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from densekd.errors import ModelError, TapError
from densekd.models.auxiliary import auxiliary_map
from densekd.taps import main_output
from densekd.taps.paths import is_compiled
from densekd.tasks.upsampling import PutOff, Upsampling

_SIGNATURE = inspect.signature(F.interpolate)
MAIN, AUXILIARY = "main", "auxiliary"
Size = tuple[int, int]


class Call(NamedTuple):
    """One call of `interpolate`: the how manieth of a forward pass, from 0; the size it got, and what it did."""

    number: int
    small: Size
    upsampling: Upsampling


@dataclass(frozen=True)
class LastUpsampling:
    """How a network ends, as one forward pass showed.

    Attributes:
        calls: what gives its maps ("main", "auxiliary"), where that is an up-sampling.
        after: dotted paths of the modules whose output is such an up-sampled map; a tap there would read another one.
    """

    calls: Mapping[str, Call] = field(default_factory=dict)
    after: frozenset[str] = frozenset()


@dataclass(frozen=True)
class Ending:
    """A forward pass in training mode: how it ended, the sizes of its class maps by name, and the labels' size."""

    last: LastUpsampling
    maps: Mapping[str, Size]
    labels: Size


def ending(output: Any, labels: Tensor, last: LastUpsampling) -> Ending:
    """What a forward pass showed; `last` as it was observed in it."""
    tensors = {MAIN: main_output(output), AUXILIARY: auxiliary_map(output)}
    maps = {name: _size(value) for name, value in tensors.items() if value is not None}
    return Ending(last, maps, _size(labels))


def _size(value: Tensor) -> Size:
    return value.shape[-2], value.shape[-1]


@dataclass
class Observation:
    """Filled when the block of `observed` ends."""

    last: LastUpsampling = field(default_factory=LastUpsampling)


class _Interpolations(TorchFunctionMode):
    """Counts the calls of `interpolate`, and hands those that could be put off to `act`; `seen` is told what every
    function of torch took and gave."""

    def __init__(
        self,
        act: Callable[[int, Tensor, Upsampling, Callable[[], Tensor]], Tensor],
        seen: Callable[[list[Any], Any], None] | None = None,
    ) -> None:
        super().__init__()
        self._act, self._seen, self._count = act, seen, 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = self._interpolated(func, args, kwargs) if func is F.interpolate else func(*args, **kwargs)
        if self._seen is not None:
            self._seen([*args, *kwargs.values()], result)
        return result

    def _interpolated(self, func: Any, args: Any, kwargs: Any) -> Any:
        number, self._count = self._count, self._count + 1
        given = _SIGNATURE.bind(*args, **kwargs)
        given.apply_defaults()
        found = _upsampling(**given.arguments)
        if found is None:
            return func(*args, **kwargs)
        return self._act(number, given.arguments["input"], found, lambda: func(*args, **kwargs))


def _upsampling(
    input: Tensor,
    size: Any,
    scale_factor: Any,
    mode: str,
    align_corners: bool | None,
    recompute_scale_factor: bool | None,
    antialias: bool,
) -> Upsampling | None:
    """What a call of `interpolate` does, if it is a bilinear enlargement that its size describes."""
    if mode != "bilinear" or antialias or input.dim() != 4:
        return None
    if size is not None:
        target = (size, size) if isinstance(size, int) else tuple(size)
    else:
        factors = scale_factor if isinstance(scale_factor, (tuple, list)) else (scale_factor, scale_factor)
        # A factor that is not whole is the step between samples itself, which the rounded size would change.
        if not all(float(factor).is_integer() for factor in factors):
            return None
        target = tuple(int(side * factor) for side, factor in zip(input.shape[2:], factors, strict=True))
    high, wide = (int(side) for side in target)
    if high * wide <= input.shape[2] * input.shape[3]:
        return None
    return Upsampling((high, wide), bool(align_corners))


@contextmanager
def observed(network: nn.Module) -> Iterator[Observation]:
    """Watch the forward pass of `network` that happens in the block; it runs as ever."""
    observation = Observation()
    if any(is_compiled(module) or isinstance(module, torch.jit.ScriptModule) for module in network.modules()):
        yield observation  # its calls cannot be seen
        return
    results: list[tuple[Call, weakref.ref[Tensor]]] = []
    after: dict[str, set[Call]] = {}
    used: set[Call] = set()  # a further result of the network comes from it, or it was changed in place

    def watch(number: int, small: Tensor, upsampling: Upsampling, run: Callable[[], Tensor]) -> Tensor:
        result = run()
        results.append((Call(number, _size(small), upsampling), weakref.ref(result)))
        return result

    def calls_of(values: list[Tensor]) -> set[Call]:
        return {call for call, result in results for value in values if result() is value}

    def use(taken: list[Any], given: Any) -> None:
        if results and _tensors(given):  # not its shape or type
            used.update(calls_of([tensor for value in taken for tensor in _tensors(value)]))

    def look(name: str, module: nn.Module, args: Any, output: Any) -> None:
        after[name] = calls_of(_tensors(output))

    def end(module: nn.Module, args: Any, output: Any) -> None:
        maps = {MAIN: _main(output), AUXILIARY: auxiliary_map(output)}
        found = {name: calls_of([value]) for name, value in maps.items() if value is not None}
        calls = {name: call for name, some in found.items() for call in some - used}
        paths = (name for name, some in after.items() if some & set(calls.values()))
        observation.last = LastUpsampling(calls, frozenset(paths))

    with ExitStack() as stack:
        for name, module in network.named_modules():
            stack.callback(module.register_forward_hook(partial(look, name)).remove)
        # After a head that hangs on the network has put its map beside the network's.
        stack.callback(network.register_forward_hook(end).remove)
        stack.enter_context(_Interpolations(watch, use))
        yield observation


def _tensors(output: Any) -> list[Tensor]:
    values = list(output.values()) if isinstance(output, Mapping) else output
    return [value for value in (values if isinstance(values, (list, tuple)) else [values]) if isinstance(value, Tensor)]


def _main(output: Any) -> Tensor | None:
    try:
        return main_output(output)
    except TapError:
        return None


@contextmanager
def putting_off(network: nn.Module, last: LastUpsampling | None) -> Iterator[Callable[[], PutOff | None]]:
    """Within the block forward passes of `network` leave out the up-samplings in `last`.

    Yields:
        After a forward pass, what it has left out; None where `last` is None.

    Raises:
        ModelError: asked for what was left out, when the network has not ended as `last` says.
    """
    if last is None:
        yield lambda: None
        return
    wanted = {call.number: name for name, call in last.calls.items()}
    found: dict[str, Upsampling] = {}
    running: list[_Interpolations] = []

    def leave_out(number: int, small: Tensor, upsampling: Upsampling, run: Callable[[], Tensor]) -> Tensor:
        if number not in wanted:
            return run()
        found[wanted[number]] = upsampling
        return small

    def begin(module: nn.Module, args: Any) -> None:
        found.clear()
        running.append(_Interpolations(leave_out))
        running[-1].__enter__()  # type: ignore[no-untyped-call]

    def end(module: nn.Module, args: Any, output: Any) -> None:
        if running:  # else a hook before `begin` has failed
            running.pop().__exit__(None, None, None)  # type: ignore[no-untyped-call]

    def left() -> PutOff:
        if found.keys() != last.calls.keys():
            raise ModelError(
                "the student does not end in the up-sampling that its first forward pass ended in: it cannot be left "
                "to the loss; set task.fused=false"
            )
        return PutOff(found.get(MAIN), found.get(AUXILIARY))

    with ExitStack() as stack:
        stack.callback(network.register_forward_pre_hook(begin).remove)
        # Also where the forward pass fails: the mode must not outlive it.
        stack.callback(network.register_forward_hook(end, always_call=True).remove)
        yield left
