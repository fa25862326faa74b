"""How much memory this process may still take."""

from __future__ import annotations

from pathlib import Path

_GROUP = Path("/sys/fs/cgroup")


def available_bytes(group: Path = _GROUP) -> int:
    """Bytes that can be had without swapping: the machine's, or what the limit of a Linux container leaves."""
    import psutil

    machine, container = int(psutil.virtual_memory().available), _left_in_container(group)
    return machine if container is None else min(machine, container)


def _left_in_container(group: Path) -> int | None:
    # `memory.current` counts cached files too, which the kernel gives up: `anon` is what cannot be given up.
    try:
        limit = int((group / "memory.max").read_text())
        stat = dict(line.split() for line in (group / "memory.stat").read_text().splitlines())
        return max(0, limit - int(stat["anon"]))
    except (OSError, ValueError, KeyError):  # no limit ("max"), another layout, another system
        return None
