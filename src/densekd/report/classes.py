"""IoU per class: with bars, and the difference to another network."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from densekd.records import STUDENT_ALONE, RunRecord, StudyMethod, StudyRecord
from densekd.report.tables import Cell, Column, Table
from densekd.report.words import NONE, points, signed

Ious = Mapping[str, float | None]


def run_classes(record: RunRecord) -> Table | None:
    """A run's classes, final and best weights where these differ; None before the first evaluation."""
    if record.final is None:
        return None
    best = record.best if record.best is not None and record.best.iou != record.final.iou else None
    columns = [Column("class"), Column("IoU", numeric=True, help="points, the newest evaluation")]
    if best is not None:
        columns.append(Column(f"best (step {best.step:,})", numeric=True, help="points, the best evaluation"))
    extra = [(name, scores) for name, scores in record.extra_splits.items() if set(scores.iou) == set(record.final.iou)]
    columns += [Column(name, numeric=True, help="points, final weights") for name, _ in extra]
    rows = []
    for name, value in record.final.iou.items():
        row = [Cell(name), iou_cell(value)]
        row += [] if best is None else [iou_cell(best.iou.get(name), bar=False)]
        rows.append([*row, *(iou_cell(scores.iou.get(name), bar=False) for _, scores in extra)])
    return Table(f"IoU per class on {record.split}, in points", columns, rows)


def study_classes(record: StudyRecord) -> list[Table]:
    """A table for each method: its classes beside the student alone and the teacher; the methods by their gain."""
    alone = next((line for line in record.methods if line.name == STUDENT_ALONE), None)
    distilled = [line for line in record.methods if line.name != STUDENT_ALONE and line.iou]
    distilled.sort(key=lambda line: -(line.gain.mean if line.gain else -1.0))
    return [_method_classes(line, alone, record.teacher.iou) for line in distilled]


def _method_classes(line: StudyMethod, alone: StudyMethod | None, teacher: Ious) -> Table:
    base: Ious = {} if alone is None else alone.iou
    columns = [Column("class"), Column(f"student + {line.name}", True), Column("gain", True, "paired by seed, mean")]
    columns += [Column("student alone", True), *([Column("teacher", True)] if teacher else [])]
    reach = _reach(line.iou_gain.values())
    rows = []
    for name, value in line.iou.items():
        row = [Cell(name), iou_cell(value), delta_cell(line.iou_gain.get(name), reach)]
        row += [iou_cell(base.get(name), bar=False)]
        rows.append([*row, *([iou_cell(teacher.get(name), bar=False)] if teacher else [])])
    return Table(f"{line.name}: IoU per class in points, final weights, mean over the seeds", columns, rows)


def compared_classes(names: Sequence[str], found: Sequence[Ious]) -> Table:
    """Several runs side by side, each after the first with its difference to it."""
    columns = [Column("class"), Column(names[0], True)]
    for name in names[1:]:
        columns += [Column(name, True), Column("difference", True, f"{name} less {names[0]}")]
    differences = [{name: less(one.get(name), found[0].get(name)) for name in found[0]} for one in found[1:]]
    reach = _reach([value for one in differences for value in one.values()])
    rows = []
    for name in found[0]:
        row = [Cell(name), iou_cell(found[0][name])]
        for one, difference in zip(found[1:], differences, strict=True):
            row += [iou_cell(one.get(name), bar=False), delta_cell(difference[name], reach)]
        rows.append(row)
    return Table(f"IoU per class in points, final weights; differences to {names[0]}", columns, rows)


def iou_cell(value: float | None, *, bar: bool = True) -> Cell:
    """An IoU in points, with a bar from 0 to 100."""
    if value is None:
        return Cell(NONE, help="absent from truth and prediction")
    return Cell(points(value), key=value, bar=value if bar else None)


def delta_cell(value: float | None, reach: float) -> Cell:
    """A difference in points, with a bar to the side of its sign; `reach` is the longest one's."""
    if value is None:
        return Cell(NONE)
    told = signed(value)
    tone = "" if told == "0.0" else "up" if value > 0 else "down"
    return Cell(told, key=value, delta=max(-1.0, min(1.0, value / reach)), tone=tone)  # type: ignore[arg-type]


def less(one: float | None, other: float | None) -> float | None:
    """The difference of two numbers that both are there."""
    return None if one is None or other is None else one - other


def _reach(values: object) -> float:
    found = [abs(value) for value in values if value is not None]  # type: ignore[attr-defined]
    return max([0.01, *found])
