"""Several runs of one recipe, compared: methods x seeds, gains paired by seed, one `study.json`."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch

from densekd import files
from densekd.config import Recipe, recipe_digest
from densekd.data.keyed import keyed_seed
from densekd.errors import RunError
from densekd.models.digest import weights_digest
from densekd.records import (
    BestScores,
    Gain,
    RunRecord,
    Scores,
    StudyCost,
    StudyMethod,
    StudyRecord,
    StudyScores,
    dump,
    environment,
)
from densekd.runs import Run, distill, train
from densekd.runs.assemble import load_teacher
from densekd.runs.execute import Quiet, resolve


@dataclass(frozen=True)
class Method:
    """One line of a study: a name, where it distils, and what it changes in the recipe."""

    name: str
    where: str = "-"
    kind: Literal["train", "distill"] = "distill"
    overrides: Mapping[str, Any] = field(default_factory=dict)


ALONE = Method("none", kind="train")


def run_study(
    recipe: Recipe,
    methods: Sequence[Method],
    seeds: Sequence[int],
    folder: Path,
    *,
    force: bool = False,
    watch: Callable[[str], Quiet],
) -> list[tuple[Method, list[Run]]]:
    """Run every method with every seed under `folder/<method>-s<seed>/`.

    A finished run with the same recipe and teacher is not repeated, an interrupted one goes on where it stopped.

    Args:
        force: start runs again that have another recipe or teacher.
        watch: gives what watches a run, by the run's name.

    Raises:
        RunError: a run there has another recipe or teacher, and `force` is not given.
    """
    done = []
    for method in methods:
        runs = []
        for seed in seeds:
            name = f"{method.name}-s{seed}"
            changed = resolve(recipe, seed, {**method.overrides, "name": name})
            runs.append(_one(method, changed, folder / name, force, watch(name)))
        done.append((method, runs))
    return done


def _one(method: Method, recipe: Recipe, path: Path, force: bool, progress: Quiet) -> Run:
    call = train if method.kind == "train" else distill
    if not (path / "recipe.yaml").is_file():
        return call(recipe, out=path, progress=progress)
    same = recipe_digest(Run(path).recipe) == recipe_digest(recipe)
    if same and (path / "record.json").is_file():
        record = Run.load(path).record
        same = method.kind == "train" or _same_teacher(record, recipe)
        if same and record.status == "done":
            return Run.load(path)
    if not same and not force:
        raise RunError(f"{path}: a run with another recipe or teacher; use --force to start it again, or another --out")
    return call(recipe, out=path, resume=same, force=not same, progress=progress)


def _same_teacher(record: RunRecord, recipe: Recipe) -> bool:
    """The recipe names where the teacher is; only the digest of its weights tells whether it is the same."""
    scores = record.best or record.final
    if record.teacher is None:
        return False
    if scores is None:  # stopped before its first evaluation: the resume compares the teachers
        return True
    outputs = 1 if recipe.task.binary else len(scores.iou)
    return record.teacher.sha256 == weights_digest(load_teacher(recipe, outputs, []))


def paired_gain(values: Sequence[float], baseline: Sequence[float], samples: int = 10_000) -> Gain:
    """Mean difference, paired by seed, with a 95% percentile bootstrap interval over the seeds.

    With a few seeds such an interval is narrow for its confidence: it describes the spread seen, no more.
    """
    differences = torch.tensor([a - b for a, b in zip(values, baseline, strict=True)], dtype=torch.float64)
    generator = torch.Generator().manual_seed(keyed_seed(0, "bootstrap"))
    picks = torch.randint(len(differences), (samples, len(differences)), generator=generator)
    means = differences[picks].mean(dim=1)
    low, high = torch.quantile(means, torch.tensor([0.025, 0.975], dtype=torch.float64)).tolist()
    return Gain(mean=float(differences.mean()), low=low, high=high)


def _spread(values: Sequence[float]) -> StudyScores:
    sd = statistics.stdev(values) if len(values) > 1 else 0.0
    return StudyScores(miou=list(values), mean=statistics.fmean(values), sd=sd)


def _mean_iou(scores: Sequence[Scores]) -> dict[str, float | None]:
    found: dict[str, float | None] = {}
    for name in scores[0].iou:
        values = [value for one in scores if (value := one.iou[name]) is not None]
        found[name] = statistics.fmean(values) if values else None
    return found


def _scores(records: Sequence[RunRecord]) -> tuple[list[Scores], list[BestScores]]:
    final = [record.final for record in records if record.final is not None]
    best = [record.best for record in records if record.best is not None]
    if len(final) < len(records) or len(best) < len(records):
        raise RunError("a study compares finished runs, and one of these was never evaluated")
    return final, best


def summarise(method: Method, records: Sequence[RunRecord], baseline: Sequence[RunRecord] | None) -> StudyMethod:
    """One method's line of `study.json` from the records of its runs (one per seed)."""
    final, best = _scores(records)
    extra = {name: _spread([record.extra_splits[name].miou for record in records]) for name in records[0].extra_splits}
    gain = None
    if baseline is not None:
        seeds = {record.seed: scores.miou for record, scores in zip(baseline, _scores(baseline)[0], strict=True)}
        missing = [record.seed for record in records if record.seed not in seeds]
        if missing:
            raise RunError(f"method {method.name!r}: seeds {missing} have no run of the student alone to compare with")
        gain = paired_gain([one.miou for one in final], [seeds[record.seed] for record in records])
    times = [record.cost.seconds_per_step for record in records if record.cost.seconds_per_step is not None]
    peaks = [record.cost.peak_memory_bytes for record in records if record.cost.peak_memory_bytes is not None]
    return StudyMethod(
        name=method.name,
        where=method.where,
        seeds=[record.seed for record in records],
        final=_spread([one.miou for one in final]),
        best=_spread([one.miou for one in best]),
        gain=gain,
        iou=_mean_iou(final),
        extra_splits=extra,
        cost=StudyCost(
            seconds_per_step=statistics.median(times) if times else None,
            peak_memory_bytes=max(peaks, default=None),
            extra_parameters=max(record.cost.extra_parameters for record in records),
            total_seconds=statistics.fmean(record.cost.total_seconds for record in records),
        ),
        student=records[0].student,
    )


def study_record(
    name: str,
    runs: Sequence[tuple[Method, list[Run]]],
    *,
    data: dict[str, Any],
    teacher: RunRecord,
    command: str,
) -> StudyRecord:
    """`study.json` from finished runs; gains are against the method named `none`, on the final weights."""
    records = {method.name: [run.record for run in made] for method, made in runs}
    alone = records.get("none")
    lines = [summarise(method, records[method.name], None if method.name == "none" else alone) for method, _ in runs]
    _, (best,) = _scores([teacher])
    summary = {
        "miou": best.miou,
        "iou": best.iou,
        "extra_splits": {split: scores.miou for split, scores in teacher.extra_splits.items()},
        "parameters": teacher.student.parameters if teacher.student else None,
        "flops": teacher.student.flops if teacher.student else None,
        "steps": teacher.steps,
        "total_seconds": teacher.cost.total_seconds,
    }
    return StudyRecord(name=name, data=data, teacher=summary, methods=lines, command=command, environment=environment())


def write_study(folder: Path, record: StudyRecord) -> Path:
    """Write `study.json`."""
    path = folder / "study.json"
    files.write_json(path, dump(record))
    return path


def study_rows(record: StudyRecord) -> list[dict[str, Any]]:
    """The study as a table: accuracy in points of mIoU (percent), mean and standard deviation over the seeds."""
    rows: list[dict[str, Any]] = [
        {
            "method": "teacher",
            "where": "-",
            "mIoU": f"{100 * record.teacher['miou']:.1f}",
            "gain": "-",
            "n": 1,
            "parameters": _millions(record.teacher["parameters"]),
            "GFLOPs": _giga(record.teacher["flops"]),
            "seconds": round(record.teacher["total_seconds"]),
        }
    ]
    for line in record.methods:
        gain = "-" if line.gain is None else f"{100 * line.gain.mean:+.1f}"
        if line.gain is not None and len(line.seeds) > 1:
            gain += f" [{100 * line.gain.low:+.1f}, {100 * line.gain.high:+.1f}]"
        several = f" ± {100 * line.final.sd:.1f}" if len(line.seeds) > 1 else ""
        rows.append(
            {
                "method": "student alone" if line.name == "none" else f"student + {line.name}",
                "where": line.where,
                "mIoU": f"{100 * line.final.mean:.1f}{several}",
                "gain": gain,
                "n": len(line.seeds),
                "parameters": _millions(line.student.parameters if line.student else None),
                "GFLOPs": _giga(line.student.flops if line.student else None),
                "seconds": None if line.cost.total_seconds is None else round(line.cost.total_seconds),
            }
        )
    return rows


def _millions(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e6:.2f} M"


def _giga(value: int | None) -> str:
    return "-" if value is None else f"{value / 1e9:.2f}"


def class_rows(record: StudyRecord) -> list[dict[str, Any]]:
    """IoU per class in points: the teacher, then each method's mean over its seeds (final weights)."""

    def points(value: float | None) -> float | None:
        return None if value is None else round(100 * value, 1)

    names = list(record.teacher["iou"])
    return [
        {
            "class": name,
            "teacher": points(record.teacher["iou"].get(name)),
            **{line.name: points(line.iou.get(name)) for line in record.methods},
        }
        for name in names
    ]
