"""Whether a float32 copy differs from its teacher by rounding alone, and if not, since which module."""

from __future__ import annotations

import copy
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from densekd.errors import ModelError
from densekd.failures import out_of_memory
from densekd.teacher.engine import Engine
from densekd.teacher.fidelity import MapError, map_errors
from densekd.teacher.plain import Plain
from densekd.teacher.precision import Precision

# Below the first no question is asked. Above it, the plain teacher's own distance from float64 says what rounding is
# in this network; the second stands in where it does not run in float64.
_USUAL = 1e-4
_LARGEST = 1e-3
_FACTOR = 10.0


def check_rounding(
    plain: Plain,
    engine: Engine,
    errors: Mapping[str, MapError],
    folded: Collection[str],
    what: str,
    instead: str = "fold_batchnorm=False, and compile=False if that does not help",
) -> None:
    """Refuse a float32 engine whose maps differ from the plain teacher's by more than rounding explains.

    A tap passes whose maps and softened maps err by at most 1e-4. Otherwise both are compared with the teacher run in
    float64: the engine may be ten times as far from it as the plain teacher is, where it is or on the engine's device.

    Args:
        folded: paths of the layers that took in a normalisation, which give something else on purpose.
        what, instead: what was done, and what to use, for the message.

    Raises:
        ModelError: it is further away, or not finite; with the first module that gives something else, if it can
            be told.
    """
    worst = {tap: max(error.maps, error.softened) for tap, error in errors.items()}
    if all(value <= _USUAL for value in worst.values()):
        return
    allowed = _allowed(plain, engine.device)
    for tap, value in worst.items():
        if not value <= allowed[tap]:
            module = first_difference(plain, engine, folded)
            where = f"; the first module that gives something else is {module!r}" if module else ""
            raise ModelError(
                f"the fast copy of the teacher is wrong: {what} its map {tap!r} of the example errs by {value:.2g} "
                f"(relative L2), and rounding explains {allowed[tap]:.2g}{where}; use {instead}"
            )


def _allowed(plain: Plain, device: torch.device) -> dict[str, float]:
    """How far from the plain teacher rounding may take each tap; on another device float32 may be rounded otherwise, as
    where convolutions multiply in TensorFloat-32."""
    engine = plain.engine
    network, reader = copy.deepcopy((engine.network, engine.reader))
    wide = Engine(network.double(), reader, Precision("float64"), engine.device, engine.size, False, engine.micro_batch)
    rounded = [plain.maps]
    try:
        exact = plain.read(wide)
        if device != engine.device:
            network, reader = copy.deepcopy((engine.network, engine.reader))
            rounded.append(plain.read(replace(engine, network=network.to(device), reader=reader, device=device)))
    except Exception as error:
        if out_of_memory(error):
            raise
        return dict.fromkeys(plain.maps, _LARGEST)
    own = [map_errors(maps, exact, plain.options.temperature) for maps in rounded]
    worst = {tap: max(max(errors[tap].maps, errors[tap].softened) for errors in own) for tap in plain.maps}
    return {tap: max(_USUAL, _FACTOR * error) for tap, error in worst.items()}


def first_difference(plain: Plain, engine: Engine, folded: Collection[str]) -> str | None:
    """The first module without children, in the order they run, whose output is not the plain teacher's."""
    part = next(engine.parts(plain.batch))
    theirs = _outputs(plain.engine, part)
    ours = _outputs(engine, part)
    for path, tensor in ours.items():
        other = theirs.get(path)
        if other is None or path in folded or other.shape != tensor.shape:
            continue
        norm = float(other.double().norm())
        if not float((tensor.to(other.device).double() - other.double()).norm()) <= _LARGEST * max(norm, 1e-12):
            return path
    return None


def _outputs(engine: Engine, batch: Any) -> dict[str, Tensor]:
    """What each module without children gave the first time it ran, in order."""
    found: dict[str, Tensor] = {}

    def watch(path: str) -> Any:
        def hook(_module: Any, _args: Any, output: Any) -> None:
            if isinstance(output, Tensor) and path not in found:
                found[path] = output.detach().clone()  # a later module may change it in place

        return hook

    leaves = [(path, module) for path, module in engine.network.named_modules() if path and not [*module.children()]]
    handles = [module.register_forward_hook(watch(path)) for path, module in leaves]
    try:
        prepared = engine.prepared(batch)
        with engine.precision.around(engine.device.type):
            engine.network(*prepared.args, **prepared.kwargs)
    finally:
        for handle in handles:
            handle.remove()
    return found
