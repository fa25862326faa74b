"""The page of a run."""

from __future__ import annotations

from markupsafe import Markup

from densekd.records import STUDENT_ALONE, RunRecord
from densekd.report.charts import grid
from densekd.report.checks import notices_body, preflight_body
from densekd.report.classes import run_classes
from densekd.report.confusion import confusion_body
from densekd.report.curves import run_charts
from densekd.report.facts import (
    cache_table,
    cost_table,
    engine_table,
    environment_table,
    network_table,
    recipe_body,
)
from densekd.report.headline import run_headline
from densekd.report.kept import KeptRun
from densekd.report.looks import run_sections
from densekd.report.page import Page, part
from densekd.report.section import Section
from densekd.report.tables import Table
from densekd.report.words import amount, less, points, seconds, size


def run_page(run: KeptRun) -> Page:
    """Everything that a run has kept, the result first."""
    record = run.record
    sections = [
        Section("classes", "Classes", _tables(run_classes(record))),
        *run_sections(run.folder),
        Section("curves", "Curves", grid(run_charts(run))),
        Section("confusion", "Confusion", confusion_body(run.confusion) if run.confusion else Markup()),
        Section("preflight", "Pre-flight", preflight_body(record.preflight)),
        Section("teacher", "The teacher's maps", _teacher(record)),
        Section("cost", "Cost and networks", _tables(network_table(record), cost_table(record))),
        Section("recipe", "Recipe", recipe_body(run)),
        Section("environment", "Environment", _tables(environment_table(record.environment))),
        Section(
            "notices", "Notices", notices_body(("What the run said", record.warnings), ("Missing", [*run.missing]))
        ),
    ]
    kind = "a network trained alone" if record.method == STUDENT_ALONE else "a distillation"
    return Page(kind, run.name, run_headline(run), _facts(record), sections, _alert(record))


def _alert(record: RunRecord) -> str:
    if record.status == "done":
        return ""
    return f"{record.status}: {record.error}" if record.error else f"{record.status}: this run is not finished"


def _facts(record: RunRecord) -> list[tuple[str, str]]:
    facts = [("status", record.status), ("method", record.method), ("seed", str(record.seed))]
    if record.final is not None:
        facts += [("mIoU", points(record.final.miou)), ("pixel accuracy", points(record.final.pixel_accuracy))]
        facts += [("images", f"{record.final.images:,} of {record.split}{less(record.final)}")]
    facts += [("steps", f"{record.steps:,} ({record.epochs:.3g} epochs)")]
    if record.student is not None:
        facts += [("live parameters", amount(record.student.parameters))]
    cost = record.cost
    facts += [("a step", seconds(cost.seconds_per_step)), ("whole run", seconds(cost.total_seconds))]
    return [*facts, ("peak memory", size(cost.peak_memory_bytes))]


def _teacher(record: RunRecord) -> Markup:
    engine = None if record.teacher is None else record.teacher.engine
    return _tables(engine_table(engine), cache_table(record.cache))


def _tables(*tables: Table | None) -> Markup:
    return Markup().join(part("table", table, "") for table in tables if table is not None and table.rows)
