"""Text for a terminal: names of files and classes may hold what a terminal would obey."""

from __future__ import annotations

import re

# Control characters but tab and newline (colours, cursor, window title, bell), and marks that turn the direction of
# reading.
_OBEYED = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u202a-\u202e\u2066-\u2069]")


def printable(text: str) -> str:
    r"""The text with such characters written as their codes.

    >>> printable("road\x1b[2J")
    'road\\x1b[2J'
    """
    return _OBEYED.sub(lambda found: found[0].encode("unicode_escape").decode(), text)
