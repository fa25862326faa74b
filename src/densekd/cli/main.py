"""The `densekd` command: signals are handled before anything else is imported."""

from __future__ import annotations

import io
import os
import sys

from densekd.cli import early

if __name__ == "__main__" or early.is_the_command():
    early.install()


def main() -> None:
    """Entry point of the `densekd` script."""
    from densekd.cli.stopping import STOPPING

    STOPPING.install()
    try:
        code = _run(sys.argv[1:])
    except BaseException:  # an interruption, whatever became of it on its way
        if STOPPING.asked is None:
            raise
        code = STOPPING.end()
    finally:
        STOPPING.over = True
    raise SystemExit(code)


def _run(arguments: list[str]) -> int:
    from densekd.cli.app import call
    from densekd.cli.guard import DEBUG

    if "--debug" in arguments:
        os.environ[DEBUG] = "1"
        arguments = [argument for argument in arguments if argument != "--debug"]
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(errors="backslashreplace")  # a terminal that lacks a character is no reason to fail
    return call(arguments)


if __name__ == "__main__":
    main()
