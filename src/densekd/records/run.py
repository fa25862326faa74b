"""`record.json` of a run."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from densekd.records.base import Record

Status = Literal["running", "done", "failed", "interrupted"]


class Scores(Record):
    """Metrics of one evaluation over a whole split (one confusion matrix)."""

    miou: float = Field(description="mean IoU over the classes, from 0 to 1")
    pixel_accuracy: float = Field(description="share of the valid pixels that are right")
    iou: dict[str, float | None] = Field(description="IoU per class; null: absent from truth and prediction")
    images: int = Field(description="of the split that were scored")
    left_out: int = Field(default=0, description="of the split that were not: their files cannot be used")

    @property
    def counted(self) -> int | str:
        """How many images were scored, for a table: `499 of 500` where some were left out."""
        return f"{self.images} of {self.images + self.left_out}" if self.left_out else self.images


class BestScores(Scores):
    """Scores of the best evaluation on `val`."""

    step: int = Field(description="after which these weights were evaluated")


class Cost(Record):
    """What a training cost."""

    seconds_per_step: float | None = Field(default=None, description="median over the steps after warm-up")
    teacher_seconds_per_step: float | None = Field(default=None, description="of the teacher alone")
    data_wait: float | None = Field(default=None, description="share of the steps' time spent waiting for images")
    peak_memory_bytes: int | None = Field(
        default=None, description="peak while training: resident (CPU) or allocated (CUDA)"
    )
    total_seconds: float = Field(default=0.0, description="of training and evaluation, over all attempts")
    extra_parameters: int = Field(default=0, description="trained beside the student: adapters, parameters of losses")
    device: str = Field(default="cpu", description="what it ran on, in words")


class NetworkCost(Record):
    """The size of a network."""

    parameters: int = Field(description="live parameters: used in the forward pass")
    dead_parameters: int = Field(default=0, description="of parameters that no forward pass uses")
    flops: int | None = Field(default=None, description="floating-point operations of one image of the run's size")


class TeacherCost(NetworkCost):
    """The size of the teacher, its own score and its fast copy."""

    miou: float | None = Field(default=None, description="on val, before the run; null: not scored")
    sha256: str = Field(default="", description="of its weights: names, types, shapes and bytes")
    engine: dict[str, Any] | None = Field(
        default=None, description="its fast copy: what was done, the error that brought, the time it saved"
    )


class MapError(Record):
    """Stored maps against what the teacher gave: relative L2 error of `softmax(map / temperature)` over positions."""

    mean: float = Field(description="over all samples")
    max: float = Field(description="over all samples")


class CacheRecord(Record):
    """The stored maps of the teacher that a run or a study reads."""

    folder: str = Field(description="of the set")
    sha256: str = Field(description="key of the maps, of the taps and views that are read alone: a resume compares it")
    views: int = Field(description="of each image, that are stored")
    seed: int = Field(description="of the views")
    encoding: str = Field(description='"bfloat16" or "int8"')
    images: int = Field(description="of which views are stored")
    taps: dict[str, tuple[int, int, int]] = Field(description="channels, height, width of the maps that are read")
    bytes: int = Field(description="of the whole set")
    raw_bytes: int = Field(description="of the same maps as 32-bit floats")
    build_seconds: float = Field(description="to fill the whole set, once; no part of any run's seconds")
    errors: dict[str, MapError] = Field(default_factory=dict, description="by tap")


class ImageList(Record):
    """The images of one set, as they are numbered."""

    count: int = Field(description="how many there are")
    sha256: str = Field(description="of their names, each followed by a zero byte")


class LeftOutRecord(Record):
    """Images of one set that are not used, because of `data.on_error: skip`."""

    count: int = Field(description="how many")
    of: int = Field(description="how many the set has with them")
    problems: list[str] = Field(description="file and reason, of the first hundred")


class TrackerRecord(Record):
    """A tracker that was told what happened in a run."""

    where: str = Field(description="folder in the run's, or the address of the page at W&B")
    version: str = Field(description="of its package")
    id: str | None = Field(default=None, description="W&B's id of the run, which a resume goes on with")
    failed: str | None = Field(default=None, description="why it was told nothing more; null: it was told everything")


class RunRecord(Record):
    """`record.json` of a run."""

    schema_version: Literal[1] = Field(default=1, alias="schema", description="of this record")
    status: Status = Field(description="of the run, now")
    error: str | None = Field(default=None, description="why it failed or was stopped")
    traceback: str | None = Field(
        default=None,
        description="of a failure: the calls that led to it, with those of a loading process; up to 20,000 characters",
    )
    method: str = Field(description="what was distilled with; none: the student alone")
    seed: int = Field(description="of the run")
    split: str = Field(description="of `final` and `best`")
    selection: str = Field(default="", description="which evaluation chose the best student")
    evaluation: str = Field(default="", description="how scores were taken: whole image or windows, scales, mirroring")
    steps: int = Field(description="optimiser steps of the whole run")
    epochs: float = Field(description="passes over the training images")
    skipped_steps: int = Field(default=0, description="that the loss scaler left out: gradients overflowed float16")
    processes: int = Field(default=1, description="that shared each step when the run began")
    final: Scores | None = Field(default=None, description="of the weights after the last step")
    best: BestScores | None = Field(
        default=None, description="of the best evaluation, whose weights are student.safetensors"
    )
    student_sha256: str | None = Field(
        default=None, description="of student.safetensors; null: not known (an earlier version of densekd made it)"
    )
    extra_splits: dict[str, Scores] = Field(default_factory=dict, description="further splits, final weights")
    cost: Cost = Field(default_factory=Cost, description="what it cost")
    student: NetworkCost | None = Field(default=None, description="its size")
    teacher: TeacherCost | None = Field(default=None, description="its size; null: trained alone")
    cache: CacheRecord | None = Field(default=None, description="the maps it read; null: the teacher ran in every step")
    preflight: dict[str, Any] | None = Field(default=None, description="what the checks before the run found")
    warnings: list[str] = Field(default_factory=list, description="lines that the user saw")
    environment: dict[str, str] = Field(default_factory=dict, description="versions, machine, commit")
    recipe_sha256: str = Field(default="", description="of the resolved recipe")
    images: dict[str, ImageList] = Field(
        default_factory=dict, description="train, val and unlabelled as the run began: a resume compares them"
    )

    left_out: dict[str, LeftOutRecord] = Field(
        default_factory=dict, description="images whose files cannot be used, by split; empty: all are used"
    )
    trackers: dict[str, TrackerRecord] = Field(default_factory=dict, description="by name; empty: there were none")

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
