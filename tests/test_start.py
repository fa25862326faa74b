from __future__ import annotations

from typing import Any

import pytest

from densekd.config import load_recipe
from densekd.runs.start import random_start

FILE = "student.encoder_checkpoint.path=FILE"
SAID = f"student: all weights start at random; ImageNet weights: {FILE}, or "
FOLDER = {"name": "folder", "root": "x"}


def said(model: str, data: dict[str, Any] | None = None, **student: Any) -> list[str]:
    raw = {"data": data or FOLDER, "student": {"model": model, **student}, "train": {"steps": 1}}
    return random_start(load_recipe(raw))


@pytest.mark.parametrize(
    ("model", "options", "key"),
    [
        ("smp:PSPNet", {"encoder_name": "resnet18"}, "student.options.encoder_weights=imagenet"),
        ("smp:FPN", {"encoder_weights": None}, "student.options.encoder_weights=imagenet"),
        ("smp:PSPNet", {"encoder_name": "tu-lcnet_050"}, "student.options.encoder_weights=true"),
        ("torchvision:lraspp_mobilenet_v3_large", {}, "student.options.weights_backbone=DEFAULT"),
        ("transformers:SegformerForSemanticSegmentation", {}, "student.model=transformers:OWNER/NAME"),
    ],
)
def test_a_random_start_is_said_with_the_keys(model: str, options: dict[str, Any], key: str) -> None:
    assert said(model, options=options) == [SAID + key]


@pytest.mark.parametrize(
    ("model", "student"),
    [
        ("smp:PSPNet", {"checkpoint": "runs/x"}),
        ("smp:PSPNet", {"encoder_checkpoint": "x.pth"}),
        ("smp:PSPNet", {"options": {"encoder_weights": "imagenet"}}),
        ("torchvision:fcn_resnet50", {"options": {"weights": "DEFAULT"}}),
        ("transformers:nvidia/mit-b0", {}),
        ("nets.py:build", {}),
    ],
)
def test_weights_from_somewhere(model: str, student: dict[str, Any]) -> None:
    assert said(model, **student) == []


def test_the_demo_is_learned_from_nothing_on_purpose() -> None:
    assert said("smp:PSPNet", {"name": "scenes"}) == []
    assert random_start(load_recipe("demo")) == []


def test_a_narrow_encoder_has_no_published_weights() -> None:
    assert random_start(load_recipe("camvid", {"data.root": "x"})) == [SAID.removesuffix(", or ")]


def test_the_recipe_of_the_camvid_teacher() -> None:
    (line,) = random_start(load_recipe("camvid-teacher", {"data.root": "x"}))
    assert line == SAID + "student.options.encoder_weights=imagenet"
