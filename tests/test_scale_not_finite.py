"""A value that is not finite in one of two processes: all end, and the error names the process and the module."""

from __future__ import annotations

import os
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml
from torch import nn

from densekd.cli.main import main
from densekd.runs import Run
from scalekit import Launched, distillation, make_place, warmed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes by forking"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return warmed(make_place(tmp_path_factory.mktemp("data")))


def spoilt(kind: type[nn.Module], spoil: Callable[[torch.Tensor], torch.Tensor]) -> None:
    """From the third step on, what modules of this kind give in training."""
    from densekd.training.stepper import Stepper

    step, forward, now = Stepper.step, kind.forward, []

    def counted(self, number, batches):
        now.append(number)
        return step(self, number, batches)

    def given(self, x):
        return spoil(forward(self, x)) if self.training and now[-1:] >= [2] else forward(self, x)

    Stepper.step, kind.forward = counted, given


def launched(place: Path, folder: Path, kind: type[nn.Module], spoil: Callable[[torch.Tensor], torch.Tensor]) -> str:
    """Stderr of a run of two processes; in one of them a module is spoilt."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(distillation(place, train={"batch_size": 2, "steps": 12})))

    def work(rank: int) -> None:
        if rank == 1:
            spoilt(kind, spoil)
        sys.argv = ["densekd", "distill", str(path), "--out", str(folder / "run")]
        main()

    started = Launched(work, 2, folder / "io")
    assert started.wait() == [2, 2], started.err()
    assert started.err().count("error:") == 1
    return started.err()


def test_a_module_that_gives_it(place, tmp_path):
    said = launched(place, tmp_path, nn.GroupNorm, lambda x: x * torch.nan)
    assert "error: step 3: not finite: " in said
    assert "First, in process 1: the output of module norm (GroupNorm) of the student is not finite" in said
    assert Run.load(tmp_path / "run").record.status == "failed"
    assert [kept.name for kept in (tmp_path / "run" / "replay").iterdir()] == ["step-00000003-rank-1"]


@pytest.mark.long
def test_a_module_whose_gradient_is(place, tmp_path):
    """The gradient of all is the sum: each keeps its batch, and the one is named whose own it was."""
    said = launched(place, tmp_path, nn.GroupNorm, lambda x: x + (x.detach() * 0 + 0 * x).sqrt())
    assert "error: step 3: the gradient of " in said
    assert "First, in process 1: the values are finite, the gradient is not, first at the output of module " in said
    kept = sorted(kept.name for kept in (tmp_path / "run" / "replay").iterdir())
    assert kept == ["step-00000003-rank-0", "step-00000003-rank-1"]
