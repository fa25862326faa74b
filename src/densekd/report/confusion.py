"""The confusion matrix of a run, as shares of the truth, and the pairs of classes that are confused most."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from densekd.records import ConfusionRecord
from densekd.report.page import environment, part
from densekd.report.tables import Cell, Column, Table
from densekd.report.words import counted, share, short

_CELLS = 32
"""With more classes than this, numbers no longer fit into the cells."""
_CELL, _LETTER, _HEAT = 12, 5.6, (60, 120, 195)
_PAIRS = 15

Shares = list[list[float | None]]


@dataclass(frozen=True)
class Pair:
    """Pixels of one class that were taken for another.

    Attributes:
        truth, taken: names of the classes.
        pixels: how many.
        of_truth: share of the true class's pixels.
        of_errors: share of all wrong pixels.
    """

    truth: str
    taken: str
    pixels: int
    of_truth: float
    of_errors: float


def normalised(matrix: Sequence[Sequence[int]]) -> Shares:
    """Every row divided by its sum: shares of the true class's pixels. None in the row of a class that never occurs."""
    found: Shares = []
    for row in matrix:
        total = sum(row)
        found.append([count / total if total else None for count in row])
    return found


def most_confused(matrix: Sequence[Sequence[int]], names: Sequence[str], most: int = _PAIRS) -> list[Pair]:
    """The pairs with the most wrong pixels, most first."""
    errors = sum(count for i, row in enumerate(matrix) for j, count in enumerate(row) if i != j)
    found = [
        Pair(names[i], names[j], count, count / sum(row), count / errors)
        for i, row in enumerate(matrix)
        for j, count in enumerate(row)
        if i != j and count
    ]
    return sorted(found, key=lambda pair: -pair.pixels)[:most]


def confusion_body(kept: ConfusionRecord) -> Markup:
    """Matrix and pairs of the newest evaluation."""
    matrix, names = kept.final.matrix, kept.classes
    label = (
        f"Confusion on {kept.split} after step {kept.final.step:,}: of the pixels of each class (rows, truth), the "
        "share that was taken for each (columns), in percent"
    )
    pairs = most_confused(matrix, names)
    body = _drawn(matrix, names, label)
    absent = [name for name, row in zip(names, matrix, strict=True) if not sum(row)]
    if absent:
        body += Markup('<p class="soft">{}</p>').format(f"Not in the truth: {', '.join(absent)}.")
    return body + (part("table", _pairs_table(pairs, kept.split), "") if pairs else Markup())


def _pairs_table(pairs: Sequence[Pair], split: str) -> Table:
    columns = (
        Column("truth"),
        Column("taken for"),
        Column("of the class", True, "share of the true class's pixels"),
        Column("of all errors", True, "share of all wrong pixels"),
        Column("pixels", True),
    )
    rows = [
        (
            Cell(pair.truth),
            Cell(pair.taken),
            Cell(share(pair.of_truth), key=pair.of_truth),
            Cell(share(pair.of_errors), key=pair.of_errors, bar=pair.of_errors),
            Cell(f"{pair.pixels:,}", key=pair.pixels),
        )
        for pair in pairs
    ]
    return Table(f"Confused most on {split}: {counted(len(pairs), 'pair')} with the most wrong pixels", columns, rows)


def _drawn(matrix: Sequence[Sequence[int]], names: Sequence[str], label: str) -> Markup:
    shares = normalised(matrix)
    template = environment().get_template("confusion.html").module
    if len(names) <= _CELLS:
        return Markup(template.cells({"label": label, "names": names, "shares": shares}))  # type: ignore[attr-defined]
    shown = [short(name, 24) for name in names]
    margin = round(12 + _LETTER * max(len(name) for name in shown))
    values = {"label": label, "names": shown, "cell": _CELL, "margin": margin, "picture": _picture(shares)}
    return Markup(template.large(values))  # type: ignore[attr-defined]


def _picture(shares: Shares) -> str:
    """A pixel for each cell as PNG in base64: one colour, the share as its opacity, so that any background will do.

    The square root of the share: a few percent are to be seen.
    """
    from PIL import Image

    size = len(shares)
    pixels = bytes(
        value for row in shares for one in row for value in (*_HEAT, 0 if one is None else round(255 * one**0.5))
    )
    stream = io.BytesIO()
    Image.frombytes("RGBA", (size, size), pixels).save(stream, "PNG", optimize=True)
    return base64.b64encode(stream.getvalue()).decode("ascii")
