"""Names of parameters in files: finding the weights among other entries, and bringing prefixes in line."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping
from typing import Any

import torch

from densekd.errors import CheckpointError, nearest

# What wrappers put in front of every name: DDP, Lightning, densekd's distiller, torch.compile.
WRAPPERS = ("module.", "model.", "student.", "_orig_mod.")
_DEPTH = 3


def find_weights(content: Any, key: str | None, where: str) -> tuple[dict[str, Any], str | None]:
    """The mapping of names to tensors inside `content`, and the entry it was found under (None: the file itself).

    Without `key`, the file itself where it holds tensors alone, else the only entry that does (up to three levels
    down).

    Raises:
        CheckpointError: no such entry, none with weights, or several that could be meant.
    """
    if key is not None:
        return _entry(content, key, where), key
    if _is_weights(content):
        return dict(content), None
    found = dict(_nested(content, "", _DEPTH)) if isinstance(content, Mapping) else {}
    if len(found) == 1:
        name, weights = found.popitem()
        return dict(weights), name
    if found:
        raise CheckpointError(
            f"{where}: several entries hold weights: {', '.join(sorted(found))}; choose one with key: {min(found)}"
        )
    raise CheckpointError(
        f"{where}: no entry holds weights (a mapping of names to tensors); it has {_entries(content)}"
    )


def _is_weights(value: Any) -> bool:
    return (
        isinstance(value, Mapping)
        and bool(value)
        and all(isinstance(name, str) and isinstance(tensor, torch.Tensor) for name, tensor in value.items())
    )


def _nested(content: Mapping[Any, Any], prefix: str, depth: int) -> Iterable[tuple[str, Mapping[str, Any]]]:
    for name, value in content.items():
        if _is_weights(value):
            yield f"{prefix}{name}", value
        elif isinstance(value, Mapping) and "param_groups" not in value and depth > 1:
            # An optimiser's state holds tensors too, but no weights.
            yield from _nested(value, f"{prefix}{name}.", depth - 1)


def _entry(content: Any, key: str, where: str) -> dict[str, Any]:
    value, rest = content, key
    while rest:
        names = [str(name) for name in value] if isinstance(value, Mapping) else []
        # The longest name first: an entry may hold dots itself.
        name = max((n for n in names if rest == n or rest.startswith(f"{n}.")), key=len, default=None)
        if name is None:
            raise CheckpointError(f"{where}: no entry {key!r}{nearest(rest, names)}; it has {_entries(content)}")
        value, rest = value[name], rest[len(name) + 1 :]
    if not isinstance(value, Mapping) or not value:
        raise CheckpointError(f"{where}: entry {key!r} is {_kind(value)}, not a mapping of names to tensors")
    return {str(name): tensor for name, tensor in value.items()}


def _entries(content: Any) -> str:
    if not isinstance(content, Mapping):
        return f"one {_kind(content)}"
    shown = [f"{name} ({_kind(value)})" for name, value in list(content.items())[:8]]
    return ", ".join(shown) + (f", and {len(content) - 8} more" if len(content) > 8 else "") or "nothing"


def _kind(value: Any) -> str:
    return (
        f"{type(value).__name__} of {len(value)}" if isinstance(value, (Mapping, list, tuple)) else type(value).__name__
    )


def strip_wrappers(names: Iterable[str], expected: set[str]) -> str:
    """The wrappers' prefix, perhaps several in a row, that every name has and the network does not expect."""
    names = list(names)
    prefix = ""
    while names and not expected.intersection(names):
        wrapper = next((w for w in WRAPPERS if all(name.startswith(w) for name in names)), None)
        if wrapper is None:
            break
        prefix += wrapper
        names = [name[len(wrapper) :] for name in names]
    return prefix


def flattened(names: Iterable[str], expected: set[str]) -> dict[str, str]:
    """New names where the network writes an underscore for a dot (`stages_0.blocks` for `stages.0.blocks`).

    timm does so where it takes features from a network. Only names that the network does not have are renamed, each to
    the one expected name that is not in the file and differs in nothing else.
    """
    names = list(names)
    free: dict[str, list[str]] = {}
    for name in expected.difference(names):
        free.setdefault(name.replace("_", "."), []).append(name)
    unexpected = Counter(name.replace("_", ".") for name in names if name not in expected)
    return {
        name: free[alike][0]
        for name in names
        if name not in expected and len(free.get(alike := name.replace("_", "."), ())) == 1 and unexpected[alike] == 1
    }


def suggest_prefix(names: Iterable[str], expected: set[str]) -> tuple[str, str]:
    """Prefixes that would make most names fit: (too much in the file, missing in the file); empty where none helps."""
    names = list(names)
    fitting = len(expected.intersection(names))
    extra, lacking = _common_prefix(names, expected), _common_prefix(expected, set(names))
    if extra[1] > max(fitting, lacking[1]):
        return extra[0], ""
    return "", lacking[0] if lacking[1] > fitting else ""


def _common_prefix(longer: Iterable[str], shorter: set[str]) -> tuple[str, int]:
    found: Counter[str] = Counter()
    for name in longer:
        for position, sign in enumerate(name):
            if sign == "." and name[position + 1 :] in shorter:
                found[name[: position + 1]] += 1
    # Of equally frequent ones the shortest: the others are its repetitions further down.
    return min(found.items(), key=lambda item: (-item[1], len(item[0])), default=("", 0))
