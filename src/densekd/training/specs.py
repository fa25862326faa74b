"""The parts of a recipe that say how a network is trained."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, PositiveFloat, PositiveInt, field_validator, model_validator

from densekd.spec import Spec
from densekd.tasks.specs import PARTS
from densekd.training.columns import RESERVED

Share = Annotated[float, Field(ge=0, lt=1)]


class OptimizerSpec(Spec):
    """SGD with momentum or AdamW; every parameter group, adapters included, follows the schedule."""

    name: Literal["sgd", "adamw"] = Field(default="sgd", description="optimiser")
    lr: PositiveFloat = Field(default=0.01, description="peak learning rate")
    weight_decay: float = Field(default=5e-4, ge=0, description="weight decay")
    momentum: float = Field(default=0.9, ge=0, lt=1, description="SGD's momentum")
    betas: tuple[Share, Share] = Field(default=(0.9, 0.999), description="AdamW's betas")
    decay_norms_and_biases: bool = Field(
        default=True, description="whether one-dimensional parameters (norm layers, biases) get weight decay too"
    )
    encoder_lr_factor: PositiveFloat = Field(
        default=1.0, description="learning rate of a pretrained `encoder` or `backbone` as a multiple of `lr`"
    )


class ScheduleSpec(Spec):
    """The learning rate over the steps, as a factor of `lr`."""

    name: Literal["poly", "onecycle", "constant"] = Field(default="poly", description="shape of the schedule")
    power: PositiveFloat = Field(default=0.9, description="poly: factor = (1 - step/steps)**power")
    floor: Share = Field(
        default=0.0, description="poly: the factor it falls to: floor + (1 - floor) * (1 - step/steps)**power"
    )
    warmup_steps: int = Field(default=0, ge=0, description="poly, constant: linear warm-up from `warmup_factor`")
    warmup_factor: float = Field(default=0.1, gt=0, le=1, description="factor of the first warm-up step")
    pct_start: float = Field(default=0.3, gt=0, lt=1, description="onecycle: share of the steps spent rising")
    div_factor: PositiveFloat = Field(default=25.0, description="onecycle: first factor is 1/div_factor")
    final_div_factor: PositiveFloat = Field(default=1e4, description="onecycle: last factor is 1/(div*final_div)")

    @model_validator(mode="after")
    def _one_rise(self) -> ScheduleSpec:
        if self.name == "onecycle" and self.warmup_steps:
            raise ValueError("warmup_steps belongs to poly and constant; onecycle rises over `pct_start` of the steps")
        if self.name != "poly" and self.floor:
            raise ValueError(f"floor belongs to poly, and here the schedule is {self.name}")
        return self


class TermSpec(Spec):
    """One distillation loss between a tap of the student and a tap of the teacher."""

    method: str = Field(default="channelwise", description="loss by its name (see `densekd list methods`)")
    student: str = Field(default="logits", description="tap of the student: `logits`, `output` or a module path")
    teacher: str = Field(default="logits", description="tap of the teacher")
    weight: float = Field(default=3.0, ge=0, description="weight of the term in the total loss")
    name: str | None = Field(default=None, description="name, and column of log.csv; default `method:tap`")
    options: dict[str, float | int | bool | str | None] = Field(
        default_factory=dict, description="options of the loss, for instance {temperature: 4.0}"
    )
    warmup_steps: int = Field(default=0, ge=0, description="the weight rises linearly from 0 over these steps")
    decay: Literal["none", "linear", "cosine"] = Field(
        default="none", description="the weight falls to 0 at `end_step` (or the last step)"
    )
    end_step: PositiveInt | None = Field(default=None, description="the term ends at this step; null: never")

    @field_validator("name")
    @classmethod
    def _own_column(cls, value: str | None) -> str | None:
        """The name is a column of `log.csv`: not one of the run's own, and one that can be read back."""
        if value is not None and (not value.strip() or value != value.strip() or not value.isprintable()):
            raise ValueError(f"expected a name of printable characters, without space around it, got {value!r}")
        if value in RESERVED or value in PARTS:
            taken = ", ".join((*RESERVED, *PARTS))
            raise ValueError(f"expected a name that no column of log.csv has already ({taken}), got {value!r}")
        return value


class ViewsSpec(Spec):
    """A fixed number of augmented views of each training image, instead of a new one in every epoch."""

    count: PositiveInt = Field(description="views of an image: epoch e shows view e mod count")
    seed: int = Field(default=0, ge=0, description="of the random choices in them, whatever the run's own seed")


class TrainSpec(Spec):
    """Length, batch, optimiser, schedule, and how often to look, save and log."""

    steps: PositiveInt | None = Field(default=None, description="optimiser steps; give this or `epochs`")
    epochs: PositiveFloat | None = Field(
        default=None, description="passes over the labelled training images; rounded up to steps"
    )
    batch_size: PositiveInt = Field(default=8, description="labelled images a step (per micro-batch and device)")
    accumulate: PositiveInt = Field(default=1, description="micro-batches whose gradients are averaged into one step")
    global_batch_size: PositiveInt | None = Field(
        default=None,
        description="labelled images a step over all processes, whatever their number: `accumulate` is found from it; "
        "null: batch_size x accumulate x processes",
    )
    optimizer: OptimizerSpec = Field(default_factory=OptimizerSpec, description="optimiser")
    schedule: ScheduleSpec = Field(default_factory=ScheduleSpec, description="learning-rate schedule")
    clip_norm: PositiveFloat | None = Field(
        default=None, description="largest L2 norm of the whole gradient; null: no limit"
    )
    ema_decay: float | None = Field(
        default=None,
        gt=0,
        lt=1,
        description="decay of an exponential moving average of the student, evaluated and shipped",
    )
    evaluate_every: PositiveInt | None = Field(
        default=None, description="steps between evaluations; null: at the end only"
    )
    evaluate_batch_size: PositiveInt = Field(default=8, description="images a batch in evaluation")
    checkpoint_every: PositiveInt = Field(
        default=200, description="steps between checkpoints; evaluations save one too"
    )
    checkpoint_minutes: PositiveFloat = Field(
        5.0, description="minutes after which a checkpoint is saved in any case; where it falls changes no result"
    )
    log_every: PositiveInt = Field(default=1, description="steps between rows of log.csv")
    views: ViewsSpec | None = Field(
        default=None,
        description="show `count` augmented views of each image again and again, as a run with distill.cache does "
        "with its own; null: a new view in every epoch",
    )

    @model_validator(mode="after")
    def _one_length(self) -> TrainSpec:
        if (self.steps is None) == (self.epochs is None):
            raise ValueError("give exactly one of `steps` and `epochs`, and null for the other")
        return self

    @model_validator(mode="after")
    def _one_step(self) -> TrainSpec:
        if self.global_batch_size is not None and self.accumulate != 1:
            raise ValueError("accumulate is found from `global_batch_size`: leave one of the two out")
        return self


class RuntimeSpec(Spec):
    """Where and how the run computes; no value here may change what is learned beyond rounding."""

    device: Literal["auto", "cpu", "cuda"] = Field(default="auto", description="device; auto: CUDA when there is one")
    precision: Literal["float32", "bfloat16", "float16"] = Field(default="float32", description="autocast precision")
    workers: int = Field(default=0, ge=0, description="processes that load data; 0: the main process")
    loading_minutes: PositiveFloat | None = Field(
        default=10.0,
        description="loading processes: minutes that they may take to give a batch; then they are ended, and the run "
        "with them, by an error that names the files; null: no limit",
    )
    threads: PositiveInt | None = Field(default=None, description="CPU threads of torch; null: torch's own choice")
    channels_last: bool = Field(default=True, description="memory layout of student, teacher and images")
    keep_memory: Literal["auto"] | bool = Field(
        default="auto",
        description="CPU: memory of freed tensors stays with the process, to be used again; auto: under the densekd "
        "command, where glibc can be told so",
    )
    huge_pages: Literal["auto"] | bool = Field(
        default="auto",
        description="CPU: tensors of 2 MiB and more lie in huge pages (THP_MEM_ALLOC_ENABLE); auto: no, they did not "
        "pay beside keep_memory",
    )
    sync_batchnorm: Literal["auto"] | bool = Field(
        default="auto",
        description="several processes: batch norm takes its statistics over all of them (CUDA only); auto: on CUDA",
    )
    fsdp: bool = Field(
        default=False,
        description="several processes: shard the student, its gradients and the optimiser's state over them (FSDP2)",
    )
    stall_minutes: float | None = Field(
        default=10.0,
        ge=0.05,
        description="several processes: minutes after which one that makes no step ends the run, with the reason; "
        "null: no limit",
    )

    @property
    def patience(self) -> float | None:
        """`loading_minutes` in seconds."""
        return None if self.loading_minutes is None else 60 * self.loading_minutes
