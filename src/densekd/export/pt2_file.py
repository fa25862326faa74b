"""A pt2 file: a graph of torch.export with its weights."""

from __future__ import annotations

import io
import json
import logging
import re
import warnings
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from densekd.errors import ExportError
from densekd.export.exported import check_images
from densekd.export.manifest import FILE, Manifest, read_manifest
from densekd.export.pt2_graph import flaw_of_graph
from densekd.export.torch_threads import torch_threads

_KNOWN = re.compile(
    r"data/weights/(weight_\d+|model_weights_config\.json)|data/constants/(tensor_\d+|model_constants_config\.json)"
    r"|models/model\.json|data/sample_inputs/model\.pt|extra/densekd\.json|archive_format|archive_version"
    r"|\.?data/[a-z_]+|byteorder|version|\.format_version|\.storage_alignment"
)


@dataclass
class Pt2Student:
    """An exported student as a graph of torch."""

    path: Path
    manifest: Manifest
    module: torch.nn.Module
    device: torch.device
    threads: int | None = None

    def __call__(self, images: Tensor) -> Tensor:
        check_images(images, self.manifest, self.path)
        with torch.inference_mode(), torch_threads(self.threads):
            found: Tensor = self.module(images.to(self.device)).cpu()
        return found


def open_pt2(path: Path, device: str, threads: int | None) -> Pt2Student:
    """Open a pt2 file that densekd has written.

    Raises:
        ExportError: it has no manifest, is damaged, holds what only unpickling opens, or the device is not there.
    """
    if device == "cuda" and not torch.cuda.is_available():
        raise ExportError("device cuda: torch sees no CUDA device; use cpu")
    inside = _checked(path)
    noted = inside.get(f"extra/{FILE}")
    manifest = read_manifest(None if noted is None else noted.decode("utf-8", "replace"), path)
    target = torch.device(device)
    try:
        with quiet_torch():
            program = torch.export.load(_packed(inside))
            module = program.module().to(target)
    except Exception as error:  # a damaged graph fails in as many ways as it has parts
        raise ExportError(f"{path}: torch {torch.__version__} cannot open it ({error})") from None
    return Pt2Student(path, manifest, module, target, threads)


@contextmanager
def quiet_torch() -> Iterator[None]:
    """Within the block torch's exporters log errors alone, and no warnings come: they speak of its own insides."""
    found = [logging.getLogger(name) for name in ("torch.export", "torch._export", "torch.onnx", "onnxscript")]
    levels = [logger.level for logger in found]
    for logger in found:
        logger.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        for logger, level in zip(found, levels, strict=True):
            logger.setLevel(level)


def _checked(path: Path) -> dict[str, bytes]:
    """The parts of the file by their names below its one folder, read without torch; each is judged first.

    Raises:
        ExportError: it is no such file, or holds what torch would execute.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            names = archive.namelist()
            if any(
                part.compress_type != zipfile.ZIP_STORED for part in archive.infolist()
            ):  # a few bytes may be terabytes
                raise ExportError(f"{path}: holds compressed parts, which torch never writes; not opened")
            inside = {name.partition("/")[2]: archive.read(name) for name in names}
        if len(inside) != len(names):
            raise ExportError(f"{path}: holds a part twice; not opened")
        _require_plain(inside, path)
        flaw = flaw_of_graph(inside.get("models/model.json", b"{}"))
    except (OSError, zipfile.BadZipFile, zlib.error, ValueError, LookupError, TypeError, RecursionError) as error:
        raise ExportError(f"{path}: cannot be read as a pt2 file ({error})") from None
    if flaw:
        raise ExportError(f"{path}: its graph {flaw}, and torch would execute it; not opened")
    return inside


def _packed(inside: Mapping[str, bytes]) -> io.BytesIO:
    """The parts that were judged, packed anew: torch's reader cannot see others than ours did."""
    held = io.BytesIO()
    with zipfile.ZipFile(held, "w") as archive:
        for name, data in inside.items():
            archive.writestr(f"student/{name}", data)
    held.seek(0)
    return held


def _require_plain(inside: Mapping[str, bytes], path: Path) -> None:
    """Refuse a file of which torch would unpickle a part: torch's loader does so without asking."""
    for name, data in inside.items():
        if not _KNOWN.fullmatch(name):
            raise ExportError(f"{path}: holds {name!r}, which `densekd export` does not write; not opened")
        if name.endswith("_config.json"):
            parts = json.loads(data)["config"]
            for what, part in parts.items():
                if part["use_pickle"] is not False:
                    raise ExportError(f"{path}: {what!r} in it can only be unpickled, which could run anything")
        if name.startswith("data/sample_inputs/"):
            try:
                torch.load(io.BytesIO(data), weights_only=True)
            except Exception:  # whatever was put there: torch's own loader would unpickle it
                raise ExportError(f"{path}: its sample inputs can only be unpickled; not opened") from None
    if inside.get("archive_format") != b"pt2":
        raise ExportError(f"{path}: not a file of torch.export")
