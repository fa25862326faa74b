"""What several processes do not share by themselves: batch norm's statistics, and keys that act with them alone."""

from __future__ import annotations

from typing import TypeVar

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

from densekd.config import Recipe
from densekd.errors import ConfigError
from densekd.launch import Launch
from densekd.losses.catalog import METHODS

N = TypeVar("N", bound=nn.Module)


def require_acting(recipe: Recipe, device: torch.device, launch: Launch) -> None:
    """Refuse keys for several processes where they would change nothing.

    Raises:
        ConfigError: batch norm to be synchronised on a CPU; FSDP of one process, or with what it does not do.
    """
    runtime = recipe.runtime
    if runtime.sync_batchnorm is True and device.type != "cuda":
        raise ConfigError(
            "runtime.sync_batchnorm: torch has no synchronised batch norm on a CPU; set it to auto or false, and use "
            "group norm, or a batch that is large enough in each process"
        )
    if not runtime.fsdp:
        return
    if launch.world == 1:
        raise ConfigError(
            "runtime.fsdp: shards the student over several processes, and there is one: nothing would be sharded; "
            "start with torchrun or accelerate launch, or leave the key out"
        )
    if recipe.train.ema_decay is not None:
        raise ConfigError("train.ema_decay: not together with runtime.fsdp: the average would not be sharded")
    if runtime.precision == "float16":
        raise ConfigError("runtime.precision: not float16 together with runtime.fsdp; use bfloat16 or float32")


def synchronised(network: N, recipe: Recipe, device: torch.device, launch: Launch) -> N:
    """The network with batch norm over all processes, where the recipe and the device have it; names stay.

    Before any hook is set: modules are replaced.
    """
    if launch.world == 1 or device.type != "cuda" or recipe.runtime.sync_batchnorm is False:
        return network
    from timm.layers import convert_sync_batchnorm  # torch's own drops the activation that timm's layers hold

    converted: N = convert_sync_batchnorm(network)
    return converted


def not_shared(recipe: Recipe, student: nn.Module, device: torch.device, launch: Launch) -> list[str]:
    """Lines on what each process computes from its own images alone, where one process would from all of them."""
    if launch.world == 1:
        return []
    own, lines = _own(recipe), []
    norms = any(isinstance(module, _BatchNorm) for module in student.modules())
    if norms and (device.type != "cuda" or recipe.runtime.sync_batchnorm is False):
        why = "torch synchronises it on CUDA only" if device.type != "cuda" else "runtime.sync_batchnorm is false"
        lines.append(f"batch norm takes its statistics from the {own} ({why})")
    alone = [
        name for name, given in (("dice", recipe.task.dice), ("hard pixels (task.ohem)", recipe.task.ohem)) if given
    ]
    if alone:
        lines.append(f"task: {' and '.join(alone)} are of the {own}, not of all images of a step")
    return lines


def terms_not_shared(recipe: Recipe, launch: Launch) -> list[str]:
    """The same of the terms of a distillation."""
    wide = dict.fromkeys(term.method for term in recipe.terms if METHODS[term.method].batch_wide)
    if launch.world == 1 or not wide:
        return []
    return [f"terms: {' and '.join(wide)} compare within the {_own(recipe)}, not within all images of a step"]


def _own(recipe: Recipe) -> str:
    size = recipe.train.batch_size
    return "one image of each process" if size == 1 else f"{size} images of each process"
