"""What is shipped, and what others published for it: `list recipes`, `list published`, a line under a result."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from densekd.config import PublishedResult, Recipe
    from densekd.models.specs import ModelSpec


def recipe_rows(*, as_json: bool) -> list[dict[str, Any]]:
    """A row per shipped recipe; as JSON with every published row and its numbers."""
    rows = []
    for name, what, recipe in _shipped():
        teacher = None if recipe.teacher is None else network(recipe.teacher)
        row: dict[str, Any] = {"recipe": name}
        if as_json:
            row |= {"what": what, "data": recipe.data.name, "teacher": teacher, "student": network(recipe.student)}
        else:
            row |= {"data": recipe.data.name, "networks": _networks(recipe)}
        row |= {"method": _method(recipe), "steps": recipe.train.steps or f"{recipe.train.epochs:g} epochs"}
        published = recipe.published
        if as_json:
            row["published"] = [result.model_dump(mode="json") for result in published]
        else:
            more = f", and {len(published) - 1} more" if len(published) > 1 else ""
            row["published"] = f"{_miou(published[0])}{more}" if published else None
            row["source"] = published[0].source if published else None
        rows.append(row)
    return rows


def published_rows(*, as_json: bool) -> list[dict[str, Any]]:
    """A row per published result of every shipped recipe."""
    rows = []
    for name, _, recipe in _shipped():
        for result in recipe.published:
            row: dict[str, Any] = {"recipe": name, **result.model_dump(mode="json")}
            if not as_json:
                row |= {key: None if row[key] is None else f"{row[key]:.2f}" for key in ("miou", "alone", "teacher")}
            rows.append(row)
    return rows


def published_beside(recipe: Recipe, method: str) -> str | None:
    """A line for under a run's own result: what was published for its recipe; None where nothing was.

    Args:
        recipe: the run's.
        method: as the run's record names it; `none`: a network trained alone.
    """
    for result in recipe.published[:1]:
        student_alone = method == "none" and result.method != "none"
        miou = result.alone if student_alone else result.miou
        if miou is not None:
            return f"published for the recipe as it is shipped: mIoU {miou:.2f} on {result.split} ({result.source})"
    return None


def _shipped() -> list[tuple[str, str, Recipe]]:
    from densekd.config import load_recipe, shipped_recipes

    return [(name, what, load_recipe(name)) for name, what in shipped_recipes().items()]


def _method(recipe: Recipe) -> str:
    return "+".join(dict.fromkeys(term.method for term in recipe.terms)) or "none"


def _networks(recipe: Recipe) -> str:
    student = network(recipe.student)
    return student if recipe.teacher is None else f"{network(recipe.teacher)} -> {student}"


def network(spec: ModelSpec) -> str:
    """A network in a word or two: its short name, or its reference without the library and with its encoder."""
    from densekd.models.names import short_names
    from densekd.models.reference import parse_reference

    options = spec.options.items()
    fitting = [
        (len(named.options), short)
        for short, named in short_names().items()
        if named.model == spec.model and named.options.items() <= options
    ]
    if fitting:
        return max(fitting)[1]
    encoder = spec.options.get("encoder_name")
    return f"{parse_reference(spec.model).name}{f' on {encoder}' if encoder else ''}"


def _miou(result: PublishedResult) -> str:
    before = "" if result.alone is None else f"{result.alone:.2f} -> "
    return f"{before}{result.miou:.2f}"
