"""What an export tells whoever waits for it."""

from __future__ import annotations

from typing import Protocol


class Watching(Protocol):
    """The shape of `densekd.cli.show.Watch`, as far as an export needs it."""

    def said(self, line: str) -> None:
        """A line for the user."""
        ...

    def counting(self, what: str, done: int, total: int) -> None:
        """So much of some work is done."""
        ...


class Silent:
    """Nobody waits."""

    def said(self, line: str) -> None:
        pass

    def counting(self, what: str, done: int, total: int) -> None:
        pass
