"""The one module that writes the files of a run: whole or not at all.

Every write goes to a temporary name in the same folder, is flushed to disk (`fsync`), renamed over the final name,
and the folder itself is flushed, so that a kill at any moment leaves either the old file or the new one.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch

from densekd.contents import read_json as read_json
from densekd.contents import read_tensors as read_tensors
from densekd.contents import sha256 as sha256
from densekd.contents import sha256_file as sha256_file
from densekd.contents import tensor_bytes as tensor_bytes

_TEMPORARY = ".part"
_REPLACED = ".old"
_NO_FOLDERS = (errno.EINVAL, errno.ENOTSUP)
"""What some file systems (of a network, of a user's program) say of a folder: they flush files alone."""


def _sync_folder(folder: Path) -> None:
    # Windows cannot open a folder; there the rename itself is as durable as it gets.
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in _NO_FOLDERS:
            raise
    finally:
        os.close(handle)


def make_folder(path: Path) -> None:
    """Make a folder, and those above it that are missing; each is flushed into the one above it."""
    if path.is_dir():
        return
    make_folder(path.parent)
    path.mkdir(exist_ok=True)
    with suppress(PermissionError):  # one may write into a folder that one may not read
        _sync_folder(path.parent)


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """An error of the system inside the block names `path`: a full disk names no file, or a temporary one."""
    try:
        yield
    except OSError as error:
        if error.filename is None or any(map(is_temporary, Path(os.fsdecode(error.filename)).parts)):
            error.filename, error.filename2 = str(path), None
        raise


def write_bytes(path: Path, data: bytes | Iterable[bytes]) -> None:
    """Write `data`, whole or in pieces, to `path` atomically; parent folders are made.

    Raises:
        OSError: it cannot be written; names `path`, whose old content stands, or the new one where the folder alone
            could not be flushed.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    with _told_of(path):
        make_folder(path.parent)
        try:
            with temporary.open("wb") as stream:
                for piece in [data] if isinstance(data, bytes) else data:
                    stream.write(piece)
                stream.flush()
                os.fsync(stream.fileno())
            temporary.replace(path)
        except BaseException:
            with suppress(OSError):  # the first error is the one to tell; a resume sweeps
                temporary.unlink(missing_ok=True)
            raise
        _sync_folder(path.parent)


class GrowingFile:
    """A file written piece by piece that gets its name only when it is whole.

    Until `finish` the bytes stand under a temporary name, which `sweep_temporaries` removes after a kill.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.size = path, 0
        self._temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
        # No buffer: what a full disk did not take would stay in it.
        self._stream = self._temporary.open("wb", buffering=0)

    def write(self, data: bytes | memoryview) -> None:
        """Append `data`; `size` is the number of bytes so far, also after an error."""
        rest = memoryview(data)
        with _told_of(self.path):
            while rest:
                written = self._stream.write(rest)
                self.size += written
                rest = rest[written:]

    def cut(self, size: int) -> None:
        """Drop everything after the first `size` bytes: what a full disk left half-written."""
        self._stream.truncate(size)
        self._stream.seek(size)
        self.size = size

    def finish(self) -> None:
        """Flush to disk, give the file its name, flush the folder."""
        with _told_of(self.path):
            os.fsync(self._stream.fileno())
            self._stream.close()
            self._temporary.replace(self.path)
            _sync_folder(self.path.parent)

    def discard(self) -> None:
        """Leave nothing behind."""
        self._stream.close()
        self._temporary.unlink(missing_ok=True)


def temporary_name(path: Path) -> Path:
    """A name beside `path` for a library that writes its file itself; `give_name` ends what begins with it."""
    return path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")


def give_name(temporary: Path, path: Path) -> None:
    """Flush a whole file to disk and give it its name; `temporary` is in the same folder."""
    with _told_of(path), temporary.open("rb+") as stream:
        os.fsync(stream.fileno())
    move(temporary, path)


def move(source: Path, path: Path) -> None:
    """Rename a whole file within one file system, over what bears the name; the folder is flushed."""
    with _told_of(path):
        source.replace(path)
        _sync_folder(path.parent)


def remove(path: Path) -> None:
    """Remove a file where there is one; the folder is flushed."""
    with suppress(FileNotFoundError), _told_of(path):
        path.unlink()
        _sync_folder(path.parent)


def write_text(path: Path, text: str | Iterable[str]) -> None:
    r"""Write UTF-8 text, whole or in pieces, atomically.

    Bytes of a file's name that are no UTF-8, which Python keeps as lone surrogates, are written as their codes
    (`\udce9`): in JSON and in quoted YAML that is the same text again, elsewhere it shows what stood there.
    """
    pieces = [text] if isinstance(text, str) else text
    write_bytes(path, (as_text(piece).encode() for piece in pieces))


def as_text(name: str) -> str:
    r"""A file's name as text that can be written anywhere: bytes that are no UTF-8 as their codes (`\udce9`)."""
    return name.encode("utf-8", "backslashreplace").decode()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON atomically; NaN and infinities are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as one safetensors file atomically."""
    write_bytes(path, tensor_bytes(tensors, metadata))


def write_folder(path: Path, files: Mapping[str, bytes]) -> None:
    """Write a folder of several files as one unit: a temporary folder with all of them, then one rename.

    A folder is complete if it exists under its final name. An existing folder of that name is replaced: it is set
    aside first, and `sweep_temporaries` brings it back if the process was killed before the new one took its place.
    """
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    aside = path.with_name(f".{path.name}{_REPLACED}")
    shutil.rmtree(temporary, ignore_errors=True)
    with _told_of(path):
        try:
            make_folder(temporary)
            for name, data in files.items():
                write_bytes(temporary / name, data)
            shutil.rmtree(aside, ignore_errors=True)
            if path.exists():
                path.rename(aside)
            temporary.rename(path)
        except BaseException:
            with suppress(OSError):
                if aside.exists() and not path.exists():
                    aside.rename(path)
            shutil.rmtree(temporary, ignore_errors=True)
            raise
        _sync_folder(path.parent)
    shutil.rmtree(aside, ignore_errors=True)


def remove_folder(path: Path) -> None:
    """Remove a folder: renamed to a temporary name first, so that no half-removed folder bears the final name.

    After a power cut too: the rename is flushed before anything is removed.
    """
    if not path.exists():
        return
    doomed = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    shutil.rmtree(doomed, ignore_errors=True)
    with _told_of(path):
        path.rename(doomed)
        _sync_folder(path.parent)
        shutil.rmtree(doomed)


def is_temporary(name: str) -> bool:
    """Whether a file or folder of that name is a half-written one of this module."""
    return name.startswith(".") and name.endswith((_TEMPORARY, _REPLACED))


def sweep_temporaries(folder: Path) -> None:
    """Remove what a killed process left half-written in `folder` and its sub-folders.

    A folder that was set aside to be replaced, and was not, gets its name back.
    """
    for aside in folder.rglob(f".*{_REPLACED}"):
        final = aside.with_name(aside.name.removeprefix(".").removesuffix(_REPLACED))
        if final.exists():
            shutil.rmtree(aside, ignore_errors=True)
        else:
            aside.rename(final)
    for left in folder.rglob(f".*{_TEMPORARY}"):
        if left.is_dir():
            shutil.rmtree(left, ignore_errors=True)
        else:
            left.unlink(missing_ok=True)
