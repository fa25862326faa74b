"""Random maps whose channels differ, masks, and the checks that hold for any loss between them."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from densekd.errors import ArgumentError, DtypeError, SecondDerivativeError, ShapeError

Loss = Callable[..., Tensor]
#: (N, Cs, *spatial) with as many teacher channels as the first number
SHAPES = [(5, (2, 3, 4, 6)), (2, (1, 4, 7)), (3, (2, 3, 3, 2, 4)), (4, (3, 1, 5, 3))]


def maps(channels: int, shape: tuple[int, ...], seed: int = 0, dtype: torch.dtype = torch.float32) -> tuple[Any, Any]:
    """A student that asks for its gradient, and a teacher of so many channels."""
    generator = torch.Generator().manual_seed(seed)
    student = torch.randn(shape, generator=generator, dtype=torch.float64)
    teacher = 2.0 * torch.randn(shape[0], channels, *shape[2:], generator=generator, dtype=torch.float64) + 0.5
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def some_mask(like: Tensor, seed: int = 1) -> Tensor:
    """About two thirds of the positions; nothing of the second image."""
    mask = torch.rand(like.shape[0], *like.shape[2:], generator=torch.Generator().manual_seed(seed)) < 0.65
    if len(mask) > 1:
        mask[1] = False
    return mask


def spoilt(x: Tensor, mask: Tensor, value: float = torch.nan) -> Tensor:
    return x.detach().masked_fill(~mask[:, None], value)


def value_and_gradient(loss: Loss, student: Tensor, *more: Tensor, **options: Any) -> tuple[Tensor, Tensor]:
    leaf = student.detach().clone(memory_format=torch.preserve_format).requires_grad_()
    value = loss(leaf, *more, **options)
    (gradient,) = torch.autograd.grad(value, leaf)
    assert (gradient.shape, gradient.dtype) == (student.shape, student.dtype)
    return value.detach(), gradient


def check_void(loss: Loss, student: Tensor, teacher: Tensor, mask: Tensor) -> None:
    """Whatever stands in a void position has no effect and gets no gradient."""
    value, gradient = value_and_gradient(loss, student, teacher, mask=mask)
    for bad in (torch.nan, torch.inf, -torch.inf, 1e30):
        other, slope = value_and_gradient(loss, spoilt(student, mask, bad), spoilt(teacher, mask, bad), mask=mask)
        assert torch.equal(other, value)
        assert torch.equal(slope, gradient)
    assert not gradient[~mask[:, None].expand_as(gradient)].any()
    assert gradient.any()
    zero, nothing = value_and_gradient(loss, student, teacher, mask=torch.zeros_like(mask))
    assert zero == 0
    assert not nothing.any()
    full, whole = value_and_gradient(loss, student, teacher, mask=torch.ones_like(mask))
    plain, expected = value_and_gradient(loss, student, teacher)
    torch.testing.assert_close(full, plain)
    torch.testing.assert_close(whole, expected)


def check_types(loss: Loss, student: Tensor, teacher: Tensor) -> None:
    """float32 or better inside, whatever the types, the layouts and autocast say."""
    for dtype in (torch.float16, torch.bfloat16):
        s, t = student.detach().to(dtype), teacher.to(dtype)
        value, gradient = value_and_gradient(loss, s.float(), t.float())
        half, slope = value_and_gradient(loss, s, t)
        assert half.dtype == torch.float32
        torch.testing.assert_close(half, value, rtol=1e-6, atol=1e-8)
        torch.testing.assert_close(slope, gradient.to(dtype))
        with torch.autocast("cpu", dtype=torch.bfloat16):
            cast, cast_slope = value_and_gradient(loss, s.float(), t.float())
        assert torch.equal(cast, value)
        assert torch.equal(cast_slope, gradient)
    value, gradient = value_and_gradient(loss, student, teacher)
    assert value_and_gradient(loss, student, teacher.double())[0].dtype == torch.float64
    last = (x.detach().movedim(1, -1).contiguous().movedim(-1, 1) for x in (student, teacher))
    turned = (x.detach().transpose(0, 1).contiguous().transpose(0, 1) for x in (student, teacher))
    strided = (x.detach().repeat_interleave(2, -1)[..., ::2] for x in (student, teacher))
    for s, t in (last, turned, strided):
        other, slope = value_and_gradient(loss, s, t)
        torch.testing.assert_close(other, value, rtol=1e-5, atol=1e-8)
        torch.testing.assert_close(slope, gradient, rtol=1e-4, atol=1e-7)


def check_against(loss: Loss, by_hand: Callable[[Tensor, Tensor], float], student: Tensor, teacher: Tensor) -> None:
    """Halves are computed in float32, in any layout the same; the teacher gets no gradient."""
    for dtype in (torch.float16, torch.bfloat16):
        pair = student.detach().to(dtype).requires_grad_(), teacher.to(dtype)
        for enabled in (False, True):
            with torch.autocast("cpu", dtype=torch.bfloat16, enabled=enabled):
                value = loss(*pair)
            assert value.dtype == torch.float32
            assert value.item() == pytest.approx(by_hand(*pair), rel=1e-5)
        value.backward()
        assert pair[0].grad is not None
        assert pair[0].grad.dtype == dtype
    expected, plain = loss(student, teacher).detach(), student.detach()
    flipped = plain.transpose(2, 3).contiguous().transpose(2, 3)
    for other in (plain.to(memory_format=torch.channels_last), flipped):
        torch.testing.assert_close(loss(other, teacher), expected)
    frozen = teacher.detach().clone().requires_grad_()
    loss(student, frozen).backward()
    assert frozen.grad is None


def check_scale(loss: Loss, student: Tensor, teacher: Tensor) -> None:
    """The value depends neither on the number of images nor on that of the channels."""
    value, gradient = value_and_gradient(loss, student, teacher)
    s, t = torch.cat([student.detach()] * 3), torch.cat([teacher] * 3)
    more, slope = value_and_gradient(loss, s, t)
    torch.testing.assert_close(more, value, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(3 * slope[: len(student)], gradient, rtol=1e-4, atol=1e-6)
    s, t = (torch.cat([x, x], 1) for x in (student.detach(), teacher))
    for pair in ((s, t), (s, teacher), (student, t)):
        torch.testing.assert_close(value_and_gradient(loss, *pair)[0], value, rtol=1e-5, atol=1e-7)


def check_graph(loss: Loss, student: Tensor, teacher: Tensor) -> None:
    """The teacher gets no gradient; a graph can be used twice; a second derivative is refused, not wrong."""
    leaf, frozen = student.detach().clone().requires_grad_(), teacher.clone().requires_grad_()
    value = loss(leaf, frozen)
    (2.0 * value).backward(retain_graph=True)
    assert frozen.grad is None
    first = leaf.grad.clone()
    value.backward()
    torch.testing.assert_close(leaf.grad, 1.5 * first)
    torch.testing.assert_close(first, 2.0 * value_and_gradient(loss, student, teacher)[1])
    (gradient,) = torch.autograd.grad(loss(leaf, frozen), leaf, create_graph=True)
    with pytest.raises(SecondDerivativeError, match="no second derivative"):
        gradient.square().sum().backward()
    with torch.no_grad():
        assert loss(leaf, frozen) == value


def check_compiled(loss: Loss, *maps: Tensor) -> None:
    """One graph, the same value and gradient."""
    torch._dynamo.reset()
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)
    for got, expected in zip(value_and_gradient(compiled, *maps), value_and_gradient(loss, *maps), strict=True):
        torch.testing.assert_close(got, expected)


def check_refusals(function: Loss, *more: Any, same_channels: bool = False, **options: Any) -> None:
    """What every function refuses."""
    x = torch.zeros(2, 3, 4, 8)
    size = "all but the channels" if not same_channels else "one shape"
    cases: list[tuple[Any, Any, dict[str, Any], type[Exception], str]] = [
        (x, torch.zeros(2, 3, 8, 4), {}, ShapeError, f"{size}.*areas are equal"),
        (x, torch.zeros(3, 3, 4, 8), {}, ShapeError, f"{size}.*batch sizes differ"),
        (x[:, :, 0, 0], x[:, :, 0, 0], {}, ShapeError, "at least one spatial axis"),
        (x.long(), x, {}, DtypeError, "floating-point"),
        (x, [x], {}, DtypeError, "got list"),
        (x, x, {"reduction": "avg"}, ArgumentError, "'mean', 'sum', 'none', got 'avg'"),
        (x, x, {"mask": torch.ones(2, 8, 4, dtype=torch.bool)}, ShapeError, r"\(2, 4, 8\), got \(2, 8, 4\)"),
        (x, x, {"mask": torch.ones(2, 4, 8)}, DtypeError, "expected bool"),
    ]
    for student, teacher, wrong, error, words in cases:
        with pytest.raises(error, match=words):
            function(student, teacher, *more, **(options | wrong))
