"""A file of stored maps: written once, whole, by one process, and never changed.

Layout, all numbers little-endian, nothing between the parts::

    48 bytes     b"densekd maps", the version of the format (4-byte whole number), SHA-256 of the set's header (32)
    the maps     for each sample, for each tap in the header's order: one encoded map (`encoding`)
    the index    for each sample one entry (`index_type`): view, index, fingerprint (4 bytes each), then for each tap
                 offset in the file (8), length (8), CRC-32 of these bytes (4), error of the softened map (float32)
    52 bytes     number of samples (8), offset of the index (8), SHA-256 of the index (32), CRC-32 of these 48 bytes (4)
"""

from __future__ import annotations

import hashlib
import mmap
import struct
import zlib
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from densekd import files
from densekd.errors import CacheError
from densekd.teacher_cache.header import BUILD, VERSION, Header

SUFFIX = ".maps"
_START = struct.Struct("<12sI32s")
_COUNTS = struct.Struct("<QQ32s")
_SUM = struct.Struct("<I")
_END = _COUNTS.size + _SUM.size


def index_type(taps: int) -> np.dtype[Any]:
    """The entry of one sample in the index."""
    stored = np.dtype([("offset", "<u8"), ("length", "<u8"), ("crc", "<u4"), ("error", "<f4")])
    return np.dtype([("view", "<u4"), ("index", "<u4"), ("fingerprint", "<u4"), ("maps", stored, (taps,))])


class SegmentWriter:
    """Writes one segment; it has its name only after `finish`."""

    def __init__(self, path: Path, header: Header) -> None:
        self._type = index_type(len(header.taps))
        self._entries: list[tuple[Any, ...]] = []
        self._whole = _START.size
        self._ended = False
        self._file = files.GrowingFile(path)
        try:
            self._file.write(_start(header))
        except BaseException:
            self._file.discard()
            raise

    @property
    def samples(self) -> list[tuple[int, int]]:
        """(view, index) of the samples so far."""
        return [(entry[0], entry[1]) for entry in self._entries]

    @property
    def size(self) -> int:
        """Bytes so far."""
        return self._file.size

    def add(self, view: int, index: int, fingerprint: int, maps: Iterable[tuple[bytes, float]]) -> None:
        """Append one sample: for each tap its encoded map and the error of the softened map."""
        places = []
        for data, error in maps:
            places.append((self._file.size, len(data), zlib.crc32(data), error))
            self._file.write(data)
        self._entries.append((view, index, fingerprint, places))
        self._whole = self._file.size

    def finish(self) -> None:
        """Write index and end, flush, and give the file its name; of a sample that is half-written nothing stays."""
        if self._file.size != self._whole:
            self._file.cut(self._whole)
        index = np.array(self._entries, self._type).tobytes()
        counts = _COUNTS.pack(len(self._entries), self._whole, hashlib.sha256(index).digest())
        self._file.write(index)
        self._file.write(counts + _SUM.pack(zlib.crc32(counts)))
        self._ended = True
        self._file.finish()

    def shrink(self) -> list[tuple[int, int]]:
        """After a write that the disk had no room for: drop the last samples, until index and end fit into what was
        written; those dropped. All of them where it was not a write that failed: what the disk holds is not known."""
        dropped, room = [], self._file.size
        while self._entries and (self._ended or self._end > room):
            view, index, _, places = self._entries.pop()
            dropped.append((view, index))
            self._whole = places[0][0]
        return dropped

    @property
    def _end(self) -> int:
        """Bytes of the finished file."""
        return self._whole + len(self._entries) * self._type.itemsize + _END

    def discard(self) -> None:
        """Leave nothing behind."""
        self._file.discard()


@dataclass
class Segment:
    """A segment that is open for reading: its bytes mapped into memory, its index checked.

    Attributes:
        index: one entry for each sample (`index_type`).
        sha256: of the index, in hex.
    """

    path: Path
    index: npt.NDArray[Any]
    sha256: str
    size: int
    _bytes: mmap.mmap = field(repr=False)

    def stored(self, row: int, tap: int) -> memoryview:
        """The encoded map, its checksum checked.

        Raises:
            CacheError: damaged; names file, view and index.
        """
        entry = self.index[row]
        place = entry["maps"][tap]
        offset = int(place["offset"])
        data = memoryview(self._bytes)[offset : offset + int(place["length"])]
        if zlib.crc32(data) != place["crc"]:
            raise CacheError(damaged_sample(self.path, int(entry["view"]), int(entry["index"])))
        return data

    def close(self) -> None:
        """Unmap; whoever still holds a piece of it keeps it mapped."""
        with suppress(BufferError):
            self._bytes.close()


def open_segment(path: Path, header: Header) -> Segment:
    """Map a segment of the set with this header into memory and check everything but the maps themselves.

    Raises:
        CacheError: missing, of another set, or damaged.
    """
    try:
        with path.open("rb") as stream:
            mapped = mmap.mmap(stream.fileno(), 0, access=mmap.ACCESS_READ)
    except FileNotFoundError:
        raise CacheError(f"{path}: missing; make its maps again by {BUILD}") from None
    except OSError as error:
        raise CacheError(f"{path}: cannot be read: {error.strerror or error}") from None
    except ValueError:  # an empty file
        raise CacheError(_damaged(path, "it is empty")) from None
    try:
        index, digest = _read_index(path, mapped, header)
    except BaseException:
        mapped.close()
        raise
    return Segment(path, index, digest, len(mapped), mapped)


def _start(header: Header) -> bytes:
    return _START.pack(b"densekd maps", VERSION, bytes.fromhex(header.digest))


def _read_index(path: Path, mapped: mmap.mmap, header: Header) -> tuple[npt.NDArray[Any], str]:
    entry = index_type(len(header.taps))
    if len(mapped) < _START.size + _END:
        raise CacheError(_damaged(path, f"it has {len(mapped)} bytes"))
    if mapped[: _START.size] != _start(header):
        raise CacheError(_damaged(path, "its first bytes are not those of this set's files"))
    counts = mapped[-_END : -_SUM.size]
    if _SUM.unpack(mapped[-_SUM.size :])[0] != zlib.crc32(counts):
        raise CacheError(_damaged(path, "the checksum of its end does not fit"))
    samples, offset, digest = _COUNTS.unpack(counts)
    if offset + samples * entry.itemsize + _END != len(mapped):
        raise CacheError(_damaged(path, "its length does not fit"))
    data = mapped[offset : offset + samples * entry.itemsize]
    if hashlib.sha256(data).digest() != digest:
        raise CacheError(_damaged(path, "the checksum of its index does not fit"))
    return np.frombuffer(data, entry), digest.hex()


def _damaged(path: Path, why: str) -> str:
    return f"{path}: damaged: {why}; {how_to_mend(path)}"


def damaged_sample(path: Path, view: int, index: int) -> str:
    """The words for a map whose bytes are not those that were written."""
    return f"{path}: damaged: the checksum of view {view} of image {index} does not fit; {how_to_mend(path)}"


def how_to_mend(path: Path) -> str:
    """What to do about a damaged segment."""
    return f"remove this file and make its maps again by {BUILD}; those of other files stay"


def segments_in(folder: Path) -> list[Path]:
    """The finished segments of a set, in the order of their names."""
    return sorted(folder.glob(f"[!.]*{SUFFIX}"))


def damages(segment: Segment, taps: Sequence[str]) -> Iterator[str | None]:
    """For each sample None, or the words for its damage; also what stands where nothing should."""
    end = _START.size
    for row, entry in enumerate(segment.index):
        words = None
        for tap in range(len(taps)):
            try:
                segment.stored(row, tap)
            except CacheError as error:
                words = str(error)
            place = entry["maps"][tap]
            if place["offset"] != end:
                words = words or _damaged(segment.path, "bytes that belong to no map")
            end = int(place["offset"]) + int(place["length"])
        yield words
