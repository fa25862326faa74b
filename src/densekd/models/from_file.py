"""Networks of the user's own: `path/to/file.py:function`."""

from __future__ import annotations

import hashlib
import importlib.util
import os
import sys
import traceback
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from densekd.errors import DensekdError, ModelError, nearest
from densekd.failures import OWN_PREFIX, own_place
from densekd.models.options import named_parameters, refuse_unknown, say

_CLASS_NAMES = ("num_classes", "classes", "num_labels")


def build_from_file(
    path: Path, function: str, options: Mapping[str, Any], num_classes: int, notices: list[str] | None
) -> nn.Module:
    """Execute `path` and call `function(num_classes=..., **options)` in it.

    The number of classes goes in under the name that the function has for it: `num_classes`, `classes` or
    `num_labels`. While the file is executed, its folder can be imported from.

    Raises:
        ModelError: no such file or function, an option that the function does not have, an exception inside the file
            (named with file and line), or a result that is no `nn.Module`.
    """
    reference = f"{path}:{function}"
    if not path.is_file():
        raise ModelError(f"{reference}: no such file ({path.resolve()})")
    say(notices, about_execution(path))
    with _importable(path.resolve().parent):
        module = _execute(path.resolve())
        build = getattr(module, function, None)
        if not callable(build):
            names = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
            raise ModelError(f"{path} defines no function {function!r}{nearest(function, names)}")
        arguments = _arguments(reference, build, options, num_classes)
        with _located(path.resolve(), f"calling {function}"):
            network = build(**arguments)
    if not isinstance(network, nn.Module):
        raise ModelError(f"{reference} returned {type(network).__name__}, not a torch.nn.Module")
    return network


def about_execution(path: Path) -> str:
    """The line for the user about a file that is executed."""
    return f"{path} is executed, because the model reference names it"


def _execute(path: Path) -> ModuleType:
    # The digest keeps two files of one name apart; the module stays in sys.modules so that its classes pickle.
    name = f"{OWN_PREFIX}{path.stem}_{hashlib.sha256(os.fsencode(path)).hexdigest()[:8]}"
    spec = importlib.util.spec_from_file_location(name, path)
    if spec is None or spec.loader is None:
        raise ModelError(f"{path}: not a Python file")
    module = importlib.util.module_from_spec(spec)
    sys.modules[name] = module
    try:
        with _located(path, "executing the file"):
            spec.loader.exec_module(module)
    except BaseException:
        del sys.modules[name]
        raise
    return module


def _arguments(
    reference: str, build: Callable[..., Any], options: Mapping[str, Any], num_classes: int
) -> dict[str, Any]:
    names, open_ended = named_parameters(build)
    accepted = next((name for name in _CLASS_NAMES if name in names), "num_classes" if open_ended else None)
    if accepted is None:
        raise ModelError(
            f"{reference} has no argument for the number of classes; give it one named num_classes "
            f"(its arguments: {', '.join(names) or 'none'})"
        )
    for name in _CLASS_NAMES:
        if options.get(name, num_classes) != num_classes:
            raise ModelError(
                f"{reference}: options.{name} is {options[name]!r}, but {num_classes} outputs are needed here; "
                f"remove the option"
            )
    if not open_ended:
        refuse_unknown(reference, options, names)
    return {**options, accepted: num_classes}


@contextmanager
def _importable(folder: Path) -> Iterator[None]:
    sys.path.insert(0, str(folder))
    try:
        yield
    finally:
        sys.path.remove(str(folder))


@contextmanager
def _located(path: Path, doing: str) -> Iterator[None]:
    """Turn an exception of the user's code into a `ModelError` that names file and line.

    `sys.exit()` is one too: it would end densekd without a word, and with the exit code of success. What densekd's own
    handler of SIGTERM raises while the user's code runs goes on as it is.
    """
    try:
        yield
    except DensekdError:
        raise
    except SyntaxError as error:
        raise ModelError(f"{error.filename}:{error.lineno}: {error.msg} (while {doing})") from error
    except SystemExit as stop:
        place = own_place(stop)
        if place is None:
            raise
        raise ModelError(
            f"{place}: the program is ended there, {stop!r} (while {doing}); a file that is imported "
            'runs what stands outside of `if __name__ == "__main__":`'
        ) from stop
    except (KeyboardInterrupt, GeneratorExit):
        raise
    except BaseException as error:  # a class of the user's own may stand beside Exception
        frames = traceback.extract_tb(error.__traceback__)
        inside = [frame for frame in frames if Path(frame.filename) == path]
        where = f"{path}:{inside[-1].lineno}" if inside else str(path)
        raise ModelError(f"{where}: {type(error).__name__}: {error} (while {doing})") from error
