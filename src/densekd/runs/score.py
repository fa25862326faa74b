"""Score the best student of a run on any of its splits."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from densekd.config import load_recipe
from densekd.data.specs import FolderSpec
from densekd.errors import RunError, nearest
from densekd.evaluate import evaluate
from densekd.records import Scores
from densekd.runs.assemble import assemble
from densekd.runs.folder import Run


def score_run(
    run: Run,
    split: str = "val",
    overrides: Mapping[str, Any] | None = None,
    watch: Callable[[str, int, int], None] | None = None,
) -> Scores:
    """Scores of `student.safetensors` on `val`, `train` or an extra split of the run's recipe.

    Args:
        overrides: keys of the recipe, for instance `data.root` when the data moved.

    Raises:
        RunError: the run has no student yet, or no split of that name.
    """
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
