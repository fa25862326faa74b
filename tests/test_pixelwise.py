"""pixelwise_kl and pixelwise_mse against float64 by hand."""

from __future__ import annotations

import pytest
import torch

from densekd import functional as F
from densekd.errors import ArgumentError, DtypeError, ShapeError
from densekd.losses import PixelWise


def maps(*shape, std=4.0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(0)
    student, teacher = (std * torch.randn(shape, generator=generator) for _ in range(2))
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def exact_kl(student, teacher, temperature=1.0):
    """temperature**2 * KL of every pixel in float64, from probabilities alone."""
    q = torch.softmax(student.double() / temperature, 1)
    p = torch.softmax(teacher.double() / temperature, 1)
    return temperature**2 * (p * (p / q).log()).sum(1)


def exact_mse(student, teacher, temperature=1.0):
    q = torch.softmax(student.double() / temperature, 1)
    p = torch.softmax(teacher.double() / temperature, 1)
    return temperature**2 * (q - p).square().sum(1)


PAIRS = [(F.pixelwise_kl, exact_kl), (F.pixelwise_mse, exact_mse)]


@pytest.mark.parametrize(("function", "exact"), PAIRS)
@pytest.mark.parametrize("temperature", [1.0, 3.0])
@pytest.mark.parametrize("shape", [(2, 19, 6, 7), (1, 2, 5), (3, 4, 2, 3, 2)], ids=str)
def test_value_and_gradient_agree_with_float64(shape, temperature, function, exact):
    student, teacher = maps(*shape)
    value = function(student, teacher, temperature=temperature)
    expected = exact(student, teacher, temperature).mean()
    assert value.double().item() == pytest.approx(expected.item(), rel=5e-6)
    (gradient,), (slope,) = (torch.autograd.grad(v, student) for v in (value, expected))
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-7)


def test_gradient_is_the_closed_form():
    student, teacher = maps(2, 3, 4, 5)
    (gradient,) = torch.autograd.grad(F.pixelwise_kl(student, teacher, temperature=2.0), student)
    difference = torch.softmax(student.detach() / 2, 1) - torch.softmax(teacher / 2, 1)
    torch.testing.assert_close(gradient, 2.0 / 40 * difference, rtol=1e-4, atol=1e-8)


@pytest.mark.parametrize(("function", "exact"), PAIRS)
def test_reductions_and_their_denominators(function, exact):
    student, teacher = maps(2, 3, 4, 5)
    pixels = function(student, teacher, reduction="none")
    assert pixels.shape == (2, 4, 5)
    torch.testing.assert_close(pixels.double(), exact(student, teacher), rtol=1e-4, atol=1e-6)
    torch.testing.assert_close(function(student, teacher, reduction="sum"), pixels.sum())
    torch.testing.assert_close(function(student, teacher), pixels.sum() / 40)


@pytest.mark.parametrize(("function", "exact"), PAIRS)
def test_a_mask_keeps_the_mean_over_what_counts(function, exact):
    student, teacher = maps(3, 4, 5, 6)
    mask = torch.rand(3, 5, 6, generator=torch.Generator().manual_seed(1)) < 0.5
    mask[1] = False
    leaf = student.detach().masked_fill(~mask[:, None], torch.nan).requires_grad_()
    value = function(leaf, teacher.masked_fill(~mask[:, None], torch.inf), mask=mask)
    expected = exact(student, teacher)[mask].mean()
    assert value.double().item() == pytest.approx(expected.item(), rel=5e-6)
    (gradient,), (slope,) = torch.autograd.grad(value, leaf), torch.autograd.grad(expected, student)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-7)
    pixels = function(student, teacher, mask=mask, reduction="none")
    assert pixels[~mask].abs().sum() == 0


@pytest.mark.parametrize(("function", "exact"), PAIRS)
def test_nothing_valid_is_a_zero_that_back_propagates(function, exact):
    student, teacher = maps(2, 3, 4, 4)
    value = function(student, teacher, mask=torch.zeros(2, 4, 4, dtype=torch.bool))
    value.backward()
    assert value == 0
    assert student.grad.abs().sum() == 0


@pytest.mark.parametrize(("function", "exact"), PAIRS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_input_is_computed_in_float32(dtype, function, exact):
    student, teacher = maps(2, 5, 4, 4, dtype=dtype)
    for enabled in (False, True):
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
            value = function(student, teacher)
        assert value.dtype == torch.float32
        assert value.double().item() == pytest.approx(exact(student, teacher).mean().item(), rel=5e-6)
    value.backward()
    assert student.grad.dtype == dtype
    assert function(student.double(), teacher.double()).dtype == torch.float64


@pytest.mark.parametrize("function", [F.pixelwise_kl, F.pixelwise_mse])
@pytest.mark.parametrize("size", [1e4, 1e30, torch.finfo(torch.float32).max])
@pytest.mark.parametrize("temperature", [0.5, 1.0, 8.0])
def test_finite_for_logits_of_any_size(size, temperature, function):
    student, teacher = torch.zeros(2, 3, 4, 4), torch.zeros(2, 3, 4, 4)
    student[:, 0], student[:, 1], teacher[:, 1], teacher[:, 0] = size, -size, size, -size
    student.requires_grad_()
    value = function(student, teacher, temperature=temperature)
    value.backward()
    assert value.isfinite()
    assert value > 0
    assert student.grad.isfinite().all()


def test_gradcheck_with_a_mask():
    student, teacher = (m.detach().double() for m in maps(2, 3, 2, 2, std=1.0))
    mask = torch.tensor([[[True, False], [True, True]], [[False, False], [False, False]]])
    for function in (F.pixelwise_kl, F.pixelwise_mse):
        torch.autograd.gradcheck(lambda s, f=function: f(s, teacher, mask=mask), student.requires_grad_())


def test_equal_maps_and_frozen_teacher():
    student, teacher = maps(2, 3, 4, 4)
    teacher.requires_grad_()
    for function in (F.pixelwise_kl, F.pixelwise_mse):
        assert function(student, student.detach().clone()) == 0
        function(student, teacher).backward()
    assert teacher.grad is None


def test_channels_last():
    student, teacher = maps(2, 3, 4, 5)
    other = student.detach().to(memory_format=torch.channels_last)
    torch.testing.assert_close(F.pixelwise_kl(other, teacher), F.pixelwise_kl(student, teacher).detach())


@pytest.mark.parametrize("function", [F.pixelwise_kl, F.pixelwise_mse])
def test_misuse_is_named(function):
    x = torch.zeros(2, 3, 4, 8)
    cases = [
        ((x[:, :1], x[:, :1]), {}, ShapeError, r"at least two channels, got one in \(2, 1, 4, 8\).*always 0"),
        ((x, torch.zeros(2, 3, 8, 4)), {}, ShapeError, "areas are equal"),
        ((x.long(), x), {}, DtypeError, "floating-point"),
        ((x, x), {"temperature": 0}, ArgumentError, "positive finite number, got 0"),
        ((x, x), {"reduction": "avg"}, ArgumentError, "'mean', 'sum', 'none', got 'avg'"),
        ((x, x), {"mask": torch.ones(2, 8, 4, dtype=torch.bool)}, ShapeError, r"\(2, 4, 8\), got \(2, 8, 4\)"),
    ]
    for arguments, options, error, words in cases:
        with pytest.raises(error, match=words):
            function(*arguments, **options)


class TestStandardize:
    def exact(self, student, teacher, temperature):
        def z(x):
            return (x - x.mean(1, keepdim=True)) / (x.std(1, keepdim=True) + 1e-7)

        return exact_kl(z(student.double()), z(teacher.double()), temperature)

    @pytest.mark.parametrize("shape", [(2, 19, 6, 7), (1, 2, 5), (3, 4, 2, 3, 2)], ids=str)
    def test_value_and_gradient_agree_with_float64(self, shape):
        student, teacher = maps(*shape)
        value = F.pixelwise_kl(student, teacher, temperature=2.0, standardize=True)
        exact_student = student.detach().double().requires_grad_()
        expected = self.exact(exact_student, teacher, 2.0).mean()
        torch.testing.assert_close(value.double(), expected, rtol=1e-5, atol=1e-7)
        value.backward()
        expected.backward()
        torch.testing.assert_close(student.grad.double(), exact_student.grad, rtol=1e-4, atol=1e-7)

    def test_size_and_offset_of_the_logits_do_not_matter(self):
        student, teacher = maps(2, 5, 3, 4)
        one = F.pixelwise_kl(student, teacher, standardize=True)
        other = F.pixelwise_kl(7.0 * student + 3.0, teacher, standardize=True)
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
        plain = F.pixelwise_kl(7.0 * student + 3.0, teacher) - F.pixelwise_kl(student, teacher)
        assert abs(plain.item()) > 0.1

    def test_a_pixel_of_equal_logits_gets_no_gradient_and_nothing_is_nan(self):
        student, teacher = maps(1, 4, 2, 2)
        with torch.no_grad():
            student[0, :, 0, 0] = 3.0
        F.pixelwise_kl(student, teacher, standardize=True).backward()
        assert torch.isfinite(student.grad).all()
        assert not student.grad[0, :, 0, 0].any()
        assert student.grad[0, :, 1, 1].any()

    @pytest.mark.parametrize(("value", "channels"), [(0.1, 21), (0.7, 150)])
    def test_logits_that_are_equal_but_for_the_rounding_of_their_mean_give_no_gradient(self, value, channels):
        student, teacher = maps(1, channels, 2, 2)
        with torch.no_grad():
            student[0, :, 0, 0] = value
        F.pixelwise_kl(student, teacher, standardize=True).backward()
        assert not student.grad[0, :, 0, 0].any()
        assert student.grad.abs().max() < 10.0

    def test_huge_logits(self):
        student, teacher = maps(2, 5, 3, 4)
        expected = F.pixelwise_kl(student, teacher, standardize=True)
        huge = (1e30 * student.detach()).requires_grad_()
        value = F.pixelwise_kl(huge, 1e30 * teacher, standardize=True)
        torch.testing.assert_close(value, expected.detach(), rtol=1e-4, atol=1e-6)
        value.backward()
        assert huge.grad.isfinite().all()
        assert huge.grad.any()

    def test_module_option(self):
        student, teacher = maps(2, 5, 3, 4)
        expected = F.pixelwise_kl(student, teacher, temperature=2.0, standardize=True)
        assert torch.equal(PixelWise(temperature=2.0, standardize=True)(student, teacher), expected)
        with pytest.raises(ArgumentError, match="standardize goes with divergence 'kl'"):
            PixelWise(standardize=True, divergence="mse")
