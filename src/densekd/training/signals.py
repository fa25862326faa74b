"""Ctrl-C and SIGTERM: finish the step, save, and leave; a second Ctrl-C leaves at once."""

from __future__ import annotations

import signal
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from types import FrameType, TracebackType
from typing import Any

from densekd.errors import DensekdError

_HANDLED = (signal.SIGINT, signal.SIGTERM)


class Interrupted(DensekdError):  # noqa: N818 - not an error: what the user asked for
    """The user or the system asked the run to stop; everything is saved.

    `exit_code` is 130 after Ctrl-C (SIGINT), 143 after SIGTERM.
    """

    def __init__(self, message: str, signal_number: int) -> None:
        super().__init__(message)
        self.exit_code = 128 + signal_number


class StopSignals:
    """Context manager that turns the first signal into a flag: `asked` is its number, or None.

    Outside the main thread (where Python allows no handlers) it does nothing.

    Args:
        said: called at the first signal with a line for the user, who would else see nothing until the step ends.
        grace: seconds in which a further signal is the same one, by another way: a launcher hands on to its processes
            what the terminal has sent to all of them.
    """

    def __init__(self, said: Callable[[str], None] | None = None, grace: float = 0.0) -> None:
        self.asked: int | None = None
        self._said, self._grace, self._at = said, grace, 0.0
        self._before: dict[int, Any] = {}

    def __enter__(self) -> StopSignals:
        if threading.current_thread() is threading.main_thread():
            for number in _HANDLED:
                self._before[number] = signal.signal(number, self._handle)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, value: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._before.items():
            signal.signal(number, handler)
        self._before.clear()

    def _handle(self, number: int, _frame: FrameType | None) -> None:
        if self.asked is not None:
            if time.monotonic() - self._at < self._grace:
                return
            raise KeyboardInterrupt
        self.asked, self._at = number, time.monotonic()
        if self._said is not None:
            again = "Ctrl-C again" if number == signal.SIGINT else "a second signal"
            # The signal may have come in the middle of another line on the same stream, which refuses a second one.
            with suppress(RuntimeError, OSError):
                self._said(f"stopping after this step; {again} stops at once")
