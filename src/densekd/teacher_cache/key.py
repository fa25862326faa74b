"""What a stored set of maps is of: everything that the maps depend on."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from densekd import files
from densekd.errors import ArgumentError

_ABSENT = object()


def canonical(value: Any) -> str:
    """JSON in one form: keys sorted, no blanks, ASCII; the same value gives the same text everywhere.

    Raises:
        ValueError, TypeError: what JSON has no word for.
    """
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False)


class CacheKey:
    """The values that a teacher's maps depend on: its weights, its taps, the data, the transform.

    Args:
        values: a mapping of JSON values, nested as you like; tuples count as lists.

    Attributes:
        values: the same, as JSON gives it back.
        digest: SHA-256 of its canonical JSON (keys sorted, no blanks, ASCII), in hex.

    Raises:
        ArgumentError: a value that JSON has no word for, or a key that is no text.

    >>> key = CacheKey({"teacher": "6f1e", "data": {"flip": 0.5}})
    >>> key == CacheKey({"data": {"flip": 0.5}, "teacher": "6f1e"})  # the order of names does not matter
    True
    >>> key.differences(CacheKey({"teacher": "6f1e", "data": {"flip": 0.0}}))
    ['data.flip: 0.0 there, 0.5 here']
    """

    def __init__(self, values: Mapping[str, Any]) -> None:
        if not isinstance(values, Mapping):
            raise ArgumentError(f"CacheKey: expected a mapping of names to values, got a {type(values).__name__}")
        _check(values, "")
        text = canonical(values)
        self.values: dict[str, Any] = json.loads(text)
        self.digest = files.sha256(text.encode("ascii"))

    def differences(self, other: CacheKey) -> list[str]:
        """What differs, one line a value: `data.augment.flip: 0.5 there, 0.0 here` (there: `other`).

        Args:
            other: the key of a set that is there.
        """
        return differences(self.values, other.values)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, CacheKey) and self.digest == other.digest

    def __hash__(self) -> int:
        return hash(self.digest)

    def __repr__(self) -> str:
        return f"CacheKey({self.digest[:16]})"


def differences(here: Any, there: Any) -> list[str]:
    """Where two JSON values differ, by dotted key; a list of mappings is gone into, any other is one value."""
    own, others = _flat(here), _flat(there)
    keys = [*own, *(key for key in others if key not in own)]
    pairs = [(key, own.get(key, _ABSENT), others.get(key, _ABSENT)) for key in keys]
    return [f"{key}: {_words(other)} there, {_words(mine)} here" for key, mine, other in pairs if _differ(mine, other)]


def _differ(one: Any, other: Any) -> bool:
    if one is _ABSENT or other is _ABSENT:
        return one is not other
    return canonical(one) != canonical(other)


def _words(value: Any) -> str:
    if value is _ABSENT:
        return "absent"
    text = json.dumps(value, ensure_ascii=False) if not isinstance(value, str) else repr(value)
    return text if len(text) <= 80 else f"{text[:60]}... ({len(text)} characters)"


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        value = {str(place): entry for place, entry in enumerate(value)}
    if isinstance(value, dict) and value:
        return {name: leaf for key, sub in value.items() for name, leaf in _flat(sub, f"{prefix}{key}.").items()}
    return {prefix.rstrip("."): value}


def _check(value: Any, where: str) -> None:
    if isinstance(value, Mapping):
        for key, sub in value.items():
            if not isinstance(key, str):
                raise ArgumentError(f"CacheKey: names must be texts, got {key!r} under {where or 'the key'!r}")
            _check(sub, f"{where}.{key}" if where else key)
    elif isinstance(value, (list, tuple)):
        for place, sub in enumerate(value):
            _check(sub, f"{where}[{place}]")
    else:
        try:
            if value is not None and not isinstance(value, (bool, int, float, str)):
                raise TypeError
            canonical(value)
        except (TypeError, ValueError):
            raise ArgumentError(
                f"CacheKey: {where}: expected a text, a finite number, true, false, null, or lists and mappings of "
                f"them, got {value!r}"
            ) from None
