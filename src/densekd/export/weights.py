"""`--to safetensors`: the weights of the student alone, under the names of its own library, with the manifest."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open

from densekd import files
from densekd._version import __version__
from densekd.errors import ExportError
from densekd.export.graph import Graph
from densekd.export.images import RealImages
from densekd.export.library import build_with, library_of, require_trust
from densekd.export.manifest import (
    KEY,
    Format,
    InputInfo,
    InsideInfo,
    Manifest,
    Verified,
    evaluated_as,
    read_manifest,
)
from densekd.export.student import Student
from densekd.export.torch_student import TorchStudent, placed
from densekd.export.verify import compare

Watch = Callable[[int, int], None]


def write_weights(student: Student, path: Path, real: RealImages, watch: Watch | None = None) -> TorchStudent:
    """Write the weights as one safetensors file, open it again, and compare what its network gives.

    The tensors have the names, shapes and number formats of the run's `student.safetensors`. `path` gets its content
    once the comparison is done.

    Args:
        student: of the run.
        path: the file; what is there already is replaced.
        real: images for the comparison.
        watch: called with (batches done, batches in all).

    Returns:
        The student as it was opened again, with the manifest that went into the file.

    Raises:
        ExportError: the file does not give what the student gives; nothing is left of it.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    tensors = files.read_tensors(student.run.weights)
    manifest = manifest_of(student, "safetensors", real)
    temporary = files.temporary_name(path)
    try:
        files.write_tensors(temporary, tensors, {KEY: manifest.text()})
        network = build_with(manifest, temporary, model=student.recipe.student.model)
        opened = TorchStudent(path, manifest, network, torch.device("cpu"))
        manifest = manifest.model_copy(update={"verified": verified(student, opened, real, watch)})
        temporary.unlink()
        files.write_tensors(path, tensors, {KEY: manifest.text()})
    finally:
        temporary.unlink(missing_ok=True)
    return replace(opened, manifest=manifest)


def open_weights(path: Path, device: str = "cpu", threads: int | None = None, *, trust: bool = False) -> TorchStudent:
    """Open a safetensors file that densekd has written: its library builds the network, weights are loaded strictly.

    Raises:
        ExportError: it is damaged, has no manifest, its network cannot be built here, or is code that is not trusted.
    """
    try:
        with safe_open(path, "pt") as stream:
            noted = stream.metadata() or {}
    except (OSError, SafetensorError) as error:
        raise ExportError(f"{path}: not a readable safetensors file ({error})") from None
    if KEY not in noted:
        raise ExportError(
            f"{path}: holds weights without a manifest of densekd; `densekd export RUN --to safetensors` writes one"
        )
    manifest = read_manifest(noted[KEY], path)
    require_trust(path, manifest, path.parent, trust)
    return placed(path, manifest, build_with(manifest, path, path.parent), device, threads)


def manifest_of(student: Student, form: Format, real: RealImages) -> Manifest:
    """What a file of weights or a hub folder says of itself, before it is verified."""
    augment = student.recipe.data.augment
    return Manifest(
        format=form,
        densekd=__version__,
        classes=student.task.class_names,
        palette=student.palette,
        binary=student.task.binary,
        network=student.network_info,
        input=InputInfo(mean=augment.mean, std=augment.std, multiple_of=student.multiple),
        evaluated=evaluated_as(student.recipe),
        source=student.source,
        notices=list(real.notices),
    )


def verified(student: Student, opened: TorchStudent, real: RealImages, watch: Watch | None = None) -> Verified:
    """Compare an opened student with the run's own on real images.

    Raises:
        ExportError: it gives something else.
    """
    manifest = opened.manifest
    graph = Graph(
        student.network,
        manifest.input,
        InsideInfo(),
        binary=manifest.binary,
        multiple=student.multiple,
        always=False,
    )
    found = compare(graph, opened, real.images, (), watch)
    return found.verified(len(real.images), real.words, _by(manifest))


def _by(manifest: Manifest) -> str:
    """What loaded it: the package and its version."""
    from importlib import metadata

    package = {"smp": "segmentation-models-pytorch", "file": "torch"}.get(library_of(manifest.network))
    package = package or library_of(manifest.network)
    return f"{package} {metadata.version(package)}"


def as_json(manifest: Manifest) -> bytes:
    """The manifest as a file of its own."""
    return (json.dumps(manifest.model_dump(mode="json", by_alias=True), indent=2, ensure_ascii=False) + "\n").encode()
