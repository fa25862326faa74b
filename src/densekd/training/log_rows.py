"""The rows of `log.csv` while a run goes on: a long run has hundreds of thousands of them."""

from __future__ import annotations

import csv
import io
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import overload


class LogRows(Sequence[dict[str, str]]):
    """Rows of texts by column, each kept as its line in the file: a tenth of the memory that a dict would take.

    A column that first comes in a later row stands behind all others, and is empty in the rows before.
    """

    def __init__(self) -> None:
        self.seconds, self.data_wait = array("d"), array("d")
        """Of every row, the columns of these names."""
        self._columns: dict[str, None] = {}
        self._lines: list[str] = []

    def append(self, row: Mapping[str, str]) -> None:
        """Add a row.

        Raises:
            KeyError, TypeError, ValueError: `seconds` or `data_wait` is missing, or no number.
        """
        seconds, data_wait = float(row["seconds"]), float(row["data_wait"])
        new = [name for name in row if name not in self._columns]
        if new and self._lines:
            self._lines = [line + "," * len(new) for line in self._lines]
        self._columns.update(dict.fromkeys(new))
        self._lines.append(_line(row.get(name, "") for name in self._columns))
        self.seconds.append(seconds)
        self.data_wait.append(data_wait)

    def text(self) -> str:
        """All of the file."""
        return "\n".join([_line(self._columns), *self._lines, ""])

    def __len__(self) -> int:
        return len(self._lines)

    @overload
    def __getitem__(self, place: int) -> dict[str, str]: ...

    @overload
    def __getitem__(self, place: slice) -> list[dict[str, str]]: ...

    def __getitem__(self, place: int | slice) -> dict[str, str] | list[dict[str, str]]:
        if isinstance(place, slice):
            return [self._row(line) for line in self._lines[place]]
        return self._row(self._lines[place])

    def _row(self, line: str) -> dict[str, str]:
        return dict(zip(self._columns, next(csv.reader([line])), strict=True))


def _line(values: Iterator[str] | Mapping[str, None]) -> str:
    stream = io.StringIO()
    csv.writer(stream, lineterminator="").writerow(values)
    return stream.getvalue()
