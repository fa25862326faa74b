"""What the maps of a set depend on, by more than rounding: the key of the set, from a recipe made real."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from densekd import files
from densekd.config import CacheSpec, Recipe
from densekd.data.augment import AugmentSpec
from densekd.data.base import Sample, SegmentationSet
from densekd.data.keyed import keyed_random
from densekd.data.specs import ScenesDataSpec
from densekd.data.stored import image_size
from densekd.data.transforms import TrainTransform
from densekd.runs.asked_teacher import require_teacher, teacher_input
from densekd.runs.assemble import Parts
from densekd.teacher_cache import CacheKey

Shapes = Mapping[str, tuple[int, int, int]]
"""Channels, height and width of each tap's map."""

_SHOWN = 16
_PROBES = 4
_PROBE_SIZE = (48, 64)


def key_of(parts: Parts, spec: CacheSpec, sha256: str, shapes: Shapes, precision: str) -> CacheKey:
    """The key of the set that holds these maps for the recipe's data.

    Not in it is what changes a map by rounding alone: device, threads, memory layout, batch size.

    Args:
        parts: data, recipe and teacher input of the run.
        spec: views, seed and encoding.
        sha256: digest of the teacher's weights.
        shapes: the taps that are stored.
        precision: number format that the teacher runs in.
    """
    recipe = parts.recipe
    return CacheKey(
        {
            "teacher": _teacher(recipe, sha256, precision),
            "taps": {tap: list(shape) for tap, shape in sorted(shapes.items())},
            "data": {
                **_images(parts),
                "augment": recipe.data.augment.model_dump(mode="json"),
                "augmented_test_image": probe(recipe.data.augment),
            },
            "views": spec.views,
            "seed": spec.seed,
            "encoding": spec.encoding,
        }
    )


def _teacher(recipe: Recipe, sha256: str, precision: str) -> dict[str, Any]:
    spec, own = require_teacher(recipe), teacher_input(recipe)
    file, colon, function = spec.model.rpartition(":")
    code = None
    model = spec.model
    if colon and file.endswith(".py"):
        model, code = f"{Path(file).name}:{function}", files.sha256_file(Path(file))[:_SHOWN]
    seen = None if own is None else {"mean": list(own.mean), "std": list(own.std), "size": own.size}
    return {
        "sha256": sha256,
        "model": model,
        "code": code,
        "options": spec.model_dump(mode="json")["options"],
        "input": seen,
        "precision": precision,
    }


def _images(parts: Parts) -> dict[str, Any]:
    """Names of the images in their order, and what tells that a file was changed: its size."""
    data = parts.recipe.data
    found: dict[str, Any] = {"name": data.name, "train": _listed(parts.data.train)}
    if isinstance(data, ScenesDataSpec):
        found |= {"seed": data.seed, "size": list(data.size)}
    if parts.data.unlabelled is not None:
        found["unlabelled"] = _listed(parts.data.unlabelled)
    return found


def _listed(which: SegmentationSet) -> dict[str, Any]:
    names, sizes = hashlib.sha256(), hashlib.sha256()
    for index in range(len(which)):
        names.update(which.name_of(index).encode("utf-8", "surrogatepass") + b"\0")
        sizes.update(f"{image_size(which, index)}\n".encode())
    return {"images": len(which), "names": names.hexdigest()[:_SHOWN], "file_sizes": sizes.hexdigest()[:_SHOWN]}


def probe(spec: AugmentSpec) -> str:
    """What the installed torch and torchvision make of a test image: other versions may give other pixels.

    The digest of a few augmented views of one picture. A version that gives the same pixels gives the same digest, so
    that an update alone makes no set stale.
    """
    height, width = _PROBE_SIZE
    steps = torch.arange(3 * height * width)
    image = ((37 * steps + 11 * (steps // width)) % 251).to(torch.uint8).view(3, height, width)
    label = (steps[: height * width] // 7 % 3).view(height, width)
    transform, digest = TrainTransform(spec, 255), hashlib.sha256()
    for view in range(_PROBES):
        with keyed_random(0, "probe", view):
            digest.update(transform(Sample(image, label)).image.numpy().tobytes())
    return digest.hexdigest()[:_SHOWN]
