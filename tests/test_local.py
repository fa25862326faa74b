"""local_mse against loops over positions and their neighbours."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd.errors import DtypeError, ShapeError
from densekd.functional.local import local_mse
from densekd.losses.local import LocalAffinity
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


def distance(image, here, there, normalize):
    a, b = ([channel[at].item() for channel in image] for at in (here, there))
    if normalize:
        a, b = ([v / math.sqrt(math.fsum(w * w for w in x)) for v in x] for x in (a, b))
    return math.dist(a, b) / (1.0 if normalize else math.sqrt(len(a)))


def neighbours(shape):
    """Every unordered pair of positions that differ by at most one along each axis."""
    for here, there in itertools.combinations(itertools.product(*map(range, shape)), 2):
        if max(abs(i - j) for i, j in zip(here, there, strict=True)) == 1:
            yield here, there


def literal(student, teacher, normalize=True, mask=None):
    """The terms of all pairs that count."""
    keep = torch.ones(student.shape[0], *student.shape[2:], dtype=torch.bool) if mask is None else mask
    found = []
    for s, t, valid in zip(student.detach().double(), teacher.double(), keep, strict=True):
        for here, there in neighbours(valid.shape):
            if valid[here] and valid[there]:
                found.append((distance(s, here, there, normalize) - distance(t, here, there, normalize)) ** 2)
    return found


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize(("channels", "shape"), SHAPES, ids=str)
def test_is_the_formula_with_its_reductions(channels, shape, normalize, masked):
    for dtype, rel in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        student, teacher = maps(channels, shape, dtype=dtype)
        mask = some_mask(student) if masked else None
        pairs = literal(student, teacher, normalize, mask)
        options = {"normalize": normalize, "mask": mask}
        mean, total, none = (local_mse(student, teacher, reduction=how, **options) for how in ("mean", "sum", "none"))
        assert (mean.dtype, none.dtype) == (dtype, dtype)
        assert mean.item() == pytest.approx(sum(pairs) / len(pairs), rel=rel)
        assert total.item() == pytest.approx(sum(pairs), rel=rel)
        assert none.shape == (shape[0], (3 ** (len(shape) - 2) - 1) // 2, *shape[2:])
        got = sorted(none[none != 0].tolist())
        assert got == pytest.approx(sorted(p for p in pairs if p), rel=1e-3, abs=1e-7)


def test_none_lies_where_it_says():
    student, teacher = maps(4, (1, 3, 3, 4), dtype=torch.float64)
    pairs = local_mse(student, teacher, reduction="none")[0]
    for s, (down, right) in enumerate([(0, 1), (1, -1), (1, 0), (1, 1)]):
        for i, j in itertools.product(range(3), range(4)):
            expected = 0.0
            if 0 <= i + down < 3 and 0 <= j + right < 4:
                here, there = (i, j), (i + down, j + right)
                own, its = (distance(x.detach()[0], here, there, True) for x in (student, teacher))
                expected = (own - its) ** 2
            assert pairs[s, i, j].item() == pytest.approx(expected, rel=1e-9)


@pytest.mark.parametrize("normalize", [True, False])
@pytest.mark.parametrize("shape", [(2, 3, 4, 1), (2, 3, 1, 4), (2, 3, 1, 1, 4)])
def test_a_map_of_one_row_or_column_is_a_line(shape, normalize):
    student, teacher = maps(5, (2, 3, 4), dtype=torch.float64)
    value, gradient = value_and_gradient(local_mse, student, teacher, normalize=normalize)
    flat = value_and_gradient(local_mse, student.reshape(shape), teacher.reshape(2, 5, *shape[2:]), normalize=normalize)
    torch.testing.assert_close((flat[0], flat[1].view(2, 3, 4)), (value, gradient))


@pytest.mark.parametrize("normalize", [True, False])
def test_gradcheck_with_a_mask(normalize):
    student, teacher = maps(5, (2, 3, 3, 4), dtype=torch.float64)
    mask = some_mask(student)
    torch.autograd.gradcheck(lambda s: local_mse(s, teacher, normalize=normalize, mask=mask), student)


def plain(student, teacher, normalize):
    """In torch's own operations, for an image."""
    found = []
    for x in (student, teacher):
        x = torch.nn.functional.normalize(x) if normalize else x / x.shape[1] ** 0.5
        shifted = [(x[..., :-1], x[..., 1:]), (x[..., :-1, :], x[..., 1:, :])]
        shifted += [(x[..., :-1, :-1], x[..., 1:, 1:]), (x[..., :-1, 1:], x[..., 1:, :-1])]
        found.append(torch.cat([torch.linalg.vector_norm(a - b, dim=1).flatten() for a, b in shifted]))
    return (found[0] - found[1]).square().mean()


@pytest.mark.parametrize("normalize", [True, False])
def test_value_and_gradient_agree_with_autograd_in_float64(normalize):
    student, teacher = maps(7, (3, 20, 9, 11))
    value, gradient = value_and_gradient(local_mse, student, teacher, normalize=normalize)
    expected, slope = value_and_gradient(plain, student.double(), teacher.double(), normalize=normalize)
    assert value.item() == pytest.approx(expected.item(), rel=1e-5)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=1e-8)


def test_what_any_loss_keeps():
    student, teacher = maps(5, (3, 3, 4, 6))
    mask = some_mask(student)
    for normalize in (True, False):
        loss = lambda s, t, normalize=normalize, **more: local_mse(s, t, normalize=normalize, **more)  # noqa: E731
        check_void(loss, student, teacher, mask)
        check_types(loss, student, teacher)
        check_scale(loss, student, teacher)
        check_graph(loss, student, teacher)
    same, gradient = value_and_gradient(local_mse, student, student.detach().clone())
    assert same == 0
    assert not gradient.any()


@settings(max_examples=10, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3))
def test_turned_and_scaled_maps_have_the_same_value(seed, size):
    student, teacher = (x.detach() for x in maps(2, (2, 3, 4, 5), seed=seed, dtype=torch.float64))
    value = local_mse(student, teacher).item()
    assert 0 <= value <= 4
    for turn in (lambda x: x.flip(2), lambda x: x.flip(3), lambda x: x.transpose(2, 3)):
        assert local_mse(turn(student), turn(teacher)).item() == pytest.approx(value, rel=1e-9)
    assert local_mse(size * student, teacher / size).item() == pytest.approx(value, rel=1e-9)
    raw = local_mse(student, teacher, normalize=False).item()
    both = local_mse(size * student, size * teacher, normalize=False).item()
    assert both == pytest.approx(size**2 * raw, rel=1e-9)


@pytest.mark.parametrize("size", [1e4, 1e30, torch.finfo(torch.float32).max])
def test_the_same_for_values_of_any_size(size):
    student, teacher = (x.detach() / x.detach().abs().max() for x in maps(5, (2, 3, 4, 6)))
    expected, slope = value_and_gradient(local_mse, student, teacher)
    value, gradient = value_and_gradient(local_mse, size * student, size * teacher)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(gradient.double() * size, slope.double(), rtol=1e-4, atol=1e-6)


def test_equal_neighbours_and_zero_vectors_get_no_gradient():
    _, teacher = maps(5, (2, 3, 4, 6))
    flat = torch.ones(2, 3, 4, 6)
    value, gradient = value_and_gradient(local_mse, flat, teacher)
    assert value > 0
    assert not gradient.any()
    student = maps(5, (2, 3, 4, 6))[0].detach().clone()
    student[:, :, 1, 1] = 0.0
    value, gradient = value_and_gradient(local_mse, student, teacher)
    assert gradient.isfinite().all()
    assert not gradient[:, :, 1, 1].any()
    assert gradient[:, :, 0, 0].any()


@pytest.mark.slow
def test_compiles_to_one_graph():
    check_compiled(local_mse, *maps(5, (2, 3, 4, 6)))


def test_misuse_is_named():
    check_refusals(local_mse)
    point = torch.zeros(2, 3, 1, 1)
    with pytest.raises(ShapeError, match=r"two positions, got one in \(2, 3, 1, 1\).*no neighbours"):
        local_mse(point, point)
    with pytest.raises(ShapeError, match="two positions, got one"):
        LocalAffinity().bind(point.shape, point.shape, None)
    with pytest.raises(DtypeError, match="normalize: expected True or False, got 1"):
        LocalAffinity(normalize=1)
    with pytest.raises(DtypeError, match="normalize: expected True or False, got 'no'"):
        local_mse(torch.zeros(1, 2, 3), torch.zeros(1, 2, 3), normalize="no")


def test_the_module_is_the_function():
    student, teacher = maps(5, (2, 3, 4, 6))
    mask = some_mask(student)
    loss = LocalAffinity()
    loss.bind(student.shape, teacher.shape, None)
    assert loss(student, teacher, mask=mask) == local_mse(student, teacher, mask=mask)
    assert LocalAffinity(normalize=False)(student, teacher) == local_mse(student, teacher, normalize=False)
    assert "normalize=False" in repr(LocalAffinity(normalize=False))
    assert not LocalAffinity.equal_channels
