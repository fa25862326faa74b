"""Which images and channels are shown: chosen by rule from their numbers, and the rule in words."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Scores = Sequence[float | None]
"""A number for each image, by index; None where there is none (nothing in it is labelled)."""


@dataclass(frozen=True)
class Choice:
    """Indices in the order in which they are shown, why each is there, and the rule in words."""

    indices: tuple[int, ...]
    why: Mapping[int, str]
    rule: str


def changed_most(before: Scores, after: Scores, count: int, names: tuple[str, str]) -> Choice:
    """The images whose score differs most: half of `count` with the largest gain, then half with the largest loss.

    An odd one more goes to the gains; of equal ones the first comes first. An image is shown once, and one without a
    score on both sides never.

    Args:
        before, after: scores of the same images.
        names: what `before` and `after` are scores of.
    """
    gains = {
        index: new - old
        for index, (old, new) in enumerate(zip(before, after, strict=True))
        if old is not None and new is not None
    }
    rising = sorted(gains, key=lambda index: (-gains[index], index))
    falling = sorted(gains, key=lambda index: (gains[index], index))
    up = rising[: min((count + 1) // 2, len(rising))]
    down = [index for index in falling if index not in up][: max(0, count - len(up))]
    why = {index: f"mIoU {_signed(gains[index])} by {names[1]}" for index in (*up, *down)}
    rule = (
        f"of the {len(gains)} images with labels, {_counted(len(up), 'the one')} with the largest gain in their own "
        f"mIoU from {names[0]} to {names[1]}, largest first; then {_counted(len(down), 'the one')} with the largest "
        "loss (the smallest gain, where fewer lost)"
    )
    return Choice((*up, *down), why, rule)


def extremes(scores: Scores, count: int, differing: Mapping[int, float] | None = None) -> Choice:
    """For one network: the images it does best on, worst on, and answers most differently from its teacher.

    A third of `count` each (without a teacher: a half each), an odd one more to the best. No image is shown twice.

    Args:
        scores: of the network, by index.
        differing: for some images the share of labelled pixels where network and teacher answer differently.
    """
    known = [index for index, score in enumerate(scores) if score is not None]
    ranked = sorted(known, key=lambda index: (-(scores[index] or 0.0), index))
    apart = count // 3 if differing else 0
    best = ranked[: (count - apart + 1) // 2]
    worst = [index for index in reversed(ranked) if index not in best][: max(0, count - apart - len(best))]
    taken = {*best, *worst}
    why = dict.fromkeys(best, "among the best") | dict.fromkeys(worst, "among the worst")
    rule = (
        f"of the {len(known)} images with labels, by their own mIoU {_counted(len(best), 'the best')}, then "
        f"{_counted(len(worst), 'the worst')}"
    )
    others: list[int] = []
    if differing:
        order = sorted(differing, key=lambda index: (-differing[index], index))
        others = [index for index in order if index not in taken][:apart]
        for index in others:
            why[index] = f"answers other than the teacher's on {100 * differing[index]:.1f}% of its labelled pixels"
        rule += (
            f"; then {_counted(len(others), 'the one')} with the largest share of labelled pixels where student and "
            f"teacher answer differently, of {len(differing)} images spread over the set"
        )
    return Choice((*best, *worst, *others), why, rule)


def moved_most(before: Sequence[float], after: Sequence[float], count: int) -> list[int]:
    """The channels whose number changed most, either way, largest first; of equal ones the first comes first."""
    changes = [abs(new - old) for old, new in zip(before, after, strict=True)]
    return sorted(range(len(changes)), key=lambda channel: (-changes[channel], channel))[:count]


def _signed(change: float) -> str:
    return f"{100 * change:+.1f} points"


def _counted(count: int, words: str) -> str:
    return f"{words}" if count == 1 else f"the {count}{words.removeprefix('the').removeprefix(' one')}"
