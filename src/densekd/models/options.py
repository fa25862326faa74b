"""Checks of the options of a network, the same for every library."""

from __future__ import annotations

import inspect
import warnings
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from densekd.errors import ModelError, nearest


def say(notices: list[str] | None, text: str) -> None:
    """Tell the user something: into `notices` where a list was given, else as a Python warning."""
    if notices is None:
        warnings.warn(text, stacklevel=3)
    else:
        notices.append(text)


def named_parameters(function: Callable[..., Any]) -> tuple[list[str], bool]:
    """Names that `function` accepts as keywords, and whether it takes any other keyword too."""
    parameters = inspect.signature(function).parameters.values()
    names = [p.name for p in parameters if p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD) and p.name != "self"]
    return names, any(p.kind is p.VAR_KEYWORD for p in parameters)


def refuse_unknown(reference: str, options: Iterable[str], known: Iterable[str]) -> None:
    """Raise `ModelError` with the nearest known name for the first option that is not known."""
    names = sorted(known)
    for option in options:
        if option not in names:
            hint = nearest(option, names) or f" (options: {', '.join(names)})"
            raise ModelError(f"{reference} has no option {option!r}{hint}")


def with_classes(reference: str, options: Mapping[str, Any], name: str, num_classes: int) -> dict[str, Any]:
    """The options with the number of classes under the library's own name for it.

    Raises:
        ModelError: the options already hold another number.
    """
    given = options.get(name, num_classes)
    if given != num_classes or isinstance(given, bool):
        raise ModelError(
            f"{reference}: options.{name} is {given!r}, but {num_classes} outputs are needed here (the number of "
            f"classes of the data, or 1 for a binary task); remove the option"
        )
    return {**options, name: num_classes}
