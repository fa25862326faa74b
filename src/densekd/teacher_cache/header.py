"""`header.json`: what a set holds, written before its first map."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from densekd import files
from densekd.errors import ArgumentError, CacheError, nearest
from densekd.teacher_cache.encoding import COMPRESSION, ENCODINGS, Encoding
from densekd.teacher_cache.key import CacheKey, canonical, differences

HEADER = "header.json"
FORMAT = "densekd teacher maps"
VERSION = 1
_MOST = 2**32 - 1

BUILD = "`densekd cache build RECIPE`"
PRUNE = "`densekd cache prune`"
_REMOVE = f"remove this file and run {BUILD} again: stored maps that are sound are used again"


@dataclass(frozen=True)
class Header:
    """What a set holds.

    Attributes:
        key: what the maps depend on.
        taps: `(C, H, W)` of each tap's maps, in the order they are stored.
        views, images: there is a sample for each view below `views` of each image below `images`.
        encoding: "bfloat16" or "int8".
        temperature: of the softmax over positions whose error is measured.
        class_taps: those of the taps that are the class map.
        image_size: `(height, width)` of the images the maps were made from, where it was said.
    """

    key: CacheKey
    taps: dict[str, tuple[int, int, int]]
    views: int
    images: int
    encoding: Encoding
    temperature: float
    class_taps: tuple[str, ...]
    image_size: tuple[int, int] | None

    @property
    def samples(self) -> int:
        """How many samples a whole set has."""
        return self.views * self.images

    def raw_bytes(self, samples: int) -> int:
        """Bytes of the maps of so many samples in float32.

        Args:
            samples: how many.
        """
        return samples * sum(4 * math.prod(shape) for shape in self.taps.values())

    @property
    def digest(self) -> str:
        """SHA-256 of all of it, in hex; every file of the set begins with it."""
        return files.sha256(canonical(self.content()).encode("ascii"))

    def content(self) -> dict[str, Any]:
        """As it is written."""
        own = {**asdict(self), "key": self.key.values, "key_sha256": self.key.digest}
        # A list, not a mapping: the order of the taps is that of the maps in the files.
        own["taps"] = [[tap, *shape] for tap, shape in self.taps.items()]
        return {"format": FORMAT, "version": VERSION, "compression": COMPRESSION, **own}


def check_header(header: Header) -> None:
    """Raises:
    ArgumentError: values that no set can have.
    """
    if not header.taps:
        raise ArgumentError("taps is empty: expected at least one, as in {'logits': (19, 64, 128)}")
    for tap, shape in header.taps.items():
        if len(shape) != 3 or not all(_whole(side) for side in shape):
            raise ArgumentError(f"tap {tap!r}: expected (C, H, W), whole numbers from 1, got {shape!r}")
    for name in ("views", "images"):
        if not _whole(getattr(header, name)):
            raise ArgumentError(f"{name}: expected a whole number from 1, got {getattr(header, name)!r}")
    if header.encoding not in ENCODINGS:
        raise ArgumentError(
            f"encoding: expected one of {', '.join(ENCODINGS)}, got {header.encoding!r}"
            f"{nearest(str(header.encoding), ENCODINGS)}"
        )
    if not (math.isfinite(header.temperature) and header.temperature > 0):
        raise ArgumentError(f"temperature: expected a number above 0, got {header.temperature!r}")
    unknown = [tap for tap in header.class_taps if tap not in header.taps]
    if unknown:
        raise ArgumentError(f"class_taps: {unknown[0]!r} is no tap of this set{nearest(unknown[0], header.taps)}")


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and 1 <= value <= _MOST


def write_header(folder: Path, header: Header) -> None:
    """Write it whole."""
    write_signed(folder / HEADER, header.content())


def read_header(folder: Path) -> Header:
    """The header of the set in `folder`.

    Args:
        folder: the set's own.

    Raises:
        CacheError: there is no set, or one of another version of the format; the header is damaged.
    """
    path = folder / HEADER
    if not folder.is_dir():
        raise CacheError(f"{folder}: no stored maps there; make them by {BUILD}")
    if not path.exists():
        raise CacheError(f"{folder}: no set of stored maps: it holds no {HEADER}; name the set's own folder")
    content = read_signed(path)
    taps = {tap: (c, h, w) for tap, c, h, w in content["taps"]}
    size = content["image_size"]
    return Header(
        key=CacheKey(content["key"]),
        taps=taps,
        views=content["views"],
        images=content["images"],
        encoding=content["encoding"],
        temperature=content["temperature"],
        class_taps=tuple(content["class_taps"]),
        image_size=None if size is None else (size[0], size[1]),
    )


def require_same(folder: Path, found: Header, expected: Header | CacheKey) -> None:
    """Raises:
    CacheError: the set is of another key, or of other taps, numbers or encoding; says which values differ.
    """
    if isinstance(expected, CacheKey):
        changed = expected.differences(found.key)
    else:
        changed = expected.key.differences(found.key) or _without_key(expected, found)
    if not changed:
        return
    more = [f"and {len(changed) - 5} more"] if len(changed) > 5 else []
    raise CacheError(
        f"{folder}: the stored maps are of other values ({'; '.join(changed[:5] + more)}), so they are not what the "
        f"teacher would give here; make a set of these values by {BUILD}, or remove this one by {PRUNE}"
    )


def _without_key(expected: Header, found: Header) -> list[str]:
    here, there = (json.loads(canonical(header.content())) for header in (expected, found))
    return differences(here, there)


def write_signed(path: Path, content: Mapping[str, Any]) -> None:
    """Canonical JSON with the SHA-256 of itself (without that entry) as `sha256`, on one line."""
    files.write_text(path, _signed(content))


def _signed(content: Mapping[str, Any]) -> str:
    return canonical({**content, "sha256": files.sha256(canonical(content).encode("ascii"))}) + "\n"


def read_signed(path: Path) -> dict[str, Any]:
    """What `write_signed` wrote, byte for byte.

    Raises:
        CacheError: missing, of another version of the format, or damaged.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise CacheError(f"{path}: cannot be read: {error.strerror or error}") from None
    try:
        content = json.loads(data.decode("ascii"))
        content.pop("sha256")
        whole = data == _signed(content).encode("ascii")
    except (UnicodeDecodeError, ValueError, AttributeError, KeyError, TypeError):
        whole, content = False, {}
    if not whole:
        raise CacheError(f"{path}: damaged: its checksum does not fit; {_REMOVE}")
    if content.get("format") != FORMAT or content.get("version") != VERSION:
        raise CacheError(
            f"{path}: written in version {content.get('version')!r} of the format {content.get('format')!r}, this "
            f"densekd reads version {VERSION} of {FORMAT!r}; use the densekd that wrote it, or "
            f"{how_to_mend(path.parent)}"
        )
    return content


def how_to_mend(folder: Path) -> str:
    """What to do about a set that cannot be used at all."""
    return f"remove {folder} and make the set again by {BUILD}"
