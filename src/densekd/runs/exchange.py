"""What the processes of a run tell one another over the launch's store, from a thread that may hang with it."""

from __future__ import annotations

import json
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from datetime import timedelta
from typing import Any

import torch.distributed as dist

from densekd.launch import Launch
from densekd.runs.signs import Sign, left

FAILED = "failed"
"""Key of the first failure: who failed, with which exit code, in which words."""
ANSWER = 5.0
"""Seconds that another thread waits for a word from the store."""
_INTERVAL, _READERS = 1.0, 32
"""Seconds between two signs, for so many processes; of more each one's are rarer, as all read all."""
_UNKNOWN = 0.05
"""Seconds between two signs while a process is not known yet."""
_SLOW = timedelta(seconds=60)


def told_words(told: dict[str, Any]) -> str:
    """A failure as another process has told it; who stands still, or is gone, is named in the words."""
    return str(told["text"]) if told.get("watch") else f"process {told['rank']}: {told['text']}"


class Exchange:
    """Tells signs of this process and hears those of the others, about once a second.

    Args:
        launch: this process's place.
        store: a connection of its own to the launch's store.
        sign: makes the sign with a number.

    Attributes:
        signs: the newest sign of each other process, and when it came (monotonic clock).
        failed: the first failure that was told, by whichever process.
        heard: when the last exchange began that came to its end.
        lost: whether the store is gone.
        news: set when one of the last two changes.
        interval: seconds between two signs.
    """

    def __init__(self, launch: Launch, store: Any, sign: Callable[[int], Sign]) -> None:
        self.launch, self._store, self._sign = launch, store, sign
        self.signs: dict[int, tuple[Sign, float]] = {}
        self.failed: dict[str, Any] | None = None
        self.heard, self.lost = time.monotonic(), False
        self.news = threading.Event()
        self.interval = _INTERVAL * max(1.0, launch.world / _READERS)
        self._accusation: str | None = None
        self._over, self._nudge = threading.Event(), threading.Event()
        store.set_timeout(_SLOW)
        self._thread = threading.Thread(target=self._work, name="densekd exchange", daemon=True)
        self._thread.start()

    def fresh(self) -> None:
        """Come back when all signs are newer than this call, or the store does not answer."""
        asked = time.monotonic()
        self._wait(lambda: self.heard >= asked)

    def accuse(self, text: str) -> dict[str, Any]:
        """Tell the others why all end; what counts is what was told first."""
        mine = {"rank": self.launch.rank, "code": 2, "text": f"RunError: {text}", "watch": True}
        self._accusation = json.dumps(mine)
        self._wait(lambda: self.failed is not None)
        return self.failed or mine

    def stop(self) -> None:
        """Tell the others that this process leaves."""
        self._over.set()
        self._nudge.set()
        self._thread.join(ANSWER)

    def _wait(self, there: Callable[[], bool]) -> None:
        self._nudge.set()
        until = time.monotonic() + ANSWER
        while not there() and not self.lost and time.monotonic() < until:
            time.sleep(0.01)

    def _work(self) -> None:
        count = 0
        try:
            while not self._over.is_set():
                count += 1
                with suppress(dist.DistStoreError):  # no answer in time: another try
                    self._talk(self._sign(count))
                # Until every process is known, often: who stops or dies before its first sign came could not be named.
                self._nudge.wait(self.interval if len(self.signs) == self.launch.world - 1 else _UNKNOWN)
                self._nudge.clear()
            self._store.set(_key(self.launch.rank), left(self._sign(count)).text())
        except RuntimeError:
            self.lost = True
            self.news.set()

    def _talk(self, sign: Sign) -> None:
        begin = time.monotonic()
        self._store.set(_key(self.launch.rank), sign.text())
        if self._accusation is not None and self.failed is None:
            self._store.compare_set(FAILED, "", self._accusation)
        others = [rank for rank in range(self.launch.world) if rank != self.launch.rank]
        known = [rank for rank in others if rank in self.signs or self._store.check([_key(rank)])]
        texts = self._store.multi_get([_key(rank) for rank in known]) if known else []
        now = time.monotonic()
        for rank, text in zip(known, texts, strict=True):
            new, before = Sign.read(text.decode()), self.signs.get(rank)
            if before is None or new.count != before[0].count:
                self.signs[rank] = (new, now)
        if self.failed is None and self._store.check([FAILED]):
            self.failed = json.loads(self._store.get(FAILED))
            self.news.set()
        self.heard = begin


def _key(rank: int) -> str:
    return f"sign {rank}"
