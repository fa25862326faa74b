"""The same recipe and seed give the same record, times aside, with any number of loading processes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from densekd import files
from densekd.runs import distill, train
from runkit import distillation, log_without_times, make_place, recipe

TIMES = {"total_seconds", "data_wait", "peak_memory_bytes", "forecast", "seconds", "speedup", "date", "commit"}
"""What a clock or a meter of memory gave, and what may change between two runs of a test."""


def without_times(value: Any) -> Any:
    """A record without what differs between equal runs."""
    if isinstance(value, dict):
        kept = {key: entry for key, entry in value.items() if key not in TIMES and "seconds" not in key}
        return {key: without_times(entry) for key, entry in kept.items()}
    return [without_times(entry) for entry in value] if isinstance(value, list) else value


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("place"))


def test_times_alone_are_left_out() -> None:
    record = {"final": {"miou": 0.5}, "cost": {"seconds_per_step": 1.0, "device": "cpu"}, "preflight": {"seconds": 2.0}}
    assert without_times(record) == {"final": {"miou": 0.5}, "cost": {"device": "cpu"}, "preflight": {}}


@pytest.mark.slow
def test_the_same_record_twice_with_any_number_of_workers(place: Path, tmp_path: Path) -> None:
    teacher = train(recipe(place, student={"model": f"{place}/nets.py:teacher"}), out=tmp_path / "teacher").weights
    runs = {}
    for name, workers in (("first", 0), ("again", 0), ("one", 1), ("two", 2)):
        asked = distillation(place, teacher)
        asked["runtime"] = {**asked["runtime"], "workers": workers}
        runs[name] = distill(asked, out=tmp_path / name)
    first = runs.pop("first")
    expected = without_times(files.read_json(first.path / "record.json"))
    assert expected["final"]["miou"] > 0
    assert expected["warnings"]
    for name, run in runs.items():
        found = without_times(files.read_json(run.path / "record.json"))
        if name != "again":
            found["recipe_sha256"] = expected["recipe_sha256"]  # the recipe names the workers
        assert found == expected
        assert log_without_times(run.path) == log_without_times(first.path)
        assert run.weights.read_bytes() == first.weights.read_bytes()
        for kept in ("evaluations.csv", "confusion.json"):
            assert (run.path / kept).read_bytes() == (first.path / kept).read_bytes()
