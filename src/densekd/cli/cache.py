"""`cache`: the stored maps of teachers: built, listed, checked, removed."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densekd.cli.guard import complain, guarded
from densekd.cli.show import Watch, table
from densekd.cli.training import Json, Overrides, QuietFlag, RecipeArgument, loaded, watching
from densekd.launch import require_one_process

if TYPE_CHECKING:
    from densekd.runs.cache.survey import Doomed

app = typer.Typer(help="Stored maps of teachers: build, list, check, remove.")

_ROOT = Path("cache/teacher")
Where = Annotated[
    Path, typer.Argument(help="A set, or the folder of several; default cache/teacher.", metavar="[ROOT|SET]")
]
Yes = Annotated[bool, typer.Option("--yes", "-y", help="Do not ask.")]


@app.callback()
def _root() -> None:
    """Commands of stored maps."""


@app.command("build")
@guarded
def build(
    recipe: RecipeArgument,
    overrides: Overrides = None,
    yes: Yes = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Store the maps that a distillation will read; the same command goes on where it was stopped."""
    from densekd.config import CacheSpec
    from densekd.records import dump
    from densekd.runs import words
    from densekd.runs.cache.command import build_maps, require_cache
    from densekd.runs.ranks import joined
    from densekd.training.signals import Interrupted

    with joined() as ranks:
        resolved = ranks.agreed("the recipe", lambda: loaded(recipe, overrides))
        require_cache(resolved)
        if yes:
            spec: Any = resolved.distill.cache
            assert isinstance(spec, CacheSpec)
            answered = resolved.distill.model_copy(update={"cache": spec.model_copy(update={"ask": False})})
            resolved = resolved.model_copy(update={"distill": answered})
        try:
            with watching(quiet or not ranks.first) as watch:
                record = build_maps(resolved, watch, ranks)
        except (Interrupted, KeyboardInterrupt):
            if ranks.first:
                again = ["densekd", "cache", "build", recipe, *(overrides or []), *(["--yes"] if yes else [])]
                complain(f"go on with: {shlex.join(again)}")
            raise
        if not ranks.first:
            return
    if as_json:
        sys.stdout.write(json.dumps(dump(record), indent=2) + "\n")
        return
    rows = [
        {
            "tap": tap,
            "map": "x".join(map(str, shape)),
            "error of the softened map, mean": f"{100 * record.errors[tap].mean:.3g}%",
            "at most": f"{100 * record.errors[tap].max:.3g}%",
        }
        for tap, shape in record.taps.items()
    ]
    table(rows, title=f"{record.folder}: {record.views} views of {record.images} images, {record.encoding}")
    if not quiet:
        share = f"{words.size(record.bytes)} (as 32-bit floats {words.size(record.raw_bytes)})"
        complain(f"{record.folder}: {share}, built in {words.duration(record.build_seconds)}")


@app.command("info")
@guarded
def info(where: Where = _ROOT, as_json: Json = False) -> None:
    """List sets: of which teacher, data and taps, how large, how old, whole or not."""
    from densekd.runs.cache.survey import look, sets_at

    require_one_process()
    found, damage = sets_at(where)
    facts = [look(one) for one in found]
    if as_json:
        sys.stdout.write(json.dumps([one.as_dict() for one in facts], indent=2) + "\n")
    else:
        table([one.row() for one in facts], title=str(where))
    for line in [*(one.damage for one in facts if one.damage), *damage]:
        complain(f"warning: {line}")
    if not facts and not damage:
        complain(f"{where}: no sets; `densekd cache build RECIPE` makes them")


@app.command("verify")
@guarded
def verify(where: Where = _ROOT, quiet: QuietFlag = False, as_json: Json = False) -> None:
    """Read every byte of every whole set and compare its checksums; exit code 1 where something is damaged."""
    from densekd.runs.cache.survey import look, sets_at
    from densekd.runs.cache.survey import verify as check

    require_one_process()
    found, damage = sets_at(where)
    rows, bad = [], list(damage)
    with Watch() as watch:
        for one in found:
            state = look(one).state

            def count(done: int, total: int, name: str = one.path.name) -> None:
                if not quiet:
                    watch.counting(f"checking {name}", done, total)

            if state in {"unfinished", "building"}:
                rows.append({"set": one.path.name, "state": state, "damaged": 0})
                continue
            problems = check(one, count)
            bad += problems
            rows.append({"set": one.path.name, "state": "damaged" if problems else "sound", "damaged": len(problems)})
    if as_json:
        sys.stdout.write(json.dumps({"sets": rows, "problems": bad}, indent=2) + "\n")
    else:
        table(rows, title=str(where))
    for line in bad:
        complain(f"error: {line}")
    if bad:
        raise SystemExit(1)
    if not rows:
        complain(f"{where}: no sets; nothing was checked")


@app.command("prune")
@guarded
def prune(
    root: Annotated[Path, typer.Argument(help="A set, or the folder of several.", metavar="ROOT|SET")],
    keep: Annotated[
        list[str] | None, typer.Option("--keep", help="A recipe whose maps stay; may be given again.", metavar="RECIPE")
    ] = None,
    unfinished: Annotated[bool, typer.Option("--unfinished", help="Only sets that are not whole.")] = False,
    older_than: Annotated[
        float | None, typer.Option("--older-than", min=0, help="Only sets unchanged for so many days.", metavar="DAYS")
    ] = None,
    yes: Yes = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Say what would go; remove nothing.")] = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Remove a set, or those under ROOT, and nothing but sets; without options all of them."""
    from densekd.cli.asking import asked
    from densekd.errors import ConfigError
    from densekd.runs import words
    from densekd.runs.cache.command import wish_of
    from densekd.runs.cache.survey import prunable, sets_at

    require_one_process()
    sets_at(root)  # says what is wrong with the folder
    with watching(quiet) as watch:
        kept = [wish_of(loaded(recipe, None), watch).key for recipe in keep or []]
    doomed, told = prunable(root, kept, unfinished=unfinished, older_than=older_than)
    total = words.size(sum(one.bytes for one in doomed))
    for line in told:
        complain(line)
    if doomed and not (yes or dry_run):
        answer = asked(f"remove {_sets(len(doomed))} at {root}, {total}?")
        if answer is None:
            raise ConfigError(f"{root}: {_sets(len(doomed))}, {total}, would go; nobody can be asked: give --yes")
        if not answer:
            doomed = []
    gone = doomed if dry_run else _removed(doomed)
    rows = [{"set": one.folder.path.name, "bytes": one.bytes, "size": words.size(one.bytes)} for one in gone]
    table(rows, as_json=as_json, title=str(root))
    if not quiet:
        freed = words.size(sum(one.bytes for one in gone))
        complain(f"{'would free' if dry_run else 'freed'} {freed}: {_sets(len(gone))}")


def _removed(doomed: Sequence[Doomed]) -> list[Doomed]:
    """Removes sets; those that are gone."""
    from densekd.runs.cache.survey import remove

    gone = []
    for one in doomed:
        left = remove(one)
        if left is None:
            gone.append(one)
        else:
            complain(left)
    return gone


def _sets(count: int) -> str:
    return "1 set" if count == 1 else f"{count} sets"
