"""Every operation on files that some work makes, in order; at one of them the process dies, or the disk is full."""

from __future__ import annotations

import errno
import io
import os
import signal
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from unittest.mock import patch

CALLS = ("fsync", "rename", "replace", "unlink", "remove", "rmdir", "mkdir")
"""Of the module os; besides them files are opened for writing ("open") and written to ("write")."""
SHARED = "pym-"
"""How a process's first file of shared memory is called (`multiprocessing.heap`): a forked one makes its own."""
TAKES_ROOM = {"open", "write", "fsync", "mkdir"}
"""What a full disk refuses."""

Act = Callable[["Operation", Callable[[], Any]], None]


@dataclass(frozen=True)
class Operation:
    """One operation: its number from 0, its kind, and the path it was called with (of fsync: the file's)."""

    number: int
    kind: str
    path: str


@dataclass
class Watch:
    """Counts operations; `act(operation, half)` comes before each, where `half` writes half of what was to be."""

    act: Act
    seen: list[Operation] = field(default_factory=list)

    def reach(self, kind: str, path: Any, half: Callable[[], Any] = lambda: None) -> None:
        if Path(os.fsdecode(path)).name.startswith(SHARED):
            return
        operation = Operation(len(self.seen), kind, os.fsdecode(path))
        self.seen.append(operation)
        self.act(operation, half)


class _Written:
    """A file open for writing whose writes are watched."""

    def __init__(self, stream: Any, path: str, watch: Watch) -> None:
        self._stream, self._path, self._watch = stream, path, watch

    def write(self, data: Any) -> int:
        def half() -> None:
            self._stream.write(data[: len(data) // 2])
            self._stream.flush()

        self._watch.reach("write", self._path, half)
        return self._stream.write(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)

    def __enter__(self) -> _Written:
        return self

    def __exit__(self, *_error: object) -> None:
        self._stream.close()


@contextmanager
def watched(act: Act = lambda operation, half: None) -> Iterator[Watch]:
    """Inside the block operations are counted. Nothing is flushed to the disk: what a kill leaves needs none of it."""
    watch, opened, real = Watch(act), io.open, {name: getattr(os, name) for name in CALLS}

    def opening(file: Any, mode: str = "r", *args: Any, **kwargs: Any) -> Any:
        if not set(mode) & set("wax+"):
            return opened(file, mode, *args, **kwargs)
        watch.reach("open", file)
        stream = opened(file, mode, *args, **kwargs)
        return _Written(stream, os.fsdecode(file), watch)

    def calling(name: str) -> Callable[..., Any]:
        def call(path: Any, *args: Any, **kwargs: Any) -> Any:
            watch.reach(name, Path(f"/proc/self/fd/{path}").readlink() if isinstance(path, int) else path)
            return None if name == "fsync" else real[name](path, *args, **kwargs)

        return call

    with patch.object(io, "open", opening), patch.multiple(os, **{name: calling(name) for name in CALLS}):
        yield watch


@contextmanager
def unflushed() -> Iterator[None]:
    """Inside the block nothing is flushed to the disk: quicker."""
    with patch.object(os, "fsync", lambda handle: None):
        yield


def dies_at(number: int, half: bool = False) -> Act:
    """This process kills itself before the operation of this number, or half-way through the write that it is."""

    def act(operation: Operation, write_half: Callable[[], Any]) -> None:
        if operation.number == number:
            if half:
                write_half()
            os.kill(os.getpid(), signal.SIGKILL)

    return act


def full_from(number: int, until: int | None = None, code: int = errno.ENOSPC) -> Act:
    """The disk is full from the operation of this number to before that of another: a write gets half-way."""

    def act(operation: Operation, write_half: Callable[[], Any]) -> None:
        if operation.kind not in TAKES_ROOM or operation.number < number:
            return
        if until is None or operation.number < until:
            write_half()
            named = (operation.path,) if operation.kind in ("open", "mkdir") else ()
            raise OSError(code, os.strerror(code), *named)

    return act


def in_a_child(work: Callable[[], Any], patience: float = 120.0) -> int:
    """The wait status of a forked process that does `work`: exit code 0, or 1 where it raised."""
    child = forked(work)
    until = time.monotonic() + patience
    while time.monotonic() < until:
        done, status = os.waitpid(child, os.WNOHANG)
        if done:
            return status
        time.sleep(0.002)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    raise AssertionError("the child did not end")


def forked(work: Callable[[], Any]) -> int:
    """A forked process that does `work` and leaves without what this one has planned for its end."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        except BaseException:
            traceback.print_exc()
        finally:
            os._exit(code)
    return child


def sums(folder: Path) -> dict[str, bytes]:
    """Every file under a folder and what it holds."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
