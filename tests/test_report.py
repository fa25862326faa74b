"""Pages of runs and studies: what they say against hand calculations, what they hold, that nothing slips through."""

from __future__ import annotations

import base64
import hashlib
import itertools
import re

import pytest

from densekd.cli.app import call
from densekd.errors import ArgumentError, DtypeError, RunError
from densekd.records import BestScores, ConfusionRecord, Counts, ImageList, NetworkCost, Scores, StudyFailure
from densekd.records import TeacherCost as Teacher
from densekd.report import write_page, write_report
from densekd.report.classes import delta_cell
from densekd.report.confusion import most_confused, normalised
from densekd.report.cost import spaced
from densekd.report.drawing import thinned
from densekd.report.headline import gap_closed, paired, run_headline, size_words, study_headline
from densekd.report.kept import read_columns, read_run
from densekd.report.pictures import embedded
from densekd.report.runs_page import differing, incomparable, runs_headline
from densekd.report.study_page import methods_table
from densekd.report.words import amount, seconds, signed, size, times
from reportkit import CLOSING, HOSTILE, Tags, keep_run, method, run_record, scores, study_record

NONE = method("none", [0.40, 0.42, 0.44])
GAINED = method("channelwise", [0.43, 0.455, 0.47], (0.0316667, 0.03, 0.035))


class TestSentenceOfAStudy:
    def test_gain_spread_size_and_gap_by_hand(self):
        # Gains 3.0, 3.5, 3.0: mean 3.17, standard deviation (n - 1) 0.289. Gap: 3.17 of 70 - 42 = 28: 11.3 %.
        found = study_headline(study_record(NONE, GAINED))
        assert found.result == (
            "Student +3.2 ± 0.3 mIoU over training alone, 3 seeds; 4.2\u00d7 fewer parameters than the teacher, "
            "11% of the gap closed."
        )
        assert "between +3.0 and +3.5 (95% bootstrap interval, with so few seeds" in found.notes[0]
        assert not any("includes 0" in note for note in found.notes)

    def test_gains_are_paired_by_seed_and_the_gap_is_over_the_same_seeds(self):
        late = method("channelwise", [0.47], seeds=[2])
        assert paired(late, NONE) == {2: pytest.approx(0.03)}
        # Seed 2 alone: 3 points of the 26 from 44 to 70.
        assert gap_closed(late, NONE, study_record().teacher) == pytest.approx(0.03 / 0.26)

    def test_a_single_seed_has_no_spread(self):
        found = study_headline(study_record(method("none", [0.4]), method("channelwise", [0.43], (0.03, 0.03, 0.03))))
        assert found.result.startswith("Student +3.0 mIoU over training alone, 1 seed;")
        assert found.notes[0].startswith("One seed says nothing about chance")

    def test_a_loss_closes_no_gap(self):
        worse = method("channelwise", [0.38, 0.41, 0.42], (-0.0166667, -0.02, -0.01))
        found = study_headline(study_record(NONE, worse))
        assert found.result == (
            "Student 1.7 ± 0.6 mIoU below training alone, 3 seeds; 4.2\u00d7 fewer parameters than the teacher."
        )

    def test_no_difference(self):
        same = method("channelwise", [0.401, 0.42, 0.439], (0.0, -0.001, 0.001))
        found = study_headline(study_record(NONE, same))
        assert found.result.startswith("Student as good as trained alone (0.0 ± 0.1 mIoU), 3 seeds;")
        assert "That includes 0: these seeds do not settle whether it helps" in found.notes[0]

    def test_the_first_of_several_is_named_and_so_is_how_it_was_picked(self):
        better = method("pixelwise", [0.45, 0.47, 0.49], (0.05, 0.05, 0.05))
        found = study_headline(study_record(NONE, GAINED, better))
        assert found.result.startswith("pixelwise, first of 2 methods: student +5.0 ± 0.0 mIoU")
        assert any("picked by these very numbers" in note for note in found.notes)

    @pytest.mark.parametrize(
        ("teacher", "told"),
        [(None, "gives features, not class maps"), (0.41, "is no better than the student alone (42.0)")],
    )
    def test_a_teacher_without_a_gap(self, teacher, told):
        found = study_headline(study_record(NONE, GAINED, teacher=teacher))
        assert "gap closed" not in found.result
        assert any(told in note for note in found.notes)

    def test_more_than_the_gap(self):
        found = study_headline(study_record(NONE, GAINED, teacher=0.43))
        assert found.result.endswith("the whole gap to the teacher closed.")

    def test_failed_runs_are_counted_and_named(self):
        failed = method("pixelwise", [], failed=[StudyFailure(seed=seed, reason="NaN") for seed in range(3)])
        found = study_headline(study_record(NONE, GAINED, failed))
        assert "3 of 9 runs did not finish, and count nowhere: pixelwise-s0, pixelwise-s1, pixelwise-s2." in found.notes
        alone = study_headline(study_record(method("none", []), GAINED))
        assert alone.result == "No gain can be said: no run of the student alone has finished."
        assert "no method finished a seed" in study_headline(study_record(NONE, failed)).result

    @pytest.mark.parametrize(
        ("student", "teacher", "told"),
        [
            (1_000_000, 4_200_000, "4.2\u00d7 fewer parameters than the teacher"),
            (1_000_000, 50_000_000, "50\u00d7 fewer parameters than the teacher"),
            (1_000_000, 1_010_000, "as many parameters as the teacher"),
            (3_000_000, 1_500_000, "2.0\u00d7 as many parameters as the teacher"),
            (None, 5, ""),
        ],
    )
    def test_sizes(self, student, teacher, told):
        assert size_words(student, teacher) == told


class TestSentenceOfARun:
    def test_a_finished_one(self, tmp_path):
        best = BestScores(**scores(0.55), step=20)
        teacher = Teacher(parameters=16_000_000, miou=0.7)
        record = run_record(best=best, teacher=teacher, extra_splits={"night": Scores(**scores(0.3))})
        found = run_headline(read_run(tmp_path, record))
        assert found.result == (
            "mIoU 50.0 on val with the final weights: the student distilled by channelwise, seed 0; "
            "16.0\u00d7 fewer parameters than the teacher."
        )
        assert found.notes[0].startswith("Best evaluation: 55.0 at step 20; student.safetensors holds that one.")
        assert "On night: 30.0 with the final weights, 4 images." in found.notes
        assert "The teacher scored 70.0 on the images that were examined before the run." in found.notes

    def test_interrupted_and_failed(self, tmp_path):
        folder = keep_run(tmp_path / "run", run_record())
        found = run_headline(read_run(folder, run_record(status="interrupted")))
        assert "at the newest evaluation" in found.result
        assert found.notes[0] == "The run was interrupted after step 40 of 40 (the last one logged)."
        empty = run_headline(read_run(tmp_path / "none", run_record(None, status="failed", method="none")))
        assert empty.result == (
            "The student trained alone, seed 0, failed before a step of its 40 was logged; no evaluation was made yet."
        )


class TestNumbers:
    def test_words(self):
        assert [times(4.24), times(19.96), times(2000)] == ["4.2\u00d7", "20\u00d7", "2,000\u00d7"]
        assert [signed(0.0312), signed(-0.0312), signed(-0.0004)] == ["+3.1", "\u22123.1", "0.0"]
        assert [amount(28426), amount(4.38e6), amount(999), size(1.08e9), size(12)] == [
            "28.4 k",
            "4.38 M",
            "999",
            "1.08 GB",
            "12 B",
        ]
        assert [seconds(0.2024), seconds(5), seconds(113.9), seconds(20000), seconds(2e-5)] == [
            "202 ms",
            "5 s",
            "1.9 min",
            "5.56 h",
            "20 µs",
        ]

    def test_rows_of_the_confusion_matrix_sum_to_one(self):
        found = normalised([[3, 1, 0], [0, 0, 0], [2, 2, 4]])
        assert found == [[0.75, 0.25, 0.0], [None, None, None], [0.25, 0.25, 0.5]]

    def test_the_most_confused_pairs_by_hand(self):
        pairs = most_confused([[90, 10, 0], [0, 5, 5], [30, 0, 70]], ["a", "b", "c"])
        assert [(p.truth, p.taken, p.pixels) for p in pairs] == [("c", "a", 30), ("a", "b", 10), ("b", "c", 5)]
        assert pairs[0].of_truth == pytest.approx(0.3)
        assert pairs[0].of_errors == pytest.approx(30 / 45)
        assert most_confused([[4, 0], [0, 4]], ["a", "b"]) == []

    def test_thinned_curves_are_means_of_neighbours(self):
        nan = float("nan")
        assert thinned([1, 2, 3, 4, 5], [1.0, 3.0, nan, 5.0, 7.0], most=3) == ([2, 4, 5], [2.0, 5.0, 7.0], 2)
        assert thinned([1, 2], [nan, nan], most=1) == ([], [], 2)

    def test_names_beside_points_have_room(self):
        found = spaced([0.5, 0.5, 0.5, 0.01])
        assert all(above - below >= 0.0699 for above, below in itertools.pairwise(found))
        assert min(found) >= 0
        assert spaced([0.9, 0.2]) == [0.9, 0.2]

    def test_bars_of_differences(self):
        assert (delta_cell(-0.05, 0.1).delta, delta_cell(-0.05, 0.1).tone) == (-0.5, "down")
        assert delta_cell(0.0001, 0.1).tone == ""

    def test_the_table_of_methods(self):
        table = methods_table(study_record(NONE, GAINED))
        cells = {column.name: cell.text for column, cell in zip(table.columns, table.rows[2], strict=True)}
        assert (cells["mIoU"], cells["gain"], cells["gap closed"]) == ("45.2 ± 1.0", "+3.2", "11%")
        assert cells["95% interval"] == "+3.0 to +3.5"
        assert all(len(row) == len(table.columns) for row in table.rows)


class TestWhatIsKept:
    def test_missing_and_damaged_files_are_named(self, tmp_path):
        folder = keep_run(tmp_path / "run", run_record(), logged=False)
        (folder / "log.csv").write_text("step,loss\n1,x\n")
        (folder / "confusion.json").write_text('{"classes": []}')
        missing = read_run(folder).missing
        assert [line.split(" ")[0] for line in missing] == ["log.csv", "evaluations.csv", "confusion.json"]
        assert "cannot be read (ValueError" in missing[0]
        assert "an earlier version of densekd kept none" in missing[1]
        assert all(line in rendered_run(folder) for line in missing)

    def test_columns_with_gaps(self, tmp_path):
        (tmp_path / "x.csv").write_text("a,b\n1,\n2,3\n")
        found = read_columns(tmp_path / "x.csv")
        assert list(found["a"]) == [1.0, 2.0]
        assert found["b"][0] != found["b"][0]

    def test_a_line_that_was_cut_is_left_out_and_said(self, tmp_path):
        folder = keep_run(tmp_path / "run", run_record(), logged=False)
        (folder / "log.csv").write_text("step,loss\n1,3.5\n2,2.25\n3,1.7")
        run = read_run(folder)
        assert {name: list(column) for name, column in run.log.items()} == {"step": [1.0, 2.0], "loss": [3.5, 2.25]}
        assert any(line.startswith("log.csv ends within a line") for line in run.missing)

    def test_rows_of_other_lengths_are_named(self, tmp_path):
        (tmp_path / "x.csv").write_text("a,b\n1,2\n3\n")
        with pytest.raises(ValueError, match="line 3 has 1 cells, the first line 2"):
            read_columns(tmp_path / "x.csv")

    def test_counts_must_fit_the_classes(self):
        with pytest.raises(ValueError, match="expected 2 rows of 2 counts"):
            ConfusionRecord(split="val", classes=["a", "b"], final=Counts(step=1, matrix=[[1, 2]]))


def rendered_run(folder) -> str:
    """The words of a run's page."""
    return Tags(write_report(folder).read_text(encoding="utf-8")).words


class TestThePage:
    def test_needs_nothing_and_runs_nothing_but_its_own_script(self, tmp_path):
        text = write_report(keep_run(tmp_path / "run", run_record(None), logged=False)).read_text(encoding="utf-8")
        page = Tags(text)
        assert not page.names() & {"link", "iframe", "object", "embed", "base", "form"}
        assert not [value for _, found in page.tags for name, value in found.items() if name in {"src", "href"}
                    and not str(value).startswith(("data:", "#"))]  # fmt: skip
        policy = next(found["content"] for tag, found in page.tags if tag == "meta" and "http-equiv" in found)
        script = re.search(r"<script>(.*?)</script>", text, re.DOTALL)[1]
        digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
        assert f"script-src 'sha256-{digest}'" in policy
        assert "default-src 'none'" in policy

    def test_hostile_names_are_text(self, tmp_path):
        names = (HOSTILE, CLOSING, '" onclick="alert(3)')
        record = run_record(
            0.4,
            names,
            method=CLOSING,
            status="failed",
            error=f"NonFiniteError: {HOSTILE}",
            warnings=[HOSTILE, CLOSING],
            environment={HOSTILE: CLOSING},
            teacher=Teacher(parameters=2, engine={HOSTILE: {CLOSING: [HOSTILE]}}),
            preflight={"terms": {"terms": [{"name": HOSTILE, "problem": CLOSING}]}, "problems": [HOSTILE]},
        )
        recipe = {"student": {CLOSING: HOSTILE}, "terms": [{"method": HOSTILE}]}
        # Drawings: tests/test_report_drawn.py.
        folder = keep_run(tmp_path / "<img onerror>", record, recipe, logged=False)
        text = write_report(folder).read_text(encoding="utf-8")
        page = Tags(text)
        assert "img" not in page.names()
        assert [tag for tag, _ in page.tags].count("script") == 1
        assert page.handlers() == []
        assert HOSTILE in page.words
        assert "&lt;img onerror&gt;" in text

    def test_a_failed_run_says_why_first(self, tmp_path):
        record = run_record(None, status="failed", error="NonFiniteError: channelwise:logits is NaN at step 3")
        words = rendered_run(keep_run(tmp_path / "run", record, logged=False))
        assert words.index("failed: NonFiniteError: channelwise:logits is NaN at step 3") < words.index("Recipe")

    def test_a_picture_has_size_and_words(self):
        found = str(embedded(b"x", "image/png", width=3, height=2, alt='a "b"', caption="<i>"))
        assert 'src="data:image/png;base64,eA=="' in found
        assert 'width="3" height="2" alt="a &#34;b&#34;"' in found
        assert "<figcaption>&lt;i&gt;</figcaption>" in found
        with pytest.raises(ArgumentError, match="expected a text in the place of the picture"):
            embedded(b"x", "image/png", width=3, height=2, alt=" ")
        with pytest.raises(ArgumentError, match="got 0 x 2"):
            embedded(b"x", "image/png", width=0, height=2, alt="x")


class TestSideBySide:
    def runs(self, tmp_path, **changes):
        images = {"val": ImageList(count=4, sha256="ab")}
        one = keep_run(tmp_path / "one", run_record(0.5, images=images))
        other = keep_run(tmp_path / "other", run_record(0.53, **{"images": images, **changes}))
        return {"one": read_run(one), "other": read_run(other)}

    def test_equal_terms_are_compared(self, tmp_path):
        runs = self.runs(tmp_path, student=NetworkCost(parameters=500_000))
        assert incomparable(runs) == []
        found = runs_headline({name: run.record for name, run in runs.items()}, [])
        assert found.result == "other: 53.0 mIoU, 3.0 above one (50.0); 2.0\u00d7 fewer parameters than one."

    @pytest.mark.parametrize(
        ("changes", "told"),
        [
            ({"split": "test"}, "different splits: one: val; other: test"),
            ({"evaluation": "windows"}, "in different ways: one: whole image; other: windows"),
            ({"images": {"val": ImageList(count=9, sha256="cd")}}, "different images: one: 4 (sha256 ab); other: 9"),
            ({"final": Scores(**scores(0.5, ("a", "b")))}, "different classes: one: sky, road, tree; other: a, b"),
        ],
    )
    def test_what_cannot_be_compared_is_said(self, tmp_path, changes, told):
        runs = self.runs(tmp_path, **changes)
        assert any(told in line for line in incomparable(runs))
        records = {name: run.record for name, run in runs.items()}
        assert runs_headline(records, incomparable(runs)).result == "These runs cannot be compared by their scores."

    def test_settings_that_differ(self):
        one = {"a": 1, "train": {"lr": 0.1, "steps": 5}, "terms": [{"weight": 3}]}
        other = {"a": 1, "train": {"lr": 0.2, "steps": 5}, "terms": [{"weight": 3}, {"weight": 1}]}
        assert differing([one, other]) == {"train.lr": [0.1, 0.2], "terms.1.weight": [None, 1]}


class TestWhere:
    @pytest.mark.slow
    @pytest.mark.parametrize("quiet", [False, True])
    def test_quiet_says_nothing_of_missing_pictures(self, tmp_path, monkeypatch, capsys, quiet):
        monkeypatch.setattr("densekd.study.looks.pair_among", lambda runs: tuple(runs))
        monkeypatch.setattr("densekd.study.looks.keep_beside", lambda *_: ["looks: no pictures of these"])
        names = ("none", "channelwise")
        runs = [keep_run(tmp_path / name, run_record(0.4, method=name), logged=False) for name in names]
        out = tmp_path / "both.html"
        assert call(["report", *map(str, runs), "--out", str(out), *(["--quiet"] if quiet else [])]) == 0
        assert capsys.readouterr() == (f"{out}\n", "" if quiet else "looks: no pictures of these\n")

    def test_errors_say_what_was_expected(self, tmp_path):
        (tmp_path / "a file").touch()
        with pytest.raises(RunError, match=r"a file: not a folder; expected the folder of a run"):
            write_page(tmp_path / "a file")
        with pytest.raises(RunError, match=r"gone: no such folder; expected the folder of a run"):
            write_page(tmp_path / "gone")
        with pytest.raises(RunError, match=r"holds neither record\.json nor study\.json"):
            write_page(tmp_path)
        with pytest.raises(DtypeError, match="expected folders of runs"):
            write_page()
        (tmp_path / "study.json").write_text("{}")
        run = keep_run(tmp_path / "run", run_record(None), logged=False)
        with pytest.raises(RunError, match="a study; its page is of the study alone"):
            write_page(run, tmp_path)
        with pytest.raises(RunError, match=r"study\.json: not a record of schema 1"):
            write_page(tmp_path)
        with pytest.raises(RunError, match="named twice"):
            write_page(run, run, out=tmp_path / "x.html")

    def test_nothing_but_a_page_is_overwritten(self, tmp_path):
        run = keep_run(tmp_path / "run", run_record(None, status="running"), logged=False)
        own = tmp_path / "own.html"
        own.write_text("mine")
        with pytest.raises(RunError, match="is no page that densekd wrote"):
            write_page(run, out=own)
        with pytest.raises(RunError, match="a folder; expected the name of a file"):
            write_page(run, out=tmp_path)
        assert own.read_text() == "mine"
        assert write_page(run) == write_page(str(run)) == run / "report.html"


class TestCommand:
    def test_prints_the_path_and_opens_the_page(self, tmp_path, capsys, monkeypatch):
        opened = []
        monkeypatch.setattr("webbrowser.open", lambda url: opened.append(url) or False)
        run = keep_run(tmp_path / "run", run_record(None), logged=False)
        assert call(["report", str(run), "--open"]) == 0
        told = capsys.readouterr()
        assert told.out == f"{run / 'report.html'}\n"
        assert opened == [(run / "report.html").as_uri()]
        assert "no browser could be started here" in told.err

    def test_a_mistake_is_a_line(self, tmp_path, capsys):
        with pytest.raises(SystemExit) as ended:
            call(["report", str(tmp_path)])
        assert ended.value.code == 2
        assert "holds neither record.json nor study.json" in capsys.readouterr().err
