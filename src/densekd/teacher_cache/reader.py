"""Reading a whole set of maps."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from pathlib import Path
from types import TracebackType
from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from densekd.errors import ArgumentError, CacheError, DtypeError, ShapeError, nearest
from densekd.teacher_cache.header import BUILD, Header, how_to_mend, read_header, require_same
from densekd.teacher_cache.key import CacheKey
from densekd.teacher_cache.segment import Segment, damages, open_segment, segments_in
from densekd.teacher_cache.stored import Stored
from densekd.teacher_cache.summary import WHOLE, Summary, place, read_whole, summarise

Watch = Callable[[int, int], None]


class MapReader:
    """A whole set, mapped into memory; any number of processes may read it at once.

    Opening checks header, indices and lengths; reading checks the CRC-32 of every map it touches. It may be pickled
    and forked: the other process maps the files itself, or shares the mapping.

    Args:
        folder: the set's own.
        key: what its maps must depend on; None takes whatever is there.

    Attributes:
        header: what the set holds.
        summary: its size and the errors of its softened maps.

    Raises:
        CacheError: no set, one that is not whole, of another key, of another version of the format, or damaged.
    """

    def __init__(self, folder: Path, key: CacheKey | None) -> None:
        self.folder, self.key = Path(folder), key
        self._open()

    def _open(self) -> None:
        self.header: Header = read_header(self.folder)
        if self.key is not None:
            require_same(self.folder, self.header, self.key)
        if not (self.folder / WHOLE).exists():
            raise CacheError(_not_whole(self.folder, self.header))
        whole = read_whole(self.folder)
        if whole.header_sha256 != self.header.digest:
            raise CacheError(f"{self.folder}: {WHOLE} is not of this set; {how_to_mend(self.folder)}")
        self.summary: Summary = whole.summary
        self._segments: list[Segment] = []
        for expected in whole.segments:
            if Path(expected["file"]).name != expected["file"]:
                raise CacheError(f"{self.folder}: {WHOLE} names a file elsewhere, {expected['file']!r}; not opened")
            segment = open_segment(self.folder / expected["file"], self.header)
            self._segments.append(segment)
            if segment.sha256 != expected["index_sha256"] or segment.size != expected["bytes"]:
                raise CacheError(f"{segment.path}: not the file that {WHOLE} names; {how_to_mend(self.folder)}")
        self._where = self._look_up()

    def _look_up(self) -> npt.NDArray[np.int32]:
        """For each sample, by its place, the segment and the row that hold it."""
        where = np.full((self.header.samples, 2), -1, np.int32)
        for number, segment in reversed(list(enumerate(self._segments))):
            views, indices = (segment.index[name].astype(np.int64) for name in ("view", "index"))
            at = place(self.header, views, indices)
            where[at, 0], where[at, 1] = number, np.arange(len(at))
        if (where < 0).any():
            raise CacheError(_not_whole(self.folder, self.header))
        return where

    def read(self, samples: Tensor, taps: Sequence[str] | None = None) -> dict[str, Tensor]:
        """The maps of `samples`, int64 `(N, 2)` of (view, index): float32 `(N, C, H, W)` on the CPU by tap.

        Args:
            samples: of the set.
            taps: those to read; default: all.

        Raises:
            DtypeError, ShapeError: `samples` is no such tensor.
            ArgumentError: a sample that is not in the set, or a tap that is not.
            CacheError: a map is damaged; names file, view and index.
        """
        return {tap: stored.unpacked() for tap, stored in self.read_stored(samples, taps)().items()}

    def read_stored(
        self,
        samples: Tensor,
        taps: Sequence[str] | None = None,
        *,
        pool: Executor | None = None,
        pinned: bool = False,
    ) -> Callable[[], dict[str, Stored]]:
        """Start to read as `read` does; the call that is returned waits, and gives the numbers that are stored.

        Args:
            samples, taps: as `read`.
            pool: threads that read a sample each; None reads before it returns.
            pinned: into memory that a CUDA device reads by itself.
        """
        places, chosen = self._places(samples), self._chosen(taps)
        encoding, shapes = self.header.encoding, self.header.taps
        made = {tap: Stored.empty(encoding, len(places), shapes[tap], pinned=pinned) for tap in chosen}
        if pool is None:
            for row, at in enumerate(places):
                self._fill(made, row, int(at))
            return lambda: made
        running = [pool.submit(self._fill, made, row, int(at)) for row, at in enumerate(places)]

        def wait() -> dict[str, Stored]:
            for one in running:
                one.result()
            return made

        return wait

    def _fill(self, made: dict[str, Stored], row: int, at: int) -> None:
        number, entry = (int(part) for part in self._where[at])
        segment, taps = self._segments[number], list(self.header.taps)
        for tap, stored in made.items():
            try:
                stored.fill(row, segment.stored(entry, taps.index(tap)))
            except ValueError as error:
                view, index = divmod(at, self.header.images)
                raise CacheError(
                    f"{segment.path}: view {view} of image {index}, tap {tap!r}: {error}; {how_to_mend(self.folder)}"
                ) from None

    def _chosen(self, taps: Sequence[str] | None) -> Sequence[str]:
        for tap in taps or ():
            if tap not in self.header.taps:
                raise ArgumentError(
                    f"the stored set {self.folder} has no tap {tap!r}{nearest(tap, self.header.taps)}; it has: "
                    f"{', '.join(self.header.taps)}"
                )
        return list(self.header.taps) if taps is None else taps

    def _places(self, samples: Any) -> npt.NDArray[np.int64]:
        if not isinstance(samples, Tensor) or samples.is_floating_point() or samples.dtype == torch.bool:
            came = samples.dtype if isinstance(samples, Tensor) else type(samples).__name__
            raise DtypeError(f"samples: expected an int64 tensor (N, 2), (view, index) of each image, got {came}")
        if samples.dim() != 2 or samples.shape[1] != 2:
            raise ShapeError(f"samples: expected (N, 2), (view, index) of each image, got {tuple(samples.shape)}")
        asked: npt.NDArray[np.int64] = samples.detach().cpu().to(torch.int64).numpy()
        if not self._segments:
            raise CacheError(f"{self.folder}: this reader was closed; open another MapReader")
        inside = (asked >= 0) & (asked < (self.header.views, self.header.images))
        if not inside.all():
            view, index = asked[~inside.all(1)][0]
            raise ArgumentError(
                f"samples: view {view} of image {index} is not stored in {self.folder}: it has views "
                f"0..{self.header.views - 1} of images 0..{self.header.images - 1}"
            )
        found: npt.NDArray[np.int64] = place(self.header, asked[:, 0], asked[:, 1])
        return found

    def fingerprint(self, view: int, index: int) -> int:
        """CRC-32 of what the teacher saw for this sample.

        Args:
            view, index: which sample.
        """
        return int(self.fingerprints(torch.tensor([[view, index]]))[0])

    def fingerprints(self, samples: Tensor) -> Tensor:
        """int64 `(N,)`: those of several samples.

        Args:
            samples: int64 `(N, 2)` of (view, index).
        """
        rows = [self._where[at] for at in self._places(samples)]
        return torch.tensor([int(self._segments[number].index[row]["fingerprint"]) for number, row in rows])

    def verify(self, watch: Watch | None = None) -> list[str]:
        """Read every byte; returns what is damaged, one line each, and nothing for a sound set.

        Args:
            watch: told after each sample how many of how many are done.
        """
        found, done = [], 0
        total = sum(len(segment.index) for segment in self._segments)
        for segment in self._segments:
            for words in damages(segment, list(self.header.taps)):
                done += 1
                if words is not None:
                    found.append(words)
                if watch is not None:
                    watch(done, total)
        return found

    def close(self) -> None:
        """Unmap the files."""
        for segment in self._segments:
            segment.close()
        self._segments = []

    def __getstate__(self) -> dict[str, Any]:
        return {"folder": self.folder, "key": self.key}

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.folder, self.key = state["folder"], state["key"]
        self._open()

    def __enter__(self) -> MapReader:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _not_whole(folder: Path, header: Header) -> str:
    segments = [open_segment(path, header) for path in segments_in(folder)]
    stored = summarise(header, segments).samples
    for segment in segments:
        segment.close()
    return f"{folder}: not whole: {stored} of {header.samples} samples are stored; go on with {BUILD}"
