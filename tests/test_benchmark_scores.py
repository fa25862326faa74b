"""Our mIoU on the same predictions is that of the benchmarks' own tools."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import cityskit
from densekd.metrics import ConfusionMeter


def made_up(seed: int, sizes: list[tuple[int, int]], absent: set[int]) -> tuple[list[np.ndarray], list[np.ndarray]]:
    """labelIds of all kinds but some, and ids of classes that are right for two thirds of the pixels."""
    draw = np.random.default_rng(seed)
    there = np.array([number for number in range(34) if number not in absent])
    truth = [draw.choice(there, size) for size in sizes]
    guesses = []
    for label in truth:
        right = cityskit.train_ids(label)
        wrong = draw.integers(0, 15, label.shape)  # four classes are predicted only where they are true
        guesses.append(np.where((right < 255) & (draw.random(label.shape) < 2 / 3), right, wrong))
    return truth, guesses


@pytest.mark.parametrize(
    ("seed", "absent", "without"),
    [(0, set(), 0), (1, {7, 33}, 1), (2, {28, 31, 32, 33, 0, 3}, 4), (3, set(range(12, 34)), 4)],
)
def test_cityscapes_against_its_own_script(tmp_path: Path, seed: int, absent: set[int], without: int) -> None:
    names = ["aachen_000000_000019", "bad-honnef_000001_000019", "zurich_000121_000019"]
    truth, guesses = made_up(seed, [(24, 48), (24, 48), (13, 7)], absent)
    truth[2][:] = 3  # one image is void alone
    files = cityskit.write_truth(tmp_path, names, truth)
    meter = ConfusionMeter(19, 255)
    for name, guess, path in zip(names, guesses, files, strict=True):
        (tmp_path / "results").mkdir(exist_ok=True)
        Image.fromarray(cityskit.IDS[guess].astype(np.uint8)).save(tmp_path / "results" / f"{name}_pred.png")
        label = cityskit.train_ids(np.asarray(Image.open(path)))
        meter.update(torch.from_numpy(guess.astype(np.int64)), torch.from_numpy(label.astype(np.int64)))
    ours = meter.scores(cityskit.NAMES)
    theirs = cityskit.official_scores(files, tmp_path / "results")
    assert ours["miou"] == pytest.approx(theirs["averageScoreClasses"], abs=1e-6)
    for name in cityskit.NAMES:
        iou = theirs["classScores"][name]
        assert ours["iou"][name] == (None if math.isnan(iou) else pytest.approx(iou, abs=1e-6))
    assert list(ours["iou"].values()).count(None) == without


@pytest.mark.parametrize(("classes", "absent"), [(21, ()), (150, (3, 77, 149)), (171, (80,)), (11, (0,))])
def test_the_others_against_torchmetrics(classes: int, absent: tuple[int, ...]) -> None:
    from torchmetrics import JaccardIndex

    draw = torch.Generator().manual_seed(classes)
    meter = ConfusionMeter(classes, 255)
    each, mean = (
        JaccardIndex("multiclass", num_classes=classes, ignore_index=255, average=average)
        for average in ("none", "macro")
    )
    there = torch.tensor([number for number in range(classes) if number not in absent])
    for size in ((40, 31), (17, 60), (1, 1)):
        label = there[torch.randint(0, len(there), size, generator=draw)]
        guess = torch.where(
            torch.rand(size, generator=draw) < 0.5, label, there[torch.randint(0, len(there), size, generator=draw)]
        )
        label[torch.rand(size, generator=draw) < 0.2] = 255
        meter.update(guess, label)
        for theirs in (each, mean):
            theirs.update(guess[None], label[None])
    ours = meter.scores([str(number) for number in range(classes)])
    assert ours["miou"] == pytest.approx(mean.compute().item(), abs=1e-6)
    found = list(ours["iou"].values())
    assert [number for number, iou in enumerate(found) if iou is None] == list(absent)
    assert [iou or 0.0 for iou in found] == pytest.approx(each.compute().nan_to_num().tolist(), abs=1e-6)
