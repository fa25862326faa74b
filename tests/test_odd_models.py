"""Networks that cannot be distilled as they are: each is an error or a notice in words."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from densekd import Distiller, Term
from densekd.errors import DensekdError, ModelError, TapError
from densekd.losses import ChannelWise

IMAGES = torch.rand(2, 3, 8, 8, generator=torch.Generator().manual_seed(0))


def network(width: int = 4) -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 5, 1))


class Odd(nn.Module):
    """Returns something else than its map."""

    def __init__(self, change: Callable[[Tensor], Any]) -> None:
        super().__init__()
        self.body, self.change = network(), change

    def forward(self, images: Tensor) -> Any:
        return self.change(self.body(images))


def distiller(student: nn.Module, teacher: nn.Module, tap: str = "0") -> Distiller:
    return Distiller(student, teacher, [Term(ChannelWise(), student=tap, teacher=tap)], IMAGES)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (lambda _: None, "must be a tensor, .*; got an object of type NoneType"),
        (lambda y: {"segmentation": y}, "got dict with keys 'segmentation'; tap one item as 'output"),
        (lambda y: [[y]], "got list of 1"),
        (lambda _: [], "got list of 0"),
        (lambda y: y.to(torch.complex64), "expected a floating-point map, got .*complex64"),
        (lambda y: y[:, :0], r"a map of nothing, shape \(2, 0, 8, 8\)"),
        (lambda y: y[:1], "expected a map of 2 images along the first axis"),
        (lambda y: y.mean((1, 2, 3)), "shape"),
    ],
)
@pytest.mark.parametrize("who", ["student", "teacher"])
def test_an_output_that_is_no_map(change: Callable[[Tensor], Any], words: str, who: str) -> None:
    pair = (Odd(change), network()) if who == "student" else (network(), Odd(change))
    with pytest.raises(DensekdError, match=words):
        distiller(*pair, tap="output")


def test_ids_of_classes_teach_nothing() -> None:
    with pytest.raises(TapError, match=r"expected a floating-point map, got .*int64"):
        distiller(network(), Odd(lambda y: y.argmax(1, keepdim=True)), tap="output")


@pytest.mark.parametrize("size", [4, 24])
def test_maps_of_another_size_are_resized_and_it_is_said(size: int) -> None:
    found = distiller(Odd(lambda y: nn.functional.interpolate(y, size)), network(), tap="output")
    assert any(f"resized from {size}x{size} to the teacher's 8x8" in line for line in found.notices)
    assert found(IMAGES).loss.isfinite()


@pytest.mark.parametrize("who", ["student", "teacher"])
@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite(who: str, value: float) -> None:
    pair = {"student": network(), "teacher": network()}
    with torch.no_grad():
        pair[who][2].weight[0, 0] = value
    with pytest.raises(ModelError, match=rf"the {who}'s '2.weight' holds 1 values of 20 that are not finite"):
        distiller(pair["student"], pair["teacher"])


def test_infinities_in_a_buffer_may_be_a_mask_and_nan_is_none() -> None:
    student = network()
    student.register_buffer("mask", torch.full((3,), float("-inf")))
    distiller(student, network()).close()
    student.register_buffer("mask", torch.full((3,), float("nan")))
    with pytest.raises(ModelError, match="'mask' holds 3 values of 3"):
        distiller(student, network())


def test_a_teacher_that_is_the_student() -> None:
    student = network()
    with pytest.raises(ModelError, match="same object"):
        distiller(student, student)
    twin = distiller(student, copy.deepcopy(student))
    assert any("the same weights: there is nothing to learn" in line for line in twin.notices)
    other = distiller(network(), network())
    assert not any("same weights" in line for line in other.notices)


def test_a_student_larger_than_its_teacher() -> None:
    assert not any("more parameters" in line for line in distiller(network(4), network(16)).notices)
    assert distiller(network(16), network(4)).notices[0] == (
        "the student has more parameters than the teacher (533 and 137): are they exchanged?"
    )


def test_parameters_that_two_layers_share_are_trained_once() -> None:
    student = nn.Sequential(nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1), nn.Conv2d(4, 4, 1))
    student[2].weight = student[1].weight
    found = distiller(student, network())
    assert len({id(p) for p in found.parameters()}) == len(list(found.parameters())) == 5


@pytest.mark.parametrize("who", ["student", "teacher"])
def test_a_tapped_module_that_was_replaced_is_told_at_the_next_step(who: str) -> None:
    pair = {"student": network(), "teacher": network()}
    found = distiller(pair["student"], pair["teacher"])
    pair[who][0] = nn.Conv2d(3, 4, 3, padding=1)
    with pytest.raises(TapError, match=f"tap '0' of the {who} was not called in this forward pass"):
        found(IMAGES)
