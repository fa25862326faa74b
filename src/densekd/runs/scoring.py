"""The scores of a run's student on one of its splits, by all its processes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor

from densekd.data.base import SegmentationSet
from densekd.evaluate import confusion
from densekd.metrics import ConfusionMeter, image_scores
from densekd.records import Scores
from densekd.runs.assemble import Parts
from densekd.training.loop import Abandoned, Evaluate, Evaluation
from densekd.training.peers import Peers
from densekd.training.stepper import Stepper

_ELSEWHERE, _UNLABELLED = 0.0, -1.0
"""In the place of an image's scores, where another process has it and where it has none."""


def scorer(parts: Parts, stepper: Stepper, which: SegmentationSet, peers: Peers) -> Evaluate:
    """A function that scores the student as it is then; of several processes each looks at its share of the images.

    The counts of all are added up, so that every image counts once and all have the same scores.
    """
    recipe, count = parts.recipe, len(which)

    def score(watch: Callable[[int, int], None]) -> Evaluation:
        met = False
        own = torch.full((count, 2), _ELSEWHERE, dtype=torch.float64)

        def keep(index: int, counts: Tensor) -> None:
            found = image_scores(counts)
            own[index] = torch.tensor((_UNLABELLED, _UNLABELLED) if found is None else found, dtype=torch.float64)

        def total(counts: Tensor) -> Tensor:
            nonlocal met
            met = True
            if peers.most(0):
                raise Abandoned
            return peers.total(counts)

        stepper.gather()
        try:
            meter = confusion(
                stepper.shipped,
                parts.eval_view(which),
                parts.task,
                device=parts.device,
                batch_size=recipe.train.evaluate_batch_size,
                workers=recipe.runtime.workers,
                patience=recipe.runtime.patience,
                precision=recipe.runtime.precision,
                channels_last=recipe.runtime.channels_last,
                evaluation=recipe.evaluation,
                watch=watch,
                shard=(peers.rank, peers.world),
                total=total if peers.world > 1 else None,
                each=keep,
            )
        except Abandoned:
            if not met:
                peers.most(1)  # where the others learn of it, at the end of their shares
            raise
        # Each image is in the share of one process: the others add nothing to its scores.
        pairs = peers.total(own).cpu().tolist()
        images = [None if miou < 0 else (miou, accuracy) for miou, accuracy in pairs]
        return Evaluation(_scores(meter, parts, which), meter.matrix.tolist(), images)

    return score


def _scores(meter: ConfusionMeter, parts: Parts, which: SegmentationSet) -> Scores:
    return Scores(**meter.scores(parts.data.classes), left_out=parts.data.lacking(which))
