"""Ctrl-C and SIGTERM, from the first moment of a command to its last: one word, and exit code 130 or 143.

While a run trains, its own handlers stand instead (`densekd.training.signals`): they finish the step and save.
"""

from __future__ import annotations

import os
import signal
import sys
from contextlib import suppress
from types import FrameType
from typing import NoReturn

from densekd.launch import is_first

_WORDS = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}
_SHOW_CURSOR = "\x1b[?25h"  # a progress bar hides it


class Stopping:
    """The handlers of a command, and the signal that came.

    Attributes:
        asked: the signal that came; None before. Whatever is raised after it, in whatever form, is its doing.
        over: the command has ended, and with it all that would have to be put in order.
    """

    def __init__(self) -> None:
        self.asked: int | None = None
        self.over = False
        self._said = False
        self._process = 0

    def install(self) -> None:
        """Handle both signals from now on."""
        self.asked, self.over, self._said, self._process = None, False, False, os.getpid()
        for number in _WORDS:
            signal.signal(number, self._handle)

    def end(self) -> int:
        """Say once that the command was stopped; its exit code."""
        number = signal.SIGINT if self.asked is None else signal.Signals(self.asked)
        if not self._said and is_first():
            self._said = True
            sys.stderr.write(f"{_WORDS[number]}\n")
            sys.stderr.flush()
        return 128 + number

    def _handle(self, number: int, frame: FrameType | None) -> None:
        if os.getpid() != self._process:
            return  # a loading process, not yet deaf to signals: they are the main process's business
        again, self.asked = self.asked is not None, number
        if again or self.over or _importing(frame):
            self._leave_at_once(number)
        if number == signal.SIGTERM:
            raise SystemExit(128 + number)
        raise KeyboardInterrupt

    @staticmethod
    def _leave_at_once(number: int) -> NoReturn:
        # Not through the streams of Python: the signal may have come while one of them was written to.
        with suppress(OSError):
            if not is_first():
                os._exit(128 + number)
            os.write(2, f"{_SHOW_CURSOR if os.isatty(2) else ''}{_WORDS[signal.Signals(number)]}\n".encode())
        os._exit(128 + number)


def _importing(frame: FrameType | None) -> bool:
    """Whether a module is being imported: what an import that was broken off raises is anybody's guess."""
    while frame is not None:
        if frame.f_code.co_filename.startswith("<frozen importlib"):
            return True
        frame = frame.f_back
    return False


STOPPING = Stopping()
"""Of this process: signals are of the whole process too."""
