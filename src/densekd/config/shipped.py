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
    for entry in sorted(folder.iterdir(), key=lambda entry: entry.name):
        if entry.is_dir():
            yield from _entries(entry, f"{prefix}{entry.name}/")
        elif entry.name.endswith(_SUFFIX):
            yield f"{prefix}{entry.name.removesuffix(_SUFFIX)}", entry


def _first_line(text: str) -> str:
    return text.partition("\n")[0].lstrip("# ").strip()
