"""Tables of a page: plain values here, the markup in the template."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Literal

from densekd.report.words import NONE, number

Tone = Literal["", "up", "down", "bad", "strong"]


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: what is read.
        key: what the column is sorted by; None: the text, or for a number that is missing the end.
        bar: length of a bar in front of the number, from 0 to 1; None: no bar.
        delta: length of a bar to the left or the right of a middle line, from -1 to 1; None: no bar.
        tone: how it is coloured.
        help: more words, shown when pointed at.
    """

    text: str
    key: float | None = None
    bar: float | None = None
    delta: float | None = None
    tone: Tone = ""
    help: str = ""


@dataclass(frozen=True)
class Column:
    """One column; numbers stand on the right and are sorted from the largest down first."""

    name: str
    numeric: bool = False
    help: str = ""


@dataclass(frozen=True)
class Table:
    """A table; the first cell of a row is its heading.

    Attributes:
        sortable: its heads are buttons.
        paired: names with their values: heads would say nothing, and are for those alone who hear the page.
    """

    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]] = field(default_factory=tuple)
    sortable: bool = True
    paired: bool = False


def text(value: object) -> Cell:
    """A cell of words."""
    return Cell(NONE if value is None or value == "" else str(value))


def figure(value: float | None, digits: int = 4) -> Cell:
    """A cell of a plain number."""
    return Cell(number(value, digits), key=value)


def pairs(caption: str, rows: Sequence[tuple[str, object]]) -> Table:
    """Names with their values, in the given order."""
    shown = [(Cell(name), text(value)) for name, value in rows if value is not None and value != ""]
    return Table(caption, (Column("what"), Column("value")), shown, sortable=False, paired=True)
