"""decoupled_kl against the formula in decimal numbers, pixel by pixel, from probabilities."""

from __future__ import annotations

import itertools
import statistics
from decimal import Decimal, localcontext

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd import functional as F
from densekd.distiller import Distiller, Term
from densekd.errors import ArgumentError, DtypeError, ShapeError, TapError
from densekd.functional.decoupled import decoupled_kl
from densekd.losses.decoupled import Decoupled

SHAPES = [(2, 19, 3, 5), (1, 3, 7), (3, 4, 2, 3, 2), (2, 2, 3, 3)]


def maps(*shape, std=3.0, seed=0):
    """Student, teacher, and labels with some void."""
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (std * torch.randn(shape, generator=generator) for _ in range(2))
    labels = torch.randint(0, shape[1], (shape[0], *shape[2:]), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    return student.requires_grad_(), teacher, labels


def parts(student, teacher, label, temperature=1.0):
    """tau**2 times both divergences of one pixel. Decimals hold 1e-5000 as well as 1."""
    tau = Decimal(temperature)
    with localcontext() as context:
        context.prec = 40
        (q, q_rest), (p, p_rest) = (
            (exps[label] / sum(exps), [e / sum(exps) for k, e in enumerate(exps) if k != label])
            for exps in ([(Decimal(value) / tau).exp() for value in values] for values in (student, teacher))
        )
        q_not, p_not = sum(q_rest), sum(p_rest)
        binary = p * (p / q).ln() + p_not * (p_not / q_not).ln()
        others = sum(a / p_not * ((a / p_not) / (b / q_not)).ln() for a, b in zip(p_rest, q_rest, strict=True))
        return float(tau**2 * binary), float(tau**2 * others)


def literal(student, teacher, labels, alpha=1.0, beta=2.0, temperature=1.0, mask=None):
    """The value of every position that counts."""
    s, t = (x.detach().double().flatten(2) for x in (student, teacher))
    flat, found = labels.flatten(1), []
    for n, i in itertools.product(range(flat.shape[0]), range(flat.shape[1])):
        if flat[n, i] == 255 or (mask is not None and not mask.flatten(1)[n, i]):
            continue
        binary, others = parts(s[n, :, i].tolist(), t[n, :, i].tolist(), int(flat[n, i]), temperature)
        found.append(alpha * binary + beta * others)
    return found


def some_mask(labels):
    mask = torch.rand(labels.shape, generator=torch.Generator().manual_seed(1)) < 0.6
    if labels.shape[0] > 1:
        mask[1] = False
    return mask


@pytest.mark.parametrize(
    "options", [{}, {"alpha": 0.0}, {"beta": 0.0}, {"alpha": 0.5, "beta": 8.0, "temperature": 4.0}]
)
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_is_the_formula(shape, options):
    student, teacher, labels = maps(*shape)
    expected = statistics.fmean(literal(student, teacher, labels, **options))
    exact = decoupled_kl(student.double(), teacher.double(), labels, **options)
    assert exact.dtype == torch.float64
    assert exact.item() == pytest.approx(expected, rel=1e-10, abs=1e-15)
    value = decoupled_kl(student, teacher, labels, **options)
    assert value.dtype == torch.float32
    assert value.item() == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_reductions_with_void_and_a_mask():
    student, teacher, labels = maps(3, 5, 4, 3)
    mask = some_mask(labels)
    expected = literal(student, teacher, labels, mask=mask)
    valid = mask & (labels != 255)
    assert 0 < len(expected) < mask.sum()
    pixels = decoupled_kl(student, teacher, labels, mask=mask, reduction="none")
    assert pixels.shape == labels.shape
    assert pixels[valid].tolist() == pytest.approx(expected, rel=1e-4)
    assert not pixels[~valid].any()
    for reduction, wanted in (("mean", statistics.fmean(expected)), ("sum", sum(expected))):
        value = decoupled_kl(student, teacher, labels, mask=mask, reduction=reduction)
        assert value.item() == pytest.approx(wanted, rel=1e-5)


def test_both_parts_make_up_the_pixelwise_divergence():
    student, teacher, labels = maps(2, 6, 4, 5)
    labels = labels.clamp(max=5)
    sure = torch.softmax(teacher, 1).gather(1, labels[:, None]).squeeze(1)
    binary, others = (
        decoupled_kl(student, teacher, labels, alpha=a, beta=1.0 - a, reduction="none") for a in (1.0, 0.0)
    )
    whole = F.pixelwise_kl(student, teacher, reduction="none")
    torch.testing.assert_close(binary + (1 - sure) * others, whole, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("standardize", [False, True])
def test_gradcheck_with_void_and_a_mask(standardize):
    student, teacher, labels = maps(2, 4, 3, 3, std=1.0)
    mask = some_mask(labels)
    torch.autograd.gradcheck(
        lambda s: decoupled_kl(s, teacher, labels, mask=mask, temperature=1.5, standardize=standardize),
        student.detach().double().requires_grad_(),
    )


def test_gradient_is_the_closed_form():
    student, teacher, labels = maps(2, 5, 3, 4)
    labels = labels.clamp(max=4)
    one = torch.nn.functional.one_hot(labels, 5).movedim(-1, 1).double()
    q, p = (torch.softmax(x.detach().double() / 2, 1) for x in (student, teacher))
    q_y, p_y = ((x * one).sum(1, keepdim=True) for x in (q, p))
    q_hat, p_hat = ((1 - one) * q / (1 - q_y), (1 - one) * p / (1 - p_y))
    expected = 2.0 / 24 * (1.0 * (q_y - p_y) * (one - q_hat) + 2.0 * (q_hat - p_hat))
    (gradient,) = torch.autograd.grad(decoupled_kl(student, teacher, labels, temperature=2.0), student)
    torch.testing.assert_close(gradient.double(), expected, rtol=1e-4, atol=1e-7)


class TestSureTeacher:
    """p_y rounds to 1, and its complement to 0."""

    def check(self, student, teacher, label=0, temperature=1.0):
        s, t = (torch.tensor(x).reshape(1, -1, 1).requires_grad_() for x in (student, teacher))
        expected = parts(s.flatten().tolist(), t.flatten().tolist(), label, temperature)
        for options, wanted in (({"beta": 0.0}, expected[0]), ({"alpha": 0.0, "beta": 1.0}, expected[1])):
            value = decoupled_kl(s, t, torch.tensor([[label]]), temperature=temperature, **options)
            assert value.item() == pytest.approx(wanted, rel=1e-5, abs=1e-30)
            (gradient,) = torch.autograd.grad(value, s)
            assert gradient.isfinite().all()
        return expected

    @pytest.mark.parametrize("gap", [20.0, 100.0, 1e4])
    @pytest.mark.parametrize("temperature", [1.0, 4.0])
    def test_the_others_keep_their_differences_far_below_the_labelled_class(self, gap, temperature):
        _, others = self.check([1.0, 0.5, -1.0, 2.0], [gap, 0.3, 0.2, -0.7], temperature=temperature)
        assert others > 0.1
        self.check([gap, 0.3, 0.2, -0.7], [1.0, 0.5, -1.0, 2.0], temperature=temperature)
        self.check([gap, 0.5, 1.5, 0.0], [gap + 3, 0.3, 0.2, -0.7], temperature=temperature)

    def test_a_sure_teacher_and_a_wrong_student(self):
        binary, _ = self.check([-1e4, 0.0, 3.0], [1e4, 0.5, -0.5])
        assert binary == pytest.approx(1e4 + 3, rel=1e-4)

    def test_a_teacher_sure_of_another_class(self):
        self.check([0.0, 1e4, 3.0], [1e4, -1e4, 0.0], label=2)
        self.check([0.0, 1.0, 3.0], [1e4, -1e4, 0.0], label=2)

    @settings(max_examples=60, deadline=None)
    @given(
        st.lists(st.floats(-1e4, 1e4, width=32), min_size=6, max_size=6), st.integers(0, 2), st.sampled_from([0.5, 4.0])
    )
    def test_any_logits(self, values, label, temperature):
        s, t = (torch.tensor(v, dtype=torch.float64).reshape(1, 3, 1) for v in (values[:3], values[3:]))
        expected = parts(values[:3], values[3:], label, temperature)
        for alpha, beta, wanted in ((1.0, 0.0, expected[0]), (0.0, 1.0, expected[1])):
            value = decoupled_kl(s, t, torch.tensor([[label]]), alpha=alpha, beta=beta, temperature=temperature)
            assert value.item() == pytest.approx(wanted, rel=1e-6, abs=1e-9)


@pytest.mark.parametrize("size", [1e30, torch.finfo(torch.float32).max])
@pytest.mark.parametrize("options", [{"temperature": 0.5}, {"temperature": 8.0, "beta": 100.0}, {"standardize": True}])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_finite_for_logits_of_any_size(size, options, reduction):
    student, teacher = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    student[:, 0], student[:, 1], teacher[:, 1], teacher[:, 0] = size, -size, size, -size
    student.requires_grad_()
    labels = torch.arange(32).reshape(2, 4, 4) % 3
    value = decoupled_kl(student, teacher, labels, reduction=reduction, **options)
    value.backward()
    assert value.isfinite()
    assert value > 0
    assert student.grad.isfinite().all()


def test_void_takes_no_part_whatever_stands_there():
    student, teacher, labels = maps(3, 5, 4, 3)
    mask = some_mask(labels)
    void = ~(mask & (labels != 255))[:, None].expand_as(teacher)
    leaf = student.detach().masked_fill(void, torch.nan).requires_grad_()
    value = decoupled_kl(leaf, teacher.masked_fill(void, torch.inf), labels, mask=mask)
    assert value.item() == pytest.approx(statistics.fmean(literal(student, teacher, labels, mask=mask)), rel=1e-5)
    value.backward()
    assert not leaf.grad[void].any()
    assert leaf.grad[~void].all()


def test_nothing_valid_is_a_zero_that_back_propagates():
    student, teacher, labels = maps(2, 3, 4, 4)
    for given_labels, mask in (
        (torch.full_like(labels, 255), None),
        (labels, torch.zeros(2, 4, 4, dtype=torch.bool)),
        (labels, labels == 255),
    ):
        student.grad = None
        value = decoupled_kl(student, teacher, given_labels, mask=mask)
        value.backward()
        assert value == 0
        assert student.grad.abs().sum() == 0


def test_another_ignore_index_and_type_of_labels():
    student, teacher, labels = maps(2, 5, 3, 4)
    expected = decoupled_kl(student, teacher, labels)
    for ignore_index, dtype in ((-1, torch.int32), (255, torch.uint8), (100, torch.int16)):
        other = torch.where(labels == 255, ignore_index, labels).to(dtype)
        assert decoupled_kl(student, teacher, other, ignore_index=ignore_index) == expected
    zero = decoupled_kl(student, teacher, labels, ignore_index=255, mask=labels != 0)
    assert decoupled_kl(student, teacher, labels.masked_fill(labels == 255, 0), ignore_index=0) == zero


def test_two_classes_leave_the_others_alone():
    student, teacher, labels = maps(2, 2, 3, 3)
    value = decoupled_kl(student, teacher, labels, alpha=0.0)
    value.backward()
    assert value == 0
    assert not student.grad.any()
    whole = F.pixelwise_kl(student, teacher, mask=labels != 255)
    torch.testing.assert_close(decoupled_kl(student, teacher, labels), whole)


def test_value_does_not_depend_on_batch_and_resolution():
    student, teacher, labels = maps(2, 5, 3, 4)
    value = decoupled_kl(student, teacher, labels).item()
    assert decoupled_kl(*(torch.cat([x, x]) for x in (student, teacher, labels))).item() == pytest.approx(value)
    larger = (x.repeat_interleave(2, -1).repeat_interleave(3, -2) for x in (student, teacher, labels))
    assert decoupled_kl(*larger).item() == pytest.approx(value, rel=1e-5)


def test_equal_maps_and_frozen_teacher():
    student, teacher, labels = maps(2, 3, 4, 4)
    teacher.requires_grad_()
    assert decoupled_kl(student, student.detach().clone(), labels) == 0
    decoupled_kl(student, teacher, labels).backward()
    assert teacher.grad is None


def test_standardized_logits_have_no_size():
    student, teacher, labels = maps(2, 5, 3, 4)
    one = decoupled_kl(student, teacher, labels, standardize=True)
    other = decoupled_kl(7.0 * student + 3.0, 0.2 * teacher, labels, standardize=True)
    torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)

    def z(x):
        return (x.double() - x.double().mean(1, keepdim=True)) / (x.double().std(1, keepdim=True) + 1e-7)

    assert one.item() == pytest.approx(statistics.fmean(literal(z(student), z(teacher), labels)), rel=1e-5)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_computed_in_float32(dtype):
    student, teacher, labels = maps(2, 5, 4, 4)
    student, teacher = student.detach().to(dtype).requires_grad_(), teacher.to(dtype)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = decoupled_kl(student, teacher, labels)
        assert value.dtype == torch.float32
        assert value.item() == pytest.approx(statistics.fmean(literal(student, teacher, labels)), rel=1e-5)
    value.backward()
    assert student.grad.dtype == dtype


def test_any_memory_format():
    student, teacher, labels = maps(2, 3, 4, 5)
    expected = decoupled_kl(student, teacher, labels).detach()
    flipped = student.detach().transpose(2, 3).contiguous().transpose(2, 3)
    for other in (student.detach().to(memory_format=torch.channels_last), flipped):
        torch.testing.assert_close(decoupled_kl(other, teacher, labels), expected)
    assert decoupled_kl(student, teacher, labels.transpose(1, 2).contiguous().transpose(1, 2)) == expected


def test_misuse_is_named():
    x, y = torch.zeros(2, 3, 4, 8), torch.zeros(2, 4, 8, dtype=torch.long)
    cases = [
        ((x[:, :1], x[:, :1], y), {}, ShapeError, r"decoupled losses need at least two channels, got one"),
        ((x, torch.zeros(2, 3, 8, 4), y), {}, ShapeError, "areas are equal"),
        ((x, x, None), {}, DtypeError, "labels: expected an integer tensor .* got NoneType"),
        ((x, x, y.float()), {}, DtypeError, r"labels: expected integer class ids, got torch.float32.*\.long\(\)"),
        ((x, x, y[:, None]), {}, ShapeError, r"labels: expected .* = \(2, 4, 8\), got \(2, 1, 4, 8\)"),
        ((x, x, y + 3), {}, ArgumentError, "labels: values from 3 to 3; expected class ids 0 to 2.*ignore_index 255"),
        ((x, x, y - 1), {}, ArgumentError, "values from -1 to -1"),
        ((x, x, y), {"temperature": 0}, ArgumentError, "positive finite number, got 0"),
        ((x, x, y), {"alpha": -1.0}, ArgumentError, "alpha: expected a finite number that is not negative"),
        ((x, x, y), {"beta": None}, DtypeError, "beta: expected a number, got NoneType"),
        ((x, x, y), {"reduction": "avg"}, ArgumentError, "'mean', 'sum', 'none', got 'avg'"),
        ((x, x, y), {"mask": y}, DtypeError, "mask: expected bool"),
    ]
    for arguments, options, error, words in cases:
        with pytest.raises(error, match=words):
            decoupled_kl(*arguments, **options)


def test_module_is_the_function():
    student, teacher, labels = maps(2, 5, 3, 4)
    mask = some_mask(labels)
    assert Decoupled()(student, teacher, labels) == decoupled_kl(student, teacher, labels)
    options = {"alpha": 0.5, "beta": 8.0, "temperature": 2.0, "ignore_index": 4, "standardize": True}
    labels = labels.clamp(max=4)
    expected = decoupled_kl(student, teacher, labels, mask=mask, **options)
    assert Decoupled(**options)(student, teacher, labels=labels, mask=mask) == expected
    assert "alpha=0.5, beta=8.0, temperature=2.0, ignore_index=4, standardize=True" in repr(Decoupled(**options))
    assert (Decoupled.name, Decoupled.logits_only, Decoupled().needs) == ("decoupled", True, {"labels"})
    with pytest.raises(ArgumentError, match="Decoupled needs labels"):
        Decoupled()(student, teacher)
    with pytest.raises(ArgumentError, match="beta"):
        Decoupled(beta=-2.0)


@pytest.mark.slow
def test_it_compiles_into_one_graph():
    torch._dynamo.reset()
    student, teacher, labels = maps(2, 5, 4, 4)
    compiled = torch.compile(decoupled_kl, backend="aot_eager", fullgraph=True)
    value, expected = (f(student, teacher, labels, mask=some_mask(labels)) for f in (compiled, decoupled_kl))
    torch.testing.assert_close(value, expected)
    (gradient,), (slope,) = (torch.autograd.grad(v, student) for v in (value, expected))
    torch.testing.assert_close(gradient, slope)
    with pytest.raises(Exception, match="out of bounds"):
        compiled(student, teacher, labels + 5, mask=labels != 255)


def test_in_a_distiller():
    student, teacher = (torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3, stride=2, padding=1)) for _ in range(2))
    images = torch.rand(2, 3, 8, 8)
    distiller = Distiller(student, teacher, [Term(Decoupled(), student="output", teacher="output")], images)
    labels = torch.randint(0, 4, (2, 8, 8))
    distiller(images, labels=labels).loss.backward()
    assert student[0].weight.grad.any()
    with pytest.raises(ArgumentError, match="needs labels"):
        distiller(images)
    features = torch.nn.Sequential(torch.nn.Conv2d(3, 6, 3, padding=1), torch.nn.Conv2d(6, 4, 1))
    with pytest.raises(TapError, match="decoupled compares classes"):
        Distiller(features, teacher, [Term(Decoupled(), student="0", teacher="output")], images)
