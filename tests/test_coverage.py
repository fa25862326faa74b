from __future__ import annotations

import csv
from pathlib import Path

from densekd.predict.coverage import Coverage


def rows(path: Path) -> list[list[str]]:
    with path.open(encoding="utf-8", newline="") as stream:
        return list(csv.reader(stream))


def test_shares_and_their_mean(tmp_path: Path) -> None:
    table = Coverage(tmp_path / "out", ["sky", "a, b", "road"])
    table.add("one", {"sky": 0.25, "road": 0.75})
    table.add("clip.mp4", {"a, b": 1.0}, 1)
    assert not list((tmp_path / "out").glob("*.csv"))
    path = table.finish()
    assert path == tmp_path / "out" / "coverage.csv"
    assert rows(path) == [
        ["image", "frame", "sky", "a, b", "road"],
        ["one", "", "0.250000", "0.000000", "0.750000"],
        ["clip.mp4", "1", "0.000000", "1.000000", "0.000000"],
        ["mean", "", "0.125000", "0.500000", "0.375000"],
    ]
    assert [entry.name for entry in path.parent.iterdir()] == ["coverage.csv"]


def test_what_was_broken_off_has_another_name_and_no_mean(tmp_path: Path) -> None:
    table = Coverage(tmp_path, ["a"])
    table.add("one", {"a": 1.0})
    assert table.stop() == tmp_path / "coverage.partial.csv"
    assert rows(tmp_path / "coverage.partial.csv") == [["image", "frame", "a"], ["one", "", "1.000000"]]
    again = Coverage(tmp_path, ["a"])
    again.add("one", {"a": 1.0})
    again.finish()
    assert [entry.name for entry in tmp_path.iterdir()] == ["coverage.csv"]


def test_nothing_done_leaves_nothing(tmp_path: Path) -> None:
    assert Coverage(tmp_path, ["a"]).stop() is None
    assert not list(tmp_path.iterdir())
