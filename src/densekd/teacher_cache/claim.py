"""One launch at a time builds a set: its ranks hold it together."""

from __future__ import annotations

import re
import time
from contextlib import ExitStack
from pathlib import Path

from densekd.errors import CacheError
from densekd.locks import Lock, try_lock

# Whoever wants to know whether a file is held holds it for an instant: that long others wait for that to pass.
_TRIES, _PAUSE = 30, 0.01
_LOCKS = re.compile(r"\.(rank-\d+|world-\d+)\.lock")


def is_lock(name: str) -> bool:
    """Whether a file of that name is one of the empty files that builders hold."""
    return _LOCKS.fullmatch(name) is not None


def claim(folder: Path, rank: int, world: int) -> ExitStack:
    """Hold a set as rank `rank` of `world`, until the stack is closed or the process ends.

    Each rank holds a file of its own alone, and one of its world's size together with the other ranks; none may be
    there that is held by a world of another size.

    Raises:
        CacheError: another launch is building this set.
    """
    with ExitStack() as held:
        for name, shared in ((f".rank-{rank}.lock", False), (f".world-{world}.lock", True)):
            lock = _patient(folder / name, shared=shared)
            if lock is None:
                raise _taken(folder)
            held.enter_context(lock)
        for path in folder.glob(".world-*.lock"):
            if path.name != f".world-{world}.lock":
                other = _patient(path)
                if other is None:
                    raise _taken(folder)
                other.release()
        return held.pop_all()


def is_building(folder: Path) -> bool:
    """Whether some process is building the set in `folder` now; nothing is changed.

    Args:
        folder: the set's own.
    """
    for path in folder.glob(".world-*.lock"):
        lock = _patient(path)
        if lock is None:
            return True
        lock.release()
    return False


def _patient(path: Path, *, shared: bool = False) -> Lock | None:
    """As `try_lock`, where somebody else may be looking at this moment."""
    for _ in range(_TRIES):
        lock = try_lock(path, shared=shared)
        if lock is not None:
            return lock
        time.sleep(_PAUSE)
    return None


def _taken(folder: Path) -> CacheError:
    return CacheError(
        f"{folder}: another process is building this set; wait for it (what it has stored is used by the next one)"
    )
