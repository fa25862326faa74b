"""The folder of a set while it is being written."""

from __future__ import annotations

import errno
from collections.abc import Sequence
from pathlib import Path

from densekd import files
from densekd.errors import CacheError, ResourceError
from densekd.teacher_cache.claim import is_lock
from densekd.teacher_cache.header import HEADER, Header, read_header, require_same, write_header
from densekd.teacher_cache.segment import Segment, open_segment, segments_in
from densekd.teacher_cache.summary import WHOLE, read_whole


def prepare(folder: Path) -> None:
    """Make the folder, or see that it is a set's.

    Raises:
        CacheError: it holds other files.
    """
    if folder.exists() and not folder.is_dir():
        raise CacheError(f"{folder}: a file; expected the folder of a set")
    folder.mkdir(parents=True, exist_ok=True)
    # Segments without a header: it was damaged and has been removed, as its error says.
    if (folder / HEADER).exists() or segments_in(folder):
        return
    strange = sorted(entry.name for entry in folder.iterdir() if not _is_own(entry.name))
    # Another rank may have written the header since.
    if strange and not (folder / HEADER).exists():
        raise CacheError(
            f"{folder}: holds files that are not a set's ({', '.join(strange[:5])}); choose another distill.cache.root"
        )


def _is_own(name: str) -> bool:
    return name == WHOLE or is_lock(name) or files.is_temporary(name)


def agree(folder: Path, header: Header) -> None:
    """Write the header where there is none, and see that the one there says the same.

    Raises:
        CacheError: it does not, or is damaged.
    """
    if not (folder / HEADER).exists():
        write_header(folder, header)
    require_same(folder, read_header(folder), header)


def open_segments(folder: Path, header: Header) -> list[Segment]:
    """Every finished segment.

    Raises:
        CacheError: one is damaged or of another set.
    """
    return [open_segment(path, header) for path in segments_in(folder)]


def drop_outdated_mark(folder: Path, segments: Sequence[Segment]) -> list[str]:
    """Remove `set.json` where it is damaged, or a file that it names is gone, as after the removal of a damaged one.

    Nothing is lost: it is written again when the set is whole. Returns what the user should know.
    """
    if not (folder / WHOLE).exists():
        return []
    found = {segment.path.name: segment.sha256 for segment in segments}
    try:
        gone = [one["file"] for one in read_whole(folder).segments if found.get(one["file"]) != one["index_sha256"]]
    except CacheError as error:
        words = str(error)
    else:
        if not gone:
            return []
        words = f"{folder}: {', '.join(gone[:5])} removed since the set was whole: its maps are made again"
    files.remove(folder / WHOLE)
    return [words]


def not_written(folder: Path, error: OSError) -> ResourceError:
    """The words for a write that failed."""
    if error.errno not in (errno.ENOSPC, errno.EDQUOT):
        return ResourceError(f"{folder}: cannot be written: {error.strerror or error}; what was committed is kept")
    return ResourceError(
        f"{folder}: the disk is full; what was committed is kept: make room, and give the same command again"
    )
