"""How many CPU threads are too many: one rule for runs and benchmarks."""

from __future__ import annotations

import os


def logical_cpus() -> int:
    """Logical CPUs of this machine, at least one."""
    return os.cpu_count() or 1


def excess(threads: int) -> str | None:
    """Why so many threads are refused, as the end of a line; None where there are as many logical CPUs.

    More threads than logical CPUs only slow each other down, and each takes a stack of its own.
    """
    present = logical_cpus()
    if threads <= present:
        return None
    return f"{threads} is more than the {present} logical CPUs of this machine; give {present} or fewer"
