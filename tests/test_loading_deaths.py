"""A loading process that fails, is killed, ends itself or hangs, wherever one loads: told, recorded, gone on with."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from clikit import densekd as densekd
from densekd.data.folder import FolderSet
from densekd.runs import Run
from runkit import distillation
from studykit import comparable_recipe, place_with_teacher

Command = Callable[..., tuple[int, str, str]]

RUNTIME = {"device": "cpu", "threads": 1, "workers": 2, "loading_minutes": 0.05}
WORDS = {
    "damaged": r"error: .*images/2\.png: cannot be read",
    "raises": r"error: .*nets\.py:\d+: ZeroDivisionError: in no file \(in your own code\)",
    "killed": r"error: loading process \d of 2 \(pid \d+\) was ended by signal Killed while it read '2'; .* memory",
    "exits": r"error: loading process \d of 2 \(pid \d+\) ended itself with exit code 5 while it read '2'",
    "hangs": r"error: the 2 .* no batch for 0\.05 minutes \(.*process \d reads '2'.* raise runtime\.loading_minutes",
}
# In a network's own file, so that the processes of a study do it too.
SABOTAGE = """
import os, signal, time
from pathlib import Path

from torch.utils.data import get_worker_info

from densekd.data.folder import FolderSet

HERE = Path(__file__).parent
load = FolderSet.load


def dying(self, index):
    image = self.pairs[index].image
    if get_worker_info() is not None and (HERE / "how").exists():
        split, how = (HERE / "how").read_text().split()
        if image.parent.parent.name == split and image.stem == "2":
            if how == "damaged":
                image.write_bytes(image.read_bytes()[:60])
            elif how == "raises":
                raise ZeroDivisionError("in no file")
            elif how == "killed":
                os.kill(os.getpid(), signal.SIGKILL)
            elif how == "exits":
                os._exit(5)
            else:
                time.sleep(1000)
    return load(self, index)


FolderSet.load = dying
"""


@pytest.fixture
def place(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Data and a teacher; networks whose loading processes may be told to die."""
    monkeypatch.setattr(FolderSet, "load", FolderSet.load)  # put back at the end
    root = place_with_teacher(tmp_path / "place")
    (root / "nets.py").write_text((root / "nets.py").read_text() + SABOTAGE)
    return root


def fails(densekd: Command, place: Path, split: str, how: str, raw: dict[str, Any], command: list[str]) -> str:
    """Give the command while loading processes die: standard error. Afterwards all is well again."""
    (place / "how").write_text(f"{split} {how}")
    (place / "recipe.yaml").write_text(yaml.safe_dump(raw))
    image = place / split / "images" / "2.png"
    whole, begin = image.read_bytes(), time.monotonic()
    code, _, err = densekd(*command)
    assert time.monotonic() - begin < 120  # and not for ever
    (place / "how").unlink()
    image.write_bytes(whole)
    assert code == (3 if command[0] == "compare" else 2), err
    return err


def told(err: str, how: str) -> None:
    assert re.search(WORDS[how], err), err


def recorded(run: Path, how: str) -> None:
    """The run's record says that it failed, why, and by which calls."""
    record = Run.load(run).record
    assert record.status == "failed"
    assert record.error is not None
    assert record.traceback is not None
    if how in ("damaged", "raises"):  # where a process is killed, nobody can say what it was calling
        assert "in dying" in record.traceback
        assert "in a loading process:" in record.traceback


SAMPLE = [("train", "killed"), ("val", "damaged")]
REST = [(split, how) for split in ("train", "val") for how in WORDS if (split, how) not in SAMPLE]


@pytest.mark.parametrize(
    ("split", "how"),
    [
        *(pytest.param(*case, marks=pytest.mark.slow) for case in SAMPLE),
        *(pytest.param(*case, marks=pytest.mark.long) for case in REST),
    ],
)
def test_training_and_evaluation(densekd: Command, place: Path, tmp_path: Path, split: str, how: str) -> None:
    raw, run = distillation(place, place / "teacher", runtime=RUNTIME), tmp_path / "run"
    command = ["distill", str(place / "recipe.yaml"), "--out", str(run), "-q"]
    told(fails(densekd, place, split, how, raw, command), how)
    recorded(run, how)
    code, _, err = densekd(*command, "--resume")
    assert code == 0, err
    record = Run.load(run).record
    assert (record.status, record.error, record.traceback) == ("done", None, None)


@pytest.mark.long
@pytest.mark.parametrize("how", WORDS)
def test_cache_build(densekd: Command, place: Path, how: str) -> None:
    raw = distillation(place, place / "teacher", runtime=RUNTIME)
    raw["distill"] = {"cache": {"root": str(place / "sets"), "views": 2, "ask": False}}
    command = ["cache", "build", str(place / "recipe.yaml"), "-q"]
    told(fails(densekd, place, "train", how, raw, command), how)
    code, _, err = densekd(*command)
    assert code == 0, err


@pytest.mark.long
@pytest.mark.parametrize("how", WORDS)
def test_compare(densekd: Command, place: Path, tmp_path: Path, how: str) -> None:
    raw, study = comparable_recipe(place, runtime=RUNTIME), tmp_path / "study"
    command = [
        "compare",
        str(place / "recipe.yaml"),
        "--methods",
        "channelwise",
        "--seeds",
        "0",
        "--out",
        str(study),
        "-q",
    ]
    err = fails(densekd, place, "train", how, raw, command)
    assert "2 of 2 runs failed" in err
    told(err.replace("none-s0: ", "error: "), how)
    recorded(study / "none-s0", how)
    code, _, err = densekd(*command)
    assert code == 0, err
    assert Run.load(study / "none-s0").record.status == "done"
