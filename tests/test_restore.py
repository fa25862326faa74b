"""A run whose `student.safetensors` is gone gets it back from the checkpoint of its best step."""

from __future__ import annotations

import os
import shutil
import signal
from pathlib import Path
from typing import Any

import pytest

from densekd.errors import CheckpointError, RunError
from densekd.runs import Run, train
from densekd.training.signals import Interrupted
from runkit import Heard, make_place, recipe


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_place(tmp_path_factory.mktemp("data"))


class Listening(Heard):
    def __init__(self, stop_after: int = 0) -> None:
        super().__init__()
        self.at = stop_after

    def step(self, taken: int, steps: int, result: Any) -> None:
        if taken == self.at:
            os.kill(os.getpid(), signal.SIGINT)


class StoppedAtOnce(Listening):
    """Interrupts as soon as the resume says where it goes on."""

    def said(self, line: str) -> None:
        super().said(line)
        if line.startswith("resuming from"):
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.parametrize("decay", [0.7, None])
def test_a_finished_run(place: Path, tmp_path: Path, decay: float | None) -> None:
    run = train(recipe(place), out=tmp_path / "run", train__ema_decay=decay)
    path = run.path / "student.safetensors"
    before, scores = path.read_bytes(), run.record.best
    path.unlink()
    with pytest.raises(RunError, match=r"student\.safetensors: missing; `densekd train \S+ --resume` restores it"):
        _ = run.weights
    progress = Listening()
    train(run.path, resume=True, progress=progress)
    assert path.read_bytes() == before
    source = run.path / "checkpoints" / f"step-{scores.step:08d}"
    line = f"{path}: was missing; restored from {source}, whose checksums hold"
    assert progress.lines == [line, f"{run.path}: this run is done already; nothing to resume"]
    assert (run.record.status, run.record.warnings[-1]) == ("done", line)


@pytest.mark.parametrize(
    ("spoil", "told"),
    [
        (shutil.rmtree, r"checksums\.json: no such file"),
        (lambda path: (path / "average.safetensors").write_bytes(b"x"), "checksum differs from the one recorded"),
    ],
)
def test_what_cannot_be_restored_is_said(place: Path, tmp_path: Path, spoil: Any, told: str) -> None:
    run = train(recipe(place), out=tmp_path / "run", train__steps=2)
    (run.path / "student.safetensors").unlink()
    spoil(run.path / "checkpoints" / f"step-{run.record.best.step:08d}")
    with pytest.raises(CheckpointError, match=rf"student\.safetensors: missing, and cannot be restored .*{told}"):
        train(run.path, resume=True)
    assert not (run.path / "student.safetensors").exists()


def test_a_run_that_goes_on(place: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    with pytest.raises(Interrupted):
        train(recipe(place), out=out, progress=Listening(stop_after=3))
    path = out / "student.safetensors"
    before = path.read_bytes()
    path.unlink()
    progress = StoppedAtOnce()
    with pytest.raises(Interrupted):  # before an evaluation could write another one
        train(out, resume=True, progress=progress)
    assert path.read_bytes() == before
    line = f"{path}: was missing; restored from {out / 'checkpoints' / 'step-00000002'}, whose checksums hold"
    assert line in progress.lines
    assert line in Run.load(out).record.warnings
