"""What a confusion matrix says of a network: its score, its agreement beyond chance, and permuted classes."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from densekd.teacher_exam.assignment import best_assignment

_PRESENT = 0.001
_MOVED_SCORE = 0.30
_MOVED_RATIO = 3.0
_MOVED_CLASSES = 2
_MOVED_KAPPA = 0.65


@dataclass(frozen=True)
class Reading:
    """One confusion matrix, read.

    Attributes:
        miou: mean IoU over the classes that occur in truth or prediction, classes taken as they are numbered.
        pixel_accuracy: share of the labelled pixels whose class is right.
        kappa: Cohen's kappa, `(accuracy - chance) / (1 - chance)`, where chance is the accuracy of answers drawn
            independently with the network's own frequencies. 0 for a constant answer, whatever the frequencies.
        channel_of: for each class the output channel that answers to it; `0, 1, 2, ...` unless permuted.
        moved: the (channel, class) pairs that prove a permutation; empty when there is none.
        untangled_miou, untangled_kappa: the same with every channel under the class it answers to.
        favourite: the class predicted most often, and its share of the predictions.
        constant_miou: mean IoU of always answering the most frequent class of the truth (`most_frequent`).
        reordered_kappa: kappa under the best assignment of channels to classes, whether that proves a permutation
            or not.
    """

    miou: float
    pixel_accuracy: float
    kappa: float
    channel_of: tuple[int, ...]
    moved: tuple[tuple[int, int], ...]
    untangled_miou: float
    untangled_kappa: float
    favourite: tuple[int, float]
    constant_miou: float
    most_frequent: int
    reordered_kappa: float


def iou_table(matrix: np.ndarray) -> np.ndarray:
    """`(K, K)`: IoU of the truth's class (row) with the predicted channel (column); 0 where both are empty."""
    truth, answers = matrix.sum(1, keepdims=True), matrix.sum(0, keepdims=True)
    union = truth + answers - matrix
    return np.divide(matrix, union, out=np.zeros_like(matrix, dtype=np.float64), where=union > 0)


def mean_iou(matrix: np.ndarray) -> float:
    """Mean over the classes that occur in truth or prediction; 0 for an empty matrix."""
    present = (matrix.sum(0) + matrix.sum(1)) > 0
    return float(np.diag(iou_table(matrix))[present].mean()) if present.any() else 0.0


def kappa(matrix: np.ndarray) -> float:
    """Cohen's kappa; 0 where it is not defined (no pixels, or truth and prediction are one and the same class)."""
    total = matrix.sum()
    if total == 0:
        return 0.0
    chance = float((matrix.sum(0) * matrix.sum(1)).sum() / total**2)
    return (float(np.trace(matrix) / total) - chance) / (1 - chance) if chance < 1 else 0.0


def read(confusion: np.ndarray) -> Reading:
    """Read a confusion matrix `(K, K)` of counts, rows the truth, columns the prediction.

    Classes count as permuted when the assignment of channels to classes with the largest sum of IoU differs from
    the numbering, and the proof is plain. Why each condition:

    * at least 2 classes move between classes that all hold 0.1% of the labelled pixels or more: a healthy teacher
      that calls riders persons, in images without persons, moves one class to an absent one, and a class of a few
      pixels has an IoU that means nothing (0.1% of 32 images of 480x360 is 5,500 pixels);
    * their mean IoU is at least 0.30 after the move, and at least 3 times what it was: two classes that a network
      mixes up both ways are not permuted;
    * kappa is at least 0.65 after the move. The best of K! assignments is never below the numbering, so "higher"
      proves nothing: 240 untrained heads on trained and untrained features, on pictures where the colour alone
      decides the class, reached a kappa of up to 0.62 (0.36 on average) under their best assignment. Trained
      networks lie above 0.65: a pixel accuracy of 0.8 over 11 classes is a kappa of about 0.75.
    """
    matrix = confusion.astype(np.float64)
    total = max(float(matrix.sum()), 1.0)
    table = iou_table(matrix)
    identity = np.arange(len(matrix))
    # The small bonus keeps classes where they are when nothing speaks for a move.
    chosen = np.array(best_assignment(table + 1e-6 * np.eye(len(matrix))))
    shares = matrix.sum(1) / total
    reordered = kappa(matrix[:, chosen])
    moved = _proof(table, chosen, shares >= _PRESENT) if reordered >= _MOVED_KAPPA else ()
    channel_of = chosen if moved else identity
    untangled = matrix[:, channel_of]
    most = int(shares.argmax())
    favourite = int(matrix.sum(0).argmax())
    constant = np.zeros_like(matrix)
    constant[:, most] = matrix.sum(1)
    return Reading(
        miou=mean_iou(matrix),
        pixel_accuracy=float(np.trace(matrix)) / total,
        kappa=kappa(matrix),
        channel_of=tuple(int(channel) for channel in channel_of),
        moved=moved,
        untangled_miou=mean_iou(untangled),
        untangled_kappa=kappa(untangled),
        favourite=(favourite, float(matrix.sum(0)[favourite]) / total),
        constant_miou=mean_iou(constant),
        most_frequent=most,
        reordered_kappa=reordered,
    )


def _proof(table: np.ndarray, chosen: np.ndarray, present: np.ndarray) -> tuple[tuple[int, int], ...]:
    pairs = [
        (int(channel), row)
        for row, channel in enumerate(chosen)
        if channel != row and present[row] and present[channel]
    ]
    if len(pairs) < _MOVED_CLASSES:
        return ()
    after = float(np.mean([table[row, channel] for channel, row in pairs]))
    before = float(np.mean([table[row, row] for _, row in pairs]))
    return tuple(pairs) if after >= max(_MOVED_SCORE, _MOVED_RATIO * before) else ()
