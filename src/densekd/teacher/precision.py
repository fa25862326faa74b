"""The number format a network runs in: its weights converted, or autocast where it does not run so."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

DTYPES = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}
_ALL = {**DTYPES, "float64": torch.float64}  # float64 is for measuring alone


@dataclass(frozen=True)
class Precision:
    """How a network is run.

    Attributes:
        name: "float32", "bfloat16" or "float16".
        autocast: its weights stay in float32, and torch chooses the format of each operator.
    """

    name: str
    autocast: bool = False

    @property
    def dtype(self) -> torch.dtype:
        return _ALL[self.name]

    def inputs(self, value: Any) -> Any:
        """Floating-point tensors, however nested, in the format the network takes."""
        dtype = torch.float32 if self.autocast else self.dtype

        def cast(leaf: Any) -> Any:
            return leaf.to(dtype) if isinstance(leaf, Tensor) and leaf.is_floating_point() else leaf

        return tree_map(cast, value)

    @contextmanager
    def around(self, device_type: str) -> Iterator[None]:
        """No gradients; autocast as this precision has it, whatever is set around."""
        with torch.no_grad(), torch.autocast(device_type, dtype=self._autocast_dtype(), enabled=self.autocast):
            yield

    def _autocast_dtype(self) -> torch.dtype:
        return self.dtype if self.autocast else torch.bfloat16


def convert(network: nn.Module, dtype: torch.dtype) -> None:
    """Floating-point parameters and buffers in `dtype`, in place, but for batch normalisations: torch runs them on
    narrower inputs with statistics in float32."""
    norms = nn.modules.batchnorm._BatchNorm
    for module in network.modules():
        own = torch.float32 if isinstance(module, norms) else dtype
        for parameter in module.parameters(recurse=False):
            if parameter.is_floating_point():
                # the parameter itself stays: recurrent layers keep lists of theirs, and some are shared
                parameter.data = parameter.data.to(own)
        for name, buffer in module._buffers.items():
            if buffer is not None and buffer.is_floating_point():
                module._buffers[name] = buffer.to(own)


def channels_last(network: nn.Module) -> None:
    """Weights of 2-D convolutions stored with the channels last, in place; a network with 3-D ones keeps those."""
    for parameter in network.parameters():
        if parameter.dim() == 4:
            parameter.data = parameter.data.contiguous(memory_format=torch.channels_last)


def images_last(value: Any) -> Any:
    """4-D tensors, however nested, stored with the channels last."""

    def last(leaf: Any) -> Any:
        known = isinstance(leaf, Tensor) and leaf.dim() == 4
        return leaf.contiguous(memory_format=torch.channels_last) if known else leaf

    return tree_map(last, value)
