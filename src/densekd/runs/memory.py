"""Peak memory of a run."""

from __future__ import annotations

import sys
from pathlib import Path

import torch


def reset_peak(device: torch.device) -> None:
    """Start to measure anew: CUDA's own counter, or on Linux the kernel's mark of this process."""
    if device.type == "cuda":
        torch.cuda.reset_peak_memory_stats(device)
        return
    try:
        Path("/proc/self/clear_refs").write_text("5")
    except OSError:
        return  # another system: the peak is that of the whole process so far


def peak_bytes(device: torch.device) -> int | None:
    """Highest memory since `reset_peak`: allocated (CUDA) or resident in this process (CPU); None where unknown."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        lines = Path("/proc/self/status").read_text().splitlines()
        return next(1024 * int(line.split()[1]) for line in lines if line.startswith("VmHWM"))
    except (OSError, StopIteration):
        return _peak_of_the_process()


def _peak_of_the_process() -> int | None:
    try:
        import resource
    except ImportError:  # Windows
        return None
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return peak if sys.platform == "darwin" else 1024 * peak
