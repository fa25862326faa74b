"""Where a run computes: its device, and how many CPU threads."""

from __future__ import annotations

import torch

from densekd.config import Recipe
from densekd.errors import ConfigError
from densekd.launch import Launch
from densekd.runs.threads import excess, logical_cpus


def usable_threads(asked: int | None, *, resumed: bool) -> tuple[int | None, list[str]]:
    """The threads to set, and what to say of them: a run may go on where there are fewer CPUs than it began with.

    Raises:
        ConfigError: more threads than logical CPUs, which only slow each other down.
    """
    wrong = None if asked is None else excess(asked)
    if wrong is None:
        return asked, []
    if not resumed:
        raise ConfigError(f"runtime.threads: {wrong}, or null for torch's own choice")
    present = logical_cpus()
    return present, [f"runtime.threads: {asked} when the run began; this machine has {present} logical CPUs: {present}"]


def choose_device(recipe: Recipe, launch: Launch | None = None) -> torch.device:
    """The recipe's device; of several processes on a machine each has a CUDA device of its own.

    Raises:
        ConfigError: CUDA was asked for and there is none, or not enough; or float16 on a CPU.
    """
    asked = recipe.runtime.device
    cuda = torch.cuda.is_available()
    if asked == "cuda" and not cuda:
        raise ConfigError("runtime.device: cuda was asked for, but torch sees no CUDA device; use auto or cpu")
    device = torch.device("cuda" if asked != "cpu" and cuda else "cpu")
    if device.type == "cpu" and recipe.runtime.precision == "float16":
        raise ConfigError("runtime.precision: float16 needs a CUDA device; on a CPU use bfloat16 or float32")
    if device.type == "cuda" and launch is not None and launch.world > 1:
        present = torch.cuda.device_count()
        if launch.local_rank >= present:
            raise ConfigError(
                f"runtime.device: {launch.local_world} processes on this machine, and torch sees {present} CUDA "
                "devices; launch as many as there are, or set runtime.device=cpu"
            )
        device = torch.device("cuda", launch.local_rank)
        torch.cuda.set_device(device)
    return device
