"""Damage of any file of a checkpoint is found by the checksums, named, and the checkpoint before it is used."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from densekd import files
from densekd.errors import CheckpointError
from densekd.runs import distill
from densekd.training.checkpointer import Checkpointer, Position
from killkit import unflushed
from runkit import Heard, make_place
from test_kill_anywhere import Known, asked

NAMES = ("student.safetensors", "adapters.safetensors", "optimizer.safetensors", "optimizer.json", "state.json")
SUMS = "checksums.json"


def make_checkpoint(folder: Path, step: int) -> Path:
    content = {name: f"{name} of step {step}".encode() * 9 for name in NAMES}
    content[SUMS] = json.dumps({name: files.sha256(data) for name, data in content.items()}).encode()
    path = Checkpointer(folder).path(step)
    with unflushed():
        files.write_folder(path, content)
    return path


def cut(path: Path, at: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(at * len(data))])


def zero(path: Path, at: float) -> None:
    data = path.read_bytes()
    path.write_bytes(data[: int(at * len(data))] + bytes(len(data) - int(at * len(data))))


def flip(path: Path, at: float) -> None:
    data = bytearray(path.read_bytes())
    data[int(at * len(data))] ^= 1
    path.write_bytes(data)


def lose(path: Path, at: float) -> None:
    path.unlink()


def other(path: Path, at: float) -> None:
    """A folder in its place."""
    path.unlink()
    path.mkdir()


DAMAGES: dict[str, Callable[[Path, float], None]] = {
    "cut": cut,
    "zeroed": zero,
    "flipped": flip,
    "lost": lose,
    "a folder": other,
}


@pytest.mark.slow
@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    name=st.sampled_from([*NAMES, SUMS]),
    damage=st.sampled_from(sorted(DAMAGES)),
    at=st.floats(min_value=0, max_value=1, exclude_max=True),
)
def test_it_is_found_and_the_one_before_is_used(tmp_path: Path, name: str, damage: str, at: float) -> None:
    shutil.rmtree(tmp_path / "checkpoints", ignore_errors=True)
    before, last = make_checkpoint(tmp_path, 1), make_checkpoint(tmp_path, 2)
    assert Checkpointer(tmp_path).latest() == (last, [])
    DAMAGES[damage](last / name, at)
    found = Checkpointer(tmp_path).latest()
    assert found.path == before
    assert len(found.damage) == 1
    assert str(last) in found.damage[0]
    if name != SUMS:  # a changed list of sums may name any file
        assert str(last / name) in found.damage[0]
    DAMAGES[damage](before / name, at)
    with pytest.raises(CheckpointError, match=r"no checkpoint can be used: .*--force starts again") as caught:
        Checkpointer(tmp_path).latest()
    assert str(before) in str(caught.value)


@pytest.mark.parametrize("missing", ["student.safetensors", "state.json"])
def test_a_list_of_sums_that_leaves_out_what_a_resume_needs(tmp_path: Path, missing: str) -> None:
    path = make_checkpoint(tmp_path, 1)
    sums = files.read_json(path / SUMS)
    del sums[missing]
    files.write_json(path / SUMS, sums)
    assert Checkpointer.damage(path) == f"{path / SUMS}: holds no checksum of {missing}"


@pytest.mark.parametrize("name", ["a\0b", "a\udce9", "a" * 5000])
def test_a_list_of_sums_with_names_that_no_file_has(tmp_path: Path, name: str) -> None:
    path = make_checkpoint(tmp_path, 1)
    (path / SUMS).write_text(json.dumps({**files.read_json(path / SUMS), name: "ab"}))
    assert Checkpointer.damage(path) is not None


def test_what_somebody_copied_is_no_checkpoint(tmp_path: Path) -> None:
    path = make_checkpoint(tmp_path, 1)
    for name in ("step-00000002 copy", "step-00000003.bak", "step-1"):
        shutil.copytree(path, path.with_name(name))
    assert Checkpointer(tmp_path).latest() == (path, [])
    with unflushed():
        Checkpointer(tmp_path).settle(Position(taken=1))
    assert len(list((tmp_path / "checkpoints").glob("step-*"))) == 4


@pytest.fixture(scope="module")
def known(tmp_path_factory: pytest.TempPathFactory) -> Known:
    place = make_place(tmp_path_factory.mktemp("data"), train=4, val=2)
    return Known(asked(place), tmp_path_factory.mktemp("known") / "run")


def begun(known: Known, folder: Path) -> Path:
    """The run with its last two checkpoints, and all steps to be said again."""
    shutil.copytree(known.run.path, folder)
    record = json.loads((folder / "record.json").read_text())
    files.write_json(folder / "record.json", {**record, "status": "running"})
    return folder / "checkpoints"


def resumed(known: Known, folder: Path) -> list[str]:
    listening = Heard()
    with unflushed():
        run = distill(known.recipe, out=folder, resume=True, progress=listening)
    known.expect_same(run, folder.name)
    return listening.lines


@pytest.mark.slow
class TestRuns:
    def test_each_file_of_the_newest_one(self, known: Known, tmp_path: Path) -> None:
        names = sorted(path.name for path in (known.run.path / "checkpoints" / "step-00000003").iterdir())
        assert {*names} >= {*NAMES, SUMS, "average.safetensors"}
        damages: list[Any] = sorted(DAMAGES.items())
        for number, name in enumerate(names):
            how, damage = damages[number % len(damages)]
            folder = tmp_path / f"{name} {how}"
            path = begun(known, folder) / "step-00000003" / name
            damage(path, 0.5)
            lines = resumed(known, folder)
            named = path.parent if name == SUMS else path  # a changed list of sums may name any file
            assert any(f"checkpoint passed over: {named}" in line for line in lines), (name, how, lines)
            assert any("step-00000002 (step 2 of 3)" in line for line in lines)

    @pytest.mark.parametrize("content", [b"", b"step-00000099\n", b"\xff\x00", None])
    def test_the_pointer_is_for_people(self, known: Known, tmp_path: Path, content: bytes | None) -> None:
        """A resume finds the newest checkpoint by itself, and puts the pointer right."""
        pointer = begun(known, tmp_path / "run") / "latest"
        pointer.unlink() if content is None else pointer.write_bytes(content)
        lines = resumed(known, tmp_path / "run")
        assert any("step-00000003 (step 3 of 3)" in line for line in lines)

    @pytest.mark.parametrize("damage", sorted(DAMAGES.keys() - {"a folder"}))
    def test_the_best_student(self, known: Known, tmp_path: Path, damage: str) -> None:
        begun(known, tmp_path / "run")
        path = tmp_path / "run" / "student.safetensors"
        DAMAGES[damage](path, 0.5)
        lines = resumed(known, tmp_path / "run")
        assert [line for line in lines if line.startswith(str(path)) and "restored from" in line]
