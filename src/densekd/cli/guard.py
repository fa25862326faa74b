"""What every command shares: mistakes become plain lines and exit code 2, interruptions their own codes."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from densekd.cli.libraries import considerate
from densekd.cli.printable import printable
from densekd.cli.stopping import STOPPING
from densekd.failures import explained, out_of_room

P = ParamSpec("P")
R = TypeVar("R")

DEBUG = "DENSEKD_DEBUG"


def complain(text: str) -> None:
    """Lines on stderr, whatever their characters; what a terminal would obey is shown as its code."""
    stream = sys.stderr
    encoding = stream.encoding or "utf-8"
    stream.write(printable(text).encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def refuse_unread(needed: str, given: bool, **options: tuple[object, object]) -> None:
    """Refuse options that nothing would read.

    Args:
        needed: the option without which they are not read.
        given: whether it was given.
        options: value and default of each.

    Raises:
        ArgumentError: one has another value than its default, and `needed` was not given.
    """
    from densekd.errors import ArgumentError

    unread = [name for name, (value, default) in options.items() if value != default]
    if unread and not given:
        raise ArgumentError(f"--{unread[0].replace('_', '-')} belongs to {needed}; give both, or neither")


def debugging() -> bool:
    """Whether `--debug` was given: tracebacks are shown."""
    return os.environ.get(DEBUG) == "1"


def _tell(error: BaseException, resumes: bool) -> int:
    """Say what went wrong; the exit code. Of a command that `resumes`, how it goes on once the disk has room."""
    known = explained(error)
    if known is not None and known.told_elsewhere:
        return int(getattr(known, "exit_code", 2))
    if known is not None:
        code = int(getattr(known, "exit_code", 2))
        again = " with --resume: the run goes on from its last checkpoint" if resumes and out_of_room(error) else ""
        complain(str(known) if code != 2 else f"error: {known}{again}")
        return code
    if isinstance(error, OSError):
        complain(f"error: {error.filename or 'system'}: {error.strerror or error}")
        return 2
    complain(f"internal error: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
    complain("This is a defect of densekd. Run again with --debug for the traceback and report it.")
    return 1


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose errors end as the design says: user errors 2, Ctrl-C 130, SIGTERM 143, defects 1."""

    resumes = "resume" in getattr(command, "__annotations__", {})

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            with considerate():
                result = command(*args, **kwargs)
            sys.stdout.flush()  # here, so that a reader who has left is noticed inside
            return result
        except KeyboardInterrupt:
            raise SystemExit(STOPPING.end()) from None
        except BrokenPipeError:
            # The reader of our output (head, less) has left: nothing to say, and nothing more to flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        except BaseException as error:  # the user's own code may raise what is no Exception
            if STOPPING.asked is not None:
                raise SystemExit(STOPPING.end()) from None
            if debugging() or (isinstance(error, SystemExit) and explained(error) is None):
                raise
            raise SystemExit(_tell(error, resumes)) from None

    return run
