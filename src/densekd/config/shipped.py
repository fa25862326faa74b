"""The recipes inside the package: a few at the top, and a folder for each benchmark."""

from __future__ import annotations

from collections.abc import Iterator
from importlib import resources
from importlib.resources.abc import Traversable

_SUFFIX = ".yaml"


def shipped_recipes() -> dict[str, str]:
    """Names of the recipes inside the package (`demo`, `cityscapes/pspnet_r101`) and what each is.

    What it is stands in the first line of the file.
    """
    return {name: _first_line(entry.read_text(encoding="utf-8")) for name, entry in _entries(_root(), "")}


def shipped_text(name: str) -> str:
    """The YAML of a shipped recipe, by a name of `shipped_recipes`."""
    return _root().joinpath(*f"{name}{_SUFFIX}".split("/")).read_text(encoding="utf-8")


def _root() -> Traversable:
    return resources.files("densekd").joinpath("recipes")


def _entries(folder: Traversable, prefix: str) -> Iterator[tuple[str, Traversable]]:
    """Recipes by name, those of the folder itself first."""
    inside = list(folder.iterdir())
    recipes = {entry.name.removesuffix(_SUFFIX): entry for entry in inside if entry.name.endswith(_SUFFIX)}
    yield from ((f"{prefix}{name}", recipes[name]) for name in sorted(recipes))
    for entry in sorted((entry for entry in inside if entry.is_dir()), key=lambda entry: entry.name):
        yield from _entries(entry, f"{prefix}{entry.name}/")


def _first_line(text: str) -> str:
    return text.partition("\n")[0].lstrip("# ").strip()
