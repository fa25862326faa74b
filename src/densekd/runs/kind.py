"""What kind of training a run is, and the method that it records."""

from __future__ import annotations

from typing import Literal

from densekd.config import Recipe

Kind = Literal["train", "distill"]


def method_of(kind: Kind, recipe: Recipe) -> str:
    """The method a run records: the terms' methods joined by +, or none."""
    return "none" if kind == "train" else "+".join(dict.fromkeys(term.method for term in recipe.terms))
