"""What a network does on its first real batch is known before a run writes anything."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from densekd.config import load_recipe
from densekd.errors import ModelError, NonFiniteError, ResourceError
from densekd.runs import distill, train
from densekd.runs.assemble import assemble
from densekd.runs.attempt import attempt
from densekd.runs.execute import Quiet, dry_run
from densekd.runs.rehearsal import rehearse
from runkit import distillation, make_place, recipe

NETWORKS = """
import torch
from torch import nn


class Wrap(nn.Module):
    def __init__(self, num_classes, change, channels=3):
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(channels, 6, 3, padding=1), nn.ReLU(), nn.Conv2d(6, num_classes, 1))
        self.change = change

    def forward(self, images):
        return self.change(self.body(images), images, self.training)


def two(num_classes):
    return Wrap(2, lambda map, *_: map)


def vector(num_classes):
    return Wrap(num_classes, lambda map, *_: map.mean((2, 3)))


def last(num_classes):
    return Wrap(num_classes, lambda map, *_: map.permute(0, 2, 3, 1))


def half(num_classes):
    return Wrap(num_classes, lambda map, *_: map[:1])


def ids(num_classes):
    return Wrap(num_classes, lambda map, *_: map.long())


def named(num_classes):
    return Wrap(num_classes, lambda map, *_: {"segmentation": map})


def gray(num_classes):
    return Wrap(num_classes, lambda map, *_: map, channels=1)


def detached(num_classes):
    return Wrap(num_classes, lambda map, *_: map.detach())


def frozen(num_classes):
    return Wrap(num_classes, lambda map, *_: map).requires_grad_(False)


def poisoned(num_classes):
    return Wrap(num_classes, lambda map, *_: map * float("nan"))


def backwards(num_classes):
    class Broken(torch.autograd.Function):
        @staticmethod
        def forward(ctx, x):
            return x.clone()

        @staticmethod
        def backward(ctx, g):
            raise RuntimeError("no way back")

    return Wrap(num_classes, lambda map, *_: Broken.apply(map))


def one_size(num_classes):
    def change(map, images, training):
        if images.shape[2:] != (16, 16):
            raise ValueError("made for 16x16")
        return map

    return Wrap(num_classes, change)


def only_training(num_classes):
    return Wrap(num_classes, lambda map, images, training: map if training else map[:, :1])


def first_alone(num_classes):
    return Wrap(num_classes, lambda map, images, training: map if training else map[:1])


def squeezed(num_classes):
    return Wrap(num_classes, lambda map, images, training: map if training else map.squeeze(0))


def pooled(num_classes):
    return nn.Sequential(
        nn.Conv2d(3, 6, 1), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(6), nn.Upsample((16, 24)),
        nn.Conv2d(6, num_classes, 1),
    )


def picky_teacher(num_classes):
    def change(map, images, training):
        if images.shape[2:] != (32, 48):
            raise ValueError("made for 32x48")
        return map

    return Wrap(num_classes, change)
"""

EXPECTED = r"\(3, 3, h, w\), a map for each of the 3 classes"
GIVEN = r"it gets RGB images \(N, 3, H, W\) and must give \(N, 3, h, w\), a map for each of the 3 classes"
CASES = {
    "two": (ModelError, rf"gives a tensor of shape \(3, 2, 16, 24\) and type torch\.float32; expected {EXPECTED}"),
    "vector": (ModelError, rf"gives a tensor of shape \(3, 3\) .*; expected {EXPECTED}"),
    "last": (ModelError, rf"gives a tensor of shape \(3, 16, 24, 3\) .*; expected {EXPECTED}"),
    "half": (ModelError, rf"gives a tensor of shape \(1, 3, 16, 24\) .*; expected {EXPECTED}"),
    "ids": (ModelError, rf"gives a tensor .* type torch\.int64; expected {EXPECTED}"),
    "named": (ModelError, rf"gives dict with keys 'segmentation'; expected {EXPECTED}"),
    "gray": (
        ModelError,
        rf"fails in training mode on images \(3, 3, 16, 24\): .*RuntimeError: .*to have 1 channels.*; {GIVEN}",
    ),
    "detached": (ModelError, "the loss reaches none of its parameters"),
    "frozen": (ModelError, "the loss reaches none of its parameters"),
    "poisoned": (NonFiniteError, "not finite on the first training batch, before any step: cross_entropy = nan"),
    "backwards": (ModelError, r"fails in the backward pass on images \(3, 3, 16, 24\): .*RuntimeError: no way back"),
    "only_training": (
        ModelError,
        r"fails in evaluation mode on an image \(1, 3, 16, 24\): .*got \(1, 1, 16, 24\)",
    ),
}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_place(tmp_path_factory.mktemp("data"))
    (root / "own.py").write_text(NETWORKS)
    train(
        recipe(root, student={"model": f"{root}/nets.py:teacher"}),
        out=root / "teacher",
        train__steps=1,
        train__evaluate_every=None,
    )
    return root


@pytest.mark.parametrize("name", CASES)
def test_a_network_that_cannot_be_trained_leaves_no_folder(place: Path, tmp_path: Path, name: str) -> None:
    error, told = CASES[name]
    asked = recipe(place, student={"model": f"{place}/own.py:{name}"})
    with pytest.raises(error, match=rf"^student \({place}/own\.py:{name}\):? {told}"):
        train(asked, out=tmp_path / "run")
    with pytest.raises(error, match=told):
        dry_run("train", load_recipe(asked), tmp_path / "run", resume=False, force=False, progress=Quiet())
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["two", "gray"])
def test_a_student_under_a_teacher(place: Path, tmp_path: Path, name: str) -> None:
    asked = distillation(place, place / "teacher") | {"student": {"model": f"{place}/own.py:{name}"}}
    with pytest.raises(ModelError, match=CASES[name][1]):
        distill(asked, out=tmp_path / "run")
    with pytest.raises(ModelError, match=CASES[name][1]):
        dry_run("distill", load_recipe(asked), tmp_path / "run", resume=False, force=False, progress=Quiet())
    assert list(tmp_path.iterdir()) == []


def test_a_batch_of_one_names_the_key(place: Path, tmp_path: Path) -> None:
    asked = recipe(place, student={"model": f"{place}/own.py:pooled"})
    with pytest.raises(ModelError, match=r"fails in training mode .* Use train\.batch_size=2 or more.*; it gets"):
        train(asked, out=tmp_path / "run", train__batch_size=1)
    assert train(asked, out=tmp_path / "run", train__steps=1).record.status == "done"


def test_images_of_the_validation_set_may_be_larger(place: Path, tmp_path: Path) -> None:
    asked = recipe(place, student={"model": f"{place}/own.py:one_size"})
    told = (
        r"fails in evaluation mode on an image \(1, 3, 16, 24\): \S+own\.py:\d+: ValueError: made for 16x16 .*; "
        r".*data\.augment\.size"
    )
    with pytest.raises(ModelError, match=told):
        train(asked, out=tmp_path / "run", data__augment__crop=[16, 16])


FIRST_ALONE = (
    r"fails in evaluation mode on images \(2, 3, 16, 24\): the network gives \(1, 3, 16, 24\) for 2 images; expected a "
    r"map for each; it gets"
)


def test_a_batch_in_evaluation_mode_is_tried_too(place: Path, tmp_path: Path) -> None:
    asked = recipe(place, student={"model": f"{place}/own.py:first_alone"})
    with pytest.raises(ModelError, match=FIRST_ALONE):
        train(asked, out=tmp_path / "run")
    assert list(tmp_path.iterdir()) == []
    # one image at a time it can do
    assert train(asked, out=tmp_path / "run", train__evaluate_batch_size=1, train__steps=1).record.best is not None
    with pytest.raises(ModelError, match=r"on an image \(1, 3, 16, 24\): the network gives \(3, 16, 24\) for 1 images"):
        train(recipe(place, student={"model": f"{place}/own.py:squeezed"}), out=tmp_path / "other")


def test_binary_expects_one_logit(place: Path, tmp_path: Path) -> None:
    root = make_place(tmp_path / "two", classes=2)
    asked = recipe(root, task={"binary": True}, student={"model": f"{place}/own.py:two"})
    asked["data"]["classes"] = ["back", "front"]
    with pytest.raises(ModelError, match=r"\(3, 2, 16, 24\) .*expected \(3, 1, h, w\), one logit for two classes"):
        train(asked, out=tmp_path / "run")


def test_a_missing_auxiliary_map_names_student_and_key(place: Path, tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"^student \(\S+\): task\.auxiliary: the network's output has no auxiliary"):
        train(recipe(place, task={"auxiliary": 0.4}), out=tmp_path / "run")


def test_everything_is_left_as_it_was(place: Path) -> None:
    parts = assemble(load_recipe(recipe(place)))
    student = parts.student
    student.train()
    student[1].eval()
    first = next(student.parameters())
    first.grad = torch.ones_like(first)
    modes = [module.training for module in student.modules()]
    before = {name: value.clone() for name, value in student.state_dict().items()}
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].tolist()
    rehearse(parts)
    assert all(torch.equal(before[name], value) for name, value in student.state_dict().items())
    assert [module.training for module in student.modules()] == modes
    assert torch.equal(first.grad, torch.ones_like(first))
    assert all(parameter.grad is None for parameter in list(student.parameters())[1:])
    assert torch.equal(states[0], torch.get_rng_state())
    assert states[1:] == (random.getstate(), np.random.get_state()[1].tolist())


class TestTeacher:
    def asked(self, place: Path, **teacher: Any) -> dict[str, Any]:
        terms = [{"method": "channelwise", "student": "output", "teacher": "output"}]
        model = {"model": f"{place}/own.py:picky_teacher", "untrained": True, **teacher}
        return distillation(place, place) | {"teacher": model, "terms": terms}

    def test_its_failure_names_it(self, place: Path, tmp_path: Path) -> None:
        told = (
            r"^teacher \(\S+:picky_teacher\) fails in evaluation mode on images \(2, 3, 16, 24\): \S+own\.py:\d+: "
            r"ValueError: made for 32x48 .*; .*teacher\.size"
        )
        with pytest.raises(ModelError, match=told):
            distill(self.asked(place), out=tmp_path / "run")
        recipe = load_recipe(self.asked(place))
        with pytest.raises(ModelError, match=told):
            dry_run("distill", recipe, tmp_path / "run", resume=False, force=False, progress=Quiet())
        assert list(tmp_path.iterdir()) == []

    def test_one_that_takes_its_own_size_alone(self, place: Path, tmp_path: Path) -> None:
        run = distill(self.asked(place, size=[32, 48]), out=tmp_path / "run", train__steps=1)
        # two multiplications and additions for each weight and pixel: of the teacher's size, not of the student's
        assert run.record.teacher.flops == 2 * 32 * 48 * (6 * 27 + 3 * 6)


@pytest.mark.parametrize("error", [MemoryError(), RuntimeError("DefaultCPUAllocator: can't allocate memory")])
def test_want_of_memory_is_no_fault_of_the_network(error: Exception) -> None:
    def run() -> None:
        raise error

    with pytest.raises(ResourceError, match=r"^out of memory"):
        attempt(run, "student (x)", "in training mode", "it must")


def test_an_error_without_the_users_own_code_keeps_its_words() -> None:
    def run() -> None:
        raise RuntimeError("several\n   lines of it.")

    with pytest.raises(ModelError, match=r"^student \(x\) fails here: RuntimeError: several lines of it; it must$"):
        attempt(run, "student (x)", "here", "it must")
