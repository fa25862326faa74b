"""Checkpoints: folders written whole, with checksums; the last two and the best are kept; nothing is pickled."""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import nn

from densekd import files
from densekd.errors import CheckpointError
from densekd.training.adversaries import Adversaries
from densekd.training.presence import Presence
from densekd.training.sharding import is_sharded, like, load_whole, whole, whole_state
from densekd.training.stepper import Stepper

_STATE = "state.json"
_SUMS = "checksums.json"
_STUDENT = "student.safetensors"
_NAME = re.compile(r"step-\d{8,}")
"""Of a checkpoint: what somebody has copied beside it is none."""


@dataclass
class Position:
    """Where a run stands: steps taken, whether the evaluation due there is done, and the scores so far.

    Attributes:
        best: scores of the best evaluation, with its `step`.
        last: scores of the newest one.
        student_sha256: of `student.safetensors` as the best evaluation left it; empty: not known.
        evaluations: `step`, `miou` and `pixel_accuracy` of every evaluation, in order.
        confusion: `step` and `matrix` of the newest ("final") and of the best evaluation.
        images: of both `step` and `scores`: mIoU and pixel accuracy of each image, null for one without labels.
        numbers: what is remembered of the losses (`densekd.training.numbers`).
    """

    taken: int = 0
    evaluated: bool = False
    best: dict[str, Any] | None = None
    last: dict[str, Any] | None = None
    skipped_steps: int = 0
    # Checkpoints of earlier versions hold none of these.
    evaluations: list[dict[str, Any]] = field(default_factory=list)
    confusion: dict[str, dict[str, Any]] = field(default_factory=dict)
    images: dict[str, dict[str, Any]] = field(default_factory=dict)
    numbers: dict[str, Any] = field(default_factory=dict)
    student_sha256: str = ""


class Found(NamedTuple):
    """The newest checkpoint that can be used, and why newer ones cannot."""

    path: Path | None
    damage: list[str]


def _optimizer_files(optimizer: torch.optim.Optimizer, name: str) -> dict[str, bytes]:
    state = optimizer.state_dict()
    tensors: dict[str, torch.Tensor] = {}
    plain: dict[str, dict[str, Any]] = {}
    for index, entries in state["state"].items():
        for key, value in entries.items():
            if isinstance(value, torch.Tensor):
                tensors[f"{index}.{key}"] = whole(value)
            else:
                plain.setdefault(str(index), {})[key] = value
    meta = {"param_groups": state["param_groups"], "plain": plain}
    return {f"{name}.safetensors": files.tensor_bytes(tensors), f"{name}.json": json.dumps(meta).encode()}


def _load_optimizer(optimizer: torch.optim.Optimizer, path: Path, name: str) -> None:
    tensors, meta = files.read_tensors(path / f"{name}.safetensors"), files.read_json(path / f"{name}.json")
    state: dict[int, dict[str, Any]] = {}
    for entry, tensor in tensors.items():
        index, key = entry.split(".", 1)
        state.setdefault(int(index), {})[key] = tensor
    for index, entries in meta["plain"].items():
        state.setdefault(int(index), {}).update(entries)
    groups = [{**group, **{k: tuple(v) for k, v in group.items() if k == "betas"}} for group in meta["param_groups"]]
    try:
        optimizer.load_state_dict({"state": state, "param_groups": groups})
    except ValueError as error:
        raise CheckpointError(f"{path / name}.json: does not fit the networks of this recipe: {error}") from None
    # The file is contiguous; torch made these tensors in the layout of their parameter, and a sum may round
    # differently in another one.
    for parameter, entries in optimizer.state.items():
        for key, value in entries.items():
            if key != "step" and isinstance(value, torch.Tensor) and value.shape == parameter.shape:
                entries[key] = like(parameter, value)


class Checkpointer:
    """Saves and restores all a resume needs: student, adapters, optimiser, adversaries, moving average, position."""

    def __init__(self, folder: Path, keep: int = 2, *, writes: bool = True) -> None:
        self.folder = folder / "checkpoints"
        self.keep, self.writes = keep, writes
        self._presence = Presence(folder)

    def path(self, step: int) -> Path:
        return self.folder / f"step-{step:08d}"

    def save(self, stepper: Stepper, position: Position) -> Path:
        """Write the checkpoint of `position.taken` steps, point `latest` at it, and drop older ones.

        Of several processes every one must call it: shards are gathered.
        """
        objective, path = stepper.plain, self.path(position.taken)
        if not self.writes and not is_sharded(objective):
            return path
        extra = objective.extra_state()
        content = {
            _STUDENT: files.tensor_bytes(whole_state(objective.student)),
            **_optimizer_files(_plain_optimizer(stepper.optimizer), "optimizer"),
            _STATE: json.dumps({"schema": 1, **vars(position)}, allow_nan=False).encode(),
        }
        if extra is not None:
            content["adapters.safetensors"] = files.tensor_bytes(whole_state(extra))
        if stepper.average is not None:
            content["average.safetensors"] = files.tensor_bytes(stepper.average.state_dict())
        content |= _adversary_files(stepper.adversaries)
        scaler = stepper.accelerator.scaler
        if scaler is not None:
            content["scaler.json"] = json.dumps(scaler.state_dict()).encode()
        content[_SUMS] = json.dumps({name: files.sha256(data) for name, data in content.items()}).encode()
        if not self.writes:
            return path
        self._presence.require()
        files.write_folder(path, content)
        self.settle(position)
        return path

    def settle(self, position: Position) -> None:
        """Point `latest` at the checkpoint of `position`, which is there, and drop older ones.

        On a resume too: a kill can have come between a checkpoint and this.
        """
        pointer, name = self.folder / "latest", self.path(position.taken).name + "\n"
        if not pointer.is_file() or pointer.read_bytes() != name.encode():
            files.write_text(pointer, name)
        self._drop_old(position)

    def _drop_old(self, position: Position) -> None:
        # Checkpoints of later steps are what a resume passed over as damaged: those steps are taken again.
        present = self.path(position.taken).name
        kept = {path.name for path in self._all() if path.name <= present}
        kept = set(sorted(kept)[-self.keep :])
        if position.best is not None:
            kept.add(self.path(int(position.best["step"])).name)
        for path in self._all():
            if path.name not in kept:
                files.remove_folder(path)

    def _all(self) -> list[Path]:
        return sorted(path for path in self.folder.glob("step-*") if _NAME.fullmatch(path.name))

    def latest(self) -> Found:
        """The newest undamaged checkpoint; its path is None when there is no checkpoint at all.

        Raises:
            CheckpointError: there are checkpoints and every one is damaged.
        """
        files.sweep_temporaries(self.folder)
        reasons: list[str] = []
        for path in reversed(self._all()):
            reason = self.damage(path)
            if reason is None:
                return Found(path, reasons)
            reasons.append(reason)
        if reasons:
            raise CheckpointError(f"no checkpoint can be used: {'; '.join(reasons)}; --force starts again")
        return Found(None, [])

    @staticmethod
    def damage(path: Path) -> str | None:
        """Why a checkpoint cannot be used, or None when all its files have the checksums it recorded."""
        try:
            sums = files.read_json(path / _SUMS)
            for name in (_STUDENT, _STATE):
                if name not in sums:
                    return f"{path / _SUMS}: holds no checksum of {name}"
            for name, expected in sums.items():
                if files.sha256_file(path / name) != expected:
                    return f"{path / name}: its checksum differs from the one recorded"
        except CheckpointError as error:
            return str(error)
        except OSError as error:
            return f"{error.filename or path}: {error.strerror or error}"
        except (AttributeError, TypeError, ValueError) as error:  # names that are none, of a file
            return f"{path / _SUMS}: {error}"
        return None

    def load(self, path: Path, stepper: Stepper) -> Position:
        """Bring student, adapters, optimiser, adversaries and moving average to the state saved at `path`."""
        objective = stepper.plain
        _load(objective.student, path / _STUDENT)
        extra = objective.extra_state()
        if extra is not None:
            _load(extra, path / "adapters.safetensors")
        if stepper.average is not None:
            _load(stepper.average, path / "average.safetensors")
        _load_optimizer(_plain_optimizer(stepper.optimizer), path, "optimizer")
        for name, place in _places(stepper.adversaries).items():
            _load(stepper.adversaries.found[name].network, path / f"{place}.safetensors")
            _load_optimizer(stepper.adversaries.optimizers[name], path, f"{place}-optimizer")
        scaler = stepper.accelerator.scaler
        if scaler is not None:
            scaler.load_state_dict(files.read_json(path / "scaler.json"))
        return _position(path / _STATE)


def _position(path: Path) -> Position:
    """The position in a file that holds what was saved.

    Raises:
        CheckpointError: a later version wrote it.
    """
    state = files.read_json(path)
    schema = state.pop("schema")
    unknown = sorted(state.keys() - {one.name for one in fields(Position)})
    if schema != 1 or unknown:
        what = f"schema {schema}" if schema != 1 else f"with {', '.join(unknown)}"
        raise CheckpointError(f"{path}: {what}, which this version does not know: go on with the one that wrote it")
    return Position(**state)


def _places(adversaries: Adversaries) -> dict[str, str]:
    """Names of files by term: a term's own name may hold what a file's must not."""
    return {name: f"adversary-{number}" for number, name in enumerate(adversaries.found)}


def _adversary_files(adversaries: Adversaries) -> dict[str, bytes]:
    content: dict[str, bytes] = {}
    for name, place in _places(adversaries).items():
        content[f"{place}.safetensors"] = files.tensor_bytes(adversaries.found[name].network.state_dict())
        content |= _optimizer_files(adversaries.optimizers[name], f"{place}-optimizer")
    return content


def _plain_optimizer(optimizer: Any) -> torch.optim.Optimizer:
    # AcceleratedOptimizer holds the torch optimiser as `.optimizer`.
    return getattr(optimizer, "optimizer", optimizer)


def _load(module: nn.Module, path: Path) -> None:
    try:
        load_whole(module, files.read_tensors(path))
    except RuntimeError as error:
        raise CheckpointError(f"{path}: does not fit the network of this recipe: {error}") from None
