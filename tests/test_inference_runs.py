"""Whole runs with a network that takes windows of one size alone: nothing looks at an image in another way."""

from __future__ import annotations

from pathlib import Path

import pytest

import runkit
from densekd.predict import predict
from densekd.runs import distill, train
from densekd.runs.score import score_run

NETWORK = """
from torch import Tensor, nn


class Picky(nn.Module):
    def __init__(self, num_classes: int, width: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, num_classes, 1))

    def forward(self, images: Tensor) -> Tensor:
        if images.shape[2:] != (8, 12):
            raise ValueError(f"takes 8x12 alone, got {tuple(images.shape)}")
        return self.layers(images)


def build(num_classes: int, width: int = 4) -> nn.Module:
    return Picky(num_classes, width)
"""
WINDOWS = {"mode": "slide", "crop": [8, 12], "stride": [5, 7], "flip": True}


@pytest.mark.slow
def test_every_score_of_a_distillation_is_taken_in_windows(tmp_path: Path) -> None:
    root = runkit.make_place(tmp_path / "data", train=4, val=2)
    (root / "net.py").write_text(NETWORK)
    network = {"model": f"{root}/net.py:build"}
    plain = runkit.recipe(root, student=network, evaluation=WINDOWS)
    plain["data"]["augment"]["crop"] = [8, 12]
    plain["train"] |= {"steps": 20, "evaluate_every": 10}
    teacher = train({**plain, "student": {**network, "options": {"width": 8}}}, out=tmp_path / "teacher")
    recipe = {
        **plain,
        "teacher": {**network, "options": {"width": 8}, "checkpoint": str(teacher.path)},
        "terms": [{"method": "channelwise", "student": "output", "teacher": "output"}],
        "preflight": {"teacher_images": 2, "on_problem": "warn"},
    }
    run = distill(recipe, out=tmp_path / "run")
    assert run.record.evaluation == "windows of 8x12 every 5x7, mirrored too"
    assert run.record.teacher.miou == teacher.record.best.miou
    assert score_run(run).miou == run.record.best.miou
    made = predict(run, [root / "val" / "images"], tmp_path / "out", overlays=False)
    assert [(one.height, one.width, one.overlay) for one in made] == [(16, 24, None)] * 2
    with pytest.raises(ValueError, match=r"takes 8x12 alone, got \(1, 3, 16, 24\)"):
        predict(
            run,
            [root / "val" / "images"],
            tmp_path / "whole",
            overrides={"evaluation": {"mode": "whole", "crop": None, "stride": None}},
        )
