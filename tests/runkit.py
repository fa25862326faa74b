"""A data set of coloured blocks, tiny networks and a short recipe, for tests of whole runs."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from densekd.runs.progress import Quiet

NAMES = ("sky", "road", "tree")
# What `auto` takes hangs on the time that these networks need, which is as good as none.
EXACT = {"dtype": "float32"}
COLORS = np.array([[90, 140, 215], [100, 96, 100], [40, 115, 40]])
NETWORKS = """
from torch import nn


def student(num_classes: int, width: int = 6, dropout: float = 0.2) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Dropout2d(dropout),
        nn.Conv2d(width, num_classes, 1),
    )


def teacher(num_classes: int, width: int = 10) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, num_classes, 1)
    )


def no_norm(num_classes: int, width: int = 6) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, num_classes, 1))
"""


class Heard(Quiet):
    """Keeps the lines that were said."""

    def __init__(self) -> None:
        self.lines: list[str] = []

    def said(self, line: str) -> None:
        self.lines.append(line)


def make_place(root: Path, train: int = 10, val: int = 4, classes: int = 3) -> Path:
    """Images and masks under `root`, and `root/nets.py`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "nets.py").write_text(NETWORKS)
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            label = generator.integers(0, classes, (2, 3)).repeat(8, 0).repeat(8, 1)
            image = COLORS[label] + generator.normal(0, 12, (*label.shape, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / split / "images" / f"{number}.png")
            Image.fromarray(label.astype(np.uint8)).save(root / split / "masks" / f"{number}.png")
    return root


def recipe(root: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of 6 steps on the data of `make_place`."""
    return {
        "name": "tiny",
        "data": {"name": "folder", "root": str(root), "classes": list(NAMES), "augment": {"scale": [0.8, 1.2]}},
        "student": {"model": f"{root}/nets.py:student"},
        "train": {
            "steps": 6,
            "batch_size": 3,
            "optimizer": {"name": "adamw", "lr": 0.01, "weight_decay": 0.01},
            "evaluate_every": 2,
            "checkpoint_every": 1,
            "ema_decay": 0.7,
        },
        "runtime": {"device": "cpu", "threads": 1},
        # Drawing costs more than these runs.
        "report": {"page": False, "images": 0, "channels": 0},
        **changes,
    }


def distillation(root: Path, teacher: Path, **changes: Any) -> dict[str, Any]:
    """The same under a teacher, on the class maps and, through an adapter, on a feature map."""
    return recipe(
        root,
        teacher={"model": f"{root}/nets.py:teacher", "checkpoint": str(teacher), "engine": EXACT},
        terms=[
            {"method": "channelwise", "student": "output", "teacher": "output"},
            {"method": "channelwise", "student": "2", "teacher": "2", "weight": 1.0, "decay": "linear"},
        ],
        preflight={"teacher_images": 4, "on_problem": "warn"},
        **changes,
    )


def log_without_times(run: Path) -> list[str]:
    """The lines of `log.csv` without the columns that differ between equal runs."""
    rows = [line.split(",") for line in (run / "log.csv").read_text().splitlines()]
    kept = [place for place, name in enumerate(rows[0]) if name not in {"seconds", "data_wait"}]
    return [",".join(row[place] for place in kept) for row in rows]
