"""The keys that every benchmark takes in a recipe's `data`."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, ClassVar, Literal

from pydantic import BeforeValidator, Field, PlainSerializer, field_validator, model_validator

from densekd.data.benchmarks.benchmark import VOID, Benchmark, Classes, check_merge
from densekd.data.specs import AugmentSpec, HoldoutSpec, OnError, UnlabelledFilesSpec, refuse_unchecked
from densekd.spec import Spec


def _as_mapping(value: object) -> object:
    """A list of mappings, which is how classes are saved, as one mapping."""
    if not isinstance(value, list | tuple) or not all(isinstance(entry, Mapping) for entry in value):
        return value
    names = [name for entry in value for name in entry]
    if len(set(names)) < len(names):
        raise ValueError(f"a class is named twice: {names}")
    return {name: labels for entry in value for name, labels in entry.items()}


def _as_list(value: Classes) -> list[dict[str, list[str]]]:
    """Saved as a list, because the order is the order of the ids, and a mapping is equal to itself in any order."""
    return [{name: list(labels)} for name, labels in value.items()]


Merged = Annotated[
    dict[str, tuple[str, ...]], BeforeValidator(_as_mapping), PlainSerializer(_as_list, when_used="json")
]


class BenchmarkSpec(Spec):
    """A published data set in its official layout; label 255 is void, after reading."""

    benchmark: ClassVar[Benchmark]

    name: str
    root: str = Field(description="folder of the data set in its official layout, from the working directory")
    train: str = Field(description="the official split that is trained on")
    val: str = Field(description="the official split that is scored")
    extra: tuple[str, ...] = Field(default=(), description="further official splits to evaluate on")
    classes: Merged | None = Field(
        default=None,
        description="{my class: [official label names]}: labels merged into fewer classes, in the order of their ids; "
        "what no class names is void. null: the official classes",
    )
    unlisted: Literal["error", "ignore"] = Field(
        default="error", description="a value in a mask that the data set does not know: an error, or void"
    )
    holdout: HoldoutSpec | None = Field(
        default=None, description="score on a part of the training set instead of the validation set (what `tune` does)"
    )
    unlabelled: UnlabelledFilesSpec | None = Field(
        default=None, description="images without masks, which give the distillation terms only"
    )
    check: bool = Field(default=True, description="open every file before the work starts")
    on_error: OnError
    augment: AugmentSpec = Field(default_factory=AugmentSpec, description="resizing, augmentation, normalisation")
    in_memory: bool = Field(
        default=False, description="keep every decoded image in memory after its first reading (per loading process)"
    )

    @property
    def ignore_index(self) -> int:
        """255."""
        return VOID

    @property
    def wanted_classes(self) -> Classes | None:
        """What labels form what class; None: the official classes."""
        return self.classes

    @field_validator("train", "val", "extra", mode="before")
    @classmethod
    def _has_labels(cls, value: object) -> object:
        for split in value if isinstance(value, list | tuple) else [value]:
            if isinstance(split, str) and split in cls.benchmark.images:
                folder = cls.benchmark.images[split]
                raise ValueError(
                    f"expected a split with labels, got {split!r}: {cls.benchmark.title} has no public labels there; "
                    f"`densekd predict` takes its images (<root>/{folder}), and so does data.unlabelled"
                )
        return value

    @model_validator(mode="after")
    def _checked(self) -> BenchmarkSpec:
        refuse_unchecked(self.check, self.on_error)
        return self

    @field_validator("extra")
    @classmethod
    def _extra_differ(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        if len(set(value)) < len(value):
            raise ValueError(f"splits named twice: {list(value)}")
        taken = sorted({"train", "val"} & set(value))
        if taken:
            raise ValueError(f"the name {taken[0]!r} is taken: it is what data.{taken[0]} says; leave it out")
        return value

    @field_validator("classes")
    @classmethod
    def _classes_merge(cls, value: dict[str, tuple[str, ...]] | None) -> dict[str, tuple[str, ...]] | None:
        if value is not None:
            check_merge(value, cls.benchmark)
        return value
