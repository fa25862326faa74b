"""A study as tables: for the terminal and as CSV. Accuracies are in points of mIoU (percent), in CSV fractions."""

from __future__ import annotations

import csv
import io
from collections.abc import Mapping, Sequence
from typing import Any

from densekd.records import STUDENT_ALONE, Gain, StudyMethod, StudyRecord, StudyScores


def title_of(name: str) -> str:
    """A method in words."""
    return "student alone" if name == STUDENT_ALONE else f"student + {name}"


def study_rows(record: StudyRecord) -> list[dict[str, Any]]:
    """The comparison: mean and standard deviation over the seeds, gain with its interval, cost, reasons of failures."""
    splits = _splits(record)
    rows: list[dict[str, Any]] = [
        {
            "method": "teacher",
            "where": "-",
            "n": 1,
            "mIoU": _points(record.teacher.miou),
            "best": "-",
            "gain": "-",
            **{split: _points(record.teacher.extra_splits.get(split)) for split in splits},
            "ms/step": None,
            "peak MB": None,
            "extra parameters": None,
        }
    ]
    for line in record.methods:
        rows.append(
            {
                "method": title_of(line.name),
                "where": line.where,
                "n": len(line.seeds),
                "mIoU": _spread(line.final) if line.final is not None else "failed",
                "best": _spread(line.best),
                "gain": _gain(line.gain),
                **{split: _spread(line.extra_splits.get(split)) for split in splits},
                "ms/step": _scaled(line.cost.seconds_per_step, 1000),
                "peak MB": _scaled(line.cost.peak_memory_bytes, 1e-6),
                "extra parameters": line.cost.extra_parameters,
            }
        )
    if any(line.steps != record.methods[0].steps for line in record.methods):
        for row, steps in zip(rows, [None, *(line.steps for line in record.methods)], strict=True):
            row["steps"] = steps
    if any(line.failed for line in record.methods):
        for row, reason in zip(rows, ["", *(_failures(line) for line in record.methods)], strict=True):
            row["failed"] = reason
    return rows


def size_rows(record: StudyRecord) -> list[dict[str, Any]]:
    """Accuracy beside size: what a student is worth against its teacher."""
    rows: list[dict[str, Any]] = [
        {
            "method": "teacher",
            "mIoU": _points(record.teacher.miou),
            "gain": "-",
            "n": 1,
            "parameters": _unit(record.teacher.parameters, 1e6, " M"),
            "GFLOPs": _unit(record.teacher.flops, 1e9),
            "seconds": _scaled(record.teacher.total_seconds, 1),
        }
    ]
    for line in record.methods:
        student = line.student
        rows.append(
            {
                "method": title_of(line.name),
                "mIoU": _spread(line.final),
                "gain": _gain(line.gain),
                "n": len(line.seeds),
                "parameters": _unit(student.parameters if student else None, 1e6, " M"),
                "GFLOPs": _unit(student.flops if student else None, 1e9),
                "seconds": _scaled(line.cost.total_seconds, 1),
            }
        )
    return rows


def class_rows(record: StudyRecord) -> list[dict[str, Any]]:
    """IoU per class in points: the teacher, then each method's mean over its seeds (final weights)."""

    def points(value: float | None) -> float | None:
        return None if value is None else round(100 * value, 1)

    return [
        {
            "class": name,
            "teacher": points(record.teacher.iou.get(name)),
            **{line.name: points(line.iou.get(name)) for line in record.methods},
        }
        for name in class_names(record)
    ]


def class_names(record: StudyRecord) -> list[str]:
    """The classes, in the order of their ids."""
    return list(dict.fromkeys(name for iou in (record.teacher.iou, *(m.iou for m in record.methods)) for name in iou))


def table_csv(record: StudyRecord) -> str:
    """A row per method: every number of `study.json` but those per class; fractions, seconds, bytes."""
    return _csv([_flat(line, _splits(record)) for line in record.methods])


def _splits(record: StudyRecord) -> list[str]:
    """The splits beside `val`."""
    return list(dict.fromkeys(name for line in record.methods for name in line.extra_splits))


def _flat(line: StudyMethod, splits: Sequence[str]) -> dict[str, Any]:
    row: dict[str, Any] = {
        "method": line.name,
        "where": line.where,
        "n": len(line.seeds),
        "steps": line.steps,
        **_numbers("final", line.final),
        **_numbers("best", line.best),
        **_interval("gain", line.gain),
    }
    for split in splits:
        row |= _numbers(split, line.extra_splits.get(split))
        row |= _interval(f"{split}_gain", line.extra_gains.get(split))
    row |= {
        "seconds_per_step": line.cost.seconds_per_step,
        "peak_memory_bytes": line.cost.peak_memory_bytes,
        "extra_parameters": line.cost.extra_parameters,
        "total_seconds": line.cost.total_seconds,
        "failed": len(line.failed),
        "reasons": _failures(line),
    }
    return row


def classes_csv(record: StudyRecord) -> str:
    """A row per class and method: IoU (mean over the seeds) and its gain over the student alone; fractions."""
    rows: list[dict[str, Any]] = []
    for name in class_names(record):
        rows.append({"class": name, "method": "teacher", "iou": record.teacher.iou.get(name), "gain": None})
        for line in record.methods:
            found = {"iou": line.iou.get(name), "gain": line.iou_gain.get(name)}
            rows.append({"class": name, "method": line.name, **found})
    return _csv(rows)


def _csv(rows: Sequence[Mapping[str, Any]]) -> str:
    stream = io.StringIO()
    writer = csv.DictWriter(stream, list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return stream.getvalue()


def _numbers(name: str, scores: StudyScores | None) -> dict[str, float | None]:
    return {f"{name}_mean": scores.mean if scores else None, f"{name}_sd": scores.sd if scores else None}


def _interval(name: str, gain: Gain | None) -> dict[str, float | None]:
    return {f"{name}_{end}": None if gain is None else getattr(gain, end) for end in ("mean", "low", "high")}


def _failures(line: StudyMethod) -> str:
    return "; ".join(f"seed {failure.seed}: {failure.reason}" for failure in line.failed)


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _spread(scores: StudyScores | None) -> str:
    if scores is None:
        return "-"
    return _points(scores.mean) + (f" ± {100 * scores.sd:.1f}" if len(scores.miou) > 1 else "")


def _gain(gain: Gain | None) -> str:
    if gain is None:
        return "-"
    several = gain.n != 1 and (gain.low, gain.high) != (gain.mean, gain.mean)
    return f"{100 * gain.mean:+.1f}" + (f" [{100 * gain.low:+.1f}, {100 * gain.high:+.1f}]" if several else "")


def _scaled(value: float | None, factor: float) -> int | None:
    return None if value is None else round(value * factor)


def _unit(value: float | None, unit: float, name: str = "") -> str:
    return "-" if value is None else f"{value / unit:.2f}{name}"
