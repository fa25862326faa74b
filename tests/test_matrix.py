"""The matrix: a failing environment is found, a Python that cannot be had is said, an interruption keeps rows."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parent.parent
TOOLS = ("matrix", "places", "pythons", "installing")


@pytest.fixture
def tools(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import installing
    import matrix
    import places
    import pythons

    monkeypatch.setattr(matrix, "build_wheel", lambda work: ["true"])
    monkeypatch.setattr(matrix, "command", lambda *parts, **options: "")
    monkeypatch.setattr(matrix, "wheel_in", lambda work: work / "densekd.whl")
    monkeypatch.setattr(matrix, "mirror", dict)
    monkeypatch.setattr(places, "CHECKS", {"a place": lambda python, work, watched: []})
    yield matrix, pythons, places, installing
    for name in TOOLS:
        sys.modules.pop(name, None)


@pytest.fixture
def two(tools, monkeypatch):
    """One Python that is there and one that cannot be had."""
    matrix, pythons, _, _ = tools
    found = [
        pythons.Python("3.11", "3.11.7", Path("python3.11"), "installed"),
        pythons.Python("3.14", reason="not installed; uv cannot bring it (no route)"),
    ]
    monkeypatch.setattr(matrix, "pythons", lambda folder: found)
    return found


def fine(wanted: Any, wheel: Path, environment: Path, said: Any) -> dict[str, str]:
    said("a step")
    return {"python": "3.11.7", "torch": "2.11.0"}


def record_of(path: Path) -> Any:
    return json.loads(path.read_text(encoding="utf-8"))


def test_rows_of_a_matrix_that_passes(tools, two, tmp_path, capsys):
    matrix, *_ = tools
    assert matrix.main(["--record", str(tmp_path / "m.json")], fine) == 0
    record = record_of(tmp_path / "m.json")
    assert (record["passed"], record["complete"]) == (True, True)
    assert [(c["python"], c.get("torch"), c.get("extras"), c["result"]) for c in record["cells"]] == [
        ("3.14", None, None, "not had"),
        ("3.11", "2.11", "none", "passed"),
        ("3.11", "2.11", "all", "passed"),
        ("3.11", "newest", "none", "passed"),
        ("3.11", "newest", "all", "passed"),
    ]
    assert record["cells"][0]["reason"] == "not installed; uv cannot bring it (no route)"
    assert record["cells"][1]["versions"]["torch"] == "2.11.0"
    assert [p["result"] for p in record["places"]] == ["passed"]
    said = capsys.readouterr().out
    assert "Python 3.14: not installed; uv cannot bring it (no route)" in said
    assert "5 passed, 0 failed, 1 not had, 0 not tried" in said


def test_a_failing_environment_is_found(tools, two, tmp_path, capsys):
    matrix, _, _, installing = tools

    def attempt(wanted, wheel, environment, said):
        if wanted.torch == "2.11" and wanted.extras == "all":
            raise installing.CommandError("train", 1, "no such operator")
        return fine(wanted, wheel, environment, said)

    assert matrix.main(["--record", str(tmp_path / "m.json")], attempt) == 1
    record = record_of(tmp_path / "m.json")
    assert record["passed"] is False
    (bad,) = [cell for cell in record["cells"] if cell["result"] == "failed"]
    assert (bad["torch"], bad["extras"]) == ("2.11", "all")
    assert bad["reason"] == "train: exit code 1: no such operator"
    assert "FAILED: train: exit code 1: no such operator" in capsys.readouterr().out


def test_a_place_that_fails_or_breaks_off_is_found(tools, two, tmp_path, monkeypatch):
    matrix, _, places, _ = tools

    def not_tried(python, work, watched):
        raise places.NotTried("nothing may be mounted here")

    def broken(python, work, watched):
        raise RuntimeError("x")

    checks = {"home": lambda *_: ["a write elsewhere: open /home/x"], "tmp": not_tried, "odd": broken}
    monkeypatch.setattr(places, "CHECKS", checks)
    assert matrix.main(["--record", str(tmp_path / "m.json")], fine) == 1
    found = [(place["result"], place["reason"]) for place in record_of(tmp_path / "m.json")["places"]]
    assert found == [
        ("failed", "a write elsewhere: open /home/x"),
        ("not tried", "nothing may be mounted here"),
        ("failed", "RuntimeError('x')"),
    ]


def test_an_interruption_keeps_the_rows_so_far(tools, two, tmp_path):
    matrix, *_ = tools

    def attempt(wanted, wheel, environment, said):
        if wanted.torch == "newest":
            raise KeyboardInterrupt
        return fine(wanted, wheel, environment, said)

    assert matrix.main(["--record", str(tmp_path / "m.json")], attempt) == 130
    record = record_of(tmp_path / "m.json")
    assert (record["complete"], record["passed"]) == (False, False)
    assert [cell["result"] for cell in record["cells"]] == ["not had", "passed", "passed"]


def test_nothing_tried_is_no_success(tools, two, tmp_path):
    matrix, *_ = tools
    assert matrix.main(["--record", str(tmp_path / "m.json"), "--python", "3.14"], fine) == 1


def answer(folder: Path, name: str, version: list[Any], other: bool = False) -> Path:
    """A program that answers as an interpreter of that version would."""
    path = folder / name
    path.write_text(f"#!/bin/sh\necho '{json.dumps([*version, other])}'\n")
    path.chmod(0o755)
    return path


@pytest.mark.slow
def test_the_newest_final_interpreter_of_each_minor_version(tools, tmp_path):
    _, pythons, _, _ = tools
    paths = [
        answer(tmp_path, "a", [3, 12, 1, "final"]),
        answer(tmp_path, "b", [3, 12, 10, "final"]),
        answer(tmp_path, "c", [3, 10, 9, "final"]),
        answer(tmp_path, "d", [3, 13, 0, "candidate"]),
        answer(tmp_path, "e", [3, 13, 0, "final"], other=True),
        tmp_path / "none",
    ]
    found = pythons.installed(paths)
    assert {minor: (python.version, python.path) for minor, python in found.items()} == {
        "3.12": ("3.12.10", tmp_path / "b")
    }


def test_a_python_that_uv_does_not_bring(tools, monkeypatch, tmp_path):
    _, pythons, _, _ = tools
    monkeypatch.setattr(pythons.shutil, "which", lambda name: None)
    assert "uv, which could bring it, is not there" in pythons.brought("3.14", tmp_path).reason
    monkeypatch.setattr(pythons.shutil, "which", lambda name: "uv")
    said = subprocess.CompletedProcess([], 2, "", "error: no\n  cause: failed to lookup address\n")
    monkeypatch.setattr(pythons.subprocess, "run", lambda *_, **__: said)
    python = pythons.brought("3.14", tmp_path)
    assert python.path is None
    assert python.reason == "not installed; uv cannot bring it (failed to lookup address)"


def test_previews_are_not_asked_for(tools, monkeypatch):
    _, pythons, _, _ = tools
    names = ["3.16.0a2", "3.14.10", "3.9.1", "3.14.9", "3.11.3"]
    listed = json.dumps([{"version": name, "implementation": "cpython"} for name in names])
    monkeypatch.setattr(pythons, "_uv", lambda *_: [listed])
    assert pythons.offered() == ["3.11", "3.14"]


def test_tables_of_a_record(monkeypatch):
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    import matrix_table

    versions = {"python": "3.12.1", "torch": "2.11.0", "torchvision": "0.26.0"}
    asked = {"python": "3.12", "torch": "2.11", "extras": "all"}
    record = {
        "cells": [
            {"python": "3.15", "result": "not had", "reason": "x"},
            {**asked, "result": "passed", "seconds": 9.6, "versions": versions},
            {**asked, "result": "failed", "seconds": 1.0, "versions": {}, "reason": "y"},
        ],
        "places": [{"place": "odd names", "result": "passed"}],
    }
    mark = re.compile(r"<!-- record: m.json (.*?) --><!-- /record -->")
    lines = [mark.sub(r"\1", line) for line in matrix_table.matrix("m.json", record)]
    seconds = [f"cells[{number}].seconds .0f" for number in range(3)]
    assert lines[2:] == [
        "| cells[0].python |  |  |  | cells[0].result |  |",
        f"| {' | '.join(f'cells[1].versions.{name}' for name in versions)} | all | cells[1].result | {seconds[1]} |",
        f"| cells[2].python | cells[2].torch |  | all | cells[2].result | {seconds[2]} |",
    ]
    (row,) = matrix_table.places("m.json", record)[2:]
    assert row == "| odd names | <!-- record: m.json places[0].result --><!-- /record --> |"
