"""Locks of the system on files and folders: gone with the process however it ends."""

from __future__ import annotations

import os
from pathlib import Path
from types import TracebackType

_held: set[int] = set()


def _forget_in_child() -> None:
    # A loading process that outlives a killed one for some seconds must not hold its lock.
    for handle in _held:
        os.close(handle)
    _held.clear()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forget_in_child)


class Lock:
    """A lock that is held until `release`; several processes may hold it where all of them asked for a shared one."""

    def __init__(self, handle: int | None) -> None:
        self._handle = handle
        if handle is not None:
            _held.add(handle)

    def release(self) -> None:
        """Let go; a second call does nothing."""
        if self._handle is not None and self._handle in _held:
            _held.discard(self._handle)
            os.close(self._handle)
        self._handle = None

    def __enter__(self) -> Lock:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.release()


def try_lock(path: Path, *, shared: bool = False) -> Lock | None:
    """Hold a folder, or a file that is made where it is missing; None where another process holds it.

    On Windows, and on a file system without locks, nothing is held and everybody may go on.
    """
    try:
        import fcntl
    except ImportError:
        return Lock(None)
    handle = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDONLY | os.O_CREAT, 0o644)
    try:
        fcntl.flock(handle, (fcntl.LOCK_SH if shared else fcntl.LOCK_EX) | fcntl.LOCK_NB)
    except BlockingIOError:
        os.close(handle)
        return None
    except OSError:
        pass  # a file system without locks
    except BaseException:
        os.close(handle)
        raise
    return Lock(handle)
