"""Loading in other processes: errors arrive as they were raised, and the processes end when the iteration does."""

from __future__ import annotations

import math
import multiprocessing
import os
import signal
import tempfile
import traceback
from collections.abc import Callable, Generator, Iterator
from contextlib import contextmanager
from functools import partial
from multiprocessing.connection import wait
from typing import Any, Generic, TypeVar

import torch
from torch.utils.data import DataLoader, Dataset, default_collate, get_worker_info

from densekd.errors import DensekdError, ResourceError
from densekd.failures import told
from densekd.training.loading_watch import PATIENCE, Board, Watch, name_of

T = TypeVar("T")

_CARRIED = (DensekdError, OSError)
"""What goes to the main process as it is. Of all else torch makes a text with the traceback of the process in it."""
_LEFT = (signal.SIGINT, signal.SIGTERM)
"""Signals that are the main process's business."""
_END = object()
_DYING = 5.0
"""Seconds within which a process is gone whose connections broke because it was killed."""
_NAME = 103 - len("/pymp-xxxxxxxx/listener-xxxxxxxx") - 1
"""Bytes that the folder of a socket may have: the name of a socket has 107 on Linux, 103 on macOS."""
_SHORT = ("/tmp", "/var/tmp", "/usr/tmp")
"""Where Python itself looks for a folder for temporary files."""


class _Failed:
    """Stands for a sample or a batch that could not be loaded."""

    def __init__(self, error: Exception) -> None:
        # A traceback does not travel between processes; a note does, and is shown only where tracebacks are.
        error.add_note(f"in a loading process:\n{''.join(traceback.format_exception(error)).rstrip()}")
        self.error = error


class _Carrying(Dataset[Any]):
    """A view whose errors are values; what is being read stands on the board."""

    def __init__(self, view: Any, board: Board) -> None:
        self.view, self.board = view, board

    def __len__(self) -> int:
        return len(self.view)

    def __getitem__(self, key: Any) -> Any:
        info = get_worker_info()
        worker = 0 if info is None else info.id
        self.board.note(worker, name_of(self.view, key))
        try:
            with told():
                return self.view[key]
        except _CARRIED as error:
            return _Failed(error)
        finally:
            self.board.note(worker, "")


class _Collating(Generic[T]):
    """Joins the samples of a batch; the first that failed stands for all of it."""

    def __init__(self, collate: Callable[[list[Any]], T]) -> None:
        self.collate = collate

    def __call__(self, samples: list[Any]) -> T | _Failed:
        failed = next((sample for sample in samples if isinstance(sample, _Failed)), None)
        if failed is not None:
            return failed
        try:
            with told():
                return self.collate(samples)
        except _CARRIED as error:
            return _Failed(error)


def loaded(
    view: Any,
    *,
    workers: int,
    patience: float | None = PATIENCE,
    collate: Callable[[list[Any]], T] = default_collate,
    **options: Any,
) -> Generator[T, None, None]:
    """The batches of a data loader; its processes end when the iteration is over, left by an exception, or closed.

    Processes that ignore SIGTERM would otherwise keep an interrupted program from ending: Python terminates them
    by that signal and waits.

    Args:
        view: data set by whatever keys the sampler gives.
        workers: loading processes; 0: the main process loads.
        patience: seconds that the loading processes may take to give a batch; None: for ever.
        collate: makes a batch of a list of samples.
        options: further ones of torch's `DataLoader`.

    Raises:
        DensekdError: raised while a sample was read; the same error with workers and without.
        ResourceError: memory ran out, a loading process was ended or hangs, or no folder is there for the sockets by
            which they send images.
    """
    board = Board(workers)
    begin = partial(_begin, folder=_for_sockets() if workers else None)
    loader: DataLoader[Any] = DataLoader(
        _Carrying(view, board) if workers else view,
        collate_fn=_Collating(collate) if workers else collate,
        num_workers=workers,
        worker_init_fn=begin,
        # The loader draws a base seed for its workers: from here, not from the global generator.
        generator=torch.Generator().manual_seed(0),
        **options,
    )
    with told(), _signals_held():
        iterator = iter(loader)
    watch = _watched(iterator, board, patience) if workers else None
    try:
        while True:
            with told():
                batch: Any = next(iterator, _END) if watch is None else _next(iterator, watch)
            if batch is _END:
                return
            if isinstance(batch, _Failed):
                raise batch.error
            yield batch
    finally:
        if watch is not None:
            watch.end()
            _end(iterator)


def _watched(iterator: Any, board: Board, patience: float | None) -> Watch:
    """Watch over the processes of an iterator, in the place of torch's signal handler.

    That one raises wherever the program happens to be: within a tracker, which would take it for an error of its own.
    """
    if iterator._worker_pids_set:
        torch._C._remove_worker_pids(id(iterator))
        iterator._worker_pids_set = False
    return Watch(iterator._workers, board, math.inf if patience is None else patience)


def _next(iterator: Iterator[Any], watch: Watch) -> Any:
    """The next batch, or `_END`.

    A process that is killed breaks its connections a moment before it counts as ended: torch then raises the error of
    the connection. Errors of files are none of these, they come as `_Failed`.

    Raises:
        ResourceError: a process is gone, or hangs.
    """
    try:
        with watch.waiting():
            return next(iterator, _END)
    except (OSError, EOFError, RuntimeError) as error:
        if not isinstance(error, RuntimeError):
            for sentinel in wait([worker.sentinel for worker in watch.workers], timeout=_DYING):
                next(worker for worker in watch.workers if worker.sentinel == sentinel).join()
        found = watch.error()
        if found is None:
            raise
        raise found from error


@contextmanager
def _signals_held() -> Iterator[None]:
    """Signals wait while loading processes are started, which inherit that, so that none meets a half-begun one.

    From its first instruction until it ignores them, a process would else run the main process's handlers, or be
    ended by torch's.
    """
    if not hasattr(signal, "pthread_sigmask"):  # Windows starts processes afresh
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, _LEFT)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin(_worker: int, folder: str | None) -> None:
    """What a loading process does first.

    Signals are left to the main process: they reach the whole group, and the step in flight needs its workers, which
    end when the main process closes their queue (see `loaded`) or is gone. Sockets are made in `folder`, where given.
    """
    for number in _LEFT:
        signal.signal(number, signal.SIG_IGN)
    if folder is not None:
        tempfile.tempdir = folder


def _for_sockets() -> str | None:
    """A folder with a name short enough for a socket's, where that of temporary files is too long; else None.

    The process that makes the socket fails without a word (Python before 3.14), and the other one waits for ever.
    """
    usual = tempfile.gettempdir()
    if os.name == "nt" or len(os.fsencode(usual)) <= _NAME:
        return None
    for folder in _SHORT:
        if os.access(folder, os.W_OK | os.X_OK):
            return folder
    raise ResourceError(
        f"{usual}: too long a name for the sockets of loading processes ({_NAME} bytes are left to it); set TMPDIR to "
        "a shorter one, or runtime.workers=0"
    )


def _end(iterator: Any) -> None:
    """End the loading processes. Python would wait for one that hangs, for ever, when the program ends."""
    workers = iterator._workers
    if not (iterator._shutdown or all(worker.is_alive() for worker in workers)):
        for worker in workers:
            worker.kill()
            worker.join(_DYING)
        # One that was killed may have held the lock of this event, for which torch would wait for ever.
        iterator._workers_done_event = multiprocessing.Event()
    iterator._shutdown_workers()
    for worker in workers:
        if worker.is_alive():
            worker.kill()
        worker.join(_DYING)
