"""Reading a file of weights: what it is, and its content. Nothing that needs code is ever unpickled."""

from __future__ import annotations

import pickle
import re
import zipfile
from pathlib import Path
from typing import Any

import torch

from densekd.errors import CheckpointError, nearest
from densekd.files import read_json, read_tensors
from densekd.models.run_student import STUDENT

_LFS = b"version https://git-lfs.github.com/spec"
_HTML = (b"<!doctype html", b"<html", b"<?xml")


def resolve_checkpoint(path: str, base_folder: Path) -> Path:
    """The file that `path` means: itself, or `student.safetensors` of a run folder.

    Raises:
        CheckpointError: nothing is there, or a folder that is no run and holds no student.
    """
    found = base_folder / Path(path).expanduser()
    if found.is_dir():
        return _in_folder(found)
    if not found.is_file():
        siblings = [entry.name for entry in found.parent.iterdir()] if found.parent.is_dir() else []
        raise CheckpointError(f"checkpoint {found}: no such file{nearest(found.name, siblings)}")
    return found


def _in_folder(folder: Path) -> Path:
    student = folder / STUDENT
    if student.is_file():
        return student
    if (folder / "record.json").is_file():
        record = read_json(folder / "record.json")
        status = record.get("status", "unknown") if isinstance(record, dict) else "unknown"
        raise CheckpointError(
            f"checkpoint {folder}: this run has no {STUDENT} yet (status: {status}); finish it with --resume"
        )
    weights = sorted(e.name for e in folder.iterdir() if e.suffix in (".safetensors", ".pt", ".pth", ".ckpt", ".bin"))
    hint = f"; name one of its files: {', '.join(weights[:6])}" if weights else ""
    raise CheckpointError(f"checkpoint {folder}: a folder without {STUDENT}, so not a finished run{hint}")


def read_checkpoint(path: Path) -> Any:
    """The content of a weights file, on the CPU: a mapping of tensors, perhaps nested among other entries.

    The kind of the file is told by its first bytes, not by its name.

    Raises:
        CheckpointError: not a weights file (named as what it is), damaged, or a pickle that needs code.
    """
    with path.open("rb") as stream:
        head = stream.read(512)
    if not head:
        raise CheckpointError(f"checkpoint {path}: the file is empty")
    if head.startswith(_LFS):
        raise CheckpointError(
            f"checkpoint {path}: a Git LFS pointer of {path.stat().st_size} bytes, not the weights; "
            f"fetch them with `git lfs pull`"
        )
    if head.lstrip().lower().startswith(_HTML):
        raise CheckpointError(
            f"checkpoint {path}: a web page, not weights; the download probably gave a log-in or error page"
        )
    # safetensors: the length of its header in 8 bytes, then JSON.
    if head[8:9] == b"{":
        return read_tensors(path)
    if head.startswith(b"PK\x03\x04"):
        return _read_torch(path, zipped=True)
    if head.startswith(b"\x80"):
        return _read_torch(path, zipped=False)
    raise CheckpointError(
        f"checkpoint {path}: neither a safetensors file nor one of torch.save (it begins with {head[:8]!r})"
    )


def _read_torch(path: Path, *, zipped: bool) -> Any:
    if zipped:
        try:
            with zipfile.ZipFile(path) as archive:
                names = archive.namelist()
                claimed = sum(part.file_size for part in archive.infolist())
        except zipfile.BadZipFile:
            raise CheckpointError(f"checkpoint {path}: damaged or cut short (not a complete archive)") from None
        if any(name.endswith("/constants.pkl") for name in names):
            raise CheckpointError(
                f"checkpoint {path}: a TorchScript program, which is code; save its state_dict() in a file instead"
            )
        if claimed > path.stat().st_size:  # torch.save compresses nothing: packed parts, or one under several names
            raise CheckpointError(
                f"checkpoint {path}: its parts would take {claimed:,} bytes, more than the file has: it is packed, or "
                "made to fill the memory; save it anew with torch.save or safetensors"
            )
        if not any(name.endswith("data.pkl") for name in names):
            raise CheckpointError(f"checkpoint {path}: a zip archive that torch.save did not write")
    try:
        return torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        found = re.search(r"GLOBAL ([\w.]+)", str(error))
        cause = f" ({found[1]})" if found else ""
        raise CheckpointError(
            f"checkpoint {path}: holds Python objects{cause} beside tensors, and reading them would run code from the "
            f"file; densekd never does. In a program you trust, load it and write its weights alone: "
            f"torch.save(network.state_dict(), ...) or safetensors"
        ) from None
    except Exception as error:  # torch raises many kinds for damaged files
        reason = " ".join(str(error).split())[:200]
        raise CheckpointError(f"checkpoint {path}: damaged or cut short ({type(error).__name__}: {reason})") from None
