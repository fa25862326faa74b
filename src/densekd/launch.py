"""How this process was started: alone, or by torchrun or `accelerate launch` as one of several."""

from __future__ import annotations

import os
from dataclasses import dataclass

from densekd.errors import RunError


@dataclass(frozen=True)
class Launch:
    """One process of `world`, its `rank` counted from 0; on its machine one of `local_world`, as `local_rank`."""

    rank: int = 0
    world: int = 1
    local_rank: int = 0
    local_world: int = 1

    @property
    def first(self) -> bool:
        """Whether this is the process that speaks and writes."""
        return self.rank == 0


def several() -> bool:
    """Whether the launcher says that there are several processes."""
    return os.environ.get("WORLD_SIZE", "") not in {"", "1"}


def is_first() -> bool:
    """Whether this process is the one that speaks: the only one, or the first of several."""
    return not several() or os.environ.get("RANK", "0") == "0"


def launched() -> Launch:
    """This process's place, from the variables that a launcher sets.

    Raises:
        RunError: they do not say which of several processes this is.
    """
    if not several():
        return Launch()
    names = ("RANK", "WORLD_SIZE", "LOCAL_RANK")
    found = {name: os.environ.get(name, "") for name in names}
    if not all(value.isdecimal() for value in found.values()):
        told = ", ".join(f"{name}={value or '(not set)'}" for name, value in found.items())
        raise RunError(
            f"launched as several processes, but which one is this? {told}: expected three whole numbers. Start with "
            "`torchrun --nproc-per-node N -m densekd ...` or `accelerate launch -m densekd ...`, or unset WORLD_SIZE"
        )
    rank, world, local = (int(found[name]) for name in names)
    if not (rank < world and local < world):
        raise RunError(f"RANK={rank} and LOCAL_RANK={local} must be below WORLD_SIZE={world}")
    there = os.environ.get("LOCAL_WORLD_SIZE", "")
    return Launch(rank, world, local, int(there) if there.isdecimal() else world)


def require_one_process() -> None:
    """Refuse a launch of several processes, which would all do the same work.

    Raises:
        RunError: the launcher says that there are several.
    """
    if several():
        raise RunError(
            f"launched as {os.environ['WORLD_SIZE']} processes (WORLD_SIZE): only `densekd train` and `densekd "
            "distill` work in several; start this command without torchrun or accelerate launch"
        )
