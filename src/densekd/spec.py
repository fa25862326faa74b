"""Base of every part of a recipe: a validated, frozen value that refuses unknown keys, NaN and infinity."""

from __future__ import annotations

from typing import Annotated

from pydantic import AfterValidator, BaseModel, ConfigDict, Field


def _named(path: str) -> str:
    if not path:
        raise ValueError("expected the path of a file or folder, got ''")
    return path


# pydantic's own `min_length` refuses names whose bytes are no UTF-8, which file systems have.
PathText = Annotated[str, AfterValidator(_named), Field(json_schema_extra={"minLength": 1})]
"""The path of a file or folder; not empty."""


class Spec(BaseModel):
    """A part of a recipe. Each layer defines its own; `densekd.config` composes them."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
