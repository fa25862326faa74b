"""Writing a set of maps: by several ranks at once, and again after a kill."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from types import TracebackType
from typing import cast

import numpy as np
import torch
from torch import Tensor

from densekd import files
from densekd.errors import ArgumentError, DtypeError, NonFiniteError, ShapeError, nearest
from densekd.teacher_cache.claim import claim
from densekd.teacher_cache.encoding import BeyondError, Encoding, encode, softened_error
from densekd.teacher_cache.folder import agree, drop_outdated_mark, not_written, open_segments, prepare
from densekd.teacher_cache.header import Header, check_header
from densekd.teacher_cache.key import CacheKey
from densekd.teacher_cache.segment import SUFFIX, SegmentWriter
from densekd.teacher_cache.summary import WHOLE, Summary, place, read_whole, summarise, write_whole


class MapWriter:
    """Stores maps in a set's folder; makes the set where there is none, and goes on with one that is not whole.

    Sample (view, index) belongs to rank `(view * images + index) mod world`. Each rank writes files of its own; a file
    has its name only when it is whole, so that a kill at any moment loses what was written since the last commit and
    nothing else. A commit happens by `commit()`, and by itself after `commit_bytes` or, at the next sample, after
    `commit_seconds`.

    Use it in a `with` block, or call `close()`: both commit what is whole, also after Ctrl-C.

    Args:
        folder: the set's own; made where it is missing.
        key: what the maps depend on.
        taps: `(C, H, W)` of each tap's maps.
        views, images: the set is whole when each view below `views` of each image below `images` is stored.
        encoding: "bfloat16" or "int8" (see `densekd.teacher_cache.encoding`).
        temperature: of the softmax over positions whose error is measured while writing.
        rank, world: which of how many processes this is.
        class_taps: those of the taps that are the class map; default: `logits` and `output`.
        image_size: `(height, width)` of the images, for a clear error when others are asked about.
        commit_bytes, commit_seconds: how much is stored, and how long, until it is committed by itself.

    Attributes:
        header: what the set holds.
        notices: what was found in the folder that the user should know.

    Raises:
        ArgumentError: values that no set can have.
        CacheError: the folder holds other files, or a set of another key or other values; another process is building
            the set; a file of it is damaged.
        ResourceError: the disk is full.

    >>> import tempfile
    >>> from densekd.teacher_cache import CacheKey, MapReader
    >>> folder, key = Path(tempfile.mkdtemp()) / "maps", CacheKey({"teacher": "6f1e"})
    >>> with MapWriter(folder, key, taps={"logits": (5, 4, 4)}, views=1, images=2) as writer:
    ...     for index in range(2):
    ...         writer.write(view=0, index=index, maps={"logits": torch.ones(5, 4, 4)})
    ...     summary = writer.finish()
    >>> summary.whole, summary.samples
    (True, 2)
    >>> MapReader(folder, key).read(torch.tensor([[0, 1], [0, 0]]))["logits"].shape
    torch.Size([2, 5, 4, 4])
    """

    def __init__(
        self,
        folder: Path,
        key: CacheKey,
        *,
        taps: Mapping[str, tuple[int, int, int]],
        views: int,
        images: int,
        encoding: Encoding = "bfloat16",
        temperature: float = 4.0,
        rank: int = 0,
        world: int = 1,
        class_taps: Sequence[str] | None = None,
        image_size: tuple[int, int] | None = None,
        commit_bytes: int = 2**28,
        commit_seconds: float = 60.0,
    ) -> None:
        # In the order of their names: it must not matter in which order somebody asks for them.
        shapes = {tap: cast("tuple[int, int, int]", tuple(taps[tap])) for tap in sorted(taps)}
        classes = tuple(tap for tap in shapes if tap in ("logits", "output")) if class_taps is None else class_taps
        self.header = Header(key, shapes, views, images, encoding, float(temperature), tuple(classes), image_size)
        check_header(self.header)
        if not 0 <= rank < world:
            raise ArgumentError(f"rank must be from 0 to world - 1, got rank {rank} of {world}")
        self.folder, self.rank, self.world = Path(folder), rank, world
        self._commit_bytes, self._commit_seconds = commit_bytes, commit_seconds
        self._open: SegmentWriter | None = None
        self._begun = 0.0
        try:
            prepare(self.folder)
            self._claim = claim(self.folder, rank, world)
        except OSError as error:
            raise not_written(self.folder, error) from None
        try:
            self._enter()
        except OSError as error:
            self._claim.close()
            raise not_written(self.folder, error) from None
        except BaseException:
            self._claim.close()
            raise

    def _enter(self) -> None:
        agree(self.folder, self.header)
        # Ranks of an earlier launch may have left more; `finish` sweeps all, when nobody writes any more.
        for left in self.folder.glob(f".{self._prefix}*"):
            if files.is_temporary(left.name):
                left.unlink(missing_ok=True)
        stored = open_segments(self.folder, self.header)
        self.notices = drop_outdated_mark(self.folder, stored)
        self._stored = np.zeros(self.header.samples, bool)
        for segment in stored:
            views, indices = (segment.index[name].astype(np.int64) for name in ("view", "index"))
            self._stored[place(self.header, views, indices)] = True
            segment.close()

    @property
    def _prefix(self) -> str:
        return f"rank{self.rank:03d}-"

    def missing(self) -> list[tuple[int, int]]:
        """(view, index) of this rank's samples that are not stored yet, view by view."""
        places = np.flatnonzero(~self._stored)
        own = places[places % self.world == self.rank]
        return [(int(at) // self.header.images, int(at) % self.header.images) for at in own]

    def write(self, view: int, index: int, maps: Mapping[str, Tensor], fingerprint: int = 0) -> None:
        """Store one sample's maps, `(C, H, W)` for each tap, of any float dtype on any device.

        Args:
            view, index: which sample.
            maps: by tap.
            fingerprint: CRC-32 of what the teacher saw, kept beside the maps (0..2**32 - 1).

        Raises:
            ArgumentError: not one of this rank's samples, or one that is stored already; other taps than the set's.
            ShapeError, DtypeError: another shape than the set's; no float tensor.
            NonFiniteError: NaN, infinity, or a value that the encoding cannot hold; names tap, view and index.
            ResourceError: the disk is full; what was whole before it is kept, but for the last samples, whose room the
                index of the others takes.
        """
        at = self._require_own(view, index)
        if not 0 <= fingerprint < 2**32:
            raise ArgumentError(f"fingerprint: expected a whole number from 0 to 2**32 - 1, got {fingerprint!r}")
        where = f"view {view} of image {index}"
        encoded = [self._encode(tap, maps, where) for tap in self._require_taps(maps, where)]
        if self._open is not None and time.monotonic() - self._begun > self._commit_seconds:
            self.commit()
        try:
            if self._open is None:
                self._open, self._begun = SegmentWriter(self._next_path(), self.header), time.monotonic()
            self._open.add(view, index, fingerprint, encoded)
        except OSError as error:
            self._rescue()
            raise not_written(self.folder, error) from None
        self._stored[at] = True
        if self._open.size >= self._commit_bytes:
            self.commit()

    def _require_own(self, view: int, index: int) -> int:
        if not (0 <= view < self.header.views and 0 <= index < self.header.images):
            raise ArgumentError(
                f"view {view} of image {index}: the set has views 0..{self.header.views - 1} of images "
                f"0..{self.header.images - 1}"
            )
        at = int(place(self.header, view, index))
        if at % self.world != self.rank:
            raise ArgumentError(
                f"view {view} of image {index} belongs to rank {at % self.world} of {self.world}, not to rank "
                f"{self.rank}; write what missing() gives"
            )
        if self._stored[at]:
            raise ArgumentError(f"view {view} of image {index} is stored already; write what missing() gives")
        return at

    def _require_taps(self, maps: Mapping[str, Tensor], where: str) -> list[str]:
        for tap in maps:
            if tap not in self.header.taps:
                raise ArgumentError(
                    f"{where}: {tap!r} is no tap of this set{nearest(tap, self.header.taps)}; it has: "
                    f"{', '.join(self.header.taps)}"
                )
        for tap, shape in self.header.taps.items():
            tapped = maps.get(tap)
            if not isinstance(tapped, Tensor) or not tapped.is_floating_point():
                came = "none" if tapped is None else str(getattr(tapped, "dtype", type(tapped).__name__))
                raise DtypeError(f"{where}: expected a float tensor {shape} for tap {tap!r}, got {came}")
            if tuple(tapped.shape) != shape:
                raise ShapeError(
                    f"{where}: expected {shape} for tap {tap!r}, as in the set's header, got {tuple(tapped.shape)}; "
                    "every image of a set has one size"
                )
        return list(self.header.taps)

    def _encode(self, tap: str, maps: Mapping[str, Tensor], where: str) -> tuple[bytes, float]:
        with torch.no_grad(), torch.autocast(maps[tap].device.type, enabled=False):
            try:
                encoded = encode(maps[tap], self.header.encoding)
            except BeyondError as error:
                raise NonFiniteError(
                    f"tap {tap!r}, {where}: {error}, and cannot be stored as {self.header.encoding}; look at the "
                    "teacher's weights and normalisation (`densekd doctor`)"
                ) from None
            return encoded.data, softened_error(maps[tap], encoded.back, self.header.temperature)

    def _next_path(self) -> Path:
        numbers = [int(path.stem.removeprefix(self._prefix)) for path in self.folder.glob(f"{self._prefix}*{SUFFIX}")]
        return self.folder / f"{self._prefix}{max(numbers, default=-1) + 1:05d}{SUFFIX}"

    def commit(self) -> None:
        """Make what was written so far last: flushed to disk, under its name.

        Raises:
            ResourceError: the disk is full; as of `write`.
        """
        if self._open is None:
            return
        try:
            self._open.finish()
        except OSError as error:
            self._rescue()
            raise not_written(self.folder, error) from None
        except BaseException:  # Ctrl-C, in the middle of it
            self._forget()
            raise
        self._open = None

    def _rescue(self) -> None:
        """On a full disk: commit the samples that have room with their index, in the place of the last ones."""
        if self._open is None:
            return
        for view, index in self._open.shrink():
            self._stored[place(self.header, view, index)] = False
        if self._open.samples:
            with suppress(OSError):
                self._open.finish()
                self._open = None
        self._forget()

    def _forget(self) -> None:
        if self._open is not None:
            for view, index in self._open.samples:
                self._stored[place(self.header, view, index)] = False
            self._open.discard()
            self._open = None

    def finish(self) -> Summary:
        """Commit, and if that made the set whole, mark it so; the summary says whether it is.

        Of several ranks each calls it; whichever is last finds the set whole. It may be called again.

        Raises:
            CacheError: a file of the set is damaged.
            ResourceError: the disk is full.
        """
        self.commit()
        if (self.folder / WHOLE).exists():
            return replace(read_whole(self.folder).summary, notices=tuple(self.notices))
        segments = open_segments(self.folder, self.header)
        try:
            summary = summarise(self.header, segments, self.notices)
            if summary.whole:
                write_whole(self.folder, self.header, summary, segments, self.world)
            return summary
        except OSError as error:
            raise not_written(self.folder, error) from None
        finally:
            for segment in segments:
                segment.close()

    def close(self) -> None:
        """Commit what is whole and let others build; a second call does nothing."""
        try:
            self.commit()
        finally:
            self._claim.close()

    def __enter__(self) -> MapWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
