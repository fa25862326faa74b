"""SIGINT and SIGTERM in the middle of something long: a step is finished, all else is left, and the end comes soon."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from densekd.cli.guard import guarded
from densekd.cli.stopping import STOPPING
from densekd.runs import Run, page, train
from densekd.training.checkpointer import Checkpointer
from killkit import forked, unflushed
from runkit import make_place, recipe

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="stops runs in forked processes")

PASS = 0.6
"""Seconds of a forward pass of the network below, once its training has begun."""
PATIENCE = 10.0
"""Seconds that are promised, after the step in which a signal comes."""
SLOW = """
import os, time
from pathlib import Path
from torch import nn
from nets import student


class Slow(nn.Module):
    def __init__(self, network):
        super().__init__()
        self.network = network

    def forward(self, x):
        run = Path(os.environ["DENSEKD_TEST_RUN"])
        if (run / "recipe.yaml").exists():
            with run.with_name("passes").open("a") as stream:
                stream.write("train\\n" if self.training else "eval\\n")
            time.sleep(float(os.environ["DENSEKD_TEST_PASS"]))
        return self.network(x)


def build(num_classes):
    return Slow(student(num_classes))
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_place(tmp_path_factory.mktemp("data"), train=4, val=6)
    (root / "slow.py").write_text(SLOW)
    return root


class Slow:
    """A run that takes its time, in a process group of its own, as a terminal has one."""

    def __init__(self, place: Path, root: Path, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> None:
        self.folder, self._patch = root / "run", monkeypatch
        monkeypatch.setenv("DENSEKD_TEST_RUN", str(self.folder))
        monkeypatch.setenv("DENSEKD_TEST_PASS", str(PASS))
        self.recipe = recipe(place, student={"model": f"{place}/slow.py:build"})
        self.recipe["train"] |= {"steps": 3, "batch_size": 2, "evaluate_every": 3, "evaluate_batch_size": 1}
        for part, keys in changes.items():
            self.recipe[part] |= keys

    def passes(self, kind: str) -> int:
        marks = self.folder.with_name("passes")
        return marks.read_text().split().count(kind) if marks.exists() else 0

    def stopped(
        self, number: int, seconds: float, ready: Callable[[], bool], before: Callable[[], Any] = lambda: None
    ) -> int:
        """The exit code after a signal that comes once the run is `ready`; it must come within `seconds`."""
        child = forked(lambda: self._command(before))
        try:
            self._wait(child, 60, ready)
            os.killpg(child, number)
            begun = time.monotonic()
            while time.monotonic() - begun < seconds:
                done, status = os.waitpid(child, os.WNOHANG)
                if done:
                    child = 0
                    return os.waitstatus_to_exitcode(status)
                time.sleep(0.01)
        finally:
            if child:
                os.killpg(child, signal.SIGKILL)
                os.waitpid(child, 0)
        raise AssertionError(f"still there {seconds:g} s after the signal")

    def _command(self, before: Callable[[], Any]) -> None:
        os.setsid()
        before()
        STOPPING.install()
        try:
            with unflushed():
                guarded(lambda: train(self.recipe, out=self.folder))()
        except SystemExit as end:
            os._exit(int(end.code or 0))

    @staticmethod
    def _wait(child: int, seconds: float, ready: Callable[[], bool]) -> None:
        until = time.monotonic() + seconds
        while not ready():
            assert os.waitpid(child, os.WNOHANG) == (0, 0), "ended before the signal"
            assert time.monotonic() < until, "was never ready"
            time.sleep(0.01)

    def hurry(self) -> None:
        """From here on a pass takes no time."""
        self._patch.setenv("DENSEKD_TEST_PASS", "0")

    def resume(self) -> Run:
        """Go on, at once."""
        self.hurry()
        with unflushed():
            return train(self.recipe, out=self.folder, resume=True)

    def expect_saved(self, step: int) -> None:
        found = Checkpointer(self.folder).latest()
        assert (found.path, found.damage) == (self.folder / "checkpoints" / f"step-{step:08d}", [])
        record = Run.load(self.folder).record
        assert (record.status, record.error) == (
            "interrupted",
            f"stopped after step {step} of 3; everything is saved",
        )


NUMBERS = [pytest.param(signal.SIGTERM, 143, id="SIGTERM"), pytest.param(signal.SIGINT, 130, id="SIGINT")]


@pytest.mark.parametrize(
    ("workers", "number", "code"),
    [
        pytest.param(0, signal.SIGTERM, 143, marks=pytest.mark.long),
        pytest.param(0, signal.SIGINT, 130, marks=pytest.mark.long),
        pytest.param(2, signal.SIGTERM, 143, marks=pytest.mark.long),
        pytest.param(2, signal.SIGINT, 130, marks=pytest.mark.slow),
    ],
)
def test_a_step(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, workers: int, number: int, code: int
) -> None:
    slow = Slow(place, tmp_path, monkeypatch, runtime={"workers": workers})
    assert slow.stopped(number, PASS + PATIENCE, lambda: slow.passes("train") == 2) == code
    assert slow.passes("train") == 2
    slow.expect_saved(2)


@pytest.mark.parametrize(
    ("number", "code"),
    [
        pytest.param(signal.SIGTERM, 143, marks=pytest.mark.slow),
        pytest.param(signal.SIGINT, 130, marks=pytest.mark.long),
    ],
)
def test_an_evaluation(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
    """It is left after the images that the network has before it, and made anew by the resume."""
    slow = Slow(place, tmp_path, monkeypatch, train={"evaluate_every": 1})
    assert slow.stopped(number, PASS + PATIENCE, lambda: slow.passes("eval") == 2) == code
    assert slow.passes("eval") == 2
    slow.expect_saved(1)
    assert not (slow.folder / "evaluations.csv").exists()
    assert slow.resume().record.status == "done"


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), NUMBERS)
def test_looks(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
    """After the training nothing is to be saved: it is left at once, and a resume takes the looks."""
    slow = Slow(place, tmp_path, monkeypatch, train={"steps": 1}, report={"images": 4})
    assert slow.stopped(number, PATIENCE, lambda: slow.passes("eval") == 6 + 2) == code
    record = Run.load(slow.folder).record
    assert (record.status, record.error) == ("interrupted", "left at once; the last checkpoint stands")
    assert not (slow.folder / "looks").exists()
    assert slow.resume().record.status == "done"
    assert (slow.folder / "looks" / "pictures.json").is_file()


@pytest.mark.long
@pytest.mark.parametrize(("number", "code"), NUMBERS)
def test_the_page(place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int, code: int) -> None:
    """The run is done by then; a resume writes the page."""
    slow = Slow(place, tmp_path, monkeypatch, train={"steps": 1}, report={"page": True})
    slow.hurry()

    def draw(*_: object) -> None:
        (tmp_path / "drawing").touch()
        time.sleep(100)

    def before() -> None:
        page.write_report = draw  # type: ignore[assignment]

    assert slow.stopped(number, PATIENCE, lambda: (tmp_path / "drawing").exists(), before) == code
    assert Run.load(slow.folder).record.status == "done"
    assert not (slow.folder / "report.html").exists()
    slow.resume()
    assert (slow.folder / "report.html").is_file()
