"""Ctrl-C and SIGTERM while a command is still being loaded: one word, and exit code 130 or 143.

`densekd.cli.stopping` takes over once it is there. Nothing is imported here but what the interpreter has loaded anyway:
the `signal` of the standard library alone brings a dozen modules, an age on a machine with too much to do. What comes
before the first line of densekd, while Python itself starts, is Python's to answer.
"""

from __future__ import annotations

import _signal  # type: ignore[import-not-found]
import os
import sys

_WORDS = {_signal.SIGINT: b"interrupted\n", _signal.SIGTERM: b"terminated\n"}
_UNTOUCHED = (_signal.SIG_DFL, _signal.default_int_handler)


def install() -> None:
    """Handle both signals from now on, where nobody does yet (nor ignores them, as `nohup` and a shell's `&` do)."""
    for number in _WORDS:
        if _signal.getsignal(number) in _UNTOUCHED:
            _signal.signal(number, _leave_at_once)


def is_the_command() -> bool:
    """Whether this process is the `densekd` script, and no other program that imports its module."""
    name = os.path.basename(sys.argv[0]) if sys.argv else ""  # noqa: PTH119 - pathlib is not loaded yet
    return name.partition(".")[0].removesuffix("-script") == "densekd"


def _leave_at_once(number: int, _frame: object) -> None:
    if os.environ.get("RANK", "0") == "0":  # of several processes that a launcher started, one speaks
        os.write(2, _WORDS[number])
    os._exit(128 + number)
