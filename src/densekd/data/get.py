"""A published data set brought to a folder: downloaded, judged by its checksum, unpacked, counted, put in place.

Nothing bears its final name before it is whole, and no folder that is already there is touched.
"""

from __future__ import annotations

import hashlib
import os
import shlex
import shutil
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from densekd.data.download import Moved, Said, download
from densekd.data.sources import Archive, Count, Source
from densekd.data.unpack import gigabytes, require_room, unpack
from densekd.errors import DataError
from densekd.locks import try_lock

State = Literal["in place", "downloaded", "begun", "to download"]
_BLOCK = 1 << 20


@dataclass(frozen=True)
class Step:
    """An archive, and how far it has come: its files are in place, or it lies below the root, in part, or not yet."""

    archive: Archive
    state: State


@dataclass(frozen=True)
class Placed:
    """What was done for an archive; `sha256` is that of the archive, None where it was not needed again."""

    archive: Archive
    state: State
    sha256: str | None


def plan(source: Source, root: Path) -> list[Step]:
    """What is there of a data set and what is missing.

    Raises:
        DataError: a folder of the data set is there and incomplete; it is not touched.
    """
    steps: list[Step] = []
    for archive in source.archives:
        path = root / archive.name
        if any(os.path.lexists(root / folder) for folder in archive.wanted.values()):
            _require_complete(root, archive)
            steps.append(Step(archive, "in place"))
        elif path.is_file():
            steps.append(Step(archive, "downloaded"))
        else:
            begun = path.with_name(f"{path.name}.part").is_file()
            steps.append(Step(archive, "begun" if begun else "to download"))
    return steps


def get(source: Source, root: Path, *, keep_archives: bool, moved: Moved, said: Said) -> list[Placed]:
    """Bring all of a data set below `root`; what is in place already is left as it is.

    Args:
        keep_archives: leave the archives beside what was in them; those that were there before stay in any case.
        moved: progress, in bytes.
        said: lines for the user.

    Raises:
        DataError: a file cannot be had, has another checksum than the published, cannot be unpacked, does not hold
            what it should, the disk is too small, or another process is at work in `root`. What was complete before
            that is in place.
    """
    steps = plan(source, root)
    missing = [step.archive.name for step in steps if step.state in ("begun", "to download")]
    if missing and source.by_hand:
        steps_left = steps_by_hand(source, root, missing)
        raise DataError(f"{source.title}: no download without an account ({source.terms}). By hand:{steps_left}")
    require_room(root, _needed(steps, root, keep_archives), "to download and unpack it")
    root.mkdir(parents=True, exist_ok=True)
    placed = []
    with _alone(root):
        for step in plan(source, root):  # anew: another process may have been at work until now
            digest = None
            if step.state != "in place":
                digest = _bring(step, root, moved, said)
                if not keep_archives:
                    _remove(step, root, said)
            placed.append(Placed(step.archive, step.state, digest))
    return placed


@contextmanager
def _alone(root: Path) -> Iterator[None]:
    """Hold the folder: two that append to one part spoil it. Gone with the process; nothing on Windows.

    Raises:
        DataError: another process holds it.
    """
    lock = try_lock(root)
    if lock is None:
        raise DataError(
            f"{root}: another process is bringing a data set there; wait for it, or give another folder with --root"
        )
    with lock:
        yield


def steps_by_hand(source: Source, root: Path, missing: Sequence[str]) -> str:
    """A line for each thing that only the user can do, and what comes after."""
    root_shown, names = shlex.quote(str(root)), " ".join(missing)
    steps = [step.format(missing=names, root=root_shown) for step in source.by_hand]
    steps.append("give this command again: it checks what is there and unpacks it")
    return "".join(f"\n  {number}. {step}" for number, step in enumerate(steps, 1))


def _needed(steps: Sequence[Step], root: Path, keep_archives: bool) -> int:
    """Bytes at the worst moment: pictures in an archive are about as large as outside of it."""
    held, most = 0, 0
    for step in steps:
        size = step.archive.size or 0
        if step.state == "in place":
            continue
        arrived = 0
        for path in (root / step.archive.name, root / f"{step.archive.name}.part"):
            arrived += path.stat().st_size if path.is_file() else 0
        most = max(most, held + max(0, size - arrived) + size)
        kept = keep_archives or step.state == "downloaded"
        held += size + (max(0, size - arrived) if kept else -arrived)
    return most


def _bring(step: Step, root: Path, moved: Moved, said: Said) -> str:
    archive, path = step.archive, root / step.archive.name
    if step.state != "downloaded":
        download(archive.urls, path, moved=moved, said=said)
    digest = _judged(archive, path, moved, said)
    # Of this name no data set has a folder; what a killed process left here is of no use.
    temporary = root / f".{archive.name}.unpacking"
    shutil.rmtree(temporary, ignore_errors=True)
    try:
        unpack(path, temporary, archive.wanted, moved)
        _require_counted(temporary, archive)
        for folder in archive.wanted.values():
            (root / folder).parent.mkdir(parents=True, exist_ok=True)
            (temporary / folder).rename(root / folder)
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return digest


def _remove(step: Step, root: Path, said: Said) -> None:
    path = root / step.archive.name
    if step.state == "downloaded":
        said(f"{path}: left where it was, because it was there before; it is not needed any more")
    else:
        path.unlink()


def _judged(archive: Archive, path: Path, moved: Moved, said: Said) -> str:
    """SHA-256 of an archive that has the published checksum, or none is published.

    Raises:
        DataError: another checksum; the file is set aside under another name.
    """
    kind, expected = archive.digest or ("sha256", None)
    found = _digests(path, {kind, "sha256"}, moved)
    if expected is not None and found[kind] != expected:
        aside = path.with_name(f"{path.name}.refused")
        path.replace(aside)
        raise DataError(
            f"{path}: its {kind.upper()} is {found[kind]}, but {archive.digest_from} publishes {expected}: it is "
            f"damaged, or another file; nothing was unpacked, and it is now {aside.name}. The same command downloads "
            "it anew"
        )
    if expected is None:
        said(
            f"{archive.name}: no checksum is published; judged by the archive's own and by the number of its files "
            f"(SHA-256 {found['sha256']})"
        )
    return found["sha256"]


def _digests(path: Path, kinds: set[str], moved: Moved) -> dict[str, str]:
    """Hexadecimal digests of a file, all from one reading."""
    found = {kind: hashlib.new(kind, usedforsecurity=False) for kind in kinds}
    what, done, total = f"checksum of {path.name}", 0, path.stat().st_size
    with path.open("rb") as stream:
        while block := stream.read(_BLOCK):
            for digest in found.values():
                digest.update(block)
            done += len(block)
            moved(what, done, total)
    return {kind: digest.hexdigest() for kind, digest in found.items()}


def _counted(root: Path, count: Count) -> int:
    return sum(
        name.endswith(count.suffix) and not name.startswith(".")
        for _, _, names in os.walk(root / count.folder)
        for name in names
    )


def _require_complete(root: Path, archive: Archive) -> None:
    # More is fine: the images of a test set, masks made of others.
    short = [count for count in archive.counts if _counted(root, count) < count.files]
    if short:
        first = short[0]
        raise DataError(
            f"{root / first.folder}: {_counted(root, first)} files {first.suffix}, expected {first.files}: the data "
            f"set is there, but not whole. It is not touched: move {_folders(root, archive)} away, or give another "
            "folder with --root"
        )


def _folders(root: Path, archive: Archive) -> str:
    there = [str(root / folder) for folder in archive.wanted.values() if os.path.lexists(root / folder)]
    return " and ".join(there)


def _require_counted(folder: Path, archive: Archive) -> None:
    wrong = [
        f"{count.folder} {number} files {count.suffix} where {count.files} are expected"
        for count in archive.counts
        if (number := _counted(folder, count)) != count.files
    ]
    if wrong:
        raise DataError(f"{archive.name}: not put in place; it holds in {', in '.join(wrong)}")


def describe(step: Step) -> dict[str, str | None]:
    """A row for people: what an archive is, and what is to be done about it."""
    archive = step.archive
    kind, value = archive.digest or (None, None)
    return {
        "archive": archive.name,
        "state": step.state,
        "size": None if archive.size is None else gigabytes(archive.size),
        "checksum": None if kind is None else f"{kind.upper()} {value} ({archive.digest_from})",
        "from": archive.urls[0] if archive.urls else "by hand",
        "to": " ".join(archive.wanted.values()),
    }
