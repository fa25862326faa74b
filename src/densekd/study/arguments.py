"""What Python calls of `compare` and `tune` may be given; the command line gives these types by itself."""

from __future__ import annotations

import os
from collections.abc import Iterable
from numbers import Real
from typing import Any

from densekd.errors import ConfigError
from densekd.study.progress import Silent


def entries(option: str, values: Any, expected: str) -> list[Any]:
    """The entries of a list.

    Raises:
        ConfigError: no list: a single value, or a text, whose letters would be taken for entries.
    """
    if isinstance(values, str | bytes) or not isinstance(values, Iterable):
        raise ConfigError(f"{option}: expected a list of {expected}, got {values!r}")
    return list(values)


def is_number(value: Any) -> bool:
    """Whether it is a real number; True and False are none."""
    return isinstance(value, Real) and not isinstance(value, bool)


def require_surroundings(out: Any, force: Any, progress: Any) -> None:
    """Refuse a folder that is no path, a `force` that is no bool, and what cannot watch a study.

    Raises:
        ConfigError: which of them, and what it is.
    """
    if out is not None and not isinstance(out, str | os.PathLike):
        raise ConfigError(f"--out: expected the path of a folder, got {out!r}")
    if not isinstance(force, bool):
        raise ConfigError(f"--force: expected True or False, got {force!r}")
    if progress is not None and not isinstance(progress, Silent):
        raise ConfigError(f"progress: expected a densekd.study.Silent or one of its subclasses, got {progress!r}")
