"""Losses whose gradient is made by hand, under `torch.func` and forward-mode differentiation."""

from __future__ import annotations

from functools import partial

import pytest
import torch
import torch.autograd.forward_ad as forward

from densekd import functional as F
from mapkit import check_compiled, maps, some_mask, value_and_gradient

GENERATOR = torch.Generator().manual_seed(3)
LABELS = torch.randint(0, 3, (2, 5, 4), generator=GENERATOR)
LABELS[0, 0] = 255
MEMORY = torch.randn(6, 3, generator=GENERATOR)
LOSSES = {
    "attention": F.attention_mse,
    "pairwise": F.pairwise_mse,
    "pairwise, no pooling": partial(F.pairwise_mse, pool=None),
    "local": F.local_mse,
    "local, as they are": partial(F.local_mse, normalize=False),
    "intraclass": partial(F.intraclass_mse, labels=LABELS, num_classes=3),
    "crossimage": F.crossimage_kl,
    "crossimage, no pooling": partial(F.crossimage_kl, pool=1, temperature=0.5),
    "crossimage with a memory": partial(F.crossimage_memory_kl, memory=MEMORY),
}
each_loss = pytest.mark.parametrize("loss", LOSSES.values(), ids=LOSSES)


def wide(seed=0):
    """Float64 maps (2, 3, 5, 4)."""
    return maps(3, (2, 3, 5, 4), seed, torch.float64)


@each_loss
@pytest.mark.parametrize("masked", [False, True])
@pytest.mark.parametrize("reduction", ["mean", "sum"])
def test_gradients_and_directional_derivatives_are_those_of_the_backward_pass(loss, masked, reduction):
    student, teacher = (x.detach() for x in wide())
    direction = wide(seed=5)[0].detach()
    mask = some_mask(student) if masked else None

    def of(s):
        return loss(s, teacher, mask=mask, reduction=reduction)

    value, gradient = value_and_gradient(of, student)
    torch.testing.assert_close(torch.func.grad_and_value(of)(student), (gradient, value))
    along = (gradient * direction).sum()
    torch.testing.assert_close(torch.func.jvp(of, (student,), (direction,)), (value, along))
    with forward.dual_level():
        torch.testing.assert_close(forward.unpack_dual(of(forward.make_dual(student, direction))).tangent, along)
        assert forward.unpack_dual(loss(student, forward.make_dual(teacher, direction))).tangent is None


@each_loss
def test_second_derivatives_are_differences_of_gradients(loss):
    student, teacher = (x.detach() for x in wide())
    direction = wide(seed=5)[0].detach()
    gradient = torch.func.grad(lambda s: loss(s, teacher))
    found = torch.func.jvp(gradient, (student,), (direction,))[1]
    step = 1e-5
    expected = (gradient(student + step * direction) - gradient(student - step * direction)) / (2 * step)
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("name", [name for name in LOSSES if name != "intraclass"])
def test_gradients_of_many_maps_at_once(name):
    loss = LOSSES[name]
    pairs = [[x.detach() for x in wide(seed)] for seed in range(3)]
    students, teachers = (torch.stack(each) for each in zip(*pairs, strict=True))
    together = torch.vmap(torch.func.grad(loss))(students, teachers)
    for gradient, (student, teacher) in zip(together, pairs, strict=True):
        torch.testing.assert_close(gradient, value_and_gradient(loss, student, teacher)[1])


@each_loss
def test_void_and_zero_features_have_no_gradient(loss):
    student, teacher = (x.detach().clone() for x in wide())
    mask = torch.ones(2, 5, 4, dtype=torch.bool)
    mask[:, 1] = False
    student[:, :, 3, 2] = 0.0
    clean = torch.func.grad(lambda s: loss(s, teacher, mask=mask))(student)
    spoilt = torch.where(mask[:, None], student, torch.nan)
    gradient = torch.func.grad(lambda s: loss(s, teacher, mask=mask))(spoilt)
    torch.testing.assert_close(gradient, clean)
    assert not gradient[:, :, 1].any()
    torch.testing.assert_close(gradient, value_and_gradient(lambda s: loss(s, teacher, mask=mask), spoilt)[1])


@each_loss
def test_huge_maps_do_not_overflow(loss):
    student, teacher = (1e25 * x.detach().float() for x in wide())
    if loss is LOSSES["local, as they are"]:
        student, teacher = 1e-10 * student, 1e-10 * teacher
    value, gradient = value_and_gradient(lambda s: loss(s, teacher), student)
    slope, again = torch.func.grad_and_value(lambda s: loss(s, teacher))(student)
    torch.testing.assert_close(again, value)
    torch.testing.assert_close(slope / gradient.abs().amax(), gradient / gradient.abs().amax(), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("shape", [(2, 3, 6), (1, 3, 3, 1), (2, 3, 3, 2, 4)])
@pytest.mark.parametrize("normalize", [True, False])
def test_neighbours_along_any_number_of_axes(shape, normalize):
    student, teacher = (x.detach() for x in maps(4, shape, dtype=torch.float64))
    loss = partial(F.local_mse, normalize=normalize, reduction="sum")
    value, gradient = value_and_gradient(loss, student, teacher)
    torch.testing.assert_close(torch.func.grad_and_value(loss)(student, teacher), (gradient, value))


@pytest.mark.slow
@each_loss
def test_compiled_it_is_still_the_operator(loss):
    student, teacher = (x.detach().float() for x in wide())
    check_compiled(lambda s: loss(s, teacher), student)
