"""upsampled_cross_entropy against torch's interpolate and cross_entropy in float64."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from densekd import functional as F
from densekd.bench.runner import peak_extra_bytes
from densekd.errors import ArgumentError, DtypeError, SecondDerivativeError, ShapeError
from densekd.kernels import upsampled_cross_entropy as kernel
from densekd.tasks import losses

SIZES = [((3, 4), (24, 32)), ((5, 7), (11, 30)), ((1, 1), (5, 3)), ((4, 1), (1, 8)), ((6, 6), (6, 6)), ((9, 8), (4, 5))]


def case(small, full, classes=4, images=2, dtype=torch.float32, seed=0):
    """Logits that ask for a gradient, and labels of which a fifth is void."""
    generator = torch.Generator().manual_seed(seed)
    logits = 4.0 * torch.randn(images, classes, *small, generator=generator)
    labels = torch.randint(0, classes, (images, *full), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.2] = 255
    labels[0, 0, 0] = 0
    return logits.to(dtype).requires_grad_(), labels


def exact(logits, labels, *, align_corners=False, weights=None, smoothing=0.0, ignore_index=255):
    """Sum over the valid pixels and its denominator, by torch alone in float64."""
    z = torch.nn.functional.interpolate(logits.double(), labels.shape[1:], mode="bilinear", align_corners=align_corners)
    weights = None if weights is None else weights.double()
    options = {"ignore_index": ignore_index, "label_smoothing": smoothing}
    total = torch.nn.functional.cross_entropy(z, labels.long(), weights, reduction="sum", **options)
    valid = labels.long()[labels != ignore_index]
    return total, torch.tensor(float(len(valid))) if weights is None else weights[valid].sum()


def assert_right(logits, labels, *, value=2e-6, slope=2e-6, weights=None, smoothing=0.0, align_corners=False, **more):
    got = F.upsampled_cross_entropy(
        logits, labels, class_weights=weights, label_smoothing=smoothing, align_corners=align_corners, **more
    )
    total, size = exact(logits, labels, weights=weights, smoothing=smoothing, align_corners=align_corners)
    expected = total / size
    assert got.double().item() == pytest.approx(expected.item(), rel=value)
    (gradient,), (right,) = torch.autograd.grad(got, logits), torch.autograd.grad(expected, logits)
    assert gradient.dtype == logits.dtype
    assert (gradient.double() - right.double()).norm() <= slope * right.double().norm()


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize(("small", "full"), SIZES, ids=str)
def test_value_and_gradient_agree_with_torch_in_float64(small, full, align_corners):
    assert_right(*case(small, full), align_corners=align_corners)
    assert_right(*case(small, full, dtype=torch.float64), align_corners=align_corners, value=1e-12, slope=1e-12)


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, torch.tensor([0.2, 1.0, 3.0, 0.0])], ids=["even", "weighted"])
def test_weights_and_smoothing_mean_what_torch_means(weights, smoothing, monkeypatch):
    monkeypatch.setattr(kernel, "BLOCK", 256)  # many tiles, with seams in both directions
    monkeypatch.setattr(kernel, "_ROWS", 3)
    monkeypatch.setattr(kernel, "_FEWEST_COLUMNS", 5)
    logits, labels = case((5, 7), (21, 30))
    assert_right(logits, labels, weights=weights, smoothing=smoothing)
    options = {"class_weights": weights, "label_smoothing": smoothing}
    z = torch.nn.functional.interpolate(logits, labels.shape[1:], mode="bilinear", align_corners=False)
    plain = losses.cross_entropy(z, labels, **options)
    torch.testing.assert_close(F.upsampled_cross_entropy(logits, labels, **options), plain)
    pixels = torch.tensor(1000.0)
    plain = losses.cross_entropy(z, labels, pixels=pixels, **options)
    torch.testing.assert_close(F.upsampled_cross_entropy(logits, labels, pixels=pixels, **options), plain)
    torch.testing.assert_close(F.upsampled_cross_entropy(logits, labels, pixels=pixels[None], **options), plain)


def test_hand_computed():
    """One small pixel between two: at the middle the logits are (1, 0), at the ends (2, 0) and (0, 0)."""
    logits = torch.tensor([[[[2.0, 0.0]], [[0.0, 0.0]]]], requires_grad=True)
    got = F.upsampled_cross_entropy(logits, torch.tensor([[[0, 1, 255]]]), align_corners=True)
    e = torch.e
    assert got.item() == pytest.approx((torch.tensor(1 + e**-2).log() + torch.tensor(1 + e).log()).item() / 2, rel=1e-6)
    got.backward()
    # q_0 - 1 at the first end; q_0 at the middle, half to either end
    first, middle = 1 / (1 + e**-2) - 1, e / (1 + e)
    assert logits.grad[0, 0, 0].tolist() == pytest.approx([(first + middle / 2) / 2, middle / 4], rel=1e-5)


@given(
    small=st.tuples(st.integers(1, 6), st.integers(1, 6)),
    full=st.tuples(st.integers(1, 17), st.integers(1, 17)),
    align_corners=st.booleans(),
    rows=st.integers(1, 8),
)
@settings(max_examples=25, deadline=None)
def test_any_size_and_any_tile(small, full, align_corners, rows):
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(kernel, "_ROWS", rows)
        patch.setattr(kernel, "_FEWEST_COLUMNS", 1)
        patch.setattr(kernel, "BLOCK", 3 * rows * 4)
        logits, labels = case(small, full, classes=3, images=1, dtype=torch.float64)
        assert_right(logits, labels, align_corners=align_corners, value=1e-11, slope=1e-11)


@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.bfloat16, 4e-3), (torch.float16, 5e-4)], ids=str)
@pytest.mark.parametrize("layout", [torch.contiguous_format, torch.channels_last], ids=str)
def test_narrow_types_are_computed_in_float32(dtype, tolerance, layout):
    logits, labels = case((4, 5), (16, 20), dtype=dtype)
    logits = logits.detach().contiguous(memory_format=layout).requires_grad_()
    # the gradient alone is rounded to the type of the logits
    assert_right(logits, labels, slope=tolerance)
    with torch.autocast("cpu", torch.bfloat16):
        value = F.upsampled_cross_entropy(logits, labels)
    assert value.dtype == torch.float32
    assert value == F.upsampled_cross_entropy(logits, labels)


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64], ids=str)
def test_labels_of_any_integer_type(dtype):
    logits, labels = case((3, 3), (9, 9))
    assert F.upsampled_cross_entropy(logits, labels.to(dtype)) == F.upsampled_cross_entropy(logits, labels)
    other = torch.where(labels == 255, -1, labels).to(torch.int32)
    assert F.upsampled_cross_entropy(logits, other, ignore_index=-1) == F.upsampled_cross_entropy(logits, labels)


def test_nothing_but_void_is_a_zero_that_back_propagates():
    logits, labels = case((3, 3), (9, 9))
    for smoothing in (0.0, 0.1):
        value = F.upsampled_cross_entropy(logits, torch.full_like(labels, 255), label_smoothing=smoothing)
        assert value == 0
        (gradient,) = torch.autograd.grad(value, logits)
        assert not gradient.any()


def test_logits_of_any_finite_size():
    logits, labels = case((3, 3), (9, 9))
    for scale in (1e4, 1e30):
        wide = (logits.detach() * scale).requires_grad_()
        value = F.upsampled_cross_entropy(wide, labels)
        (gradient,) = torch.autograd.grad(value, wide)
        assert value.isfinite()
        assert gradient.isfinite().all()


def test_a_retained_graph_gives_the_same_gradient_twice():
    logits, labels = case((3, 3), (9, 9))
    value = 3.0 * F.upsampled_cross_entropy(logits, labels)
    (first,) = torch.autograd.grad(value, logits, retain_graph=True)
    (second,) = torch.autograd.grad(value, logits)
    (whole,) = torch.autograd.grad(F.upsampled_cross_entropy(logits, labels), logits)
    assert torch.equal(first, second)
    torch.testing.assert_close(first, 3.0 * whole)


def test_a_second_derivative_is_refused():
    logits, labels = case((3, 3), (9, 9))
    (gradient,) = torch.autograd.grad(F.upsampled_cross_entropy(logits, labels), logits, create_graph=True)
    with pytest.raises(SecondDerivativeError, match="upsampled_cross_entropy has no second derivative"):
        torch.autograd.grad(gradient.sum(), logits)


@pytest.mark.slow
def test_torch_func_takes_the_definition():
    logits, labels = case((2, 3), (5, 6), classes=3, dtype=torch.float64)
    plain = logits.detach()

    def loss(x):
        return F.upsampled_cross_entropy(x, labels)

    (expected,) = torch.autograd.grad(loss(logits), logits)
    torch.testing.assert_close(torch.func.grad(loss)(plain), expected)
    direction = torch.randn(plain.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    _, slope = torch.func.jvp(loss, (plain,), (direction,))
    torch.testing.assert_close(slope, (expected * direction).sum())
    _, turned = torch.func.jvp(torch.func.grad(loss), (plain,), (direction,))
    step = 1e-6
    difference = torch.func.grad(loss)(plain + step * direction) - torch.func.grad(loss)(plain - step * direction)
    torch.testing.assert_close(turned, difference / (2 * step), rtol=1e-5, atol=1e-8)


def test_logits_and_labels_stay_as_they_are():
    logits, labels = case((3, 3), (9, 9))
    before, marked = logits.detach().clone(), labels.clone()
    F.upsampled_cross_entropy(logits, labels).backward()
    assert torch.equal(logits, before)
    assert torch.equal(labels, marked)


def test_nothing_asks_for_a_gradient():
    logits, labels = case((3, 3), (9, 9))
    value = F.upsampled_cross_entropy(logits, labels)
    assert F.upsampled_cross_entropy(logits.detach(), labels) == value
    with torch.no_grad():
        assert not F.upsampled_cross_entropy(logits, labels).requires_grad


def test_mistakes_are_told():
    logits, labels = case((3, 3), (9, 9))
    wrong = [
        (DtypeError, "logits: expected a floating-point tensor", (logits.detach().long(), labels), {}),
        (DtypeError, "integer class ids", (logits, labels.float()), {}),
        (ShapeError, r"expected logits \(N, K, h, w\) and labels \(N, H, W\)", (logits, labels[:1]), {}),
        (ShapeError, "two channels or more", (logits[:, :1], labels), {}),
        (ShapeError, r"size: expected the labels' size \(9, 9\), got \(8, 8\)", (logits, labels), {"size": (8, 8)}),
        (ArgumentError, "values from 7 to 7; expected class ids 0 to 3", (logits, labels.clamp(7, 7)), {}),
        (ArgumentError, "values from -3", (logits, labels.clamp(max=-3)), {}),
        (ArgumentError, "label_smoothing: expected a number from 0", (logits, labels), {"label_smoothing": 1.0}),
        (ShapeError, "class_weights: expected a tensor of 4", (logits, labels), {"class_weights": torch.ones(3)}),
        (ShapeError, "pixels: expected a tensor of one number", (logits, labels), {"pixels": 3.0}),
        (ArgumentError, "backend: expected one of .*; did you mean 'torch'", (logits, labels), {"backend": "toch"}),
        (DtypeError, "align_corners: expected True or False", (logits, labels), {"align_corners": 1}),
        (DtypeError, "ignore_index", (logits, labels), {"ignore_index": 255.0}),
    ]
    for error, words, arguments, options in wrong:
        with pytest.raises(error, match=words):
            F.upsampled_cross_entropy(*arguments, **options)


def test_tensorfloat_is_off_during_the_matrix_products_and_back_afterwards():
    setting = torch.backends.cuda.matmul
    before = setting.fp32_precision
    try:
        setting.fp32_precision = "tf32"
        with kernel.full_precision(torch.device("cuda")):
            assert setting.fp32_precision == "ieee"
        assert setting.fp32_precision == "tf32"
    finally:
        setting.fp32_precision = before


@pytest.mark.slow
@pytest.mark.parametrize(
    ("images", "classes", "small", "full"),
    [(2, 19, (64, 128), (512, 1024)), (4, 11, (45, 60), (360, 480)), (1, 150, (32, 32), (256, 256))],
    ids=str,
)
def test_memory_is_at_most_an_eighth_of_the_plain_way(images, classes, small, full):
    logits, labels = case(small, full, classes, images)

    def plain():
        z = torch.nn.functional.interpolate(logits, full, mode="bilinear", align_corners=False)
        torch.nn.functional.cross_entropy(z, labels, ignore_index=255).backward()
        logits.grad = None

    def tiled():
        F.upsampled_cross_entropy(logits, labels).backward()
        logits.grad = None

    assert peak_extra_bytes(tiled) <= peak_extra_bytes(plain) / 8


@pytest.mark.slow
def test_compiled_it_is_one_node():
    logits, labels = case((3, 4), (12, 16))
    seen = []

    def backend(graph, inputs):
        seen.append([str(node.target) for node in graph.graph.nodes])
        return graph.forward

    def loss(x, y):
        return F.upsampled_cross_entropy(x, y, label_smoothing=0.1)

    value = torch.compile(loss, backend=backend, fullgraph=True)(logits, labels)
    assert sum("densekd.upsampled_cross_entropy" in target for target in seen[0]) == 1
    plain = loss(logits, labels)
    assert value == plain
    (got,), (expected,) = torch.autograd.grad(value, logits), torch.autograd.grad(plain, logits)
    assert torch.equal(got, expected)
    compiled = torch.compile(loss, backend="aot_eager", fullgraph=True)(logits, labels)
    (got,) = torch.autograd.grad(compiled, logits)
    torch.testing.assert_close(got, expected)
