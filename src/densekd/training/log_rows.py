"""The rows of `log.csv` while a run goes on: a long run has hundreds of thousands of them."""

from __future__ import annotations

import csv
import io
import zlib
from array import array
from collections.abc import Iterator, Mapping, Sequence
from typing import overload


class LogRows(Sequence[dict[str, str]]):
    """Rows of texts by column, kept as their lines in the file; all but the latest are packed, to a third of that.

    A column that first comes in a later row stands behind all others, and is empty in the rows before.

    Args:
        block: lines that are packed together.
    """

    def __init__(self, block: int = 256) -> None:
        self.seconds, self.data_wait = array("d"), array("d")
        """Of every row, the columns of these names."""
        self._columns: dict[str, None] = {}
        self._block = block
        self._packed: list[bytes] = []
        self._lines: list[str] = []

    def append(self, row: Mapping[str, str]) -> None:
        """Add a row.

        Raises:
            KeyError, TypeError, ValueError: `seconds` or `data_wait` is missing, or no number.
        """
        seconds, data_wait = float(row["seconds"]), float(row["data_wait"])
        new = [name for name in row if name not in self._columns]
        if new:
            self._widen(new)
        self._lines.append(_line(row.get(name, "") for name in self._columns))
        self.seconds.append(seconds)
        self.data_wait.append(data_wait)
        if len(self._lines) == 2 * self._block:
            self._packed.append(_packed(self._lines[: self._block]))
            del self._lines[: self._block]

    def pieces(self) -> Iterator[str]:
        """The file, piece by piece: all of it at once would take its memory, every time it is written."""
        head = _line(self._columns)
        for block in self._packed:
            yield head + _unpacked(block)
            head = ""
        yield head + "".join(self._lines)

    def __len__(self) -> int:
        return len(self.seconds)

    @overload
    def __getitem__(self, place: int) -> dict[str, str]: ...

    @overload
    def __getitem__(self, place: slice) -> list[dict[str, str]]: ...

    def __getitem__(self, place: int | slice) -> dict[str, str] | list[dict[str, str]]:
        if isinstance(place, slice):
            return [self[number] for number in range(*place.indices(len(self)))]
        block, number = divmod(range(len(self))[place], self._block)
        if block < len(self._packed):
            return self._rows(_unpacked(self._packed[block]))[number]
        return self._rows(self._lines[(block - len(self._packed)) * self._block + number])[0]

    def _widen(self, new: Sequence[str]) -> None:
        rows = [list(row.values()) for row in self]
        self._columns.update(dict.fromkeys(new))
        lines = [_line([*row, *[""] * len(new)]) for row in rows]
        whole = len(self._packed) * self._block
        self._packed = [_packed(lines[start : start + self._block]) for start in range(0, whole, self._block)]
        self._lines = lines[whole:]

    def _rows(self, text: str) -> list[dict[str, str]]:
        rows = csv.reader(io.StringIO(text, newline=""))
        return [dict(zip(self._columns, row, strict=True)) for row in rows]


def _packed(lines: Sequence[str]) -> bytes:
    return zlib.compress("".join(lines).encode("utf-8", "surrogatepass"))


def _unpacked(block: bytes) -> str:
    return zlib.decompress(block).decode("utf-8", "surrogatepass")


def _line(values: Iterator[str] | Sequence[str] | Mapping[str, None]) -> str:
    stream = io.StringIO(newline="")
    csv.writer(stream, lineterminator="\n").writerow(values)
    return stream.getvalue()
