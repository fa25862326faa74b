"""Runs that want one folder at the same time: nothing that another one made is lost."""

from __future__ import annotations

import json
import os
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from densekd import files
from densekd.errors import RunError
from densekd.runs import Run, train
from densekd.runs.execute import Quiet
from densekd.runs.folder import require_writable
from densekd.training.signals import Interrupted
from runkit import Heard, make_place, recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("data"))


class Meanwhile(Heard):
    """Does something while the run's checks are under way: the first look at the folder is over."""

    def __init__(self, work: Callable[[], object]) -> None:
        super().__init__()
        self.work: Callable[[], object] | None = work

    def checking(self, done: int, total: int) -> None:
        if self.work is not None:
            work, self.work = self.work, None
            work()


class StopAfter(Quiet):
    def __init__(self, step: int) -> None:
        self.at = step

    def step(self, taken: int, steps: int, result: Any) -> None:
        if taken == self.at:
            os.kill(os.getpid(), signal.SIGINT)


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_a_run_that_another_one_finished_meanwhile_is_not_overwritten(place: Path, tmp_path: Path) -> None:
    out, made = tmp_path / "run", {}

    def other() -> None:
        train(recipe(place), out=out, train__steps=2)
        made.update(contents(out))

    with pytest.raises(RunError, match="exists; it is never overwritten unasked"):
        train(recipe(place), out=out, progress=Meanwhile(other))
    assert made
    assert contents(out) == made


def interrupted(place: Path, out: Path) -> None:
    with pytest.raises(Interrupted):
        train(recipe(place), out=out, progress=StopAfter(1))


@pytest.mark.slow
def test_a_resume_that_another_one_finished_meanwhile(place: Path, tmp_path: Path) -> None:
    out, made = tmp_path / "run", {}
    interrupted(place, out)

    def other() -> None:
        train(recipe(place), out=out, resume=True)
        made.update(contents(out))

    progress = Meanwhile(other)
    assert train(recipe(place), out=out, resume=True, progress=progress).record.status == "done"
    assert progress.lines[-1] == f"{out}: this run is done already; nothing to resume"
    assert contents(out) == made


@pytest.mark.slow
def test_a_resume_goes_on_from_where_another_one_came(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupted(place, out)

    def other() -> None:
        with pytest.raises(Interrupted):
            train(recipe(place), out=out, resume=True, progress=StopAfter(4))
        raw = json.loads((out / "record.json").read_text())
        raw["cost"]["total_seconds"] = 1000.0
        raw["warnings"].append("a word of the other one")
        files.write_json(out / "record.json", raw)

    progress = Meanwhile(other)
    record = train(recipe(place), out=out, resume=True, progress=progress).record
    assert any("step 4 of 6" in line for line in progress.lines)
    assert record.status == "done"
    assert record.cost.total_seconds > 1000
    assert "a word of the other one" in record.warnings


def test_a_resume_of_what_was_started_again_with_another_recipe(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    interrupted(place, out)
    progress = Meanwhile(lambda: train(recipe(place), out=out, force=True, seed=5))
    with pytest.raises(RunError, match="its recipe differs"):
        train(recipe(place), out=out, resume=True, progress=progress)
    assert (Run.load(out).record.status, Run.load(out).record.seed) == ("done", 5)


class Working(Quiet):
    def checking(self, done: int, total: int) -> None:
        raise AssertionError("work began")


def test_a_folder_that_cannot_be_made_is_told_before_any_work(place: Path, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"file/deep/run: cannot be written: \S+/file: Not a directory; .*--out"):
        train(recipe(place), out=tmp_path / "file" / "deep" / "run", progress=Working())


@pytest.mark.skipif(getattr(os, "geteuid", lambda: 0)() == 0, reason="root may write anywhere")
def test_a_folder_without_permission(tmp_path: Path) -> None:
    (tmp_path / "shut").mkdir(mode=0o500)
    with pytest.raises(RunError, match=r"shut/run: cannot be written: \S+/shut: Permission denied"):
        require_writable(tmp_path / "shut" / "run")


def test_a_refused_file_is_named_and_nothing_is_left(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    require_writable(tmp_path / "a" / "b")
    assert list(tmp_path.iterdir()) == []

    def full(**_options: object) -> None:
        raise OSError(30, "Read-only file system")

    monkeypatch.setattr("tempfile.TemporaryFile", full)
    with pytest.raises(RunError, match=r"cannot be written: \S+: Read-only file system"):
        require_writable(tmp_path / "run")
