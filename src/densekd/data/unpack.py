"""Archives unpacked without trust: every name is judged before the first byte is written.

The data sets hold plain files in folders, so nothing else is let through: no link, no device, no path that is absolute
or climbs out. The files are written by this module, never by the archive library, so owners, modes and links of an
archive have no effect at all.
"""

from __future__ import annotations

import errno
import shutil
import tarfile
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath
from stat import S_IFDIR, S_IFLNK, S_IFMT, S_IFREG
from typing import IO, Any

from densekd.data.download import Moved
from densekd.errors import DataError

_BLOCK = 1 << 20
_LISTED = 10
_MOST_TIMES, _SMALL = 100, 10**8
"""An archive that grows by more is made to fill the disk; one of so few bytes fills none."""
_ENCRYPTED = 0x1
# The library's own judgement of a tar's entry, beside ours; Python 3.11.4 brought it.
_LIBRARY_JUDGES = getattr(tarfile, "data_filter", None)
_DAMAGE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, NotImplementedError)


@dataclass(frozen=True)
class _Member:
    """An entry of an archive; `flaw` says why it is not let through."""

    name: str
    size: int
    folder: bool
    flaw: str
    open: Callable[[], IO[bytes]]


def unpack(archive: Path, into: Path, wanted: Mapping[str, str], moved: Moved) -> None:
    """Write the files of some folders of a zip or tar archive below `into`.

    Args:
        archive: the file.
        into: a folder that nobody else writes to.
        wanted: folder in the archive -> its new path below `into`; what is in none of them is left out.
        moved: progress in bytes of the unpacked files.

    Raises:
        DataError: the archive is damaged or cut short, an entry is not harmless (nothing is written then), a wanted
            folder is not in it, it would grow beyond measure, or the disk has no room for what it holds.
    """
    with _reading(archive), _opened(archive, into) as members:
        _refuse(archive, members)
        targets = {}
        for member in members:
            target = None if member.folder else _target(member.name, wanted)
            if target is not None:
                targets[target] = member
        absent = [folder for folder in wanted if not any(_below(member.name, folder) for member in targets.values())]
        if absent:
            raise DataError(f"{archive}: holds no files in {' nor '.join(absent)}: it is another archive than expected")
        total = sum(member.size for member in targets.values())
        _require_likely(archive, total)
        require_room(into, total, f"to unpack {archive.name}")
        _write(archive, into, targets, total, moved)


def _require_likely(archive: Path, total: int) -> None:
    """Refuse an archive that would fill the disk; pictures hardly shrink, masks to a tenth or so.

    Raises:
        DataError: how large it is and how large its files would be.
    """
    size = archive.stat().st_size
    if total > max(_SMALL, _MOST_TIMES * size):
        raise DataError(
            f"{archive}: {gigabytes(size)} that would become {gigabytes(total)}: no archive of pictures grows more "
            f"than {_MOST_TIMES} times; nothing was written"
        )


def require_room(folder: Path, needed: int, why: str) -> None:
    """Refuse to begin what the disk below `folder` cannot hold.

    Raises:
        DataError: how much is needed and how much is free.
    """
    there = folder
    while not there.exists():
        there = there.parent
    free = shutil.disk_usage(there).free
    if needed > free:
        raise DataError(
            f"{folder}: {gigabytes(needed)} are needed {why}, and {gigabytes(free)} are free on that disk; make room, "
            "or choose another folder"
        )


def gigabytes(count: int) -> str:
    """A number of bytes as people say it, in units of 1000."""
    for unit, size in (("GB", 10**9), ("MB", 10**6), ("kB", 10**3)):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"


@contextmanager
def _reading(archive: Path) -> Iterator[None]:
    """Inside the block, what the libraries say of a damaged archive becomes one line."""
    try:
        yield
    except OSError as error:
        if error.errno == errno.ENOSPC:
            raise DataError(f"the disk is full while {archive.name} is unpacked; make room and begin again") from None
        if error.errno is not None:
            raise
        raise _damaged(archive, error) from None  # what gzip says of damage is an OSError without a number
    except _DAMAGE as error:
        raise _damaged(archive, error) from None


def _damaged(archive: Path, error: BaseException) -> DataError:
    words = " ".join(str(error).split()) or type(error).__name__
    return DataError(f"{archive}: damaged, or cut short ({words}); remove it, and download it again")


@contextmanager
def _opened(archive: Path, into: Path) -> Iterator[list[_Member]]:
    if zipfile.is_zipfile(archive):
        with zipfile.ZipFile(archive) as zipped:
            yield [_of_zip(zipped, entry) for entry in zipped.infolist()]
    else:
        with tarfile.open(archive, "r:*") as tarred:
            yield [_of_tar(tarred, entry, into) for entry in tarred]


def _of_zip(zipped: zipfile.ZipFile, entry: zipfile.ZipInfo) -> _Member:
    kind = S_IFMT(entry.external_attr >> 16)
    flaw = _flaw(entry.filename)
    if kind not in (0, S_IFREG, S_IFDIR):
        flaw = flaw or ("a link" if kind == S_IFLNK else "a device or another special file")
    if entry.flag_bits & _ENCRYPTED:
        flaw = flaw or "encrypted"
    return _Member(entry.filename, entry.file_size, entry.is_dir(), flaw, lambda: zipped.open(entry))


def _of_tar(tarred: tarfile.TarFile, entry: tarfile.TarInfo, into: Path) -> _Member:
    flaw = _flaw(entry.name)
    if entry.issym() or entry.islnk():
        flaw = flaw or f"a link to {entry.linkname}"
    elif not (entry.isfile() or entry.isdir()):
        flaw = flaw or "a device or another special file"
    if _LIBRARY_JUDGES is not None:
        try:
            _LIBRARY_JUDGES(entry, str(into))
        except tarfile.TarError as error:
            flaw = flaw or str(error)

    def opened() -> IO[bytes]:
        stream = tarred.extractfile(entry)
        if stream is None:
            raise tarfile.ReadError(f"{entry.name} has no content")
        return stream

    return _Member(entry.name, entry.size, entry.isdir(), flaw, opened)


def _flaw(name: str) -> str:
    """Why a path must not be followed, on any system; empty for a harmless one."""
    if name.startswith(("/", "\\")) or PureWindowsPath(name).drive:
        return "an absolute path"
    if ".." in PurePosixPath(name).parts or ".." in PureWindowsPath(name).parts:
        return "a path that climbs out"
    if "\\" in name or "\0" in name or not name.strip():
        return "not a plain name"
    return ""


def _refuse(archive: Path, members: Sequence[_Member]) -> None:
    problems = [f"{member.name!r}: {member.flaw}" for member in members if member.flaw]
    seen: set[PurePosixPath] = set()
    for member in members:
        path = PurePosixPath(member.name)
        if not member.folder and path in seen:
            problems.append(f"{member.name!r}: there twice")
        seen.add(path)
    if problems:
        listed = "".join(f"\n  {problem}" for problem in problems[:_LISTED])
        more = f"\n  and {len(problems) - _LISTED} more" if len(problems) > _LISTED else ""
        raise DataError(f"{archive}: not unpacked, nothing was written; it holds what no data set needs:{listed}{more}")


def _below(name: str, folder: str) -> bool:
    return PurePosixPath(folder) in PurePosixPath(name).parents


def _target(name: str, wanted: Mapping[str, str]) -> PurePosixPath | None:
    for folder, new in wanted.items():
        if _below(name, folder):
            return PurePosixPath(new) / PurePosixPath(name).relative_to(folder)
    return None


def _write(archive: Path, into: Path, targets: Mapping[PurePosixPath, _Member], total: int, moved: Moved) -> None:
    what, done = f"unpacking {archive.name}", 0
    moved(what, 0, total)
    for target, member in targets.items():
        path = into / target
        path.parent.mkdir(parents=True, exist_ok=True)
        with member.open() as source, path.open("xb") as stream:
            block: Any
            while block := source.read(_BLOCK):
                stream.write(block)
                done += len(block)
                moved(what, done, total)
