"""Made-up files in the layout of Cityscapes, and the score that its own tools give them."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
from cityscapesscripts.evaluation import evalPixelLevelSemanticLabeling as Script
from cityscapesscripts.helpers.labels import labels
from PIL import Image

EVALUATED = sorted((label for label in labels if 0 <= label.trainId < 255), key=lambda label: label.trainId)
NAMES = tuple(label.name for label in EVALUATED)
IDS = np.array([label.id for label in EVALUATED])


def train_ids(label_ids: np.ndarray) -> np.ndarray:
    """labelIds as ids of the 19 classes, void 255."""
    table = np.full(256, 255, np.uint8)
    table[IDS] = np.arange(len(IDS))
    return table[label_ids]


def write_truth(root: Path, names: list[str], label_ids: list[np.ndarray]) -> list[Path]:
    """`gtFine/val/CITY/CITY_SSSSSS_FFFFFF_gtFine_labelIds.png` under `root`."""
    made = []
    for name, ids in zip(names, label_ids, strict=True):
        path = root / "gtFine" / "val" / name.split("_")[0] / f"{name}_gtFine_labelIds.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(ids.astype(np.uint8)).save(path)
        made.append(path)
    return made


def official_scores(truth: list[Path], results: Path) -> dict[str, Any]:
    """What the authors' script says of the files under `results`, which it finds by its own rule."""
    args = SimpleNamespace(**vars(Script.args))
    args.evalInstLevelScore = False  # that needs instanceIds
    args.evalPixelAccuracy = False  # that needs a function that numpy no longer has
    args.JSONOutput, args.quiet = False, True
    args.predictionPath, args.predictionWalk = str(results), None
    found = [Script.getPrediction(args, str(path)) for path in truth]
    return Script.evaluateImgLists(found, [str(path) for path in truth], args)
