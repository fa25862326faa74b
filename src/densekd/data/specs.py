"""The `data` part of a recipe: which images, which labels, how they are augmented."""

from __future__ import annotations

import re
from typing import Annotated, Literal

from pydantic import Field, field_validator, model_validator

from densekd.data.augment import AugmentSpec as AugmentSpec
from densekd.data.augment import Positive
from densekd.data.scenes import ScenesSpec
from densekd.spec import Spec

Byte = Annotated[int, Field(ge=0, le=255)]
Color = tuple[Byte, Byte, Byte]


def _pattern(value: str | None) -> str | None:
    """Refuse a regular expression that does not compile."""
    if value is not None:
        try:
            re.compile(value)
        except re.error as error:
            raise ValueError(f"{value!r} is not a regular expression: {error}") from None
    return value


OnError = Annotated[
    Literal["stop", "skip"],
    Field(
        default="stop",
        description="files that the check finds unusable: stop, or skip (left out and listed, up to 1% of a split)",
    ),
]


def refuse_unchecked(check: bool, on_error: OnError) -> None:
    """Files are left out before the work starts, or the images would hang on who reads what when."""
    if on_error == "skip" and not check:
        raise ValueError("on_error is 'skip' but check is false: it is the check that finds what to leave out")


class MasksSpec(Spec):
    """How the values in a mask file become class ids."""

    format: Literal["ids", "id_map", "colors"] = Field(
        default="ids",
        description="ids: the value is the class id; id_map: a table of values; colors: red, green, blue",
    )
    id_map: dict[Annotated[int, Field(ge=0, le=65535)], int] | None = Field(
        default=None, description="format id_map: {value in the file: class id, or the ignore_index}"
    )
    colors: dict[str, Color | tuple[Color, ...]] | None = Field(
        default=None,
        description="format colors: {class name: [r, g, b], or a list of them}; `ignore` names void",
    )
    unlisted: Literal["error", "ignore"] = Field(
        default="error", description="a value that means no class: an error that names the file, or void"
    )

    @model_validator(mode="after")
    def _one_format(self) -> MasksSpec:
        for name in ("id_map", "colors"):
            given = getattr(self, name) is not None
            if given and self.format != name:
                raise ValueError(f"{name} is given but format is {self.format!r}: set format to {name!r} or drop it")
            if self.format == name and not given:
                raise ValueError(f"format is {name!r}: give {name} too")
        return self


class SplitSpec(Spec):
    """One subset: a folder of the root and which of its files count."""

    split: str | None = Field(
        default=None, description="folder under the root that holds images/ and masks/; null: this entry's own name"
    )
    include: str | None = Field(
        default=None, description="regular expression searched in the file stem: keep what matches"
    )
    exclude: str | None = Field(
        default=None, description="regular expression searched in the file stem: drop what matches"
    )
    list: str | None = Field(
        default=None, description="text file with one stem a line, path from the root: only these, all of them"
    )

    _regex = field_validator("include", "exclude")(_pattern)


Ratio = Annotated[
    float, Field(default=0.5, gt=0, le=0.95, description="share of unlabelled images in every batch of a distillation")
]


class UnlabelledFilesSpec(Spec):
    """Images without masks: every image file below a folder that the filters leave."""

    root: str = Field(description="folder of the images, sub-folders included, from the working directory")
    ratio: Ratio
    include: str | None = Field(
        default=None, description="regular expression searched in the file stem: keep what matches"
    )
    exclude: str | None = Field(
        default=None, description="regular expression searched in the file stem: drop what matches"
    )
    list: str | None = Field(
        default=None, description="text file with one stem a line, path from this root: only these, all of them"
    )

    _regex = field_validator("include", "exclude")(_pattern)


class UnlabelledScenesSpec(Spec):
    """Drawn scenes whose labels are dropped; none of them is a training or validation scene."""

    count: Positive = Field(description="number of scenes without labels")
    ratio: Ratio


class AutoSplitSpec(Spec):
    """Cut the validation set out of the training files, whole groups at a time."""

    group: str = Field(
        description="regular expression searched in the file stem; its first (...) or all of it is the group"
    )
    fraction: float = Field(default=0.2, gt=0, lt=1, description="share of the images wanted for validation")
    seed: int = Field(default=0, description="which groups go to validation")

    _regex = field_validator("group")(_pattern)


class HoldoutSpec(Spec):
    """Score on a part of the training set; the validation set and further sets are not even opened."""

    group: str | None = Field(
        default=None,
        description="files: regular expression searched in the file stem; whole groups are held out. null: in a folder "
        "auto_split's pattern, in a benchmark its own (city, drive, single images). Drawn scenes have no groups: the "
        "last ones are held out",
    )
    fraction: float = Field(default=0.2, gt=0, lt=1, description="share of the training images held out")
    seed: int = Field(default=0, description="which groups are held out")

    _regex = field_validator("group")(_pattern)


class FolderSpec(Spec):
    """Images and masks in folders: `<root>/<split>/images/NAME.jpg` and `<root>/<split>/masks/NAME.png`."""

    name: Literal["folder"] = "folder"
    root: str = Field(description="folder of the data set, from the working directory")
    classes: tuple[str, ...] | None = Field(
        default=None,
        description="names of the classes in the order of their ids; null: the lines of <root>/classes.txt",
    )
    palette: tuple[Color, ...] | None = Field(
        default=None, description="a colour per class for pictures; null: those of masks.colors, or a made one"
    )
    ignore_index: int = Field(default=255, description="label of void: counts neither for the loss nor for the metrics")
    masks: MasksSpec = Field(default_factory=MasksSpec, description="how mask files are read")
    train: SplitSpec = Field(default_factory=SplitSpec, description="the training set")
    val: SplitSpec | None = Field(
        default=None,
        description="the validation set; null: the folder `val`, or auto_split's part of the training files",
    )
    extra: dict[str, SplitSpec] = Field(
        default_factory=dict,
        description="further sets to evaluate on, by name: for instance one drive held out",
    )
    auto_split: AutoSplitSpec | None = Field(default=None, description="where there is no validation folder")
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

    @model_validator(mode="after")
    def _one_validation_set(self) -> FolderSpec:
        if self.val is not None and self.auto_split is not None:
            raise ValueError("val and auto_split are both given: keep one of them")
        if self.holdout is not None and self.holdout.group is None and self.auto_split is None:
            raise ValueError(
                "holdout.group is missing: give a regular expression that finds the group (drive, place, day) in a "
                "file's name: images of one group are too alike to be divided"
            )
        refuse_unchecked(self.check, self.on_error)
        taken = {"train", "val"} & set(self.extra)
        if taken:
            raise ValueError(f"extra: the name {min(taken)!r} is taken; choose another")
        return self

    @field_validator("classes")
    @classmethod
    def _names_differ(cls, value: tuple[str, ...] | None) -> tuple[str, ...] | None:
        return None if value is None else check_names(value)


def check_names(names: tuple[str, ...]) -> tuple[str, ...]:
    """Class names: two or more, none empty, none twice."""
    if len(names) < 2:
        raise ValueError(f"expected two classes or more (a background counts as one), got {list(names)}")
    doubled = sorted({name for name in names if names.count(name) > 1})
    if doubled:
        raise ValueError(f"class names must differ; twice or more: {', '.join(map(repr, doubled))}")
    if not all(name.strip() for name in names):
        raise ValueError("a class name is empty")
    return names


class ScenesDataSpec(ScenesSpec):
    """Drawn street scenes with their augmentation."""

    holdout: HoldoutSpec | None = Field(
        default=None, description="score on a part of the training set instead of the validation set (what `tune` does)"
    )

    unlabelled: UnlabelledScenesSpec | None = Field(
        default=None, description="scenes without labels, which give the distillation terms only"
    )
    in_memory: bool = Field(
        default=False, description="keep every decoded image in memory after its first reading (per loading process)"
    )
    augment: AugmentSpec = Field(default_factory=AugmentSpec, description="resizing, augmentation, normalisation")

    @model_validator(mode="after")
    def _scenes_left(self) -> ScenesDataSpec:
        if self.holdout is not None and self.train_count < 2:
            raise ValueError("holdout needs at least two training scenes (train_count)")
        if self.holdout is not None and self.holdout.group is not None:
            raise ValueError("holdout.group: drawn scenes have no groups: the last of them are held out; leave it out")
        return self
