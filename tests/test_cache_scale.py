"""A set that two processes build together, each its share, and read in a run that is that of one process."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from densekd.runs import Run, distill
from scalekit import distillation, launch, make_place
from test_scale import log

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes by forking"),
]


def asked(place: Path, folder: Path, world: int, **runtime) -> dict:
    return distillation(
        place,
        train={"steps": 4, "batch_size": 4 // world, "evaluate_every": None},
        runtime=runtime,
        distill={"cache": {"root": str(folder), "views": 2, "ask": False}},
    )


def test_two_processes(tmp_path):
    place = make_place(tmp_path / "data")
    one = distill(asked(place, tmp_path / "maps-1", 1), out=tmp_path / "one")

    def work(rank: int) -> None:
        distill(asked(place, tmp_path / "maps-2", 2), out=tmp_path / "two")
        distill(asked(place, tmp_path / "maps-2", 2, fsdp=True), out=tmp_path / "sharded")  # reads the same set

    launch(work, tmp_path / "io")
    (folder,) = (tmp_path / "maps-2").iterdir()
    assert folder.name == Path(one.record.cache.folder).name
    assert {path.name.split("-")[0] for path in folder.glob("*.maps")} == {"rank000", "rank001"}
    for name in ("two", "sharded"):
        run = Run.load(tmp_path / name)
        assert run.record.cache.folder == str(folder)
        for found, expected in zip(log(run.path), log(one.path), strict=True):
            assert found["loss"] == pytest.approx(expected["loss"], rel=1e-4)
