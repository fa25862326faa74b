"""The processes of one run, before and around its training: what one finds wrong stops all, and is said once.

They agree over the launcher's store, not by collectives: a process that waits there answers signals, may wait long,
and hears at once what another one failed on. Which is why the process group is not there until training starts.
"""

from __future__ import annotations

import gc
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import timedelta
from typing import Any, TypeVar

import torch
import torch.distributed as dist

from densekd.errors import DensekdError, RunError
from densekd.failures import explained
from densekd.launch import Launch, launched
from densekd.runs.exchange import FAILED, told_words
from densekd.runs.meeting import met, part
from densekd.runs.watch import Watch, say
from densekd.training.pulse import Pulse

T = TypeVar("T")

_PATIENCE = 3600.0
"""Seconds that one process may need more than another before training: mostly to read and check images."""
_STUCK = timedelta(minutes=30)
"""After so long without an answer in a collective the run ends; a checkpoint on a slow disk is within it."""
_KEPT: list[Any] = []
"""Groups of runs that failed: the error may hold what was trained for as long as it likes."""
_LOST = ("peer", "gloo/transport", "NCCL", "socket", "Broken pipe")


class ElsewhereError(DensekdError, RuntimeError):
    """Another process of the launch failed, and says so; this one only leaves, with the same exit code."""

    told_elsewhere = True

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(message)
        self.exit_code = exit_code


class Ranks:
    """The processes of a launch; for one process everything here is what it would be without.

    Args:
        launch: this process's place.
        store: where they meet; None for one process.
        watched: the same, for the threads that watch; None: nobody watches.

    Attributes:
        pulse: what this process is at.
        watch: what watches the processes; None for one process.
    """

    def __init__(self, launch: Launch, store: Any = None, watched: Any = None) -> None:
        self.launch = launch
        self._store = store
        self._met = 0
        self._group: Any = None
        self.pulse = Pulse()
        self.watch = None if watched is None else Watch(launch, watched, self.pulse)

    @classmethod
    def alone(cls) -> Ranks:
        """This process by itself."""
        return cls(Launch())

    @property
    def first(self) -> bool:
        return self.launch.first

    @property
    def world(self) -> int:
        return self.launch.world

    def agreed(self, what: str, work: Callable[[], T]) -> T:
        """What `work` gives here, once it is done in every process.

        Raises:
            ElsewhereError: it failed in another process first.
        """
        if self._store is None:
            return work()
        self.pulse.at(what)
        try:
            result = work()
        except BaseException as error:
            raise self.told(error) from error
        self._meet(what)
        return result

    def from_first(self, what: str, work: Callable[[], str]) -> str:
        """The text that `work` gives in the first process; the others wait for it.

        Raises:
            ElsewhereError: it failed there.
        """
        if self._store is None:
            return work()
        key = f"{what} {self._met}"
        self.agreed(what, lambda: self._store.set(key, work()) if self.first else None)
        return self._get(key)

    def same(self, what: str, digest: str) -> None:
        """Refuse to go on where a process has something else than the first.

        Raises:
            RunError: this process has.
        """
        if self._store is None:
            return
        expected = self.from_first(what, lambda: digest)

        def compare() -> None:
            if digest != expected:
                raise RunError(
                    f"{what}: process {self.launch.rank} has another one than process 0; start all processes with the "
                    "same command, recipe, files and versions"
                )

        self.agreed(what, compare)

    def told(self, error: BaseException) -> BaseException:
        """What this process raises for its error: the error, or that another process failed before it."""
        if self._store is None:
            return error
        lost = _lost(error)
        if lost:
            missing = None if self.watch is None else self.watch.missing()
            error = RunError(missing or "another process of this run ended without a word; go on with --resume")
        if self.watch is not None:
            self.watch.leaving()
        known = explained(error) or error
        code = getattr(known, "exit_code", 2 if isinstance(known, DensekdError | OSError) else 1)
        if isinstance(error, KeyboardInterrupt):
            code = 130
        elif isinstance(error, SystemExit) and isinstance(error.code, int):
            code = error.code
        mine = json.dumps({"rank": self.launch.rank, "code": code, "text": f"{type(known).__name__}: {known}"})
        try:
            found = json.loads(self._store.compare_set(FAILED, "", mine).decode())
        except RuntimeError:  # the process that held the store is gone: what counts is what it has told before
            found = json.loads(mine) if self.watch is None or self.watch.failed is None else self.watch.failed
        if found != json.loads(mine) and not isinstance(error, KeyboardInterrupt | SystemExit):
            return _elsewhere(found)
        if lost and isinstance(error, RunError):
            say(str(error))  # at once: a launcher that has noticed too ends this process at any moment
            error.told_elsewhere = True
        return error

    @contextmanager
    def training(self, limit: float | None, record: Callable[[str], None]) -> Iterator[None]:
        """Inside the block all go on together: a process that stands still for `limit` seconds ends the run.

        Args:
            limit: None: no limit.
            record: writes why it ended into the run's record; called from another thread.
        """
        if self.watch is None:
            yield
            return
        self.watch.training(limit, record)
        try:
            yield
        except BaseException:
            self.watch.failing()
            raise
        self.watch.trained()

    def leave(self) -> None:
        """Wait a moment for the others where they read from this process's store, so that they hear why it ends."""
        if self._store is None:
            return
        if self._group is not None:
            gc.collect()  # what was trained, where it leads back to itself
            self._group = None
        gone = 0
        if self.watch is not None:
            gone = len(self.watch.gone())
            self.watch.stop()
        try:
            self._store.add("left", 1)
            until = time.monotonic() + 5
            while self.first and self._store.add("left", 0) + gone < self.world and time.monotonic() < until:
                time.sleep(0.02)
        except RuntimeError:
            return

    @contextmanager
    def group(self, device: torch.device, stall_minutes: float | None = None) -> Iterator[None]:
        """Inside the block torch's process group is there: NCCL between GPUs, gloo between CPUs.

        Args:
            stall_minutes: after which a process that stands still is told; a collective waits for longer.
        """
        if self._store is None:
            yield
            return
        timeout = max(_STUCK, timedelta(minutes=(stall_minutes or 0) + 5))
        backend = "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo"
        dist.init_process_group(
            backend, store=part("group", self._store), rank=self.launch.rank, world_size=self.world, timeout=timeout
        )
        # DDP's reducer must not be the last that holds the group: it would end the group's threads while it holds
        # Python's lock, which they may wait for; the group's own object lets go of it first. Seen with torch 2.11.
        self._group = dist.group.WORLD
        try:
            yield
        except BaseException:
            _KEPT.append(self._group)
            raise
        finally:
            dist.destroy_process_group()

    def _get(self, key: str) -> str:
        text: str = self._store.get(key).decode()
        return text

    def _meet(self, what: str) -> None:
        """Wait until all are here.

        Raises:
            ElsewhereError: one failed.
            RunError: one did not come within an hour.
        """
        with self.pulse.waiting():
            self._await(what)

    def _await(self, what: str) -> None:
        self._met += 1
        key, until, pause = f"met {self._met} {what}", time.monotonic() + _PATIENCE, 0.002
        try:
            self._store.add(key, 1)
            while self._store.add(key, 0) < self.world:
                if self._store.check([FAILED]):
                    raise _elsewhere(json.loads(self._get(FAILED)))
                if time.monotonic() > until:
                    raise self.told(RunError(f"{what}: another process did not come so far within {_PATIENCE:g} s"))
                time.sleep(pause)
                pause = min(0.2, 1.5 * pause)
        except dist.DistError:
            raise RunError(f"{what}: the first process of this launch is gone") from None


def _elsewhere(found: dict[str, Any]) -> ElsewhereError:
    return ElsewhereError(told_words(found), int(found["code"]))


def _lost(error: BaseException) -> bool:
    """Whether a collective failed because another process is gone."""
    if isinstance(error, DensekdError) or not isinstance(error, RuntimeError):
        return False
    return isinstance(error, dist.DistError) or any(word in str(error) for word in _LOST)


_stores: list[Any] = []
_joined: list[Ranks] = []
_runs = 0


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes of this launch, inside the block; a block within another one gives the same.

    Raises:
        RunError: the launcher does not say which process this is, or has started another engine than ours.
    """
    global _runs
    if _joined:
        yield _joined[-1]
        return
    launch = launched()
    ranks = Ranks(launch)
    if launch.world > 1:
        if dist.is_initialized():
            raise RunError("torch.distributed has a process group already: train and distill make their own")
        if not _stores:
            _stores.append(met(launch))
        _runs += 1
        name = f"densekd {_runs}"
        # A store answers one thread at a time: those that watch have a connection of their own.
        ranks = Ranks(launch, part(name, _stores[0]), part(name, _stores[0].clone()))
    _joined.append(ranks)
    try:
        yield ranks
    except BaseException as error:
        # Wherever it comes from: the others would wait for this process.
        found = error if getattr(error, "told_elsewhere", False) else ranks.told(error)
        if found is error:
            raise
        raise found from error
    finally:
        _joined.pop()
        ranks.leave()
