"""How far the memory of this process grows during a call, whatever asked for it: torch, onnxruntime, the C library."""

from __future__ import annotations

import ctypes
import gc
from collections.abc import Callable
from pathlib import Path

import torch

from densekd.runs.memory import peak_bytes, reset_peak

_CPU = torch.device("cpu")
_STATUS = Path("/proc/self/status")
#: between two readings the kernel's own counters may lie this far apart
_SLACK = 4 << 20


def resident_growth(call: Callable[[], object]) -> int | None:
    """The most resident memory during `call` beyond what was resident before it; None where the system does not tell.

    What the process holds free is given back to the system first: otherwise a call would seem to need nothing because
    the one before it left enough. So it is the memory of a first call, with what a library sets up in it and keeps.
    """
    gc.collect()
    _give_back()
    reset_peak(_CPU)
    before, now = peak_bytes(_CPU), _resident()
    if before is None or now is None or before > now + _SLACK:
        return None  # the mark could not be reset
    call()
    after = peak_bytes(_CPU)
    return None if after is None else max(0, after - before)


def _give_back() -> None:
    try:
        ctypes.CDLL(None).malloc_trim(0)
    except (OSError, AttributeError, TypeError):  # another C library: memory held free is not counted then
        return


def _resident() -> int | None:
    try:
        lines = _STATUS.read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmRSS"))
    except (OSError, StopIteration):
        return None
