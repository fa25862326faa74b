"""`tune`: a short comparison of settings on a held-out part of the training set, and the recipe with the best."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from densekd import files
from densekd.config import Recipe, dump_recipe
from densekd.data.specs import FolderSpec, HoldoutSpec, ScenesDataSpec
from densekd.errors import ConfigError
from densekd.records import StudyMethod
from densekd.runs.execute import RecipeLike, resolve
from densekd.study import Silent, Study, prepare, resolve_methods
from densekd.study.arguments import is_number, require_surroundings
from densekd.study.tables import title_of
from densekd.tuning.candidates import FACTORS, Candidate, candidates

TUNED = "tuned.yaml"


@dataclass(frozen=True)
class Tuned:
    """What a sweep found.

    Attributes:
        study: the comparison of all settings.
        chosen: the best of each method.
        recipe: the file that holds them.
        remarks: what a reader of the result should know.
    """

    study: Study
    chosen: dict[str, Candidate]
    recipe: Path
    remarks: list[str]

    def rows(self) -> list[dict[str, Any]]:
        """The sweep as a table, the chosen settings marked; mIoU on the held-out images in percent."""
        best = {title_of(candidate.label) for candidate in self.chosen.values()}
        return [{**row, "chosen": "yes" if row["method"] in best else ""} for row in self.study.rows()]


def tune(
    recipe: RecipeLike,
    *,
    methods: Sequence[str] | None = None,
    factors: Sequence[float] = FACTORS,
    temperatures: Sequence[float] = (),
    steps: int = 300,
    seeds: Sequence[int] = (0,),
    group: str | None = None,
    fraction: float | None = None,
    jobs: int = 1,
    out: str | Path | None = None,
    force: bool = False,
    progress: Silent | None = None,
    command: str = "",
    **overrides: Any,
) -> Tuned:
    """Sweep weight and temperature of some methods, all the same way, and write a recipe with the best.

    Every setting is a short run of the recipe, scored on images held out of the training set: whole groups of a
    folder (`data.holdout`), the last of drawn scenes. The validation set is not opened. A weight is swept as a
    multiple of the one that is there (the recipe's own term, a key of `compare.methods`, or the method's default).
    The setting with the highest final mIoU, mean over the seeds, is chosen; of equal ones the smaller weight.

    Args:
        recipe: a file, the name of a shipped recipe, a mapping, or a loaded `Recipe`.
        methods: labels, see `densekd.study.resolve_methods`.
        factors: multiples of the weights.
        temperatures: tried for the losses that have one; empty: as given.
        steps: length of each run; no longer than the recipe's own `train.steps`.
        seeds: runs of each setting.
        group: regular expression that finds the group in a file's name; None: of `data.holdout` or `data.auto_split`.
        fraction: share of the training images that is held out; None: that of `data.holdout`, or else 0.2.
        jobs, out, force, progress: as of `densekd.compare`; `out` defaults to `runs/<recipe name>-tune`.
        command: the command line, for the record.
        overrides: keys of the recipe; `__` stands for the dot.

    Returns:
        What was found; `tuned.yaml` in the folder is the recipe with the chosen settings under `compare.methods`, and
        as its `terms` where one method was tuned.

    Raises:
        ConfigError: no group pattern for a folder of images or a bad one, one for drawn scenes, bad factors,
            temperatures, steps or types.
        RunsFailedError: a run failed, so that nothing can be chosen.
        DensekdError: as `densekd.compare`.
    """
    require_surroundings(out, force, progress)
    base = resolve(recipe, None, overrides)
    chosen, _ = resolve_methods(base, methods)
    tried = {method.name: candidates(method, factors, temperatures) for method in chosen if method.terms}
    where = {method.name: method.where for method in chosen}
    settings = [candidate for found in tried.values() for candidate in found]
    swept = {
        "data.holdout": _holdout(base, group, fraction).model_dump(mode="json"),
        "train.steps": _steps(base, steps),
        "train.epochs": None,
        "train.evaluate_every": None,
        "compare.methods": {c.label: c.as_method(where[c.method]).model_dump(mode="json") for c in settings},
    }
    study = prepare(
        resolve(base, None, swept),
        methods=[candidate.label for candidate in settings],
        seeds=seeds,
        jobs=jobs,
        out=Path("runs") / f"{base.name}-tune" if out is None else out,
        force=force,
        progress=progress,
    ).go(command)
    study.raise_if_failed()
    lines = {line.name: line for line in study.record.methods}
    best = {name: _best(found, lines) for name, found in tried.items()}
    path = study.path / TUNED
    files.write_text(path, dump_recipe(_with(base, best, where)))
    return Tuned(study, best, path, [line for name in tried for line in _remarks(best[name], tried[name], lines)])


def _holdout(base: Recipe, group: str | None, fraction: float | None) -> HoldoutSpec:
    """What is held out: as the recipe's own `data.holdout` says, but for what was asked."""
    if fraction is not None and (not is_number(fraction) or not 0 < fraction < 1):
        shown = f"{fraction:g}" if is_number(fraction) else repr(fraction)
        raise ConfigError(f"--holdout {shown}: expected a share of the training images between 0 and 1")
    if group is not None and not isinstance(group, str):
        raise ConfigError(f"--group: expected a regular expression, got {group!r}")
    data = base.data
    if isinstance(data, FolderSpec) and group is None and data.holdout is None and data.auto_split is None:
        raise ConfigError(
            "--group is missing: a regular expression that finds a file's group (drive, place, day) in its name, for "
            "instance '^[^_]+'; whole groups are held out of the training set, because images of one are too alike"
        )
    known = {} if data.holdout is None else data.holdout.model_dump()
    asked = {key: value for key, value in (("group", group), ("fraction", fraction)) if value is not None}
    try:
        found = HoldoutSpec.model_validate({**known, **asked})
    except ValidationError as error:
        words = error.errors()[0]["msg"].removeprefix("Value error, ")
        raise ConfigError(f"--group: {words}") from None
    if group is not None and isinstance(data, ScenesDataSpec):
        raise ConfigError("--group: drawn scenes have no groups: the last of them are held out; leave it out")
    return found


def _steps(base: Recipe, steps: int) -> int:
    if isinstance(steps, bool) or not isinstance(steps, int) or steps < 1:
        raise ConfigError(f"--steps {steps}: expected 1 or more, a whole number")
    return min(steps, base.train.steps or steps)


def _best(found: Sequence[Candidate], lines: dict[str, StudyMethod]) -> Candidate:
    def merit(candidate: Candidate) -> tuple[float, float]:
        final = lines[candidate.label].final
        return (-1.0 if final is None else final.mean, -candidate.factor)

    return max(found, key=merit)


def _with(base: Recipe, best: dict[str, Candidate], where: dict[str, str]) -> Recipe:
    """The recipe with the chosen settings."""
    known = {name: spec.model_dump(mode="json") for name, spec in base.compare.methods.items()}
    found = {name: candidate.as_method(where[name]).model_dump(mode="json") for name, candidate in best.items()}
    changes: dict[str, Any] = {"compare.methods": {**known, **found}}
    if len(best) == 1:
        (only,) = best.values()
        changes["terms"] = [term.model_dump(mode="json") for term in only.terms]
    return resolve(base, None, changes)


def _remarks(best: Candidate, found: Sequence[Candidate], lines: dict[str, StudyMethod]) -> list[str]:
    """What a reader of the result should know about one method's best setting."""
    factors = sorted({candidate.factor for candidate in found})
    said = []
    if len(factors) > 1 and best.factor in (factors[0], factors[-1]):
        which = "smallest" if best.factor == factors[0] else "largest"
        said.append(f"{best.method}: the best factor, {best.factor:g}, is the {which} tried: widen --factors")
    gain = lines[best.label].gain
    if gain is not None and gain.mean <= 0:
        said.append(f"{best.method}: no setting was better than the student alone on the held-out images")
    return said
