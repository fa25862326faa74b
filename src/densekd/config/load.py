"""From a name, a file or a mapping to a validated recipe, and back to YAML."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from densekd.config.messages import lines
from densekd.config.read import override, plain, read_recipe
from densekd.config.recipe import Recipe
from densekd.errors import ConfigError
from densekd.files import sha256

_BITS = 64
_VALUES = (str, int, float, dict, list, type(None))


def load_recipe(name: str | Path | Mapping[str, Any], overrides: Mapping[str, Any] | None = None) -> Recipe:
    """Read, override and validate a recipe.

    Raises:
        ConfigError: one line per mistake, each naming the key, with the nearest known key for an unknown one.
    """
    raw = read_recipe(name)
    for key, value in (overrides or {}).items():
        override(raw, key, plain(value, key))
    _refuse_no_values(raw)
    try:
        recipe = Recipe.model_validate(raw)
    except ValidationError as error:
        raise ConfigError("\n".join(lines(error))) from None
    return _with_absolute_paths(recipe)


def _refuse_no_values(value: Any, key: str = "") -> None:
    """NaN and infinities are no values of a recipe, in free options neither: JSON has none.

    Nor are endless numbers, and from Python objects that no file can hold.
    """
    if isinstance(value, float) and not math.isfinite(value):
        raise ConfigError(f"recipe: {key}: expected a finite number, got {value}")
    if isinstance(value, int) and value.bit_length() > _BITS:
        raise ConfigError(f"recipe: {key}: expected a number of at most {_BITS} bits, got one of {value.bit_length()}")
    if not isinstance(value, _VALUES):
        raise ConfigError(f"recipe: {key}: expected what a YAML file can hold, got a {type(value).__name__}")
    entries = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, entry in entries:
        _refuse_no_values(entry, f"{key}.{name}".lstrip("."))


def dump_recipe(recipe: Recipe) -> str:
    """The resolved recipe as YAML: every key, so that it stays the same when defaults change."""
    return yaml.safe_dump(recipe.model_dump(mode="json"), sort_keys=False, allow_unicode=True, width=110)


def recipe_digest(recipe: Recipe) -> str:
    """SHA-256 of the resolved recipe's canonical JSON, without what changes no run.

    That is what others published, what is kept for the report or told to trackers, how long a process may stand
    still, and of a cache its place and whether to ask: a set is told by its key.
    """
    left_out: dict[str, Any] = {
        "published": True,
        "report": True,
        "track": True,
        "runtime": {"stall_minutes", "loading_minutes"},
        "distill": {"cache": {"root", "ask"}},
    }
    kept = recipe.model_dump(mode="json", exclude=left_out)
    engine = (kept["teacher"] or {}).get("engine", {})
    if engine.get("winograd") == "auto":  # a younger key: recipes of runs begun before it keep their digest
        del engine["winograd"]
    if kept["data"].get("on_error") == "stop":  # another one
        del kept["data"]["on_error"]
    return sha256(json.dumps(kept, sort_keys=True).encode())


def recipe_schema() -> dict[str, Any]:
    """JSON schema of a recipe."""
    return Recipe.model_json_schema()


def _absolute(path: str, key: str) -> str:
    try:
        return str(Path(path).expanduser().resolve())
    except (OSError, RuntimeError, ValueError) as error:  # no such user, a loop of links, a zero byte
        raise ConfigError(f"recipe: {key}: {path!r} is no path ({error})") from None


def _with_absolute_paths(recipe: Recipe) -> Recipe:
    """Paths made absolute, so that the saved recipe means the same files wherever it is run."""
    raw = recipe.model_dump(mode="json")  # what a file would hold, in free options too
    for role in ("student", "teacher"):
        network = raw.get(role)
        if network is None:
            continue
        for key in ("checkpoint", "encoder_checkpoint"):
            if network[key] is not None:
                network[key]["path"] = _absolute(network[key]["path"], f"{role}.{key}.path")
        file, colon, function = network["model"].rpartition(":")
        if colon and file.endswith(".py"):
            network["model"] = f"{_absolute(file, f'{role}.model')}:{function}"
    data = raw["data"]
    if data.get("root"):
        data["root"] = _absolute(data["root"], "data.root")
    if data.get("sbd"):
        data["sbd"] = _absolute(data["sbd"], "data.sbd")
    cache = raw["distill"]["cache"]
    if cache is not None:
        cache["root"] = _absolute(cache["root"], "distill.cache.root")
    unlabelled = data["unlabelled"]
    if unlabelled is not None and "root" in unlabelled:
        unlabelled["root"] = _absolute(unlabelled["root"], "data.unlabelled.root")
    return Recipe.model_validate(raw)
