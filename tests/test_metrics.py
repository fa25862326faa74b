from __future__ import annotations

from fractions import Fraction

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torchmetrics import JaccardIndex

from densekd.errors import ArgumentError, DataError, ShapeError
from densekd.metrics import ConfusionMeter, image_scores


def counted(predictions: list[torch.Tensor], labels: list[torch.Tensor], classes: int, void: int) -> list[list[int]]:
    """The confusion matrix, one pixel after the other."""
    matrix = [[0] * classes for _ in range(classes)]
    for prediction, label in zip(predictions, labels, strict=True):
        for guess, truth in zip(prediction.flatten().tolist(), label.flatten().tolist(), strict=True):
            if truth != void:
                matrix[truth][guess] += 1
    return matrix


def random_pair(
    classes: int, void: int, seed: int, shape: tuple[int, ...] = (5, 7)
) -> tuple[torch.Tensor, torch.Tensor]:
    draw = torch.Generator().manual_seed(seed)
    prediction = torch.randint(0, classes, shape, generator=draw)
    label = torch.randint(0, classes, shape, generator=draw)
    label[torch.rand(shape, generator=draw) < 0.3] = void
    return prediction, label


@settings(max_examples=25, deadline=None)
@given(st.integers(2, 7), st.sampled_from([255, -1, -100, 7]), st.integers(0, 10_000))
def test_matrix_and_scores_agree_with_a_slow_count(classes: int, void: int, seed: int) -> None:
    pairs = [random_pair(classes, void, seed + i, (3 + i, 4)) for i in range(3)]
    meter = ConfusionMeter(classes, void)
    for prediction, label in pairs:
        meter.update(prediction, label)
    matrix = counted([p for p, _ in pairs], [t for _, t in pairs], classes, void)
    assert meter.matrix.tolist() == matrix
    names = [f"c{i}" for i in range(classes)]
    ious = []
    for k in range(classes):
        union = sum(matrix[k]) + sum(row[k] for row in matrix) - matrix[k][k]
        ious.append(matrix[k][k] / union if union else None)
    there = [iou for iou in ious if iou is not None]
    scores = meter.scores(names)
    assert scores["iou"] == pytest.approx(dict(zip(names, ious, strict=True)))
    assert scores["miou"] == pytest.approx(sum(there) / len(there))
    assert scores["pixel_accuracy"] == pytest.approx(sum(matrix[k][k] for k in range(classes)) / sum(map(sum, matrix)))
    assert scores["images"] == 3


def test_agrees_with_the_jaccard_index_of_torchmetrics() -> None:
    meter, theirs = ConfusionMeter(6, 255), JaccardIndex("multiclass", num_classes=6, ignore_index=255, average="none")
    for seed in range(4):
        prediction, label = random_pair(6, 255, seed, (2, 9, 5))
        meter.update(prediction, label)
        theirs.update(prediction, label)
    scores = meter.scores([str(i) for i in range(6)])
    assert list(scores["iou"].values()) == pytest.approx(theirs.compute().tolist())
    assert scores["miou"] == pytest.approx(theirs.compute().mean().item())


def test_one_matrix_for_the_split_is_no_mean_over_images() -> None:
    meter = ConfusionMeter(2, 255)
    meter.update(torch.tensor([[0, 0, 0, 1]]), torch.tensor([[0, 0, 0, 1]]))
    meter.update(torch.tensor([[1, 1, 1, 1]]), torch.tensor([[0, 0, 0, 0]]))
    # class 0: 3 right, union 3 + 4; class 1: 1 right, union 1 + 4
    assert meter.scores(["a", "b"])["iou"] == pytest.approx({"a": 3 / 7, "b": 1 / 5})


def test_classes_absent_from_both_are_none_and_out_of_the_mean() -> None:
    meter = ConfusionMeter(4, 255)
    meter.update(torch.tensor([[0, 1, 1, 3]]), torch.tensor([[0, 1, 0, 255]]))
    scores = meter.scores(["a", "b", "c", "d"])
    # d is predicted on void alone, which does not count; c appears nowhere
    assert scores["iou"] == {"a": 0.5, "b": 0.5, "c": None, "d": None}
    assert scores["miou"] == 0.5


def test_a_class_that_is_only_predicted_or_only_true_scores_zero() -> None:
    meter = ConfusionMeter(3, 255)
    meter.update(torch.tensor([[0, 1]]), torch.tensor([[0, 2]]))
    scores = meter.scores(["a", "b", "c"])
    assert scores["iou"] == {"a": 1.0, "b": 0.0, "c": 0.0}
    assert scores["miou"] == pytest.approx(1 / 3)


def test_void_images_count_as_images_but_change_no_score() -> None:
    meter = ConfusionMeter(2, 255)
    meter.update(torch.tensor([[0, 1]]), torch.tensor([[0, 0]]))
    before = meter.scores(["a", "b"])
    meter.update(torch.ones(2, 3, 3, dtype=torch.int64), torch.full((2, 3, 3), 255))
    after = meter.scores(["a", "b"])
    assert after["images"] == 3
    assert {**after, "images": 1} == before


def test_nothing_but_void_cannot_be_scored() -> None:
    meter = ConfusionMeter(2, 255)
    with pytest.raises(DataError, match="0 images without a single labelled pixel"):
        meter.scores(["a", "b"])
    meter.update(torch.zeros(2, 2, dtype=torch.int64), torch.full((2, 2), 255))
    with pytest.raises(DataError, match="1 images without"):
        meter.scores(["a", "b"])


def test_binary_gives_the_iou_of_the_foreground() -> None:
    meter = ConfusionMeter(2, 255)
    meter.update(torch.tensor([[1, 1, 0, 0]]), torch.tensor([[1, 0, 1, 255]]))
    assert meter.scores(["background", "polyp"])["iou"]["polyp"] == pytest.approx(1 / 3)


def test_one_image_at_a_time_is_the_same_as_a_batch() -> None:
    prediction, label = random_pair(5, 255, 3, (4, 6, 6))
    whole, single = ConfusionMeter(5, 255), ConfusionMeter(5, 255)
    whole.update(prediction, label)
    for p, t in zip(prediction, label, strict=True):
        single.update(p, t)
    assert torch.equal(whole.matrix, single.matrix)
    assert whole.images == single.images == 4


def test_narrow_integers_are_counted_without_overflow() -> None:
    meter = ConfusionMeter(200, 255)
    meter.update(torch.full((4, 4), 199, dtype=torch.uint8), torch.full((4, 4), 198, dtype=torch.uint8))
    assert meter.matrix[198, 199] == 16


@pytest.mark.parametrize(
    ("prediction", "label", "error", "words"),
    [
        (torch.zeros(2, 3), torch.zeros(3, 2), ShapeError, r"one shape.*\(2, 3\) and \(3, 2\)"),
        (torch.zeros(6), torch.zeros(6), ShapeError, r"\(H, W\) or \(N, H, W\)"),
        (torch.full((2, 2), 4), torch.zeros(2, 2).long(), ArgumentError, "prediction: values from 4 to 4"),
        (torch.zeros(2, 2).long(), torch.full((2, 2), 3), ArgumentError, "label: values from 3 to 3.*ignore_index 255"),
        (torch.zeros(2, 2).long(), torch.full((2, 2), -1), ArgumentError, "label: values from -1"),
        (torch.zeros(2, 2), torch.zeros(2, 2).long(), ArgumentError, "prediction: expected class ids as integers"),
    ],
)
def test_what_cannot_be_counted_is_refused(
    prediction: torch.Tensor, label: torch.Tensor, error: type[Exception], words: str
) -> None:
    with pytest.raises(error, match=words):
        ConfusionMeter(3, 255).update(prediction, label)


def test_construction_and_names_are_checked() -> None:
    with pytest.raises(ArgumentError, match="num_classes: expected 2 or more"):
        ConfusionMeter(1, 255)
    with pytest.raises(ArgumentError, match="ignore_index: 2 is a class id"):
        ConfusionMeter(3, 2)
    with pytest.raises(ArgumentError, match="expected 3 names, got 2"):
        ConfusionMeter(3, 255).scores(["a", "b"])


def by_definition(matrix: list[list[int]]) -> tuple[list[Fraction | None], Fraction, Fraction]:
    """IoU of every class, their mean and the pixel accuracy of a confusion matrix, in exact fractions."""
    classes = range(len(matrix))
    ious: list[Fraction | None] = []
    for k in classes:
        either = sum(matrix[i][j] for i in classes for j in classes if k in (i, j))
        ious.append(Fraction(matrix[k][k], either) if either else None)
    there = [iou for iou in ious if iou is not None]
    right = sum(matrix[k][k] for k in classes)
    return ious, sum(there, Fraction()) / len(there), Fraction(right, sum(map(sum, matrix)))


@st.composite
def matrices(draw: st.DrawFn) -> list[list[int]]:
    """Counts up to those of a large split, of which some classes have neither truth nor prediction."""
    classes = draw(st.integers(2, 6))
    empty = draw(st.sets(st.integers(0, classes - 1), max_size=classes - 1))
    count = st.one_of(st.just(0), st.integers(0, 9), st.integers(0, 2**40))
    return [[0 if {i, j} & empty else draw(count) for j in range(classes)] for i in range(classes)]


@settings(max_examples=60, deadline=None)
@given(matrices(), st.integers(0, 5))
def test_scores_of_any_matrix_are_those_of_the_definition(matrix: list[list[int]], images: int) -> None:
    meter = ConfusionMeter(len(matrix), 255)
    meter.matrix, meter.images = torch.tensor(matrix), images
    names = [f"c{k}" for k in range(len(matrix))]
    if not sum(map(sum, matrix)):
        with pytest.raises(DataError, match=f"{images} images without a single labelled pixel"):
            meter.scores(names)
        assert image_scores(meter.matrix) is None
        return
    ious, miou, accuracy = by_definition(matrix)
    scores = meter.scores(names)
    assert list(scores["iou"].values()) == [
        None if iou is None else pytest.approx(float(iou), rel=1e-12) for iou in ious
    ]
    assert scores["miou"] == pytest.approx(float(miou), rel=1e-12)
    assert scores["pixel_accuracy"] == pytest.approx(float(accuracy), rel=1e-12)
    assert image_scores(meter.matrix) == (scores["miou"], scores["pixel_accuracy"])


@settings(max_examples=20, deadline=None)
@given(st.integers(2, 5), st.lists(st.booleans(), min_size=1, max_size=5), st.integers(0, 10_000))
def test_images_of_nothing_but_void_change_nothing_but_their_number(classes: int, void: list[bool], seed: int) -> None:
    meter, without = ConfusionMeter(classes, 255), ConfusionMeter(classes, 255)
    for number, nothing in enumerate(void):
        prediction, label = random_pair(classes, 255, seed + number)
        counts = meter.update(prediction, torch.full_like(label, 255) if nothing else label)
        assert (image_scores(counts) is None) == (nothing or bool((label == 255).all()))
        if not nothing:
            without.update(prediction, label)
    assert torch.equal(meter.matrix, without.matrix)
    assert (meter.images, without.images) == (len(void), len(void) - sum(void))
