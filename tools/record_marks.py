"""Marks in Markdown: the text between two comments, and the record it comes from.

The form is described in `check_numbers.py`.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from densekd.records import BenchRecord, StudyRecord

MARK = re.compile(r"<!-- record: (?P<spec>.*?) -->(?P<text>.*?)<!-- /record -->")
_EDGE = re.compile(r"<!-- /?record\b")
_SHOWN = re.compile(r"`[^`]*<!-- record:[^`]*`")
_FIRST = re.compile(r" *<!-- /?record\b")
_STEP = re.compile(r"\.?(?P<key>[^.\[\]]+)|\[(?P<where>[^\]]+)\]")
_OPERATORS: dict[str, Callable[[Any, Any], Any]] = {
    "+": lambda a, b: a + b,
    "-": lambda a, b: a - b,
    "*": lambda a, b: a * b,
    "/": lambda a, b: a / b,
    "above": lambda a, b: sum(x > y for x, y in zip(a, b, strict=True)),
}


class MarkError(Exception):
    """A mark that cannot be worked out; the message says why."""


@dataclass
class Records:
    """The records of a folder, each read and validated once."""

    folder: Path
    _read: dict[str, Any] = field(default_factory=dict)

    def __call__(self, name: str) -> Any:
        if name not in self._read:
            self._read[name] = self._load(name)
        return self._read[name]

    def _load(self, name: str) -> Any:
        if name.startswith("recipe:"):
            return self._recipe(name.removeprefix("recipe:"))
        if name.startswith("recipes:"):
            return self._recipes_of(name.removeprefix("recipes:"))
        path = self.folder / name
        if name.startswith("package:"):
            path = self._shipped.parent / name.removeprefix("package:")
        try:
            raw = json.loads(path.read_text(encoding="utf-8"))
        except FileNotFoundError:
            raise MarkError(f"there is no record {path}") from None
        except ValueError as error:
            raise MarkError(f"{path} is not readable as JSON: {error}") from None
        if not isinstance(raw, dict) or raw.get("schema") != 1:
            raise MarkError(f"{path} is no record of schema 1")
        model = StudyRecord if "methods" in raw else BenchRecord if "bench" in raw else None
        try:
            if model is not None:
                model.model_validate(raw)
        except ValidationError as error:
            raise MarkError(f"{path} is no valid record: {' '.join(str(error).split())}") from None
        return raw

    def _recipe(self, name: str) -> Any:
        path = self._shipped / f"{name}.yaml"
        if not path.is_file():
            raise MarkError(f"there is no recipe {path}")
        return yaml.safe_load(path.read_text(encoding="utf-8"))

    def _recipes_of(self, folder: str) -> dict[str, Any]:
        stems = sorted(path.stem for path in (self._shipped / folder).glob("*.yaml"))
        if not stems:
            raise MarkError(f"there are no recipes in {self._shipped / folder}")
        return {f"{folder}/{stem}": self(f"recipe:{folder}/{stem}") for stem in stems}

    @property
    def _shipped(self) -> Path:
        return self.folder.parent.parent / "src" / "densekd" / "recipes"


def find(record: Any, path: str) -> Any:
    """The value at a path.

    Raises:
        MarkError: the path leads nowhere, to several entries, or to null.
    """
    place, at = record, 0
    while at < len(path):
        step = _STEP.match(path, at)
        if step is None:
            raise MarkError(f"path {path!r} cannot be read from {path[at:]!r} on")
        place, at = _take(place, step, path), step.end()
    if place is None:
        raise MarkError(f"{path} is null in the record")
    return place


def _take(place: Any, step: re.Match[str], path: str) -> Any:
    key, where = step["key"], step["where"]
    if key == "#" and isinstance(place, list):
        return len(place)
    if key is not None:
        if isinstance(place, dict) and key in place:
            return place[key]
        known = f"; there are {', '.join(map(str, place))}" if isinstance(place, dict) else ""
        raise MarkError(f"path {path}: no key {key!r}{known}")
    if not isinstance(place, list):
        raise MarkError(f"path {path}: [{where}] asks for an entry of a list, found {type(place).__name__}")
    if where.isdigit():
        if int(where) >= len(place):
            raise MarkError(f"path {path}: the list has {len(place)} entries")
        return place[int(where)]
    wanted = dict(pair.partition("=")[::2] for pair in where.split(","))
    found = [entry for entry in place if all(str(entry.get(k)) == v for k, v in wanted.items())]
    if len(found) != 1:
        raise MarkError(f"path {path}: {len(found)} entries match [{where}], expected one")
    return found[0]


def evaluate(spec: str, records: Records) -> str:
    """The text a mark stands for.

    Raises:
        MarkError: no such record or path, or an expression that cannot be worked out.
    """
    file, *tokens = spec.split()
    if not tokens:
        raise MarkError(f"mark {spec!r}: a path is missing after the file")
    record = records(file)
    value, rest = _operand(tokens[0], record), tokens[1:]
    try:
        while len(rest) >= 2 and rest[0] in _OPERATORS:
            value = _OPERATORS[rest[0]](value, _operand(rest[1], record))
            rest = rest[2:]
        if len(rest) > 1:
            raise MarkError(f"mark {spec!r}: {rest[0]!r} is no operator; there are {' '.join(_OPERATORS)}")
        if rest:
            return format(value, rest[0])
    except (TypeError, ValueError, ZeroDivisionError) as error:
        raise MarkError(f"mark {spec!r}: {error}") from None
    if not isinstance(value, str | int | float) or isinstance(value, bool):
        raise MarkError(f"mark {spec!r} leads to a {type(value).__name__}, expected a number or a text")
    return str(value)


def _operand(token: str, record: Any) -> Any:
    try:
        return int(token) if token.isdigit() else float(token)
    except ValueError:
        return find(record, token)


def filled(line: str, records: Records) -> tuple[str, list[str]]:
    """The line with every mark's text as the records say, and what is wrong with it as it stands."""
    problems: list[str] = []

    def put(mark: re.Match[str]) -> str:
        try:
            expected = evaluate(mark["spec"], records)
        except MarkError as error:
            problems.append(str(error))
            return mark[0]
        if expected != mark["text"]:
            problems.append(f"expected {expected!r}, found {mark['text']!r} ({mark['spec']})")
        return f"<!-- record: {mark['spec']} -->{expected}<!-- /record -->"

    written = MARK.sub(put, line)
    if _EDGE.search(MARK.sub("", line)):
        problems.append("a record mark that is not opened, or not closed on its line")
    if _FIRST.match(line):
        problems.append("a record mark begins the line, which would end the paragraph where Markdown is rendered")
    if _SHOWN.search(line):
        problems.append("a record mark between backticks is shown as it stands; use <code>...</code> around it")
    return written, problems
