"""The page of a study: methods over seeds on one student."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import yaml
from markupsafe import Markup

from densekd.records import STUDENT_ALONE, Gain, StudyMethod, StudyRecord, StudyScores, StudyTeacher, run_name
from densekd.report.charts import Chart, grid
from densekd.report.checks import notices_body
from densekd.report.classes import study_classes
from densekd.report.cost import cost_chart, gain_chart
from densekd.report.curves import evaluation_charts, loss_charts
from densekd.report.facts import cache_table, environment_table, terms_table
from densekd.report.headline import gap_closed, paired, study_headline
from densekd.report.kept import KeptRun, read_run, runs_of
from densekd.report.looks import study_sections
from densekd.report.page import Page, part
from densekd.report.section import Section
from densekd.report.tables import Cell, Column, Table, pairs, text
from densekd.report.words import MINUS, NONE, amount, counted, points, seconds, signed, size

_SHOWN = 3
"""Methods whose classes are shown at once; those of the others unfold."""


def study_page(folder: Path, record: StudyRecord) -> Page:
    """Everything that a study says, the result first."""
    runs = runs_of(folder, record)
    sections = [
        Section("methods", "Methods", part("table", methods_table(record), "") + _failures(record)),
        Section("gains", "Gains over the student alone", _gains(record)),
        Section("classes", "Classes", _classes(record)),
        *study_sections(folder, runs),
        Section("cost", "Cost against accuracy", _drawn(cost_chart(record))),
        Section("curves", "Curves", _curves(record, runs)),
        Section("setting", "Setting", _setting(record)),
        Section("environment", "Environment", part("table", environment_table(record.environment), "")),
        Section("notices", "Notices", _notices(record, runs)),
    ]
    seeds = max((len(line.seeds) for line in record.methods), default=0)
    facts = [
        ("methods", str(len(record.methods))),
        ("seeds", str(seeds)),
        ("data", str(record.data.get("name", NONE))),
        ("teacher", f"{points(record.teacher.miou)} mIoU"),
        ("teacher's parameters", amount(record.teacher.parameters)),
        ("student's parameters", _student_parameters(record)),
        ("budget", record.plan.budget if record.plan else NONE),
    ]
    return Page("a study", record.name, study_headline(record), facts, sections)


def methods_table(record: StudyRecord) -> Table:
    """A row per method, the teacher first; accuracies in points."""
    splits = list(dict.fromkeys(name for line in record.methods for name in line.extra_splits))
    columns = [
        Column("method"),
        Column("mIoU", True, "final weights: mean and standard deviation over the seeds"),
        Column("gain", True, "over the student alone, paired by seed"),
        Column("95% interval", help="bootstrap, of the mean gain"),
        Column("gap closed", True, "gain over what the teacher is better than the student alone"),
        *(Column(split, True, "mIoU, final weights") for split in splits),
        Column("a step", True),
        Column("peak memory", True),
        Column("seeds", True),
        Column("steps", True),
        Column("distilled"),
        Column("best", True, "the best evaluation of each run, which flatters"),
        Column("extra parameters", True, "trained beside the student"),
    ]
    alone = next((line for line in record.methods if line.name == STUDENT_ALONE), None)
    rows = [_teacher_row(record.teacher, splits)]
    rows += [_method_row(line, alone, record.teacher, splits) for line in record.methods]
    return Table("mIoU on val in points; the student with each method", columns, rows)


def _teacher_row(teacher: StudyTeacher, splits: list[str]) -> list[Cell]:
    empty = Cell(NONE)
    further = [_scored(teacher.extra_splits.get(split)) for split in splits]
    return [Cell("teacher"), _scored(teacher.miou), *[empty] * 3, *further, *[empty] * 7]


def _method_row(line: StudyMethod, alone: StudyMethod | None, teacher: StudyTeacher, splits: list[str]) -> list[Cell]:
    cost = line.cost
    return [
        Cell("student alone" if line.name == STUDENT_ALONE else line.name),
        Cell("failed", tone="bad") if line.final is None else _spread(line.final),
        _gain(line.gain),
        Cell(_interval(line.gain)),
        _closed(None if alone is None or line.name == STUDENT_ALONE else gap_closed(line, alone, teacher)),
        *(_spread(line.extra_splits.get(split)) for split in splits),
        Cell(seconds(cost.seconds_per_step), key=cost.seconds_per_step),
        Cell(size(cost.peak_memory_bytes), key=cost.peak_memory_bytes),
        Cell(str(len(line.seeds)), key=len(line.seeds)),
        Cell(NONE if line.steps is None else f"{line.steps:,}", key=line.steps),
        text(NONE if line.where == "-" else line.where),
        _spread(line.best),
        Cell(f"{cost.extra_parameters:,}", key=cost.extra_parameters),
    ]


def _closed(value: float | None) -> Cell:
    whole = 0 if value is None else round(100 * value)
    return Cell(NONE if value is None else f"{whole}%".replace("-", MINUS), key=value)


def _scored(value: float | None) -> Cell:
    return Cell(points(value), key=value)


def _spread(scores: StudyScores | None) -> Cell:
    if scores is None:
        return Cell(NONE)
    several = len(scores.miou) > 1
    return Cell(points(scores.mean) + (f" ± {points(scores.sd)}" if several else ""), key=scores.mean)


def _gain(gain: Gain | None) -> Cell:
    if gain is None:
        return Cell(NONE)
    told = signed(gain.mean)
    return Cell(told, key=gain.mean, tone="" if told == "0.0" else "up" if gain.mean > 0 else "down")


def _interval(gain: Gain | None) -> str:
    if gain is None or gain.n == 1:
        return NONE
    return f"{signed(gain.low)} to {signed(gain.high)}"


def _drawn(chart: Chart | None) -> Markup:
    return Markup() if chart is None else part("chart", chart)


def _gains(record: StudyRecord) -> Markup:
    """The drawing, and the gain of every seed."""
    alone = next((line for line in record.methods if line.name == STUDENT_ALONE), None)
    chart = gain_chart(record)
    if alone is None or chart is None:
        return Markup()
    lines = [(line, paired(line, alone)) for line in record.methods if line.name != STUDENT_ALONE]
    seeds = sorted({seed for _, gains in lines for seed in gains})
    columns = [Column("method"), Column("mean", True), *(Column(f"seed {seed}", True) for seed in seeds)]
    rows = [
        [Cell(line.name), _gain(line.gain), *(Cell(signed(gains.get(seed)), key=gains.get(seed)) for seed in seeds)]
        for line, gains in lines
    ]
    return part("chart", chart) + part("table", Table("Gain of every seed, points of mIoU", columns, rows), "")


def _classes(record: StudyRecord) -> Markup:
    tables = [part("table", table, "") for table in study_classes(record)]
    body = Markup().join(tables[:_SHOWN])
    if len(tables) > _SHOWN:
        body += Markup("<details><summary>{} with smaller gains</summary>{}</details>").format(
            counted(len(tables) - _SHOWN, "method"), Markup().join(tables[_SHOWN:])
        )
    return body


def _failures(record: StudyRecord) -> Markup:
    lines = [
        f"{run_name(line.name, failure.seed)} failed: {failure.reason}"
        + (f" (its output: {failure.output})" if failure.output else "")
        for line in record.methods
        for failure in line.failed
    ]
    return part("lines", lines, "warn")


def _curves(record: StudyRecord, runs: dict[str, Path]) -> Markup:
    """The first finished seed of each method: mIoU, and the parts of the loss that all have."""
    names = [run_name(line.name, line.seeds[0]) for line in record.methods if line.seeds]
    found: dict[str, KeptRun] = {name: read_run(runs[name]) for name in names[:8] if name in runs}
    charts = [*evaluation_charts(found), *loss_charts(found)] if found else []
    if not charts:
        return Markup()
    more = "" if len(names) <= 8 else " (of the first eight methods)"
    return Markup('<p class="soft">The first seed of each method{}.</p>').format(more) + grid(charts)


def _setting(record: StudyRecord) -> Markup:
    terms = {line.name: line.terms for line in record.methods if line.terms}
    body = part("table", terms_table(terms), "") if terms else Markup()
    plan = record.plan
    rows: list[tuple[str, Any]] = [("command", record.command), ("teacher's sha256", record.teacher.sha256)]
    if plan is not None:
        rows += [
            ("budget", plan.budget if plan.seconds is None else f"{plan.budget}: {seconds(plan.seconds)} for each run"),
            ("runs at a time", plan.jobs),
            ("threads of a run", plan.threads),
        ]
    body += part("table", pairs("How it was run", rows), "")
    cache = cache_table(record.cache)
    body += part("table", cache, "") if cache is not None else Markup()
    data = yaml.safe_dump(record.data, sort_keys=False, allow_unicode=True, width=100)
    return body + Markup("<details><summary>data</summary><pre>{}</pre></details>").format(data)


def _notices(record: StudyRecord, runs: dict[str, Path]) -> Markup:
    names = [run_name(line.name, seed) for line in record.methods for seed in line.seeds]
    gone = [f"{name}: its folder is not there; what study.json does not hold of it is not shown" for name in names
            if name not in runs]  # fmt: skip
    return notices_body(("What limits the comparison", record.notices), ("Missing", gone))


def _student_parameters(record: StudyRecord) -> str:
    return next((amount(line.student.parameters) for line in record.methods if line.student), NONE)
