"""Pages with drawings: what the SVG of matplotlib becomes, whole pages, and the page that runs and studies end with."""

from __future__ import annotations

import re

import pytest

from densekd.records import ConfusionRecord, Counts
from densekd.report import write_page, write_report, write_study_report
from densekd.report.confusion import confusion_body
from densekd.report.curves import evaluation_charts, loss_charts
from densekd.report.drawing import INK, SERIES, inline, plain_axes
from densekd.report.kept import read_run
from densekd.runs import Run, train
from densekd.runs.progress import Quiet
from reportkit import CLASSES, CLOSING, HOSTILE, Tags, keep_run, method, run_record, study_record
from runkit import make_place, recipe

pytestmark = pytest.mark.slow
SHOWN = {"page": True, "images": 0, "channels": 0}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """The folder of a study with a method of a hostile name."""
    folder = tmp_path_factory.mktemp("study")
    odd = "a</script>b"
    record = study_record(
        method("none", [0.40, 0.42]),
        method("channelwise", [0.43, 0.46], (0.035, 0.03, 0.04)),
        method(odd.replace("/", ""), [0.41, 0.40], (-0.005, -0.02, 0.01)),
        notices=[HOSTILE],
    )
    for name in ("none", "channelwise"):
        for seed in (0, 1):
            keep_run(folder / f"{name}-s{seed}", run_record(0.4, method=name, seed=seed))
    return write_study_report(folder, record)


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """Images and networks of a tiny run."""
    return make_place(tmp_path_factory.mktemp("data"))


class TestDrawing:
    def test_colours_become_the_pages_and_ids_are_its_own(self):
        with plain_axes(3, 2) as (figure, axes):
            axes.plot([1, 2], [3, 4], color=SERIES[1], marker="o")
            axes.set_title(f"{HOSTILE} $x$", color=INK)
            one, other = inline(figure, "one", 'says "this"'), inline(figure, "other", "x")
        assert "var(--series-2)" in one
        assert "var(--ink)" in one
        assert not re.search(r"#0[1-4]0[01]0", one)
        assert 'aria-label="says &#34;this&#34;"' in one
        assert "&lt;img src=x onerror=alert(1)&gt; $x$" in one
        assert not {"<style", "<metadata", "<?xml"} & set(re.findall(r"<[?\w]+", one))
        ids = [re.findall(r' id="([^"]+)"', text) for text in (one, other)]
        assert ids[0]
        assert not set(ids[0]) & set(ids[1])
        for text, own in zip((one, other), ids, strict=True):
            assert set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", text)) <= set(own)

    def test_of_more_runs_than_colours_the_first_are_drawn_which_is_said(self, tmp_path):
        record = run_record()
        folders = [keep_run(tmp_path / f"r{place}", record, logged=place > 0) for place in range(10)]
        runs = {folder.name: read_run(folder) for folder in folders}
        (miou,) = evaluation_charts(runs)
        assert [name for name, _ in miou.legend] == [f"r{place}" for place in range(1, 8)]
        assert miou.note.endswith("; the first 8 of 10")
        losses = loss_charts(runs)
        assert all(len(chart.legend) == 8 and chart.note.endswith("; the first 8 of 9") for chart in losses)

    def test_equal_numbers_give_equal_drawings(self, tmp_path):
        folder = keep_run(tmp_path / "run", run_record())
        assert write_report(folder).read_bytes() == write_report(folder).read_bytes()


class TestRunPage:
    def test_every_curve(self, tmp_path):
        text = write_report(keep_run(tmp_path / "run", run_record())).read_text("utf-8")
        for title in ("Losses", "mIoU", "Learning rate", "Gradient norm", "Seconds of a step"):
            assert f"<figcaption>{title}" in text
        assert "mIoU over the steps: run from 40 to 50" in text

    def test_hostile_names_in_drawings(self, tmp_path):
        names = (HOSTILE, CLOSING, "tree")
        folder = keep_run(tmp_path / "run", run_record(0.5, names), term=CLOSING.replace(",", ""))
        page = Tags(write_report(folder).read_text("utf-8"))
        assert "img" not in page.names()
        assert [tag for tag, _ in page.tags].count("script") == 1
        assert page.handlers() == []

    def test_many_classes(self):
        names = [f"class {number} <b>" for number in range(150)]
        counts = Counts(step=7, matrix=[[9 if i == j else int(j == 3) for j in range(150)] for i in range(150)])
        kept = ConfusionRecord(split="val", classes=names, final=counts, best=counts)
        body = str(confusion_body(kept))
        assert body.count("<text") == 300
        assert "data:image/png;base64," in body
        assert "<b>" not in body
        assert len(body) < 200_000


class TestStudyPage:
    def test_sections(self, study):
        text = study.read_text("utf-8")
        for title in (
            "Methods",
            "Gains over the student alone",
            "Classes",
            "Cost against accuracy",
            "Curves",
            "Setting",
        ):
            assert f">{title}</h2>" in text
        assert text.count("<script") == 1
        assert "a</script>" not in text
        assert study.stat().st_size < 500_000

    def test_runs_whose_folder_is_gone_are_named(self, study):
        assert "a&lt;script&gt;b-s0: its folder is not there" in study.read_text("utf-8")

    def test_several_runs(self, study, tmp_path):
        folders = [study.parent / "none-s0", study.parent / "channelwise-s0"]
        text = write_page(*folders, out=tmp_path / "both.html").read_text("utf-8")
        assert "40.0 mIoU, level with" in text
        assert "Settings that differ" in text


class TestAtTheEnd:
    def test_a_run_ends_with_its_page(self, place, tmp_path):
        run = train(recipe(place, report=SHOWN), out=tmp_path / "run")
        text = (run.path / "report.html").read_text("utf-8")
        assert "status</dt><dd>done" in text
        kept = read_run(run.path)
        assert kept.missing == ()
        assert list(kept.evaluations["step"]) == [2.0, 4.0, 6.0]
        assert kept.evaluations["miou"][-1] == run.record.final.miou
        matrix = kept.confusion.final.matrix
        assert kept.confusion.classes == list(run.record.final.iou) == list(CLASSES)
        hits = [matrix[place][place] for place in range(3)]
        unions = [sum(matrix[p]) + sum(row[p] for row in matrix) - matrix[p][p] for p in range(3)]
        assert [hit / union for hit, union in zip(hits, unions, strict=True)] == list(run.record.final.iou.values())
        assert kept.confusion.best.step == run.record.best.step
        (run.path / "report.html").unlink()
        assert Run.load(run.path).report().is_file()

    def test_it_can_be_switched_off(self, place, tmp_path):
        run = train(recipe(place), out=tmp_path / "run")
        assert not (run.path / "report.html").exists()

    def test_a_page_that_fails_costs_a_line(self, place, tmp_path, monkeypatch):
        def broken(*_):
            raise ZeroDivisionError("of its own")

        monkeypatch.setattr("densekd.runs.page.write_report", broken)
        lines = []
        watch = Quiet()
        watch.said = lines.append
        run = train(recipe(place, report=SHOWN), out=tmp_path / "run", progress=watch)
        line = "report.html could not be written, all else is there: ZeroDivisionError: of its own"
        assert run.record.status == "done"
        assert line in run.record.warnings
        assert line in lines
