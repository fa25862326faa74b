"""channelwise_kl and channelwise_mse against float64 by hand, on every kind of input and misuse."""

from __future__ import annotations

import copy

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd import functional as F
from densekd.errors import ArgumentError, DtypeError, SecondDerivativeError, ShapeError
from densekd.kernels import channelwise as kernel

BACKENDS = ["torch", "blocked"]


def exact(student, teacher, temperature=4.0, mask=None):
    """Rows temperature**2 * KL in float64, image by image, over the valid positions alone."""
    student, teacher = student.double().flatten(2), teacher.double().flatten(2)
    rows = []
    for n in range(student.shape[0]):
        keep = slice(None) if mask is None else mask[n].flatten()
        s, t = student[n][:, keep], teacher[n][:, keep]
        if s.numel() == 0:
            rows.append(s.sum(1))
            continue
        log_q, log_p = torch.log_softmax(s / temperature, 1), torch.log_softmax(t / temperature, 1)
        kl = torch.nn.functional.kl_div(log_q, log_p, reduction="none", log_target=True)
        rows.append(temperature**2 * kl.sum(1))
    return torch.stack(rows)


def exact_mean(student, teacher, temperature=4.0, mask=None):
    """Value and gradient in float64."""
    leaf = student.detach().double().requires_grad_()
    value = exact(leaf, teacher, temperature, mask).mean()
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def maps(*shape, std=4.0, seed=0, dtype=torch.float32):
    generator = torch.Generator().manual_seed(seed)
    student, teacher = (std * torch.randn(shape, generator=generator, dtype=torch.float32) for _ in range(2))
    return student.to(dtype).requires_grad_(), teacher.to(dtype)


def loss_and_gradient(student, teacher, **options):
    leaf = student.detach().requires_grad_()
    value = F.channelwise_kl(leaf, teacher, **options)
    (gradient,) = torch.autograd.grad(value, leaf)
    return value.detach(), gradient


def assert_right(student, teacher, *, value_tolerance=5e-6, gradient_tolerance=2e-5, mask=None, **options):
    value, gradient = loss_and_gradient(student, teacher, mask=mask, **options)
    expected, slope = exact_mean(student, teacher, options.get("temperature", 4.0), mask)
    assert value.double() == pytest.approx(expected.item(), rel=value_tolerance)
    assert (gradient.double() - slope).norm() <= gradient_tolerance * slope.norm()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("temperature", [0.5, 1.0, 4.0])
@pytest.mark.parametrize(
    "shape",
    [(1, 1, 2), (1, 3, 5), (2, 19, 16, 32), (3, 2, 4, 3, 5), (1, 2, 400, 401), (2, 80, 30, 31)],
    ids=str,
)
def test_value_and_gradient_agree_with_float64(shape, temperature, backend):
    assert_right(*maps(*shape), temperature=temperature, backend=backend)


def test_hand_computed_row():
    student = torch.tensor([[[0.0, 0.0]]], requires_grad=True)
    teacher = torch.tensor([[[2.0 * torch.log(torch.tensor(3.0)).item(), 0.0]]])
    # at temperature 2 the teacher's row is (3/4, 1/4), the student's (1/2, 1/2)
    expected = 4 * (0.75 * torch.tensor(1.5).log() + 0.25 * torch.tensor(0.5).log())
    value = F.channelwise_kl(student, teacher, temperature=2.0)
    value.backward()
    torch.testing.assert_close(value.detach(), expected)
    torch.testing.assert_close(student.grad, torch.tensor([[[-0.5, 0.5]]]))


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradient_is_the_closed_form(backend):
    student, teacher = maps(2, 5, 6, 7)
    _, gradient = loss_and_gradient(student, teacher, temperature=3.0, backend=backend)
    q = torch.softmax(student.detach().double().flatten(2) / 3.0, 2)
    p = torch.softmax(teacher.double().flatten(2) / 3.0, 2)
    torch.testing.assert_close(gradient.double().flatten(2), 3.0 / 10 * (q - p), rtol=1e-5, atol=1e-8)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("noise", [1e-2, 1e-4])
def test_nearly_equal_maps_do_not_drown_in_rounding(noise, backend):
    teacher = maps(4, 19, 32, 33)[1]
    near = teacher + noise * torch.randn_like(teacher) + 100.0  # a shift of a channel changes nothing
    value, gradient = loss_and_gradient(near, teacher, backend=backend)
    expected, slope = exact_mean(near, teacher)
    assert abs(value.double() - expected) <= 1e-6 * 16
    if noise == 1e-2:
        near = teacher + noise * torch.randn_like(teacher)
        value, gradient = loss_and_gradient(near, teacher, backend=backend)
        expected, slope = exact_mean(near, teacher)
        # what the correction by the sum of the gradient buys: the plain sum is off by a percent here
        assert value.double() == pytest.approx(expected.item(), rel=1e-3)
        assert (gradient.double() - slope).norm() <= 2e-3 * slope.norm()


@pytest.mark.parametrize("backend", BACKENDS)
def test_equal_maps_give_zero_value_and_gradient(backend):
    _, teacher = maps(2, 3, 64, 65)
    value, gradient = loss_and_gradient(teacher, teacher.clone(), backend=backend)
    assert value == 0
    assert gradient.abs().max() == 0


def test_reductions_and_their_denominators():
    student, teacher = maps(3, 5, 4, 6)
    rows = F.channelwise_kl(student, teacher, reduction="none")
    assert rows.shape == (3, 5)
    torch.testing.assert_close(rows.double(), exact(student, teacher), rtol=1e-6, atol=0)
    torch.testing.assert_close(F.channelwise_kl(student, teacher, reduction="sum"), rows.sum())
    torch.testing.assert_close(F.channelwise_kl(student, teacher), rows.sum() / 15)
    weights = torch.rand(3, 5)
    (gradient,) = torch.autograd.grad((weights * rows).sum(), student)
    leaf = student.detach().double().requires_grad_()
    (slope,) = torch.autograd.grad((weights * exact(leaf, teacher)).sum(), leaf)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=1e-8)


def test_mean_of_two_batches_is_the_mean_of_the_whole():
    student, teacher = maps(4, 3, 5, 5)
    halves = [F.channelwise_kl(student[i : i + 2], teacher[i : i + 2]) for i in (0, 2)]
    torch.testing.assert_close(F.channelwise_kl(student, teacher), sum(halves) / 2)


# --- what public code gets wrong ---------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("std", [15.0, 25.0, 40.0])
def test_wide_logits_at_temperature_one(std, backend):
    assert_right(*maps(2, 19, 64, 128, std=std), temperature=1.0, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_logit_gap_of_ten_thousand(backend):
    student, teacher = torch.zeros(1, 2, 4, 4), torch.zeros(1, 2, 4, 4)
    student[0, 0, 0, 0], teacher[0, 0, 3, 3] = 1e4, 1e4
    assert_right(student, teacher, temperature=1.0, backend=backend)
    assert F.channelwise_kl(student, teacher, temperature=1.0, backend=backend) == pytest.approx(5000, rel=1e-3)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("temperature", [0.1, 1.0, 4.0])
@pytest.mark.parametrize("reduction", ["mean", "sum", "none"])
def test_finite_for_the_largest_logits(dtype, temperature, reduction, backend):
    big = torch.finfo(dtype).max
    student, teacher = torch.zeros(2, 3, 2, 2, dtype=dtype), torch.zeros(2, 3, 2, 2, dtype=dtype)
    student[..., 0, 0], student[..., 0, 1], teacher[..., 0, 1], teacher[0, 0, 0, 0] = big, -big, big, -big
    student.requires_grad_()
    value = F.channelwise_kl(student, teacher, temperature=temperature, reduction=reduction, backend=backend)
    (gradient,) = torch.autograd.grad(value.sum(), student)
    assert value.isfinite().all()
    assert (value > 0).all()
    q_minus_p = torch.tensor([[1.0, -1.0], [0.0, 0.0]], dtype=dtype)
    scale = temperature / (6 if reduction == "mean" else 1)
    torch.testing.assert_close(gradient[1, 2], (scale * q_minus_p).to(dtype))


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_logits_that_are_not_finite_are_not_hidden(bad, backend):
    student, teacher = maps(1, 2, 3, 3)
    with torch.no_grad():
        student[0, 1, 1, 1] = bad
    rows = F.channelwise_kl(student, teacher, reduction="none", backend=backend)
    assert rows[0, 0].isfinite()
    assert not rows[0, 1].isfinite()


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
@pytest.mark.parametrize("mixed", [False, True])
def test_half_precision_input_is_computed_in_float32(dtype, mixed, backend):
    student, teacher = maps(2, 3, 16, 16, std=5.0, dtype=dtype)
    teacher = teacher.float() if mixed else teacher
    value, gradient = loss_and_gradient(student, teacher, temperature=1.0, backend=backend)
    expected, slope = exact_mean(student, teacher, 1.0)
    assert value.dtype == torch.float32
    assert value.double() == pytest.approx(expected.item(), rel=5e-6)
    assert gradient.dtype == dtype
    torch.testing.assert_close(gradient, slope.to(dtype), rtol=2 * torch.finfo(dtype).eps, atol=1e-7)


@pytest.mark.parametrize("backend", BACKENDS)
def test_float64_stays_float64(backend):
    student, teacher = (m.detach().double() for m in maps(2, 3, 8, 9))
    value, gradient = loss_and_gradient(student, teacher, backend=backend)
    expected, slope = exact_mean(student, teacher)
    assert value.dtype == gradient.dtype == torch.float64
    assert value == pytest.approx(expected.item(), rel=1e-13)
    torch.testing.assert_close(gradient, slope, rtol=1e-11, atol=1e-16)


@pytest.mark.parametrize("backend", BACKENDS)
def test_gradcheck(backend):
    student, teacher = (m.detach().double() for m in maps(2, 2, 2, 3, std=1.0))
    mask = torch.tensor([[[True, True, False], [True, False, True]], [[False] * 3, [False] * 3]])
    for options in ({}, {"mask": mask}, {"reduction": "none"}):
        torch.autograd.gradcheck(
            lambda s, options=options: F.channelwise_kl(s, teacher, backend=backend, **options),
            student.requires_grad_(),
        )


def layouts():
    def transposed(x):
        return x.transpose(2, 3).contiguous().transpose(2, 3)

    def sliced(x):
        return torch.cat([x, x], 3)[..., : x.shape[3]]

    def swapped(x):
        return x.transpose(0, 1).contiguous().transpose(0, 1)

    channels_last = lambda x: x.contiguous(memory_format=torch.channels_last)  # noqa: E731
    return {"channels_last": channels_last, "transposed": transposed, "sliced": sliced, "swapped": swapped}


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("block", [kernel.BLOCK, 64])
@pytest.mark.parametrize("who", ["student", "teacher", "both"])
@pytest.mark.parametrize("layout", layouts())
def test_memory_layouts(layout, who, block, backend, monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", block)
    student, teacher = maps(2, 7, 5, 6)
    expected, slope = loss_and_gradient(student, teacher, backend="torch")
    change = layouts()[layout]
    student = change(student.detach()) if who != "teacher" else student.detach()
    teacher = change(teacher) if who != "student" else teacher
    assert not (student.is_contiguous() and teacher.is_contiguous())
    value, gradient = loss_and_gradient(student, teacher, backend=backend)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=1e-8)
    if layout == "channels_last" and who != "teacher":
        assert gradient.is_contiguous(memory_format=torch.channels_last)


def test_expanded_student():
    student, teacher = maps(1, 3, 4, 4)
    assert_right(student.detach().expand(2, 3, 4, 4), teacher.expand(2, 3, 4, 4) * 2)


@pytest.mark.parametrize("backend", BACKENDS)
def test_rows_of_one_position_carry_nothing(backend):
    value, gradient = loss_and_gradient(*maps(2, 3, 1, 1), backend=backend)
    assert value == 0
    assert gradient.abs().max() == 0


@pytest.mark.parametrize("rows", [1, 2, 5])
def test_every_block_size_gives_the_same(rows, monkeypatch):
    student, teacher = maps(3, 4, 6, 5)
    expected, slope = loss_and_gradient(student, teacher)
    monkeypatch.setattr(kernel, "BLOCK", rows * 30 + 1)
    value, gradient = loss_and_gradient(student, teacher)
    torch.testing.assert_close(value, expected, rtol=1e-6, atol=0)
    torch.testing.assert_close(gradient, slope, rtol=1e-5, atol=1e-9)


def test_a_row_longer_than_a_block(monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", 100)
    assert_right(*maps(2, 3, 20, 21), backend="blocked")


def test_scratch_holds_no_assumption(monkeypatch):
    """Buffers full of NaN before every use: whatever is read must have been written."""
    empty, empty_like = torch.empty, torch.empty_like
    monkeypatch.setattr(torch, "empty", lambda *a, **k: empty(*a, **k).fill_(torch.nan))
    monkeypatch.setattr(torch, "empty_like", lambda *a, **k: empty_like(*a, **k).fill_(torch.nan))
    mask = torch.rand(3, 6, 5, generator=torch.Generator().manual_seed(1)) > 0.5
    mask[1] = False
    student, teacher = maps(3, 4, 6, 5)
    for options in ({}, {"mask": mask}):
        assert_right(student, teacher, backend="blocked", **options)
    torch.manual_seed(0)
    assert_right(student.detach().to(memory_format=torch.channels_last), teacher, mask=mask)


# --- masks -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 10_000), share=st.sampled_from([0.02, 0.5, 0.98]), n=st.integers(1, 3))
def test_masked_is_the_same_computation_on_the_kept_positions(backend, seed, share, n):
    student, teacher = maps(n, 3, 5, 6, seed=seed)
    mask = torch.rand(n, 5, 6, generator=torch.Generator().manual_seed(seed)) < share
    value, gradient = loss_and_gradient(student, teacher, mask=mask, backend=backend)
    expected, slope = exact_mean(student, teacher, mask=mask)
    torch.testing.assert_close(value.double(), expected, rtol=5e-6, atol=1e-7)
    torch.testing.assert_close(gradient.double(), slope, rtol=1e-4, atol=1e-7)
    assert gradient.masked_select(~mask[:, None]).abs().sum() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_masked_narrow_rows_fit_the_scratch(backend, monkeypatch):
    """Few positions of many channels: far more rows to a block than without the mask."""
    student, teacher = maps(1, 150, 15, 17)
    mask = torch.zeros(1, 15, 17, dtype=torch.bool)
    mask[0, 3, 2:9] = True
    monkeypatch.setattr(kernel, "BLOCK", 1000)
    assert_right(student, teacher, mask=mask, backend=backend)


@pytest.mark.parametrize("backend", BACKENDS)
def test_nothing_valid_is_a_zero_that_back_propagates(backend):
    student, teacher = maps(2, 3, 4, 4)
    value, gradient = loss_and_gradient(student, teacher, mask=torch.zeros(2, 4, 4, dtype=torch.bool), backend=backend)
    assert value == 0
    assert gradient.shape == student.shape
    assert gradient.abs().sum() == 0


@pytest.mark.parametrize("backend", BACKENDS)
def test_image_without_a_valid_position_still_counts_in_the_mean(backend):
    student, teacher = maps(2, 3, 4, 4)
    mask = torch.ones(2, 4, 4, dtype=torch.bool)
    mask[1] = False
    value, gradient = loss_and_gradient(student, teacher, mask=mask, backend=backend)
    alone, slope = loss_and_gradient(student[:1], teacher[:1], backend=backend)
    torch.testing.assert_close(value, alone / 2)
    torch.testing.assert_close(gradient[0], slope[0] / 2)
    assert gradient[1].abs().sum() == 0


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("function", ["channelwise_kl", "channelwise_mse"])
def test_what_stands_in_void_positions_takes_no_part(function, backend):
    student, teacher = maps(2, 3, 4, 4)
    mask = torch.rand(2, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    options = {"backend": backend} if function == "channelwise_kl" else {}
    results = []
    for fill in (0.0, torch.nan, torch.inf):
        leaf = student.detach().masked_fill(~mask[:, None], fill).requires_grad_()
        filled = teacher.masked_fill(~mask[:, None], fill)
        value = getattr(F, function)(leaf, filled, mask=mask, **options)
        results.append((value.detach(), *torch.autograd.grad(value, leaf)))
    for value, gradient in results[1:]:
        torch.testing.assert_close(value, results[0][0])
        torch.testing.assert_close(gradient, results[0][1])


# --- autograd ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_backward_through_a_retained_graph(backend):
    student, teacher = maps(2, 3, 8, 8)
    loss = 3.0 * F.channelwise_kl(student, teacher, backend=backend)
    loss.backward(retain_graph=True)
    first = student.grad.clone()
    student.grad.mul_(100.0)  # what an optimiser or a scaler may do must not reach the graph
    student.grad = None
    loss.backward()
    assert torch.equal(student.grad, first)
    expected = 3.0 * exact_mean(student, teacher)[1]
    torch.testing.assert_close(first.double(), expected, rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("backend", BACKENDS)
def test_second_derivative_is_refused(backend):
    student, teacher = maps(1, 2, 3, 3)
    loss = F.channelwise_kl(student, teacher, backend=backend)
    (gradient,) = torch.autograd.grad(loss, student, create_graph=True)
    with pytest.raises(SecondDerivativeError, match="no second derivative"):
        gradient.square().sum().backward()


def test_create_graph_without_use_is_fine():
    student, teacher = maps(1, 2, 3, 3)
    (gradient,) = torch.autograd.grad(F.channelwise_kl(student, teacher), student, create_graph=True)
    assert torch.equal(gradient, loss_and_gradient(student, teacher)[1])


def test_gradient_with_saved_tensors_moved_or_computed_again():
    from torch.utils.checkpoint import checkpoint

    student, teacher = maps(2, 3, 8, 8)
    expected = loss_and_gradient(student, teacher)[1]
    with torch.autograd.graph.save_on_cpu():
        value = F.channelwise_kl(student, teacher)
    assert torch.equal(torch.autograd.grad(value, student)[0], expected)
    for reentrant in (False, True):
        student.grad = None
        checkpoint(F.channelwise_kl, student, teacher, use_reentrant=reentrant).backward()
        assert torch.equal(student.grad, expected)


def test_many_gradients_at_once():
    student, teacher = maps(2, 3, 4, 4)
    rows = F.channelwise_kl(student, teacher, reduction="none")
    weights = torch.rand(4, 2, 3)
    (batched,) = torch.autograd.grad(rows, student, weights, is_grads_batched=True, retain_graph=True)
    for weight, gradient in zip(weights, batched, strict=True):
        (single,) = torch.autograd.grad(rows, student, weight, retain_graph=True)
        torch.testing.assert_close(gradient, single)


# torch.func knows the derivatives of the plain definition, not of the operator


def plain_rows(student, teacher, mask=None):
    """tau = 4: rows by log_softmax alone, which torch derives in every way."""
    log_q, log_p = (torch.log_softmax(x.flatten(2) / 4.0, 2) for x in (student, teacher))
    if mask is not None:
        void = ~mask.flatten(1)[:, None]
        log_q, log_p = (torch.log_softmax(x.flatten(2).masked_fill(void, -1e9) / 4.0, 2) for x in (student, teacher))
    return 16.0 * (log_p.exp() * (log_p - log_q)).sum(2)


@pytest.mark.parametrize("backend", BACKENDS)
@pytest.mark.parametrize("masked", [False, True])
def test_derivatives_by_torch_func(backend, masked):
    student, teacher = (m.detach().double() for m in maps(2, 3, 4, 5))
    direction = maps(2, 3, 4, 5, seed=1)[1].double()
    mask = torch.rand(2, 4, 5, generator=torch.Generator().manual_seed(0)) < 0.6 if masked else None

    def ours(s):
        return F.channelwise_kl(s, teacher, mask=mask, backend=backend)

    def plain(s):
        return plain_rows(s, teacher, mask).mean()

    for transform in (
        lambda f: torch.func.grad(f)(student),
        lambda f: torch.func.jvp(f, (student,), (direction,)),
        lambda f: torch.func.jacrev(torch.func.grad(f))(student),
        lambda f: torch.func.hessian(f)(student),
    ):
        torch.testing.assert_close(transform(ours), transform(plain), rtol=1e-9, atol=1e-11)
    torch.testing.assert_close(torch.func.grad(ours)(student), loss_and_gradient(student, teacher, mask=mask)[1])


@pytest.mark.parametrize("backend", BACKENDS)
def test_forward_mode(backend):
    import torch.autograd.forward_ad as forward

    student, teacher = (m.detach() for m in maps(2, 3, 4, 5))
    direction = maps(2, 3, 4, 5, seed=1)[1]
    with forward.dual_level():
        value = F.channelwise_kl(forward.make_dual(student, direction), teacher, backend=backend)
        primal, tangent = forward.unpack_dual(value)
        constant = F.channelwise_kl(student, forward.make_dual(teacher, direction), backend=backend)
        assert forward.unpack_dual(constant).tangent is None
    expected, gradient = loss_and_gradient(student, teacher, backend=backend)
    torch.testing.assert_close(primal, expected)
    torch.testing.assert_close(tangent, (gradient * direction).sum())


@pytest.mark.parametrize("backend", BACKENDS)
def test_vmap(backend):
    student, teacher = (m.detach() for m in maps(5, 2, 3, 4, 4))
    mask = torch.rand(5, 2, 4, 4, generator=torch.Generator().manual_seed(0)) < 0.5
    mask[0, 0] = False
    student = student.masked_fill(~mask[:, :, None], torch.nan)

    def one(s, t, m):
        return F.channelwise_kl(s, t, mask=m, backend=backend)

    values = torch.vmap(one)(student, teacher, mask)
    gradients = torch.vmap(torch.func.grad(one))(student, teacher, mask)
    for each in range(5):
        expected = loss_and_gradient(student[each], teacher[each], mask=mask[each], backend=backend)
        torch.testing.assert_close((values[each], gradients[each]), expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("noise", [1e-3, 1e-5])
def test_derivative_of_nearly_equal_maps_by_torch_func(noise):
    """Where rounding would make the value negative, the derivative is there all the same."""
    teacher = maps(1, 40, 8, 8)[1]
    near = teacher + noise * maps(1, 40, 8, 8, seed=1)[1]
    slope = exact_mean(near, teacher)[1]
    gradient = torch.func.grad(F.channelwise_kl)(near, teacher)
    reached = gradient.abs().flatten(2).sum(2) > 0
    assert bool(reached.all())
    assert (gradient - slope).norm() <= 0.1 * slope.norm()


@pytest.mark.slow
@pytest.mark.parametrize("transform", ["grad", "jvp", "vmap"])
def test_torch_func_inside_a_compiled_function(transform):
    student, teacher = (m.detach() for m in maps(2, 3, 4, 5))

    def loss(s):
        return F.channelwise_kl(s, teacher)

    calls = {
        "grad": lambda s: torch.func.grad(loss)(s),
        "jvp": lambda s: torch.func.jvp(loss, (s,), (s,))[1],
        "vmap": lambda s: torch.vmap(loss)(torch.stack([s, 2 * s])),
    }
    torch._dynamo.reset()
    compiled = torch.compile(calls[transform], backend="aot_eager", fullgraph=True)
    value, gradient = loss_and_gradient(student, teacher)
    twice = loss_and_gradient(2 * student, teacher)[0]
    expected = {"grad": gradient, "jvp": (gradient * student).sum(), "vmap": torch.stack([value, twice])}
    torch.testing.assert_close(compiled(student), expected[transform])


def test_teacher_gets_no_gradient():
    student, teacher = maps(1, 2, 3, 3)
    teacher.requires_grad_()
    F.channelwise_kl(student, teacher).backward()
    assert teacher.grad is None
    assert not F.channelwise_kl(student.detach(), teacher).requires_grad


@pytest.mark.parametrize("mask", [None, torch.ones(1, 3, 3, dtype=torch.bool)])
def test_no_gradient_is_made_where_none_is_asked(mask, monkeypatch):
    asked = []
    run = kernel.blocked
    monkeypatch.setattr("densekd.functional.operator.blocked_rows", lambda *a: asked.append(a[4]) or run(*a))
    student, teacher = maps(1, 2, 3, 3)
    values = [F.channelwise_kl(student, teacher, mask=mask).detach()]
    with torch.no_grad():
        values.append(F.channelwise_kl(student, teacher, mask=mask))
    values.append(F.channelwise_kl(student.detach(), teacher, mask=mask))
    assert asked == [True, False, False]
    assert values[0] == values[1] == values[2]


@pytest.mark.parametrize("backend", BACKENDS)
def test_autocast_does_not_lower_the_precision(backend):
    student, teacher = maps(2, 3, 16, 16)
    expected, slope = loss_and_gradient(student, teacher, backend=backend)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        value, gradient = loss_and_gradient(student, teacher, backend=backend)
    assert value.dtype == torch.float32
    assert value == expected
    assert torch.equal(gradient, slope)


@pytest.mark.slow
@pytest.mark.parametrize("backend", BACKENDS)
def test_operator_passes_the_checks_of_torch(backend):
    from densekd.functional.operator import rows_operator, scale_operator

    student, teacher = (m.detach().double() for m in maps(2, 2, 2, 3))
    mask = torch.ones(2, 2, 3, dtype=torch.bool)
    utils = ("test_schema", "test_faketensor", "test_autograd_registration", "test_aot_dispatch_dynamic")
    for m in (None, mask):
        arguments = (student.clone().requires_grad_(), teacher, m, 4.0, backend, True, 0.5)
        torch.library.opcheck(rows_operator, arguments, test_utils=utils[:3])
    torch.library.opcheck(scale_operator, (student, torch.rand(2, 2, dtype=torch.float64), 0.5), test_utils=utils[:3])


@pytest.mark.slow
@pytest.mark.parametrize("layout", ["contiguous", "channels_last"])
def test_compiled_it_is_one_operator_of_the_same_value(layout):
    from torch._dynamo.testing import CompileCounterWithBackend

    torch._dynamo.reset()
    counter = CompileCounterWithBackend("aot_eager")
    compiled = torch.compile(lambda s, t: 2.0 * F.channelwise_kl(s, t), backend=counter, fullgraph=True)
    student, teacher = maps(2, 3, 8, 8)
    if layout == "channels_last":
        student = student.detach().to(memory_format=torch.channels_last).requires_grad_()
    value = compiled(student, teacher)
    (gradient,) = torch.autograd.grad(value, student)
    expected, slope = loss_and_gradient(student, teacher)
    torch.testing.assert_close(value.detach(), 2 * expected)
    torch.testing.assert_close(gradient, 2 * slope)
    calls = [str(node.target) for graph in counter.graphs for node in graph.graph.nodes if node.op == "call_function"]
    assert counter.frame_count == 1
    assert sum("channelwise_kl" in call for call in calls) == 1


# --- misuse ------------------------------------------------------------------------------------------------------

OK = torch.zeros(2, 3, 4, 8)
MISUSE = {
    "channels": (OK, torch.zeros(2, 5, 4, 8), {}, ShapeError, r"\(2, 3, 4, 8\) and \(2, 5, 4, 8\).*1x1 convolution"),
    "batch": (OK, torch.zeros(1, 3, 4, 8), {}, ShapeError, "batch sizes differ"),
    "size": (OK, torch.zeros(2, 3, 8, 8), {}, ShapeError, "sizes differ: resize"),
    "equal area": (OK, torch.zeros(2, 3, 8, 4), {}, ShapeError, "areas are equal, the positions are not"),
    "flattened": (OK, torch.zeros(2, 3, 32), {}, ShapeError, "one shape"),
    "vectors": (OK[..., 0, 0], OK[..., 0, 0], {}, ShapeError, r"at least one spatial axis, got \(2, 3\)"),
    "empty": (OK[:0], OK[:0], {}, ShapeError, "at least one element"),
    "integers": (OK.long(), OK, {}, DtypeError, "student: expected floating-point.*int64.*argmax"),
    "integer teacher": (OK, OK.int(), {}, DtypeError, "teacher: expected floating-point.*int32"),
    "complex": (OK.to(torch.complex64), OK, {}, DtypeError, "floating-point"),
    "float8": (OK.to(torch.float8_e4m3fn), OK, {}, DtypeError, "student: expected float16.*float8_e4m3fn.*bfloat16"),
    "float8 teacher": (OK, OK.to(torch.float8_e5m2), {}, DtypeError, "teacher: expected float16.*float8_e5m2"),
    "no tensor": ({"out": OK}, OK, {}, DtypeError, "student: expected a tensor.*got dict"),
    "device": (OK, OK.to("meta"), {}, ArgumentError, "student is on cpu, teacher on meta"),
    "temperature zero": (OK, OK, {"temperature": 0.0}, ArgumentError, "positive finite number, got 0.0"),
    "temperature negative": (OK, OK, {"temperature": -1}, ArgumentError, "positive finite number, got -1"),
    "temperature nan": (OK, OK, {"temperature": float("nan")}, ArgumentError, "positive finite number, got nan"),
    "temperature text": (OK, OK, {"temperature": "4"}, DtypeError, "expected a number, got str"),
    "reduction": (OK, OK, {"reduction": "batchmean"}, ArgumentError, "'mean', 'sum', 'none', got 'batchmean'; did"),
    "reduction kind": (OK, OK, {"reduction": None}, ArgumentError, "got None"),
    "mask type": (OK, OK, {"mask": torch.ones(2, 4, 8)}, DtypeError, "expected bool.*float32.*ignore_index"),
    "mask kind": (OK, OK, {"mask": [True]}, DtypeError, "bool tensor or None, got list"),
    "mask shape": (OK, OK, {"mask": torch.ones(2, 1, 4, 8, dtype=torch.bool)}, ShapeError, r"\(2, 4, 8\), got"),
    "mask device": (OK, OK, {"mask": torch.ones(2, 4, 8, dtype=torch.bool, device="meta")}, ArgumentError, "on meta"),
}


@pytest.mark.parametrize("function", [F.channelwise_kl, F.channelwise_mse])
@pytest.mark.parametrize("case", MISUSE)
def test_misuse_is_named(case, function):
    student, teacher, options, error, words = MISUSE[case]
    with pytest.raises(error, match=words):
        function(student, teacher, **options)


def test_unknown_backend_lists_the_known_ones():
    with pytest.raises(ArgumentError, match="'torch', 'blocked', 'triton', got 'block'; did you mean 'blocked'"):
        F.channelwise_kl(OK, OK, backend="block")


def test_backend_that_cannot_run_here_says_why():
    with pytest.raises(ArgumentError, match="runs on the CPU alone, the maps are on meta"):
        F.channelwise_kl(OK.to("meta"), OK.to("meta"), backend="blocked")


@pytest.mark.slow  # tensors without data load the compiler's shape arithmetic
def test_auto_is_the_plain_definition_off_the_cpu():
    assert F.channelwise_kl(OK.to("meta"), OK.to("meta")).shape == ()
    assert F.channelwise_kl(OK.to("meta"), OK.to("meta"), reduction="none").shape == (2, 3)


# --- the MSE ablation --------------------------------------------------------------------------------------------


def test_mse_by_hand():
    student, teacher = maps(2, 3, 4, 5)
    q = torch.softmax(student.double().flatten(2) / 2, 2)
    p = torch.softmax(teacher.double().flatten(2) / 2, 2)
    expected = 4 * (q - p).square().sum() / 6
    value = F.channelwise_mse(student, teacher, temperature=2.0)
    assert value.double().item() == pytest.approx(expected.item(), rel=1e-5)
    (gradient,) = torch.autograd.grad(value, student)
    (slope,) = torch.autograd.grad(expected, student)
    torch.testing.assert_close(gradient, slope, rtol=1e-4, atol=1e-8)
    rows = F.channelwise_mse(student, teacher, temperature=2.0, reduction="none")
    assert rows.shape == (2, 3)
    torch.testing.assert_close(F.channelwise_mse(student, teacher, temperature=2.0, reduction="sum"), rows.sum())


def test_mse_with_a_mask():
    student, teacher = (m.detach().double() for m in maps(2, 2, 3, 3, std=1.0))
    mask = torch.rand(2, 3, 3, generator=torch.Generator().manual_seed(3)) < 0.6
    mask[1] = False
    value = F.channelwise_mse(student, teacher, mask=mask, temperature=1.0)
    rows = [
        (torch.softmax(student[0, c][mask[0]], 0) - torch.softmax(teacher[0, c][mask[0]], 0)).square().sum()
        for c in range(2)
    ]
    torch.testing.assert_close(value, sum(rows) / 4)
    torch.autograd.gradcheck(lambda s: F.channelwise_mse(s, teacher, mask=mask), student.requires_grad_())


def test_mse_finite_for_wide_logits_and_half_precision():
    student, teacher = maps(1, 2, 8, 8, std=1e4, dtype=torch.bfloat16)
    value = F.channelwise_mse(student, teacher, temperature=1.0)
    value.backward()
    assert value.dtype == torch.float32
    assert value.isfinite()
    assert student.grad.isfinite().all()


def test_functions_leave_their_inputs_as_they_were():
    student, teacher = maps(2, 3, 4, 5)
    before = copy.deepcopy((student.detach(), teacher))
    for function in (F.channelwise_kl, F.channelwise_mse):
        function(student, teacher).backward()
    assert torch.equal(student.detach(), before[0])
    assert torch.equal(teacher, before[1])
