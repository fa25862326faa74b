from __future__ import annotations

import time
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from densekd.cli.waiting import Waiting
from densekd.config import load_recipe
from densekd.data.folder import FolderSet
from densekd.records import RunRecord
from densekd.runs import train
from densekd.runs.progress import Quiet
from densekd.runs.waiting import waiting_words
from densekd.training.recorder import Recorder
from densekd.training.stepper import StepResult
from runkit import make_place, recipe


def result(seconds: float, data_wait: float) -> StepResult:
    return StepResult(1.0, {}, None, 0.1, seconds, data_wait, skipped=False)


def recorder(folder: Path, waits: list[float]) -> Recorder:
    record = RunRecord(status="running", method="none", seed=0, split="val", steps=len(waits), epochs=1.0)
    made = Recorder(folder, record, log_every=1)
    for taken, wait in enumerate(waits, 1):
        made.log(taken, result(2.0, wait))
    return made


def test_the_share_leaves_the_start_out_and_needs_ten_steps(tmp_path: Path) -> None:
    assert recorder(tmp_path, [2.0] * 12).data_wait() is None
    assert recorder(tmp_path, [2.0] * 3 + [0.5] * 9 + [1.5]).data_wait() == pytest.approx(6 / 20)
    made = recorder(tmp_path, [2.0] * 3 + [0.5] * 10)
    made.update()
    assert made.record.cost.data_wait == 0.25


def words(share: float | None, workers: int, cpus: int, monkeypatch: pytest.MonkeyPatch, **data: Any) -> list[str]:
    monkeypatch.setattr("densekd.runs.waiting.logical_cpus", lambda: cpus)
    raw = recipe(Path("/nowhere"))
    raw["data"] |= data
    raw["runtime"]["workers"] = workers
    return waiting_words(share, load_recipe(raw))


def test_what_is_said_names_what_can_still_be_done(monkeypatch: pytest.MonkeyPatch) -> None:
    assert words(None, 0, 2, monkeypatch) == words(0.199, 0, 2, monkeypatch) == []
    (line,) = words(0.2, 0, 8, monkeypatch)
    assert line == (
        "20% of the training time was spent waiting for images. What helps: more loading processes (runtime.workers, "
        "now 0; 8 logical CPUs), or images kept in memory where they fit (data.in_memory; once per loading process), "
        "or files stored no larger than training needs them"
    )
    (line,) = words(0.5, 8, 8, monkeypatch, in_memory=True)
    assert "runtime.workers" not in line
    assert "data.in_memory" not in line
    assert line.endswith("What helps: files stored no larger than training needs them")


def test_drawn_scenes_have_no_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("densekd.runs.waiting.logical_cpus", lambda: 2)
    asked = SimpleNamespace(runtime=SimpleNamespace(workers=2), data=load_recipe(scenes()).data)
    assert waiting_words(0.3, asked) == [  # type: ignore[arg-type]
        "30% of the training time was spent waiting for images. What helps: a machine with more CPUs"
    ]


def scenes() -> dict[str, Any]:
    return {
        **recipe(Path("/nowhere")),
        "data": {"name": "scenes", "in_memory": True},
        "student": {"model": "torchvision:lraspp_mobilenet_v3_large"},
    }


def test_the_progress_line_shows_the_share_of_the_last_steps() -> None:
    shown = Waiting()
    assert shown.after(result(1.0, 0.01)) == ""
    assert shown.after(result(1.0, 0.99)) == "  data wait 51%"
    for _ in range(200):
        line = shown.after(result(1.0, 0.25))
    assert line == "  data wait 25%"


@pytest.mark.slow
def test_a_run_on_slow_files_says_so_and_records_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Listening(Quiet):
        def said(self, line: str) -> None:
            lines.append(line)

    lines: list[str] = []
    place = make_place(tmp_path / "data")
    load = FolderSet.load

    def slow(self: FolderSet, index: int) -> Any:
        time.sleep(0.05)
        return load(self, index)

    monkeypatch.setattr(FolderSet, "load", slow)
    options = {"train__steps": 14, "train__log_every": 1, "train__evaluate_every": 14, "train__checkpoint_every": 50}
    run = train(recipe(place), out=tmp_path / "run", progress=Listening(), **options)
    (said,) = [line for line in lines if "waiting for images" in line]
    assert said in run.record.warnings
    share = run.record.cost.data_wait
    assert share is not None
    assert share > 0.2
    assert said.startswith(f"{share:.0%} of the training time")
