"""Results that others published for the setting of a recipe: shown beside one's own, never computed with."""

from __future__ import annotations

from typing import Annotated

from pydantic import Field

from densekd.spec import Spec

Percent = Annotated[float, Field(gt=0, le=100)]


class PublishedResult(Spec):
    """One published row: a student of this recipe under one method, or, with method `none`, alone."""

    method: str = Field(
        min_length=1,
        description="label of the row as `compare` takes it: a key of `compare.methods` or a method; none: the network "
        "alone, in a recipe that trains a teacher",
    )
    miou: Percent = Field(description="mIoU in percent of the network that the row is about, after this method")
    alone: Percent | None = Field(
        default=None, description="mIoU in percent of the same student without a teacher, from the same source"
    )
    teacher: Percent | None = Field(default=None, description="mIoU in percent of the teacher, from the same source")
    split: str = Field(default="val", min_length=1, description="the split that was scored, in the benchmark's words")
    source: str = Field(min_length=1, description="who published it and where it stands")
    note: str = Field(default="", description="what a reader must know before comparing with it")
