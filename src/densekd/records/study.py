"""`study.json` and `plan.json` of a study."""

from __future__ import annotations

import re
from typing import Any, Literal

from pydantic import ConfigDict, Field

from densekd.records.base import Record
from densekd.records.run import CacheRecord, NetworkCost

STUDENT_ALONE = "none"
"""The method of a student that is trained without a teacher."""
_RUN = re.compile(r"(.+)-s(0|[1-9][0-9]*)", re.DOTALL)


def run_name(method: str, seed: int) -> str:
    """What a run of a study and its folder are called: `channelwise-s0`."""
    return f"{method}-s{seed}"


def read_run_name(name: str) -> tuple[str, int] | None:
    """The method and the seed in such a name; None where it is none."""
    found = _RUN.fullmatch(name)
    return None if found is None else (found[1], int(found[2]))


class Gain(Record):
    """Gain over the student alone, paired by seed; `low` and `high` are a 95% bootstrap interval."""

    mean: float = Field(description="over the pairs")
    low: float = Field(description="2.5% of the resampled means lie below")
    high: float = Field(description="2.5% of the resampled means lie above")
    n: int | None = Field(default=None, description="pairs: seeds that both finished")


class StudyScores(Record):
    """Scores of a method over its seeds."""

    miou: list[float] = Field(description="of each seed")
    mean: float = Field(description="over the seeds")
    sd: float = Field(description="standard deviation over the seeds")


class StudyCost(Record):
    """What the runs of a method cost: median seconds per step, the largest memory, mean seconds in total."""

    seconds_per_step: float | None = Field(default=None, description="median over the runs")
    peak_memory_bytes: int | None = Field(default=None, description="the largest of any run")
    extra_parameters: int = Field(default=0, description="trained beside the student: adapters, parameters of losses")
    total_seconds: float | None = Field(default=None, description="of a run, mean")


class StudyFailure(Record):
    """A run that did not finish."""

    seed: int = Field(description="of the run")
    reason: str = Field(description="in one line")
    output: str | None = Field(default=None, description="what it printed: a file, from the study's folder")


class StudyMethod(Record):
    """One line of a comparison."""

    name: str = Field(description="its label")
    where: str = Field(description="logits, features, logits+features, or - for the student alone")
    seeds: list[int] = Field(description="of the finished runs; lists of scores have this order")
    steps: int | None = Field(default=None, description="optimiser steps of each run")
    final: StudyScores | None = Field(description="final weights; null: no run finished")
    best: StudyScores | None = Field(description="the best evaluation on val of each run; null: no run finished")
    gain: Gain | None = Field(default=None, description="of the final weights, mIoU")
    iou: dict[str, float | None] = Field(default_factory=dict, description="mean over seeds, final weights")
    iou_gain: dict[str, float | None] = Field(
        default_factory=dict, description="mean difference to the student alone, paired by seed, final weights"
    )
    extra_splits: dict[str, StudyScores] = Field(default_factory=dict, description="further splits, final weights")
    extra_gains: dict[str, Gain] = Field(default_factory=dict, description="`gain` on the further splits")
    cost: StudyCost = Field(description="of its runs")
    student: NetworkCost | None = Field(default=None, description="its size")
    terms: list[dict[str, Any]] = Field(default_factory=list, description="what was distilled, as in a recipe")
    failed: list[StudyFailure] = Field(default_factory=list, description="runs that did not finish")


class StudyTeacher(Record):
    """The one teacher, scored before any run."""

    miou: float | None = Field(default=None, description="on the whole val split; null: it gives features")
    pixel_accuracy: float | None = Field(default=None, description="on the whole val split")
    iou: dict[str, float | None] = Field(
        default_factory=dict, description="per class; null: absent from truth and prediction"
    )
    images: int | None = Field(default=None, description="it was scored on")
    extra_splits: dict[str, float] = Field(default_factory=dict, description="mIoU on the further splits")
    parameters: int | None = Field(default=None, description="live parameters: used in the forward pass")
    flops: int | None = Field(default=None, description="floating-point operations of one image of the run's size")
    sha256: str = Field(default="", description="of its weights")
    steps: int | None = Field(default=None, description="of its own training, where that was a run")
    total_seconds: float | None = Field(default=None, description="of its own training, where that was a run")


Budget = Literal["steps", "seconds"]


class PlannedMethod(Record):
    """How long one method trains, fixed before its first run."""

    name: str = Field(description="its label")
    steps: int = Field(description="optimiser steps of each run")
    seconds_per_step: float | None = Field(default=None, description="budget seconds: calibrated, median")
    reference_seconds_per_step: float | None = Field(
        default=None, description="budget seconds: of the student alone, in the same calibration"
    )
    samples: int = Field(default=0, description="budget seconds: steps that were timed")
    recipe_sha256: str = Field(
        description="of the method's recipe at the recipe's own steps; seed and threads left out"
    )


class PlannedTeacher(Record):
    """What the teacher's fast copy is like, chosen once for all runs."""

    dtype: str = Field(description='"float32", "bfloat16" or "float16"')
    winograd: bool | None = Field(
        default=None, description="convolutions are in Winograd's form; null: the plan is older than that form"
    )
    sha256: str = Field(description="of the weights that it was chosen for")


class StudyPlan(Record):
    """`plan.json` of a study: what every method may spend."""

    schema_version: Literal[1] = Field(default=1, alias="schema", description="of this record")
    budget: Budget = Field(description="equal steps, or equal time")
    seconds: float | None = Field(
        default=None, description="budget seconds: training time of each run, that of the student alone at its steps"
    )
    jobs: int = Field(description="runs at a time when it was made")
    threads: int | None = Field(description="CPU threads of a run when it was made; null: torch's own choice")
    methods: list[PlannedMethod] = Field(description="each with its steps")
    teacher: PlannedTeacher | None = Field(
        default=None, description="its fast copy; null: no fast copy chooses anything"
    )

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class StudyRecord(Record):
    """`study.json`: several runs compared."""

    schema_version: Literal[1] = Field(default=1, alias="schema", description="of this record")
    name: str = Field(description="of the study")
    data: dict[str, Any] = Field(description="as in the recipe")
    teacher: StudyTeacher = Field(description="the one of all runs")
    methods: list[StudyMethod] = Field(description="the student alone first")
    plan: StudyPlan | None = Field(default=None, description="what every method may spend")
    cache: CacheRecord | None = Field(default=None, description="the one set of stored maps that all runs read")
    notices: list[str] = Field(default_factory=list, description="what limits the comparison")
    command: str = Field(default="", description="that made it")
    environment: dict[str, str] = Field(description="versions, machine, commit")

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
