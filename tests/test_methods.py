"""What every method must keep, whatever its formula: types, layouts, scale, void, extremes, copies, documents."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor

from densekd.losses import DistillationLoss
from densekd.losses.catalog import METHODS, make_loss

CLASSES = 5
DOCS = Path(__file__).parent.parent / "docs" / "losses"
#: small sizes where the defaults are meant for real maps
SMALL = {"crossimage": {"pool": 1}, "holistic": {"width": 8}}
#: their value on a batch twice as long is another: random masks, or pairs of images
DRAWN = {"masked", "holistic"}
#: equal maps do not give zero: a network stands between them
WITH_NETWORK = {"masked", "holistic"}


def maps(count: int = 2, height: int = 6, width: int = 5, dtype: torch.dtype = torch.float32) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(count * 100 + height)
    student, teacher = (torch.randn(count, CLASSES, height, width, generator=generator) for _ in range(2))
    return student.to(dtype), teacher.to(dtype)


def labels_for(student: Tensor) -> Tensor:
    generator = torch.Generator().manual_seed(7)
    return torch.randint(0, CLASSES, (student.shape[0], *student.shape[2:]), generator=generator)


def bound(name: str, like: Tensor) -> DistillationLoss:
    torch.manual_seed(0)
    loss = make_loss(name, SMALL.get(name, {}))
    loss.bind(like.shape, like.shape, CLASSES)
    return loss.eval()


def value_and_gradient(
    loss: DistillationLoss, student: Tensor, teacher: Tensor, **more: Tensor
) -> tuple[Tensor, Tensor]:
    student = student.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    torch.manual_seed(1)
    value = loss(student, teacher, **{"labels": labels_for(student), **more})
    (gradient,) = torch.autograd.grad(value, student)
    return value.detach(), gradient


@pytest.mark.parametrize("name", METHODS)
class TestEveryMethod:
    def test_a_float32_scalar_that_teaches_the_student_alone(self, name: str) -> None:
        student, teacher = maps()
        teacher.requires_grad_()
        value, gradient = value_and_gradient(bound(name, student), student, teacher)
        assert (value.shape, value.dtype) == ((), torch.float32)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
        assert gradient.abs().sum() > 0
        assert teacher.grad is None

    def test_the_type_of_the_maps_changes_rounding_alone(self, name: str) -> None:
        student, teacher = maps(dtype=torch.bfloat16)
        loss = bound(name, student)
        expected, _ = value_and_gradient(loss, student.float(), teacher.float())
        with torch.autocast("cpu", torch.bfloat16):
            value, gradient = value_and_gradient(loss, student, teacher)
        assert (value.dtype, gradient.dtype) == (torch.float32, torch.bfloat16)
        # a network inside computes in bfloat16 as any other
        assert float(value) == pytest.approx(float(expected), rel=0.05 if name in WITH_NETWORK else 1e-4, abs=1e-6)

    def test_the_layout_in_memory_does_not_matter(self, name: str) -> None:
        student, teacher = maps()
        loss = bound(name, student)
        expected, gradient = value_and_gradient(loss, student, teacher)
        last = [x.contiguous(memory_format=torch.channels_last) for x in (student, teacher)]
        turned = [x.transpose(2, 3).contiguous().transpose(2, 3) for x in (student, teacher)]
        for other in (last, turned):
            value, again = value_and_gradient(loss, *other)
            assert float(value) == pytest.approx(float(expected), rel=1e-5, abs=1e-7)
            torch.testing.assert_close(again, gradient, rtol=1e-4, atol=1e-6)

    def test_a_batch_given_twice_has_the_same_value(self, name: str) -> None:
        if name in DRAWN:
            pytest.skip("draws for every image")
        student, teacher = maps()
        loss = bound(name, student)
        value, _ = value_and_gradient(loss, student, teacher)
        twice = [torch.cat([x, x]) for x in (student, teacher)]
        again, _ = value_and_gradient(loss, *twice, labels=torch.cat([labels_for(student)] * 2))
        assert float(again) == pytest.approx(float(value), rel=1e-5)

    def test_one_image_of_odd_size(self, name: str) -> None:
        student, teacher = maps(count=1, height=7, width=3)
        value, gradient = value_and_gradient(bound(name, student), student, teacher)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()

    @pytest.mark.parametrize("scale", [1e4, 1e-4])
    def test_extreme_maps_stay_finite(self, name: str, scale: float) -> None:
        student, teacher = (scale * x for x in maps())
        value, gradient = value_and_gradient(bound(name, student), student, teacher)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()

    def test_equal_maps_have_nothing_to_teach(self, name: str) -> None:
        if name in WITH_NETWORK:
            pytest.skip("a network stands between the maps")
        student, _ = maps()
        value, gradient = value_and_gradient(bound(name, student), student, student.clone())
        assert abs(float(value)) < 1e-5
        assert gradient.abs().max() < 1e-4

    def test_void_positions_take_no_part_whatever_they_hold(self, name: str) -> None:
        if name == "holistic":
            pytest.skip("its network looks at whole maps; its own tests say what void becomes")
        student, teacher = maps()
        mask = torch.ones(2, 6, 5, dtype=torch.bool)
        mask[:, 4:] = False
        loss = bound(name, student)
        expected, _ = value_and_gradient(loss, student, teacher, mask=mask)
        spoilt = [torch.where(mask[:, None], x, float("nan")) for x in (student, teacher)]
        value, gradient = value_and_gradient(loss, *spoilt, mask=mask)
        assert float(value) == pytest.approx(float(expected), rel=1e-5)
        assert torch.isfinite(gradient).all()
        assert gradient[~mask[:, None].expand_as(gradient)].abs().sum() == 0
        assert gradient.abs().sum() > 0

    def test_nothing_valid_is_a_zero_that_back_propagates(self, name: str) -> None:
        student, teacher = maps()
        loss = bound(name, student)
        void = torch.zeros(2, 6, 5, dtype=torch.bool)
        value, gradient = value_and_gradient(loss, student, teacher, mask=void)
        assert float(value) == 0.0
        assert gradient.abs().sum() == 0
        if "labels" in loss.needs:
            value, gradient = value_and_gradient(loss, student, teacher, labels=torch.full((2, 6, 5), 255))
            assert float(value) == 0.0
            assert gradient.abs().sum() == 0

    def test_it_can_be_copied_and_pickled(self, name: str) -> None:
        student, teacher = maps()
        loss = bound(name, student)
        expected, _ = value_and_gradient(loss, student, teacher)
        for again in (copy.deepcopy(loss), pickle.loads(pickle.dumps(loss))):
            assert value_and_gradient(again, student, teacher)[0] == expected

    def test_it_is_documented_with_its_cost_and_weight(self, name: str) -> None:
        kind = METHODS[name]
        assert kind.name == name
        assert kind.default_weight > 0
        assert "N" in kind.cost
        page = (DOCS / f"{name}.md").read_text()
        for heading in ("## Formula", "## Options", "## Cost", "## Source"):
            assert heading in page, heading
        assert kind.__name__ in page
