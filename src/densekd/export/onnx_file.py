"""An ONNX file, run by onnxruntime."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from densekd.errors import ExportError
from densekd.export.exported import check_images
from densekd.export.extras import require_export
from densekd.export.manifest import INPUT, KEY, Manifest, read_manifest

if TYPE_CHECKING:
    from onnxruntime import InferenceSession

_PROVIDERS = {"cpu": "CPUExecutionProvider", "cuda": "CUDAExecutionProvider"}


@dataclass
class OnnxStudent:
    """An exported student in a session of onnxruntime."""

    path: Path
    manifest: Manifest
    session: InferenceSession

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images, self.manifest, self.path)
        (found,) = self.session.run(None, {INPUT: images.detach().cpu().contiguous().numpy()})
        return torch.from_numpy(found)


def session_of(path: Path, device: str = "cpu", threads: int | None = None) -> InferenceSession:
    """A session of onnxruntime that computes on `device` alone.

    Raises:
        ExportError: onnxruntime is missing or has no such device; the file is damaged.
    """
    require_export("onnxruntime")
    import onnxruntime

    provider = _PROVIDERS[device]
    if provider not in onnxruntime.get_available_providers():
        raise ExportError(
            "device cuda: onnxruntime has no CUDA here; install onnxruntime-gpu in the place of onnxruntime, or use cpu"
        )
    options = onnxruntime.SessionOptions()
    options.log_severity_level = 4  # its errors are raised, too
    if threads is not None:
        options.intra_op_num_threads = threads
    try:
        found = onnxruntime.InferenceSession(str(path), options, providers=[provider])
    except Exception as error:  # onnxruntime has a class of its own for every kind of damage
        raise ExportError(f"{path}: onnxruntime cannot open it ({_first_line(error)})") from None
    if provider not in found.get_providers():  # it falls back to the CPU by itself
        raise ExportError(f"{path}: onnxruntime could not start CUDA; its own words are above. Use cpu")
    return found


def open_onnx(path: Path, device: str, threads: int | None) -> OnnxStudent:
    """Open an ONNX file that densekd has written.

    Raises:
        ExportError: it has no manifest, is damaged, or the device is not there.
    """
    session = session_of(path, device, threads)
    properties: dict[str, Any] = session.get_modelmeta().custom_metadata_map
    return OnnxStudent(path, read_manifest(properties.get(KEY), path), session)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
