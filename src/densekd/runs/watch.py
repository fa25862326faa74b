"""The processes of a run watch one another: one that is gone, or stands still, ends them all, with the reason.

Each has two threads beside the one that trains, which may be blocked in a collective where no signal and no exception
reaches it. One tells the others what its process is at, and hears what they say (`densekd.runs.exchange`); the other
judges, and ends this process where need be. No step waits for either.
"""

from __future__ import annotations

import multiprocessing
import os
import sys
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from typing import Any

from densekd.launch import Launch
from densekd.runs.exchange import ANSWER, Exchange, told_words
from densekd.runs.signs import Place, Seen, Sign, gone_words, stall_words, stalled
from densekd.training.lateness import Late, Waits
from densekd.training.pulse import Pulse

_SOON, _LATEST = 10.0, 30.0
"""Seconds within which a process that can end by itself has begun to, and has done so."""
_GUARD = 15.0
"""Seconds after which a process ends whatever its last words wait for.

With these, two answers of the store that do not come (`ANSWER`) and a sign's second all end within the minute promised.
"""
_SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it
_NEVER = threading.Event()


def say(line: str) -> None:
    """An error on stderr, from any thread: not through the streams of Python, which another may be writing to."""
    plain = line.encode("ascii", "backslashreplace").decode()
    with suppress(OSError):
        os.write(2, f"{_SHOW_CURSOR if os.isatty(2) else ''}error: {plain}\n".encode())


class Watch:
    """Watches the processes of a launch from one of them.

    Args:
        launch: this process's place.
        store: a connection of its own to the launch's store.
        pulse: what the thread that makes this object is at.

    Attributes:
        waits: where the long waits of this process for the others are noted.
    """

    def __init__(self, launch: Launch, store: Any, pulse: Pulse) -> None:
        self.launch, self.pulse, self.waits = launch, pulse, Waits()
        self._place, self._trains = Place.here(), threading.get_ident()
        self._late, self._lines = Late(launch.world), deque[str]()
        self._limit: float | None = None
        self._record: Callable[[str], None] | None = None
        self._begun = time.monotonic()
        self._ended = self._finishing = self._told = False
        self._leaving, self._over = threading.Event(), threading.Event()
        self._end, self._telling = threading.Lock(), threading.Lock()
        self._exchange = Exchange(launch, store, self._sign)
        self._judge = threading.Thread(target=self._judging, name="densekd watch", daemon=True)
        self._judge.start()

    @property
    def failed(self) -> dict[str, Any] | None:
        """The first failure that this process has heard of."""
        return self._exchange.failed

    def training(self, limit: float | None, record: Callable[[str], None]) -> None:
        """From now on the processes wait for one another in every step.

        Args:
            limit: seconds without progress after which a process ends the run; None: no limit.
            record: writes the reason into the run's record; called in the first process, from another thread.
        """
        self._limit, self._record, self._begun = limit, record, time.monotonic()

    def failing(self) -> None:
        """Training has ended early: what this process is at is its own end."""
        self._limit = None

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
        while self._lines:
            found.append(self._lines.popleft())
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
        self._exchange.stop()
        self._exchange.news.set()
        self._judge.join(ANSWER)

    def missing(self) -> str | None:
        """In words, a process of this machine that has ended without a word; None where there is none."""
        until = time.monotonic() + ANSWER
        while self.failed is None:
            gone = self.gone()
            if gone:
                return gone_words(gone[0], self.launch.world)
            if time.monotonic() > until:
                break
            time.sleep(0.05)
        return None

    def gone(self) -> list[Seen]:
        """Processes of this machine that have ended and have not said so."""
        here = self._place.machine

        def unsaid() -> list[Seen]:
            others = (one for one in self._seen() if one.rank != self.launch.rank)
            return [one for one in others if one.sign.place.machine == here and not one.sign.left]

        found = {one.rank for one in unsaid() if one.sign.place.gone()}
        if not found:
            return []
        self._exchange.fresh()  # its last sign may be newer than the one that is known here
        return [one for one in unsaid() if one.rank in found]

    def _sign(self, count: int) -> Sign:
        return Sign.of(count, self._place, self.pulse.now, self._trains, self.waits, time.monotonic())

    def _seen(self) -> list[Seen]:
        """All processes, this one too."""
        now = time.monotonic()
        others = [Seen(rank, sign, now - at) for rank, (sign, at) in self._exchange.signs.copy().items()]
        return [*others, Seen(self.launch.rank, self._sign(0), 0.0)]

    def _judging(self) -> None:
        looked, interval = time.monotonic(), self._exchange.interval
        while not self._over.is_set():
            now = time.monotonic()
            if self._limit is not None and now - looked > max(self._limit / 2, 2 * interval):
                self._begun = now  # stopped itself (Ctrl-Z, a scheduler), perhaps with all others: what it knows is old
            looked = now
            try:
                self._look()
            except MemoryError:  # the next look may find some
                pass
            except Exception as error:
                self._note_defect(error)
            self._exchange.news.wait(interval)
            self._exchange.news.clear()

    def _note_defect(self, error: Exception) -> None:
        """A look failed, which is a defect of densekd: told once, and looked again."""
        if not self._told:
            self._told = True
            say(f"the watch over the processes: {type(error).__name__}: {error}; a defect of densekd. The run goes on")

    def _look(self) -> None:
        if self.failed is not None:
            self._follow(self.failed)
        elif gone := self.gone():
            self._follow(None, gone_words(gone[0], self.launch.world))
        elif self._exchange.lost:
            self._follow(None, "the first process of this launch is gone; go on with --resume")
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
                self._exchange.accuse(text)
        elif (told is not None and told.get("watch")) or not self._ends_by_itself():
            self._end_all(told or self._exchange.accuse(text))

    def _look_for_stalls(self) -> None:
        limit, seen = self._limit, self._seen()
        if self.launch.first and not self._finishing:
            self._hear_of_late()
        if limit is None or time.monotonic() - self._begun < limit:  # a sign may be of what came before training
            return
        if time.monotonic() - self._exchange.heard >= limit:  # then nothing is known of any other
            seen = [one for one in seen if one.rank == 0]
        found = stalled(seen, limit)
        if found:
            self._end_all(self._exchange.accuse(stall_words(found, self.launch.world, limit)))

    def _hear_of_late(self, *, all_taken: bool = False) -> None:
        """Find new lines on late processes.

        Args:
            all_taken: every process has taken every step, though not each may have told so.
        """
        with self._telling:
            seen = self._seen()
            taken = {one.rank: self.waits.taken if all_taken else one.sign.taken for one in seen}
            self._lines.extend(self._late.lines(taken, {one.rank: one.sign.waits for one in seen}))

    def _ends_by_itself(self) -> bool:
        """Whether this process ends without help: its own error, or a broken connection, has reached it."""
        if self._leaving.wait(_SOON):
            return self._over.wait(_LATEST - _SOON)
        return self._over.is_set()

    def _end_all(self, told: dict[str, Any]) -> None:
        """End this process from here; returns only where it has ended by itself meanwhile.

        Args:
            told: the first failure, which this process says if it has told it.
        """
        code = int(told["code"])
        with self._end:
            if self._over.is_set():
                return
            self._ended = True
        guard = threading.Timer(_GUARD, os._exit, (code,))
        guard.daemon = True
        guard.start()
        text = told_words(told)
        # What the training thread is writing is left to it, and may be what hangs; a kill of it loses nothing.
        if self._record is not None and not self._leaving.is_set() and not self.pulse.now.patient:
            with suppress(OSError):
                self._record(text)
        if told["rank"] == self.launch.rank:
            say(text.removeprefix("RunError: "))
            time.sleep(3 * self._exchange.interval)  # the others hear it from the store, which may be in this process
        for child in multiprocessing.active_children():
            if child.daemon:  # loading processes: a hanging one would stay
                child.kill()
        for one in self._stopped():
            with suppress(Exception):
                one.sign.place.kill()
        sys.stdout.flush()
        os._exit(code)

    def _stopped(self) -> list[Seen]:
        """Processes of this machine that do not answer: they cannot end by themselves."""
        limit, seen = self._limit, self._seen()
        if limit is None:
            return []
        if time.monotonic() - self._exchange.heard >= limit:
            seen = [one for one in seen if one.rank == 0]
        here = self._place.machine
        return [one for one in seen if one.silent >= limit and one.sign.place.machine == here]
