"""Loading weights strictly: every name and every shape fits, or nothing is loaded and the error says why."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from torch import nn

from densekd.errors import CheckpointError
from densekd.models.checkpoint_errors import explain_misfit, explain_shapes
from densekd.models.checkpoint_file import read_checkpoint, resolve_checkpoint
from densekd.models.checkpoint_ignore import Ignored
from densekd.models.checkpoint_keys import find_weights, flattened, strip_wrappers
from densekd.models.options import say
from densekd.models.run_student import require_recorded, unrecorded
from densekd.models.specs import CheckpointSpec

_COUNTER = "num_batches_tracked"


def load_checkpoint(
    network: nn.Module, spec: CheckpointSpec, base_folder: Path | str = ".", *, notices: list[str] | None = None
) -> None:
    """Load the weights that `spec` names into `network`, all of them or none.

    Prefixes of wrappers (`module.`, `model.`, `student.`, `_orig_mod.`) that every name in the file has are taken off;
    floating-point values are cast to the network's type. Both, and the entry of the file that was read, are told in
    `notices` where they were not asked for; so is how much of the network `ignore` leaves as it was, and that a run's
    student could not be compared with the run's record.

    Args:
        network: takes the weights in place; untouched if anything does not fit.
        spec: the file and how to read it.
        base_folder: where relative paths begin.
        notices: lines for the user are added here; without it they are Python warnings.

    Raises:
        CheckpointError: a file that is missing, damaged or no weights file; a run's student that is not the one that
            the run recorded; names or shapes that do not fit; an `ignore` that matches nothing, or everything.
    """
    path = resolve_checkpoint(spec.path, Path(base_folder))
    where = f"checkpoint {path}"
    require_recorded(path)
    unknown = unrecorded(path)
    if unknown is not None:
        say(notices, unknown)
    weights, entry = find_weights(read_checkpoint(path), spec.key, where)
    if entry is not None and spec.key is None:
        say(notices, f"{where}: weights taken from its entry {entry!r}")
    expected = network.state_dict()
    ignored = Ignored(spec.ignore)
    present = list(weights)
    weights = _renamed(weights, spec, set(expected), ignored, where, notices)
    needed = {name: value for name, value in expected.items() if not ignored(name)}
    ignored.require_use(where, [*expected, *present])
    kept = ignored.kept(network, expected)
    _check_tensors(weights, where)
    counters = _absent_counters(weights, needed)
    asked = [name for name in needed if name not in counters]
    if weights.keys() != set(asked):
        raise CheckpointError(explain_misfit(where, asked, list(weights)) + _converted(network))
    if not weights:
        raise CheckpointError(f"{where}: nothing would be loaded: {kept}; leave the checkpoint out, or ignore less")
    weights |= {name: torch.zeros_like(needed[name]) for name in counters}
    wrong = {n: (weights[n], needed[n]) for n in needed if weights[n].shape != needed[n].shape}
    if wrong:
        raise CheckpointError(explain_shapes(where, wrong))
    _check_kinds(weights, needed, where)
    if counters:
        say(notices, f"{where}: has no {_COUNTER}; {len(counters)} counters of BatchNorm start at 0")
    if kept:
        say(notices, f"{where}: {kept}")
    with torch.no_grad():
        network.load_state_dict({**expected, **weights}, strict=True)


def _converted(network: nn.Module) -> str:
    """The hint for networks of transformers, which write other names to files than their modules have."""
    if not (hasattr(network, "base_model_prefix") and hasattr(network, "save_pretrained")):
        return ""
    return "; a folder of save_pretrained is loaded by naming it as the model: transformers:FOLDER"


def _renamed(
    weights: dict[str, Any],
    spec: CheckpointSpec,
    expected: set[str],
    ignored: Ignored,
    where: str,
    notices: list[str] | None,
) -> dict[str, Any]:
    """The weights under the network's names; ignored ones left out, by their name in the file or after stripping."""
    prefix = spec.strip_prefix
    if prefix is None:
        prefix = strip_wrappers([name for name in weights if not ignored(name)], expected)
        if prefix:
            say(notices, f"{where}: prefix {prefix!r} taken off every name")
    elif not any(name.startswith(prefix) for name in weights):
        raise CheckpointError(
            f"{where}: no name begins with strip_prefix {prefix!r}; the first is {next(iter(weights))!r}"
        )
    stripped: dict[str, Any] = {}
    for name, value in weights.items():
        short = name.removeprefix(prefix)
        if ignored(name, short):
            continue
        if short in stripped:
            raise CheckpointError(f"{where}: two names are {short!r} once strip_prefix {prefix!r} is taken off")
        stripped[short] = value
    renamed = flattened(stripped, expected)
    if renamed:
        old, new = next(iter(renamed.items()))
        say(notices, f"{where}: {len(renamed)} names changed to timm's for features, for instance {old} to {new}")
    return {renamed.get(name, name): value for name, value in stripped.items()}


def _check_tensors(weights: dict[str, Any], where: str) -> None:
    others = [name for name, value in weights.items() if not isinstance(value, torch.Tensor)]
    if others:
        raise CheckpointError(
            f"{where}: {len(others)} entries are not tensors: {', '.join(others[:4])}; leave them out with ignore"
        )


def _absent_counters(weights: dict[str, Any], needed: dict[str, torch.Tensor]) -> list[str]:
    """BatchNorm's step counters where the file has none at all; they matter only without a momentum."""
    if any(name.endswith(_COUNTER) for name in weights):
        return []
    return [name for name in needed if name.endswith(_COUNTER)]


def _check_kinds(weights: dict[str, torch.Tensor], needed: dict[str, torch.Tensor], where: str) -> None:
    for name, value in weights.items():
        if value.is_floating_point() != needed[name].is_floating_point():
            raise CheckpointError(
                f"{where}: {name} is {value.dtype}, the network's is {needed[name].dtype}; quantised weights must be "
                f"brought back to floating point first"
            )
