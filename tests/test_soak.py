"""The soak: slopes of known series, what counts as flat, and that a run which leaks is found by the same readings."""

from __future__ import annotations

import gc
import mmap
from dataclasses import replace
from pathlib import Path

import pytest
from torch import nn

from densekd.bench import soak, soak_runs
from densekd.bench.soak import Gauge, Reading, growth, slope
from densekd.bench.soak_runs import Stage
from densekd.errors import ArgumentError
from densekd.records import BenchCase, dump
from densekd.runs import distill

LEAKING = """
import mmap
import os

from torch import nn

KEPT = []


class Leaking(nn.Sequential):
    def forward(self, x):
        if self.training:
            fresh = mmap.mmap(-1, 200_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)  # not from what is free in the heap
            fresh.write(bytes(range(200)) * 1000)
            KEPT.append((fresh, os.open(os.devnull, os.O_RDONLY)))
        return super().forward(x)


def student(num_classes):
    return Leaking(nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Conv2d(6, num_classes, 1))


def teacher(num_classes):
    return nn.Sequential(nn.Conv2d(3, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, num_classes, 1))
"""
SHORT = Stage("short", 160, every=8, keys={"train.evaluate_every": 80, "train.checkpoint_every": 40})


def series(count: int = 25, **changes: float) -> list[Reading]:
    """Readings after every 100 steps whose fields grow by so much each time."""
    flat = Reading(0, 0.0, 900_000_000, 500_000_000, 0, 0, 7, 2, 5000, 60)
    return [
        replace(flat, step=100 * place, **{name: getattr(flat, name) + int(by * place) for name, by in changes.items()})
        for place in range(1, count + 1)
    ]


def test_the_slope_and_its_spread() -> None:
    steps = [100.0 * place for place in range(10)]
    assert slope(steps, [5 + 0.003 * step for step in steps]).value == pytest.approx(3)
    # By hand: a step from 0 to 1 in the middle. Over x = 0..9: sum((x - 4.5) y) / sum((x - 4.5)**2) = 12.5 / 82.5.
    found = slope(steps, [0.0] * 5 + [1.0] * 5)
    assert found.value == pytest.approx(10 * 12.5 / 82.5)
    # Without 0 and 1: mean 5.5, (5 - 5.5 + ... + 9 - 5.5) / 42 = 7.5 / 42; the largest of the five.
    assert found.high == pytest.approx(10 * 7.5 / 42)
    assert found.high > found.value > found.low
    with pytest.raises(ArgumentError, match=r"expected 10 values or more"):
        slope([1.0, 2.0], [1.0, 2.0])


@pytest.mark.parametrize(
    ("changes", "met"),
    [
        *[
            ({}, True),
            ({"own": 99_000, "rss": 200_000}, True),
            ({"own": 101_000}, False),
            ({"children_rss": 101_000}, False),
        ],
        *[
            ({"files": 0.1}, False),
            ({"files": -0.1}, True),
            ({"threads": 0.1}, False),
            ({"objects": 10, "tensors": 1}, True),
        ],
    ],
)
def test_what_is_flat(changes: dict[str, float], met: bool) -> None:
    found = growth(series(**changes))
    assert found["met"] is met
    assert found["own_slope"] == pytest.approx(changes.get("own", 0) / 1e5)
    assert found["rss_slope"] == pytest.approx(changes.get("rss", 0) / 1e5)
    assert (found["steps"], found["readings"]) == (2500, 20)
    assert found["tensors_slope"] == pytest.approx(10 * changes.get("tensors", 0))


def test_the_start_is_left_out() -> None:
    readings = series(25)
    readings[:5] = [replace(one, own=1000 * place, files=50) for place, one in enumerate(readings[:5])]
    assert growth(readings)["own_slope"] == 0
    assert growth(readings)["files_most"] == 7
    with pytest.raises(ArgumentError, match=r"8 readings after warm-up, expected 10 or more: take more steps"):
        growth(series(10))


def test_the_record_and_its_verdict() -> None:
    readings = [replace(one, seconds=0.5 * one.step) for one in series(own=101_000)]
    case = soak_runs.case(
        Stage("one run", 2500, every=100, page_every=1000, keys={"train.evaluate_every": 300}), readings
    )
    assert isinstance(BenchCase.model_validate(dump(case)), BenchCase)
    assert case.median_seconds == 0.5
    assert {name: case.extra[name] for name in ("runs", "evaluations", "pages")} == {
        "runs": 1,
        "evaluations": 9,
        "pages": 3,
    }
    words = soak_runs.verdict([case])
    assert (
        words
        == "NOT MET (under 1 MB, files and threads flat): one run: 1.01 MB in 1,000 steps (1.01 to 1.01), at most 7 "
        "open files"
    )
    assert soak_runs.verdict([soak_runs.case(SHORT, series())]).startswith("met")


@pytest.mark.slow
def test_readings_are_of_this_process(tmp_path: Path) -> None:
    gauge, kept = Gauge(2, collect=True), []
    gauge.step(1)
    gauge.step(2)
    kept.append(mmap.mmap(-1, 48_000_000, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS))  # not from what is free in the heap
    kept[0].write(bytes(48_000_000))
    with (tmp_path / "open").open("w"):
        gauge.step(4)
    first, second = gauge.readings
    assert (first.step, second.step, second.files - first.files) == (2, 4, 1)
    assert second.own - first.own > 40e6
    assert second.rss >= second.own  # no more of it: the system may take pages of files back at any time
    assert second.threads >= 1
    assert second.objects > 1000
    with pytest.raises(ArgumentError, match="whole number of steps from 1"):
        Gauge(0)


@pytest.mark.slow
def test_a_run_that_leaks_is_found_and_ours_is_flat(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    flat = growth(soak_runs.readings(tmp_path / "flat", SHORT, soak_runs.make_place(tmp_path / "flat")))
    monkeypatch.setattr(soak_runs, "NETWORKS", LEAKING)
    leaking = growth(soak_runs.readings(tmp_path / "leaking", SHORT, soak_runs.make_place(tmp_path / "leaking")))
    # Each step keeps 200,000 bytes and a file: 200 MB in 1,000 steps. Of a few hundred, single megabytes say nothing.
    assert leaking["own_slope"] > 150
    assert not leaking["met"]
    assert leaking["files_most"] - leaking["series"][0][soak.NAMES.index("files")] >= 150
    assert flat["own_slope"] < 75
    assert flat["files_most"] == flat["files_last"]
    assert (flat["tensors_slope"], flat["threads_last"]) == (0, flat["threads_most"])


@pytest.mark.slow
def test_the_networks_of_a_run_are_freed_when_it_ends(tmp_path: Path) -> None:
    """Not when Python's collector comes by: a run after it would not have their memory."""
    recipe = soak_runs.make_place(tmp_path)

    def networks() -> int:
        return sum(issubclass(kind, nn.Parameter) for kind in map(type, gc.get_objects()))

    gc.collect()
    before = networks()
    gc.disable()
    try:
        distill(recipe, out=tmp_path / "run", train__steps=4, train__evaluate_every=2)
        assert networks() == before
    finally:
        gc.enable()
