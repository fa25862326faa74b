"""Pooling to a fixed number of places, found before anything is traced: an ONNX file has it for images of one size."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from densekd.export.manifest import Size

_OPERATORS = (
    torch.ops.aten.adaptive_avg_pool2d,
    torch.ops.aten._adaptive_avg_pool2d,
    torch.ops.aten.adaptive_max_pool2d,
)


@dataclass(frozen=True)
class Pooled:
    """One call: the module that made it, heights and widths before and after."""

    module: str
    before: Size
    after: Size


def pooled_to_places(network: nn.Module, base: Size, other: Size) -> list[str]:
    """Modules that pool maps to several places, as many of them at either size of the images.

    ONNX has no operator for that. torch's exporter writes down which positions a place is the mean of at one size: at
    another the file fails or errs. Pooling to a single place, or by a fixed factor, is right everywhere, and so is
    pooling of a map that has one size whatever the images have.

    Args:
        network: from normalised images to class maps, in eval mode.
        base, other: heights and widths of images that it takes.
    """
    first, second = (_calls(network, size) for size in (base, other))
    if [call.module for call in first] != [call.module for call in second]:
        return []  # it does something else at another size, which only the written file can show
    fixed = [
        one.module
        for one, two in zip(first, second, strict=True)
        if any(
            places > 1 and places == same and side != changed
            for places, same, side, changed in zip(one.after, two.after, one.before, two.before, strict=True)
        )
    ]
    return list(dict.fromkeys(fixed))


def _calls(network: nn.Module, size: Size) -> list[Pooled]:
    """Every adaptive pooling of one image, by whatever module, in order."""
    with _inside(network) as names, _Noting(names) as noting, torch.no_grad():
        network(torch.zeros(1, 3, *size))
    return noting.found


class _Noting(TorchDispatchMode):  # type: ignore[no-untyped-call]
    """Notes calls of the operators: also those that a module makes by itself, without a module for pooling."""

    def __init__(self, names: list[str]) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self.names = names
        self.found: list[Pooled] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        output = func(*args, **(kwargs or {}))
        if func.overloadpacket in _OPERATORS:
            pooled = output if isinstance(output, Tensor) else output[0]
            self.found.append(Pooled(self.names[-1], _sides(args[0]), _sides(pooled)))
        return output


def _sides(value: Tensor) -> Size:
    return int(value.shape[-2]), int(value.shape[-1])


@contextmanager
def _inside(network: nn.Module) -> Iterator[list[str]]:
    """The dotted paths of the modules that are being called, the innermost last."""
    names: list[str] = []

    def left(*_: Any) -> None:
        names.pop()

    handles = []
    for name, module in network.named_modules():
        handles.append(module.register_forward_pre_hook(lambda _module, _args, name=name: names.append(name)))
        handles.append(module.register_forward_hook(left, always_call=True))
    try:
        yield names
    finally:
        for handle in handles:
            handle.remove()
