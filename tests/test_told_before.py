"""Lines of a run that come before its work: whose code is executed, and a teacher that has nothing to teach."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

import runkit
from densekd.cli.main import _run
from densekd.errors import ModelError
from densekd.models.build import code_words
from densekd.models.specs import ModelSpec
from densekd.runs import Run, distill, train

NORMED = """
import torch


def normed(num_classes: int, width: int = 6) -> nn.Module:
    torch.manual_seed(0)
    return student(num_classes, width, dropout=0.0)
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    root = runkit.make_place(tmp_path_factory.mktemp("place"), train=4, val=2)
    (root / "nets.py").write_text(runkit.NETWORKS + NORMED)
    return root


def test_networks_of_libraries_execute_no_file() -> None:
    assert code_words(ModelSpec(model="smp:FPN")) is None
    assert code_words(None) is None


@pytest.mark.parametrize("call", [train, distill])
def test_a_file_is_named_before_it_is_executed(place: Path, tmp_path: Path, call: Callable[..., Run]) -> None:
    (tmp_path / "bad.py").write_text("1 / 0")
    asked = runkit.distillation(place, place, student={"model": f"{tmp_path}/bad.py:build"})
    heard = runkit.Heard()
    with pytest.raises(ModelError, match=r"bad\.py:1: ZeroDivisionError"):
        call(asked, out=tmp_path / "run", progress=heard)
    files = [f"{tmp_path}/bad.py", f"{place}/nets.py"][: 1 if call is train else 2]
    assert heard.lines == [f"{file} is executed, because the model reference names it" for file in files]


@pytest.mark.slow
@pytest.mark.parametrize("command", ["train", "distill", "doctor"])
def test_commands_say_it_once(
    place: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = runkit.distillation(place, place)
    asked["teacher"] = {**asked["teacher"], "checkpoint": None, "untrained": True}
    asked["preflight"]["teacher_images"] = 0
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(asked))
    monkeypatch.chdir(tmp_path)
    _run([command, "r.yaml", "train.steps=2"])
    told = capsys.readouterr().err.splitlines()
    line = f"{place}/nets.py is executed, because the model reference names it"
    assert (told[0], told.count(line)) == (line, 1)
    if command != "doctor":
        assert Run.load(tmp_path / "runs" / "tiny").record.warnings.count(line) == 1


@pytest.mark.slow
def test_a_teacher_with_the_weights_of_the_student_is_told_though_it_is_folded(place: Path, tmp_path: Path) -> None:
    network = {"model": f"{place}/nets.py:normed"}
    asked = runkit.distillation(place, place, student=network)
    asked["teacher"] = {**asked["teacher"], **network, "checkpoint": None}
    twin = distill(asked, out=tmp_path / "twin").record.warnings
    words = "student and teacher have the same weights: there is nothing to learn until the student changes"
    assert twin.count(words) == 1
    assert not [line for line in twin if "more parameters" in line]  # the folded copy has fewer

    asked["teacher"]["options"] = {"width": 4}
    smaller = distill(asked, out=tmp_path / "smaller").record.warnings
    assert [line for line in smaller if line.startswith("the student has more parameters than the teacher (201 and ")]
    assert words not in smaller
