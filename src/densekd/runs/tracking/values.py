"""The names under which trackers get what `log.csv` and `record.json` hold."""

from __future__ import annotations

from collections.abc import Mapping

from densekd.pictures import one_line
from densekd.records import RunRecord, Scores


def of_row(row: Mapping[str, str]) -> dict[str, float]:
    """A row of `log.csv`: `train/<column>`; an empty place, such as a gradient norm that was not taken, is left out."""
    return {f"train/{name}": float(text) for name, text in row.items() if name != "step" and text}


def of_scores(prefix: str, scores: Scores, *, by_class: bool = True) -> dict[str, float]:
    """Scores under a prefix; a class without an IoU is left out."""
    found = {f"{prefix}/miou": scores.miou, f"{prefix}/pixel_accuracy": scores.pixel_accuracy}
    iou = scores.iou if by_class else {}
    known = {one_line(name): value for name, value in iou.items() if value is not None}
    return {**found, **{f"{prefix}/iou/{name}": value for name, value in known.items()}}


def of_record(record: RunRecord) -> dict[str, float]:
    """What a run ends with: `final/...`, `best/...` with its step, and every further split under its name."""
    found: dict[str, float] = {}
    if record.final is not None:
        found |= of_scores("final", record.final, by_class=False)
    if record.best is not None:
        found |= {**of_scores("best", record.best, by_class=False), "best/step": float(record.best.step)}
    for name, scores in record.extra_splits.items():
        found |= of_scores(f"extra/{name}", scores)
    return found
