"""A network's first forward pass: what it raises becomes a mistake of the user's that names the network."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar

from densekd.errors import DensekdError, ModelError
from densekd.failures import explained, out_of_memory

T = TypeVar("T")

_LONGEST = 300


def attempt(run: Callable[[], T], who: str, doing: str, expected: str) -> T:
    """What `run` returns.

    Args:
        who: the network, for instance "student (nets.py:build)".
        doing: when it failed, for instance "in training mode on images (8, 3, 64, 64)".
        expected: what it is given and must give.

    Raises:
        ModelError: `run` raised; the network's own words are given, and the line where that is known.
        ResourceError: memory ran out, which is no fault of the network's.
    """
    try:
        return run()
    except Exception as error:
        known = explained(error)
        if known is not None and out_of_memory(error):
            raise known from error
        raise ModelError(f"{who} fails {doing}: {_words(error, known)}; {expected}") from error


def _words(error: Exception, known: DensekdError | None) -> str:
    words = str(known) if known is not None else f"{type(error).__name__}: {error}"
    return " ".join(words.split())[:_LONGEST].rstrip(". ")
