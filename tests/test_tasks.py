from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from pydantic import ValidationError
from torch.nn import functional as F

from densekd.errors import ArgumentError, ConfigError, ModelError, ShapeError
from densekd.tasks.losses import cross_entropy, dice, hard_pixels
from densekd.tasks.segmentation import SegmentationTask
from densekd.tasks.specs import OhemSpec, SegmentationSpec

NAMES = ("sky", "road", "car")
VOID = 255


def task(**options: Any) -> SegmentationTask:
    return SegmentationTask(SegmentationSpec(**options), 3, VOID, NAMES)


def binary(**options: Any) -> SegmentationTask:
    return SegmentationTask(SegmentationSpec(binary=True, **options), 2, VOID, ("background", "polyp"))


def maps(channels: int = 3) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(1)
    logits = torch.randn(2, channels, 4, 5, generator=draw)
    labels = torch.randint(0, max(2, channels), (2, 16, 20), generator=draw)
    labels[:, :3] = VOID
    return logits, labels


def test_logits_are_brought_to_the_labels_bilinearly() -> None:
    logits, labels = maps()
    total, parts = task().loss(logits, labels)
    large = F.interpolate(logits, (16, 20), mode="bilinear", align_corners=False)
    torch.testing.assert_close(total, F.cross_entropy(large, labels, ignore_index=VOID))
    assert parts.keys() == {"cross_entropy"}


def test_every_part_is_weighted_named_and_detached() -> None:
    logits, labels = maps()
    logits.requires_grad_()
    weights = {"sky": 0.5, "car": 2.0}
    made = task(
        cross_entropy=0.7,
        dice=0.3,
        label_smoothing=0.1,
        class_weights=weights,
        ohem={"keep_fraction": 0.5, "min_kept": 5},
        auxiliary=0.4,
    )
    total, parts = made.loss({"out": logits, "aux": 2 * logits}, labels)

    def both(small: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        large = F.interpolate(small, (16, 20), mode="bilinear", align_corners=False)
        keep = hard_pixels(large, labels, keep_fraction=0.5, min_kept=5)
        vector = torch.tensor([0.5, 1.0, 2.0])
        return (
            0.7 * cross_entropy(large, labels, class_weights=vector, label_smoothing=0.1, keep=keep),
            0.3 * dice(large, labels),
        )

    expected = dict(zip(("cross_entropy", "dice"), both(logits), strict=True))
    expected["auxiliary"] = 0.4 * sum(both(2 * logits))
    assert parts.keys() == expected.keys()
    for name, value in expected.items():
        torch.testing.assert_close(parts[name], value.detach())
        assert not parts[name].requires_grad
    torch.testing.assert_close(total, sum(expected.values()))
    total.backward()
    assert logits.grad.abs().sum() > 0


@pytest.mark.parametrize(
    "wrap", [lambda z: z, lambda z: (z, 0), lambda z: {"out": z}, lambda z: SimpleNamespace(logits=z)]
)
def test_whatever_the_network_returned_is_understood(wrap: Any) -> None:
    logits, labels = maps()
    assert task().loss(wrap(logits), labels)[0] == task().loss(logits, labels)[0]
    assert torch.equal(task().predict(wrap(logits), (16, 20)), task().predict(logits, (16, 20)))


def test_auxiliary_logits_of_an_object_are_found_and_missing_ones_are_said() -> None:
    logits, labels = maps()
    output = SimpleNamespace(logits=logits, auxiliary_logits=logits)
    _, parts = task(auxiliary=0.5).loss(output, labels)
    assert parts["auxiliary"].item() == pytest.approx(0.5 * parts["cross_entropy"].item())
    for none in (logits, {"out": logits}, SimpleNamespace(logits=logits, auxiliary_logits=None)):
        with pytest.raises(ModelError, match=r"no auxiliary map.*task\.auxiliary=0"):
            task(auxiliary=0.5).loss(none, labels)


def test_a_network_with_other_classes_is_refused() -> None:
    logits, labels = maps(5)
    with pytest.raises(ModelError, match=r"expected \(N, 3, h, w\) for 3 classes, got \(2, 5, 4, 5\)"):
        task().loss(logits, labels.clamp(max=2))
    with pytest.raises(ModelError, match="one logit for two classes"):
        binary().predict(logits, (4, 5))


def test_labels_are_checked_before_the_loss() -> None:
    logits, labels = maps()
    with pytest.raises(ArgumentError, match="values from 0 to 7"):
        task().loss(logits, labels.where(labels != 1, 7))
    with pytest.raises(ShapeError, match=r"labels: expected \(2, H, W\), got \(1, 16, 20\)"):
        task().loss(logits, labels[:1])


def test_prediction_enlarges_the_logits_and_not_the_ids() -> None:
    logits, _ = maps()
    found = task().predict(logits, (9, 13))
    large = F.interpolate(logits, (9, 13), mode="bilinear", align_corners=False)
    assert found.dtype == torch.int64
    assert torch.equal(found, large.argmax(1))


def test_binary_has_one_output_and_a_threshold_at_one_half() -> None:
    logits, labels = maps(1)
    made = binary(dice=1.0)
    assert (made.binary, made.num_outputs, made.num_classes) == (True, 1, 2)
    assert (task().binary, task().num_outputs) == (False, 3)
    total, parts = made.loss(logits, labels)
    large = F.interpolate(logits, (16, 20), mode="bilinear", align_corners=False)
    valid = labels != VOID
    plain = F.binary_cross_entropy_with_logits(large[:, 0][valid], labels[valid].float())
    torch.testing.assert_close(parts["cross_entropy"], plain)
    torch.testing.assert_close(total, plain + dice(large, labels))
    assert torch.equal(made.predict(logits, (16, 20)), (large[:, 0].sigmoid() > 0.5).long())


def test_autocast_does_not_lower_the_precision() -> None:
    logits, labels = maps()
    half = logits.bfloat16()
    exact, _ = task().loss(half.float(), labels)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found, _ = task(dice=0.0).loss(half, labels)
    assert found.dtype == torch.float32
    torch.testing.assert_close(found, exact)


def test_void_alone_trains_nothing_and_breaks_nothing() -> None:
    logits, labels = maps()
    logits.requires_grad_()
    total, _ = task(dice=1.0, ohem={"threshold": 0.7}).loss(logits, torch.full_like(labels, VOID))
    total.backward()
    assert total.item() == 0
    assert (logits.grad == 0).all()


def test_another_void_label_works() -> None:
    logits, labels = maps()
    made = SegmentationTask(SegmentationSpec(dice=1.0), 3, -100, NAMES)
    total, _ = made.loss(logits, labels.where(labels != VOID, -100))
    torch.testing.assert_close(total, task(dice=1.0).loss(logits, labels)[0])


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"class_weights": [1.0, 2.0]}, "2 weights for 3 classes"),
        ({"class_weights": {"ska": 1.0}}, "'ska' is no class; did you mean 'sky'"),
        ({"class_weights": [0.0, 0.0, 0.0]}, "all weights are 0"),
        ({"binary": True}, r"task\.binary: expected two classes \(background, foreground\), got 3"),
    ],
)
def test_a_spec_that_does_not_fit_the_classes_is_refused(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        task(**options)


def test_names_and_void_must_fit() -> None:
    with pytest.raises(ConfigError, match="expected 3 names, got 2"):
        SegmentationTask(SegmentationSpec(), 3, VOID, ("a", "b"))
    with pytest.raises(ConfigError, match="ignore_index: 1 is the id of 'road'"):
        SegmentationTask(SegmentationSpec(), 3, 1, NAMES)
    with pytest.raises(ConfigError, match="two classes or more"):
        SegmentationTask(SegmentationSpec(), 1, VOID, ("a",))


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"cross_entropy": 0.0}, "both 0"),
        ({"cross_entropy": 0.0, "dice": 1.0, "label_smoothing": 0.1}, "belong to cross_entropy"),
        ({"label_smoothing": 1.0}, "less than 1"),
        ({"dice": -1.0}, "greater than or equal to 0"),
        ({"dice": float("inf")}, "finite"),
        ({"ohem": {}}, "either threshold or keep_fraction"),
        ({"ohem": {"threshold": 0.7, "keep_fraction": 0.5}}, "either threshold or keep_fraction"),
        ({"focal": 1.0}, "Extra inputs"),
    ],
)
def test_wrong_values_are_refused(values: dict[str, Any], words: str) -> None:
    with pytest.raises(ValidationError, match=words):
        SegmentationSpec(**values)


def test_hard_example_mining_has_a_stated_default() -> None:
    assert OhemSpec(threshold=0.7).min_kept == 10_000
