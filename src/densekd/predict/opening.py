"""What `densekd predict` is given to predict with: a run, or what was exported of one."""

from __future__ import annotations

from pathlib import Path

import torch

from densekd.errors import RunError
from densekd.export import Exported, load_exported
from densekd.runs.folder import Run

_FILES = (".onnx", ".pt2", ".safetensors")
_HUB = ("densekd.json", "config.json", "model.safetensors")


def open_student(path: Path, *, trust: bool = False) -> Run | Exported:
    """Open the folder of a run, or an exported file or hub folder; the latter on CUDA where torch runs it and has it.

    Args:
        path: of the folder or file.
        trust: execute code that it names, though it was not made here.

    Raises:
        RunError: neither.
        ExportError: an exported file or folder that cannot be opened.
    """
    if path.is_dir():
        exported = not (path / "record.json").is_file() and any((path / name).is_file() for name in _HUB)
        return load_exported(path, trust=trust, device=_device()) if exported else Run.load(path, trust=trust)
    if path.is_file() and path.suffix in _FILES:
        # onnxruntime has CUDA only in another package, and says so loudly; here it stays on the CPU.
        return load_exported(path, trust=trust, device="cpu" if path.suffix == ".onnx" else _device())
    if path.is_file():
        raise RunError(f"{path}: neither the folder of a run nor an exported file ({', '.join(_FILES)})")
    if path.suffix in _FILES:
        raise RunError(f"{path}: no such file. Exported students are made by `densekd export`")
    return Run.load(path, trust=trust)


def _device() -> str:
    return "cuda" if torch.cuda.is_available() else "cpu"
