"""`list`: what there is — models, methods, data sets, recipes, published results, runs, the schema of a recipe."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densekd.cli.guard import complain, guarded
from densekd.cli.recipe_rows import published_rows, recipe_rows
from densekd.cli.show import table
from densekd.cli.training import Json

if TYPE_CHECKING:
    from pydantic import BaseModel

_THINGS = ("models", "methods", "data", "recipes", "published", "runs", "schema")
_SCHEMAS = ("recipe", "record", "study", "bench", "confusion")


@guarded
def list_things(
    what: Annotated[str, typer.Argument(help="models, methods, data, recipes, published, runs or schema")],
    folder: Annotated[Path, typer.Option("--folder", help="runs: where to look.")] = Path("runs"),
    of: Annotated[str, typer.Option("--of", help="schema: recipe, record, study, bench or confusion.")] = "recipe",
    as_json: Json = False,
) -> None:
    """List models, methods, data sets, recipes, published results or runs, or print the JSON schema of a record."""
    from densekd.errors import ArgumentError, nearest

    if what not in _THINGS:
        raise ArgumentError(f"list {what!r}: unknown{nearest(what, _THINGS)}; one of {', '.join(_THINGS)}")
    if what == "schema":
        if of not in _SCHEMAS:
            raise ArgumentError(f"--of {of!r}: unknown{nearest(of, _SCHEMAS)}; one of {', '.join(_SCHEMAS)}")
        typer.echo(json.dumps(_schema(of), indent=2))
        return
    made: dict[str, Callable[[], list[dict[str, Any]]]] = {
        "models": _models,
        "methods": _methods,
        "data": _data,
        "recipes": lambda: recipe_rows(as_json=as_json),
        "published": lambda: published_rows(as_json=as_json),
        "runs": lambda: _runs(folder),
    }
    rows = made[what]()
    table(rows, as_json=as_json)


def _schema(of: str) -> dict[str, Any]:
    from densekd import records
    from densekd.config import recipe_schema

    kinds: dict[str, type[BaseModel]] = {
        "record": records.RunRecord,
        "study": records.StudyRecord,
        "bench": records.BenchRecord,
        "confusion": records.ConfusionRecord,
    }
    return recipe_schema() if of == "recipe" else kinds[of].model_json_schema(by_alias=True)


def _models() -> list[dict[str, Any]]:
    from densekd.models.catalog import how_counted, named_rows, rows

    complain(how_counted())
    return [*named_rows(), *rows()]


def _methods() -> list[dict[str, Any]]:
    from densekd.losses.catalog import METHODS

    found = []
    for name, loss in METHODS.items():
        first = (loss.__doc__ or "").strip().splitlines()[0]
        needs = ", ".join(sorted(loss.needs)) or "-"
        found.append({"method": name, "class": loss.__name__, "needs": needs, "what": first})
    return [*found, {"method": "none", "class": "-", "needs": "labels", "what": "The student alone: `densekd train`."}]


def _data() -> list[dict[str, Any]]:
    from densekd.data.benchmarks.catalog import BENCHMARKS
    from densekd.data.sources import source_of

    found = []
    for name, one in BENCHMARKS.items():
        source = source_of(name)
        splits = [
            *(f"{split} {count}" for split, count in one.counts.items()),
            *(f"{s} (no labels)" for s in one.images),
        ]
        row = {"data": name, "what": one.title, "classes": len(one.classes), "splits": ", ".join(splits)}
        found.append({**row, "terms": source.terms, "home": source.home})
    return found


def _runs(folder: Path) -> list[dict[str, Any]]:
    found, refused = _holding(folder, "record.json")
    rows = [_run_row(path) for path in found]
    rows += [{"run": str(path), "status": f"unreadable: {reason}"} for path, reason in refused.items()]
    if not rows:
        complain(f"no runs under {folder}" if folder.is_dir() else f"no runs: {folder} is no folder")
    return sorted(rows, key=lambda row: Path(row["run"]))


def _holding(folder: Path, name: str) -> tuple[list[Path], dict[Path, str]]:
    """Folders at and under `folder` that hold a file of that name, and those that cannot be looked into, with why."""
    refused: dict[Path, str] = {}

    def note(error: OSError) -> None:
        refused[Path(error.filename)] = error.strerror or str(error)

    walked = os.walk(folder, onerror=note) if os.path.lexists(folder) else ()
    return [Path(path) for path, _, names in walked if name in names], refused


def _run_row(path: Path) -> dict[str, Any]:
    from densekd.errors import DensekdError
    from densekd.runs import Run

    try:
        record = Run(path).record
    except (DensekdError, OSError) as error:
        return {"run": str(path), "status": f"unreadable: {error}"}
    best, final = (None if s is None else round(100 * s.miou, 2) for s in (record.best, record.final))
    return {
        "run": str(path),
        "status": record.status,
        "method": record.method,
        "seed": record.seed,
        "steps": record.steps,
        "best mIoU": best,
        "final mIoU": final,
    }
