"""`replay/step-XXXXXXXX/`: a step that ended in a value that is not finite, as files.

`batches.safetensors`: the tensors of its micro-batches; `weights.safetensors`: student, adapters and adversaries as
they were (no step had changed them; buffers have seen the step's forward pass); `replay.json`: everything else.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from densekd import files
from densekd.data.keyed import keyed_seed
from densekd.errors import CheckpointError
from densekd.training.evidence import Evidence, Shown
from densekd.training.sharding import is_sharded, whole_state
from densekd.training.stepper import Stepper

FOLDER, MANIFEST = "replay", "replay.json"
_BATCHES, _WEIGHTS = "batches.safetensors", "weights.safetensors"
_PIXELS = "pixels"


@dataclass(frozen=True)
class Kept:
    """A kept step, read again.

    Attributes:
        folder: where it is.
        step: counted from 1.
        seed: of the step, in its process.
        weights: of the terms.
        shown: its micro-batches.
        states: `student`, `extra`, `adversary-0` ...: state dicts; empty where they were not kept.
        manifest: the whole of `replay.json`.
    """

    folder: Path
    step: int
    seed: int
    weights: dict[str, float]
    shown: list[Shown]
    states: dict[str, dict[str, Tensor]]
    manifest: dict[str, Any]


def keep_step(run: Path, stepper: Stepper, evidence: Evidence, name_of: Callable[[int], str], error: str) -> Path:
    """Write what a step was doing into the run's folder; the folder made.

    Several processes write one each, named by their rank.

    Args:
        run: the run's folder.
        name_of: the name of a training image by its index.
        error: the message.
    """
    rank, step = stepper.peers.rank, evidence.number + 1
    place = f"step-{step:08d}" + (f"-rank-{rank}" if stepper.peers.world > 1 else "")
    tensors: dict[str, Tensor] = {}
    for micro, (batch, pixels) in enumerate(evidence.shown):
        tensors |= {f"{micro}.{name}": value for name, value in batch.items() if isinstance(value, Tensor)}
        tensors |= {} if pixels is None else {f"{micro}.{_PIXELS}": pixels}
    manifest = {
        "schema": 1,
        "step": step,
        "seed": stepper.seed,
        "step_seed": keyed_seed(stepper.seed, "step", evidence.number, rank),
        "rank": rank,
        "processes": stepper.peers.world,
        "kind": evidence.kind,
        "not_finite": evidence.bad,
        "losses": {name or "total": _plain(value) for name, value in evidence.values.items()},
        "weights": evidence.weights,
        "learning_rate": evidence.learning_rate,
        "samples": [_names(shown, name_of) for shown in evidence.shown],
        "error": error,
    }
    content = {_BATCHES: files.tensor_bytes(tensors)}
    if not is_sharded(stepper.plain):  # shards are gathered by all processes, and not all are here
        content[_WEIGHTS] = files.tensor_bytes(_weights(stepper))
    content[MANIFEST] = json.dumps(manifest, indent=2, ensure_ascii=False, allow_nan=False).encode()
    files.write_folder(run / FOLDER / place, content)
    return run / FOLDER / place


def read_step(folder: Path) -> Kept:
    """Read what `keep_step` wrote.

    Raises:
        CheckpointError: a file is missing, damaged, or of another form.
    """
    manifest = files.read_json(folder / MANIFEST)
    if not isinstance(manifest, dict) or manifest.get("schema") != 1:
        raise CheckpointError(f"{folder / MANIFEST}: not a step kept by a run (schema 1)")
    tensors = files.read_tensors(folder / _BATCHES)
    batches: dict[int, dict[str, Tensor]] = {}
    try:
        for name, tensor in tensors.items():
            micro, key = name.split(".", 1)
            batches.setdefault(int(micro), {})[key] = tensor
        shown = [Shown(batch, batch.pop(_PIXELS, None)) for _, batch in sorted(batches.items())]
        if not shown or not {"image", "label", "valid"} <= set(shown[-1].batch):
            raise ValueError("no images, labels and masks")
        step, seed = int(manifest["step"]), int(manifest["step_seed"])
        weights = {str(name): float(weight) for name, weight in manifest["weights"].items()}
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise CheckpointError(f"{folder}: not a step kept by a run ({type(error).__name__}: {error})") from None
    states: dict[str, dict[str, Tensor]] = {}
    if (folder / _WEIGHTS).is_file():
        for name, tensor in files.read_tensors(folder / _WEIGHTS).items():
            owner, _, key = name.partition("/")
            states.setdefault(owner, {})[key] = tensor
    return Kept(folder, step, seed, weights, shown, states, manifest)


def _weights(stepper: Stepper) -> dict[str, Tensor]:
    objective = stepper.plain
    owners: dict[str, nn.Module | None] = {"student": objective.student, "extra": objective.extra_state()}
    owners |= {f"adversary-{n}": found.network for n, found in enumerate(stepper.adversaries.found.values())}
    return {
        f"{owner}/{name}": tensor
        for owner, module in owners.items()
        if module is not None
        for name, tensor in whole_state(module).items()
    }


def _names(shown: Shown, name_of: Callable[[int], str]) -> Sequence[str]:
    indices = shown.batch.get("index")
    return [] if indices is None else [name_of(int(index)) for index in indices]


def _plain(value: float) -> float | str:
    return value if math.isfinite(value) else repr(value)
