"""The scores of a run's student on one of its splits, by all its processes."""

from __future__ import annotations

from collections.abc import Callable

from torch import Tensor

from densekd.data.base import SegmentationSet
from densekd.evaluate import confusion
from densekd.records import Scores
from densekd.runs.assemble import Parts
from densekd.training.loop import Abandoned, Evaluate, Evaluation
from densekd.training.peers import Peers
from densekd.training.stepper import Stepper


def scorer(parts: Parts, stepper: Stepper, which: SegmentationSet, peers: Peers) -> Evaluate:
    """A function that scores the student as it is then; of several processes each looks at its share of the images.

    The counts of all are added up, so that every image counts once and all have the same scores.
    """
    recipe = parts.recipe

    def score(watch: Callable[[int, int], None]) -> Evaluation:
        met = False

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
                precision=recipe.runtime.precision,
                channels_last=recipe.runtime.channels_last,
                evaluation=recipe.evaluation,
                watch=watch,
                shard=(peers.rank, peers.world),
                total=total if peers.world > 1 else None,
            )
        except Abandoned:
            if not met:
                peers.most(1)  # where the others learn of it, at the end of their shares
            raise
        return Evaluation(Scores(**meter.scores(parts.data.classes)), meter.matrix.tolist())

    return score
