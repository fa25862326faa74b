"""One Accelerate engine per run, with its own settings, whatever ran in this process before."""

from __future__ import annotations

import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState
from accelerate.utils import DistributedDataParallelKwargs
from torch import nn

from densekd.errors import ConfigError
from densekd.launch import several
from densekd.runs.ranks import Ranks
from densekd.training.objective import Objective
from densekd.training.specs import RuntimeSpec

_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
# Accelerate keeps its settings per process, in these.
_STATES = (PartialState, AcceleratorState, GradientState)
_PLACE = "LOCAL_RANK"
_OTHERS = {
    "FSDP": "set runtime.fsdp=true in the recipe, and no FSDP there",
    "DEEPSPEED": "runtime.fsdp=true shards the student",
    "MEGATRON_LM": "runtime.fsdp=true shards the student",
}


@contextmanager
def engine(runtime: RuntimeSpec, device: torch.device, ranks: Ranks | None = None) -> Iterator[Accelerator]:
    """The engine inside the block; after it, Accelerate's state is what it was for the caller's own use of it.

    Of several processes each must come here: the process group is made.
    """
    before = [dict(state._shared_state) for state in _STATES]
    for state in _STATES:
        state._shared_state.clear()
    try:
        with nullcontext() if ranks is None else ranks.group(device, runtime.stall_minutes):
            with nullcontext() if several() else _without_a_place():
                accelerator = _accelerator(runtime, device)
            yield accelerator
    finally:
        for state, kept in zip(_STATES, before, strict=True):
            state._shared_state.clear()
            state._shared_state.update(kept)


@contextmanager
def _without_a_place() -> Iterator[None]:
    """Inside the block no launcher says which process this is: Accelerate makes a process group of a single one too."""
    place = os.environ.pop(_PLACE, None)
    try:
        yield
    finally:
        if place is not None:
            os.environ[_PLACE] = place


def _accelerator(runtime: RuntimeSpec, device: torch.device) -> Accelerator:
    # Buffers (queues of features, running statistics) are not sent around before every forward pass: see `Peers`.
    wrapping = DistributedDataParallelKwargs(broadcast_buffers=False, gradient_as_bucket_view=True)
    threads = torch.get_num_threads()
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="OMP_NUM_THREADS")  # set for several processes, not over the recipe
        found = Accelerator(
            mixed_precision=_PRECISION[runtime.precision], cpu=device.type == "cpu", kwargs_handlers=[wrapping]
        )
    if runtime.threads is not None and torch.get_num_threads() != threads:
        torch.set_num_threads(threads)
    return found


def wrapped(accelerator: Accelerator, objective: Objective, *, sharded: bool) -> nn.Module:
    """The objective as the engine trains it: in the run's precision, and of several processes in DDP or its shards."""
    if sharded:
        return accelerator.prepare_model(objective, device_placement=False, evaluation_mode=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="`broadcast_buffers`")  # Accelerate has no newer name for it yet
        return accelerator.prepare(objective)


def require_plain_launch() -> None:
    """Refuse what `accelerate launch` was told to do besides starting processes, and a run would not do as told.

    Raises:
        ConfigError: another way of training in its configuration.
    """
    for kind, instead in _OTHERS.items():
        if os.environ.get(f"ACCELERATE_USE_{kind}", "false").lower() == "true":
            raise ConfigError(f"accelerate's configuration asks for {kind}, which a run does not use: {instead}")
    steps = os.environ.get("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "1")
    if steps != "1":
        raise ConfigError(
            f"accelerate's configuration asks for {steps} gradient accumulation steps: give train.accumulate or "
            "train.global_batch_size in the recipe, and 1 there"
        )
    compiler = os.environ.get("ACCELERATE_DYNAMO_BACKEND", "no")
    if compiler.lower() != "no":
        raise ConfigError(f"accelerate's configuration asks for dynamo ({compiler}), which no run uses: no there")
