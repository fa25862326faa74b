"""A question on a terminal."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.progress import Progress


def asked(question: str, bars: Progress | None = None) -> bool | None:
    """The answer to a yes-or-no question; no, if it is neither. None where nobody can be asked: no terminal.

    Args:
        question: without the words for the answers.
        bars: what moves on the terminal meanwhile; it stands still.
    """
    if not (sys.stdin.isatty() and sys.stderr.isatty()):
        return None
    if bars is not None:
        bars.stop()
    try:
        sys.stderr.write(f"{question} [y/N] ")
        sys.stderr.flush()
        return sys.stdin.readline().strip().lower() in {"y", "yes"}
    finally:
        if bars is not None:
            bars.start()
