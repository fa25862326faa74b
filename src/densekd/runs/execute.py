"""`train` and `distill`: from a recipe to a finished run folder."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from densekd import host_memory
from densekd.config import Recipe, load_recipe, recipe_digest
from densekd.errors import RunError
from densekd.models.digest import weights_digest
from densekd.records import RunRecord, dump
from densekd.runs.asked_teacher import require_teacher
from densekd.runs.assemble import Parts, assemble, build_distiller, build_teacher
from densekd.runs.cache import looked_at
from densekd.runs.claim import Claim
from densekd.runs.engine import require_plain_launch
from densekd.runs.execution import Execution, Kind, method_of
from densekd.runs.fast_teacher import fast_teacher
from densekd.runs.folder import Run, require_writable
from densekd.runs.fused import settle_fused
from densekd.runs.images import images_of, require_same_images
from densekd.runs.length import total_steps
from densekd.runs.lock import claimed, require_unclaimed
from densekd.runs.progress import Quiet as Quiet
from densekd.runs.ranks import Ranks, joined
from densekd.runs.rehearsal import rehearse
from densekd.runs.restore import leave_finished
from densekd.runs.tracking import require_trackers

RecipeLike = str | Path | Mapping[str, Any] | Recipe


def train(
    recipe: RecipeLike,
    *,
    out: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Quiet | None = None,
    **overrides: Any,
) -> Run:
    """Train the recipe's student alone; its teacher and terms, if any, are not used (and the run says so).

    Args:
        recipe: a file, the name of a shipped recipe, a mapping, or a loaded `Recipe`.
        out: the run's folder; default `runs/<recipe name>`.
        seed: replaces the recipe's seed.
        resume: go on with an interrupted run in that folder; a run folder as `recipe` is its own `out`.
        force: start again in a folder that holds a run; a run folder as `recipe` is its own `out`.
        progress: what watches; default nothing.
        overrides: keys of the recipe; `__` stands for the dot: `train__steps=100`, or `**{"train.steps": 100}`.

    Returns:
        The finished run.

    Raises:
        DensekdError: whatever is wrong with recipe, data, networks or folder, before training starts.
        Interrupted: SIGINT or SIGTERM came; the run can be resumed.
        NonFiniteError: a loss or a gradient is NaN or infinite.
    """
    return _run("train", recipe, _Options(out, seed, resume, force, progress or Quiet(), overrides))


def distill(
    recipe: RecipeLike,
    *,
    out: str | Path | None = None,
    seed: int | None = None,
    resume: bool = False,
    force: bool = False,
    progress: Quiet | None = None,
    **overrides: Any,
) -> Run:
    """Train the recipe's student under its teacher.

    A pre-flight comes first: every tap fires, every term acts, the teacher scores what it should.

    Args:
        recipe, out, seed, resume, force, progress, overrides: as `train`.

    Returns:
        The finished run.

    Raises:
        DensekdError, Interrupted, NonFiniteError: as `train`.
    """
    return _run("distill", recipe, _Options(out, seed, resume, force, progress or Quiet(), overrides))


@dataclass(frozen=True)
class _Options:
    out: str | Path | None
    seed: int | None
    resume: bool
    force: bool
    progress: Quiet
    overrides: Mapping[str, Any]


def resolve(recipe: RecipeLike, seed: int | None, overrides: Mapping[str, Any]) -> Recipe:
    """The recipe with its overrides (`__` stands for the dot too) and seed applied."""
    dotted = {key.replace("__", "."): value for key, value in overrides.items()}
    if seed is not None:
        dotted["seed"] = seed
    raw = recipe.model_dump(mode="json") if isinstance(recipe, Recipe) else recipe
    return load_recipe(raw, dotted)


def folder_of(recipe_like: RecipeLike, recipe: Recipe, out: str | Path | None, *, again: bool) -> Path:
    """Where a run goes: `out`; a run folder that is resumed or started again: that folder; else `runs/<name>`.

    Args:
        recipe_like: what the user named.
        recipe: the same, loaded.
        again: with `resume` or `force`: what is in the folder is gone on with or removed, so the named one is meant.
    """
    if out is not None:
        return Path(out)
    if again and isinstance(recipe_like, str | Path) and (Path(recipe_like) / "recipe.yaml").is_file():
        return Path(recipe_like)
    return Path("runs") / recipe.name


def _run(kind: Kind, recipe_like: RecipeLike, options: _Options) -> Run:
    with joined() as ranks:
        recipe = ranks.agreed("the recipe", lambda: resolve(recipe_like, options.seed, options.overrides))
        folder = folder_of(recipe_like, recipe, options.out, again=options.resume or options.force)
        claim = Claim(folder, recipe, method_of(kind, recipe), options.resume, options.force)
        progress = options.progress if ranks.first else Quiet()
        before = _checked(kind, claim, ranks)
        if before is not None and before.status == "done":
            ranks.from_first("the finished run", lambda: _finished(folder, progress))
            return Run.load(folder)
        parts = ranks.agreed("data and student", lambda: _parts(kind, claim, before, progress, ranks))
        Execution(kind, parts, claim, progress, ranks).go()
        return ranks.agreed("the end", lambda: Run.load(folder))


def _finished(folder: Path, progress: Quiet) -> str:
    with claimed(folder):
        leave_finished(Run.load(folder), progress.said)
    return "done"


def dry_run(kind: Kind, recipe: Recipe, folder: Path, *, resume: bool, force: bool, progress: Quiet) -> Parts:
    """All that `train` or `distill` check before they write, but for the pre-flight; nothing is written.

    Raises:
        DensekdError: what the run itself would raise.
    """
    claim = Claim(folder, recipe, method_of(kind, recipe), resume, force)
    with joined() as ranks:
        before = _checked(kind, claim, ranks)
        if before is not None and before.status == "done":
            progress.said(f"{folder}: this run is done already; nothing to resume")

        def checked() -> Parts:
            parts = _parts(kind, claim, before, progress, ranks)
            total_steps(recipe, len(parts.data.train), parts.share.images)
            distiller = None
            if kind == "distill":
                network = build_teacher(parts)
                distiller = build_distiller(parts, fast_teacher(parts, network, ranks, scored=False))
                if recipe.distill.cache is not None and ranks.first:
                    parts.notices += looked_at(parts, distiller, weights_digest(network))[0]
            parts.last = settle_fused(parts, distiller)
            return parts

        return ranks.agreed("the checks", checked)


def _checked(kind: Kind, claim: Claim, ranks: Ranks) -> RunRecord | None:
    """What can be told before any work: teacher, folder. The record of the run to go on with; the first looks."""

    def look() -> str:
        if kind == "distill":
            require_teacher(claim.recipe)
        if claim.resume and claim.force:
            raise RunError("resume and force exclude each other: go on with the run, or start it again")
        before = claim.look()
        require_unclaimed(claim.folder)
        if before is None or before.status != "done":
            require_trackers(claim.recipe.track)
            require_writable(claim.folder)
        return json.dumps(None if before is None else dump(before))

    ranks.agreed("the launch", require_plain_launch)
    ranks.same("the recipe", f"{kind} {claim.folder} {recipe_digest(claim.recipe)}")
    before = json.loads(ranks.from_first("the folder", look))
    return None if before is None else RunRecord.model_validate(before)


def _parts(kind: Kind, claim: Claim, before: RunRecord | None, progress: Quiet, ranks: Ranks) -> Parts:
    """The run's parts, of the images that the run before began with; its student has run once."""
    recipe = claim.recipe
    parts = assemble(
        recipe,
        watch=progress.checking,
        resumed=claim.resume,
        taught=kind == "distill",
        launch=ranks.launch,
        before=before,
        said=progress.said,
    )
    if kind == "train" and (recipe.teacher is not None or recipe.terms):
        parts.notices.append("train: the recipe's teacher and terms are not used: the student is trained alone")
    if kind == "train" and recipe.distill.cache is not None:
        parts.notices.append(
            "train: distill.cache is not used: the images get new views in every epoch (train.views gives them as many "
            "as a cache)"
        )
    if before is not None and before.status != "done":
        require_same_images(claim.folder, before, images_of(parts.data))
    parts.notices.extend(host_memory.notices(recipe.runtime))
    rehearse(parts)
    return parts
