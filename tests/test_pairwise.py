"""pairwise_mse against loops over nodes, and both of its ways against whole maps in float64."""

from __future__ import annotations

import itertools
import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from densekd.errors import ArgumentError, ShapeError
from densekd.functional import gram
from densekd.functional.pairwise import pairwise_mse
from densekd.losses.pairwise import PairWise
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


def nodes(image, valid, pool):
    """Unit vectors of the valid cells of (C, *spatial), as lists, one cell at a time."""
    sides = image.shape[1:]
    cells = [1 if pool is None else max(1, int(pool * n)) if pool < 1 else pool for n in sides]
    found = []
    for corner in itertools.product(*(range(0, n, cell) for n, cell in zip(sides, cells, strict=True))):
        window = tuple(slice(start, start + cell) for start, cell in zip(corner, cells, strict=True))
        here = valid[window]
        if here.any():
            vector = [max(channel[window][here].tolist()) for channel in image]
            length = math.sqrt(math.fsum(v * v for v in vector))
            found.append([v / length for v in vector])
    return found


def dot(a, b):
    return math.fsum(x * y for x, y in zip(a, b, strict=True))


def literal(student, teacher, pool, mask=None):
    """The sum over pairs, and their number, of each image."""
    keep = torch.ones(student.shape[0], *student.shape[2:], dtype=torch.bool) if mask is None else mask
    sums, counts = [], []
    for s, t, valid in zip(student.detach().double(), teacher.double(), keep, strict=True):
        own, its = nodes(s, valid, pool), nodes(t, valid, pool)
        pairs = list(itertools.product(range(len(own)), repeat=2))
        sums.append(math.fsum((dot(own[i], own[j]) - dot(its[i], its[j])) ** 2 for i, j in pairs))
        counts.append(len(pairs))
    return sums, counts


def whole(student, teacher):
    """Without pooling, from whole maps of similarities in float64."""
    s, t = (torch.nn.functional.normalize(x.double().flatten(2)) for x in (student, teacher))
    return (s.mT @ s - t.mT @ t).square().mean()


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("pool", [None, 1, 2, 3, 0.5])
@pytest.mark.parametrize(("channels", "shape"), SHAPES, ids=str)
def test_is_the_formula_with_its_reductions(channels, shape, pool, masked):
    for dtype, rel in ((torch.float64, 1e-10), (torch.float32, 1e-5)):
        student, teacher = maps(channels, shape, dtype=dtype)
        mask = some_mask(student) if masked else None
        sums, counts = literal(student, teacher, pool, mask)
        options = {"pool": pool, "mask": mask}
        images = pairwise_mse(student, teacher, reduction="none", **options)
        assert (images.shape, images.dtype) == ((shape[0],), dtype)
        assert images.tolist() == pytest.approx(sums, rel=rel, abs=1e-6)
        total, mean = (pairwise_mse(student, teacher, reduction=how, **options) for how in ("sum", "mean"))
        assert total.item() == pytest.approx(sum(sums), rel=rel, abs=1e-6)
        assert mean.item() == pytest.approx(sum(sums) / sum(counts), rel=rel, abs=1e-7)


@pytest.mark.parametrize("pool", [None, 2, 0.5])
def test_gradcheck_with_a_mask(pool):
    student, teacher = maps(5, (2, 3, 3, 4), dtype=torch.float64)
    mask = some_mask(student)
    torch.autograd.gradcheck(lambda s: pairwise_mse(s, teacher, pool=pool, mask=mask), student)


@pytest.fixture(params=["_by_nodes", "_by_channels"])
def one_way(request, monkeypatch):
    """Each of the two ways, in several blocks that are not all full."""
    monkeypatch.setattr(gram, "by_channels", lambda *_: request.param == "_by_channels")
    monkeypatch.setattr(gram, "_CPU_BLOCK", 300)


@pytest.mark.usefixtures("one_way")
class TestBothWays:
    @pytest.mark.parametrize(
        ("channels", "shape"), [(3, (2, 7, 5, 11)), (9, (1, 4, 37)), (2, (3, 2, 3, 4, 2))], ids=str
    )
    def test_agree_with_whole_maps(self, channels, shape):
        student, teacher = maps(channels, shape)
        value, gradient = value_and_gradient(pairwise_mse, student, teacher, pool=None)
        expected, slope = value_and_gradient(whole, student.double(), teacher)
        assert value.item() == pytest.approx(expected.item(), rel=1e-5)
        torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=1e-8)

    def test_keep_the_digits_of_nearly_equal_maps(self):
        _, teacher = maps(4, (2, 4, 12, 25))
        noise = torch.randn(teacher.shape, generator=torch.Generator().manual_seed(5))
        student = teacher + 1e-4 * noise
        value, gradient = value_and_gradient(pairwise_mse, student, teacher, pool=None)
        expected, slope = value_and_gradient(whole, student.double(), teacher)
        assert 0 < expected < 1e-8
        assert value.item() == pytest.approx(expected.item(), rel=1e-3)
        torch.testing.assert_close(gradient.double(), slope, rtol=1e-3, atol=2e-3 * slope.abs().max().item())
        same, nothing = value_and_gradient(pairwise_mse, teacher, teacher)
        assert same < 1e-14
        assert nothing.abs().max() < 1e-8

    def test_turned_features_have_the_same_similarities(self):
        _, teacher = maps(6, (2, 6, 4, 5), dtype=torch.float64)
        turn, _ = torch.linalg.qr(torch.randn(6, 6, generator=torch.Generator().manual_seed(2), dtype=torch.float64))
        student = torch.einsum("dc,nchw->ndhw", turn, teacher)
        assert pairwise_mse(student, teacher, pool=None).item() == pytest.approx(0.0, abs=1e-14)

    def test_hold_no_map_of_pairs(self):
        largest = []

        class Largest(TorchDispatchMode):
            def __torch_dispatch__(self, function, types, args=(), kwargs=None):
                result = function(*args, **(kwargs or {}))
                largest.extend(x.numel() for x in tree_leaves(result) if isinstance(x, torch.Tensor))
                return result

        student, teacher = maps(5, (2, 3, 10, 20))
        with Largest():
            pairwise_mse(student, teacher, pool=None).backward()
        assert max(largest) == 2 * 5 * 200
        assert max(largest) < 200 * 200


def test_the_cheaper_way_is_taken():
    single, double = torch.float32, torch.float64
    assert gram.by_channels((19, 19), 2048, "cpu", single)
    assert not gram.by_channels((512, 512), 1024, "cpu", single)
    assert gram.by_channels((512, 512), 1024, "cpu", double)
    assert gram.by_channels((512, 512), 4096, "cpu", single)
    assert not gram.by_channels((512, 512), 4096, "cuda", single)
    assert not gram.by_channels((2, 2), 10**6, "mps", single)


def test_what_any_loss_keeps():
    student, teacher = maps(5, (3, 3, 4, 6))
    check_void(pairwise_mse, student, teacher, some_mask(student))
    for pool in (2, None):
        loss = lambda s, t, pool=pool: pairwise_mse(s, t, pool=pool)  # noqa: E731
        check_types(loss, student, teacher)
        check_scale(loss, student, teacher)
        check_graph(loss, student, teacher)


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10_000), st.floats(1e-3, 1e3), st.integers(1, 3), st.integers(1, 3))
def test_neither_the_size_of_the_map_nor_of_its_values_matters(seed, size, rows, columns):
    student, teacher = maps(2, (2, 3, 2, 3), seed=seed, dtype=torch.float64)
    value = pairwise_mse(student, teacher, pool=None).item()
    assert 0 <= value <= 4
    finer = (x.detach().repeat_interleave(rows, 2).repeat_interleave(columns, 3) for x in (student, teacher))
    assert pairwise_mse(*finer, pool=None).item() == pytest.approx(value, rel=1e-7)
    assert pairwise_mse(size * student, -teacher, pool=None).item() == pytest.approx(value, rel=1e-7)


@pytest.mark.parametrize("size", [1e4, 1e30, torch.finfo(torch.float32).max])
def test_the_same_for_values_of_any_size(size):
    student, teacher = (x.detach() / x.detach().abs().max() for x in maps(5, (2, 3, 4, 6)))
    expected, slope = value_and_gradient(pairwise_mse, student, teacher)
    value, gradient = value_and_gradient(pairwise_mse, size * student, size * teacher)
    torch.testing.assert_close(value, expected, rtol=1e-5, atol=0.0)
    torch.testing.assert_close(gradient.double() * size, slope.double(), rtol=1e-4, atol=1e-6)


def test_a_zero_vector_resembles_nothing_and_gets_no_gradient():
    student, teacher = maps(5, (2, 3, 4, 6), dtype=torch.float64)
    student = student.detach().clone()
    student[:, :, 1, 2] = 0.0
    value, gradient = value_and_gradient(pairwise_mse, student, teacher, pool=None)
    expected = whole(student, teacher)
    assert value.item() == pytest.approx(expected.item())
    assert gradient.isfinite().all()
    assert not gradient[:, :, 1, 2].any()
    assert gradient[:, :, 0, 0].all()


def test_a_fraction_pools_as_the_structured_distillation_does():
    student, teacher = maps(5, (1, 3, 5, 7))
    as_there = [torch.nn.functional.max_pool2d(x, (2, 3), ceil_mode=True) for x in (student, teacher)]
    assert as_there[0].shape[2:] == (3, 3)
    torch.testing.assert_close(pairwise_mse(student, teacher, pool=0.5), pairwise_mse(*as_there, pool=None))


@pytest.mark.slow
def test_compiles_to_one_graph():
    check_compiled(pairwise_mse, *maps(5, (2, 3, 4, 6)))


def test_misuse_is_named():
    check_refusals(pairwise_mse)
    x = torch.zeros(2, 3, 4, 8)
    for pool in (0, -1, 1.5, True, "2", math.inf, math.nan):
        with pytest.raises(ArgumentError, match=r"pool: expected a whole number.*for example 2"):
            pairwise_mse(x, x, pool=pool)
        with pytest.raises(ArgumentError, match="pool: expected a whole number"):
            PairWise(pool=pool)
    with pytest.raises(ShapeError, match=r"two nodes, got one \(maps \(2, 3, 4, 8\), pool 8\).*lower pool"):
        pairwise_mse(x, x, pool=8)
    with pytest.raises(ShapeError, match="two nodes, got one"):
        PairWise().bind(torch.Size((2, 3, 2, 1)), torch.Size((2, 5, 2, 1)), None)
    PairWise().bind(torch.Size((2, 3, 2, 3)), torch.Size((2, 5, 2, 3)), None)
    many = torch.randn(1, 2, 2, 2, 2, 2)
    with pytest.raises(ShapeError, match="one to three spatial axes"):
        pairwise_mse(many, many)
    assert pairwise_mse(many, many, pool=None).item() == pytest.approx(0.0, abs=1e-12)


def test_the_module_is_the_function():
    student, teacher = maps(5, (2, 3, 4, 6))
    mask = some_mask(student)
    assert PairWise()(student, teacher, mask=mask) == pairwise_mse(student, teacher, pool=2, mask=mask)
    assert PairWise(pool=None)(student, teacher) == pairwise_mse(student, teacher, pool=1)
    assert "pool=0.5" in repr(PairWise(pool=0.5))
    assert not PairWise.equal_channels
