"""The processes of a run watch one another: one that is gone, or stands still, ends them all, with the reason.

Each has two threads beside the one that trains, which may be blocked in a collective where no signal and no exception
reaches it. One tells the others over the launch's store what its process is at, and hears what they say; it may hang
with the store. The other judges, and ends this process where need be. Neither is waited for by a step.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Sequence
from contextlib import suppress
from datetime import timedelta
from typing import Any

from densekd.launch import Launch
from densekd.runs.signs import Place, Seen, Sign, gone_words, left, stall_words, stalled
from densekd.training.lateness import Late, Waits
from densekd.training.pulse import Pulse

FAILED = "failed"
"""Key of the first failure: who failed, with which exit code, in which words."""
_INTERVAL, _READERS = 1.0, 32
"""Seconds between two signs, for so many processes; of more each one's are rarer, as all read all."""
_SOON, _LATEST = 10.0, 45.0
"""Seconds within which a process that can end by itself has begun to, and has done so."""
_ANSWER = 5.0
"""Seconds that a thread waits for the other one's word from the store."""
_GUARD = 15.0
"""Seconds after which a process ends whatever its last words wait for."""
_SLOW_STORE = timedelta(seconds=60)
_SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it
_NEVER = threading.Event()


def told_words(told: dict[str, Any]) -> str:
    """A failure as another process has told it; who stands still, or is gone, is named in the words."""
    return str(told["text"]) if told.get("watch") else f"process {told['rank']}: {told['text']}"


class Watch:
    """Watches the processes of a launch from one of them.

    Args:
        launch: this process's place.
        store: a connection of its own to the launch's store.
        pulse: what the thread that makes this object is at.
    """

    def __init__(self, launch: Launch, store: Any, pulse: Pulse) -> None:
        self.launch, self.pulse, self.waits = launch, pulse, Waits()
        self.lines: deque[str] = deque()
        self._store, self._place, self._thread = store, Place.here(), threading.get_ident()
        self._late = Late(launch.world)
        self._signs: dict[int, tuple[Sign, float]] = {}
        self._failed: dict[str, Any] | None = None
        self._accusation: str | None = None
        self._heard = time.monotonic()
        self._lost = self._ended = self._finishing = False
        self._limit: float | None = None
        self._begun = self._heard
        self._record: Callable[[str], None] | None = None
        self._leaving, self._over = threading.Event(), threading.Event()
        self._nudge, self._news = threading.Event(), threading.Event()
        self._end, self._telling = threading.Lock(), threading.Lock()
        self._interval = _INTERVAL * max(1.0, launch.world / _READERS)
        store.set_timeout(_SLOW_STORE)
        self._threads = [
            threading.Thread(target=work, name=f"densekd {work.__name__}", daemon=True)
            for work in (self._talking, self._judging)
        ]
        for thread in self._threads:
            thread.start()

    def training(self, limit: float | None, record: Callable[[str], None]) -> None:
        """From now on the processes wait for one another in every step.

        Args:
            limit: seconds without progress after which a process ends the run; None: no limit.
            record: writes the reason into the run's record; called in the first process, from another thread.
        """
        self._limit, self._record, self._begun = limit, record, time.monotonic()

    def trained(self) -> None:
        """From now on the processes no longer wait for one another within a step: the first ends its work alone."""
        self._limit, self._record, self._finishing = None, None, True

    def last_words(self) -> list[str]:
        """What there is to say of late processes at the end of the training; for the first process."""
        self._hear_of_late(all_taken=True)
        with self._telling:
            return [*self.taken_lines(), *self._late.last_words()]

    def taken_lines(self) -> list[str]:
        """Lines that were found since the last call."""
        found = []
        while self.lines:
            found.append(self.lines.popleft())
        return found

    def leaving(self) -> None:
        """This process ends by itself, with an error of its own; does not return where the watch is ending it."""
        with self._end:
            ended = self._ended
            self._leaving.set()
        if ended:
            _NEVER.wait()

    def stop(self) -> None:
        """Watch no more, and tell the others that this process leaves."""
        self.leaving()
        self._over.set()
        self._nudge.set()
        self._news.set()
        for thread in self._threads:
            thread.join(_ANSWER)

    def missing(self) -> str | None:
        """In words, a process of this machine that has ended without a word; None where there is none."""
        until = time.monotonic() + _ANSWER
        while time.monotonic() < until and self._failed is None and not self._lost:
            gone = self._gone()
            if gone:
                return gone_words(gone[0], self.launch.world)
            time.sleep(0.05)
        return None

    def _talking(self) -> None:
        count = 0
        try:
            while not self._over.is_set():
                count += 1
                self._exchange(self._sign(count))
                self._nudge.wait(self._interval)
                self._nudge.clear()
            self._store.set(self._key(self.launch.rank), left(self._sign(count)).text())
        except RuntimeError:
            self._lost = True
            self._news.set()

    def _exchange(self, sign: Sign) -> None:
        """Tell, and hear; a RuntimeError: the store is gone."""
        begin = time.monotonic()
        self._store.set(self._key(self.launch.rank), sign.text())
        if self._accusation is not None and self._failed is None:
            self._store.compare_set(FAILED, "", self._accusation)
        others = [rank for rank in range(self.launch.world) if rank != self.launch.rank]
        known = [rank for rank in others if rank in self._signs or self._store.check([self._key(rank)])]
        texts = self._store.multi_get([self._key(rank) for rank in known]) if known else []
        now = time.monotonic()
        for rank, text in zip(known, texts, strict=True):
            new, before = Sign.read(text.decode()), self._signs.get(rank)
            if before is None or new.count != before[0].count:
                self._signs[rank] = (new, now)
        if self._failed is None and self._store.check([FAILED]):
            self._failed = json.loads(self._store.get(FAILED))
            self._news.set()
        self._heard = begin

    def _sign(self, count: int) -> Sign:
        return Sign.of(count, self._place, self.pulse.now, self._thread, self.waits, time.monotonic())

    def _key(self, rank: int) -> str:
        return f"sign {rank}"

    def _seen(self) -> list[Seen]:
        """All processes, this one too."""
        now = time.monotonic()
        others = [Seen(rank, sign, now - at) for rank, (sign, at) in self._signs.copy().items()]
        return [*others, Seen(self.launch.rank, self._sign(0), 0.0)]

    def _judging(self) -> None:
        while not self._over.is_set():
            with suppress(MemoryError):  # then the next look may find some
                self._look()
            self._news.wait(self._interval)
            self._news.clear()

    def _look(self) -> None:
        if self._failed is not None:
            self._follow(self._failed)
        elif self._lost:
            self._follow(None, "the first process of this launch is gone; go on with --resume")
        elif gone := self._gone():
            self._follow(None, gone_words(gone[0], self.launch.world))
        else:
            self._look_for_stalls()

    def _follow(self, told: dict[str, Any] | None, text: str = "") -> None:
        """Another process has failed: this one ends too, by itself where it can.

        Args:
            told: what that one has told of it.
            text: what there is to say of it, where it has not.
        """
        if self._finishing:  # this process waits for none, or looks into the store while it waits
            if told is None:
                self._accuse(text)
        elif (told is not None and told.get("watch")) or not self._ends_by_itself():
            self._end_all(told or self._accuse(text))

    def _look_for_stalls(self) -> None:
        limit, seen = self._limit, self._seen()
        if self.launch.first and not self._finishing:
            self._hear_of_late()
        if (
            limit is None or time.monotonic() - self._begun < limit
        ):  # before, a sign may be of what came before training
            return
        if time.monotonic() - self._heard >= limit:  # then nothing is known of any other
            seen = [one for one in seen if one.rank == 0]
        found = stalled(seen, limit)
        if found:
            told = self._accuse(stall_words(found, self.launch.world, limit))
            stopped = [one for one in found if one.silent >= limit and one.sign.place.machine == self._place.machine]
            self._end_all(told, stopped)

    def _hear_of_late(self, *, all_taken: bool = False) -> None:
        """Find new lines on late processes.

        Args:
            all_taken: every process has taken every step, though not each may have told so.
        """
        with self._telling:
            seen = self._seen()
            taken = {one.rank: self.waits.taken if all_taken else one.sign.taken for one in seen}
            self.lines.extend(self._late.lines(taken, {one.rank: one.sign.waits for one in seen}))

    def _gone(self) -> list[Seen]:
        """Processes of this machine that have ended and have not said so."""
        here = self._place.machine

        def ended() -> list[Seen]:
            others = (one for one in self._seen() if one.rank != self.launch.rank)
            return [one for one in others if one.sign.place.machine == here and not one.sign.left]

        found = {one.rank for one in ended() if one.sign.place.gone()}
        if not found:
            return []
        # The last sign of a process may be newer than the one that is known here.
        asked, until = time.monotonic(), time.monotonic() + _ANSWER
        self._nudge.set()
        while self._heard < asked and not self._lost and time.monotonic() < until:
            time.sleep(0.01)
        return [one for one in ended() if one.rank in found]

    def _ends_by_itself(self) -> bool:
        """Whether this process ends without help: its own error, or a broken connection, has reached it."""
        if self._leaving.wait(_SOON):
            return self._over.wait(_LATEST - _SOON)
        return self._over.is_set()

    def _accuse(self, text: str) -> dict[str, Any]:
        """Tell the others why all end: what counts is what was told first."""
        mine = {"rank": self.launch.rank, "code": 2, "text": f"RunError: {text}", "watch": True}
        self._accusation = json.dumps(mine)
        self._nudge.set()
        until = time.monotonic() + _ANSWER
        while self._failed is None and not self._lost and time.monotonic() < until:
            time.sleep(0.01)
        return mine if self._failed is None or self._failed == mine else self._failed

    def _end_all(self, told: dict[str, Any], stopped: Sequence[Seen] = ()) -> None:
        """End this process from here; does not return, unless it has ended by itself meanwhile."""
        code = int(told["code"])
        with self._end:
            if self._over.is_set():
                return
            self._ended = True
        guard = threading.Timer(_GUARD, os._exit, (code,))
        guard.daemon = True
        guard.start()
        text = told_words(told)
        # A file that the training thread is writing is left to it: it may be what hangs.
        if self._record is not None and not self._leaving.is_set() and not self.pulse.now.patient:
            with suppress(OSError):
                self._record(text)
        if told["rank"] == self.launch.rank:
            line = text.removeprefix("RunError: ").encode("ascii", "backslashreplace").decode()
            with suppress(OSError):
                os.write(2, f"{_SHOW_CURSOR if os.isatty(2) else ''}error: {line}\n".encode())
            time.sleep(3 * self._interval)  # the others hear it from the store, which may be in this process
        for child in multiprocessing.active_children():  # loading processes: a hanging one would stay
            child.kill()
        for one in stopped:
            with suppress(Exception):
                one.sign.place.kill()
        sys.stdout.flush()
        os._exit(code)
