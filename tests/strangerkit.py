"""What a stranger may send: files that run something when they are unpickled, evaluated or followed."""

from __future__ import annotations

import io
import json
import os
import pickle
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import torch

from densekd.export.manifest import InputInfo, Manifest, NetworkInfo, Source
from densekd.records import BestScores

SCORES = BestScores(miou=0.5, pixel_accuracy=0.5, iou={"a": 0.5, "b": 0.5}, images=2, step=1)


class Attack:
    """Unpickling it makes a folder, the canary."""

    def __init__(self, canary: Path) -> None:
        self.canary = canary

    def __reduce__(self) -> tuple[Any, tuple[str]]:
        return os.mkdir, (str(self.canary),)


def torch_file(canary: Path, *, zipped: bool = True) -> bytes:
    held = io.BytesIO()
    torch.save({"weight": torch.zeros(2), "evil": Attack(canary)}, held, _use_new_zipfile_serialization=zipped)
    return held.getvalue()


def archives(canary: Path) -> dict[str, bytes]:
    """A tar and a zip that hold a pickle under the names that loaders look for."""
    data, tarred, zipped = pickle.dumps(Attack(canary)), io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tarred, mode="w") as tar:
        for name in ("storages", "tensors", "pickle"):
            info = tarfile.TarInfo(name)
            info.size = len(data)
            tar.addfile(info, io.BytesIO(data))
    with zipfile.ZipFile(zipped, "w") as archive:
        archive.writestr("archive/data.pkl", data)
        archive.writestr("archive/version", "3\n")
    return {"tar": tarred.getvalue(), "zip": zipped.getvalue()}


def manifest(form: str, model: str = "smp:Unet") -> Manifest:
    return Manifest(
        format=form,
        classes=("a", "b"),
        network=NetworkInfo(model=model),
        input=InputInfo(mean=(0.5, 0.5, 0.5), std=(0.25, 0.25, 0.25)),
        source=Source(
            run="r", seed=0, method="none", student_sha256="0" * 64, recipe_sha256="1" * 64, split="val", scores=SCORES
        ),
    )


def pt2_file(path: Path, graph: dict[str, Any], *more: tuple[str, bytes]) -> Path:
    """A pt2 file with a manifest and the given `model.json`; `more` are further parts, by their whole names."""
    parts = {"extra/densekd.json": manifest("pt2").text().encode(), "archive_format": b"pt2"}
    with zipfile.ZipFile(path, "w") as archive:
        for name, data in {**parts, "models/model.json": json.dumps(graph).encode()}.items():
            archive.writestr(f"archive/{name}", data)
        for name, data in more:
            archive.writestr(name, data)
    return path
