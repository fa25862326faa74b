"""Whether `runtime.channels_last` acts: which convolutions have their weights in that layout when training begins."""

from __future__ import annotations

import torch
from torch import nn
from torch.nn.utils import parametrize

from densekd.training.specs import RuntimeSpec

_SHOWN = 3


def layout_words(network: nn.Module, runtime: RuntimeSpec) -> list[str]:
    """A line where the weights of convolutions are not stored with the channels last though the recipe asks for it.

    Their results are the same, and each forward pass brings them into the layout of the images anew.
    """
    if not runtime.channels_last:
        return []
    if runtime.fsdp:
        return ["runtime.channels_last: of the images alone; shards of weights have the plain layout (runtime.fsdp)"]
    every = [(name, module) for name, module in network.named_modules() if _is_planar(module)]
    others = [name for name, module in every if not _is_last(module)]
    if not others:
        return []
    more = f" and {len(others) - _SHOWN} more" if len(others) > _SHOWN else ""
    return [
        f"runtime.channels_last: does not act on {len(others)} of the student's {len(every)} convolutions, whose "
        f"weights ended up in another layout: {', '.join(others[:_SHOWN])}{more}"
    ]


def _is_planar(module: nn.Module) -> bool:
    return isinstance(module, nn.Conv2d | nn.ConvTranspose2d)


def _is_last(module: nn.Module) -> bool:
    if parametrize.is_parametrized(module, "weight"):
        return False  # made anew in every pass, in whatever layout; asking for it could change it
    weight = module.weight
    return isinstance(weight, torch.Tensor) and weight.is_contiguous(memory_format=torch.channels_last)
