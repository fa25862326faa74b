"""The part of a recipe that says where the teacher's maps of a distillation come from."""

from __future__ import annotations

from typing import Annotated, Any, Literal

from pydantic import BeforeValidator, Field, PositiveInt

from densekd.spec import PathText, Spec


class CacheSpec(Spec):
    """The teacher's maps computed once and read back: `views` augmented views of each training image."""

    root: PathText = Field(
        default="cache/teacher",
        description="folder of the sets of stored maps, from the working directory; each lies in one of its own",
    )
    views: PositiveInt = Field(
        default=4, description="augmented views of each image: epoch e shows the student view e mod views"
    )
    seed: int = Field(
        default=0, ge=0, description="of the random choices in the views; not the run's, so that its seeds share a set"
    )
    encoding: Literal["bfloat16", "int8"] = Field(
        default="bfloat16", description="numbers as they are stored: 16 bits, or 8 with a scale for each channel"
    )
    ask: bool = Field(
        default=True,
        description="ask before a set is built; false: the answer is yes",
    )


def _root_alone(value: Any) -> Any:
    return {"root": value} if isinstance(value, str) else value


class DistillSpec(Spec):
    """Where the teacher's maps come from."""

    cache: Annotated[CacheSpec | None, BeforeValidator(_root_alone, json_schema_input_type=CacheSpec | str | None)] = (
        Field(default=None, description="read stored maps; a text is their root; null: run the teacher in every step")
    )
