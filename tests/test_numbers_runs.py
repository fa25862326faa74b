"""In whole runs: a term without effect ends them, spikes stand in the record, and a resume tells the same."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from densekd.errors import SilentTermError
from densekd.runs import Run, distill, train
from densekd.runs.progress import Quiet
from densekd.training.signals import Interrupted
from densekd.training.stepper import Stepper
from runkit import distillation, make_place, recipe

pytestmark = pytest.mark.slow

DEAD = """

class Nothing(nn.Module):
    def forward(self, x):
        return x * 0


def dead(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.ReLU(), nn.Conv2d(4, num_classes, 1), Side())


class Side(nn.Module):
    def __init__(self):
        super().__init__()
        self.nothing = Nothing()

    def forward(self, x):
        return x + self.nothing(x)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = make_place(tmp_path_factory.mktemp("place"))
    (root / "nets.py").write_text((root / "nets.py").read_text() + DEAD)
    return root


def test_a_term_without_effect_ends_the_run(place: Path, tmp_path: Path) -> None:
    network = {"model": f"{place}/nets.py:dead"}
    asked = distillation(place, place, student=network)
    asked["teacher"] = {**asked["teacher"], **network, "checkpoint": None}
    asked["terms"] = [{"student": "output", "teacher": "output"}, {"student": "3.nothing", "teacher": "3.nothing"}]
    asked["train"] = {**asked["train"], "steps": 60, "evaluate_every": None, "checkpoint_every": 40}
    with pytest.raises(SilentTermError, match=r"step 50: term 'channelwise:3\.nothing' was exactly 0 in 50 steps"):
        distill(asked, out=tmp_path / "run")
    assert Run.load(tmp_path / "run").record.status == "failed"
    with pytest.raises(SilentTermError, match="step 50"):  # the count stands in the checkpoint of step 40
        distill(asked, out=tmp_path / "run", resume=True)


class StopAfter(Quiet):
    """Asks for the end of the run after some steps, as Ctrl-C does."""

    def __init__(self, steps: int) -> None:
        self.steps = steps

    def step(self, taken: int, steps: int, result: object) -> None:
        if taken == self.steps:
            import signal

            signal.raise_signal(signal.SIGINT)


def test_spikes_stand_in_the_record_and_a_resume_tells_the_same(
    place: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    step = Stepper.step

    def spiking(self: Stepper, number: int, batches: object) -> object:
        result = step(self, number, batches)
        return replace(result, loss=1000.0 * result.loss) if number in {25, 32} else result

    monkeypatch.setattr(Stepper, "step", spiking)
    asked = recipe(place)
    asked["train"] = {**asked["train"], "steps": 36, "evaluate_every": None, "checkpoint_every": 10}
    whole = train(asked, out=tmp_path / "whole").record.warnings
    spikes = [line for line in whole if line.startswith("loss spike")]
    assert [line.split(":")[0] for line in spikes] == ["loss spike at step 26", "loss spike at step 33"]
    with pytest.raises(Interrupted):
        train(asked, out=tmp_path / "cut", progress=StopAfter(29))
    resumed = train(asked, out=tmp_path / "cut", resume=True).record.warnings
    assert [line for line in resumed if line.startswith("loss spike")] == spikes
