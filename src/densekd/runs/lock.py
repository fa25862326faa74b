"""A run folder belongs to one process at a time."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from densekd.errors import RunError
from densekd.locks import try_lock


@contextmanager
def claimed(folder: Path) -> Iterator[None]:
    """Hold the folder: a lock of the system, gone with the process however it ends. Nothing on Windows.

    Raises:
        RunError: another process holds it.
    """
    lock = try_lock(folder)
    if lock is None:
        raise RunError(f"{folder}: another process is training in it; wait for it, or choose another --out")
    with lock:
        yield


def require_unclaimed(folder: Path) -> None:
    """Refuse a folder that another process holds at this moment, before checks that take a while.

    Raises:
        RunError: another process holds it.
    """
    if folder.is_dir():
        with claimed(folder):
            pass
