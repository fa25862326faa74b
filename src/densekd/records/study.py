"""`study.json` and `plan.json` of a study."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from densekd.records.base import Record
from densekd.records.run import CacheRecord, NetworkCost


class Gain(Record):
    """Gain over the student alone, paired by seed; `low` and `high` are a 95% bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int | None = Field(default=None, description="pairs: seeds that both finished")


class StudyScores(Record):
    """Scores of a method over its seeds."""

    miou: list[float]
    mean: float
    sd: float


class StudyCost(Record):
    """What the runs of a method cost: median seconds per step, the largest memory, mean seconds in total."""

    seconds_per_step: float | None = None
    peak_memory_bytes: int | None = None
    extra_parameters: int = 0
    total_seconds: float | None = None


class StudyFailure(Record):
    """A run that did not finish."""

    seed: int
    reason: str
    output: str | None = Field(default=None, description="what it printed: a file, from the study's folder")


class StudyMethod(Record):
    """One line of a comparison."""

    name: str
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
    extra_splits: dict[str, StudyScores] = Field(default_factory=dict)
    extra_gains: dict[str, Gain] = Field(default_factory=dict, description="`gain` on the further splits")
    cost: StudyCost
    student: NetworkCost | None = None
    terms: list[dict[str, Any]] = Field(default_factory=list, description="what was distilled, as in a recipe")
    failed: list[StudyFailure] = Field(default_factory=list)


class StudyTeacher(Record):
    """The one teacher, scored before any run."""

    miou: float | None = Field(default=None, description="on the whole val split; null: it gives features")
    pixel_accuracy: float | None = None
    iou: dict[str, float | None] = Field(default_factory=dict)
    images: int | None = None
    extra_splits: dict[str, float] = Field(default_factory=dict, description="mIoU on the further splits")
    parameters: int | None = None
    flops: int | None = None
    sha256: str = ""
    steps: int | None = Field(default=None, description="of its own training, where that was a run")
    total_seconds: float | None = Field(default=None, description="of its own training, where that was a run")


Budget = Literal["steps", "seconds"]


class PlannedMethod(Record):
    """How long one method trains, fixed before its first run."""

    name: str
    steps: int
    seconds_per_step: float | None = Field(default=None, description="budget seconds: calibrated, median")
    reference_seconds_per_step: float | None = Field(
        default=None, description="budget seconds: of the student alone, in the same calibration"
    )
    samples: int = Field(default=0, description="budget seconds: steps that were timed")
    recipe_sha256: str = Field(
        description="of the method's recipe at the recipe's own steps; seed and threads left out"
    )


class PlannedTeacher(Record):
    """The number format of the teacher's fast copy, chosen once for all runs."""

    dtype: str
    sha256: str = Field(description="of the weights that it was chosen for")


class StudyPlan(Record):
    """`plan.json` of a study: what every method may spend."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    budget: Budget
    seconds: float | None = Field(
        default=None, description="budget seconds: training time of each run, that of the student alone at its steps"
    )
    jobs: int = Field(description="runs at a time when it was made")
    threads: int | None = Field(description="CPU threads of a run when it was made; null: torch's own choice")
    methods: list[PlannedMethod]
    teacher: PlannedTeacher | None = None

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class StudyRecord(Record):
    """`study.json`: several runs compared."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    name: str
    data: dict[str, Any]
    teacher: StudyTeacher
    methods: list[StudyMethod]
    plan: StudyPlan | None = None
    cache: CacheRecord | None = Field(default=None, description="the one set of stored maps that all runs read")
    notices: list[str] = Field(default_factory=list, description="what limits the comparison")
    command: str = ""
    environment: dict[str, str]

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
