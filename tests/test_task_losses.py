from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from densekd.errors import ArgumentError, DtypeError, ShapeError
from densekd.tasks.losses import check_labels, cross_entropy, dice, hard_pixels

VOID = 255


def batch(
    classes: int = 4, seed: int = 0, void: float = 0.3, dtype: torch.dtype = torch.float64
) -> tuple[Tensor, Tensor]:
    draw = torch.Generator().manual_seed(seed)
    logits = (3 * torch.randn(2, classes, 5, 6, generator=draw, dtype=torch.float64)).to(dtype).requires_grad_()
    labels = torch.randint(0, max(2, classes), (2, 5, 6), generator=draw)
    labels[torch.rand(2, 5, 6, generator=draw) < void] = VOID
    return logits, labels


def by_hand(logits: Tensor, labels: Tensor, weights: list[float], smoothing: float) -> float:
    """Cross-entropy one pixel after the other: class shares carry class weights, the denominator the true ones."""
    classes = logits.shape[1]
    total = size = 0.0
    for n, y, x in (labels != VOID).nonzero().tolist():
        z = logits[n, :, y, x].tolist()
        norm = math.log(sum(math.exp(v) for v in z))
        truth = int(labels[n, y, x])
        for k in range(classes):
            share = smoothing / classes + (1 - smoothing if k == truth else 0)
            total -= weights[k] * share * (z[k] - norm)
        size += weights[truth]
    return total / size


@pytest.mark.parametrize("smoothing", [0.0, 0.1])
@pytest.mark.parametrize("weights", [None, [1.0, 0.5, 3.0, 0.0]])
def test_cross_entropy_equals_the_count_by_hand(weights: list[float] | None, smoothing: float) -> None:
    logits, labels = batch()
    found = cross_entropy(
        logits,
        labels,
        class_weights=None if weights is None else torch.tensor(weights),
        label_smoothing=smoothing,
    )
    assert found.item() == pytest.approx(by_hand(logits, labels, weights or [1.0] * 4, smoothing), rel=1e-10)


def test_cross_entropy_equals_torch_in_value_and_gradient() -> None:
    logits, labels = batch()
    weights = torch.tensor([0.3, 1.0, 2.0, 0.7], dtype=torch.float64)
    ours = cross_entropy(logits, labels, class_weights=weights, label_smoothing=0.2)
    theirs = F.cross_entropy(logits, labels, weights, ignore_index=VOID, label_smoothing=0.2)
    (gradient,) = torch.autograd.grad(ours, logits)
    (expected,) = torch.autograd.grad(theirs, logits)
    torch.testing.assert_close(ours, theirs)
    torch.testing.assert_close(gradient, expected)


@pytest.mark.parametrize("classes", [1, 4])
def test_gradients_agree_with_finite_differences(classes: int) -> None:
    logits, labels = batch(classes)
    labels = labels.where(labels == VOID, labels % 2)
    assert torch.autograd.gradcheck(lambda z: cross_entropy(z, labels, label_smoothing=0.1), logits)
    assert torch.autograd.gradcheck(lambda z: dice(z, labels), logits)


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_void_pixels_change_nothing(smoothing: float) -> None:
    logits, labels = batch(void=0.0)
    wide = torch.cat([logits, 50 * torch.randn_like(logits)], dim=3)
    padded = torch.cat([labels, torch.full_like(labels, VOID)], dim=2)
    for loss in (lambda z, y: cross_entropy(z, y, label_smoothing=smoothing), dice):
        torch.testing.assert_close(loss(wide, padded), loss(logits, labels))
        (gradient,) = torch.autograd.grad(loss(wide, padded), wide)
        assert (gradient[..., 6:] == 0).all()


@pytest.mark.parametrize("classes", [1, 4])
def test_nothing_but_void_is_a_zero_that_back_propagates(classes: int) -> None:
    logits, labels = batch(classes, dtype=torch.float32)
    labels.fill_(VOID)
    keep = hard_pixels(logits, labels, threshold=0.5)
    weights = torch.ones(max(2, classes))
    for loss in (cross_entropy(logits, labels, class_weights=weights, keep=keep), dice(logits, labels)):
        (gradient,) = torch.autograd.grad(loss, logits)
        assert loss.item() == 0
        assert (gradient == 0).all()


def test_classes_of_weight_zero_alone_give_zero() -> None:
    logits, labels = batch(void=0.0)
    loss = cross_entropy(logits, labels.zero_(), class_weights=torch.tensor([0.0, 1.0, 1.0, 1.0]))
    loss.backward()
    assert loss.item() == 0
    assert torch.isfinite(logits.grad).all()


@pytest.mark.parametrize("smoothing", [0.0, 0.3])
def test_one_logit_equals_two_classes_with_a_constant_first(smoothing: float) -> None:
    logits, labels = batch(1)
    pair = torch.cat([torch.zeros_like(logits), logits], dim=1)
    torch.testing.assert_close(
        cross_entropy(logits, labels, label_smoothing=smoothing), cross_entropy(pair, labels, label_smoothing=smoothing)
    )
    weights = torch.tensor([0.4, 2.0])
    torch.testing.assert_close(
        cross_entropy(logits, labels, class_weights=weights), cross_entropy(pair, labels, class_weights=weights)
    )
    keep = {"threshold": 0.4, "min_kept": 3}
    assert torch.equal(hard_pixels(logits, labels, **keep), hard_pixels(pair, labels, **keep))


def test_dice_equals_the_count_by_hand() -> None:
    logits, labels = batch()
    labels[labels == 2] = 0  # one class does not occur
    probability = logits.softmax(1)
    losses = []
    for k in (0, 1, 3):
        overlap = sum_p = sum_y = 0.0
        for n, y, x in (labels != VOID).nonzero().tolist():
            p, truth = probability[n, k, y, x].item(), float(labels[n, y, x] == k)
            overlap, sum_p, sum_y = overlap + p * truth, sum_p + p, sum_y + truth
        losses.append(1 - 2 * overlap / (sum_p + sum_y))
    assert dice(logits, labels).item() == pytest.approx(sum(losses) / 3, rel=1e-10)


def test_dice_of_one_logit_is_that_of_the_foreground() -> None:
    logits, labels = batch(1)
    valid = labels != VOID
    p, y = logits[:, 0].sigmoid()[valid], labels[valid].double()
    assert dice(logits, labels).item() == pytest.approx((1 - 2 * (p * y).sum() / (p.sum() + y.sum())).item())
    assert dice(logits, labels.where(labels == VOID, 0)).item() == 0


def test_dice_lies_between_zero_and_one() -> None:
    labels = torch.randint(0, 3, (1, 8, 8), generator=torch.Generator().manual_seed(0))
    right = 100.0 * F.one_hot(labels, 3).permute(0, 3, 1, 2)
    assert dice(right, labels).item() == pytest.approx(0, abs=1e-6)
    assert dice(right.roll(1, dims=1), labels).item() == pytest.approx(1, abs=1e-6)


def true_probability(logits: Tensor, labels: Tensor) -> Tensor:
    return logits.softmax(1).gather(1, labels.where(labels != VOID, 0).unsqueeze(1))[:, 0].detach()


@pytest.mark.parametrize(("fraction", "least"), [(0.25, 1), (0.01, 7), (1.0, 1), (0.5, 10**6)])
def test_a_fraction_of_the_hardest_pixels_is_kept(fraction: float, least: int) -> None:
    logits, labels = batch()
    valid = labels != VOID
    count = int(valid.sum())
    kept = hard_pixels(logits, labels, keep_fraction=fraction, min_kept=least)
    wanted = min(count, max(least, math.ceil(fraction * count)))
    lowest = true_probability(logits, labels)[valid].sort().values[:wanted]
    assert int(kept.sum()) == wanted
    assert not (kept & ~valid).any()
    torch.testing.assert_close(true_probability(logits, labels)[kept].sort().values, lowest)


def test_pixels_below_the_threshold_are_kept_and_never_too_few() -> None:
    logits, labels = batch()
    below = (true_probability(logits, labels) < 0.2) & (labels != VOID)
    assert 5 < below.sum() < 40
    assert torch.equal(hard_pixels(logits, labels, threshold=0.2, min_kept=5), below)
    many = hard_pixels(logits, labels, threshold=0.2, min_kept=40)
    assert int(many.sum()) == 40
    assert (many & below).sum() == below.sum()


def test_the_kept_pixels_are_the_denominator() -> None:
    logits, labels = batch()
    keep = hard_pixels(logits, labels, keep_fraction=0.3)
    expected = F.cross_entropy(logits, labels, ignore_index=VOID, reduction="none")[keep].mean()
    torch.testing.assert_close(cross_entropy(logits, labels, keep=keep), expected)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_and_autocast_compute_in_float32(dtype: torch.dtype) -> None:
    logits, labels = batch(dtype=dtype)
    exact = logits.detach().double()
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = [cross_entropy(logits, labels), dice(logits, labels)]
    for loss, reference in zip(found, [cross_entropy(exact, labels), dice(exact, labels)], strict=True):
        assert loss.dtype == torch.float32
        assert loss.item() == pytest.approx(reference.item(), rel=1e-5)
    torch.stack(found).sum().backward()
    assert logits.grad is not None
    assert logits.grad.dtype == dtype


def test_huge_logits_stay_finite() -> None:
    logits, labels = batch(dtype=torch.float32)
    logits = (logits.detach() * 1e4).requires_grad_()
    (cross_entropy(logits, labels) + dice(logits, labels)).backward()
    assert torch.isfinite(logits.grad).all()


def test_infinite_logits_at_void_pixels_do_not_reach_the_loss() -> None:
    logits, labels = batch(dtype=torch.float32, void=0.0)
    labels[0, 0, 0] = VOID
    broken = logits.detach().clone()
    broken[0, :, 0, 0] = torch.tensor([float("inf"), 0.0, 0.0, 0.0])
    assert cross_entropy(broken, labels).item() == pytest.approx(cross_entropy(logits, labels).item())
    assert dice(broken, labels).item() == pytest.approx(dice(logits, labels).item())


@pytest.mark.parametrize("value", [4, -1, 300])
def test_labels_outside_the_range_are_named(value: int) -> None:
    labels = torch.zeros(1, 4, 4, dtype=torch.int64)
    labels[0, 0, :2] = VOID
    check_labels(labels, 4, VOID)
    labels[0, 1, 1] = value
    with pytest.raises(
        ArgumentError, match=rf"values from .*{value}.*expected class ids 0 to 3 or the ignore_index 255"
    ):
        check_labels(labels, 4, VOID)


def test_labels_of_another_type_are_refused() -> None:
    with pytest.raises(DtypeError, match=r"expected int64 class ids, got torch\.uint8"):
        check_labels(torch.zeros(1, 2, 2, dtype=torch.uint8), 4, VOID)


def test_shapes_and_options_are_checked() -> None:
    logits, labels = batch()
    for loss in (cross_entropy, dice):
        with pytest.raises(ShapeError, match=r"logits \(N, K, H, W\) and labels \(N, H, W\)"):
            loss(logits, labels[:, :3])
    for wrong in ({}, {"threshold": 0.5, "keep_fraction": 0.5}):
        with pytest.raises(ArgumentError, match="either threshold or keep_fraction"):
            hard_pixels(logits, labels, **wrong)
