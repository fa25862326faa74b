"""What runs, studies and benchmarks leave behind, as validated values (schema 1).

Numbers of accuracy are fractions from 0 to 1; seconds, bytes and floating-point operations are what they say.
"""

from __future__ import annotations

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field

from densekd import host_memory

Status = Literal["running", "done", "failed", "interrupted"]


class _Record(BaseModel):
    model_config = ConfigDict(extra="forbid", ser_json_inf_nan="null")


class Scores(_Record):
    """Metrics of one evaluation over a whole split (one confusion matrix)."""

    miou: float
    pixel_accuracy: float
    iou: dict[str, float | None] = Field(description="IoU per class; null: absent from truth and prediction")
    images: int


class BestScores(Scores):
    step: int


class Cost(_Record):
    seconds_per_step: float | None = Field(default=None, description="median over the steps after warm-up")
    teacher_seconds_per_step: float | None = None
    data_wait: float | None = Field(default=None, description="share of the steps' time spent waiting for images")
    peak_memory_bytes: int | None = Field(
        default=None, description="peak while training: resident (CPU) or allocated (CUDA)"
    )
    total_seconds: float = 0.0
    extra_parameters: int = Field(default=0, description="trained beside the student: adapters, parameters of losses")
    device: str = "cpu"


class NetworkCost(_Record):
    parameters: int = Field(description="live parameters: used in the forward pass")
    dead_parameters: int = 0
    flops: int | None = Field(default=None, description="floating-point operations of one image of the run's size")


class TeacherCost(NetworkCost):
    miou: float | None = None
    sha256: str = Field(default="", description="of its weights: names, types, shapes and bytes")
    engine: dict[str, Any] | None = Field(
        default=None, description="its fast copy: what was done, the error that brought, the time it saved"
    )


class MapError(_Record):
    """Stored maps against what the teacher gave: relative L2 error of `softmax(map / temperature)` over positions."""

    mean: float
    max: float


class CacheRecord(_Record):
    """The stored maps of the teacher that a run or a study reads."""

    folder: str
    sha256: str = Field(description="key of the maps, of the taps and views that are read alone: a resume compares it")
    views: int
    seed: int
    encoding: str
    images: int
    taps: dict[str, tuple[int, int, int]] = Field(description="channels, height, width of the maps that are read")
    bytes: int = Field(description="of the whole set")
    raw_bytes: int = Field(description="of the same maps as 32-bit floats")
    build_seconds: float = Field(description="to fill the whole set, once; no part of any run's seconds")
    errors: dict[str, MapError] = Field(default_factory=dict, description="by tap")


class ImageList(_Record):
    """The images of one set, as they are numbered."""

    count: int
    sha256: str = Field(description="of their names, each followed by a zero byte")


class RunRecord(_Record):
    """`record.json` of a run."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    status: Status
    error: str | None = None
    method: str
    seed: int
    split: str
    selection: str = Field(default="", description="which evaluation chose the best student")
    evaluation: str = Field(default="", description="how scores were taken: whole image or windows, scales, mirroring")
    steps: int
    epochs: float
    processes: int = Field(default=1, description="that shared each step when the run began")
    final: Scores | None = None
    best: BestScores | None = None
    extra_splits: dict[str, Scores] = Field(default_factory=dict, description="further splits, final weights")
    cost: Cost = Field(default_factory=Cost)
    student: NetworkCost | None = None
    teacher: TeacherCost | None = None
    cache: CacheRecord | None = Field(default=None, description="the maps it read; null: the teacher ran in every step")
    preflight: dict[str, Any] | None = None
    warnings: list[str] = Field(default_factory=list)
    environment: dict[str, str] = Field(default_factory=dict)
    recipe_sha256: str = ""
    images: dict[str, ImageList] = Field(
        default_factory=dict, description="train, val and unlabelled as the run began: a resume compares them"
    )

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


class Gain(_Record):
    """Gain over the student alone, paired by seed; `low` and `high` are a 95% bootstrap interval."""

    mean: float
    low: float
    high: float
    n: int | None = Field(default=None, description="pairs: seeds that both finished")


class StudyScores(_Record):
    miou: list[float]
    mean: float
    sd: float


class StudyCost(_Record):
    seconds_per_step: float | None = None
    peak_memory_bytes: int | None = None
    extra_parameters: int = 0
    total_seconds: float | None = None


class StudyFailure(_Record):
    """A run that did not finish."""

    seed: int
    reason: str
    output: str | None = Field(default=None, description="what it printed: a file, from the study's folder")


class StudyMethod(_Record):
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


class StudyTeacher(_Record):
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


class PlannedMethod(_Record):
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


class PlannedTeacher(_Record):
    """The number format of the teacher's fast copy, chosen once for all runs."""

    dtype: str
    sha256: str = Field(description="of the weights that it was chosen for")


class StudyPlan(_Record):
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


class StudyRecord(_Record):
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


class BenchCase(_Record):
    name: str
    variant: str
    median_seconds: float
    ratio: float | None = Field(description="speed-up over the case's reference variant")
    peak_bytes: int | None = None
    error: float | None = Field(
        default=None,
        description="relative, against float64; bench step: of the teacher's softened maps, against float32",
    )
    samples: list[float]
    extra: dict[str, Any] = Field(default_factory=dict)


class BenchRecord(_Record):
    """A benchmark's record; committed ones live under `benchmarks/results/`."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    bench: Literal["loss", "methods", "task", "step", "data", "scaling", "latency"]
    device: str
    threads: int
    command: str
    commit: str
    load: list[float] = Field(description="load averages (1, 5, 15 minutes) at the start")
    cases: list[BenchCase]
    environment: dict[str, str]

    model_config = ConfigDict(extra="forbid", populate_by_name=True)


def dump(record: BaseModel) -> dict[str, Any]:
    """The record as plain JSON values, with its public key names."""
    return record.model_dump(mode="json", by_alias=True)


def commit() -> str:
    """The commit of the source tree that runs, with `+changes` where files differ from it; empty outside git."""
    here = Path(__file__).parent

    def git(*arguments: str) -> str:
        done = subprocess.run(["git", "-C", str(here), *arguments], capture_output=True, text=True, check=True)
        return done.stdout.strip()

    try:
        if git("ls-files", "--error-unmatch", __file__) == "":
            return ""
        return git("rev-parse", "HEAD") + ("+changes" if git("status", "--porcelain", "--", str(here)) else "")
    except (OSError, subprocess.CalledProcessError):
        return ""


_PACKAGES = (
    "densekd",
    "torch",
    "torchvision",
    "accelerate",
    "segmentation-models-pytorch",
    "timm",
    "transformers",
)


def _cpu_name() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def environment() -> dict[str, str]:
    """Versions, machine, how large tensors get their memory, and commit, for a record."""
    found: dict[str, str] = {
        "python": sys.version.split()[0],
        "platform": platform.platform(),
        "cpu": _cpu_name(),
    }
    found["cpus"] = str(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count())
    for package in _PACKAGES:
        try:
            found[package] = metadata.version(package)
        except metadata.PackageNotFoundError:
            continue
    found |= host_memory.in_words()
    found["commit"] = commit()
    found["date"] = datetime.now(UTC).strftime("%Y-%m-%d")
    return found
