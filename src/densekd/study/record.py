"""`study.json` from the records of finished runs and the reasons of failed ones."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from densekd.records import (
    STUDENT_ALONE,
    BestScores,
    RunRecord,
    Scores,
    StudyCost,
    StudyFailure,
    StudyMethod,
    StudyPlan,
    StudyRecord,
    StudyTeacher,
    environment,
)
from densekd.study.methods import Method
from densekd.study.statistics import paired_gain, spread

Records = Mapping[int, RunRecord]
"""Records of finished runs by seed."""


def study_record(
    name: str,
    methods: Sequence[Method],
    runs: Mapping[str, Records],
    failures: Mapping[str, Sequence[StudyFailure]],
    *,
    data: dict[str, Any],
    teacher: StudyTeacher,
    plan: StudyPlan | None,
    command: str,
) -> StudyRecord:
    """The study's record; gains are against the method `none`, on the final weights.

    Args:
        runs: the finished runs of each method by its name.
        failures: the runs that did not finish, by the method's name.
        data: the recipe's data.
    """
    alone = runs.get(STUDENT_ALONE, {})
    lines = [summarise(method, runs.get(method.name, {}), alone, failures.get(method.name, ())) for method in methods]
    return StudyRecord(
        name=name,
        data=data,
        teacher=teacher,
        methods=lines,
        plan=plan,
        notices=_limits(runs),
        command=command,
        environment=environment(),
    )


def summarise(method: Method, runs: Records, alone: Records, failures: Sequence[StudyFailure] = ()) -> StudyMethod:
    """One method's line of `study.json`."""
    records = [runs[seed] for seed in sorted(runs)]
    seconds = [value for record in records if (value := record.cost.seconds_per_step) is not None]
    peaks = [value for record in records if (value := record.cost.peak_memory_bytes) is not None]
    splits = records[0].extra_splits if records else {}
    compared = method.name != STUDENT_ALONE
    return StudyMethod(
        name=method.name,
        where=method.where,
        seeds=[record.seed for record in records],
        steps=records[0].steps if records else None,
        final=spread([_final(record).miou for record in records]) if records else None,
        best=spread([_best(record).miou for record in records]) if records else None,
        gain=paired_gain(_miou(runs), _miou(alone)) if compared else None,
        iou={} if not records else _mean_iou([_final(record).iou for record in records]),
        iou_gain=_iou_gain(runs, alone) if compared else {},
        extra_splits={name: spread([record.extra_splits[name].miou for record in records]) for name in splits},
        extra_gains={
            name: gain
            for name in splits
            if compared and (gain := paired_gain(_miou(runs, name), _miou(alone, name))) is not None
        },
        cost=StudyCost(
            seconds_per_step=statistics.median(seconds) if seconds else None,
            peak_memory_bytes=max(peaks, default=None),
            extra_parameters=max((record.cost.extra_parameters for record in records), default=0),
            total_seconds=statistics.fmean(r.cost.total_seconds for r in records) if records else None,
        ),
        student=records[0].student if records else None,
        terms=[term.model_dump(mode="json") for term in method.terms],
        failed=list(failures),
    )


def _final(record: RunRecord) -> Scores:
    assert record.final is not None  # a finished run has been evaluated
    return record.final


def _best(record: RunRecord) -> BestScores:
    assert record.best is not None
    return record.best


def _miou(runs: Records, split: str | None = None) -> dict[int, float]:
    """mIoU by seed, final weights; of `val`, or of a further split (runs that have no such split are left out)."""
    if split is None:
        return {seed: _final(record).miou for seed, record in runs.items()}
    return {seed: record.extra_splits[split].miou for seed, record in runs.items() if split in record.extra_splits}


def _mean_iou(found: Sequence[Mapping[str, float | None]]) -> dict[str, float | None]:
    """Mean over those where the class occurs; None where it occurs in none."""

    def mean(name: str) -> float | None:
        values = [value for one in found if (value := one[name]) is not None]
        return statistics.fmean(values) if values else None

    return {name: mean(name) for name in found[0]}


def _iou_gain(runs: Records, alone: Records) -> dict[str, float | None]:
    pairs = [(_final(runs[seed]).iou, _final(alone[seed]).iou) for seed in sorted(set(runs) & set(alone))]
    if not pairs:
        return {}

    def difference(mine: Mapping[str, float | None], base: Mapping[str, float | None]) -> dict[str, float | None]:
        return {
            name: None if value is None or (other := base.get(name)) is None else value - other
            for name, value in mine.items()
        }

    return _mean_iou([difference(mine, base) for mine, base in pairs])


def _limits(runs: Mapping[str, Records]) -> list[str]:
    """What makes runs of one study less than comparable: other machines, versions or code."""
    every = [record for found in runs.values() for record in found.values()]
    told = []
    looked: dict[str, Callable[[RunRecord], str]] = {
        "runs were made on different devices, so that seconds per step cannot be compared": lambda r: r.cost.device,
        "runs were made with different versions of torch": lambda r: r.environment.get("torch", "unknown"),
        "runs were made with different code of densekd": lambda r: r.environment.get("commit", "unknown")[:12],
    }
    for words, value in looked.items():
        found = sorted({value(record) for record in every})
        if len(found) > 1:
            told.append(f"{words}: {'; '.join(found)}")
    return told
