"""An ONNX file, run by onnxruntime."""

from __future__ import annotations

from collections.abc import Iterator
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
        ExportError: it has no manifest, is damaged, names files beside it, or the device is not there.
    """
    _require_whole(path)
    session = session_of(path, device, threads)
    properties: dict[str, Any] = session.get_modelmeta().custom_metadata_map
    return OnnxStudent(path, read_manifest(properties.get(KEY), path), session)


def _require_whole(path: Path) -> None:
    """Refuse a file that takes values from other files: densekd writes none, and their paths may lead anywhere.

    Newer versions of onnxruntime refuse paths that leave the folder; older ones read them.
    """
    data = path.read_bytes()
    if b"location" not in data:  # the key that every such reference has
        return
    require_export("onnx")
    import onnx

    try:
        outside = next(_outside(onnx.load_model_from_string(data)), None)
    except Exception as error:  # protobuf's own classes
        raise ExportError(f"{path}: onnx cannot read it ({_first_line(error)})") from None
    if outside is not None:
        raise ExportError(
            f"{path}: takes {outside!r} from another file, which `densekd export` never writes; not opened"
        )


def _outside(message: Any) -> Iterator[str]:
    """Names of the tensors whose values are in other files, wherever in the graph they stand."""
    for field, value in message.ListFields():
        if field.name == "external_data":
            yield message.name
        elif field.message_type is not None:
            for inner in value if hasattr(value, "__len__") else (value,):
                yield from _outside(inner)


def _first_line(error: Exception) -> str:
    return str(error).strip().splitlines()[0][:300] if str(error).strip() else type(error).__name__
