"""The page of several runs side by side: what differs between them, and whether their scores may be compared."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from markupsafe import Markup

from densekd.records import RunRecord
from densekd.report.charts import grid
from densekd.report.checks import notices_body
from densekd.report.classes import compared_classes
from densekd.report.curves import evaluation_charts, loss_charts
from densekd.report.headline import Headline, size_words
from densekd.report.kept import KeptRun
from densekd.report.looks import study_sections
from densekd.report.page import Page, part
from densekd.report.section import Section
from densekd.report.tables import Cell, Column, Table, text
from densekd.report.words import NONE, amount, counted, less, points, seconds, signed, size


def runs_page(runs: Mapping[str, KeptRun], folder: Path) -> Page:
    """Several runs side by side.

    Args:
        runs: by the name that the page gives them; two or more.
        folder: where they all are, or nearest to it.
    """
    barriers = incomparable(runs)
    records = {name: run.record for name, run in runs.items()}
    sections = [
        Section("comparable", "Why the scores cannot be compared", part("lines", barriers, "warn")),
        Section("runs", "Runs", part("table", runs_table(records, compared=not barriers), "")),
        Section("settings", "Settings that differ", _settings(runs)),
        Section("classes", "Classes", Markup() if barriers else _classes(records)),
        *study_sections(folder, {name: run.folder for name, run in runs.items()}),
        Section("curves", "Curves", grid([*evaluation_charts(runs), *loss_charts(runs)])),
        Section("notices", "Notices", notices_body(*((name, [*run.missing]) for name, run in runs.items()))),
    ]
    headline = runs_headline(records, barriers)
    facts = [("runs", str(len(runs))), ("scores", "not comparable" if barriers else "comparable")]
    return Page("runs side by side", " · ".join(runs), headline, facts, sections)


def incomparable(runs: Mapping[str, KeptRun]) -> list[str]:
    """Why the scores of these runs do not mean the same, a line each; empty where they do."""
    looked: list[tuple[str, Callable[[KeptRun], Any]]] = [
        ("they were scored on different data sets", _data),
        ("they were scored on different splits", lambda run: run.record.split),
        ("they were scored on different images", _images),
        ("they were scored in different ways", lambda run: run.record.evaluation or "not recorded"),
        ("they have different classes", lambda run: _classes_of(run.record)),
    ]
    told = []
    for words, value in looked:
        found = {name: value(run) for name, run in runs.items()}
        if len({str(one) for one in found.values()}) > 1:
            told.append(f"{words}: {'; '.join(f'{name}: {one}' for name, one in found.items())}")
    return told


def runs_headline(records: Mapping[str, RunRecord], barriers: Sequence[str]) -> Headline:
    """Which of several runs scored highest, and by how much; or that this cannot be said."""
    if barriers:
        return Headline("These runs cannot be compared by their scores.", ("The reasons stand below.",))
    scored = {name: record.final.miou for name, record in records.items() if record.final is not None}
    without = [name for name in records if name not in scored]
    notes = [f"Without any score: {', '.join(without)}."] if without else []
    unfinished = [f"{name} ({record.status})" for name, record in records.items() if record.status != "done"]
    if unfinished:
        notes.append(f"Not finished: {', '.join(unfinished)}; their scores are of the newest evaluation.")
    if len(scored) < 2:
        return Headline("Fewer than two of these runs have a score.", tuple(notes))
    first, second = sorted(scored, key=lambda name: -scored[name])[:2]
    gap = scored[first] - scored[second]
    ahead = f"{points(gap)} above {second} ({points(scored[second])})" if round(1000 * gap) else f"level with {second}"
    sizes = _sizes(records[first], records[second], second)
    notes.append("Single runs say nothing about chance: densekd compare takes several seeds.")
    return Headline(f"{first}: {points(scored[first])} mIoU, {ahead}{sizes}.", tuple(notes))


def _sizes(first: RunRecord, second: RunRecord, name: str) -> str:
    if first.student is None or second.student is None or first.student.parameters == second.student.parameters:
        return ""
    words = size_words(first.student.parameters, second.student.parameters)
    return f"; {words.replace('the teacher', name)}"


def runs_table(records: Mapping[str, RunRecord], *, compared: bool) -> Table:
    """A column per run; differences in mIoU to the first where the scores may be compared."""
    first = next(iter(records.values()))
    rows: list[tuple[str, Callable[[RunRecord], str]]] = [
        ("status", lambda r: r.status),
        ("method", lambda r: r.method),
        ("seed", lambda r: str(r.seed)),
        ("mIoU, final weights", lambda r: points(r.final.miou if r.final else None)),
        (
            "mIoU, best evaluation",
            lambda r: NONE if r.best is None else f"{points(r.best.miou)} (step {r.best.step:,})",
        ),
        ("pixel accuracy", lambda r: points(r.final.pixel_accuracy if r.final else None)),
        (
            "scored on",
            lambda r: NONE if r.final is None else f"{counted(r.final.images, 'image')} of {r.split}{less(r.final)}",
        ),
        ("steps", lambda r: f"{r.steps:,}"),
        ("live parameters", lambda r: amount(r.student.parameters if r.student else None)),
        ("FLOPs of an image", lambda r: amount(r.student.flops if r.student else None)),
        ("a training step", lambda r: seconds(r.cost.seconds_per_step)),
        ("whole run", lambda r: seconds(r.cost.total_seconds)),
        ("peak memory", lambda r: size(r.cost.peak_memory_bytes)),
        ("device", lambda r: r.cost.device),
        ("teacher", lambda r: NONE if r.teacher is None else f"{amount(r.teacher.parameters)} parameters"),
        ("torch", lambda r: r.environment.get("torch", NONE)),
        ("error", lambda r: r.error or NONE),
    ]
    shown = [[Cell(name), *(text(value(record)) for record in records.values())] for name, value in rows]
    if compared and first.final is not None:
        base = first.final.miou
        cells = [_difference(record, base) for record in list(records.values())[1:]]
        shown.insert(4, [Cell("difference to the first"), Cell(NONE), *cells])
    return Table("The runs", [Column("what"), *(Column(name, True) for name in records)], shown, sortable=False)


def _difference(record: RunRecord, base: float) -> Cell:
    if record.final is None:
        return Cell(NONE)
    told = signed(record.final.miou - base)
    return Cell(told, tone="" if told == "0.0" else "up" if record.final.miou > base else "down")


def differing(recipes: Sequence[Mapping[str, Any]]) -> dict[str, list[Any]]:
    """Keys of recipes, dotted, whose values differ, with the value of each; None where a recipe has no such key."""
    flat = [_flat(recipe) for recipe in recipes]
    keys = list(dict.fromkeys(key for one in flat for key in one))
    found = {key: [one.get(key) for one in flat] for key in keys}
    return {key: values for key, values in found.items() if any(value != values[0] for value in values)}


def _flat(value: Any, prefix: str = "") -> dict[str, Any]:
    if isinstance(value, list) and any(isinstance(entry, dict) for entry in value):
        value = {str(place): entry for place, entry in enumerate(value)}
    if isinstance(value, dict) and value:
        return {key: inner for name, sub in value.items() for key, inner in _flat(sub, f"{prefix}{name}.").items()}
    return {prefix.removesuffix("."): value}


def _settings(runs: Mapping[str, KeptRun]) -> Markup:
    if not all(run.recipe for run in runs.values()):
        return Markup('<p class="soft">A run without recipe.yaml cannot be compared by its settings.</p>')
    found = differing([run.recipe for run in runs.values()])
    if not found:
        return Markup('<p class="soft">None: the recipes are equal.</p>')
    rows = [[Cell(key), *(text(NONE if value is None else value) for value in values)] for key, values in found.items()]
    table = Table("Keys of the recipes whose values differ", [Column("key"), *map(Column, runs)], rows, sortable=False)
    return part("table", table, "")


def _classes(records: Mapping[str, RunRecord]) -> Markup:
    scored = {name: record.final.iou for name, record in records.items() if record.final is not None}
    if not scored:
        return Markup()
    return part("table", compared_classes(list(scored), list(scored.values())), "")


def _data(run: KeptRun) -> str:
    data = run.recipe.get("data")
    return str(data.get("name", NONE)) if isinstance(data, dict) else NONE


def _images(run: KeptRun) -> str:
    listed = run.record.images.get(run.record.split)
    return "not recorded" if listed is None else f"{listed.count} (sha256 {listed.sha256[:12]})"


def _classes_of(record: RunRecord) -> str:
    return NONE if record.final is None else ", ".join(record.final.iou)
