"""A run that was never trained, with the student that a test gives it, for tests of exports."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from densekd import files
from densekd.config import dump_recipe, load_recipe, recipe_digest
from densekd.models.build import build_model
from densekd.models.specs import ModelSpec
from densekd.records import RunRecord, dump
from densekd.records.run import BestScores
from densekd.runs import Run

NAMES = ("sky", "building", "road", "pavement", "tree", "car", "person", "pole", "sign", "rider")
NETWORKS = """
import torch
from torch import nn
from torch.nn import functional as F


class Strided(nn.Module):
    '''Half the size, rounded up: at odd sizes twice of it is not the size of the image.'''

    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, stride=2, padding=1)
        self.head = nn.Conv2d(8, num_classes, 1)

    def forward(self, x):
        return F.interpolate(self.head(self.stem(x).relu()), scale_factor=2.0, mode="bilinear")


class Pooled(nn.Module):
    '''As the pyramid of PSPNet: another result at another size, if the places of pooling are fixed.'''

    def __init__(self, num_classes):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.pool = nn.AdaptiveAvgPool2d(2)
        self.head = nn.Conv2d(8, num_classes, 1)

    def forward(self, x):
        x = self.stem(x).relu()
        return self.head(x + F.interpolate(self.pool(x), x.shape[2:], mode="bilinear"))


class OneSize(nn.Module):
    '''A position for each place.'''

    def __init__(self, num_classes):
        super().__init__()
        self.places = nn.Parameter(torch.randn(1, 8, 32, 48))
        self.stem = nn.Conv2d(3, 8, 1)
        self.head = nn.Conv2d(8, num_classes, 1)

    def forward(self, x):
        return self.head(self.stem(x) + self.places)


class Wasteful(nn.Module):
    '''Most of its weights are never used, or their result is thrown away.'''

    def __init__(self, num_classes):
        super().__init__()
        self.never, self.thrown_away = nn.Conv2d(3, 256, 7), nn.Conv2d(3, 256, 7)
        self.head = nn.Conv2d(3, num_classes, 1)

    def forward(self, x):
        self.thrown_away(x)
        return self.head(x)


def wasteful(num_classes):
    return Wasteful(num_classes)


def strided(num_classes):
    return Strided(num_classes)


def pooled(num_classes):
    return Pooled(num_classes)


def one_size(num_classes):
    return OneSize(num_classes)
"""


def shaken(network: nn.Module) -> nn.Module:
    """Weights and statistics of a network that has learned something, drawn: classes differ from pixel to pixel."""
    generator = torch.Generator().manual_seed(0)
    for name, value in network.state_dict().items():
        if value.is_floating_point() and value.ndim < 2:
            drawn = torch.rand(value.shape, generator=generator)
            value.copy_(drawn + 0.5 if name.endswith(("running_var", "weight")) else drawn - 0.5)
    return network


def make_run(
    folder: Path, model: str, *, binary: bool = False, size: tuple[int, int] = (32, 48), **options: Any
) -> Run:
    """A finished run on drawn scenes (binary: two of their classes by name alone) with an untrained student.

    Args:
        model: reference; `nets:NAME` for a network of `NETWORKS`.
    """
    folder.mkdir(parents=True)
    if model.startswith("nets:"):
        (folder / "nets.py").write_text(NETWORKS)
        model = f"{folder}/nets.py:{model.removeprefix('nets:')}"
    names = NAMES[:2] if binary else NAMES
    recipe = load_recipe(
        {
            "name": folder.name,
            "task": {"binary": binary},
            "data": {"name": "scenes", "train_count": 12, "val_count": 6, "size": list(size)},
            "student": {"model": model, "options": options},
            "train": {"steps": 1, "batch_size": 2},
            "runtime": {"device": "cpu"},
        }
    )
    torch.manual_seed(0)
    network = shaken(build_model(ModelSpec(model=model, options=options), 1 if binary else len(names), notices=[]))
    files.write_text(folder / "recipe.yaml", dump_recipe(recipe))
    files.write_tensors(folder / "student.safetensors", network.state_dict())
    best = BestScores(miou=0.5, pixel_accuracy=0.5, iou=dict.fromkeys(names, 0.5), images=6, step=1)
    record = RunRecord(
        status="done",
        method="channelwise",
        seed=3,
        split="val",
        steps=1,
        epochs=1.0,
        final=best,
        best=best,
        recipe_sha256=recipe_digest(recipe),
    )
    files.write_json(folder / "record.json", dump(record))
    return Run.load(folder, trust=True)
