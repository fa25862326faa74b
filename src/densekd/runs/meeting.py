"""Where the processes of a launch meet before they train: the store that the launcher's variables name."""

from __future__ import annotations

import os
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from densekd.errors import RunError
from densekd.launch import Launch

_SLOWEST = timedelta(minutes=5)
"""Within which all processes are started."""


def met(launch: Launch) -> Any:
    """The store that the launcher's variables name.

    Raises:
        RunError: there is none.
    """
    try:
        found = dist.rendezvous("env://", launch.rank, launch.world, timeout=_SLOWEST)  # type: ignore[attr-defined]
        return next(found)[0]
    except (dist.DistError, ValueError) as error:
        address = ":".join(os.environ.get(name, "(not set)") for name in ("MASTER_ADDR", "MASTER_PORT"))
        raise RunError(
            f"the processes of this launch do not meet at MASTER_ADDR:MASTER_PORT = {address}: "
            f"{' '.join(str(error).split())[:200]}; with torchrun on one machine, --standalone finds a free port"
        ) from None


def part(name: str, store: Any) -> Any:
    """The store, with names of its own."""
    return dist.PrefixStore(name, store)  # type: ignore[attr-defined]
