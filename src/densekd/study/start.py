"""`compare`: from labels, seeds and a recipe to a finished study."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, get_args

from densekd import host_memory
from densekd.config import Recipe
from densekd.errors import CheckpointError, ConfigError, RunError, nearest
from densekd.launch import require_one_process
from densekd.models.checkpoint_file import resolve_checkpoint
from densekd.records import Budget, run_name
from densekd.runs.asked_teacher import require_teacher
from densekd.runs.device import choose_device
from densekd.runs.execute import RecipeLike, resolve
from densekd.runs.folder import require_writable
from densekd.runs.tracking import require_trackers
from densekd.study.arguments import entries, require_surroundings
from densekd.study.comparison import Comparison
from densekd.study.machine import cpus, gpus_for, share_out
from densekd.study.methods import Method, resolve_methods
from densekd.study.plan import PLAN
from densekd.study.progress import Silent
from densekd.study.result import DRAWN, Study

#: bytes of a run's name: file systems take 255, and files beside the folder have longer names
_LONGEST = 200


def compare(
    recipe: RecipeLike,
    *,
    methods: Sequence[str] | None = None,
    seeds: Sequence[int] = (0, 1, 2),
    budget: Budget = "steps",
    jobs: int = 1,
    out: str | Path | None = None,
    force: bool = False,
    progress: Silent | None = None,
    **overrides: Any,
) -> Study:
    """Train the recipe's student with every method and every seed under one protocol, and compare.

    All runs have the same student, initial weights per seed, order of images and schedule; only the terms differ. The
    student alone (`none`) is always among them, and the teacher is scored before the first run. A finished run is not
    repeated, an interrupted one goes on where it stopped, one that fails stops no other.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping, or a loaded `Recipe`.
        methods: labels, see `densekd.study.resolve_methods`.
        seeds: of initial weights, order, augmentation, dropout; one run of each method for each.
        budget: "steps" gives every method the recipe's steps; "seconds" gives each as many steps as take as long as
            those of the student alone.
        jobs: runs at a time, each in a process of its own; CPU threads are shared out, or GPUs.
        out: the study's folder; default `runs/<recipe name>-compare`.
        force: start again those runs (and no others) whose recipe or teacher changed.
        progress: what watches; default nothing.
        overrides: keys of the recipe; `__` stands for the dot.

    Returns:
        The study; some of its runs may have failed (`Study.failures`, `Study.raise_if_failed`).

    Raises:
        DensekdError: whatever is wrong with labels, seeds, recipe, data, networks or folder, before training starts.
        Interrupted: Ctrl-C or SIGTERM; the same call goes on.
    """
    return prepare(
        recipe,
        methods=methods,
        seeds=seeds,
        budget=budget,
        jobs=jobs,
        out=out,
        force=force,
        progress=progress,
        **overrides,
    ).go()


def prepare(
    recipe: RecipeLike,
    *,
    methods: Sequence[str] | None,
    seeds: Sequence[int],
    budget: str = "steps",
    jobs: int = 1,
    out: str | Path | None = None,
    force: bool = False,
    progress: Silent | None = None,
    **overrides: Any,
) -> Comparison:
    """What `compare` does before anything is opened: arguments as there.

    Raises:
        DensekdError: labels, seeds, budget, recipe or folder are wrong.
    """
    require_one_process()
    require_surroundings(out, force, progress)
    base = resolve(recipe, None, overrides)
    chosen, added = resolve_methods(base, methods)
    for method in chosen:
        if method.terms:
            require_teacher(method.recipe(base, base.seed))
    asked_seeds = check_seeds(seeds)
    _require_names(chosen, asked_seeds)
    _require_weights(base)
    require_trackers(base.track)
    folder = Path(out) if out is not None else Path("runs") / f"{base.name}-compare"
    _require_folder(folder)
    gpus = gpus_for(choose_device(base))
    runs = len(chosen) * len(asked_seeds)
    share = share_out(jobs, cores=cpus(), gpus=gpus, runs=runs, asked_threads=base.runtime.threads)
    watch = progress or Silent()
    memory = host_memory.for_child(base.runtime)
    share = replace(share, places=tuple({**place, **memory} for place in share.places))
    for line in (*added, *share.told):
        watch.said(line)
    return Comparison(base, chosen, asked_seeds, folder, _budget(budget), share, force, watch)


def check_seeds(seeds: Iterable[int]) -> list[int]:
    """The seeds as a list.

    Raises:
        ConfigError: no list; none, repeated ones, negative ones, or no whole numbers.
    """
    found = entries("--seeds", seeds, "different whole numbers")
    whole = all(isinstance(seed, int) and not isinstance(seed, bool) and seed >= 0 for seed in found)
    if not found or not whole or len(set(found)) < len(found):
        raise ConfigError(f"--seeds {','.join(map(str, found))}: expected different numbers, whole and none below 0")
    return found


def _budget(text: str) -> Budget:
    for known in get_args(Budget):
        if text == known:
            return known
    raise ConfigError(f"--budget {text!r}: unknown{nearest(str(text), get_args(Budget))}; expected steps or seconds")


def _require_names(methods: Sequence[Method], seeds: Sequence[int]) -> None:
    """Refuse labels of which no folder could be named."""
    for method in methods:
        size = max(len(run_name(method.name, seed).encode()) for seed in seeds)
        if size > _LONGEST:
            raise ConfigError(
                f"label {method.name[:40] + '...'!r}: the folder of its runs, LABEL-sSEED, would have a name of {size} "
                f"bytes; {_LONGEST} at most: choose a shorter one (under compare.methods)"
            )


def _require_weights(base: Recipe) -> None:
    """Refuse weights of the teacher that are not there, before data and student are opened."""
    for key in ("checkpoint", "encoder_checkpoint"):
        spec = None if base.teacher is None else getattr(base.teacher, key)
        if spec is not None:
            try:
                resolve_checkpoint(spec.path, Path())
            except CheckpointError as error:
                raise CheckpointError(f"teacher.{key}: {error}") from None
            return  # with the whole network's, an encoder's own are not read


def _require_folder(folder: Path) -> None:
    """Refuse a folder that holds a run, or files of the names of a study's that no study made."""
    if folder.exists() and not folder.is_dir():
        raise RunError(f"{folder}: a file; choose a folder with --out")
    names = {entry.name for entry in folder.iterdir()} if folder.is_dir() else set()
    if "recipe.yaml" in names:
        raise RunError(f"{folder}: holds a run; a study needs a folder of its own: choose another --out")
    taken = sorted(names.intersection(DRAWN))
    if taken and PLAN not in names:
        raise RunError(f"{folder}: holds {taken[0]}, but no {PLAN}: it is no study's; choose another --out")
    require_writable(folder)
