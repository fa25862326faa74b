"""masked_mse against loops over positions, and the network that MaskedGenerative trains."""

from __future__ import annotations

import copy
import itertools
import pickle
import random

import pytest
import torch
from torch import nn

from densekd.distiller import Distiller, Term
from densekd.doctor import preflight
from densekd.errors import ArgumentError, DtypeError, ShapeError
from densekd.functional.masked import draw_visible, masked_mse
from densekd.losses import FeatureMimic, masked
from densekd.losses.masked import MaskedGenerative


def maps(*shape, seed=0):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (torch.randn(shape, generator=generator) for _ in range(2))
    visible, mask = (torch.rand(shape[0], *shape[2:], generator=generator) < 0.6 for _ in range(2))
    return student.requires_grad_(), teacher, visible, mask


def bound(channels, **options):
    torch.manual_seed(5)
    loss = MaskedGenerative(**options)
    loss.bind(torch.Size((2, channels, 4, 4)), torch.Size((2, channels, 4, 4)), None)
    return loss


def convolve(x, weight, bias):
    """3x3 with a border of zeros, in Python's floats: x[c][i][j]."""
    height, width = len(x[0]), len(x[0][0])
    out = [[[0.0] * width for _ in range(height)] for _ in weight]
    for o, i, j in itertools.product(range(len(weight)), range(height), range(width)):
        total = bias[o]
        for c, a, b in itertools.product(range(len(x)), range(3), range(3)):
            row, column = i + a - 1, j + b - 1
            if 0 <= row < height and 0 <= column < width:
                total += weight[o][c][a][b] * x[c][row][column]
        out[o][i][j] = total
    return out


def literal(student, teacher, visible, generator, mask=None):
    """The mean over every channel of the positions that count."""
    w1, b1, w2, b2 = (p.detach().double().tolist() for p in generator.parameters())
    s, t, v = (x.detach().tolist() for x in (student.double(), teacher.double(), visible))
    m = torch.ones_like(visible).tolist() if mask is None else mask.tolist()
    total, count = 0.0, 0
    for n in range(len(s)):
        seen = [
            [[value if v[n][i][j] and m[n][i][j] else 0.0 for j, value in enumerate(row)] for i, row in enumerate(rows)]
            for rows in s[n]
        ]
        inner = [[[max(value, 0.0) for value in row] for row in rows] for rows in convolve(seen, w1, b1)]
        made = convolve(inner, w2, b2)
        for c, i, j in itertools.product(range(len(made)), range(len(made[0])), range(len(made[0][0]))):
            if m[n][i][j]:
                total, count = total + (made[c][i][j] - t[n][c][i][j]) ** 2, count + 1
    return total / count


@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("hidden", [None, 2])
@pytest.mark.parametrize("shape", [(2, 3, 4, 5), (1, 2, 3, 1)], ids=str)
def test_is_the_formula(shape, hidden, masked):
    student, teacher, visible, mask = maps(*shape)
    generator = bound(shape[1], hidden=hidden).generator
    mask = mask if masked else None
    value = masked_mse(student, teacher, visible=visible, generate=generator, mask=mask)
    assert value.dtype == torch.float32
    expected = literal(student, teacher, visible, generator, mask)
    assert value.item() == pytest.approx(expected, rel=1e-5)
    exact = masked_mse(
        student.double(), teacher.double(), visible=visible, generate=copy.deepcopy(generator).double(), mask=mask
    )
    assert exact.item() == pytest.approx(expected, rel=1e-12)


def test_reductions_and_their_denominators():
    student, teacher, visible, mask = maps(2, 3, 4, 5)
    squares = (torch.where(visible[:, None], 2 * student.detach(), 0.0) - teacher).square()
    for reduction, expected in (("mean", squares.mean()), ("sum", squares.sum()), ("none", squares)):
        value = masked_mse(student, teacher, visible=visible, generate=lambda x: 2 * x, reduction=reduction)
        torch.testing.assert_close(value.detach(), expected)
    both = masked_mse(student, teacher, visible=visible, generate=lambda x: 2 * x, mask=mask)
    torch.testing.assert_close(both.detach(), squares.movedim(1, -1)[mask].mean())


def test_gradcheck_of_map_and_network():
    student, teacher, visible, mask = maps(2, 2, 3, 3)
    generator = bound(2, hidden=3).generator.double()
    parameters = dict(generator.named_parameters())

    def value(s, *weights):
        def generate(x):
            return torch.func.functional_call(generator, dict(zip(parameters, weights, strict=True)), (x,))

        return masked_mse(s, teacher.double(), visible=visible, generate=generate, mask=mask)

    torch.autograd.gradcheck(value, (student.detach().double().requires_grad_(), *parameters.values()))


def test_void_is_neither_seen_nor_compared_whatever_stands_there():
    student, teacher, visible, mask = maps(3, 2, 4, 5)
    mask[1] = False
    generator = bound(2).generator
    void = ~mask[:, None].expand_as(teacher)
    leaf = student.detach().masked_fill(void, torch.nan).requires_grad_()
    value = masked_mse(leaf, teacher.masked_fill(void, torch.inf), visible=visible, generate=generator, mask=mask)
    assert value.item() == pytest.approx(literal(student, teacher, visible, generator, mask), rel=1e-5)
    value.backward()
    seen = (visible & mask)[:, None].expand_as(teacher)
    assert not leaf.grad[~seen].any()
    assert leaf.grad[seen].any()
    assert all(p.grad.isfinite().all() for p in generator.parameters())


def test_nothing_valid_is_a_zero_that_back_propagates():
    student, teacher, _, _ = maps(2, 3, 4, 4)
    loss = bound(3)
    value = loss(student, teacher, mask=torch.zeros(2, 4, 4, dtype=torch.bool))
    value.backward()
    assert value == 0
    assert student.grad.abs().sum() == 0
    assert all(p.grad.abs().sum() == 0 for p in loss.parameters())


def test_value_does_not_depend_on_batch_channels_and_resolution():
    student, teacher, visible, _ = maps(2, 3, 4, 5)

    def value(s, t, v):
        return masked_mse(s, t, visible=v, generate=lambda x: 2 * x).item()

    expected = value(student, teacher, visible)
    assert value(*(torch.cat([x, x]) for x in (student, teacher, visible))) == pytest.approx(expected, rel=1e-5)
    assert value(*(x.repeat_interleave(2, -1) for x in (student, teacher, visible))) == pytest.approx(
        expected, rel=1e-5
    )
    wider = (torch.cat([x, x], 1) for x in (student, teacher))
    assert value(*wider, visible) == pytest.approx(expected, rel=1e-5)


def test_types_of_map_and_network():
    student, teacher, visible, _ = maps(2, 3, 4, 5)
    loss = bound(3)
    expected = masked_mse(student, teacher, visible=visible, generate=loss.generator)
    half = student.detach().bfloat16().requires_grad_()
    value = masked_mse(half, teacher.bfloat16(), visible=visible, generate=loss.generator)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=0.02)
    value.backward()
    assert half.grad.dtype == torch.bfloat16
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value = masked_mse(student, teacher, visible=visible, generate=loss.generator)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected.item(), rel=0.02)
    # 300**2 is beyond float16
    large = torch.full((1, 1, 2, 2), 300.0, dtype=torch.float16)
    one = torch.ones(1, 2, 2, dtype=torch.bool)
    assert masked_mse(large, torch.zeros_like(large), visible=one, generate=lambda x: x) == 90_000


def test_any_memory_format():
    student, teacher, visible, _ = maps(2, 3, 4, 5)
    generator = bound(3).generator
    expected = masked_mse(student, teacher, visible=visible, generate=generator)
    for other in (
        student.to(memory_format=torch.channels_last),
        student.transpose(2, 3).contiguous().transpose(2, 3),
    ):
        torch.testing.assert_close(masked_mse(other, teacher, visible=visible, generate=generator), expected)


class TestDrawing:
    def test_the_part_that_is_hidden(self):
        like = torch.zeros(4, 7, 64, 64)
        for ratio in (0.0, 0.5, 0.75):
            visible = draw_visible(like, ratio, torch.Generator().manual_seed(0))
            assert (visible.shape, visible.dtype) == ((4, 64, 64), torch.bool)
            assert visible.double().mean().item() == pytest.approx(1 - ratio, abs=0.015)
        assert draw_visible(torch.zeros(2, 3, 5), 0.5).shape == (2, 5)

    def test_the_seed_of_a_step_decides_what_is_hidden_in_training(self):
        student, teacher, _, _ = maps(2, 3, 8, 8)
        loss = bound(3)
        values = []
        for seed in (1, 1, 2):
            torch.manual_seed(seed)
            values.append(loss(student, teacher).item())
        assert values[0] == values[1] != values[2]
        assert loss(student, teacher) != loss(student, teacher)

    def test_evaluation_hides_the_same_positions_and_draws_nothing(self):
        student, teacher, _, _ = maps(2, 3, 8, 8)
        loss = bound(3).eval()
        before = torch.get_rng_state()
        assert loss(student, teacher) == loss(student, teacher)
        assert torch.equal(torch.get_rng_state(), before)

    def test_module_is_the_function(self):
        student, teacher, _, mask = maps(2, 3, 8, 8)
        loss = bound(3, mask_ratio=0.5)
        torch.manual_seed(3)
        value = loss(student, teacher, mask=mask)
        torch.manual_seed(3)
        visible = draw_visible(student, 0.5)
        assert value == masked_mse(student, teacher, visible=visible, generate=loss.generator, mask=mask)


@pytest.mark.parametrize(("channels", "hidden"), [(6, None), (6, 2), (3, 8)])
def test_parameter_count_is_the_documented_one(channels, hidden):
    loss = bound(channels, hidden=hidden)
    width = hidden or channels
    assert sum(p.numel() for p in loss.parameters()) == 18 * channels * width + width + channels
    assert f"mask_ratio=0.75, hidden={hidden}" in repr(loss)
    again = pickle.loads(pickle.dumps(copy.deepcopy(loss)))
    assert all(torch.equal(p, q) for p, q in zip(loss.parameters(), again.parameters(), strict=True))


def network(width):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, stride=2, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, 5, 1)
    )


def distilled(loss=None):
    torch.manual_seed(0)
    terms = [Term(loss or MaskedGenerative(), student="1", teacher="1")]
    return Distiller(network(4), network(8), terms, torch.rand(2, 3, 16, 16))


class TestInADistiller:
    def test_the_generator_is_trained_with_the_student(self):
        distiller = distilled(MaskedGenerative(hidden=3))
        own = distiller.adapters["masked:1"].loss.generator
        trained = {id(p) for p in distiller.parameters()}
        assert all(id(p) in trained for p in own.parameters())
        assert any(name.startswith("adapters.masked:1.loss.generator.") for name in distiller.state_dict())
        images = torch.rand(2, 3, 16, 16)
        optimizer = torch.optim.Adam(distiller.parameters(), lr=0.01)
        distiller.eval()  # the same positions are hidden every time, so that values compare
        before, first = copy.deepcopy(own.state_dict()), distiller(images).loss.item()
        distiller.train()
        for _ in range(30):
            optimizer.zero_grad()
            distiller(images).loss.backward()
            optimizer.step()
        assert all(not torch.equal(p, before[name]) for name, p in own.state_dict().items())
        assert distiller.eval()(images).loss.item() < 0.9 * first

    def test_a_step_can_be_repeated_after_a_resume(self):
        first, second = distilled(), distilled()
        images = torch.rand(2, 3, 16, 16)
        with torch.no_grad():
            for parameter in first.parameters():
                parameter.add_(0.01)
        second.load_state_dict(first.state_dict())
        values = []
        for distiller in (first, second):
            torch.manual_seed(12)
            values.append(distiller(images).loss)
        assert values[0] == values[1]

    def test_its_first_weights_depend_on_the_term_alone(self):
        first = distilled()
        torch.manual_seed(99)
        again = Distiller(network(4), network(8), [Term(MaskedGenerative(), student="1", teacher="1")], images())
        pairs = zip(first.adapters.parameters(), again.adapters.parameters(), strict=True)
        assert all(torch.equal(p, q) for p, q in pairs)

    def test_its_size_is_told(self):
        notices = " ".join(distilled(MaskedGenerative(hidden=3)).notices)
        assert f"the loss trains {18 * 8 * 3 + 3 + 8:,} parameters of its own" in notices
        assert "of its own" not in " ".join(distilled(FeatureMimic()).notices)

    @pytest.mark.parametrize("training", [True, False])
    def test_the_preflight_changes_nothing(self, training):
        distiller = distilled().train(training)
        labels = torch.randint(0, 5, (2, 16, 16))
        weights = copy.deepcopy(distiller.state_dict())
        states = torch.get_rng_state(), random.getstate()

        def task(output, y):
            return nn.functional.cross_entropy(nn.functional.interpolate(output, size=y.shape[1:]), y)

        report = preflight(distiller, (images(), labels), task)
        assert report.problems == []
        assert report.terms[0].gradient_norm > 0
        assert torch.equal(torch.get_rng_state(), states[0])
        assert random.getstate() == states[1]
        assert all(torch.equal(value, weights[name]) for name, value in distiller.state_dict().items())
        assert all(p.grad is None for p in distiller.parameters())
        assert distiller.training == training


def images():
    return torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(1))


@pytest.mark.slow
def test_it_compiles_into_the_distillers_graph():
    torch._dynamo.reset()
    distiller = distilled(MaskedGenerative(mask_ratio=0.0))
    plain = copy.deepcopy(distiller)
    compiled = torch.compile(distiller, backend="aot_eager", fullgraph=True)
    got, expected = (out.loss + out.student.square().mean() for out in (compiled(images()), plain(images())))
    torch.testing.assert_close(got, expected)
    got.backward()
    expected.backward()
    for p, q in zip(distiller.parameters(), plain.parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad)


def test_teacher_gets_no_gradient():
    student, teacher, visible, _ = maps(1, 2, 3, 3)
    teacher.requires_grad_()
    masked_mse(student, teacher, visible=visible, generate=lambda x: x).backward()
    assert teacher.grad is None


def test_a_generator_that_does_not_fit(monkeypatch):
    shape = torch.Size((2, 512, 8, 8))
    words = r"512 channels with hidden=10000000 has 92,170,000,512 parameters and takes 1474\.72 GB.*lower hidden"
    monkeypatch.setattr(masked, "available_bytes", lambda: 9_500_000_000)
    loss = MaskedGenerative(hidden=10_000_000)
    with pytest.raises(ArgumentError, match=words):
        loss.bind(shape, shape, None)
    assert loss.generator is None
    MaskedGenerative(hidden=8).bind(shape, shape, None)


def test_misuse_is_named():
    x, seen = torch.zeros(2, 3, 4, 8), torch.ones(2, 4, 8, dtype=torch.bool)
    same = {"visible": seen, "generate": lambda m: m}
    cases = [
        ((x, torch.zeros(2, 5, 4, 8)), same, ShapeError, "channels differ: put a 1x1 convolution on the student"),
        ((x, x.int()), same, DtypeError, "teacher: expected floating-point"),
        ((x, x), {**same, "visible": None}, DtypeError, "visible: expected a bool tensor .*draw_visible"),
        ((x, x), {**same, "visible": seen.float()}, DtypeError, "visible: expected bool"),
        ((x, x), {**same, "visible": seen[:1]}, ShapeError, r"visible: .* = \(2, 4, 8\), got \(1, 4, 8\)"),
        ((x, x), {**same, "mask": seen[:1]}, ShapeError, "mask: expected"),
        ((x, x), {**same, "reduction": "avg"}, ArgumentError, "'mean', 'sum', 'none', got 'avg'"),
        (
            (x, x),
            {"visible": seen, "generate": nn.Conv2d(3, 3, 3)},
            ShapeError,
            r"generate: .*\(2, 3, 4, 8\), got \(2, 3, 2, 6\).*padding=1",
        ),
    ]
    for arguments, options, error, words in cases:
        with pytest.raises(error, match=words):
            masked_mse(*arguments, **options)
    for options, words in (
        ({"mask_ratio": 1.0}, "from 0 to below 1, got 1.0"),
        ({"mask_ratio": -0.1}, "got -0.1"),
        ({"mask_ratio": "half"}, "mask_ratio: expected a number, got str"),
        ({"hidden": 0}, "hidden: expected a number of channels, at least 1, or None, got 0"),
        ({"hidden": 2.5}, "got 2.5"),
    ):
        with pytest.raises(ArgumentError, match=words):
            MaskedGenerative(**options)
    with pytest.raises(ArgumentError, match="no generator yet: the Distiller makes it; by hand, call bind"):
        MaskedGenerative()(x, x)
    with pytest.raises(ShapeError, match=r"maps \(N, C, H, W\), got \(2, 3, 8\)"):
        MaskedGenerative().bind(torch.Size((2, 3, 8)), torch.Size((2, 3, 8)), None)
