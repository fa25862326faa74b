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


def differing(one: Path, other: Path) -> list[str]:
    """Files of two runs that differ, those aside that hold times or the name of the run's folder."""
    names = [{path.relative_to(run).as_posix() for path in run.rglob("*") if path.is_file()} for run in (one, other)]
    assert names[0] == names[1]
    aside = {"record.json", "recipe.yaml", "log.csv", "report.html", "origin.json"}
    kept = sorted(name for name in names[0] if name not in aside and not name.endswith(("state.json", "sums.json")))
    return [name for name in kept if (one / name).read_bytes() != (other / name).read_bytes()]


def cached(place: Path, teacher: Path, folder: Path, workers: int) -> dict[str, Any]:
    """A distillation from stored maps that keeps looks and a page."""
    asked = distillation(place, teacher, report={"page": True, "images": 3, "channels": 2})
    asked["distill"] = {"cache": {"root": str(folder), "views": 2, "ask": False}}
    asked["runtime"] = {**asked["runtime"], "workers": workers}
    asked["train"] = {**asked["train"], "evaluate_every": 3, "checkpoint_every": 3}
    return asked


@pytest.mark.long
def test_the_same_from_stored_maps_with_looks_and_page(place: Path, tmp_path: Path) -> None:
    teacher = train(recipe(place, student={"model": f"{place}/nets.py:teacher"}), out=tmp_path / "teacher").weights
    runs = {}
    # The first builds its own set, and so does the last; the others read the first one's.
    for name, workers, folder in (("first", 0, "a"), ("again", 0, "a"), ("one", 1, "a"), ("two", 2, "b")):
        runs[name] = distill(cached(place, teacher, tmp_path / folder, workers), out=tmp_path / name)
    first = runs.pop("first")
    expected = without_times(files.read_json(first.path / "record.json"))
    assert (first.path / "looks").is_dir()
    for run in runs.values():
        found = without_times(files.read_json(run.path / "record.json"))
        for key in ("final", "best", "preflight", "student", "teacher", "images", "steps", "epochs", "status"):
            assert found.get(key) == expected.get(key), key
        assert log_without_times(run.path) == log_without_times(first.path)
        assert run.weights.read_bytes() == first.weights.read_bytes()
        assert differing(first.path, run.path) == []


@pytest.mark.long
def test_the_same_study_twice(place: Path, tmp_path: Path) -> None:
    from densekd.study import compare

    teacher = train(recipe(place, student={"model": f"{place}/nets.py:teacher"}), out=tmp_path / "teacher").weights
    studies = []
    for name, workers in (("one", 0), ("two", 2)):
        asked = distillation(place, teacher)
        asked["runtime"] = {**asked["runtime"], "workers": workers}
        studies.append(compare(asked, methods=["none", "channelwise"], seeds=[0], out=tmp_path / name))
    one, other = (without_times(files.read_json(study.path / "study.json")) for study in studies)
    for found, expected in zip(other["methods"], one["methods"], strict=True):
        assert expected["final"]["miou"]
        for key in ("name", "seeds", "final", "best", "gain", "classes"):
            assert found.get(key) == expected.get(key), key
    for run in (path.parent for path in (tmp_path / "one").glob("*/record.json")):
        assert log_without_times(run) == log_without_times(tmp_path / "two" / run.name)
        assert differing(run, tmp_path / "two" / run.name) == []
