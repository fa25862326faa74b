"""`--to hub-folder`: a folder that the student's own library loads, with a model card of the measured numbers."""

from __future__ import annotations

import contextlib
import io
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from densekd import files
from densekd.errors import ExportError
from densekd.export.card import card_text
from densekd.export.images import RealImages
from densekd.export.library import (
    ENCODER,
    WEIGHTS,
    build_with,
    encoder_source,
    library_of,
    load_folder,
    loading_of,
    require_trust,
)
from densekd.export.manifest import FILE, Manifest, read_manifest
from densekd.export.processor import write_processor
from densekd.export.student import Student
from densekd.export.torch_student import TorchStudent, placed
from densekd.export.weights import Watch, as_json, manifest_of, verified

CARD = "README.md"


def write_hub_folder(student: Student, folder: Path, real: RealImages, watch: Watch | None = None) -> TorchStudent:
    """Write the folder, load it with the student's library, and compare what that gives; then give it its name.

    segmentation-models-pytorch and transformers: what their `save_pretrained` writes; for transformers also the names
    of the classes and `preprocessor_config.json`. torchvision and networks of the user's own: `model.safetensors`,
    and the card says how the network is built. In every folder: `README.md`, the card; `densekd.json`, the manifest.

    Args:
        student: of the run.
        folder: a folder of that name is replaced as a whole.
        real: images for the comparison.
        watch: called with (batches done, batches in all).

    Returns:
        The student as the library loaded it, with the manifest that went into the folder.

    Raises:
        ExportError: the library loads something else, or nothing; no folder is left.
    """
    manifest = manifest_of(student, "hub-folder", real)
    library = library_of(manifest.network)
    if library == "timm":
        raise ExportError(
            f"{manifest.network.model} gives features, not a class map: there is no folder to load it from"
        )
    with tempfile.TemporaryDirectory() as scratch:
        made = Path(scratch)
        if library == "smp":
            _write_smp(student, made)
        elif library == "transformers":
            _write_transformers(student, made)
            manifest.notices.extend(write_processor(student, made, real))
        else:
            files.write_tensors(made / WEIGHTS, files.read_tensors(student.run.weights))
        opened = _opened(made, folder, manifest, student)
        manifest = manifest.model_copy(update={"verified": verified(student, opened, real, watch)})
        contents = {
            path.relative_to(made).as_posix(): path.read_bytes() for path in sorted(made.rglob("*")) if path.is_file()
        }
    contents[FILE] = as_json(manifest)
    contents[CARD] = files.as_text(card_text(student, manifest, folder.name, contents)).encode()
    folder.parent.mkdir(parents=True, exist_ok=True)
    files.write_folder(folder, contents)
    return replace(opened, manifest=manifest)


def open_hub_folder(
    folder: Path, device: str = "cpu", threads: int | None = None, *, trust: bool = False
) -> TorchStudent:
    """Open a folder that densekd has written, by the student's own library.

    Raises:
        ExportError: it holds no manifest, is damaged, the library that it needs is missing, or its network is code
            that is not trusted.
    """
    noted = folder / FILE
    if not noted.is_file():
        raise ExportError(f"{folder}: holds no {FILE}; it was not made by `densekd export RUN --to hub-folder`")
    manifest = read_manifest(noted.read_text(encoding="utf-8", errors="replace"), noted)
    require_trust(folder, manifest, folder, trust)
    with contextlib.redirect_stdout(io.StringIO()):  # libraries tell where they load from
        network = load_folder(folder, manifest)
    return placed(folder, manifest, network, device, threads)


def _opened(made: Path, folder: Path, manifest: Manifest, student: Student) -> TorchStudent:
    """The student as its library loads it from the scratch folder."""
    if loading_of(manifest.network) == "from_pretrained":
        with contextlib.redirect_stdout(io.StringIO()):
            network = load_folder(made, manifest)
    else:
        # A network of the user's own is built where the recipe finds it.
        network = build_with(manifest, made / WEIGHTS, model=student.recipe.student.model)
    return TorchStudent(folder, manifest, network, torch.device("cpu"))


def _write_smp(student: Student, made: Path) -> None:
    network: Any = student.network
    with contextlib.redirect_stdout(io.StringIO()):
        network.save_pretrained(str(made))
    (made / CARD).unlink(missing_ok=True)  # the library's own card, without numbers
    encoder = str(network.config.get("encoder_name", ""))
    source = encoder_source(encoder)
    if source is not None:
        (made / ENCODER).write_text(source, encoding="utf-8")


def _write_transformers(student: Student, made: Path) -> None:
    network: Any = student.network
    names = student.task.class_names if not student.task.binary else student.task.class_names[1:]
    network.config.id2label = dict(enumerate(names))
    network.config.label2id = {name: place for place, name in enumerate(names)}
    network.save_pretrained(str(made))
