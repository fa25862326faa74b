"""What stands in the files of a run, as bytes: safetensors and JSON, nothing that unpickles; and their digests."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load as _load_tensors
from safetensors.torch import save as _save_tensors

from densekd.errors import CheckpointError


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


def sha256(data: bytes) -> str:
    """Hex digest of `data`."""
    return hashlib.sha256(data).hexdigest()


def sha256_file(path: Path) -> str:
    """Hex digest of a file's content, read in blocks."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
