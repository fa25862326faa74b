"""`coverage.csv`: the share of the pixels of every class, in each image and each frame."""

from __future__ import annotations

import csv
import io
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from densekd import files

NAME = "coverage.csv"
PARTIAL = "coverage.partial.csv"
_BEFORE = ("image", "frame")


class Coverage:
    """The table while it is made: a row per image or frame, in the order of the work, and their mean last.

    Columns: `image` (the name of the image or video), `frame` (1 for a video's first; empty for an image), then one
    per class in the order of the ids: its share of the pixels, 0 to 1, with six decimals. The mean counts every row
    alike, whatever the size of its image. The file gets its name when it is whole.

    Args:
        folder: where it is written; made here.
        classes: the names of the columns.
    """

    def __init__(self, folder: Path, classes: Sequence[str]) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder, self.classes = folder, tuple(classes)
        self.rows = 0
        self._sums = [0.0] * len(self.classes)
        self._file = files.GrowingFile(folder / NAME)
        self._line([*_BEFORE, *self.classes])

    def add(self, image: str, shares: Mapping[str, float], frame: int | None = None) -> None:
        """Add the row of an image, or of a frame of a video; classes that are not among `shares` have 0."""
        values = [shares.get(name, 0.0) for name in self.classes]
        self.rows += 1
        self._sums = [total + value for total, value in zip(self._sums, values, strict=True)]
        self._line([image, "" if frame is None else frame, *(f"{value:.6f}" for value in values)])

    def finish(self) -> Path:
        """Write the mean and give the file its name, which is returned; what an interrupted attempt left goes."""
        if self.rows:
            self._line(["mean", "", *(f"{total / self.rows:.6f}" for total in self._sums)])
        self._file.finish()
        (self.folder / PARTIAL).unlink(missing_ok=True)
        return self._file.path

    def stop(self) -> Path | None:
        """Keep the rows there are, without a mean, as `coverage.partial.csv`; where there are none, nothing: None."""
        if not self.rows:
            self._file.discard()
            return None
        self._file.path = self.folder / PARTIAL
        self._file.finish()
        return self._file.path

    def _line(self, cells: Sequence[object]) -> None:
        text = io.StringIO()
        csv.writer(text, lineterminator="\n").writerow(cells)
        self._file.write(os.fsencode(text.getvalue()))  # names of files, of which some are no UTF-8
