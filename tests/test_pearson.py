"""pearson_distance against the standard library's correlation, one channel at a time."""

from __future__ import annotations

import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.errors import ArgumentError, DtypeError, ShapeError
from densekd.functional.pearson import pearson_distance
from densekd.losses.pearson import Pearson
from mapkit import check_against, check_compiled

SHAPES = [(2, 7, 3, 5), (1, 1, 7), (3, 4, 2, 3, 2)]


def maps(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(shape, generator=generator) for _ in range(2))
    scale, offset = (torch.rand(1, shape[1], *(1 for _ in shape[2:]), generator=generator) for _ in range(2))
    return student.requires_grad_(), 5.0 * scale * teacher + 10.0 * offset


def some_mask(*shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.6
    if shape[0] > 1:
        mask[1] = False
    return mask


def literal(student, teacher, mask=None):
    """1 - r of every channel, in Python's floats."""
    keep = torch.ones(student.shape[0], *student.shape[2:], dtype=torch.bool) if mask is None else mask
    sides = [x.detach().double().movedim(1, 0)[:, keep].tolist() for x in (student, teacher)]
    return [1.0 - statistics.correlation(s, t) for s, t in zip(*sides, strict=True)]


def half_mse(student, teacher):
    """Half the mean squared difference of maps with mean 0 and standard deviation 1 per channel, in float64."""
    s, t = (x.double().movedim(1, 0).flatten(1) for x in (student, teacher))
    s, t = ((x - x.mean(1, keepdim=True)) / x.std(1, keepdim=True, correction=0) for x in (s, t))
    return 0.5 * torch.nn.functional.mse_loss(s, t)


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_formula_with_its_reductions(shape, masked):
    student, teacher = maps(*shape)
    mask = some_mask(shape[0], *shape[2:]) if masked else None
    expected = literal(student, teacher, mask)
    for dtype, rel in ((torch.float64, 1e-12), (torch.float32, 1e-5)):
        s, t = student.to(dtype), teacher.to(dtype)
        channels = pearson_distance(s, t, mask=mask, reduction="none")
        assert (channels.shape, channels.dtype) == ((shape[1],), dtype)
        assert channels.tolist() == pytest.approx(expected, rel=rel)
        assert pearson_distance(s, t, mask=mask).item() == pytest.approx(statistics.fmean(expected), rel=rel)
        total = pearson_distance(s, t, mask=mask, reduction="sum")
        assert total.item() == pytest.approx(sum(expected), rel=rel)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_half_the_squared_difference_of_standardised_maps(shape):
    student, teacher = maps(*shape)
    value, expected = pearson_distance(student, teacher), half_mse(student, teacher)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,), (slope,) = (torch.autograd.grad(v, student) for v in (value, expected))
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-6)


def test_gradcheck_with_a_mask():
    student, teacher = (m.detach().double() for m in maps(2, 3, 2, 3))
    mask = torch.tensor([[[True, False, True], [True, True, True]], [[False, True, False], [True, False, True]]])
    torch.autograd.gradcheck(lambda s: pearson_distance(s, teacher, mask=mask), student.requires_grad_())


def test_maps_that_are_nearly_equal_keep_their_digits():
    _, teacher = maps(2, 5, 8, 8)
    student = 3.0 * (teacher + 1e-4 * maps(2, 5, 8, 8, seed=3)[1]) + 1.0
    expected = pearson_distance(student.double(), teacher.double()).item()
    assert 0 < expected < 1e-7
    assert pearson_distance(student, teacher).item() == pytest.approx(expected, rel=0.02)


def test_void_takes_no_part_whatever_stands_there():
    student, teacher = maps(3, 5, 4, 3)
    mask = some_mask(3, 4, 3)
    void = ~mask[:, None].expand_as(teacher)
    leaf = student.detach().masked_fill(void, torch.nan).requires_grad_()
    value = pearson_distance(leaf, teacher.masked_fill(void, torch.inf), mask=mask)
    assert value.item() == pytest.approx(statistics.fmean(literal(student, teacher, mask)), rel=1e-5)
    value.backward()
    assert not leaf.grad[void].any()
    assert leaf.grad[~void].all()


@pytest.mark.parametrize("valid", [0, 1])
def test_fewer_than_two_valid_positions_are_a_zero_that_back_propagates(valid):
    student, teacher = maps(2, 3, 4, 4)
    mask = torch.zeros(2, 4, 4, dtype=torch.bool)
    mask[0, 1, :valid] = True
    value = pearson_distance(student, teacher, mask=mask)
    value.backward()
    assert value == 0
    assert student.grad.abs().sum() == 0


def test_values_that_are_not_finite_are_not_hidden():
    student, teacher = maps(2, 3, 4, 4)
    for bad in (torch.nan, torch.inf):
        broken = student.detach().clone()
        broken[0, 1, 2, 3] = bad
        channels = pearson_distance(broken, teacher, reduction="none")
        assert channels.isnan().tolist() == [False, True, False]


def noise(kind):
    generator = torch.Generator().manual_seed(4)
    if kind == "rounding":
        return torch.full((2, 9, 7), 0.1) * (1 + 1e-7 * torch.randn(2, 9, 7, generator=generator))
    return {"zero": torch.zeros(2, 9, 7), "faint": 1e-8 * torch.randn(2, 9, 7, generator=generator)}[kind]


@pytest.mark.parametrize("kind", ["zero", "rounding", "faint"])
@pytest.mark.parametrize(("who", "counts"), [("teacher", 0.0), ("student", 1.0)])
def test_a_dead_channel_gives_no_noise(who, counts, kind):
    student, teacher = (m.detach() for m in maps(2, 3, 9, 7))
    expected = literal(student, teacher)
    (teacher if who == "teacher" else student)[:, 1] = noise(kind)
    student.requires_grad_()
    channels = pearson_distance(student, teacher, reduction="none")
    assert channels.tolist() == pytest.approx([expected[0], counts, expected[2]], rel=1e-5)
    channels.sum().backward()
    assert not student.grad[:, 1].any()
    assert student.grad[:, 0].any()


def test_a_weak_channel_is_not_dead():
    student, teacher = maps(2, 3, 9, 7)
    expected = literal(student, teacher)
    weak = torch.tensor([1.0, 1e-4, 1.0])[:, None, None]
    channels = pearson_distance(student * weak, teacher * weak.flip(0), reduction="none")
    assert channels.tolist() == pytest.approx(expected, rel=1e-4)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(0.01, 100), st.floats(-30, 30))
def test_size_and_offset_of_a_channel_do_not_matter(seed, scale, offset):
    student, teacher = (m.double() for m in maps(2, 3, 4, 5, seed=seed))
    value = pearson_distance(student, teacher).item()
    assert 0 <= value <= 2
    per_channel = torch.tensor([1.0, 0.5, 3.0]).double()[:, None, None]
    assert pearson_distance(scale * per_channel * student + offset, teacher).item() == pytest.approx(value, rel=1e-6)
    opposed = pearson_distance(-scale * teacher + offset, teacher).item()
    assert opposed == pytest.approx(2.0, rel=1e-6)


@pytest.mark.parametrize("size", [1e-30, 1e4, 1e30, 1e37])
def test_any_size_in_float32(size):
    student, teacher = maps(2, 3, 4, 5)
    expected = pearson_distance(student, teacher / 10).detach()
    leaf = (size * student.detach()).requires_grad_()
    value = pearson_distance(leaf, size * (teacher / 10))
    torch.testing.assert_close(value, expected, rtol=1e-4, atol=0)
    value.backward()
    assert leaf.grad.isfinite().all()


def test_value_does_not_depend_on_batch_channels_and_resolution():
    student, teacher = maps(2, 5, 3, 4)
    value = pearson_distance(student, teacher).item()
    for repeat in (lambda x: torch.cat([x, x]), lambda x: torch.cat([x, x], 1), lambda x: x.repeat_interleave(2, 3)):
        assert pearson_distance(repeat(student), repeat(teacher)).item() == pytest.approx(value, rel=1e-5)


def test_types_layouts_and_gradients():
    check_against(
        pearson_distance, lambda student, teacher: statistics.fmean(literal(student, teacher)), *maps(2, 5, 4, 4)
    )


@pytest.mark.slow
def test_it_compiles_into_one_graph():
    mask = some_mask(2, 4, 4)
    check_compiled(lambda student, teacher: pearson_distance(student, teacher, mask=mask), *maps(2, 5, 4, 4))


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
            pearson_distance(*arguments, **options)


def test_module_is_the_function():
    student, teacher = maps(2, 5, 3, 4)
    mask = some_mask(2, 3, 4)
    assert Pearson()(student, teacher) == pearson_distance(student, teacher)
    assert Pearson()(student, teacher, mask=mask) == pearson_distance(student, teacher, mask=mask)
    assert (Pearson.name, Pearson.logits_only, Pearson.equal_channels) == ("pearson", False, True)
