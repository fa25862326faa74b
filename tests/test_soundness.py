"""Weights and outputs that are not finite are neither saved nor scored, whichever way they came."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import runkit
from densekd import files
from densekd.errors import ModelError, NonFiniteError
from densekd.inference import EvaluationSpec, Predictor
from densekd.runs import Run, distill, train
from densekd.tasks.segmentation import SegmentationSpec, SegmentationTask
from densekd.training.soundness import require_sound, unsound

ODD = """
import torch


class Late(nn.Module):
    def __init__(self, how: str, after: int) -> None:
        super().__init__()
        self.how, self.after, self.calls = how, after, 0
        self.register_buffer("kept", torch.zeros(1))

    def forward(self, x):
        self.calls += self.training
        late = self.calls > self.after
        if self.how == "detached":
            return x.detach() if late and self.training else x
        if self.how == "buffer" and late:
            self.kept.fill_(float("nan"))
        if self.how == "output" and late and not self.training:
            return x * float("inf")
        return x


def odd(num_classes: int, how: str, after: int = 6, width: int = 6) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, num_classes, 1),
        Late(how, after),
    )
"""


class Gives(nn.Module):
    """A network whose output is given."""

    def __init__(self, output: Tensor) -> None:
        super().__init__()
        self.output = output

    def forward(self, images: Tensor) -> Tensor:
        return self.output.expand(len(images), -1, -1, -1)


@pytest.mark.parametrize("views", [EvaluationSpec(), EvaluationSpec(flip=True)])
@pytest.mark.parametrize(
    ("value", "bad"), [(0.0, False), (-torch.inf, False), (3.4e38, False), (torch.inf, True), (torch.nan, True)]
)
def test_no_class_is_told_from_what_is_no_number(views: EvaluationSpec, value: float, bad: bool) -> None:
    output = torch.zeros(1, 3, 4, 6)
    output[0, 1, 0, :3] = value
    predictor = Predictor(Gives(output), SegmentationTask(SegmentationSpec(), 3, 255, runkit.NAMES), views)
    ids = predictor.ids(torch.zeros(2, 3, 4, 6), [(4, 6), (4, 6)])
    if bad:
        with pytest.raises(NonFiniteError, match=r"class map \(2, 3, 4, 6\) holds 6 values that are NaN or infinite"):
            list(ids)
    else:
        assert [tuple(found.shape) for found in ids] == [(4, 6), (4, 6)]


def test_which_weights_are_not_finite() -> None:
    network = nn.Sequential(nn.Conv2d(1, 2, 1), nn.BatchNorm2d(2))
    network.register_buffer("mask", torch.full((2,), -torch.inf))
    network.register_buffer("empty", torch.zeros(0))
    network.register_buffer("whole", torch.zeros(2, dtype=torch.int64))
    assert unsound(network) == []
    require_sound(network, 3)
    with torch.no_grad():
        network[0].bias[1] = -torch.inf
        network[1].running_var[0] = torch.inf  # type: ignore[index]
        network.mask[0] = torch.nan  # type: ignore[index,operator]
    assert unsound(network) == ["0.bias", "mask", "1.running_var"]
    with pytest.raises(NonFiniteError, match=r"after step 3: '0\.bias', 'mask', '1\.running_var' of the trained"):
        require_sound(network, 3)


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = runkit.make_place(tmp_path_factory.mktemp("place"), train=6, val=3)
    (root / "nets.py").write_text(runkit.NETWORKS + ODD)
    return root


def asked(place: Path, how: str = "", after: int = 6, **train_part: Any) -> dict[str, Any]:
    raw = runkit.recipe(place)
    raw["train"] = {**raw["train"], "ema_decay": None, "evaluate_every": None, "checkpoint_every": 2, **train_part}
    return raw | (
        {"student": {"model": f"{place}/nets.py:odd", "options": {"how": how, "after": after}}} if how else {}
    )


def finite(path: Path) -> bool:
    return all(bool(torch.isfinite(value.float()).all()) for value in files.read_tensors(path).values())


@pytest.mark.slow
class TestRuns:
    def test_a_last_step_that_is_too_long_ships_nothing(self, place: Path, tmp_path: Path) -> None:
        optimizer = {"name": "sgd", "lr": 3e38, "weight_decay": 0.01}
        with pytest.raises(NonFiniteError, match=r"step 1: .* NaN or infinit"):
            train(asked(place, "none", optimizer=optimizer, steps=1, clip_norm=None), out=tmp_path / "run")
        assert not (tmp_path / "run" / "student.safetensors").exists()
        assert Run.load(tmp_path / "run").record.status == "failed"

    def test_a_module_that_spoils_its_own_buffer(self, place: Path, tmp_path: Path) -> None:
        with pytest.raises(NonFiniteError, match=r"after step 4: 'student\.4\.kept' of the trained networks hold"):
            train(asked(place, "buffer", after=4), out=tmp_path / "run")
        checkpoints = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))
        assert [path.name for path in checkpoints] == ["step-00000002"]
        assert finite(checkpoints[0] / "student.safetensors")

    def test_an_output_that_is_not_finite_in_evaluation_alone(self, place: Path, tmp_path: Path) -> None:
        with pytest.raises(NonFiniteError, match=r"evaluation after step 6: the network's class map .* are NaN or inf"):
            train(asked(place, "output", after=4), out=tmp_path / "run")
        assert Run.load(tmp_path / "run").record.final is None

    def test_a_loss_that_hangs_on_no_weight(self, place: Path, tmp_path: Path) -> None:
        with pytest.raises(ModelError, match=r"step 6: the loss hangs on no weight of the student any more"):
            train(asked(place, "detached"), out=tmp_path / "run")

    def test_a_teacher_whose_statistics_are_infinite(self, place: Path, tmp_path: Path) -> None:
        """Folded into its convolutions they would be zeros, and its maps finite."""
        options = {"how": "none", "width": 10}
        raw = runkit.distillation(place, tmp_path / "t.safetensors")
        raw["teacher"] = {**raw["teacher"], "model": f"{place}/nets.py:odd", "options": options}
        raw["train"] = asked(place)["train"]
        network = {
            f"{number}.{name}": value
            for number, module in ((0, nn.Conv2d(3, 10, 3)), (3, nn.Conv2d(10, 3, 1)))
            for name, value in module.state_dict().items()
        }
        norm = nn.BatchNorm2d(10)
        norm.running_var.fill_(torch.inf)  # type: ignore[union-attr]
        network |= {f"1.{name}": value for name, value in norm.state_dict().items()} | {"4.kept": torch.zeros(1)}
        files.write_tensors(tmp_path / "t.safetensors", network)
        with pytest.raises(
            ModelError, match=r"the teacher's '1\.running_var' holds 10 values of 10 that are not finite"
        ):
            distill(raw, out=tmp_path / "run")
