"""A step that ended in a value that is not finite is kept, and `densekd doctor --replay` finds where it arose."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from densekd import files
from densekd.cli.app import call
from densekd.errors import CheckpointError, NonFiniteError, RunError
from densekd.runs import Run, distill, train
from densekd.runs.replay import AS_RUN, PLAIN, replay
from densekd.training.batcher import epoch_order
from densekd.training.evidence import Evidence, Shown
from densekd.training.examined import First, look_at
from densekd.training.failed_step import kept_error, where
from densekd.training.peers import Peers
from densekd.training.replay import read_step
from runkit import distillation, make_place, recipe

MORE = """
import torch


class Brittle(nn.Module):
    def forward(self, x):
        return x / (x.amax((1, 2, 3), keepdim=True) < 40.0)


class Root(nn.Module):
    def forward(self, x):
        return x + (x * 0).sqrt()


def brittle(num_classes: int) -> nn.Module:
    network = nn.Sequential(nn.Conv2d(3, 4, 1), Brittle(), nn.Conv2d(4, num_classes, 1))
    nn.init.constant_(network[0].weight, 10.0)
    return network


def root(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 4, 1), Root(), nn.Conv2d(4, num_classes, 1))
"""


class TestLooks:
    def test_what_is_not_finite_is_counted_and_the_rest_measured(self):
        found = look_at("map", [torch.tensor([3.0, torch.nan]), torch.tensor([[-4.0], [torch.inf]])], "note")
        assert (found.count, found.bad, found.low, found.high, found.norm) == (4, 2, -4.0, 3.0, 5.0)
        assert not found.finite
        assert look_at("map", torch.full((2,), torch.nan)).norm is None
        assert look_at("map", torch.full((2,), 1e30)).norm == pytest.approx(2**0.5 * 1e30)  # no overflow in the sum

    def test_the_first_module_forwards_and_backwards(self):
        class Log(nn.Module):
            def forward(self, x):
                return (x - x).log() if self.training else (x * 0).sqrt()

        network = nn.Sequential(nn.Conv2d(1, 1, 1, bias=False), nn.Sequential(nn.Identity(), Log()), nn.ReLU())
        with First(network) as first:
            network(torch.ones(1, 1, 2, 2))
        assert first.forward == "1.1 (Log)"
        network.eval()
        with First(network) as first:
            network(torch.zeros(1, 1, 2, 2)).sum().backward()
        assert (first.forward, first.backward) == ("", "0 (Conv2d)")
        assert not any(module._forward_hooks for module in network.modules())

    def test_nothing_seen_is_nothing_said(self):
        assert where(None) == ""


class Another(Peers):
    """Two processes, of which the other one sees where a value arose."""

    def texts(self, text):
        return [text, " First: the output of module head (Conv2d) of the student is not finite."]


class Known:
    """What a stepper shows of itself, where it saw nothing of its own."""

    def __init__(self, **evidence):
        self.plain, self.peers = nn.Identity(), Another(0, 2)
        self.evidence = Evidence(4, [Shown({"image": torch.ones(1)}, None)], **evidence)


def test_a_process_that_did_not_see_it_keeps_nothing(tmp_path: Path):
    error = NonFiniteError("step 5: not finite")
    assert kept_error(error, Known(), tmp_path, str) is error
    said = str(kept_error(error, Known(kind="loss", bad=["total"], mine=False), tmp_path, str))
    assert said == (
        "step 5: not finite. First, in process 1: the output of module head (Conv2d) of the student is not finite. The "
        f"process that saw it keeps its batch in {tmp_path}/replay"
    )
    assert not list(tmp_path.iterdir())


def test_what_is_no_kept_step_is_refused(tmp_path: Path):
    with pytest.raises(RunError, match=r"holds no kept step: expected runs/<name>/replay/step-"):
        replay(tmp_path, {})
    (tmp_path / "replay.json").write_text('{"schema": 1}')
    with pytest.raises(RunError, match="not in a run's folder"):
        replay(tmp_path, {})
    with pytest.raises(CheckpointError, match=r"batches\.safetensors: no such file"):
        read_step(tmp_path)
    files.write_tensors(tmp_path / "batches.safetensors", {"0.image": torch.ones(1)})
    with pytest.raises(CheckpointError, match="not a step kept by a run"):
        read_step(tmp_path)
    (tmp_path / "replay.json").write_text("[]")
    with pytest.raises(CheckpointError, match="schema 1"):
        read_step(tmp_path)


def test_the_command_asks_for_one_of_both(capsys, tmp_path: Path):
    with pytest.raises(SystemExit):
        call(["doctor"])
    assert "doctor needs a RECIPE, or --replay" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        call(["doctor", "folder", "--replay", str(tmp_path)])
    assert "leave 'folder' out" in capsys.readouterr().err


@pytest.fixture(scope="module")
def place(tmp_path_factory) -> Path:
    """One training image is white, and is first seen in the second step."""
    root = make_place(tmp_path_factory.mktemp("place"))
    (root / "nets.py").write_text((root / "nets.py").read_text() + MORE)
    white = max(epoch_order(0, 0, 10)[3:6])
    Image.fromarray(np.full((16, 24, 3), 255, np.uint8)).save(root / "train" / "images" / f"{white}.png")
    return root


@pytest.fixture(scope="module")
def broken(place, tmp_path_factory) -> tuple[Path, str]:
    """A run whose teacher overflows on that image, and its error."""
    asked = distillation(place, place)
    asked["teacher"] = {**asked["teacher"], "model": f"{place}/nets.py:brittle", "checkpoint": None}
    asked["terms"] = [{"student": "output", "teacher": "output"}]
    asked["preflight"] = {"teacher_images": 0, "on_problem": "warn"}
    out = tmp_path_factory.mktemp("runs") / "broken"
    with pytest.raises(NonFiniteError) as caught:
        distill(asked, out=out)
    return out, str(caught.value)


@pytest.mark.slow
class TestTeacher:
    def test_the_teacher_is_named_with_its_tap_and_module(self, broken):
        out, said = broken
        assert said.startswith("step 2: not finite: the teacher's map of term 'channelwise:output'")
        assert "First: the output of module 1 (Brittle) of the teacher is not finite (teacher map output)" in said
        assert f"densekd doctor --replay {out}/replay/step-00000002" in said
        assert Run.load(out).record.error == f"NonFiniteError: {said}"

    def test_what_is_kept(self, broken, place):
        out, _ = broken
        kept = read_step(out / "replay" / "step-00000002")
        names = [str(index) for index in epoch_order(0, 0, 10)[3:6]]
        assert kept.manifest["kind"] == "teacher"
        assert kept.manifest["not_finite"] == ["channelwise:output"]
        assert kept.manifest["losses"]["total"] == "nan"
        assert sorted(kept.manifest["samples"][0]) == sorted(f"{name}" for name in names)
        assert kept.shown[0].batch["image"].shape == (3, 3, 16, 24)
        assert "student" in kept.states

    def test_the_replay_finds_it_again(self, broken):
        found = replay(broken[0], {})
        for name in (AS_RUN, PLAIN):
            one = found.passes[name]
            assert one.teacher == "1 (Brittle)"
            assert not one.student
            assert one.bad("teacher map output")
            assert not one.bad("student map")
            assert not one.bad("teacher weights")
            assert not one.bad("images")
            assert [look.what for look in one.bad("term")] == ["term channelwise:output"]
        assert "the teacher overflows on these images" in " ".join(found.advice)
        assert found.notices[0] == "weights: those of step 2 itself, kept with it"

    def test_as_a_command(self, broken, capsys):
        assert call(["doctor", "--replay", str(broken[0] / "replay" / "step-00000002"), "runtime.threads=1"]) == 0
        shown = capsys.readouterr()
        rows = [line.split("\t") for line in shown.out.splitlines()]
        assert rows[0] == ["pass", "what", "finite", "min", "max", "norm", "note"]
        row = next(row for row in rows if row[:2] == [AS_RUN, "teacher map output"])
        assert row[2].startswith("no: ")
        assert row[6] == "term channelwise:output; first not finite: 1 (Brittle)"
        assert "as in the run: first not finite: teacher: 1 (Brittle)" in shown.err
        assert call(["doctor", "--replay", str(broken[0]), "--json"]) == 0
        assert json.loads(capsys.readouterr().out)["first"][AS_RUN]["teacher"] == "1 (Brittle)"

    def test_without_its_weights_a_checkpoint_before_is_used_and_said(self, broken):
        weights = broken[0] / "replay" / "step-00000002" / "weights.safetensors"
        kept = weights.read_bytes()
        weights.unlink()
        try:
            found = replay(broken[0], {})
        finally:
            weights.write_bytes(kept)
        assert found.notices[0].endswith("those of the checkpoint step-00000001, before it: not the step's own")
        assert found.passes[AS_RUN].teacher == "1 (Brittle)"


@pytest.mark.slow
def test_a_gradient_is_found_backwards(place, tmp_path):
    with pytest.raises(NonFiniteError, match=r"step 1: the gradient .*first at the output of module 0 \(Conv2d\)"):
        train(recipe(place, student={"model": f"{place}/nets.py:root"}), out=tmp_path / "run")
    found = replay(tmp_path / "run", {})
    one = found.passes[AS_RUN]
    assert (one.student, one.backward) == ("", "0 (Conv2d)")
    assert not one.bad("task")
    assert not one.bad("total")
    assert one.bad("gradient of the weights")[0].note.startswith("not finite: student.0.weight")
    assert "the loss is finite and its gradient is not (first at 0 (Conv2d))" in found.advice[0]


@pytest.mark.slow
def test_a_copied_run_executes_no_code_unasked(broken, tmp_path):
    copied = tmp_path / "copy"
    shutil.copytree(broken[0], copied)
    with pytest.raises(RunError, match="give --trust"):
        replay(copied, {})
    assert replay(copied, {}, trust=True).passes[AS_RUN].teacher == "1 (Brittle)"
