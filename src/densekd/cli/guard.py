"""What every command shares: mistakes become plain lines and exit code 2, interruptions their own codes."""

from __future__ import annotations

import functools
import os
import sys
from collections.abc import Callable
from typing import ParamSpec, TypeVar

from densekd.errors import DensekdError

P = ParamSpec("P")
R = TypeVar("R")

DEBUG = "DENSEKD_DEBUG"


def complain(text: str) -> None:
    """Lines on stderr, whatever their characters."""
    stream = sys.stderr
    encoding = stream.encoding or "utf-8"
    stream.write(text.encode(encoding, "backslashreplace").decode(encoding) + "\n")
    stream.flush()


def debugging() -> bool:
    """Whether `--debug` was given: tracebacks are shown."""
    return os.environ.get(DEBUG) == "1"


def _out_of_memory(error: Exception) -> bool:
    # torch's CPU allocator has no class of its own for this, only its words.
    words = "DefaultCPUAllocator" in str(error) or "not enough memory" in str(error)
    return isinstance(error, MemoryError) or type(error).__name__ == "OutOfMemoryError" or words


def guarded(command: Callable[P, R]) -> Callable[P, R]:
    """A command whose errors end as the design says: user errors 2, Ctrl-C 130, SIGTERM 143, defects 1."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> R:
        try:
            result = command(*args, **kwargs)
            sys.stdout.flush()  # here, so that a reader who has left is noticed inside
            return result
        except DensekdError as error:
            if debugging():
                raise
            code = getattr(error, "exit_code", 2)
            complain(str(error) if code != 2 else f"error: {error}")
            raise SystemExit(code) from None
        except KeyboardInterrupt:
            complain("interrupted")
            raise SystemExit(130) from None
        except BrokenPipeError:
            # The reader of our output (head, less) has left: nothing to say, and nothing more to flush.
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            raise SystemExit(141) from None
        except OSError as error:
            if debugging():
                raise
            complain(f"error: {error.filename or 'system'}: {error.strerror or error}")
            raise SystemExit(2) from None
        except Exception as error:
            if debugging():
                raise
            if _out_of_memory(error):
                complain(f"error: out of memory ({' '.join(str(error).split())[:200] or type(error).__name__})")
                complain("Lower train.batch_size (and raise train.accumulate), data.augment.crop or data.augment.size")
                raise SystemExit(2) from None
            complain(f"internal error: {type(error).__name__}: {' '.join(str(error).split())[:500]}")
            complain("This is a defect of densekd. Run again with --debug for the traceback and report it.")
            raise SystemExit(1) from None

    return run
