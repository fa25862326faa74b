"""attention_mse against loops over positions and channels."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.functional.attention import attention_mse
from densekd.losses.attention import AttentionTransfer
from mapkit import (
    SHAPES,
    check_compiled,
    check_graph,
    check_refusals,
    check_scale,
    check_types,
    check_void,
    maps,
    some_mask,
    value_and_gradient,
)


def attention(image, valid):
    """The unit attention map of (C, P) as a list, zero in void positions and where there is nothing."""
    columns = zip(image.T.tolist(), valid, strict=True)
    energy = [math.fsum(v * v for v in column) if ok else 0.0 for column, ok in columns]
    length = math.sqrt(math.fsum(e * e for e in energy))
    return [e / length if length else 0.0 for e in energy]


def literal(student, teacher, mask=None):
    """The value of each image."""
    s, t = (x.detach().double().flatten(2) for x in (student, teacher))
    keep = torch.ones(len(s), s.shape[2], dtype=torch.bool) if mask is None else mask.flatten(1)
    return [
        math.fsum((a - b) ** 2 for a, b in zip(attention(i, ok), attention(j, ok), strict=True))
        for i, j, ok in zip(s, t, keep.tolist(), strict=True)
    ]


def published(student, teacher):
    """As the authors' code: the mean over positions."""

    def unit(x):
        return torch.nn.functional.normalize(x.pow(2).mean(1).flatten(1))

    return (unit(student) - unit(teacher)).pow(2).mean()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize(("channels", "shape"), SHAPES, ids=str)
def test_is_the_formula_with_its_reductions(channels, shape, masked):
    for dtype, rel in ((torch.float64, 1e-11), (torch.float32, 1e-5)):
        student, teacher = maps(channels, shape, dtype=dtype)
        mask = some_mask(student) if masked else None
        expected = literal(student, teacher, mask)
        images = attention_mse(student, teacher, mask=mask, reduction="none")
        assert (images.shape, images.dtype) == ((shape[0],), dtype)
        assert images.tolist() == pytest.approx(expected, rel=rel, abs=1e-12)
        total = attention_mse(student, teacher, mask=mask, reduction="sum")
        mean = attention_mse(student, teacher, mask=mask)
        assert total.item() == pytest.approx(sum(expected), rel=rel)
        assert mean.item() == pytest.approx(sum(expected) / shape[0], rel=rel)


@pytest.mark.parametrize(("channels", "shape"), SHAPES, ids=str)
def test_is_the_published_code_times_the_positions(channels, shape):
    student, teacher = maps(channels, shape)
    value, gradient = value_and_gradient(attention_mse, student, teacher)
    expected, slope = value_and_gradient(published, student.double(), teacher.double())
    positions = math.prod(shape[2:])
    assert value.item() == pytest.approx(positions * expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient.double(), positions * slope, rtol=1e-4, atol=1e-6)


def test_gradcheck_with_a_mask():
    student, teacher = maps(5, (3, 3, 4, 2), dtype=torch.float64)
    mask = some_mask(student)
    torch.autograd.gradcheck(lambda s: attention_mse(s, teacher, mask=mask), student)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.integers(1, 3), st.integers(1, 3))
def test_neither_the_size_of_the_map_nor_of_its_values_matters(seed, size, rows, columns):
    student, teacher = maps(2, (2, 3, 3, 4), seed=seed, dtype=torch.float64)
    value = attention_mse(student, teacher).item()
    assert 0 <= value <= 2
    finer = (x.detach().repeat_interleave(rows, 2).repeat_interleave(columns, 3) for x in (student, teacher))
    assert attention_mse(*finer).item() == pytest.approx(value, rel=1e-9)
    assert attention_mse(size * student, -teacher).item() == pytest.approx(value, rel=1e-9)


def test_what_any_loss_keeps():
    student, teacher = maps(5, (3, 3, 4, 6))
    check_void(attention_mse, student, teacher, some_mask(student))
    check_types(attention_mse, student, teacher)
    check_scale(attention_mse, student, teacher)
    check_graph(attention_mse, student, teacher)
    assert attention_mse(student, student.detach().clone()) == 0


@pytest.mark.parametrize("size", [1e-12, 1e4, 1e30, torch.finfo(torch.float32).max])
def test_the_same_for_values_of_any_size(size):
    student, teacher = maps(5, (2, 3, 4, 6))
    student = student.detach() / student.detach().abs().max()
    teacher = teacher / teacher.abs().max()
    expected, slope = value_and_gradient(attention_mse, student, teacher)
    value, gradient = value_and_gradient(attention_mse, size * student, size * teacher)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(gradient.double() * size, slope.double(), rtol=1e-4, atol=1e-6)


def test_float16_maps_do_not_overflow():
    student, teacher = (x.detach() for x in maps(5, (2, 3, 4, 6)))
    expected = attention_mse((2e4 * student).half().float(), teacher.half().float())
    assert attention_mse((2e4 * student).half(), teacher.half()) == pytest.approx(expected.item(), rel=1e-6)


def test_maps_that_are_zero_everywhere():
    student, teacher = maps(5, (2, 3, 4, 6))
    zero = torch.zeros_like(student)
    value, gradient = value_and_gradient(attention_mse, zero, teacher)
    assert value.item() == pytest.approx(1.0)
    assert not gradient.any()
    value, gradient = value_and_gradient(attention_mse, student, torch.zeros_like(teacher))
    assert value.item() == pytest.approx(1.0)
    assert gradient.isfinite().all()
    assert value_and_gradient(attention_mse, zero, torch.zeros_like(teacher))[0] == 0


def test_values_that_are_not_finite_are_not_hidden():
    student, teacher = maps(5, (2, 3, 4, 6))
    for bad in (torch.nan, torch.inf):
        broken = student.detach().clone()
        broken[0, 1, 2, 3] = bad
        assert attention_mse(broken, teacher, reduction="none").isnan().tolist() == [True, False]


@pytest.mark.slow
def test_compiles_to_one_graph():
    check_compiled(attention_mse, *maps(5, (2, 3, 4, 6)))


def test_misuse_is_named():
    check_refusals(attention_mse)


def test_the_module_is_the_function():
    student, teacher = maps(5, (2, 3, 4, 6))
    mask = some_mask(student)
    assert AttentionTransfer()(student, teacher, mask=mask) == attention_mse(student, teacher, mask=mask)
    assert not AttentionTransfer.equal_channels
