"""A run's student is opened only as the run recorded it: damage is told, by every command, before it is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from densekd import files
from densekd.cli.app import app
from densekd.errors import CheckpointError
from densekd.export import export_run
from densekd.models.checkpoint import load_checkpoint
from densekd.models.run_student import require_recorded, unrecorded
from densekd.models.specs import CheckpointSpec
from densekd.runs import Run, train
from densekd.runs.restore import restore_student
from densekd.runs.score import score_run
from killkit import unflushed
from runkit import Heard, make_place, recipe

DAMAGED = (
    r"student\.safetensors: damaged: its SHA-256 differs from the one in record\.json\. --resume of that run writes it"
)


def flip(path: Path) -> None:
    """Change one bit of the last value."""
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def kept(folder: Path, **changes: Any) -> Path:
    """A folder with a student and a record that keeps its checksum."""
    folder.mkdir()
    path = folder / "student.safetensors"
    path.write_bytes(files.tensor_bytes(nn.Linear(2, 1).state_dict()))
    record = {"status": "done", "recipe_sha256": "ab", "student_sha256": files.sha256_file(path), **changes}
    (folder / "record.json").write_text(json.dumps(record))
    return path


class TestFile:
    def test_as_recorded(self, tmp_path: Path) -> None:
        path = kept(tmp_path / "run")
        notices: list[str] = []
        load_checkpoint(nn.Linear(2, 1), CheckpointSpec(path=str(tmp_path / "run")), notices=notices)
        assert (unrecorded(path), notices) == (None, [])

    @pytest.mark.parametrize("named", ["run", "run/student.safetensors"])
    def test_one_bit_is_another(self, tmp_path: Path, named: str) -> None:
        flip(kept(tmp_path / "run"))
        network = nn.Linear(2, 1)
        before = network.weight.clone()
        with pytest.raises(CheckpointError, match=DAMAGED):
            load_checkpoint(network, CheckpointSpec(path=str(tmp_path / named)))
        assert torch.equal(network.weight, before)

    @pytest.mark.parametrize("status", ["running", "interrupted", "failed"])
    def test_of_a_run_that_is_not_finished(self, tmp_path: Path, status: str) -> None:
        path = kept(tmp_path / "run", status=status)
        flip(path)
        with pytest.raises(CheckpointError, match=r"the run is not finished.* go on with the run by --resume"):
            require_recorded(path)

    @pytest.mark.parametrize("known", [{}, {"student_sha256": None}])
    def test_of_an_earlier_version(self, tmp_path: Path, known: dict[str, None]) -> None:
        path = kept(tmp_path / "run")
        (tmp_path / "run" / "record.json").write_text(json.dumps({"status": "done", "recipe_sha256": "ab", **known}))
        notices: list[str] = []
        load_checkpoint(nn.Linear(2, 1), CheckpointSpec(path=str(path)), notices=notices)
        assert notices == [unrecorded(path)]
        assert "keeps no checksum of it, so it is not compared" in notices[0]

    def test_what_is_no_student_of_a_run(self, tmp_path: Path) -> None:
        path = kept(tmp_path / "run")
        flip(path)
        other = path.rename(path.with_name("other.safetensors"))
        alone = shutil.copy(other, tmp_path / "student.safetensors")
        for one in (other, alone):
            require_recorded(one)
            assert unrecorded(one) is None
        (tmp_path / "record.json").write_text('{"student_sha256": "of something else"}')
        require_recorded(alone)


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Run:
    place = make_place(tmp_path_factory.mktemp("data"), train=4, val=2)
    asked = recipe(place)
    asked["train"] |= {"steps": 2, "batch_size": 2}
    with unflushed():
        return train(asked, out=tmp_path_factory.mktemp("finished") / "run")


@pytest.fixture
def run(finished: Run, tmp_path: Path) -> Run:
    """A copy that may be changed, and may be opened as if it were made there."""
    shutil.copytree(finished.path, tmp_path / "run")
    return Run.load(tmp_path / "run", trust=True)


def forget(run: Run) -> None:
    """Make it a run of a version that kept no checksum."""
    record = json.loads((run.path / "record.json").read_text())
    del record["student_sha256"]
    (run.path / "record.json").write_text(json.dumps(record))
    for path in (run.path / "checkpoints").glob("step-*"):
        state = json.loads((path / "state.json").read_text())
        del state["student_sha256"]
        (path / "state.json").write_text(json.dumps(state))
        sums = {one.name: files.sha256_file(one) for one in path.iterdir() if one.name != "checksums.json"}
        (path / "checksums.json").write_text(json.dumps(sums))


def resumed(run: Run) -> list[str]:
    listening = Heard()
    with unflushed():
        train(run.path, resume=True, progress=listening)
    return listening.lines


@pytest.mark.slow
class TestRun:
    def test_it_records_what_it_left(self, finished: Run) -> None:
        assert finished.record.student_sha256 == files.sha256_file(finished.weights)

    @pytest.mark.parametrize(
        "use",
        [
            pytest.param(lambda run, out: run.student(), id="student"),
            pytest.param(lambda run, out: score_run(run), id="evaluate"),
            pytest.param(lambda run, out: export_run(run, "safetensors", out=out / "x.safetensors"), id="export"),
            pytest.param(lambda run, out: train(teacher_of(run), out=out / "next"), id="a recipe"),
        ],
    )
    def test_a_damaged_one_is_told(self, run: Run, tmp_path: Path, use: Callable[[Run, Path], object]) -> None:
        flip(run.weights)
        with pytest.raises(CheckpointError, match=DAMAGED):
            use(run, tmp_path)
        lines = resumed(run)
        assert "was not the student of step 2, the best one; restored from" in lines[0]
        assert run.record.student_sha256 == files.sha256_file(run.weights)
        use(run, tmp_path)

    @pytest.mark.parametrize(
        "command",
        [["predict", "{run}", "{image}", "--out", "{out}"], ["inspect", "{run}"], ["bench", "latency", "{run}"]],
        ids=lambda command: command[0],
    )
    def test_by_a_command(self, run: Run, tmp_path: Path, command: list[str]) -> None:
        flip(run.weights)
        image = next((Path(run.recipe.data.root) / "val" / "images").iterdir())
        words = [word.format(run=run.path, image=image, out=tmp_path / "out") for word in command]
        found = CliRunner().invoke(app, [*words, "--trust"])
        assert found.exit_code == 2
        assert "damaged: its SHA-256 differs" in found.stderr

    def test_an_earlier_version_s_is_told_once_and_compared_by_a_resume(self, run: Run) -> None:
        forget(run)
        found = CliRunner().invoke(app, ["inspect", str(run.path), "--trust"])
        assert found.exit_code == 0
        assert found.stderr.count("keeps no checksum of it, so it is not compared") == 1
        assert [line for line in resumed(run) if "student" in line] == []
        assert run.record.student_sha256 == files.sha256_file(run.weights)

    def test_an_earlier_version_s_run_that_is_gone_on_with(self, run: Run) -> None:
        forget(run)
        record = json.loads((run.path / "record.json").read_text())
        (run.path / "record.json").write_text(json.dumps({**record, "status": "running"}))
        resumed(run)
        assert run.record.student_sha256 == files.sha256_file(run.weights)

    def test_one_that_cannot_be_restored(self, run: Run) -> None:
        """Finished: the resume ends in an error. Not finished: it can go on, and the student stays known as damaged."""
        step, digest = run.record.best.step, run.record.student_sha256
        flip(run.weights)
        files.remove_folder(run.path / "checkpoints" / f"step-{step:08d}")
        found = restore_student(run.path, run.recipe, step, digest)
        assert (found.damaged, found.sha256) == (True, digest)
        with pytest.raises(CheckpointError, match=r"not the student of step 2, .* Put the file back"):
            resumed(run)

    def test_its_checkpoint_is_not_needed_while_it_is_whole(self, run: Run) -> None:
        files.remove_folder(run.path / "checkpoints" / f"step-{run.record.best.step:08d}")
        assert resumed(run) == [f"{run.path}: this run is done already; nothing to resume"]


def teacher_of(run: Run) -> dict[str, Any]:
    """A recipe that begins with the run's student."""
    asked = run.recipe.model_dump(mode="json")
    asked["student"]["checkpoint"] = {"path": str(run.path)}
    return asked
