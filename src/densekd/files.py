"""The one module that writes the files of a run: whole or not at all.

Every write goes to a temporary name in the same folder, is flushed to disk (`fsync`), renamed over the final name,
and the folder itself is flushed, so that a kill at any moment leaves either the old file or the new one.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as _load_tensors
from safetensors.torch import save as _save_tensors

from densekd.errors import CheckpointError

_TEMPORARY = ".part"
_REPLACED = ".old"


def _sync_folder(folder: Path) -> None:
    # Windows cannot open a folder; there the rename itself is as durable as it gets.
    if os.name == "nt":
        return
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _told_of(path: Path) -> Iterator[None]:
    """An error of the system inside the block names `path`: a full disk names no file, or a temporary one."""
    try:
        yield
    except OSError as error:
        if error.filename is None or any(map(is_temporary, Path(os.fsdecode(error.filename)).parts)):
            error.filename, error.filename2 = str(path), None
        raise


def write_bytes(path: Path, data: bytes) -> None:
    """Write `data` to `path` atomically; parent folders are made.

    Raises:
        OSError: it cannot be written; names `path`, whose old content stands.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    with _told_of(path):
        try:
            with temporary.open("wb") as stream:
                stream.write(data)
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


def write_text(path: Path, text: str) -> None:
    r"""Write UTF-8 text atomically.

    Bytes of a file's name that are no UTF-8, which Python keeps as lone surrogates, are written as their codes
    (`\udce9`): in JSON and in quoted YAML that is the same text again, elsewhere it shows what stood there.
    """
    write_bytes(path, as_text(text).encode())


def as_text(name: str) -> str:
    r"""A file's name as text that can be written anywhere: bytes that are no UTF-8 as their codes (`\udce9`)."""
    return name.encode("utf-8", "backslashreplace").decode()


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON atomically; NaN and infinities are refused (they are not JSON)."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=False) + "\n")


def tensor_bytes(tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> bytes:
    """Tensors as safetensors bytes: on the CPU, contiguous, none sharing memory with another.

    safetensors refuses channels_last and tied tensors; each is written as its own contiguous copy, so that the
    file loads with `load_state_dict` in the network's own library.
    """
    plain = {
        name: tensor.detach().to("cpu", copy=True).contiguous(memory_format=torch.contiguous_format)
        for name, tensor in tensors.items()
    }
    return _save_tensors(plain, dict(metadata) if metadata else None)


def write_tensors(path: Path, tensors: Mapping[str, torch.Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write tensors as one safetensors file atomically."""
    write_bytes(path, tensor_bytes(tensors, metadata))


def read_tensors(path: Path) -> dict[str, torch.Tensor]:
    """Read a safetensors file onto the CPU; a damaged or missing file is a `CheckpointError` that names it."""
    try:
        data = path.read_bytes()
        found = _load_tensors(data)
        _require_each_once(data)
        return found
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except Exception as error:  # safetensors raises its own class for every kind of damage
        raise CheckpointError(f"{path}: not a readable safetensors file ({error})") from None


def _require_each_once(data: bytes) -> None:
    """Refuse a safetensors file that names a tensor twice: which of the two is read hangs on the reader.

    Raises:
        ValueError: the name.
    """

    def pairs(entries: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(entries)
        if len(found) < len(entries):
            names = [name for name, _ in entries]
            raise ValueError(f"{next(name for name in names if names.count(name) > 1)!r} is in it twice")
        return found

    json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")], object_pairs_hook=pairs)


def read_json(path: Path) -> Any:
    """Read a JSON file; a damaged or missing file is a `CheckpointError` that names it."""
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except (UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise CheckpointError(f"{path}: not readable as JSON ({error})") from None


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
            temporary.mkdir(parents=True)
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
    """Remove a folder: renamed to a temporary name first, so that no half-removed folder bears the final name."""
    if not path.exists():
        return
    doomed = path.with_name(f".{path.name}.{os.getpid()}{_TEMPORARY}")
    shutil.rmtree(doomed, ignore_errors=True)
    with _told_of(path):
        path.rename(doomed)
        shutil.rmtree(doomed)
        _sync_folder(path.parent)


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


def sha256(data: bytes) -> str:
    """Hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
