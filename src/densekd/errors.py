"""Errors meant for the user: each says what was expected, what came, and what to do.

The command line prints them as plain lines and exits with code 2; everything that is not a `DensekdError`
is a defect of densekd and keeps its traceback.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Iterable


class DensekdError(Exception):
    """Base of every error that densekd raises on purpose.

    Attributes:
        told_elsewhere: another process of the same launch says it; this one only leaves.
    """

    told_elsewhere: bool = False


class ArgumentError(DensekdError, ValueError):
    """An argument of a Python call has a value that cannot work."""


class DtypeError(ArgumentError, TypeError):
    """A tensor (or another argument) has a type that cannot work."""


class ShapeError(ArgumentError):
    """Tensors whose shapes do not fit each other or the operation."""


class TapError(DensekdError, ValueError):
    """A tap names no module, never fires, fires twice, or does not give a tensor."""


class ModelError(DensekdError, ValueError):
    """A model reference that cannot be built, or a network that cannot be used as asked."""


class CheckpointError(DensekdError, ValueError):
    """A checkpoint that is missing, damaged, or does not fit the network."""


class DataError(DensekdError, ValueError):
    """A data set that is missing files or holds files that cannot be used."""


class ConfigError(DensekdError, ValueError):
    """A recipe or an override that is not valid; the message names the key."""


class RunError(DensekdError, RuntimeError):
    """A run folder that cannot be used as asked: it exists, is unfinished, or holds no such file."""


class CacheError(DensekdError, RuntimeError):
    """A stored set of a teacher's maps that is missing, incomplete, damaged, or of another key."""


class ExportError(DensekdError, RuntimeError):
    """A student that cannot be exported as asked, or an exported file that cannot be opened or used."""


class ResourceError(DensekdError, RuntimeError):
    """Memory or the disk ran out, or a process that loads images was ended from outside."""


class NonFiniteError(DensekdError, ArithmeticError):
    """A loss term became NaN or infinite; the message names the term and the step."""


class SilentTermError(DensekdError, RuntimeError):
    """A distillation term that should act was exactly zero for many steps: it has no effect."""


class SecondDerivativeError(DensekdError, RuntimeError):
    """A second derivative was asked of an operator that makes its gradient in the forward pass."""


def nearest(name: str, candidates: Iterable[str], n: int = 3) -> str:
    """A hint `"; did you mean 'a', 'b'?"` of the names closest to `name`, or an empty string.

    >>> nearest("channelwize", ["channelwise", "pixelwise", "dist"])
    "; did you mean 'channelwise', 'pixelwise'?"
    >>> nearest("anything", ["channelwise"])
    ''
    """
    found = difflib.get_close_matches(name, list(candidates), n=n, cutoff=0.5)
    return f"; did you mean {', '.join(repr(f) for f in found)}?" if found else ""


def no_folder(path: str | os.PathLike[str]) -> str:
    """What is wrong with a path that is no folder: `no such folder`, or that something else is there.

    >>> no_folder("no-such-folder")
    'no such folder'
    """
    return "not a folder" if os.path.lexists(path) else "no such folder"
