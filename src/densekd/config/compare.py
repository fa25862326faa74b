"""The part of a recipe that `densekd compare` reads: methods under names of their own, and the taps of features."""

from __future__ import annotations

from typing import Annotated, Literal

from pydantic import Field, field_validator

from densekd.spec import Spec
from densekd.training.specs import TermSpec

Where = Literal["logits", "features", "logits+features"]
Label = Annotated[str, Field(pattern=r"^\w[\w.+@-]*$")]


class FeatureTaps(Spec):
    """Where `NAME@features` puts a method."""

    student: str = Field(description="tap of the student: a module path")
    teacher: str = Field(description="tap of the teacher: a module path")


class CompareMethod(Spec):
    """One line of a comparison: any terms, any weights."""

    terms: tuple[TermSpec, ...] = Field(description="distillation terms, as the recipe's own `terms`")
    where: Where | None = Field(default=None, description="column `where` of the table; null: told from the taps")

    @field_validator("terms")
    @classmethod
    def _some(cls, value: tuple[TermSpec, ...]) -> tuple[TermSpec, ...]:
        if not value:
            raise ValueError("expected one term or more")
        return value


class CompareSpec(Spec):
    """What `compare` may compare beside the plain methods; a single training does not read it."""

    features: FeatureTaps | None = Field(default=None, description="taps of the labels `NAME@features`")
    methods: dict[Label, CompareMethod] = Field(
        default_factory=dict, description="{label: terms}: combined terms, other taps, tuned weights"
    )

    @field_validator("methods")
    @classmethod
    def _none_is_taken(cls, value: dict[str, CompareMethod]) -> dict[str, CompareMethod]:
        if "none" in value:
            raise ValueError("the label 'none' is the student alone, always compared; choose another")
        return value
