"""Records without runs, a place with a trained teacher, and a watch that keeps what it sees, for tests of studies."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from densekd.records import BestScores, Cost, NetworkCost, RunRecord, Scores, StudyTeacher
from densekd.runs import train
from densekd.runs.progress import Quiet
from densekd.study import Silent
from runkit import distillation, make_place, recipe


def record(miou: float, seed: int = 0, iou: dict[str, float | None] | None = None, **changes: Any) -> RunRecord:
    """The record of a finished run; its best evaluation is a point above its last."""
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


TEACHER = StudyTeacher(miou=0.7, iou={"a": 0.7, "b": 0.6}, images=3, parameters=5_000_000, flops=None)


def place_with_teacher(root: Path) -> Path:
    """Data, networks, and a trained teacher under `root/teacher`."""
    make_place(root)
    asked = recipe(root, student={"model": f"{root}/nets.py:teacher"})
    train(asked, out=root / "teacher", train__steps=12, train__evaluate_every=None)
    return root


def comparable_recipe(root: Path, **changes: Any) -> dict[str, Any]:
    """A recipe to compare: a term on the class maps alone, taps for features, a label of its own."""
    found = distillation(root, root / "teacher", **changes)
    found["terms"] = found["terms"][:1]
    found["compare"] = {
        "features": {"student": "2", "teacher": "2"},
        "methods": {
            "both": {
                "terms": [
                    {"method": "channelwise", "student": "output", "teacher": "output", "weight": 2.0},
                    {"method": "pixelwise", "student": "output", "teacher": "output", "weight": 0.5},
                ]
            }
        },
    }
    return found


class Keeping(Silent):
    """Keeps lines, names of what began, how it ended, and the steps that were seen."""

    def __init__(self) -> None:
        self.lines: list[str] = []
        self.began: list[str] = []
        self.endings: dict[str, str] = {}
        self.steps: dict[str, list[int]] = {}
        self.counts: list[tuple[int, int]] = []

    def run(self, name: str) -> Quiet:
        self.began.append(name)
        return _Row(self, name)

    def ended(self, name: str, words: str) -> None:
        self.endings[name] = words

    def counted(self, done: int, total: int) -> None:
        self.counts.append((done, total))

    def said(self, line: str) -> None:
        self.lines.append(line)


class _Row(Quiet):
    def __init__(self, board: Keeping, name: str) -> None:
        self.board, self.name = board, name

    def step(self, taken: int, steps: int, result: object) -> None:
        self.board.steps.setdefault(self.name, []).append(taken)

    def said(self, line: str) -> None:
        self.board.lines.append(line)
