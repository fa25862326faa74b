"""The raw values of a recipe: YAML read strictly, and single keys replaced."""

from __future__ import annotations

import itertools
import re
from collections.abc import Iterable, Mapping
from datetime import date
from pathlib import Path, PurePath
from typing import Any

import yaml

from densekd.config.shipped import shipped_recipes, shipped_text
from densekd.errors import ConfigError, nearest


def _read_text(name: str) -> str:
    path = Path(name)
    if path.is_dir() and (path / "recipe.yaml").is_file():
        path = path / "recipe.yaml"  # a run folder: its resolved recipe
    if path.is_file():
        return path.read_text(encoding="utf-8")
    known = shipped_recipes()
    if name.removesuffix(".yaml") in known:
        return shipped_text(name.removesuffix(".yaml"))
    if path.is_dir():
        raise ConfigError(
            f"recipe {name!r}: a folder without a recipe.yaml, so no run; give a recipe file, a run folder, or "
            f"{_a_shipped_one(name, known)}"
        )
    raise ConfigError(
        f"recipe {name!r}: no such file, and no shipped recipe of that name"
        f"{nearest(name.removesuffix('.yaml'), known)}; {_a_shipped_one(name, known)}"
    )


def _a_shipped_one(name: str, known: Iterable[str]) -> str:
    """Words for what is shipped: of the data set that the name begins with, where there is such a folder."""
    folder = name.partition("/")[0]
    within = [recipe for recipe in known if recipe.startswith(f"{folder}/")]
    plain = [recipe for recipe in known if "/" not in recipe]
    return f"shipped: {', '.join(within or plain)}; `densekd list recipes` shows all"


_MERGE = "tag:yaml.org,2002:merge"
# More than any recipe needs; less than what makes Python's own recursion fail, or an alias of aliases fill the memory.
_DEEPEST, _MOST = 50, 100_000


class _Loader(yaml.SafeLoader):
    """YAML as people write it: a key given twice is a mistake, and 1e-3 is a number."""

    def compose_mapping_node(self, anchor: Any) -> yaml.MappingNode:
        # Before `<<` is resolved: a key beside it takes the place of the merged one, and is no repetition.
        node: yaml.MappingNode = super().compose_mapping_node(anchor)
        seen: set[Any] = set()
        for key_node, _ in node.value:
            if not isinstance(key_node, yaml.ScalarNode) or key_node.tag == _MERGE:
                continue
            key = self.construct_object(key_node)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"key {key!r} is given twice", key_node.start_mark)
            seen.add(key)
        return node


# YAML 1.1 wants a dot in every float and takes 1e-3 for a text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?[0-9][0-9_]*[eE][-+]?[0-9]+$"), list("-+0123456789")
)


# A date is a text here: no key wants one, and it would be a text after saving.
_Loader.yaml_implicit_resolvers = {
    first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
    for first, resolvers in _Loader.yaml_implicit_resolvers.items()
}


def _yaml(text: str) -> Any:
    try:
        return yaml.load(text, Loader=_Loader)
    except RecursionError:
        raise ValueError(f"nested more than {_DEEPEST} levels deep") from None


def plain(value: Any, key: str = "") -> Any:
    """A copy in the types that YAML gives: mappings, lists, paths as texts; nothing in it is there twice.

    Args:
        value: whatever stands at `key` of a recipe.
        key: for errors; empty for the whole recipe.

    Raises:
        ConfigError: nested too deeply (without end, where an alias stands within what it is an alias of), or too much.
    """
    count = itertools.count(1)

    def copy(value: Any, way: tuple[str, ...]) -> Any:
        if len(way) > _DEEPEST:
            raise ConfigError(
                f"recipe: {_shown(way)}: nested more than {_DEEPEST} levels deep; does an alias (*name) stand within "
                "what it is an alias of?"
            )
        if next(count) > _MOST:
            raise ConfigError(f"recipe: {_shown(way)}: more than {_MOST} values; do aliases (*name) hold aliases?")
        if isinstance(value, Mapping):
            return {name: copy(entry, (*way, str(name))) for name, entry in value.items()}
        if isinstance(value, list | tuple):
            return [copy(entry, (*way, str(place))) for place, entry in enumerate(value)]
        return str(value) if isinstance(value, PurePath | date) else value

    return copy(value, (key,) if key else ())


def _shown(way: tuple[str, ...]) -> str:
    return ".".join(way[:4]) + ("..." if len(way) > 4 else "")


def read_recipe(name: str | Path | Mapping[str, Any]) -> dict[str, Any]:
    """The raw values of a recipe: a file, a run folder, the name of a shipped one, or a mapping.

    Raises:
        ConfigError: there is no such recipe, or it is not a YAML mapping, or nested without end.
    """
    if isinstance(name, Mapping):
        return dict(plain(name))
    if not isinstance(name, str | PurePath):
        raise ConfigError(f"recipe: expected a file, a shipped name or a mapping, got {type(name).__name__}")
    try:
        text = _read_text(str(name))
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"recipe {name}: cannot be read ({error})") from None
    try:
        raw = _yaml(text)
    except (yaml.YAMLError, ValueError) as error:
        raise ConfigError(f"recipe {name}: not valid YAML: {' '.join(str(error).split())}") from None
    if not isinstance(raw, dict):
        raise ConfigError(f"recipe {name}: expected a mapping of keys to values, got {type(raw).__name__}")
    return dict(plain(raw))


def parse_override(text: str) -> tuple[str, Any]:
    """`key.path=value` to (key path, value); the value is read as YAML, but that a line on its own has no comments."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise ConfigError(f"override {text!r}: expected key.path=value, for instance train.batch_size=4")
    try:
        return key.strip(), _unfolded(value)
    except (yaml.YAMLError, ValueError):
        shown = value if len(value) <= 80 else value[:77] + "..."
        raise ConfigError(f"override {key}: {shown!r} is not valid YAML; quote it") from None


def _unfolded(value: str) -> Any:
    """YAML takes ` #` for a comment and breaks of lines for spaces: names of folders hold both, and would be cut."""
    whole = value.strip()
    nodes = [event for event in yaml.parse(value, Loader=_Loader) if isinstance(event, yaml.NodeEvent)]
    if not nodes and whole.startswith("#"):
        return whole
    if len(nodes) == 1 and isinstance(nodes[0], yaml.ScalarEvent):
        only = nodes[0]
        if only.style is None and not only.tag and not only.anchor and only.value != whole:
            return whole
    return _yaml(value)


def override(raw: dict[str, Any], key: str, value: Any) -> None:
    """Set `raw["a"]["b"]...` for key "a.b...."; missing mappings are made; list places are numbers.

    Raises:
        ConfigError: the way leads through a plain value, or to a place that a list does not have.
    """
    place: Any = raw
    *way, last = key.split(".")
    for depth, part in enumerate(way):
        here = _place(place, part, key, ".".join(way[:depth]))
        following = place[here] if isinstance(place, list) else place.get(here)
        if isinstance(following, str) and part in {"checkpoint", "encoder_checkpoint"}:
            following = {"path": following}  # the shorthand of a checkpoint, spelled out
        elif isinstance(following, str) and part == "cache":
            following = {"root": following}  # that of a cache
        place[here] = {} if following is None else following
        place = place[here]
    place[_place(place, last, key, ".".join(way))] = value


def _place(container: Any, part: str, key: str, where: str) -> Any:
    """The key of a mapping or the index of a list that `part` means."""
    if isinstance(container, list):
        if not part.isdecimal() or int(part) >= len(container):
            raise ConfigError(f"override {key}: {where} is a list of {len(container)}; {part!r} is none of its places")
        return int(part)
    if not isinstance(container, dict):
        raise ConfigError(f"override {key}: {where} is the value {container!r}, not a mapping")
    number = int(part) if part.isdecimal() else None
    return number if number in container else part  # ids are whole numbers in YAML
