"""The command `compare`: mistakes, exit codes, output, and what its board shows."""

from __future__ import annotations

import json
import sys

import pytest
import yaml

from clikit import densekd as densekd
from densekd.records import StudyFailure
from densekd.study import Method, Study
from densekd.study.record import study_record
from densekd.training.specs import TermSpec
from studykit import TEACHER, comparable_recipe, place_with_teacher, record


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return place_with_teacher(tmp_path_factory.mktemp("data"))


@pytest.fixture
def asked(place, tmp_path):
    (tmp_path / "r.yaml").write_text(yaml.safe_dump(comparable_recipe(place)))
    return "r.yaml"


class TestMistakes:
    @pytest.mark.parametrize(
        ("more", "told"),
        [
            (["--methods", "chanelwise"], "unknown method 'chanelwise'; did you mean 'channelwise'"),
            (["--methods", "pixelwise,pixelwise"], "'pixelwise' is given twice"),
            (["--methods", ","], "--methods: a label is empty"),
            (["--methods", "none"], "at least one method beside 'none'"),
            (["--methods", "pixelwise@features"], "method 'pixelwise@features': term"),
            (["--seeds", "0,x"], "--seeds '0,x': expected numbers with commas between"),
            (["--seeds", "0,1.5"], "--seeds '0,1.5': expected numbers"),
            (["--seeds", "1,1"], "--seeds 1,1: expected different numbers"),
            (["--seeds", "-1"], "--seeds -1: expected different numbers"),
            (["--budget", "minutes"], "--budget 'minutes': unknown"),
            (["--jobs", "0"], "--jobs 0: expected 1 or more"),
            (["compare.methods.x.terms=[]"], "compare.methods.x.terms: expected one term or more"),
            (["compare.method=1"], "unknown key 'compare.method'; did you mean 'methods'"),
            (["train.stepz=1"], "unknown key 'train.stepz'"),
        ],
    )
    def test_one_clear_line_and_code_2_and_nothing_is_made(self, densekd, asked, more, told, tmp_path):
        code, out, err = densekd("compare", asked, "--out", "s", "--quiet", *more)
        assert (code, out) == (2, "")
        assert told in err
        assert err.startswith("error: ")
        assert err.count("\n") == 1
        assert [path.name for path in tmp_path.iterdir()] == [asked]

    def test_the_demo_refuses_bad_seeds_in_the_same_words(self, densekd):
        code, _, err = densekd("demo", "--seeds", "1,1")
        assert (code, err) == (2, "error: --seeds 1,1: expected different numbers, whole and none below 0\n")


class TestOutput:
    def test_dry_run_names_the_runs(self, densekd, asked, tmp_path):
        code, out, err = densekd("compare", asked, "--methods", "channelwise", "--seeds", "3", "--dry-run")
        assert (code, out.splitlines()) == (0, ["run", "none-s3", "channelwise-s3"])
        assert "methods: 'none', the student alone, is added" in err
        assert "2 of 2 runs to do" in err
        assert [path.name for path in tmp_path.iterdir()] == [asked]
        out = densekd("compare", asked, "--methods", "channelwise", "--seeds", "3", "--dry-run", "--json", "-q")[1]
        assert json.loads(out) == [{"run": "none-s3"}, {"run": "channelwise-s3"}]

    @pytest.fixture
    def half_failed(self, monkeypatch, tmp_path):
        """A study of which a run failed, without running anything."""
        methods = [Method("none"), Method("channelwise", "logits", (TermSpec(),))]
        runs = {"none": {0: record(0.5)}, "channelwise": {}}
        failures = {"channelwise": [StudyFailure(seed=0, reason="step 3: NaN", output="channelwise-s0/output.txt")]}
        commands = []

        def go(_self, command):
            commands.append(command)
            made = study_record("s", methods, runs, failures, data={}, teacher=TEACHER, plan=None, command=command)
            return Study(tmp_path / "s", made, {})

        monkeypatch.setattr("densekd.study.comparison.Comparison.go", go)
        return commands

    def test_a_failed_run_is_in_the_table_and_in_the_exit_code(self, densekd, asked, half_failed):
        code, out, err = densekd("compare", asked, "--out", "s", "--jobs", "2", "--seeds", "0", "train.steps=3")
        assert code == 3
        header, *rows = [line.split("\t") for line in out.splitlines()]
        assert rows[2][header.index("mIoU")] == "failed"
        assert rows[2][header.index("failed")] == "seed 0: step 3: NaN"
        assert "1 of 2 runs failed:\nchannelwise-s0: step 3: NaN (its output: " in err
        assert err.rstrip().endswith("channelwise-s0/output.txt)")
        assert half_failed == ["densekd compare r.yaml train.steps=3 --seeds 0 --budget steps --jobs 2"]

    def test_json_is_the_record(self, densekd, asked, half_failed):
        code, out, err = densekd("compare", asked, "--out", "s", "--json", "--quiet", "--methods", "channelwise")
        assert code == 3
        assert json.loads(out)["methods"][1]["failed"][0]["reason"] == "step 3: NaN"
        assert err.count("\n") == 2


class TestBoard:
    def test_plain_lines_say_each_thing_once(self, capsys):
        from densekd.cli.board import Board
        from densekd.records import Scores

        with Board() as board:
            board.said("method 'm': adapter: 1x1 convolution")
            first, second = board.run("m-s0"), board.run("m-s1")
            first.said("adapter: 1x1 convolution")
            first.said("checkpoint passed over")
            second.said("checkpoint passed over")
            first.evaluated(5, Scores(miou=0.5, pixel_accuracy=0.6, iou={}, images=2), True)
            board.ended("m-s0", "done: mIoU 50.00")
            board.counted(1, 2)
        assert capsys.readouterr().err.splitlines() == [
            "method 'm': adapter: 1x1 convolution",
            "m-s0: checkpoint passed over",
            "m-s0: step 5: mIoU 50.00 (best so far)",
            "m-s0: done: mIoU 50.00",
            "runs\t1/2",
        ]

    def test_a_terminal_has_a_bar_for_the_study_and_one_for_each_run(self, monkeypatch):
        from densekd.cli.board import Board

        monkeypatch.setattr(sys.stderr, "isatty", lambda: True, raising=False)
        board = Board()
        board.run("check").checking(1, 2)
        board.counting("checking methods", 0, 3)
        board.counted(0, 2)
        rows = [board.run("a"), board.run("b")]
        rows[0].checking(3, 4)
        rows[0].examining(1, 4)
        rows[1].evaluating(2, 4)

        def shown():
            return [(task.description, task.completed) for task in board._bars.tasks]

        assert shown() == [("runs", 0), ("a: examining the teacher", 1), ("b: evaluating", 2)]
        board.ended("a", "done")
        board.counted(1, 2)
        assert shown() == [("runs", 1), ("b: evaluating", 2)]
