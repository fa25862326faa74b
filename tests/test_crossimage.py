"""crossimage_kl and crossimage_memory_kl against their formulas pixel by pixel in float64."""

from __future__ import annotations

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from densekd.errors import ArgumentError, DtypeError, SecondDerivativeError, ShapeError
from densekd.functional import relation
from densekd.functional.crossimage import crossimage_kl
from densekd.functional.crossimage_memory import crossimage_memory_kl
from densekd.functional.relation import blocked_relation
from densekd.losses.crossimage import CrossImage


def maps(*shape, teacher_channels=None, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(shape, generator=generator).to(dtype)
    other = (shape[0], teacher_channels or shape[1], *shape[2:])
    return student.requires_grad_(), torch.randn(other, generator=generator).to(dtype)


def rows_kl(student_row, teacher_row):
    """KL of two softmaxes, term by term."""
    q, p = torch.softmax(student_row, 0), torch.softmax(teacher_row, 0)
    return sum(p[j] * (p[j].log() - q[j].log()) for j in range(len(p)))


def unit(vector):
    return vector / vector.square().sum().sqrt()


def literal(student, teacher, temperature=0.1, mask=None):
    """Pair by pair, pixel by pixel; the mean over rows of valid pixels and images that have any."""
    n = len(student)
    student, teacher = student.double().flatten(2), teacher.double().flatten(2)
    valid = torch.ones(n, student.shape[2], dtype=torch.bool) if mask is None else mask.flatten(1)
    places = [[i for i in range(valid.shape[1]) if valid[a, i]] for a in range(n)]
    found = []
    for a in range(n):
        for b in range(n):
            for i in places[a] if places[b] else ():
                rows = [
                    torch.stack([unit(x[a, :, i]) @ unit(x[b, :, j]) for j in places[b]]) / temperature
                    for x in (student, teacher)
                ]
                found.append(rows_kl(*rows))
    return torch.stack(found)


@pytest.mark.parametrize("temperature", [0.1, 0.7])
@pytest.mark.parametrize("shape", [(2, 5, 3, 2), (1, 2, 5), (3, 3, 2, 1, 2)], ids=str)
def test_value_and_gradient_are_those_of_the_formula(shape, temperature):
    student, teacher = maps(*shape, teacher_channels=4)
    value = crossimage_kl(student, teacher, temperature=temperature, pool=1)
    exact = student.detach().double().requires_grad_()
    expected = literal(exact, teacher, temperature)
    assert len(expected) == shape[0] ** 2 * math.prod(shape[2:])
    assert value.item() == pytest.approx(expected.mean().item(), rel=1e-5)
    total = crossimage_kl(student, teacher, temperature=temperature, pool=1, reduction="sum")
    assert total.item() == pytest.approx(expected.sum().item(), rel=1e-5)
    (gradient,), (slope,) = torch.autograd.grad(value, student), torch.autograd.grad(expected.mean(), exact)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=1e-6)


def test_a_mask_leaves_out_rows_and_columns():
    student, teacher = maps(3, 4, 2, 3)
    mask = torch.rand(3, 2, 3, generator=torch.Generator().manual_seed(1)) < 0.6
    mask[1] = False
    leaf = student.detach().masked_fill(~mask[:, None], torch.nan).requires_grad_()
    value = crossimage_kl(leaf, teacher.masked_fill(~mask[:, None], torch.inf), pool=1, mask=mask)
    exact = student.detach().double().requires_grad_()
    expected = literal(exact, teacher, mask=mask)
    assert len(expected) == 2 * mask.sum()
    assert value.item() == pytest.approx(expected.mean().item(), rel=1e-5)
    (gradient,), (slope,) = torch.autograd.grad(value, leaf), torch.autograd.grad(expected.mean(), exact)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=1e-6)
    assert gradient.movedim(1, -1)[~mask].abs().sum() == 0


def averaged(x, mask, pool):
    """Cell by cell: the mean over its valid positions, and whether it has any."""
    height, width = x.shape[2:]
    rows = []
    for n in range(len(x)):
        for top in range(0, height, pool):
            for left in range(0, width, pool):
                cell = (n, slice(top, min(top + pool, height)), slice(left, min(left + pool, width)))
                inside = x.movedim(1, -1)[cell][mask[cell]]
                rows.append((inside.mean(0) if len(inside) else x.new_zeros(x.shape[1]), bool(len(inside))))
    cells = (len(x), -(-height // pool), -(-width // pool))
    pooled = torch.stack([row for row, _ in rows]).view(*cells, -1).movedim(-1, 1)
    return pooled, torch.tensor([some for _, some in rows]).view(cells)


@pytest.mark.parametrize("pool", [2, 3])
@pytest.mark.parametrize("masked", [False, True])
def test_pooling_averages_what_a_cell_holds(pool, masked):
    student, teacher = maps(2, 3, 5, 4)
    mask = torch.rand(2, 5, 4, generator=torch.Generator().manual_seed(1)) < (0.3 if masked else 2.0)
    value = crossimage_kl(student, teacher, pool=pool, mask=mask if masked else None)
    if pool == 2:
        assert torch.equal(value, crossimage_kl(student, teacher, mask=mask if masked else None))
    (s, some), (t, _) = (averaged(x.detach().double(), mask, pool) for x in (student, teacher))
    assert bool(some.all()) != masked or pool == 3
    assert value.item() == pytest.approx(literal(s, t, mask=some).mean().item(), rel=1e-5)


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 3), st.integers(1, 7), st.integers(2, 6), st.integers(1, 400), st.booleans())
def test_blocks_of_any_size_give_the_same(groups, rows, size, block, masked):
    generator = torch.Generator().manual_seed(rows)

    def rand(*shape):
        return torch.randn(shape, generator=generator, dtype=torch.float64)

    tensors = rand(rows, 3), rand(groups * size, 3), rand(rows, 2), rand(groups * size, 2)
    weights = rand(rows, groups).abs()
    valid = torch.rand(groups * size, generator=generator) < 0.5 if masked else None
    if valid is not None:
        weights = weights * valid.view(groups, size).any(1)
    whole = blocked_relation(*tensors, weights, valid, 0.5, True, True, block=10**6)
    parts = blocked_relation(*tensors, weights, valid, 0.5, True, True, block=block)
    for one, other in zip(parts, whole, strict=True):
        torch.testing.assert_close(one, other)


class Largest(TorchDispatchMode):
    """The most elements that any operation inside returns."""

    elements = 0

    def __torch_dispatch__(self, function, types, arguments=(), options=None):
        result = function(*arguments, **(options or {}))
        for tensor in result if isinstance(result, (tuple, list)) else (result,):
            self.elements = max(self.elements, tensor.numel())
        return result


def test_no_map_of_two_images_exists_whole():
    rows = torch.randn(2 * 900, 4)
    with Largest() as largest:
        blocked_relation(rows, rows, rows, rows, torch.ones(1800, 2), None, 0.1, True, True, block=20000)
    assert 1800 * 4 < largest.elements <= 20000 < 900**2 / 40


def test_gradcheck():
    student, teacher = maps(2, 3, 2, 2, dtype=torch.float64)
    mask = torch.tensor([[[True, False], [True, True]], [[True, True], [False, True]]])
    for options in ({"pool": 1}, {"pool": 1, "mask": mask}, {"pool": 2, "reduction": "sum"}):
        if options["pool"] == 2:
            student, teacher = maps(2, 3, 4, 4, dtype=torch.float64)
        torch.autograd.gradcheck(lambda s, o=options, t=teacher: crossimage_kl(s, t, **o), student)
    student, teacher = maps(2, 3, 2, 2, dtype=torch.float64)
    memory = torch.randn(5, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    torch.autograd.gradcheck(lambda s: crossimage_memory_kl(s, teacher, memory, mask=mask), student)


def test_memory_value_and_gradient_are_those_of_the_formula():
    student, teacher = maps(2, 4, 3, 2)
    memory = 5 * torch.randn(7, 4, generator=torch.Generator().manual_seed(2))
    mask = torch.rand(2, 3, 2, generator=torch.Generator().manual_seed(1)) < 0.5
    for given_mask, reduction in ((None, "mean"), (mask, "mean"), (mask, "sum")):
        exact = student.detach().double().requires_grad_()
        found = []
        for n in range(2):
            for y in range(3):
                for x in range(2):
                    if given_mask is None or mask[n, y, x]:
                        pair = (
                            torch.stack([unit(one[n, :, y, x].double()) @ unit(m.double()) for m in memory]) / 0.3
                            for one in (exact, teacher)
                        )
                        found.append(rows_kl(*pair))
        expected = torch.stack(found).mean() if reduction == "mean" else torch.stack(found).sum()
        leaf = student if given_mask is None else student.detach().masked_fill(~mask[:, None], torch.nan)
        leaf.requires_grad_()
        value = crossimage_memory_kl(leaf, teacher, memory, temperature=0.3, mask=given_mask, reduction=reduction)
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
        (gradient,), (slope,) = torch.autograd.grad(value, leaf), torch.autograd.grad(expected, exact)
        torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=1e-6)


def pair(student, teacher, **options):
    return crossimage_kl(student, teacher, **{"pool": 1, **options})


def memory(student, teacher, **options):
    kept = torch.randn(9, teacher.shape[1], generator=torch.Generator().manual_seed(2))
    return crossimage_memory_kl(student, teacher, kept, **options)


BOTH = pytest.mark.parametrize("function", [pair, memory])


@BOTH
def test_the_value_does_not_depend_on_batch_or_resolution(function):
    student, teacher = maps(2, 4, 3, 4)
    value = function(student, teacher)
    torch.testing.assert_close(function(student.repeat(2, 1, 1, 1), teacher.repeat(2, 1, 1, 1)), value)
    finer = (x.repeat_interleave(2, 2).repeat_interleave(2, 3) for x in (student, teacher))
    torch.testing.assert_close(function(*finer), value)
    larger = function(100.0 * student, 0.01 * teacher)
    torch.testing.assert_close(larger, value)


@BOTH
def test_nothing_valid_is_a_zero_that_back_propagates(function):
    student, teacher = maps(2, 3, 2, 2)
    value = function(student, teacher, mask=torch.zeros(2, 2, 2, dtype=torch.bool))
    value.backward()
    assert value == 0
    assert student.grad.abs().sum() == 0


@BOTH
def test_equal_maps_and_frozen_teacher(function):
    student, teacher = maps(2, 3, 3, 3)
    teacher.requires_grad_()
    value = function(student, student.detach().clone())
    assert 0 <= value.item() < 1e-9
    nearly = function(student, student.detach() + 1e-3)
    exact = function(student.double(), student.detach().double() + 1e-3)
    assert nearly.item() == pytest.approx(exact.item(), rel=0.02)
    function(student, teacher).backward()
    assert teacher.grad is None


@BOTH
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_computed_in_float32(dtype, function):
    student, teacher = maps(2, 5, 3, 4, dtype=dtype)
    expected = function(student.detach().float(), teacher.float())
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = function(student, teacher)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected)
    value.backward()
    assert student.grad.dtype == dtype
    assert function(student.double(), teacher.double()).dtype == torch.float64


@BOTH
def test_memory_formats(function):
    student, teacher = maps(2, 4, 3, 5)
    expected = function(student.detach(), teacher)
    torch.testing.assert_close(function(student.to(memory_format=torch.channels_last), teacher), expected)
    strided = torch.stack([student, student], -1)[..., 0]
    assert not strided.is_contiguous()
    torch.testing.assert_close(function(strided, teacher.mT.contiguous().mT), expected)


@BOTH
@pytest.mark.parametrize("size", [1e-30, 1e4, 1e30])
def test_finite_for_features_of_any_size(size, function):
    student, teacher = maps(2, 3, 3, 4)
    leaf = (size * student.detach()).requires_grad_()
    value = function(leaf, teacher / size)
    value.backward()
    torch.testing.assert_close(value, function(student.detach(), teacher))
    assert leaf.grad.isfinite().all()
    assert function(student, teacher, temperature=1e-4).isfinite()


@BOTH
def test_a_position_of_zeros_gets_no_gradient(function):
    student, teacher = maps(2, 3, 3, 4)
    with torch.no_grad():
        student[0, :, 1, 1] = 0
        teacher[1, :, 0, 0] = 0
    function(student, teacher).backward()
    assert student.grad[0, :, 1, 1].abs().sum() == 0
    assert 0 < student.grad.abs().max() < 10


@BOTH
def test_a_second_backward_is_right_and_a_second_derivative_refused(function):
    student, teacher = maps(2, 3, 3, 4)
    value = function(student, teacher)
    value.backward(retain_graph=True)
    first = student.grad.clone()
    (3 * value).backward()
    torch.testing.assert_close(student.grad, 4 * first)
    (gradient,) = torch.autograd.grad(function(student, teacher), student, create_graph=True)
    with pytest.raises(SecondDerivativeError, match="no second derivative"):
        gradient.sum().backward()


@pytest.mark.slow
def test_operator_has_the_rules_torch_checks():
    rows, columns, others, kept = (
        torch.randn(shape, dtype=torch.float64) for shape in ((4, 3), (6, 3), (4, 2), (6, 2))
    )
    arguments = rows.requires_grad_(), columns.requires_grad_(), others, kept, torch.ones(4, 2).double(), None, 0.5
    torch.library.opcheck(relation.relation_operator, (*arguments, True, True))
    torch.library.opcheck(relation.relation_operator, (*arguments, True, False), test_utils="test_faketensor")


@pytest.mark.slow
def test_compiled_it_is_one_graph():
    student, teacher = maps(2, 3, 4, 4)
    compiled = torch.compile(CrossImage(), backend="aot_eager", fullgraph=True)
    torch.testing.assert_close(compiled(student, teacher), crossimage_kl(student, teacher))


def test_misuse_is_named():
    x = torch.zeros(2, 3, 4, 8)
    cases = [
        (crossimage_kl, (x, x[:, :, :2]), {}, ShapeError, r"all but the channels, got \(2, 3, 4, 8\) and"),
        (crossimage_kl, (x, x[:1]), {}, ShapeError, "one shape in all but the channels"),
        (crossimage_kl, (x[..., :1, :1], x[..., :1, :1]), {}, ShapeError, "at least two positions, got one"),
        (crossimage_kl, (x, x), {"pool": 8}, ShapeError, "at least two positions.*pool 8.*lower pool"),
        (crossimage_kl, (x, x), {"pool": 0}, ArgumentError, "pool: expected a whole number of at least 1, got 0"),
        (crossimage_kl, (x, x), {"reduction": "none"}, ArgumentError, "'mean', 'sum', got 'none'"),
        (crossimage_kl, (x, x), {"temperature": 0}, ArgumentError, "positive finite"),
        (crossimage_kl, (x[..., None, None], x[..., None, None]), {}, ShapeError, "one to three spatial"),
        (crossimage_kl, (x, x), {"mask": torch.ones(2, 8, 4) > 0}, ShapeError, "mask: expected"),
        (crossimage_memory_kl, (x, x, torch.zeros(5, 4)), {}, ShapeError, r"expected \(Q, 3\).*got \(5, 4\)"),
        (crossimage_memory_kl, (x, x, torch.zeros(0, 3)), {}, ShapeError, "at least one feature"),
        (crossimage_memory_kl, (x, x, torch.zeros(5, 3).long()), {}, DtypeError, "memory: expected a floating-point"),
        (crossimage_memory_kl, (x, x[:, :2], torch.zeros(5, 3)), {}, ShapeError, "the channels differ"),
        (crossimage_memory_kl, (x, x, torch.zeros(5, 3)), {"reduction": "none"}, ArgumentError, "'mean', 'sum'"),
        (crossimage_memory_kl, (x, x, torch.zeros(5, 3, device="meta")), {}, ArgumentError, "memory is on meta"),
    ]
    for function, arguments, options, error, words in cases:
        with pytest.raises(error, match=words):
            function(*arguments, **options)
