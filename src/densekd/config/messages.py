"""What pydantic found wrong with a recipe, in the user's words: one line per mistake, each naming its key."""

from __future__ import annotations

import types
import typing
from collections.abc import Iterator
from typing import Any

from pydantic import BaseModel, ValidationError
from pydantic_core import ErrorDetails

from densekd.config.recipe import Recipe
from densekd.data.kinds import DATA_NAMES
from densekd.errors import nearest


def _models_in(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    elif typing.get_origin(annotation) is not None or isinstance(annotation, types.UnionType):
        for argument in typing.get_args(annotation):
            yield from _models_in(argument)


def _walk(location: tuple[Any, ...]) -> tuple[list[str], list[type[BaseModel]]]:
    """A location of pydantic as the user writes it, and the models that its last part may belong to.

    Pydantic adds the tag of a union (`data.folder.root`): it chooses among the models, and is no key.
    """
    here: list[type[BaseModel]] = [Recipe]
    owners, shown = here, list[str]()
    for part in location:
        tagged = [
            m for m in here if len(here) > 1 and "name" in m.model_fields and m.model_fields["name"].default == part
        ]
        if tagged:
            here = owners = tagged
            continue
        shown.append(str(part))
        owners = here
        fields = [model.model_fields[part] for model in here if part in model.model_fields]
        if fields:  # else a place in a list, or a key of a mapping of models
            here = [m for field in fields for m in _models_in(field.annotation)]
    return _without_tags(shown), owners


_SCALARS = {"float", "int", "bool", "str"}


def _without_tags(shown: list[str]) -> list[str]:
    """Without what pydantic adds for a value of several types: `temperature.float`, `class_weights.dict[...]`."""
    keys = [part for part in shown if "[" not in part]
    return keys[:-1] if len(keys) > 2 and keys[-1] in _SCALARS else keys


def _of_another_kind(location: tuple[Any, ...]) -> str:
    """For a key of another member of the union (`root` for scenes): whose it is; else empty."""
    *path, tag, key = location if len(location) > 1 else ("", "")
    kinds = {model.model_fields["name"].default: model for model in _tagged(path)}
    if tag not in kinds:
        return ""
    others = [str(kind) for kind, model in kinds.items() if key in model.model_fields]
    name = ".".join([*map(str, path), "name"])
    listed = " or ".join([", ".join(others[:-1]), *others[-1:]]) if len(others) > 1 else "".join(others)
    return f": it belongs to {name}={listed}, and here {name} is {tag}" if others else ""


def _tagged(path: list[Any]) -> list[type[BaseModel]]:
    """The models a union with a tag chooses from, where `path` leads to one."""
    here: list[type[BaseModel]] = [Recipe]
    for part in path:
        fields = [model.model_fields[part] for model in here if part in model.model_fields]
        here = [m for field in fields for m in _models_in(field.annotation)]
    return [m for m in here if "name" in m.model_fields] if len(here) > 1 else []


def lines(error: ValidationError) -> Iterator[str]:
    """A line per mistake; an unknown key comes with the nearest known one."""
    told: set[str] = set()
    for problem in error.errors():
        shown, owners = _walk(problem["loc"])
        key = ".".join(shown)
        if key in told:
            continue  # each type that a value may have has its own complaint
        told.add(key)
        if problem["type"] == "extra_forbidden":
            known = sorted({name for model in owners for name in model.model_fields})
            yield f"recipe: unknown key {key!r}{_of_another_kind(problem['loc']) or nearest(shown[-1], known)}"
        elif problem["type"] == "missing":
            yield f"recipe: key {key!r} is missing"
        else:
            yield f"recipe: {f'{key}: ' if key else ''}{_reason(problem)}"


def _reason(problem: ErrorDetails) -> str:
    if problem["type"] in {"model_type", "model_attributes_type", "dict_type"}:
        message = "expected a mapping of keys to values"
    elif problem["type"] == "union_tag_not_found":
        return f"key 'name' is missing: one of {', '.join(DATA_NAMES)}"
    else:
        message = problem["msg"].removeprefix("Value error, ")
        message = message[:1].lower() + message[1:]
    value = problem["input"]
    # A rule about several keys has all of them as its input: its message says enough.
    if (
        "got " in message
        or problem["type"] == "union_tag_invalid"
        or (problem["type"] == "value_error" and isinstance(value, dict))
    ):
        return message
    shown = repr(value)
    return f"{message}, got {shown if len(shown) <= 80 else shown[:77] + '...'}"
