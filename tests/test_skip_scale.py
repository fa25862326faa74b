"""`data.on_error: skip` in two processes: the same images are left out in both, counted once, and told once."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest
import yaml

import corpuskit
from densekd.cli.main import _run
from densekd.runs import Run, execute, train
from runkit import log_without_times
from scalekit import Launched, launch, make_place, recipe

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes by forking"),
]
SPOILED = {"train": "41", "val": "13"}


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """100 training and 100 validation images, one of each truncated."""
    root = make_place(tmp_path_factory.mktemp("place"), train=100, val=100)
    for split, name in SPOILED.items():
        corpuskit.BAD["truncated.png"][0](root / split / "images" / f"{name}.png")
    return root


def asked(place: Path, world: int, **training: Any) -> dict[str, Any]:
    """A recipe of four steps of eight images, for so many processes."""
    raw = recipe(place, train={"steps": 4, "batch_size": 8 // world, "evaluate_every": 2, **training})
    return {**raw, "data": {**raw["data"], "on_error": "skip"}}


def names_seen(out: Path, rank: int) -> None:
    """From here on the names of the images that a process trains and scores on are kept in a file."""
    assemble = execute.assemble

    def watched(*args: Any, **options: Any) -> Any:
        parts = assemble(*args, **options)
        sets = (parts.data.train, parts.data.val)
        names = [[which.name_of(index) for index in range(len(which))] for which in sets]
        (out / f"names-{rank}.json").write_text(json.dumps(names))
        return parts

    execute.assemble = watched  # type: ignore[attr-defined]


@pytest.mark.parametrize("training", [{}, {"global_batch_size": 8}], ids=["batch", "global"])
def test_all_leave_out_the_same(place: Path, tmp_path: Path, training: dict[str, Any]) -> None:
    alone = train(asked(place, 1, **training), out=tmp_path / "one").record

    def work(rank: int) -> None:
        names_seen(tmp_path, rank)
        train(asked(place, 2, **training), out=tmp_path / "two")

    launched = launch(work, tmp_path / "io")
    names = [json.loads((tmp_path / f"names-{rank}.json").read_text()) for rank in range(2)]
    assert names[0] == names[1]
    for found, spoiled in zip(names[0], SPOILED.values(), strict=True):
        assert len(found) == 99
        assert spoiled not in found
    both = Run.load(tmp_path / "two").record
    assert both.left_out == alone.left_out
    assert {name: (one.count, one.of) for name, one in both.left_out.items()} == {"train": (1, 100), "val": (1, 100)}
    assert both.final is not None
    assert alone.final is not None
    assert (both.final.images, both.final.left_out, both.final.counted) == (99, 1, "99 of 100")
    assert both.final.miou == pytest.approx(alone.final.miou, abs=0.02)
    assert [line for line in both.warnings if "left out" in line] == [
        line for line in alone.warnings if "left out" in line
    ]
    assert "left out" not in launched.err(1)
    losses = [[float(line.split(",")[1]) for line in log_without_times(tmp_path / name)[1:]] for name in ("one", "two")]
    assert losses[1] == pytest.approx(losses[0], rel=1e-3)


def test_one_percent_is_of_the_split_and_one_says_it(place: Path, tmp_path: Path) -> None:
    raw = asked(place, 2)
    raw["data"]["val"] = {"split": "val", "include": "^1"}  # 1, 10 to 19: one of eleven is more than a hundredth
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(raw))

    def work(rank: int) -> None:
        raise SystemExit(_run(["train", str(tmp_path / "r.yaml"), "--out", str(tmp_path / "run")]))

    launched = Launched(work, 2, tmp_path / "io")
    assert launched.wait() == [2, 2]
    assert launched.err().count("(more than 1% of a split: val: 1 of 11)") == 1  # by the one that found it first
    assert not (tmp_path / "run").exists()
