"""One Accelerate engine per run, with its own settings, whatever ran in this process before."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState, GradientState, PartialState

from densekd.errors import RunError
from densekd.training.specs import RuntimeSpec

_PRECISION = {"float32": "no", "bfloat16": "bf16", "float16": "fp16"}
# Accelerate keeps its settings per process, in these.
_STATES = (PartialState, AcceleratorState, GradientState)


@contextmanager
def engine(runtime: RuntimeSpec, device: torch.device) -> Iterator[Accelerator]:
    """The engine inside the block; after it, Accelerate's state is what it was for the caller's own use of it."""
    before = [dict(state._shared_state) for state in _STATES]
    for state in _STATES:
        state._shared_state.clear()
    try:
        yield Accelerator(mixed_precision=_PRECISION[runtime.precision], cpu=device.type == "cpu")
    finally:
        for state, kept in zip(_STATES, before, strict=True):
            state._shared_state.clear()
            state._shared_state.update(kept)


def require_one_process() -> None:
    """Refuse a launch of several processes, which would all write the same files.

    Raises:
        RunError: the launcher says that there are several.
    """
    world = os.environ.get("WORLD_SIZE", "1")
    if world not in {"", "1"}:
        raise RunError(
            f"launched as {world} processes (WORLD_SIZE): a run of densekd trains in one process. For several devices "
            "use `densekd.Distiller` in a training loop of your own"
        )
