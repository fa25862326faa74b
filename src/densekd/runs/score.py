"""Score the best student of a run on any of its splits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from densekd.config import load_recipe
from densekd.data.specs import FolderSpec
from densekd.errors import ConfigError, RunError, nearest
from densekd.evaluate import evaluate
from densekd.records import Scores
from densekd.runs.assemble import assemble
from densekd.runs.folder import Run

_READ = ("data", "runtime", "train.evaluate_batch_size")
_TRAINING_ONLY = (
    "data.augment.scale",
    "data.augment.crop",
    "data.augment.flip",
    "data.augment.jitter",
    "data.unlabelled",
)


def _refuse_unread(overrides: Mapping[str, Any]) -> None:
    """Refuse keys that would change nothing; those inside a mapping that is given as a value too."""
    for key in _leaves(overrides):
        if _within(key, _READ) and not _within(key, _TRAINING_ONLY):
            continue
        raise ConfigError(
            f"override {key}: an evaluation does not read it; it scores the run's own student and task. What can be "
            "changed: data.* (of data.augment: size, mean, std), runtime.*, train.evaluate_batch_size"
        )


def _within(key: str, keys: Sequence[str]) -> bool:
    return any(key == one or key.startswith(f"{one}.") for one in keys)


def _leaves(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from _leaves(value, f"{prefix}{key}.")
        else:
            yield f"{prefix}{key}"


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
        ConfigError: a key that an evaluation does not read.
        RunError: the run has no student yet, or no split of that name.
    """
    _refuse_unread(overrides or {})
    best = {"student": run.student_spec.model_dump(mode="json")}
    recipe = load_recipe(run.path / "recipe.yaml", {**(overrides or {}), **best})
    extra = recipe.data.extra if isinstance(recipe.data, FolderSpec) else {}
    names = ["val", "train", *extra]
    if split not in names:
        raise RunError(f"--split {split!r}: no such split{nearest(split, names)}; there are {', '.join(names)}")
    parts = assemble(recipe, training=False)
    splits = {"val": parts.data.val, "train": parts.data.train, **parts.data.extra}
    runtime = parts.recipe.runtime
    return evaluate(
        parts.student,
        parts.eval_view(splits[split]),
        parts.task,
        parts.data.classes,
        device=parts.device,
        batch_size=parts.recipe.train.evaluate_batch_size,
        workers=runtime.workers,
        precision=runtime.precision,
        channels_last=runtime.channels_last,
        watch=None if watch is None else lambda done, total: watch("evaluating", done, total),
    )
