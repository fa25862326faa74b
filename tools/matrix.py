"""Every Python, torch and set of extras that densekd is for: the wheel in a fresh environment of each, and used there.

    python tools/matrix.py [--python 3.12 ...] [--record FILE]

For each Python from 3.11 on that is installed or that uv can bring, torch 2.11 and the newest: an empty environment
(one at a time on the disk), the wheel, and the work of `matrix_work.py`, in which all that needs an extra must be
refused with the command that installs it; then the extras, and the work again. In the last environment the checks of
`places.py`. Writes benchmarks/results/matrix.json after every row; a Python that cannot be had is a row, with why.
Exit code 1 where a row failed, or none was tried; Ctrl-C keeps the rows so far. Needs `uv` on the path.
"""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

import places
from installing import ROOT, CommandError, build_wheel, command, mirror, programs, wheel_in
from pythons import Python, pythons

WORK = ROOT / "tools" / "matrix_work.py"
RECORD = ROOT / "benchmarks" / "results" / "matrix.json"
TORCH = {"2.11": ["torch==2.11.*", "torchvision==0.26.*"], "newest": ["torch", "torchvision"]}
EXTRAS = {"none": "", "all": "[data,export,hf,track,video]"}
_SECONDS = 3600


@dataclass(frozen=True)
class Wanted:
    """An environment: its Python, and keys of `TORCH` and `EXTRAS`."""

    python: Python
    torch: str
    extras: str

    @property
    def title(self) -> str:
        return f"Python {self.python.minor}, torch {self.torch}, extras: {self.extras}"


Row = dict[str, Any]
Try = Callable[[Wanted, Path, Path, Callable[[str], None]], dict[str, str]]


def install(wanted: Wanted, wheel: Path, environment: Path) -> None:
    """The wheel in a fresh environment; the extras come into the one that had none, as users add them.

    Raises:
        CommandError: it cannot be installed.
    """
    assert wanted.python.path is not None
    found = mirror()
    work = environment.parent
    if wanted.extras == "none":
        shutil.rmtree(environment, ignore_errors=True)
        command("uv", "venv", "-q", "--python", wanted.python.path, environment, cwd=work, name="venv", **found)
    what = [f"{wheel}{EXTRAS[wanted.extras]}", *TORCH[wanted.torch]]
    python = programs(environment) / "python"
    asked = ["uv", "pip", "install", "-q", "--python", python, *what]
    command(*asked, cwd=work, name="install", seconds=_SECONDS, **found)


def tried(wanted: Wanted, wheel: Path, environment: Path, said: Callable[[str], None]) -> dict[str, str]:
    """The environment installed and its work done; the versions found in it.

    Raises:
        CommandError: something did not end as it must.
    """
    said("install")
    install(wanted, wheel, environment)
    work = environment.parent / "work"
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir()
    said("densekd --help")
    helped = command(programs(environment) / "densekd", "--help", cwd=work)
    if "distill" not in helped:
        raise CommandError("densekd --help", 0, helped)
    said("every name, two steps, a resume, and what comes after")
    python = programs(environment) / "python"
    found = command(python, "-I", WORK, wanted.extras, cwd=work, name="work", seconds=_SECONDS)
    versions: dict[str, str] = json.loads(found.splitlines()[-1])
    return versions


def row(wanted: Wanted, attempt: Callable[[Callable[[str], None]], dict[str, str]]) -> Row:
    """One row of the record; the steps are told as they come."""
    began = time.monotonic()
    print(f"{wanted.title}:", flush=True)

    def said(step: str) -> None:
        print(f"  {time.monotonic() - began:6.1f} s  {step}", flush=True)

    versions, reason = dict[str, str](), ""
    try:
        versions = attempt(said)
    except (CommandError, OSError, ValueError) as error:
        reason = str(error)
    taken = round(time.monotonic() - began, 1)
    print(f"  {taken:6.1f} s  {'passed' if not reason else f'FAILED: {reason}'}", flush=True)
    asked = {"python": wanted.python.minor, "torch": wanted.torch, "extras": wanted.extras}
    return {**asked, "result": "failed" if reason else "passed", "seconds": taken, "versions": versions} | (
        {"reason": reason} if reason else {}
    )


def not_had(python: Python) -> Row:
    """The row of a Python that is neither installed nor can be brought."""
    print(f"Python {python.minor}: {python.reason}", flush=True)
    return {"python": python.minor, "result": "not had", "reason": python.reason}


def checked_places(environment: Path, work: Path) -> list[Row]:
    """What `places.py` finds with the wheel in that environment, whose packages are watched too."""
    found = []
    packages = next(iter(sorted(environment.glob("lib/python*/site-packages"))), environment / "Lib")
    for number, (name, check) in enumerate(places.CHECKS.items()):
        began, reason, result = time.monotonic(), "", "passed"
        try:
            faults = check(programs(environment) / "python", work / f"place-{number}", [packages])
            if faults:
                result, reason = "failed", "\n".join(faults)
        except places.NotTried as why:
            result, reason = "not tried", str(why)
        except Exception as error:  # a check that breaks off is no success, and not the end of the others
            result, reason = "failed", repr(error)
        taken = round(time.monotonic() - began, 1)
        print(f"  {taken:6.1f} s  {name}: {result}{': ' if reason else ''}{reason}", flush=True)
        found.append({"place": name, "result": result, "seconds": taken} | ({"reason": reason} if reason else {}))
    return found


@contextmanager
def kept(record: Row, path: Path) -> Iterator[Callable[[], None]]:
    """Gives a call that writes the record; it is written at the end, too, whatever ends the block."""

    def write() -> None:
        rows = [*record["cells"], *record["places"]]
        results = {each["result"] for each in rows}
        record["passed"] = record["complete"] and "passed" in results and "failed" not in results
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(record, indent=2) + "\n", encoding="utf-8")

    try:
        yield write
        record["complete"] = True
    finally:
        write()
        print(f"record: {path}")


def new_record(asked: list[str]) -> Row:
    """A record without rows; `asked`: the versions of Python that it is confined to."""
    from densekd.records import commit, environment

    command_line = (
        " ".join(["python tools/matrix.py", *(f"--python {one}" for one in asked)]) if asked else "make matrix"
    )
    head = {"schema": 1, "matrix": "python, torch, extras", "passed": False, "complete": False}
    return {
        **head,
        "command": command_line,
        "commit": commit(),
        "cells": [],
        "places": [],
        "environment": environment(),
    }


def fill(record: Row, found: list[Python], wheel: Path, work: Path, write: Callable[[], None], attempt: Try) -> None:
    """All rows, in order; one environment on the disk at a time."""
    record["cells"] += [not_had(python) for python in found if python.path is None]
    write()
    here = [python for python in found if python.path is not None]
    cells = [Wanted(*parts) for parts in product(here, TORCH, EXTRAS)]
    environment = work / "venv"
    for number, wanted in enumerate(cells):
        print(f"[{number + 1}/{len(cells)}] ", end="")

        def once(said: Callable[[str], None], wanted: Wanted = wanted) -> dict[str, str]:
            return attempt(wanted, wheel, environment, said)

        record["cells"].append(row(wanted, once))
        write()
    if cells:
        print(f"places, with {cells[-1].title}:", flush=True)
        record["places"] += checked_places(environment, work)


def main(arguments: list[str] | None = None, attempt: Try = tried) -> int:
    """Build, try, write; the exit code."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0] if __doc__ else None)
    parser.add_argument("--python", action="append", default=[], help="a minor version, as 3.12; default: all")
    parser.add_argument("--record", type=Path, default=RECORD)
    asked = parser.parse_args(arguments)
    record = new_record(asked.python)
    try:
        with kept(record, asked.record) as write, tempfile.TemporaryDirectory(prefix="densekd-matrix-") as name:
            work = Path(name)
            print("the wheel, and Pythons to try it with", flush=True)
            command(*build_wheel(work), cwd=work, name="wheel", **mirror())
            found = [each for each in pythons(work / "pythons") if not asked.python or each.minor in asked.python]
            fill(record, found, wheel_in(work), work, write, attempt)
    except KeyboardInterrupt:
        print(f"interrupted; {len(record['cells'])} rows are kept", file=sys.stderr)
        return 130
    except CommandError as error:
        print(f"matrix: {error}", file=sys.stderr)
        return 1
    counts = dict.fromkeys(("passed", "failed", "not had", "not tried"), 0)
    for each in [*record["cells"], *record["places"]]:
        counts[each["result"]] += 1
    print("matrix: " + ", ".join(f"{count} {result}" for result, count in counts.items()))
    return 0 if record["passed"] else 1


if __name__ == "__main__":
    sys.exit(main())
