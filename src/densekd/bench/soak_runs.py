"""The runs of the soak: thousands of steps of tiny networks, with all that a long run does besides, in one process."""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from densekd.bench import runner
from densekd.bench.soak import ALLOWED, Gauge, Reading, growth
from densekd.files import write_text
from densekd.records import BenchCase, BenchRecord
from densekd.runs import Run, distill, train
from densekd.runs.progress import Quiet
from densekd.training.stepper import StepResult

NETWORKS = """
from torch import nn


def student(num_classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(3, 6, 3, padding=1), nn.BatchNorm2d(6), nn.ReLU(), nn.Dropout2d(0.1), nn.Conv2d(6, num_classes, 1)
    )


def teacher(num_classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(3, 10, 3, padding=1), nn.BatchNorm2d(10), nn.ReLU(), nn.Conv2d(10, num_classes, 1))
"""
CLASSES = ("sky", "road", "tree")
_IMAGES = {"train": 24, "val": 8}
_TEACHER_STEPS = 20
_MEMORY = {"memory": True, "pixel_queue": 64, "region_queue": 64, "pixel_samples": 32, "region_samples": 16}


@dataclass(frozen=True)
class Stage:
    """Runs after each other.

    Args:
        name: of the case in the record.
        steps: of each run.
        runs: how many.
        every: steps between readings.
        page_every: steps after which the page of the run at work is written meanwhile; 0: at its end alone.
        collect: call Python's collector before each reading: the figures of a page refer to themselves, and it comes by
            once in a dozen pages.
        keys: of the recipe, besides what all stages have.
    """

    name: str
    steps: int
    runs: int = 1
    every: int = 100
    page_every: int = 0
    collect: bool = False
    keys: Mapping[str, Any] = field(default_factory=dict)


STAGES = (
    Stage(
        "one run",
        20_000,
        every=200,
        page_every=1000,
        collect=True,
        keys={"train.evaluate_every": 250, "train.checkpoint_every": 200},
    ),
    Stage("two loading processes", 2_000, every=40, keys={"train.evaluate_every": 100, "runtime.workers": 2}),
    Stage("runs", 400, runs=25, every=100, collect=True, keys={"train.evaluate_every": 100}),
)


def run(
    root: Path,
    stages: Sequence[Stage] = STAGES,
    *,
    progress: runner.Progress | None = None,
    command: str = "python benchmarks/soak.py",
) -> BenchRecord:
    """Distil stage by stage under `root`, and read what the process holds.

    Args:
        root: an empty folder for data, networks and runs.
        progress: called with (steps taken, in all).
        command: kept in the record.

    Raises:
        Interrupted: Ctrl-C or SIGTERM.
    """
    load = runner.machine_load()
    raw = make_place(root)
    total, before, cases = sum(stage.runs * stage.steps for stage in stages), 0, []
    with runner.use_threads(1):
        for stage in stages:
            cases.append(case(stage, readings(root, stage, raw, before, total, progress)))
            before += stage.runs * stage.steps
    record = runner.make_record("soak", device="cpu", threads=1, command=command, load=load, cases=cases)
    record.environment["flat"] = verdict(cases)
    return record


def make_place(root: Path) -> dict[str, Any]:
    """Images, masks, networks and a trained teacher under `root`; the recipe that all stages begin with."""
    write_text(root / "nets.py", NETWORKS)
    generator = np.random.default_rng(0)
    for split, count in _IMAGES.items():
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            label = generator.integers(0, len(CLASSES), (2, 3)).repeat(8, 0).repeat(8, 1)
            image = 80 * label[..., None] + generator.normal(40, 12, (*label.shape, 3))
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / split / "images" / f"{number}.png")
            Image.fromarray(label.astype(np.uint8)).save(root / split / "masks" / f"{number}.png")
    recipe = {
        "name": "soak",
        "data": {"name": "folder", "root": str(root), "classes": list(CLASSES), "augment": {"scale": [0.8, 1.2]}},
        "student": {"model": f"{root}/nets.py:student"},
        "train": {"steps": 1, "batch_size": 3, "optimizer": {"name": "adamw", "lr": 0.003}, "ema_decay": 0.9},
        "runtime": {"device": "cpu", "threads": 1},
    }
    untold: dict[str, Any] = {"report.page": False, "report.images": 0, "report.channels": 0}
    teacher: dict[str, Any] = {"student.model": f"{root}/nets.py:teacher", "train.steps": _TEACHER_STEPS}
    train(recipe, out=root / "teacher", **{**teacher, **untold})
    term, features = {"student": "output", "teacher": "output"}, {"student": "2", "teacher": "2"}
    return {
        **recipe,
        "teacher": {"model": f"{root}/nets.py:teacher", "checkpoint": str(root / "teacher")},
        "terms": [
            {"method": "channelwise", **term},
            {"method": "channelwise", **features, "weight": 1.0, "decay": "linear"},
            {"method": "crossimage", **features, "weight": 0.1, "options": _MEMORY},
        ],
        "preflight": {"teacher_images": 4, "on_problem": "warn"},
        "report": {"images": 2, "channels": 2},
    }


class _Watch(Quiet):
    """Reads after each step; writes the page of the run at work now and then, as `densekd report` does."""

    def __init__(self, folder: Path, stage: Stage, after: Callable[[int], None]) -> None:
        self.folder, self.stage, self.after = folder, stage, after

    def step(self, taken: int, steps: int, result: StepResult) -> None:
        every = self.stage.page_every
        if every and taken % every == 0 and taken < steps:
            Run.load(self.folder).report()
        self.after(taken)


def readings(
    root: Path,
    stage: Stage,
    recipe: Mapping[str, Any],
    before: int = 0,
    total: int = 0,
    progress: runner.Progress | None = None,
) -> list[Reading]:
    """What the process held during the runs of a stage; steps count over all of them."""
    gauge = Gauge(stage.every, collect=stage.collect)
    for number in range(stage.runs):
        first = number * stage.steps

        def after(taken: int, first: int = first) -> None:
            gauge.step(first + taken)
            if progress is not None:
                progress(before + first + taken, total)

        folder = root / "runs" / f"{stage.name} {number}"
        keys = {**stage.keys, "train.steps": stage.steps}
        distill(recipe, out=folder, seed=number, progress=_Watch(folder, stage, after), **keys)
    return gauge.readings


def case(stage: Stage, found: Sequence[Reading]) -> BenchCase:
    """The stage's part of the record: seconds of a step between readings, and `growth`."""
    seconds = [(later.seconds - early.seconds) / (later.step - early.step) for early, later in pairwise(found)]
    evaluations = stage.runs * -(-stage.steps // int(stage.keys.get("train.evaluate_every") or stage.steps))
    pages = stage.runs * max(1, -(-stage.steps // (stage.page_every or stage.steps)))
    return BenchCase(
        name=stage.name,
        variant=f"{stage.runs} x {stage.steps} steps",
        median_seconds=statistics.median(seconds),
        ratio=None,
        samples=[round(value, 6) for value in seconds],
        extra={**growth(found), "runs": stage.runs, "evaluations": evaluations, "pages": pages},
    )


def verdict(cases: Sequence[BenchCase]) -> str:
    """One line: whether all of them are flat."""
    words = [
        f"{case.name}: {case.extra['own_slope']:.2f} MB in 1,000 steps ({case.extra['own_slope_low']:.2f} to "
        f"{case.extra['own_slope_high']:.2f}), at most {case.extra['files_most']} open files"
        for case in cases
    ]
    met = all(case.extra["met"] for case in cases)
    return f"{'met' if met else 'NOT MET'} (under {ALLOWED:g} MB, files and threads flat): {'; '.join(words)}"
