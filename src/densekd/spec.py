"""Base of every part of a recipe: a validated, frozen value that refuses unknown keys, NaN and infinity."""

from __future__ import annotations

from pydantic import BaseModel, ConfigDict


class Spec(BaseModel):
    """A part of a recipe. Each layer defines its own; `densekd.config` composes them."""

    model_config = ConfigDict(extra="forbid", frozen=True, validate_default=True, allow_inf_nan=False)
