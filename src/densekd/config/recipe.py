"""What a recipe holds: one value, validated as a whole, composed of the parts that each layer defines."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveInt, model_validator

from densekd.config.compare import CompareSpec
from densekd.config.published import PublishedResult
from densekd.data.specs import DataSpec
from densekd.inference.specs import EvaluationSpec
from densekd.models.specs import ModelSpec
from densekd.spec import Spec
from densekd.tasks.specs import SegmentationSpec
from densekd.training.specs import RuntimeSpec, TermSpec, TrainSpec

Positive = Annotated[float, Field(gt=0)]


class TeacherSpec(ModelSpec):
    """The frozen teacher, and how it wants its images when that differs from the student's."""

    mean: tuple[float, float, float] | None = Field(
        default=None, description="its own normalisation; null: the student's"
    )
    std: tuple[Positive, Positive, Positive] | None = Field(
        default=None, description="its own normalisation; null: the student's"
    )
    size: tuple[PositiveInt, PositiveInt] | None = Field(
        default=None, description="its own input height and width; null: the student's"
    )
    untrained: bool = Field(
        default=False, description="allow a teacher without trained weights (for tests of the machinery)"
    )

    @model_validator(mode="after")
    def _mean_with_std(self) -> TeacherSpec:
        if (self.mean is None) != (self.std is None):
            raise ValueError("give `mean` and `std` together")
        return self


class PreflightSpec(Spec):
    """The checks before a distillation."""

    teacher_images: int = Field(
        default=32, ge=0, description="validation images on which the teacher is scored; 0: none"
    )
    on_problem: Literal["stop", "warn"] = Field(default="stop", description="what a named problem does")


class Recipe(Spec):
    """One training: what is trained, on what, how, and under which teacher."""

    name: str = Field(default="run", pattern=r"^\w[\w.+@-]*$", description="name of the run folder under runs/")
    seed: int = Field(default=0, ge=0, description="seed of initial weights, order, augmentation, dropout")
    task: SegmentationSpec = Field(default_factory=SegmentationSpec, description="the task and its loss")
    data: DataSpec = Field(description="images and labels")
    student: ModelSpec = Field(description="the network that is trained")
    teacher: TeacherSpec | None = Field(default=None, description="the frozen teacher; only `distill` uses it")
    terms: tuple[TermSpec, ...] = Field(default=(), description="distillation terms; only `distill` uses them")
    train: TrainSpec = Field(description="how it is trained")
    evaluation: EvaluationSpec = Field(
        default_factory=EvaluationSpec, description="how class ids are found, for scores and predictions"
    )
    runtime: RuntimeSpec = Field(default_factory=RuntimeSpec, description="where it computes")
    preflight: PreflightSpec = Field(default_factory=PreflightSpec, description="checks before a distillation")
    compare: CompareSpec = Field(default_factory=CompareSpec, description="what `compare` may compare beside the terms")
    published: tuple[PublishedResult, ...] = Field(
        default=(), description="what others published for this setting, the row of the recipe's own terms first"
    )
