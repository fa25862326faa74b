"""feature_mse against torch's own mean squared error."""

from __future__ import annotations

import pytest
import torch

from densekd import functional as F
from densekd.errors import ArgumentError, DtypeError, ShapeError


def maps(*shape):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (torch.randn(shape, generator=generator) for _ in range(2))
    return student.requires_grad_(), teacher


@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 1, 7), (2, 2, 3, 2, 2)], ids=str)
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_agrees_with_torch(shape, reduction):
    student, teacher = maps(*shape)
    value = F.feature_mse(student, teacher, reduction=reduction)
    expected = torch.nn.functional.mse_loss(student, teacher, reduction=reduction)
    torch.testing.assert_close(value, expected)
    (gradient,), (slope,) = (torch.autograd.grad(v.sum(), student) for v in (value, expected))
    torch.testing.assert_close(gradient, slope)


def test_a_mask_keeps_the_mean_over_what_counts():
    student, teacher = maps(3, 4, 5, 6)
    mask = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[1] = False
    every = mask[:, None].expand_as(teacher)
    leaf = student.detach().masked_fill(~every, torch.nan).requires_grad_()
    value = F.feature_mse(leaf, teacher.masked_fill(~every, torch.inf), mask=mask)
    expected = torch.nn.functional.mse_loss(student[every], teacher[every])
    torch.testing.assert_close(value, expected)
    (gradient,), (slope,) = torch.autograd.grad(value, leaf), torch.autograd.grad(expected, student)
    torch.testing.assert_close(gradient, slope)
    assert F.feature_mse(student, teacher, mask=mask, reduction="none")[~every].abs().sum() == 0
    total = F.feature_mse(student, teacher, mask=mask, reduction="sum")
    torch.testing.assert_close(total, expected * every.sum())


def test_nothing_valid_is_a_zero_that_back_propagates():
    student, teacher = maps(2, 3, 4, 4)
    value = F.feature_mse(student, teacher, mask=torch.zeros(2, 4, 4, dtype=torch.bool))
    value.backward()
    assert value == 0
    assert student.grad.abs().sum() == 0


def test_half_precision_input_is_computed_in_float32():
    # 300**2 is beyond float16
    student = torch.full((1, 2, 2, 2), 300.0, dtype=torch.float16, requires_grad=True)
    value = F.feature_mse(student, torch.zeros(1, 2, 2, 2))
    value.backward()
    assert value.dtype == torch.float32
    assert value == 90_000
    assert student.grad.dtype == torch.float16
    assert F.feature_mse(student.double(), torch.zeros(1, 2, 2, 2)).dtype == torch.float64


def test_teacher_gets_no_gradient():
    student, teacher = maps(1, 2, 3, 3)
    teacher.requires_grad_()
    F.feature_mse(student, teacher).backward()
    assert teacher.grad is None


def test_misuse_is_named():
    x = torch.zeros(2, 3, 4, 8)
    cases = [
        ((x, torch.zeros(2, 5, 4, 8)), {}, ShapeError, "channels differ: put a 1x1 convolution on the student"),
        ((x, x.int()), {}, DtypeError, "teacher: expected floating-point"),
        ((x, x), {"reduction": "men"}, ArgumentError, "did you mean 'mean'"),
        ((x, x), {"mask": torch.ones(2, 4, 8)}, DtypeError, "expected bool"),
    ]
    for arguments, options, error, words in cases:
        with pytest.raises(error, match=words):
            F.feature_mse(*arguments, **options)
