"""What the checks before a distillation found: the pre-flight table, the teacher's exam, the forecast."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from markupsafe import Markup

from densekd.report.page import part
from densekd.report.tables import Cell, Column, Table, figure, pairs
from densekd.report.words import points, seconds, size


def preflight_body(found: Mapping[str, Any] | None) -> Markup:
    """The record's `preflight`; empty for a run without one."""
    if not found:
        return Markup()
    report = found.get("terms") or {}
    body = part("lines", list(found.get("problems") or ()), "warn")
    if report.get("terms"):
        body += part("table", _terms(report), "")
    for table in (_teacher(found.get("teacher")), _forecast(found.get("forecast"))):
        body += part("table", table, "") if table is not None else Markup()
    return body


def _terms(report: Mapping[str, Any]) -> Table:
    columns = (
        Column("term"),
        Column("student"),
        Column("teacher"),
        Column("weight", True),
        Column("value", True, "weighted, on the first batch"),
        Column("gradient", True, "norm of its gradient on the student"),
        Column("to the task's", True, "gradient of the term over that of the task"),
        Column("proposed weight", True, "with which both gradients are alike"),
        Column("check"),
    )
    rows = [
        (
            Cell(str(term.get("name"))),
            _tap(term, "student"),
            _tap(term, "teacher"),
            figure(term.get("weight")),
            figure(term.get("value")),
            figure(term.get("gradient_norm"), 3),
            figure(term.get("ratio"), 3),
            figure(term.get("proposed_weight"), 3),
            Cell(term["problem"], tone="bad") if term.get("problem") else Cell("ok", tone="up"),
        )
        for term in report["terms"]
    ]
    task = report.get("task_value")
    caption = "Pre-flight: each term on the run's first batch"
    if task is not None:
        caption += f"; the task's loss {task:.4g}, its gradient {report.get('task_gradient_norm') or 0:.3g}"
    return Table(caption, columns, rows, sortable=False)


def _tap(term: Mapping[str, Any], side: str) -> Cell:
    shape = term.get(f"{side}_shape")
    told = "" if not shape else f" ({' x '.join(map(str, shape))})"
    return Cell(f"{term.get(f'{side}_tap')}{told}")


def _teacher(exam: Mapping[str, Any] | None) -> Table | None:
    if not exam:
        return None
    others = exam.get("normalisations") or {}
    best = max(others.items(), key=lambda pair: pair[1] or 0.0, default=None)
    return pairs(
        "The teacher before the run",
        [
            ("mIoU", f"{points(exam.get('miou'))} on {exam.get('images')} images"),
            ("pixel accuracy", points(exam.get("pixel_accuracy"))),
            ("best with another normalisation", f"{points(best[1])} with {best[0]}" if best else None),
            ("student before training", points(exam["student_miou"]) if exam.get("student_miou") is not None else None),
            ("problems", "; ".join(exam.get("problems") or ())),
            ("notices", "; ".join(exam.get("notices") or ())),
        ],
    )


def _forecast(cost: Mapping[str, Any] | None) -> Table | None:
    if not cost:
        return None
    return pairs(
        "What was expected",
        [
            ("a step", seconds(cost.get("step_seconds"))),
            ("of it the teacher", seconds(cost.get("teacher_seconds"))),
            ("of it loading", seconds(cost.get("data_seconds"))),
            ("the whole run", seconds(cost.get("total_seconds"))),
            ("peak memory", size(cost.get("peak_memory_bytes"))),
            ("on disk", size(cost.get("disk_bytes"))),
        ],
    )


def notices_body(*groups: tuple[str, list[str]]) -> Markup:
    """Lines under headings; groups without a line are left out."""
    shown = [(title, lines) for title, lines in groups if lines]
    return Markup().join(Markup("<h3>{}</h3>{}").format(title, part("lines", lines, "")) for title, lines in shown)
