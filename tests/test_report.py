"""The page of a run: complete, self-contained, escaped."""

from __future__ import annotations

import re
from html.parser import HTMLParser

from densekd.records import BestScores, RunRecord, Scores
from densekd.report import write_report

SCORES = {"miou": 0.5, "pixel_accuracy": 0.9, "iou": {"road": 0.75, "<b>car": 0.25, "tree": None}, "images": 3}


def record(**changes):
    base = {"status": "done", "method": "channelwise", "seed": 4, "split": "val", "steps": 9, "epochs": 1.0}
    return RunRecord(**{**base, **changes})


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.tags: list[tuple[str, dict]] = []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))


def test_a_finished_run(tmp_path):
    (tmp_path / "log.csv").write_text(
        "step,loss,channelwise:logits,lr,grad_norm,seconds,data_wait\n1,2.0,1.0,0.1,,0.1,0\n2,1.0,0.5,0.05,,0.1,0\n"
    )
    done = record(final=Scores(**SCORES), best=BestScores(**SCORES, step=7), warnings=["a <script> in a name"])
    path = write_report(tmp_path, done)
    text = path.read_text(encoding="utf-8")
    parser = Tags()
    parser.feed(text)
    names = {tag for tag, _ in parser.tags}
    assert path == tmp_path / "report.html"
    assert "mIoU 50.0 on val" in text
    assert "at step 7" in text
    assert "75.0" in text
    assert "&lt;b&gt;car" in text
    assert "a &lt;script&gt; in a name" in text
    assert "svg" in names
    assert not names & {"script", "link", "iframe", "img"}
    assert not re.search(r"(?:src|href)=\"https?:", text.replace("xlink:href", ""))


def test_a_run_without_an_evaluation_or_log(tmp_path):
    text = write_report(tmp_path, record(status="failed", error="NonFiniteError: step 3 <x>")).read_text("utf-8")
    assert "no evaluation yet" in text
    assert "NonFiniteError: step 3 &lt;x&gt;" in text
    assert "<svg" not in text
