"""Training images that a network cannot take are refused before anything begins."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from densekd.config import load_recipe
from densekd.errors import ConfigError
from densekd.runs import distill, train
from densekd.runs.assemble import assemble
from densekd.runs.execute import Quiet

SMALL = {"encoder_name": "tu-test_resnet", "encoder_depth": 3, "psp_out_channels": 16}
TEACHER = {"model": "smp:FPN", "options": {"encoder_name": "tu-test_resnet"}, "untrained": True}


class Watching(Quiet):
    def step(self, taken: int, steps: int, result: Any) -> None:
        raise AssertionError("training began")


def recipe(stored: list[int], **augment: Any) -> dict[str, Any]:
    return {
        "data": {"name": "scenes", "train_count": 2, "val_count": 2, "size": stored, "augment": augment},
        "student": {"model": "smp:PSPNet", "options": SMALL},
        "train": {"steps": 1, "batch_size": 2},
        "runtime": {"device": "cpu", "threads": 1},
    }


@pytest.mark.parametrize(
    ("stored", "augment", "told"),
    [
        ([64, 64], {"crop": [60, 64]}, r"data\.augment\.crop: \[60,64\].*student.*multiples of 8.*crop=\[64,64\]"),
        ([64, 64], {"crop": [33, 33]}, r"data\.augment\.crop: \[33,33\].*student.*multiples of 8.*crop=\[40,40\]"),
        ([64, 64], {"size": [66, 50]}, r"data\.augment\.size: \[66,50\].*data\.augment\.size=\[72,56\]"),
        ([64, 64], {"size": [64, 64], "crop": [32, 31]}, r"data\.augment\.crop: \[32,31\].*crop=\[32,32\]"),
        ([50, 70], {}, r"data\.augment\.crop: is not set and the images are stored as \[50,70\].*crop=\[56,72\]"),
    ],
)
def test_the_student(tmp_path: Path, stored: list[int], augment: dict[str, Any], told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        train(recipe(stored, **augment), out=tmp_path / "run", progress=Watching())
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("size", "told"),
    [
        (None, r"data\.augment\.crop: \[40,64\].*the teacher takes.*multiples of 32.*crop=\[64,64\]"),
        ([64, 80], r"teacher\.size: \[64,80\].*teacher\.size=\[64,96\]"),
    ],
)
def test_the_teacher(tmp_path: Path, size: list[int] | None, told: str) -> None:
    asked = recipe([64, 64], crop=[40, 64]) | {"teacher": {**TEACHER, "size": size}, "terms": [{}]}
    if size is not None:
        asked["teacher"] |= {"mean": [0.5, 0.5, 0.5], "std": [0.5, 0.5, 0.5]}
    with pytest.raises(ConfigError, match=told):
        distill(asked, out=tmp_path / "run", progress=Watching())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_teacher_with_a_size_of_its_own_never_sees_the_students(tmp_path: Path) -> None:
    asked = recipe([64, 64], crop=[40, 64]) | {"teacher": {**TEACHER, "size": [64, 64]}, "terms": [{}]}
    asked["preflight"] = {"teacher_images": 2, "on_problem": "warn"}
    assert distill(asked, out=tmp_path / "run").record.status == "done"


def test_what_fits_and_what_is_only_evaluated() -> None:
    assemble(load_recipe(recipe([50, 70], size=[50, 70], crop=[32, 40])))
    assemble(load_recipe(recipe([50, 70])), training=False)
    any_size = recipe([50, 70]) | {"student": {"model": "smp:Unet", "options": {"encoder_name": "tu-test_resnet"}}}
    assemble(load_recipe(any_size))
