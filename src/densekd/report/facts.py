"""Recipe, cost, networks, environment, stored maps and the fast teacher of a run, as tables of names and values."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import yaml
from markupsafe import Markup

from densekd.records import STUDENT_ALONE, CacheRecord, NetworkCost, RunRecord
from densekd.report.kept import KeptRun
from densekd.report.page import part
from densekd.report.tables import Cell, Column, Table, figure, pairs, text
from densekd.report.words import NONE, amount, counted, number, seconds, share, size, times


def network_table(record: RunRecord) -> Table | None:
    """Live parameters and FLOPs of student and teacher beside each other; None where neither is known."""
    networks = [(name, cost) for name, cost in (("student", record.student), ("teacher", record.teacher)) if cost]
    return _networks(networks) if networks else None


def _networks(networks: list[tuple[str, NetworkCost]]) -> Table:
    columns = (
        Column("network"),
        Column("live parameters", True),
        Column("dead", True, "parameters that take no part in the forward pass"),
        Column("FLOPs of an image", True),
    )
    rows = [
        (
            Cell(name),
            Cell(f"{cost.parameters:,}", key=cost.parameters),
            Cell(f"{cost.dead_parameters:,}", key=cost.dead_parameters),
            Cell(amount(cost.flops), key=cost.flops),
        )
        for name, cost in networks
    ]
    return Table("Networks", columns, rows, sortable=False)


def cost_table(record: RunRecord) -> Table:
    """What a run cost."""
    cost = record.cost
    return pairs(
        "Cost of the run",
        [
            ("a training step, median", seconds(cost.seconds_per_step)),
            ("of it the teacher", seconds(cost.teacher_seconds_per_step)),
            ("share of the time spent waiting for images", share(cost.data_wait)),
            ("whole run", seconds(cost.total_seconds)),
            ("peak memory", size(cost.peak_memory_bytes)),
            ("parameters trained beside the student", f"{cost.extra_parameters:,}"),
            ("device", cost.device),
            ("processes", record.processes if record.processes > 1 else None),
        ],
    )


def environment_table(environment: Mapping[str, str]) -> Table:
    """Versions and machine."""
    return pairs("Environment", list(environment.items()))


def recipe_body(run: KeptRun) -> Markup:
    """The resolved recipe: terms as a table, the whole as YAML."""
    if not run.recipe:
        return Markup('<p class="soft">recipe.yaml is not there.</p>')
    terms = run.recipe.get("terms") or []
    body = part("table", terms_table({"": terms}), "") if terms and run.record.method != STUDENT_ALONE else Markup()
    whole = yaml.safe_dump(run.recipe, sort_keys=False, allow_unicode=True, width=100)
    return body + Markup(
        "<details><summary>the whole recipe: running it again gives the same run</summary><pre>{}</pre></details>"
        '<p class="soft">sha256 of the resolved recipe: {}</p>'
    ).format(whole, run.record.recipe_sha256 or NONE)


def terms_table(found: Mapping[str, list[Any]]) -> Table:
    """What was distilled, as in a recipe: terms by the name of their method; no column for it where that is empty."""
    named = any(found)
    columns = (
        *([Column("label")] if named else []),
        Column("method"),
        Column("student"),
        Column("teacher"),
        Column("weight", True),
        Column("options"),
        Column("schedule"),
    )
    rows = [([Cell(label)] if named else []) + _term_cells(term) for label, terms in found.items() for term in terms]
    return Table("Terms", columns, rows, sortable=False)


def _term_cells(term: Mapping[str, Any]) -> list[Cell]:
    options = ", ".join(f"{key} {_plain(value)}" for key, value in (term.get("options") or {}).items())
    warm = f"warm-up {term['warmup_steps']} steps" if term.get("warmup_steps") else ""
    decay = f"decay {term['decay']}" if term.get("decay") not in (None, "none") else ""
    return [
        Cell(str(term.get("name") or term.get("method"))),
        text(term.get("student")),
        text(term.get("teacher")),
        figure(term.get("weight")),
        text(options),
        text(", ".join(filter(None, (warm, decay)))),
    ]


def cache_table(cache: CacheRecord | None) -> Table | None:
    """The stored maps that were read; None where the teacher ran in every step."""
    if cache is None:
        return None
    taps = ", ".join(f"{name} ({', '.join(map(str, shape))})" for name, shape in cache.taps.items())
    errors = ", ".join(f"{name} {number(error.mean, 2)}" for name, error in cache.errors.items())
    return pairs(
        "Stored maps of the teacher",
        [
            ("folder", cache.folder),
            ("taps (channels, height, width)", taps),
            ("views of each image", f"{cache.views} of {counted(cache.images, 'image')}"),
            ("encoding", cache.encoding),
            ("on disk", f"{size(cache.bytes)}, {times(cache.raw_bytes / cache.bytes)} smaller than 32-bit floats")
            if cache.bytes
            else ("on disk", size(cache.bytes)),
            ("to build them, once", seconds(cache.build_seconds)),
            ("relative error of the softened maps, mean", errors),
            ("key", cache.sha256),
        ],
    )


def engine_table(engine: Mapping[str, Any] | None) -> Table | None:
    """The teacher's fast copy; None where the record has none. What is not named here follows by its key."""
    if not engine:
        return None
    plain, fast = engine.get("seconds_plain"), engine.get("seconds")
    rows: list[tuple[str, object]] = [
        ("number format", f"{engine.get('dtype')}{' by autocast' if engine.get('autocast') else ''}"),
        ("why", engine.get("why")),
        ("a forward pass", f"{seconds(fast)}, plain {seconds(plain)}" if fast and plain else None),
        (
            "same class as the plain teacher",
            share(engine["agreement"]) if engine.get("agreement") is not None else None,
        ),
    ]
    shown = {"dtype", "autocast", "why", "seconds_plain", "seconds", "agreement"}
    rest = [(key.replace("_", " "), _plain(value)) for key, value in engine.items() if key not in shown]
    return pairs("Fast copy of the teacher", [*rows, *rest])


def _plain(value: Any) -> str:
    """Any JSON value on one line; nothing where it is empty."""
    if value is None or value in ("", [], {}, ()):
        return ""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int | float):
        return number(value)
    if isinstance(value, Mapping):
        return "; ".join(f"{key}: {_plain(inner)}" for key, inner in value.items() if _plain(inner))
    if isinstance(value, list | tuple):
        return "; ".join(_plain(inner) for inner in value)
    return str(value)
