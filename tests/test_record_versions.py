"""Records and checkpoints that earlier versions wrote are read as they are; newer schemas are refused by name."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError

from densekd.errors import CheckpointError, RunError
from densekd.records import BenchRecord, ConfusionRecord, RunRecord, StudyRecord, dump
from densekd.runs import Run
from densekd.training.checkpointer import Position, _position

SCORES = {"miou": 0.5, "pixel_accuracy": 0.75, "iou": {"sky": 0.5, "road": None}, "images": 4}
FIRST: dict[str, Any] = {
    "schema": 1,
    "status": "done",
    "error": None,
    "method": "channelwise",
    "seed": 0,
    "split": "val",
    "selection": "best: highest mIoU among the evaluations on val",
    "steps": 6,
    "epochs": 1.8,
    "final": SCORES,
    "best": {**SCORES, "step": 4},
    "extra_splits": {"test": SCORES},
    "cost": {
        "seconds_per_step": 0.01,
        "teacher_seconds_per_step": None,
        "peak_memory_bytes": 1000,
        "total_seconds": 1.5,
        "device": "cpu, 1 threads",
    },
    "student": {"parameters": 10, "dead_parameters": 0, "flops": None},
    "teacher": {"parameters": 20, "dead_parameters": 1, "flops": 7, "miou": 0.6, "sha256": "ab"},
    "preflight": None,
    "warnings": ["a line"],
    "environment": {"densekd": "0.1.0"},
    "recipe_sha256": "cd",
}
"""All keys of `record.json` that the first version wrote."""


def test_a_record_of_the_first_version(tmp_path: Path) -> None:
    (tmp_path / "record.json").write_text(json.dumps(FIRST))
    record = Run.load(tmp_path).record
    assert (record.best.step, record.teacher.sha256, record.final.iou["road"]) == (4, "ab", None)
    # what it did not know yet has the value that says so
    assert (record.processes, record.cache, record.images, record.trackers, record.left_out) == (1, None, {}, {}, {})
    assert (record.cost.data_wait, record.teacher.engine) == (None, None)
    written = dump(record)
    assert RunRecord.model_validate(written) == record

    def kept(old: object, new: object) -> bool:
        if isinstance(old, dict):
            return isinstance(new, dict) and all(kept(value, new[key]) for key, value in old.items())
        return old == new

    assert kept(FIRST, written), "no key of a record may be renamed or lost under the same schema number"


def test_one_that_has_just_begun() -> None:
    needed = ("status", "method", "seed", "split", "steps", "epochs")
    assert RunRecord.model_validate({name: FIRST[name] for name in needed}).schema_version == 1


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 2}, r"record\.json: not a record of schema 1: schema: Input should be 1"),
        ({"younger": 1}, r"record\.json: not a record of schema 1: younger: Extra inputs are not permitted"),
    ],
)
def test_a_record_of_a_newer_version_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    (tmp_path / "record.json").write_text(json.dumps({**FIRST, **change}))
    with pytest.raises(RunError, match=told):
        _ = Run.load(tmp_path).record


@pytest.mark.parametrize("record", [RunRecord, StudyRecord, BenchRecord, ConfusionRecord])
def test_every_record_says_its_schema(record: type) -> None:
    with pytest.raises(ValidationError, match="schema"):
        record.model_validate({"schema": 2})
    assert record.model_json_schema()["properties"]["schema"]["const"] == 1


def test_the_position_of_an_early_checkpoint() -> None:
    position = Position(**{"taken": 4, "evaluated": True, "best": None, "last": None, "skipped_steps": 0})
    assert (position.evaluations, position.confusion, position.images) == ([], {}, {})


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"schema": 2}, r"state\.json: schema 2, which this version does not know: go on with the one that wrote it"),
        ({"younger": 1}, r"state\.json: with younger, which this version does not know"),
    ],
)
def test_the_position_of_a_newer_version_is_refused(tmp_path: Path, change: dict[str, Any], told: str) -> None:
    path = tmp_path / "state.json"
    path.write_text(json.dumps({"schema": 1, "taken": 4, **change}))
    with pytest.raises(CheckpointError, match=told):
        _position(path)
    path.write_text(json.dumps({"schema": 1, "taken": 4}))
    assert _position(path) == Position(taken=4)


def test_committed_benchmarks_are_of_the_schema() -> None:
    results = Path(__file__).resolve().parent.parent / "benchmarks" / "results"
    names = [path.name for path in results.glob("loss-*.json")]
    for name in names:
        BenchRecord.model_validate_json((results / name).read_text())
    assert names
