"""dist_pearson against the standard library's correlation, one pixel and one class at a time."""

from __future__ import annotations

import itertools
import math
import statistics

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.errors import ArgumentError, DtypeError, ShapeError
from densekd.functional.dist import dist_pearson
from densekd.losses.dist import Dist
from mapkit import check_against, check_compiled

SHAPES = [(2, 19, 3, 5), (1, 3, 7), (3, 4, 2, 3, 2)]


def maps(*shape, std=3.0, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (std * torch.randn(shape, generator=generator) for _ in range(2))
    return student.requires_grad_(), teacher


def some_mask(*shape):
    mask = torch.rand(shape, generator=torch.Generator().manual_seed(1)) < 0.6
    if shape[0] > 1:
        mask[1] = False
    return mask


def softmax(values, temperature):
    top = max(values)
    exponentials = [math.exp((value - top) / temperature) for value in values]
    return [value / sum(exponentials) for value in exponentials]


def literal(student, teacher, temperature=1.0, mask=None):
    """The mean of 1 - r over pixels, and over classes, in Python's floats."""
    sides = []
    for x in (student, teacher):
        x = x.detach().double().flatten(2)
        places = itertools.product(range(x.shape[0]), range(x.shape[2]))
        kept = [(n, i) for n, i in places if mask is None or bool(mask.flatten(1)[n, i])]
        sides.append([softmax(x[n, :, i].tolist(), temperature) for n, i in kept])
    pixels = [1.0 - statistics.correlation(q, p) for q, p in zip(*sides, strict=True)]
    classes = [1.0 - statistics.correlation(q, p) for q, p in zip(*(zip(*s, strict=True) for s in sides), strict=True)]
    return statistics.fmean(pixels), statistics.fmean(classes)


def exact(student, teacher, beta=1.0, gamma=1.0):
    """The loss in float64 by torch.corrcoef, with a gradient."""
    q, p = (torch.softmax(x.double(), 1).movedim(1, -1).flatten(0, -2) for x in (student, teacher))
    rows = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(q, p, strict=True)])
    columns = torch.stack([torch.corrcoef(torch.stack(pair))[0, 1] for pair in zip(q.T, p.T, strict=True)])
    return beta * (1 - rows.mean()) + gamma * (1 - columns.mean())


@pytest.mark.parametrize("temperature", [1.0, 4.0])
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_formula(shape, masked, temperature):
    student, teacher = maps(*shape)
    mask = some_mask(shape[0], *shape[2:]) if masked else None
    inter, intra = literal(student, teacher, temperature, mask)
    for beta, gamma in [(1.0, 1.0), (2.0, 0.0), (0.0, 0.5)]:
        value = dist_pearson(
            student.double(), teacher.double(), temperature=temperature, beta=beta, gamma=gamma, mask=mask
        )
        assert value.dtype == torch.float64
        assert value.item() == pytest.approx(beta * inter + gamma * intra, rel=1e-12)


@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_float32_value_and_gradient_agree_with_float64(shape):
    student, teacher = maps(*shape)
    value, expected = dist_pearson(student, teacher, gamma=2.0), exact(student, teacher, gamma=2.0)
    assert value.dtype == torch.float32
    assert value.double().item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,), (slope,) = (torch.autograd.grad(v, student) for v in (value, expected))
    torch.testing.assert_close(gradient, slope, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize("standardize", [False, True])
def test_gradcheck_with_a_mask(standardize):
    student, teacher = (m.detach().double() for m in maps(2, 3, 2, 3, std=1.0))
    mask = torch.tensor([[[True, False, True], [True, True, True]], [[False, True, False], [True, False, True]]])
    torch.autograd.gradcheck(
        lambda s: dist_pearson(s, teacher, mask=mask, temperature=1.5, standardize=standardize),
        student.requires_grad_(),
    )


def test_maps_that_are_nearly_equal_keep_their_digits():
    _, teacher = maps(2, 19, 8, 8)
    student = teacher + 1e-4 * maps(2, 19, 8, 8, seed=3)[1]
    expected = dist_pearson(student.double(), teacher.double()).item()
    assert 0 < expected < 1e-7
    assert dist_pearson(student, teacher).item() == pytest.approx(expected, rel=0.02)
    assert dist_pearson(teacher, teacher).item() == 0


def test_void_takes_no_part_whatever_stands_there():
    student, teacher = maps(3, 5, 4, 3)
    mask = some_mask(3, 4, 3)
    void = ~mask[:, None].expand_as(teacher)
    leaf = student.detach().masked_fill(void, torch.nan).requires_grad_()
    value = dist_pearson(leaf, teacher.masked_fill(void, torch.inf), mask=mask)
    assert value.item() == pytest.approx(sum(literal(student, teacher, mask=mask)), rel=1e-5)
    value.backward()
    assert not leaf.grad[void].any()
    assert leaf.grad[~void].all()


def test_nothing_valid_is_a_zero_that_back_propagates():
    student, teacher = maps(2, 3, 4, 4)
    value = dist_pearson(student, teacher, mask=torch.zeros(2, 4, 4, dtype=torch.bool))
    value.backward()
    assert value == 0
    assert student.grad.abs().sum() == 0


def test_values_that_are_not_finite_are_not_hidden():
    student, teacher = maps(2, 3, 4, 4)
    for bad in (torch.nan, torch.inf):
        broken = student.detach().clone()
        broken[0, 1, 2, 3] = bad
        assert dist_pearson(broken, teacher).isnan()


class TestConstant:
    def test_a_pixel_whose_classes_are_alike_in_the_teacher_counts_nothing(self):
        student, teacher = maps(1, 7, 2, 3)
        teacher[..., 0, 0] = 0.3
        value = dist_pearson(student, teacher, gamma=0.0)
        rest = torch.ones(1, 2, 3, dtype=torch.bool)
        rest[0, 0, 0] = False
        assert value.item() == pytest.approx(5 / 6 * literal(student, teacher, mask=rest)[0], rel=1e-5)
        value.backward()
        assert not student.grad[..., 0, 0].any()

    def test_a_pixel_whose_classes_are_alike_in_the_student_counts_one(self):
        student, teacher = maps(1, 7, 2, 3)
        with torch.no_grad():
            student[..., 0, 0] = 0.3
        value = dist_pearson(student, teacher, gamma=0.0)
        rest = torch.ones(1, 2, 3, dtype=torch.bool)
        rest[0, 0, 0] = False
        assert value.item() == pytest.approx((5 * literal(student, teacher, mask=rest)[0] + 1) / 6, rel=1e-5)
        value.backward()
        assert not student.grad[..., 0, 0].any()
        assert student.grad.isfinite().all()

    @pytest.mark.parametrize(("who", "counts"), [("teacher", 0.0), ("student", 1.0)])
    def test_a_class_without_probability(self, who, counts):
        student, teacher = (m.detach() for m in maps(2, 4, 3, 3))
        (teacher if who == "teacher" else student)[:, 2] = -1e4
        student.requires_grad_()
        value = dist_pearson(student, teacher, beta=0.0)
        q, p = (torch.softmax(x.double(), 1).movedim(1, 0).flatten(1).tolist() for x in (student, teacher))
        rest = [1 - statistics.correlation(q[c], p[c]) for c in (0, 1, 3)]
        assert value.item() == pytest.approx((sum(rest) + counts) / 4, rel=1e-5)
        value.backward()
        assert student.grad.isfinite().all()

    def test_a_faint_class_of_the_student_is_still_pulled(self):
        student, teacher = maps(2, 4, 3, 3)
        with torch.no_grad():
            student[:, 2] -= 60.0
        (gradient,) = torch.autograd.grad(dist_pearson(student, teacher, beta=0.0), student)
        (slope,) = torch.autograd.grad(exact(student, teacher, beta=0.0), student)
        torch.testing.assert_close(gradient, slope, rtol=1e-3, atol=1e-6)
        assert gradient[:, 2].abs().max() > 1e-3

    def test_one_position_has_no_correlation_within_a_class(self):
        student, teacher = maps(1, 4, 1)
        q, p = (softmax(x.flatten().tolist(), 1.0) for x in (student, teacher))
        assert dist_pearson(student, teacher).item() == pytest.approx(1 - statistics.correlation(q, p), rel=1e-5)


class TestTwoClasses:
    def test_the_part_between_classes_has_no_gradient(self):
        student, teacher = maps(2, 2, 4, 4, std=1e-3)
        value = dist_pearson(student, teacher, gamma=0.0)
        disagree = (student.diff(dim=1).sign() != teacher.diff(dim=1).sign()).double().mean()
        assert value.item() == pytest.approx(2 * disagree.item(), rel=1e-5)
        value.backward()
        assert not student.grad.any()

    def test_the_part_within_classes_teaches(self):
        student, teacher = maps(2, 2, 4, 4)
        dist_pearson(student, teacher).backward()
        assert student.grad.abs().max() > 1e-3


def test_value_does_not_depend_on_batch_and_resolution():
    student, teacher = maps(2, 5, 3, 4)
    value = dist_pearson(student, teacher).item()
    twice = (torch.cat([x, x]) for x in (student, teacher))
    assert dist_pearson(*twice).item() == pytest.approx(value, rel=1e-5)
    larger = (x.repeat_interleave(2, 2).repeat_interleave(3, 3) for x in (student, teacher))
    assert dist_pearson(*larger).item() == pytest.approx(value, rel=1e-5)


def test_reductions_and_their_denominators():
    student, teacher = maps(2, 5, 3, 4)
    mask = some_mask(2, 3, 4)
    inter, intra = literal(student, teacher, mask=mask)
    value = dist_pearson(student, teacher, mask=mask, beta=3.0, reduction="sum")
    assert value.item() == pytest.approx(3.0 * inter * mask.sum().item() + intra * 5, rel=1e-5)


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10_000), st.floats(-50, 50), st.floats(0.1, 8.0))
def test_bounds_and_what_a_softmax_forgets(seed, offset, temperature):
    student, teacher = maps(2, 4, 2, 3, seed=seed)
    value = dist_pearson(student, teacher, temperature=temperature).item()
    assert 0 <= value <= 4
    shifted = student.double() + offset * maps(2, 1, 2, 3, seed=seed + 1)[1].double()
    assert dist_pearson(shifted, teacher, temperature=temperature).item() == pytest.approx(value, rel=1e-3, abs=1e-6)


def test_the_gradient_does_not_shrink_with_temperature():
    student, teacher = maps(2, 19, 4, 4)
    norms = []
    for temperature in (100.0, 1000.0):
        (gradient,) = torch.autograd.grad(dist_pearson(student, teacher, temperature=temperature), student)
        norms.append(gradient.norm().item())
    assert norms[1] == pytest.approx(norms[0], rel=0.05)


@pytest.mark.parametrize("size", [1e4, 1e30, torch.finfo(torch.float32).max])
@pytest.mark.parametrize("standardize", [False, True])
def test_finite_for_logits_of_any_size(size, standardize):
    student, teacher = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    student[:, 0], student[:, 1], teacher[:, 1], teacher[:, 0] = size, -size, size, -size
    student[0, :, 0] = teacher[0, :, 0]
    student.requires_grad_()
    value = dist_pearson(student, teacher, temperature=0.5, standardize=standardize)
    value.backward()
    assert 0 < value < 4
    assert student.grad.isfinite().all()


def test_standardized_logits_have_no_size():
    student, teacher = maps(2, 5, 3, 4)
    one = dist_pearson(student, teacher, standardize=True)
    other = dist_pearson(7.0 * student + 3.0, 0.2 * teacher, standardize=True)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)

    def z(x):
        return (x.double() - x.double().mean(1, keepdim=True)) / (x.double().std(1, keepdim=True) + 1e-7)

    assert one.item() == pytest.approx(sum(literal(z(student), z(teacher))), rel=1e-5)
    assert abs(one.item() - dist_pearson(student, teacher).item()) > 1e-3


def test_types_layouts_and_gradients():
    check_against(dist_pearson, lambda student, teacher: sum(literal(student, teacher)), *maps(2, 5, 4, 4))


@pytest.mark.slow
def test_it_compiles_into_one_graph():
    mask = some_mask(2, 4, 4)
    check_compiled(lambda student, teacher: dist_pearson(student, teacher, mask=mask), *maps(2, 5, 4, 4))


def test_misuse_is_named():
    x = torch.zeros(2, 3, 4, 8)
    cases = [
        ((x[:, :1], x[:, :1]), {}, ShapeError, r"dist need at least two channels, got one in \(2, 1, 4, 8\)"),
        ((x, torch.zeros(2, 3, 8, 4)), {}, ShapeError, "areas are equal"),
        ((x, x.long()), {}, DtypeError, "teacher: expected floating-point"),
        ((x, x), {"temperature": 0}, ArgumentError, "positive finite number, got 0"),
        ((x, x), {"beta": -1}, ArgumentError, "beta: expected a finite number that is not negative, got -1"),
        ((x, x), {"gamma": "1"}, DtypeError, "gamma: expected a number, got str"),
        ((x, x), {"reduction": "none"}, ArgumentError, "'mean', 'sum', got 'none'"),
        ((x, x), {"mask": torch.ones(2, 8, 4, dtype=torch.bool)}, ShapeError, r"\(2, 4, 8\), got \(2, 8, 4\)"),
    ]
    for arguments, options, error, words in cases:
        with pytest.raises(error, match=words):
            dist_pearson(*arguments, **options)


def test_module_is_the_function():
    student, teacher = maps(2, 5, 3, 4)
    mask = some_mask(2, 3, 4)
    assert Dist()(student, teacher) == dist_pearson(student, teacher)
    options = {"temperature": 2.0, "beta": 0.5, "gamma": 3.0, "standardize": True}
    assert Dist(**options)(student, teacher, mask=mask) == dist_pearson(student, teacher, mask=mask, **options)
    assert repr(Dist(**options)) == "Dist(temperature=2.0, beta=0.5, gamma=3.0, standardize=True)"
    assert (Dist.name, Dist.logits_only, Dist().needs) == ("dist", True, frozenset())
    with pytest.raises(ArgumentError, match="beta"):
        Dist(beta=float("nan"))
