"""Means, spreads and gains over seeds."""

from __future__ import annotations

import itertools
import math
import statistics
from collections.abc import Mapping, Sequence

import torch

from densekd.data.keyed import keyed_seed
from densekd.records import Gain, StudyScores

_EXACT_UP_TO = 6  # 6**6 = 46656 resamples
_SAMPLES = 10_000


def spread(values: Sequence[float]) -> StudyScores:
    """Values with their mean and sample standard deviation (denominator n - 1; 0 for one value)."""
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return StudyScores(miou=list(values), mean=statistics.fmean(values), sd=sd)


def paired_gain(values: Mapping[int, float], baseline: Mapping[int, float]) -> Gain | None:
    """Mean difference over the seeds that both have, with a 95% percentile bootstrap interval; None without such seeds.

    The interval reaches from the 2.5% to the 97.5% quantile (the smallest value whose share is at least that) of the
    means of resamples with replacement: of all n**n of them up to 6 seeds, of 10,000 drawn ones above. With up to 3
    seeds one resample alone weighs more than 2.5%, so the interval is from the smallest difference to the largest: it
    describes the spread that was seen, and promises little beyond.
    """
    seeds = sorted(set(values) & set(baseline))
    if not seeds:
        return None
    differences = [values[seed] - baseline[seed] for seed in seeds]
    means = sorted(_resampled_means(differences))
    low, high = (means[max(0, math.ceil(share * len(means)) - 1)] for share in (0.025, 0.975))
    return Gain(mean=statistics.fmean(differences), low=low, high=high, n=len(seeds))


def _resampled_means(differences: Sequence[float]) -> list[float]:
    count = len(differences)
    if count <= _EXACT_UP_TO:
        return [statistics.fmean(picked) for picked in itertools.product(differences, repeat=count)]
    generator = torch.Generator().manual_seed(keyed_seed(0, "bootstrap"))
    picks = torch.randint(count, (_SAMPLES, count), generator=generator)
    means: list[float] = torch.tensor(differences, dtype=torch.float64)[picks].mean(dim=1).tolist()
    return means
