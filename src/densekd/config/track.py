"""The part of a recipe that says which trackers a run tells what happens in it."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, field_validator

from densekd.spec import Spec

Tracker = Literal["tensorboard", "wandb"]


def _several(value: Any) -> Any:
    return (value,) if isinstance(value, str) else value


class TrackSpec(Spec):
    """TensorBoard and Weights & Biases: curves, scores and pictures of a run. None of it changes what is learned."""

    to: Annotated[
        tuple[Tracker, ...],
        BeforeValidator(_several, json_schema_input_type=Tracker | tuple[Tracker, ...]),
    ] = Field(default=(), description="trackers: `tensorboard`, `wandb`, or both; none if nothing is said")
    images: int = Field(
        default=4, ge=0, description="validation images drawn at each evaluation, spread evenly over the set; 0: none"
    )
    project: str = Field(
        default="densekd", pattern=r"^[^/\\#?%:]+$", max_length=128, description="W&B: the project the run belongs to"
    )
    name: str | None = Field(
        default=None, min_length=1, max_length=128, description="W&B: the run's name; null: that of its folder"
    )
    group: str | None = Field(
        default=None, min_length=1, max_length=128, description="W&B: runs shown together, such as those of a study"
    )
    entity: str | None = Field(
        default=None, min_length=1, description="W&B: the team or user that the project belongs to; null: your default"
    )

    @field_validator("to")
    @classmethod
    def _once(cls, value: tuple[Tracker, ...]) -> tuple[Tracker, ...]:
        for name in value:
            if value.count(name) > 1:
                raise ValueError(f"{name!r} is named twice")
        return value


def trackers_alone(value: Any) -> Any:
    """`track: tensorboard` and `track: [tensorboard, wandb]` stand for `track: {to: ...}`."""
    return {"to": value} if isinstance(value, str | list | tuple) else value
