"""What a recipe holds: one value, validated as a whole, composed of the parts that each layer defines."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt, model_validator

from densekd.config.compare import CompareSpec
from densekd.config.distill import DistillSpec
from densekd.config.published import PublishedResult
from densekd.config.report import ReportSpec
from densekd.config.track import Tracker, TrackSpec, trackers_alone
from densekd.data.kinds import DataSpec
from densekd.inference.specs import EvaluationSpec
from densekd.models.auxiliary import AuxiliarySpec
from densekd.models.names import auxiliary_tap
from densekd.models.specs import ModelSpec
from densekd.spec import Spec
from densekd.tasks.specs import SegmentationSpec
from densekd.teacher import EngineSpec
from densekd.training.specs import RuntimeSpec, TermSpec, TrainSpec

Positive = Annotated[float, Field(gt=0)]


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


Names = Annotated[tuple[str, ...], BeforeValidator(_several, json_schema_input_type=str | tuple[str, ...])]


class StudentSpec(ModelSpec):
    """The network that is trained, perhaps with an auxiliary head that is left behind after training."""

    auxiliary: AuxiliarySpec | None = Field(
        default=None,
        description="an auxiliary head for training, where the network has none of its own; its loss is weighted by "
        "task.auxiliary; {} where the model is a short name that knows its tap",
    )

    @model_validator(mode="before")
    @classmethod
    def _tap_of_the_name(cls, value: Any) -> Any:
        """`auxiliary` without a tap: that of the network's short name, if it has one."""
        if not isinstance(value, dict) or not isinstance(value.get("auxiliary"), dict):
            return value
        model, options, auxiliary = value.get("model"), value.get("options", {}), value["auxiliary"]
        if "tap" in auxiliary or not isinstance(model, str) or not isinstance(options, dict):
            return value
        tap = auxiliary_tap(model, options)
        return value if tap is None else {**value, "auxiliary": {"tap": tap, **auxiliary}}


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
    class_names: tuple[str, ...] | None = Field(
        default=None,
        min_length=2,
        description="its classes in the order of its outputs, when they are not the data's; null: the data's",
    )
    classes: dict[str, Names] | None = Field(
        default=None,
        description="for every class of the data those of the teacher that it stands for, {road: [road, parking], "
        "sky: sky}; [] where the teacher does not know it; null: the teacher's class of the same name",
    )
    engine: EngineSpec = Field(
        default_factory=EngineSpec, description="how it is made fast; what that changes is measured before the run"
    )
    untrained: bool = Field(
        default=False, description="allow a teacher without trained weights (for tests of the machinery)"
    )

    @model_validator(mode="after")
    def _mean_with_std(self) -> TeacherSpec:
        if (self.mean is None) != (self.std is None):
            raise ValueError("give `mean` and `std` together")
        return self

    @model_validator(mode="after")
    def _named_once(self) -> TeacherSpec:
        names = self.class_names or ()
        for name in names:
            if names.count(name) > 1:
                raise ValueError(f"class_names holds {name!r} twice: the classes could not be told apart")
        owners: dict[str, str] = {}
        for own, group in (self.classes or {}).items():
            for name in group:
                if name in owners:
                    raise ValueError(
                        f"classes: the teacher's {name!r} is in the groups of {owners[name]!r} and {own!r}: its "
                        "probability would count twice; name it once"
                    )
                owners[name] = own
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
    student: StudentSpec = Field(description="the network that is trained")
    teacher: TeacherSpec | None = Field(default=None, description="the frozen teacher; only `distill` uses it")
    terms: tuple[TermSpec, ...] = Field(default=(), description="distillation terms; only `distill` uses them")
    distill: DistillSpec = Field(
        default_factory=DistillSpec, description="where the teacher's maps come from; only `distill` uses it"
    )
    train: TrainSpec = Field(description="how it is trained")
    evaluation: EvaluationSpec = Field(
        default_factory=EvaluationSpec, description="how class ids are found, for scores and predictions"
    )
    runtime: RuntimeSpec = Field(default_factory=RuntimeSpec, description="where it computes")
    preflight: PreflightSpec = Field(default_factory=PreflightSpec, description="checks before a distillation")
    report: ReportSpec = Field(default_factory=ReportSpec, description="what is kept to be looked at")
    track: Annotated[
        TrackSpec,
        BeforeValidator(trackers_alone, json_schema_input_type=TrackSpec | Tracker | tuple[Tracker, ...]),
    ] = Field(default_factory=TrackSpec, description="TensorBoard, W&B; a name or a list of names is its `to`")
    compare: CompareSpec = Field(default_factory=CompareSpec, description="what `compare` may compare beside the terms")
    published: tuple[PublishedResult, ...] = Field(
        default=(), description="what others published for this setting, the row of the recipe's own terms first"
    )

    @model_validator(mode="after")
    def _views_of_one_kind(self) -> Recipe:
        if self.distill.cache is not None and self.train.views is not None:
            raise ValueError(
                "distill.cache and train.views are both given, and both say which views the student sees; with a "
                "cache set distill.cache.views and distill.cache.seed, and leave train.views out"
            )
        return self

    @model_validator(mode="after")
    def _auxiliary_head_learns(self) -> Recipe:
        if self.student.auxiliary is not None and not self.task.auxiliary:
            raise ValueError(
                "student.auxiliary asks for an auxiliary head, but task.auxiliary, the weight of its loss, is 0: it "
                "would learn nothing; set task.auxiliary, usually to 0.4"
            )
        return self
