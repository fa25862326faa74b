"""`torch.compile` with the weights frozen into the code."""

from __future__ import annotations

import os
import shutil
import sys
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from densekd.errors import ModelError
from densekd.failures import out_of_memory
from densekd.taps import TapReader
from densekd.teacher.source import Batch


def check_compiler() -> None:
    """Raises:
    ModelError: there is no C++ compiler, which `torch.compile` writes its code for.
    """
    wanted = os.environ.get("CXX") or ("clang++" if sys.platform == "darwin" else "g++")
    if shutil.which(wanted) is None:
        raise ModelError(
            f"compile=True: torch.compile needs a C++ compiler, and there is no {wanted!r} on the PATH; install one "
            "(g++), name one by the environment variable CXX, or leave compile=False"
        )


_RECOMPILE_LIMIT = 256


class Compiled:
    """The forward pass of a network to its taps, compiled when it is first run; only what the taps need is computed.

    A copy or a pickle of it starts uncompiled.

    Attributes:
        shapes: shapes of images compiled for so far.
    """

    def __init__(self) -> None:
        self.shapes: set[tuple[int, ...]] = set()
        self._call: Callable[..., dict[str, Tensor]] | None = None

    def __call__(self, reader: TapReader, network: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """The tapped maps.

        Raises:
            ModelError: compiling fails.
        """
        if self._call is None:
            self._call = torch.compile(_forward, dynamic=False, options={"freezing": True})
        shape = tuple(batch.images.shape)
        if shape in self.shapes:
            return self._call(reader, network, batch.args, batch.kwargs)
        try:
            # torch runs a function uncompiled, for good, once it has compiled it for so many shapes
            with torch._dynamo.config.patch(recompile_limit=_RECOMPILE_LIMIT):
                found = self._call(reader, network, batch.args, batch.kwargs)
        except Exception as error:
            if out_of_memory(error):
                raise
            words = " ".join(str(error).split())[:300]
            raise ModelError(
                f"compile=True: torch.compile cannot compile the teacher ({type(error).__name__}: {words}); leave "
                "compile=False"
            ) from error
        self.shapes.add(shape)
        return found

    def __getstate__(self) -> dict[str, Any]:
        return {"shapes": set(), "_call": None}


def _forward(reader: TapReader, network: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> dict[str, Tensor]:
    return reader.run(network, args, kwargs)[1]
