"""Score the best student of a run on any of its splits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from densekd.config import Recipe, load_recipe
from densekd.data.kinds import AnyDataSpec
from densekd.data.specs import FolderSpec, ScenesDataSpec
from densekd.errors import ConfigError, RunError, nearest
from densekd.evaluate import evaluate
from densekd.records import Scores
from densekd.runs.assemble import assemble
from densekd.runs.folder import Run

_READ = ("data", "evaluation", "runtime", "train.evaluate_batch_size")
_TRAINING_ONLY = (
    "data.augment.scale",
    "data.augment.scale_step",
    "data.augment.crop",
    "data.augment.max_class_share",
    "data.augment.flip",
    "data.augment.jitter",
    "data.augment.distortion",
    "data.unlabelled",
)


def _refuse_unread(overrides: Mapping[str, Any]) -> None:
    """Refuse keys that would change nothing; those inside a mapping that is given as a value too."""
    for key in _leaves(overrides):
        if _within(key, _READ) and not _within(key, _TRAINING_ONLY):
            continue
        raise ConfigError(
            f"override {key}: an evaluation does not read it; it scores the run's own student and task. What can "
            "be changed: data.* (of data.augment: size, fit, mean, std), evaluation.*, runtime.*, "
            "train.evaluate_batch_size"
        )


def _within(key: str, keys: Sequence[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in keys)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


def _refuse_other_parts(before: AnyDataSpec, after: AnyDataSpec) -> None:
    """Refuse to cut the scored images out of the training set in another way than the run did.

    Dropping the cut is no such thing: the validation set that is scored then was not trained on.
    """
    if before.name != after.name:
        return
    cuts = [key for key in ("holdout", "auto_split") if getattr(after, key, None) is not None]
    for key in ("holdout", "auto_split", "train", "train_count") if cuts else ():
        old, new = getattr(before, key, None), getattr(after, key, None)
        if old == new or (key == "holdout" and new is None):
            continue
        raise ConfigError(
            f"override data.{key}: data.{cuts[-1]} would choose other images to score on than the run kept out of its "
            "training, and trained ones would be called val; leave it as the run has it, or give a set of its own "
            "under data.val or data.extra"
        )


def _official(recipe: Recipe, split: str) -> str:
    """What to say of a benchmark's own split that is not opened; empty for any other name."""
    data = recipe.data
    if isinstance(data, ScenesDataSpec | FolderSpec):
        return ""
    if split in data.benchmark.images:
        folder = f"{data.root}/{data.benchmark.images[split]}"
        return f"{data.benchmark.title} keeps its labels to itself; `densekd predict` takes its images, {folder}"
    return f"is not opened; data.extra=[{split}] opens it" if split in data.benchmark.counts else ""


def _require_split(recipe: Recipe, split: str) -> None:
    """Refuse a split that there is not.

    Raises:
        RunError: no such name, or an extra split, which is not opened while images are held out for scores.
    """
    extra = () if isinstance(recipe.data, ScenesDataSpec) else tuple(recipe.data.extra)
    held = recipe.data.holdout is not None
    if held and split in extra:
        raise RunError(
            f"--split {split!r}: extra splits are not opened under data.holdout; there are val (the part held out) and "
            "train, or all of them with data.holdout=null"
        )
    names = ["val", "train", *(() if held else extra)]
    if split not in names:
        raise RunError(
            f"--split {split!r}: {_official(recipe, split) or 'no such split' + nearest(split, names)}; "
            f"there are {', '.join(names)}"
        )


def score_run(
    run: Run,
    split: str = "val",
    overrides: Mapping[str, Any] | None = None,
    watch: Callable[[str, int, int], None] | None = None,
) -> Scores:
    """Scores of `student.safetensors` on `val`, `train` or an extra split of the run's recipe.

    Args:
        overrides: keys of the recipe that an evaluation reads, for instance `data.root` when the data moved.

    Raises:
        ConfigError: a key that an evaluation does not read, or one that would score on images of the training.
        RunError: the run has no student yet, or no split of that name is opened.
    """
    _refuse_unread(overrides or {})
    best = {"student": run.student_spec.model_dump(mode="json")}
    recipe = load_recipe(run.path / "recipe.yaml", {**(overrides or {}), **best})
    _refuse_other_parts(run.recipe.data, recipe.data)
    _require_split(recipe, split)
    parts = assemble(recipe, training=False)
    splits = {"val": parts.data.val, "train": parts.data.train, **parts.data.extra}
    runtime = parts.recipe.runtime
    scores = evaluate(
        parts.student,
        parts.eval_view(splits[split]),
        parts.task,
        parts.data.classes,
        device=parts.device,
        batch_size=parts.recipe.train.evaluate_batch_size,
        workers=runtime.workers,
        patience=runtime.patience,
        precision=runtime.precision,
        channels_last=runtime.channels_last,
        evaluation=recipe.evaluation,
        watch=None if watch is None else lambda done, total: watch("evaluating", done, total),
    )
    return scores.model_copy(update={"left_out": parts.data.lacking(splits[split])})
