from __future__ import annotations

import statistics
from pathlib import Path

import pytest

from densekd.config import load_recipe
from densekd.errors import RunError
from densekd.records import BestScores, Cost, NetworkCost, RunRecord, Scores, StudyRecord
from densekd.runs import Run, train
from densekd.runs.execute import Quiet
from densekd.study import (
    ALONE,
    Method,
    class_rows,
    paired_gain,
    run_study,
    study_record,
    study_rows,
    summarise,
    write_study,
)
from runkit import distillation, make_place, recipe


def record(miou: float, seed: int = 0, iou=None, **changes) -> RunRecord:
    scores = {"miou": miou, "pixel_accuracy": 0.9, "iou": iou or {"a": miou, "b": None}, "images": 3}
    values = {
        "status": "done",
        "method": "x",
        "seed": seed,
        "split": "val",
        "steps": 10,
        "epochs": 1.0,
        "final": Scores(**scores),
        "best": BestScores(**{**scores, "miou": miou + 0.01}, step=5),
        "cost": Cost(seconds_per_step=0.5 + seed, peak_memory_bytes=100 + seed, total_seconds=10.0, extra_parameters=7),
        "student": NetworkCost(parameters=1_000_000, flops=2_000_000_000),
    }
    return RunRecord(**{**values, **changes})


class TestNumbers:
    def test_mean_deviation_and_paired_gain_by_hand(self):
        base = [record(value, seed) for seed, value in enumerate([0.5, 0.6, 0.4])]
        mine = [record(value, seed) for seed, value in enumerate([0.55, 0.62, 0.48])]
        line = summarise(Method("m", where="logits"), mine, base)
        assert line.final.mean == pytest.approx(0.55)
        assert line.final.sd == pytest.approx(statistics.stdev([0.55, 0.62, 0.48]))
        assert line.best.mean == pytest.approx(0.56)
        assert line.gain.mean == pytest.approx(0.05)
        assert 0.02 - 1e-9 <= line.gain.low < 0.05 < line.gain.high <= 0.08 + 1e-9
        assert (line.cost.seconds_per_step, line.cost.peak_memory_bytes, line.cost.extra_parameters) == (1.5, 102, 7)
        assert line.iou == {"a": pytest.approx(0.55), "b": None}

    def test_pairs_are_by_seed_whatever_the_order(self):
        base = [record(0.6, 1), record(0.5, 0)]
        line = summarise(Method("m"), [record(0.55, 0), record(0.65, 1)], base)
        assert (line.gain.mean, line.gain.low, line.gain.high) == pytest.approx((0.05, 0.05, 0.05))
        with pytest.raises(RunError, match=r"seeds \[7\] have no run of the student alone"):
            summarise(Method("m"), [record(0.5, 7)], base)

    def test_one_seed_has_no_spread(self):
        line = summarise(Method("m"), [record(0.5)], [record(0.4)])
        assert line.final.sd == 0.0
        assert line.gain.low == line.gain.mean == line.gain.high == pytest.approx(0.1)

    def test_an_unfinished_run_is_refused(self):
        with pytest.raises(RunError, match="compares finished runs"):
            summarise(Method("m"), [record(0.5, final=None)], None)

    def test_the_interval_covers_what_a_bootstrap_should(self):
        gain = paired_gain([float(i) for i in range(10)], [0.0] * 10)
        error = statistics.pstdev(range(10)) / 10**0.5
        assert gain.mean == 4.5
        assert gain.low == pytest.approx(4.5 - 1.96 * error, abs=0.15)
        assert gain.high == pytest.approx(4.5 + 1.96 * error, abs=0.15)
        assert paired_gain([1.0, 2.0], [0.0, 0.0]) == paired_gain([1.0, 2.0], [0.0, 0.0])


class Counting(Quiet):
    def __init__(self) -> None:
        self.steps: list[str] = []
        self.name = ""

    def __call__(self, name):
        self.name = name
        return self

    def step(self, taken, steps, result):
        self.steps.append(f"{self.name}:{taken}")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = make_place(tmp_path_factory.mktemp("data"))
    asked = recipe(root, student={"model": f"{root}/nets.py:teacher"})
    train(asked, out=root / "teacher", train__steps=12, train__evaluate_every=None)
    return root


def test_a_study_repeats_nothing_and_overwrites_nothing_unasked(place, tmp_path: Path):
    raw = distillation(place, place / "teacher")
    raw["train"] |= {"steps": 1}
    short, watch = load_recipe(raw), Counting()
    methods = [ALONE, Method("channelwise", where="logits+features")]
    runs = run_study(short, methods, [0, 1], tmp_path, watch=watch)
    assert watch.steps == ["none-s0:1", "none-s1:1", "channelwise-s0:1", "channelwise-s1:1"]
    again = Counting()
    assert [[run.path for run in made] for _, made in run_study(short, methods, [0, 1], tmp_path, watch=again)] == [
        [run.path for run in made] for _, made in runs
    ]
    assert again.steps == []
    with pytest.raises(RunError, match="a run with another recipe or teacher; use --force"):
        run_study(load_recipe(raw, {"train.batch_size": 2}), methods, [0], tmp_path, watch=again)
    assert run_study(load_recipe(raw, {"train.batch_size": 2}), methods[:1], [0], tmp_path, force=True, watch=again)
    assert again.steps == ["none-s0:1"]

    study = study_record("s", runs, data={"name": "d"}, teacher=Run.load(place / "teacher").record, command="c")
    path = write_study(tmp_path, study)
    assert StudyRecord.model_validate_json(path.read_text()) == study
    assert [line.name for line in study.methods] == ["none", "channelwise"]
    assert study.methods[0].gain is None
    assert study.methods[1].cost.extra_parameters == 70
    rows = study_rows(study)
    assert [row["method"] for row in rows] == ["teacher", "student alone", "student + channelwise"]
    assert [row["n"] for row in rows] == [1, 2, 2]
    assert [row["class"] for row in class_rows(study)] == ["sky", "road", "tree"]
