"""The demo from end to end, small: teacher, two students, study, picture; a second call uses what is there."""

from __future__ import annotations

import shlex
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from densekd.config import parse_override
from densekd.demo import run_demo
from densekd.demo.run import _command
from densekd.errors import ConfigError, RunError
from densekd.runs import Run

DATA = {"data.train_count": 8, "data.val_count": 4, "data.size": [48, 64], "runtime.threads": 1}
SHORT = {"train.epochs": None, "train.steps": 2, "train.batch_size": 4}
STUDENTS = {**DATA, **SHORT, "preflight.on_problem": "warn", "preflight.teacher_images": 2}


@pytest.mark.slow
def test_the_demo_makes_teacher_students_study_and_picture(tmp_path: Path) -> None:
    folder = tmp_path / "demo"
    result = run_demo(folder, overrides=STUDENTS, teacher_overrides=SHORT)
    assert [line.name for line in result.study.record.methods] == ["none", "channelwise"]
    assert (folder / "study.json").is_file()
    teacher = Run.load(folder / "teacher")
    assert teacher.record.status == "done"
    assert teacher.record.steps == 2
    assert result.study.record.teacher.sha256
    assert result.study.record.notices == []  # the teacher's folder is no run that the study forgot
    assert result.study.record.methods[1].gain is not None
    with Image.open(result.figure) as picture:
        assert min(picture.size) > 400
    before = {path: path.stat().st_mtime_ns for path in folder.glob("*/student.safetensors")}
    assert len(before) == 3
    run_demo(folder, overrides=STUDENTS, teacher_overrides=SHORT)
    assert {path: path.stat().st_mtime_ns for path in folder.glob("*/student.safetensors")} == before
    with pytest.raises(RunError, match=r"teacher of a demo with other settings; use --force"):
        run_demo(folder, overrides=STUDENTS, teacher_overrides={**SHORT, "train.steps": 3})


@given(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text()
    | st.lists(st.integers(), max_size=3)
)  # fmt: skip
def test_the_command_of_the_record_can_be_typed_again(value: object) -> None:
    words = shlex.split(_command([0, 1], {"train.epochs": value}))
    assert words[:4] == ["densekd", "demo", "--seeds", "0,1"]
    assert parse_override(words[4]) == ("train.epochs", value)


def test_what_python_calls_none_is_null() -> None:
    assert (
        _command([0], {"train.epochs": None, "train.steps": 4})
        == "densekd demo --seeds 0 train.epochs=null train.steps=4"
    )


def test_mistakes_are_told_before_the_teacher_is_trained(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"keys of its teacher are fixed"):
        run_demo(tmp_path / "a", overrides={"teacher.options": {"encoder_name": "resnet34"}})
    with pytest.raises(ConfigError, match=r"--seeds 0,0: expected different numbers"):
        run_demo(tmp_path / "b", seeds=[0, 0])
    with pytest.raises(ConfigError, match=r"train\.stepz"):
        run_demo(tmp_path / "c", overrides={"train.stepz": 3})
    strange = tmp_path / "d"
    strange.mkdir()
    (strange / "letters.txt").write_text("mine")
    with pytest.raises(RunError, match=r"holds letters\.txt, and no teacher: it is no demo's"):
        run_demo(strange)
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["d", "letters.txt"]
