"""Whether Triton's kernels can run on a device, asked without importing Triton before it is wanted.

The modules `densekd.kernels.triton_*` import Triton at their top; they are imported by whoever has chosen them, and
by nothing else: a program that computes on the CPU never loads it.
"""

from __future__ import annotations

import importlib
import importlib.util
import os
import shutil
from functools import cache

import torch

# What Triton itself supports.
_OLDEST = (8, 0)


def interpreting() -> bool:
    """Whether Triton interprets its kernels in NumPy: `TRITON_INTERPRET=1`, set before the program starts."""
    return os.environ.get("TRITON_INTERPRET", "").lower() in ("1", "true", "yes", "on", "y")


def triton_obstacle(kind: str, index: int | None = None) -> str | None:
    """Why Triton kernels cannot run on a device, in words that go on after "cannot run here: "; None: they can.

    It looks at the machine only, starts no work and waits for none; answers are kept.

    Args:
        kind: the device's type, "cuda" for instance.
        index: its number; None: the current one.
    """
    return _obstacle(kind, index, interpreting())


# What `torch.compiler.assume_constant_result` does, which imports the compiler: torch.compile takes the answer as it is
# instead of tracing the search for modules and files.
triton_obstacle._dynamo_marked_constant = True  # type: ignore[attr-defined]


@cache
def _obstacle(kind: str, index: int | None, interpreted: bool) -> str | None:
    if kind not in ("cuda", "cpu") or (kind == "cpu" and not interpreted):
        return f"it computes on CUDA devices and the maps are on {kind}; move them, or use backend 'auto' or 'torch'"
    if importlib.util.find_spec("triton") is None:
        return "it is not installed (pip install triton)"
    try:
        importlib.import_module("triton")
    except Exception as error:  # whatever a broken installation raises
        return f"it does not load ({type(error).__name__}: {error})"
    return None if interpreted else _device_obstacle(index)


def _device_obstacle(index: int | None) -> str | None:
    """What a CUDA device lacks, or the machine to start kernels on it."""
    if torch.version.hip is not None:
        return "these kernels were checked for NVIDIA devices alone, and this torch is built for AMD's"
    capability = torch.cuda.get_device_capability(index)
    if capability < _OLDEST:
        found, needed = (".".join(map(str, pair)) for pair in (capability, _OLDEST))
        return f"it needs a device of compute capability {needed} or newer, this one has {found}"
    if os.environ.get("CC") is None and not (shutil.which("gcc") or shutil.which("clang")):
        return "it builds a small launcher with a C compiler and finds none (install gcc, or name one in CC)"
    return None
