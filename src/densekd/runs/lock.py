"""A run folder belongs to one process at a time."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from densekd.errors import RunError

_held: set[int] = set()


def _forget_in_child() -> None:
    # A loading process that outlives a killed run for some seconds must not hold its lock.
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the folder: a lock of the system, gone with the process however it ends. Nothing on Windows.

    Raises:
        RunError: another process holds it.
    """
    try:
        import fcntl
    except ImportError:
        yield
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise RunError(
                f"{folder}: another process is training in it; wait for it, or choose another --out"
            ) from None
        except OSError:
            pass  # a file system without locks
        _held.add(handle)
        yield
    finally:
        _held.discard(handle)
        os.close(handle)
