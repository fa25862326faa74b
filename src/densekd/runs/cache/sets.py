"""The sets under a root: found, told apart by their keys, chosen among."""

from __future__ import annotations

import json
import os
import stat
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densekd import files
from densekd.errors import CacheError, CheckpointError
from densekd.teacher_cache import CacheKey
from densekd.teacher_cache.header import HEADER, Header, read_header
from densekd.teacher_cache.summary import WHOLE

BUILT = "built.json"
_NAME = 16
_TOLD = 3


@dataclass(frozen=True)
class SetFolder:
    """A folder with the header of a set; whole or not."""

    path: Path
    header: Header

    @property
    def key(self) -> CacheKey:
        return self.header.key

    @property
    def whole(self) -> bool:
        """Whether every view is stored, as the last build found."""
        return (self.path / WHOLE).is_file()

    @property
    def seconds(self) -> float:
        """What building it has taken so far."""
        return float(built(self.path).get("seconds", 0.0))

    @property
    def bytes(self) -> int:
        """Bytes of its files."""
        return sum(found.st_size for found in self.stats() if stat.S_ISREG(found.st_mode))

    def stats(self) -> list[os.stat_result]:
        """What the system says of its files; one that a builder renames at this moment is left out."""
        found = []
        for entry in self.path.iterdir():
            with suppress(FileNotFoundError):
                found.append(entry.stat())
        return found

    def serves(self, wanted: CacheKey, *, any_precision: bool = False) -> bool:
        """Whether the maps of `wanted` are among those of this set: more taps and more views do no harm.

        Args:
            any_precision: the teacher's number format was not asked for, but chosen by measuring: another choice of
                another time does as well.
        """
        if not set(wanted.values) <= set(self.key.values):
            return False  # a set that no recipe of ours asked for
        found = narrowed(self.key, wanted)
        return found == wanted or (any_precision and _plain(found) == _plain(wanted))


def folder_of(root: Path, key: CacheKey) -> Path:
    """Where the set of this key lies."""
    return root / key.digest[:_NAME]


def narrowed(key: CacheKey, wanted: CacheKey) -> CacheKey:
    """`key` of the taps and views of `wanted` alone, where it has these; its own otherwise.

    A view of an image is the same whatever the number of views, and a map whatever other maps are stored with it.
    """
    here, there = key.values, wanted.values
    taps = {tap: here["taps"].get(tap, shape) for tap, shape in there["taps"].items()}
    has_all = set(taps) <= set(here["taps"])
    views = there["views"] if there["views"] <= here["views"] else here["views"]
    return CacheKey({**here, "taps": taps if has_all else here["taps"], "views": views})


def sets_under(root: Path) -> tuple[list[SetFolder], list[str]]:
    """The sets in the folders of `root`, by name; and why folders with the file of a set are none."""
    found, damage = [], []
    for path in sorted(root.iterdir()) if root.is_dir() else ():
        if files.is_temporary(path.name) or not (path / HEADER).is_file():
            continue
        try:
            found.append(SetFolder(path, read_header(path)))
        except CacheError as error:
            damage.append(str(error))
    return found, damage


def serving(root: Path, wanted: CacheKey, *, any_precision: bool = False, before: str | None = None) -> list[SetFolder]:
    """The sets that hold these maps: the one of this very key first, then those with the fewest more.

    Args:
        any_precision: as of `SetFolder.serves`.
        before: digest of the maps that the run began with: sets that hold these come before all others.
    """
    found = [one for one in sets_under(root)[0] if one.serves(wanted, any_precision=any_precision)]

    def order(one: SetFolder) -> tuple[bool, bool, bool, int, str]:
        maps = narrowed(one.key, wanted)
        size = one.header.raw_bytes(one.header.samples)
        return maps.digest != before, maps != wanted, one.key != wanted, size, one.path.name

    return sorted(found, key=order)


def stale(root: Path, wanted: CacheKey, *, any_precision: bool = False) -> list[str]:
    """A line about the set under `root` that is nearest to `wanted` and does not hold it.

    Args:
        any_precision: as of `SetFolder.serves`; one that was begun in another number format is told with how to go on.
    """
    others = [one for one in sets_under(root)[0] if not one.serves(wanted)]
    for one in others:
        if any_precision and not one.whole and one.serves(wanted, any_precision=True):
            begun = one.key.values["teacher"]["precision"]
            return [
                f"cache: {one.path} is not whole, and was begun in {begun}, which teacher.engine.dtype=auto came to "
                f"then: teacher.engine.dtype={begun} goes on with it"
            ]
    told = sorted((wanted.differences(one.key), one.path) for one in others)
    told.sort(key=lambda entry: len(entry[0]))
    lines = []
    for changed, path in told[:1]:
        more = f"; and {len(changed) - _TOLD} more" if len(changed) > _TOLD else ""
        lines.append(f"cache: {path} is of other values ({'; '.join(changed[:_TOLD])}{more}): left as it is, not read")
    return lines


def _plain(key: CacheKey) -> CacheKey:
    """The key without the teacher's number format."""
    teacher = {name: value for name, value in key.values["teacher"].items() if name != "precision"}
    return CacheKey({**key.values, "teacher": teacher})


def built(folder: Path) -> dict[str, Any]:
    """What is kept beside the maps of a set about their making; {} where it is missing or cannot be read."""
    with suppress(CheckpointError):
        held = files.read_json(folder / BUILT)
        return held if isinstance(held, dict) else {}
    return {}


def add_build(folder: Path, seconds: float, about: Mapping[str, Any]) -> None:
    """Add the seconds of a build, perhaps one of several that were interrupted."""
    before = float(built(folder).get("seconds", 0.0))
    files.write_json(folder / BUILT, {**json.loads(json.dumps(dict(about))), "seconds": before + seconds})
