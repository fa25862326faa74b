"""Open what `densekd export` has written."""

from __future__ import annotations

from pathlib import Path

from densekd.errors import ExportError
from densekd.export.exported import Exported


def load_exported(
    path: str | Path, *, device: str = "cpu", threads: int | None = None, trust: bool = False
) -> Exported:
    """Open an exported student.

    Args:
        path: a file `.onnx`, `.pt2` or `.safetensors`, or a hub folder.
        device: `cpu` or `cuda`.
        threads: CPU threads of one call; None: what the library takes by itself.
        trust: execute the file of a network of somebody's own (`net.py:build`), which lies beside the weights.

    Raises:
        ExportError: nothing is there, it was not made by `densekd export`, it is damaged, the device is not there,
            or its network is code and `trust` was not given.
    """
    file = Path(path)
    if not file.exists():
        raise ExportError(f"{file}: no such file or folder")
    if device not in ("cpu", "cuda"):
        raise ExportError(f"device {device!r}: expected cpu or cuda")
    if threads is not None and threads < 1:
        raise ExportError(f"threads: expected 1 or more, got {threads}")
    if file.is_dir():
        from densekd.export.hub import open_hub_folder

        return open_hub_folder(file, device, threads, trust=trust)
    if file.suffix == ".safetensors":
        from densekd.export.weights import open_weights

        return open_weights(file, device, threads, trust=trust)
    if file.suffix == ".onnx":
        from densekd.export.onnx_file import open_onnx

        return open_onnx(file, device, threads)
    if file.suffix == ".pt2":
        from densekd.export.pt2_file import open_pt2

        return open_pt2(file, device, threads)
    raise ExportError(f"{file}: expected a file that ends in .onnx, .pt2 or .safetensors, or a folder")
