"""A step that a run ended on is taken again: `densekd doctor --replay`."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from densekd import files
from densekd.distiller import Distiller
from densekd.errors import CheckpointError, RunError
from densekd.evaluate import autocast
from densekd.runs.assemble import Parts, assemble, build_distiller, build_teacher
from densekd.runs.execute import resolve
from densekd.runs.fast_teacher import fast_teacher
from densekd.runs.folder import Run
from densekd.runs.fused import settle_fused
from densekd.runs.rehearsal import rehearse
from densekd.runs.replay_advice import advise
from densekd.training.checkpointer import Checkpointer
from densekd.training.examined import Examination, examine
from densekd.training.objective import Alone, Distilled, Objective
from densekd.training.replay import FOLDER, MANIFEST, Kept, read_step
from densekd.training.sharding import load_whole

AS_RUN, PLAIN = "as in the run", "float32"


@dataclass
class Replay:
    """What a kept step did when it was taken again.

    Attributes:
        kept: the step.
        passes: by name: as in the run, and in float32 with the plain teacher.
        notices: what was used in place of what the run had.
        advice: what to do, the likeliest first.
    """

    kept: Kept
    passes: dict[str, Examination]
    notices: list[str] = field(default_factory=list)
    advice: list[str] = field(default_factory=list)

    def rows(self) -> list[dict[str, Any]]:
        """A row for each tensor of each pass."""
        return [
            {
                "pass": name,
                "what": look.what,
                "finite": "yes" if look.finite else f"no: {look.bad} of {look.count}",
                "min": _number(look.low),
                "max": _number(look.high),
                "norm": _number(look.norm),
                "note": look.note,
            }
            for name, found in self.passes.items()
            for look in found.looks
        ]

    def as_dict(self) -> dict[str, Any]:
        """Plain values for JSON."""
        firsts = {
            name: {"student": found.student, "teacher": found.teacher, "gradient": found.backward}
            for name, found in self.passes.items()
        }
        told = {"rows": self.rows(), "first": firsts, "notices": self.notices, "advice": self.advice}
        return {"step": self.kept.manifest, **told}

    def words(self) -> list[str]:
        """The first modules, and what to do."""
        found = []
        for name, one in self.passes.items():
            firsts = {"student": one.student, "teacher": one.teacher, "gradient, from the loss backwards": one.backward}
            said = [f"{what}: {first}" for what, first in firsts.items() if first]
            found.append(f"{name}: first not finite: {'; '.join(said) if said else 'nothing'}")
        return [*found, *self.advice]


def replay(
    path: Path,
    overrides: Mapping[str, Any],
    watch: Callable[[int, int], None] | None = None,
    *,
    trust: bool = False,
    said: Callable[[str], None] | None = None,
) -> Replay:
    """Build the networks of a run, give them the weights of the step it ended on, and take that step again.

    Nothing is written. Data set, checkpoints and files that the recipe names must be where they were.

    Args:
        path: `replay/step-XXXXXXXX` of a run, a file in it, or the run's folder (its newest kept step).
        overrides: keys of the recipe, `runtime.device` for instance.
        watch: called with (files checked, files in all).
        trust: execute code that the run's recipe names, though its folder was not made here.
        said: shows the user which files are executed, before the first one is.

    Raises:
        RunError: there is no kept step, or it names code and the folder was not made here.
        CheckpointError: its files are damaged, or do not fit the recipe's networks.
    """
    folder = _folder(path)
    kept, run = read_step(folder), Run.load(folder.parent.parent, trust=trust)
    record, recipe = run.record, resolve(run.recipe, None, overrides)
    for spec in (recipe.student, recipe.teacher):
        run.require_trust(spec)
    taught = record.method != "none"
    parts = assemble(recipe, watch=watch, resumed=True, taught=taught, before=record, said=said)
    rehearse(parts)
    states, about = _states(run.path, kept)
    notices = [about]
    if taught and recipe.distill.cache is not None:
        notices.append("the run read the teacher's maps from distill.cache; here the teacher itself runs")
    network = build_teacher(parts) if taught else None
    fast = None if network is None else fast_teacher(parts, network, scored=False)
    passes = {AS_RUN: _passed(parts, kept, states, fast, recipe.runtime.precision)}
    passes[PLAIN] = _passed(parts, kept, states, network, "float32")
    notices += [line for line in parts.notices if line.startswith("teacher.engine")]
    found = Replay(kept, passes, notices)
    found.advice = advise(passes[AS_RUN], passes[PLAIN], recipe)
    return found


def _passed(parts: Parts, kept: Kept, states: Mapping[str, Mapping[str, Tensor]], teacher: Any, precision: str) -> Any:
    distiller = None if teacher is None else build_distiller(parts, teacher)
    parts.last = settle_fused(parts, distiller)
    if distiller is None:
        objective: Objective = Alone(parts.student, parts.task, parts.last)
    else:
        objective = Distilled(distiller, parts.task, parts.last)
    _load(objective, states)
    objective.set_weights(kept.weights)
    try:
        return examine(
            objective,
            kept.shown,
            seed=kept.seed,
            device=parts.device,
            channels_last=parts.recipe.runtime.channels_last,
            precision=lambda: autocast(parts.device, precision) if precision != "float32" else nullcontext(),
        )
    finally:
        if isinstance(distiller, Distiller):
            distiller.close()


def _folder(path: Path) -> Path:
    """The folder of the step that is meant.

    Raises:
        RunError: there is none.
    """
    folder = path.parent if path.is_file() else path
    if not (folder / MANIFEST).is_file():
        inside = folder / FOLDER if (folder / FOLDER).is_dir() else folder
        found = sorted(inside.glob(f"step-*/{MANIFEST}"))
        if not found:
            raise RunError(
                f"{path}: holds no kept step: expected runs/<name>/{FOLDER}/step-XXXXXXXX, which a run leaves when a "
                "value is not finite"
            )
        folder = found[-1].parent
    folder = folder.absolute()
    if not (folder.parent.parent / "record.json").is_file():
        raise RunError(f"{folder}: not in a run's folder: the recipe is read from there ({folder.parent.parent})")
    return folder


def _states(run: Path, kept: Kept) -> tuple[dict[str, dict[str, Tensor]], str]:
    """The weights to start from, and which these are.

    Raises:
        CheckpointError: the step kept none, and there is no checkpoint before it.
    """
    if kept.states:
        return kept.states, f"weights: those of step {kept.step} itself, kept with it"
    checkpoints = Checkpointer(run)
    before = [checkpoints.path(step) for step in range(kept.step - 1, 0, -1)]
    found = next((one for one in before if one.is_dir() and checkpoints.damage(one) is None), None)
    if found is None:
        raise CheckpointError(f"{kept.folder}: holds no weights, and {run} no checkpoint before step {kept.step}")
    states = {"student": files.read_tensors(found / "student.safetensors")}
    if (found / "adapters.safetensors").is_file():
        states["extra"] = files.read_tensors(found / "adapters.safetensors")
    return states, f"weights: the step kept none; those of the checkpoint {found.name}, before it: not the step's own"


def _load(objective: Objective, states: Mapping[str, Mapping[str, Tensor]]) -> None:
    owners: dict[str, nn.Module | None] = {"student": objective.student, "extra": objective.extra_state()}
    owners |= {f"adversary-{n}": found.network for n, found in enumerate(objective.adversaries().values())}
    for name, module in owners.items():
        if module is None or name not in states:
            continue
        try:
            load_whole(module, dict(states[name]))
        except RuntimeError as error:
            raise CheckpointError(
                f"the kept weights of {name} do not fit the network of this recipe: {error}"
            ) from None


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:.4g}"
