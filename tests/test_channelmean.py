"""channelmean_mse against means taken by Python."""

from __future__ import annotations

import statistics

import pytest
import torch

from densekd.errors import ShapeError
from densekd.functional.channelmean import channelmean_mse
from densekd.losses.channelmean import ChannelMean
from mapkit import check_refusals, check_types, check_void, maps, some_mask, value_and_gradient

SHAPES = [(2, 3, 4, 5), (1, 1, 7), (3, 2, 2, 3, 2)]


def literal(student, teacher, mask=None):
    """(N, C) as lists, one channel at a time."""
    keep = torch.ones(student.shape[0], *student.shape[2:], dtype=torch.bool) if mask is None else mask
    rows = []
    for s, t, valid in zip(student.detach().double(), teacher.double(), keep, strict=True):
        pairs = [(a[valid].tolist(), b[valid].tolist()) for a, b in zip(s, t, strict=True)]
        rows.append([(statistics.fmean(a) - statistics.fmean(b)) ** 2 if a else 0.0 for a, b in pairs])
    return torch.tensor(rows, dtype=torch.float64)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_formula_with_its_reductions(shape, masked):
    for dtype, rtol in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        student, teacher = maps(shape[1], shape, dtype=dtype)
        mask = some_mask(student) if masked else None
        rows = literal(student, teacher, mask)
        none, total, mean = (
            channelmean_mse(student, teacher, mask=mask, reduction=how) for how in ("none", "sum", "mean")
        )
        assert (none.shape, none.dtype, mean.dtype) == (shape[:2], dtype, dtype)
        for value, expected in ((none, rows), (total, rows.sum()), (mean, rows.mean())):
            torch.testing.assert_close(value.double(), expected, rtol=rtol, atol=1e-8)


def test_the_gradient_is_the_closed_form():
    student, teacher = maps(3, (2, 3, 4, 5), dtype=torch.float64)
    _, gradient = value_and_gradient(channelmean_mse, student, teacher)
    gap = student.detach().mean((2, 3), keepdim=True) - teacher.mean((2, 3), keepdim=True)
    torch.testing.assert_close(gradient, (2 / (6 * 20) * gap).expand_as(gradient))
    mask = some_mask(student)
    torch.autograd.gradcheck(lambda s: channelmean_mse(s, teacher, mask=mask), student)


def test_only_the_means_count():
    student, teacher = maps(3, (2, 3, 4, 6))
    value = channelmean_mse(student, teacher)
    moved = student.flatten(2)[:, :, torch.randperm(24)].view_as(student)
    finer = (x.repeat_interleave(2, 2).repeat_interleave(3, 3) for x in (student, teacher))
    twice = (torch.cat([x, x], 1).repeat(2, 1, 1, 1) for x in (student, teacher))
    for other in (channelmean_mse(moved, teacher), channelmean_mse(*finer), channelmean_mse(*twice)):
        torch.testing.assert_close(other, value)
    assert channelmean_mse(student, student.detach().clone()) == 0


def test_void_types_and_extremes():
    student, teacher = maps(3, (3, 3, 4, 5))
    check_void(channelmean_mse, student, teacher, some_mask(student))
    check_types(channelmean_mse, student, teacher)
    big = torch.full((1, 2, 2, 2), 6e4, dtype=torch.float16, requires_grad=True)
    value, gradient = value_and_gradient(channelmean_mse, big, -big.detach())
    assert value == pytest.approx(1.2e5**2, rel=1e-3)
    assert gradient.isfinite().all()


def test_the_teacher_gets_no_gradient():
    student, teacher = maps(3, (2, 3, 4, 5))
    teacher.requires_grad_()
    channelmean_mse(student, teacher).backward()
    assert teacher.grad is None
    assert student.grad.any()


def test_misuse_is_named():
    check_refusals(channelmean_mse, same_channels=True)
    x = torch.zeros(2, 3, 4, 4)
    with pytest.raises(ShapeError, match="the channels differ: put a 1x1 convolution"):
        channelmean_mse(x, torch.zeros(2, 5, 4, 4))


def test_the_module_is_the_function():
    student, teacher = maps(3, (2, 3, 4, 5))
    mask = some_mask(student)
    assert ChannelMean()(student, teacher, mask=mask) == channelmean_mse(student, teacher, mask=mask)
    assert ChannelMean.equal_channels
