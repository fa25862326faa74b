"""Networks by short name (`pspnet-resnet18`): a table of full references with the options that belong to them."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from functools import cache
from importlib import resources
from typing import Any, NamedTuple

import yaml

from densekd.errors import ModelError

_FILE = "names.yaml"


class Named(NamedTuple):
    """What a short name stands for.

    Attributes:
        model: the full reference.
        options: those that make the network the one of the name; none of them can be another beside it.
        auxiliary: the tap of an auxiliary head: the stage before the last, where the paper has it; None where the
            network is not trained with one.
        what: a word where the name does not say it.
    """

    model: str
    options: dict[str, Any]
    auxiliary: str | None = None
    what: str = ""


@cache
def _table() -> dict[str, Named]:
    text = resources.files("densekd").joinpath("models", _FILE).read_text(encoding="utf-8")
    return {
        name: Named(entry["model"], entry.get("options", {}), entry.get("auxiliary"), entry.get("what", ""))
        for name, entry in yaml.safe_load(text).items()
    }


def short_names() -> dict[str, Named]:
    """Every short name and what it stands for, in the order of the table."""
    return dict(_table())


def expanded(model: str, options: Mapping[str, Any]) -> tuple[str, dict[str, Any]]:
    """Reference and options that `model` stands for; both as they are where it is no short name.

    Options beside a short name are added to its own (weights, for instance).

    Raises:
        ModelError: an option that belongs to the name is given with another value.
    """
    named = _table().get(model.strip())
    if named is None:
        return model, dict(options)
    for option, own in named.options.items():
        if option in options and options[option] != own:
            raise ModelError(
                f"model {model!r} stands for {named.model} with {option} {own!r}, but options.{option} is "
                f"{options[option]!r}; remove the option, or write model: {named.model} with options of your own"
            )
    return named.model, {**deepcopy(named.options), **options}


def auxiliary_tap(model: str, options: Mapping[str, Any]) -> str | None:
    """The tap of an auxiliary head of a network of the table, by its short name or by what that stands for."""
    reference, whole = expanded(model, options)
    for named in _table().values():
        if named.model == reference and all(whole.get(option) == own for option, own in named.options.items()):
            return named.auxiliary
    return None
