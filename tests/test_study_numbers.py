"""Means, gains and intervals against hand calculations; the record, its tables and its figures."""

from __future__ import annotations

import csv
import io
import itertools
import json
import random
import shutil
import statistics
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from densekd.records import Gain, StudyFailure, StudyRecord, dump
from densekd.report.cost import spaced
from densekd.study import Method, Study, class_rows, size_rows, study_rows
from densekd.study.figures import FIGURES, write_figures
from densekd.study.record import study_record, summarise
from densekd.study.statistics import paired_gain, spread
from densekd.study.tables import classes_csv, table_csv
from densekd.training.specs import TermSpec
from studykit import TEACHER, record

CWD = Method("channelwise", "logits", (TermSpec(),))
ALONE = Method("none")
RESULTS = Path(__file__).resolve().parent.parent / "benchmarks" / "results"


def by_seed(*values: float) -> dict:
    return {seed: record(value, seed) for seed, value in enumerate(values)}


class TestGain:
    def test_three_seeds_by_hand(self):
        # 27 resamples of (1, 2, 6): each end has one of them, 1/27 = 3.7% > 2.5%.
        gain = paired_gain({0: 11.0, 1: 22.0, 2: 36.0}, {2: 30.0, 1: 20.0, 0: 10.0})
        assert gain == Gain(mean=3.0, low=1.0, high=6.0, n=3)

    def test_five_seeds_against_all_resamples_written_out(self):
        differences = [0.3, -0.1, 0.25, 0.0, 0.9]
        means = sorted(sum(pick) / 5 for pick in itertools.product(differences, repeat=5))
        # 3125 resamples: the 79th is the first with a share of 2.5% (78.1), the 3047th with 97.5% (3046.9).
        gain = paired_gain(dict(enumerate(differences)), dict.fromkeys(range(5), 0.0))
        assert gain.low == pytest.approx(means[78])
        assert gain.high == pytest.approx(means[3046])
        assert gain.mean == pytest.approx(0.27)

    def test_many_seeds_as_the_normal_approximation(self):
        generator = random.Random(0)
        values = {seed: generator.gauss(0.02, 0.01) for seed in range(60)}
        gain = paired_gain(values, dict.fromkeys(values, 0.0))
        error = statistics.pstdev(values.values()) / 60**0.5
        assert gain.low == pytest.approx(gain.mean - 1.96 * error, abs=0.15 * error)
        assert gain.high == pytest.approx(gain.mean + 1.96 * error, abs=0.15 * error)
        assert gain == paired_gain(values, dict.fromkeys(values, 0.0))

    def test_pairs_are_by_seed_and_only_of_seeds_that_both_have(self):
        assert paired_gain({3: 0.7, 1: 0.5}, {1: 0.4, 2: 0.9}) == Gain(
            mean=0.5 - 0.4, low=0.5 - 0.4, high=0.5 - 0.4, n=1
        )
        assert paired_gain({3: 0.7}, {1: 0.4}) is None

    @settings(max_examples=30)
    @given(st.lists(st.floats(-1, 1), min_size=1, max_size=8))
    def test_an_interval_lies_within_the_differences_around_the_mean(self, differences):
        gain = paired_gain(dict(enumerate(differences)), dict.fromkeys(range(len(differences)), 0.0))
        assert min(differences) - 1e-12 <= gain.low <= gain.high <= max(differences) + 1e-12

    def test_spread(self):
        found = spread([0.55, 0.62, 0.48])
        assert (found.mean, found.sd) == pytest.approx((0.55, statistics.stdev([0.55, 0.62, 0.48])))
        assert spread([0.5]).sd == 0.0


class TestSummary:
    def test_one_method(self):
        line = summarise(CWD, by_seed(0.55, 0.62, 0.48), by_seed(0.5, 0.6, 0.4))
        assert line.seeds == [0, 1, 2]
        assert line.steps == 10
        assert line.final.miou == [0.55, 0.62, 0.48]
        assert line.best.mean == pytest.approx(0.56)
        assert line.gain.mean == pytest.approx(0.05)
        assert (line.gain.low, line.gain.high) == pytest.approx((0.02, 0.08))
        assert (line.cost.seconds_per_step, line.cost.peak_memory_bytes, line.cost.extra_parameters) == (1.5, 102, 7)
        assert line.iou == {"a": pytest.approx(0.55), "b": None}
        assert line.iou_gain == {"a": pytest.approx(0.05), "b": None}
        assert line.terms == [TermSpec().model_dump(mode="json")]

    def test_a_class_that_is_absent_from_some_runs_is_paired_where_it_occurs(self):
        mine = {0: record(0.5, 0, {"a": 0.5, "b": 0.9}), 1: record(0.5, 1, {"a": 0.7, "b": None})}
        base = {0: record(0.4, 0, {"a": 0.4, "b": 0.8}), 1: record(0.4, 1, {"a": 0.3, "b": 0.2})}
        line = summarise(CWD, mine, base)
        assert line.iou_gain == {"a": pytest.approx(0.25), "b": pytest.approx(0.1)}

    def test_failed_seeds_are_left_out_of_the_pairs_and_named(self):
        failed = [StudyFailure(seed=1, reason="NaN", output="m-s1/output.txt")]
        line = summarise(CWD, {0: record(0.5, 0), 2: record(0.7, 2)}, {1: record(0.1, 1), 2: record(0.6, 2)}, failed)
        assert line.seeds == [0, 2]
        assert line.gain.n == 1
        assert line.gain.mean == pytest.approx(0.1)
        assert line.failed == failed

    def test_nothing_finished(self):
        line = summarise(CWD, {}, by_seed(0.5), [StudyFailure(seed=0, reason="killed")])
        assert (line.final, line.best, line.gain, line.steps, line.student) == (None, None, None, None, None)
        assert line.iou_gain == {}

    def test_further_splits_have_their_own_gains(self):
        def runs(val, drive):
            pairs = enumerate(zip(val, drive, strict=True))
            return {seed: record(v, seed, extra_splits={"drive": record(d).final}) for seed, (v, d) in pairs}

        line = summarise(CWD, runs([0.5, 0.6], [0.3, 0.2]), runs([0.4, 0.4], [0.3, 0.3]))
        assert line.extra_splits["drive"].mean == pytest.approx(0.25)
        assert line.extra_gains["drive"].mean == pytest.approx(-0.05)
        assert line.gain.mean == pytest.approx(0.15)


@pytest.fixture(scope="module")
def study() -> StudyRecord:
    methods = [ALONE, CWD, Method("pixelwise", "logits", (TermSpec(method="pixelwise"),))]
    runs = {"none": by_seed(0.5, 0.6), "channelwise": by_seed(0.55, 0.7), "pixelwise": {}}
    failures = {"pixelwise": [StudyFailure(seed=s, reason="step 1: not finite") for s in (0, 1)]}
    return study_record("s", methods, runs, failures, data={"name": "d"}, teacher=TEACHER, plan=None, command="c")


@pytest.fixture(scope="module")
def written(study, tmp_path_factory) -> Path:
    """The folder of the study: its record, tables and figures."""
    return Study(tmp_path_factory.mktemp("study"), study, {}).write().parent


class TestTables:
    def test_the_comparison(self, study):
        teacher, alone, cwd, failed = study_rows(study)
        assert (teacher["method"], teacher["mIoU"]) == ("teacher", "70.0")
        assert (alone["method"], alone["n"], alone["gain"]) == ("student alone", 2, "-")
        assert alone["mIoU"] == "55.0 ± 7.1"
        assert cwd["gain"] == "+7.5 [+5.0, +10.0]"
        assert (cwd["best"], cwd["ms/step"], cwd["extra parameters"]) == ("63.5 ± 10.6", 1000, 7)
        assert (failed["mIoU"], failed["n"]) == ("failed", 0)
        assert failed["failed"] == "seed 0: step 1: not finite; seed 1: step 1: not finite"

    def test_columns_that_say_nothing_are_left_out(self, study):
        fine = study.model_copy(update={"methods": study.methods[:2]})
        assert not {"failed", "steps"} & set(study_rows(fine)[0])
        shorter = study.methods[1].model_copy(update={"steps": 7})
        rows = study_rows(study.model_copy(update={"methods": [study.methods[0], shorter]}))
        assert [row["steps"] for row in rows] == [None, 10, 7]

    def test_sizes_and_classes(self, study):
        assert [row["parameters"] for row in size_rows(study)] == ["5.00 M", "1.00 M", "1.00 M", "-"]
        found = {"class": "a", "teacher": 70.0, "none": 55.0, "channelwise": 62.5, "pixelwise": None}
        assert class_rows(study)[0] == found

    def test_csv_holds_the_numbers_of_the_record(self, study):
        none, cwd, failed = csv.DictReader(io.StringIO(table_csv(study)))
        assert float(cwd["final_mean"]) == study.methods[1].final.mean
        assert [float(cwd[f"gain_{end}"]) for end in ("mean", "low", "high")] == pytest.approx([0.075, 0.05, 0.1])
        assert (none["gain_mean"], cwd["failed"], failed["failed"], failed["final_mean"]) == ("", "0", "2", "")
        assert "not finite" in failed["reasons"]
        classes = list(csv.DictReader(io.StringIO(classes_csv(study))))
        assert [row["method"] for row in classes[:4]] == ["teacher", "none", "channelwise", "pixelwise"]
        assert float(classes[2]["gain"]) == pytest.approx(0.075)

    def test_the_record_survives_its_file(self, study, written):
        assert StudyRecord.model_validate_json((written / "study.json").read_text()) == study
        assert {p.name for p in written.iterdir()} == {"study.json", "table.csv", "classes.csv", *FIGURES}

    def test_notices_when_runs_cannot_be_compared(self):
        runs = {"none": by_seed(0.5), "channelwise": {0: record(0.6, environment={"torch": "9"})}}
        found = study_record("s", [ALONE, CWD], runs, {}, data={}, teacher=TEACHER, plan=None, command="")
        assert found.notices == ["runs were made with different versions of torch: 9; unknown"]

    def test_failures_are_lines_and_an_error(self, study, tmp_path):
        from densekd.study import RunsFailedError

        made = Study(tmp_path, study, {})
        assert made.failures == [f"pixelwise-s{seed}: step 1: not finite" for seed in (0, 1)]
        with pytest.raises(RunsFailedError, match="2 of 6 runs failed:\npixelwise-s0: step 1") as error:
            made.raise_if_failed()
        assert error.value.exit_code == 3

    @pytest.mark.parametrize("name", ["demo.json", "camvid-core.json"])
    def test_committed_studies_are_still_read(self, name):
        raw = json.loads((RESULTS / name).read_text())
        found = StudyRecord.model_validate(raw)
        assert [row["method"] for row in study_rows(found)][:2] == ["teacher", "student alone"]
        assert dump(found)["methods"][1]["final"] == raw["methods"][1]["final"]


class TestFigures:
    @pytest.mark.slow
    def test_equal_records_give_equal_pictures(self, study, written, tmp_path):
        write_figures(tmp_path, study)
        for name in FIGURES:
            assert (tmp_path / name).read_bytes() == (written / name).read_bytes()
        with Image.open(written / "gain.png") as picture:
            assert picture.size[0] > 600
        assert "<svg" in (written / "classes.svg").read_text()

    def test_what_the_figure_of_gains_shows(self, study):
        from densekd.study.figures import gain_figure

        axes = gain_figure(study).axes[0]
        bars = axes.containers[0]
        assert bars.lines[0].get_xydata().tolist() == [[1000.0, pytest.approx(7.5)]]
        ends = bars.lines[2][0].get_segments()[0]
        assert ends[:, 1].tolist() == pytest.approx([5.0, 10.0])
        assert [text.get_text() for text in axes.texts] == ["student alone", "channelwise"]

    def test_the_pages_drawing_of_cost_is_made_the_same_way(self, study, monkeypatch):
        from densekd.report import cost

        drawn = []
        monkeypatch.setattr(cost, "draw_spots", lambda axes, spots, paint: drawn.append(list(spots)))
        chart = cost.cost_chart(study)
        assert [(spot.name, spot.where, spot.cost) for spot in drawn[0]] == [
            ("student alone", "-", 1.0),
            ("channelwise", "logits", 1.0),
        ]
        for spot, line in zip(drawn[0], study.methods, strict=False):
            assert spot.value == line.final.mean
            assert spot.ends == (line.final.mean - line.final.sd, line.final.mean + line.final.sd)
        assert chart.legend == [("the student alone", 8), ("on logits", 1)]

    def test_what_the_heat_map_shows(self, study):
        from densekd.study.figures import class_figure

        axes = class_figure(study).axes[0]
        assert [text.get_text() for text in axes.texts] == ["+7.5", "-"]
        assert [label.get_text() for label in axes.get_yticklabels()] == ["channelwise"]

    def test_names_are_no_formulas(self, study, tmp_path):
        name = r"$\no such thing$"
        alone, cwd = study.methods[:2]
        odd = cwd.model_copy(update={"name": name, "iou": {name: 0.5}, "iou_gain": {name: 0.05}})
        methods = [alone.model_copy(update={"iou": {name: 0.45}}), odd]
        teacher = study.teacher.model_copy(update={"iou": {name: 0.6}})
        write_figures(tmp_path, study.model_copy(update={"methods": methods, "teacher": teacher}))
        assert sorted(path.name for path in tmp_path.iterdir()) == sorted(FIGURES)

    def test_figures_without_anything_to_show_are_removed(self, study, written, tmp_path):
        for name in FIGURES:
            shutil.copy(written / name, tmp_path)
        write_figures(tmp_path, study.model_copy(update={"methods": study.methods[:1]}))
        assert list(tmp_path.iterdir()) == []

    @given(st.lists(st.floats(0, 1), min_size=1, max_size=18))
    def test_names_do_not_lie_on_each_other(self, heights):
        moved = spaced(sorted(heights, reverse=True), 0.055)
        assert all(0 - 1e-9 <= height <= 1 + 1e-9 for height in moved)
        assert all(above - below >= 0.054 for above, below in itertools.pairwise(moved))
