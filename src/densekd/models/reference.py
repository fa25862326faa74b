"""Model references: `smp:PSPNet`, `torchvision:...`, `transformers:...`, `timm:...`, `path/to/file.py:function`."""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from densekd.errors import ModelError, nearest
from densekd.models.names import short_names

Library = Literal["smp", "torchvision", "transformers", "timm", "file"]

LIBRARIES: tuple[Library, ...] = ("smp", "torchvision", "transformers", "timm")

_FILE = re.compile(r"(?P<path>.+\.py):(?P<function>[A-Za-z_]\w*)")
_FORMS = (
    "a short name such as pspnet-resnet18, smp:PSPNet, torchvision:deeplabv3_resnet50, "
    "transformers:SegformerForSemanticSegmentation, timm:NAME, or path/to/file.py:function"
)


class Reference(NamedTuple):
    """A parsed model reference; for a file, `path` is the file and `name` the function in it."""

    library: Library
    name: str
    path: str | None = None


def parse_reference(text: str) -> Reference:
    """Split a model reference into library and name.

    Raises:
        ModelError: the text has none of the known forms; the nearest library is named.
    """
    # Files first: a Windows path holds a colon of its own.
    if found := _FILE.fullmatch(text.strip()):
        return Reference("file", found["function"], found["path"])
    library, colon, name = text.strip().partition(":")
    for known in LIBRARIES:
        if colon and name and library == known:
            return Reference(known, name)
    if text.strip().endswith(".py"):
        hint = f"; name the function that builds the network: {text.strip()}:build"
    elif not colon:
        hint = _without_library(text.strip())
    elif library.endswith(".py"):
        hint = f"; {name!r} cannot be the name of a function"
    else:
        hint = nearest(library, LIBRARIES)
    raise ModelError(f"model {text!r} is not a known reference{hint} (forms: {_FORMS})")


def _without_library(name: str) -> str:
    """What a text without a library may mean: a short name with a slip of the pen, or a network of smp."""
    alike = nearest(name.lower(), short_names())
    return alike if "-" in name or not name else f"; name its library: for instance smp:{name}{alike}"
