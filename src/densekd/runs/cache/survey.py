"""What is under a root, for people: one row for each set, and which of the sets may go."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densekd import files
from densekd.errors import CacheError, no_folder
from densekd.runs import words
from densekd.runs.cache.sets import BUILT, SetFolder, sets_under
from densekd.teacher_cache import CacheKey, MapReader, is_building
from densekd.teacher_cache.claim import claim, is_lock
from densekd.teacher_cache.folder import open_segments
from densekd.teacher_cache.header import HEADER, read_header
from densekd.teacher_cache.segment import SUFFIX
from densekd.teacher_cache.summary import WHOLE, summarise

_DAY = 86400.0


def sets_at(path: Path) -> tuple[list[SetFolder], list[str]]:
    """The set at `path`, or those under it; and the words for folders whose header is damaged.

    Raises:
        CacheError: no such folder, or `path` itself is a set with a damaged header.
    """
    if (path / HEADER).is_file():
        return [SetFolder(path, read_header(path))], []
    if not path.is_dir():
        raise CacheError(f"{path}: {no_folder(path)}; sets lie where a recipe's distill.cache.root says")
    return sets_under(path)


@dataclass(frozen=True)
class Facts:
    """One set as it lies there.

    Attributes:
        stored: views of images that are stored, of `samples` in a whole set.
        state: `whole`, `building`, `unfinished` or `damaged`.
        damage: what is damaged, where that shows without reading the maps.
        age: days since the last change.
    """

    folder: SetFolder
    stored: int
    state: str
    damage: str
    age: float

    def row(self) -> dict[str, Any]:
        """For a table."""
        header, values = self.folder.header, self.folder.header.key.values
        teacher = values.get("teacher", {})
        return {
            "set": self.folder.path.name,
            "state": self.state if self.stored == header.samples else f"{self.state}, {self.stored}/{header.samples}",
            "teacher": f"{teacher.get('model', '-')} {teacher.get('sha256', '')[:8]}".strip(),
            "data": str(values.get("data", {}).get("name", "-")),
            "images": header.images,
            "views": header.views,
            "seed": values.get("seed"),
            "taps": ", ".join(f"{tap} {'x'.join(map(str, shape))}" for tap, shape in header.taps.items()),
            "encoding": header.encoding,
            "size": words.size(self.folder.bytes),
            "age": f"{self.age:.0f} d" if self.age >= 1 else f"{24 * self.age:.0f} h",
        }

    def as_dict(self) -> dict[str, Any]:
        """Everything, as JSON has it."""
        header = self.folder.header
        return {
            "folder": str(self.folder.path),
            "sha256": header.key.digest,
            "state": self.state,
            "damage": self.damage or None,
            "stored": self.stored,
            "samples": header.samples,
            "images": header.images,
            "views": header.views,
            "taps": {tap: list(shape) for tap, shape in header.taps.items()},
            "encoding": header.encoding,
            "bytes": self.folder.bytes,
            "raw_bytes": header.raw_bytes(header.samples),
            "build_seconds": self.folder.seconds,
            "age_days": round(self.age, 3),
            "key": header.key.values,
        }


def look(folder: SetFolder) -> Facts:
    """State of a set: headers, indices and lengths are checked, the maps themselves are not read."""
    now = time.time()
    age = max(0.0, now - max((found.st_mtime for found in folder.stats()), default=now)) / _DAY
    stored, damage = 0, ""
    try:
        segments = open_segments(folder.path, folder.header)
        stored = summarise(folder.header, segments).samples
        for segment in segments:
            segment.close()
        if folder.whole:
            MapReader(folder.path, None).close()
    except CacheError as error:
        damage = str(error)
    state = "whole" if folder.whole else "building" if is_building(folder.path) else "unfinished"
    return Facts(folder, stored, "damaged" if damage else state, damage, age)


def verify(folder: SetFolder, watch: Callable[[int, int], None]) -> list[str]:
    """Read every byte of a whole set; what is damaged, one line each. Of one that is not whole the line says so."""
    try:
        with MapReader(folder.path, None) as reader:
            return reader.verify(watch)
    except CacheError as error:
        return [str(error)]


@dataclass(frozen=True)
class Doomed:
    """A set that may go, and its bytes."""

    folder: SetFolder
    bytes: int


def prunable(
    root: Path, keep: Iterable[CacheKey] = (), *, unfinished: bool = False, older_than: float | None = None
) -> tuple[list[Doomed], list[str]]:
    """The sets at `root` (one, or the folder of several) that a prune would remove, and lines about folders that it
    leaves alone.

    Args:
        keep: keys of maps; the sets that hold them stay.
        unfinished: only sets that are not whole.
        older_than: only sets that nothing was changed in for so many days.
    """
    found, damage = sets_at(root)
    told = [f"left as it is: {words_of}" for words_of in damage]
    wanted, doomed = list(keep), []
    for one in found:
        strange = _strange(one.path)
        if strange:
            told.append(f"left as it is: {one.path}: holds files that are not a set's ({', '.join(strange[:3])})")
        elif is_building(one.path):
            told.append(_in_use(one.path))
        elif not _asked_for(one, wanted, unfinished, older_than):
            continue
        else:
            doomed.append(Doomed(one, one.bytes))
    return doomed, told


def _asked_for(one: SetFolder, keep: Iterable[CacheKey], unfinished: bool, older_than: float | None) -> bool:
    if any(one.serves(key, any_precision=True) for key in keep) or (unfinished and one.whole):
        return False
    return older_than is None or look(one).age >= older_than


def _strange(path: Path) -> list[str]:
    def own(name: str) -> bool:
        known = name in {HEADER, WHOLE, BUILT} or name.endswith(SUFFIX)
        return known or is_lock(name) or files.is_temporary(name)

    return sorted(entry.name for entry in path.iterdir() if entry.is_dir() or not own(entry.name))


def remove(doomed: Doomed) -> str | None:
    """Remove a set's folder; a line where it stays, because a process has begun to build it since it was looked at."""
    path = doomed.folder.path
    try:
        with suppress(FileNotFoundError), claim(path, 0, 1):  # somebody else may have removed it
            files.remove_folder(path)
    except CacheError:
        return _in_use(path)
    return None


def _in_use(path: Path) -> str:
    return f"left as it is: {path}: a process is building it"
