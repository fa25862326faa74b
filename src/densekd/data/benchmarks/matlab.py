"""MATLAB's files made safe to read: small, unpacked, and holding no more than their bytes can mean.

What a file declares is not what it holds: scipy makes room for every cell that is declared (a file of 400 bytes takes
16 GB), and unpacks whatever was packed. Here the sizes are compared with the bytes that are there, before scipy sees
them. The format: MATLAB's "MAT-File Format", version 5.
"""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path

from densekd.errors import DataError

MOST_BYTES = 64 * 2**20
"""Of a file, and of what is packed in it; a mask of half a megapixel takes less than one."""
_HEADER, _TAG = 128, 8
_MATRIX, _COMPRESSED = 14, 15
# Arrays of arrays: cells, structs, objects, functions, and objects of MATLAB's newer kind.
_CONTAINERS = frozenset({1, 2, 3, 16, 17})
_DEEPEST = 32


def unpacked(path: Path) -> io.BytesIO:
    """A file of MATLAB's version 5, its packed parts unpacked, whose declared sizes are those that it holds.

    Raises:
        DataError: another file, one that is damaged, of more than `MOST_BYTES`, or that declares more than it holds.
    """
    if not path.is_file():
        raise DataError(f"{path}: no such file, or no regular one")
    if path.stat().st_size > MOST_BYTES:
        raise DataError(f"{path}: {path.stat().st_size:,} bytes; a mask takes less than {MOST_BYTES:,}")
    data = path.read_bytes()
    order = {b"IM": "<", b"MI": ">"}.get(data[126:_HEADER])
    if order is None or struct.unpack(f"{order}H", data[124:126])[0] >> 8 != 1:
        raise DataError(f"{path}: no file of MATLAB's version 5")
    try:
        body = b"".join(_plain(data[_HEADER:], order))
        _require_held(body, order, depth=0)
    except (_LyingError, struct.error, zlib.error) as error:
        raise DataError(f"{path}: damaged, or made to mislead ({error}); not read") from None
    return io.BytesIO(data[:_HEADER] + body)


class _LyingError(Exception):
    """The file declares what it does not hold, or more than anybody should read."""


def _plain(data: bytes, order: str) -> Iterator[bytes]:
    """The elements of a file, unpacked."""
    left = MOST_BYTES
    for kind, content, whole in _elements(data, order):
        if kind != _COMPRESSED:
            yield whole
            continue
        unpacker = zlib.decompressobj()
        found = unpacker.decompress(content, left + 1)
        left -= len(found)
        if left < 0:
            raise _LyingError(f"packed in it are more than {MOST_BYTES:,} bytes")
        yield found


def _elements(data: bytes, order: str) -> Iterator[tuple[int, bytes, bytes]]:
    """Kind, content and whole bytes of each element; all but packed ones are padded to multiples of 8 bytes."""
    place = 0
    while place < len(data):
        kind, size = struct.unpack_from(f"{order}II", data, place)
        start, end = place + _TAG, place + _TAG + size
        if kind >> 16:  # a small one: size, kind and up to 4 bytes of content in 8
            kind, size = kind & 0xFFFF, kind >> 16
            start, end = place + 4, place + 4 + size
            after = place + _TAG
        else:
            after = end if kind == _COMPRESSED else end + -size % 8
        if end > len(data) or (start == place + 4 and size > 4):
            raise _LyingError(f"an element of {size:,} bytes, of which {max(0, len(data) - start):,} are there")
        yield kind, data[start:end], data[place:after]
        place = after


def _require_held(data: bytes, order: str, depth: int) -> None:
    """Every array of arrays among the elements has no more entries than bytes can be there for: 8 for each."""
    if depth > _DEEPEST:
        raise _LyingError(f"nested more than {_DEEPEST} deep")
    for kind, content, _ in _elements(data, order):
        if kind != _MATRIX or not content:
            continue
        parts = _elements(content, order)
        flags, sizes = (next(parts, (0, b"", b""))[1] for _ in range(2))
        shape = struct.unpack(f"{order}{len(sizes) // 4}i", sizes[: len(sizes) // 4 * 4])
        if min(shape, default=0) < 0:
            raise _LyingError(f"an array of {'x'.join(map(str, shape))}")
        if len(flags) < 4 or struct.unpack(f"{order}I", flags[:4])[0] & 0xFF not in _CONTAINERS:
            continue
        if _TAG * math.prod(shape) > len(content):
            raise _LyingError(f"{'x'.join(map(str, shape))} entries in {len(content):,} bytes")
        _require_held(b"".join(whole for _, _, whole in parts), order, depth + 1)
