"""`densekd bench step`: what it refuses, what it compares before it times, and a record of tiny networks."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from densekd.bench import step
from densekd.bench.runner import Timing
from densekd.bench.step_pairs import PAIRS, choose_pairs, make_material
from densekd.bench.step_variants import DESCRIBED, PUBLIC, STUDENT
from densekd.cli.main import _run
from densekd.errors import ArgumentError, DensekdError
from densekd.records import BenchCase


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"pairs": ["pspnett"]}, "'pspnett' is no pair; did you mean 'pspnet'"),
        ({"pairs": ["pspnet", "pspnet"]}, "expected different names"),
        ({"device": "gpu"}, "expected auto, cpu or cuda, got 'gpu'"),
        ({"size": 100}, "a multiple of 32, which the networks take, got 100"),
        ({"batch": 1}, "batch: expected a whole number from 2"),
        ({"rounds": 0}, "rounds: expected a whole number from 1"),
    ],
)
def test_refused_before_anything_is_built(options: dict[str, Any], words: str) -> None:
    with pytest.raises(ArgumentError, match=words):
        step.run(**options)


def test_the_pairs_are_the_papers() -> None:
    from densekd.models.names import expanded

    for pair in choose_pairs(list(PAIRS)).values():
        for name, options in (pair.teacher, pair.student):
            assert expanded(name, options)[1]["output_stride"] == 8  # which keeps the whole encoder


def test_other_losses_than_the_public_ones_are_refused() -> None:
    def variant(name: str, *losses: float) -> Any:
        return SimpleNamespace(name=name, losses=lambda: dict(zip(("task", "term"), losses, strict=False)))

    fine = [variant(PUBLIC, 2.0, 0.5), variant("exact", 2.0, 0.504), variant(STUDENT, 2.0)]
    step._require_equal("pspnet", fine)
    step._require_equal("pspnet", [*fine, variant("teacher bf16", 2.0, 0.7)])  # its error is measured, not bounded
    with pytest.raises(DensekdError, match=r"term of variant 'exact' of pspnet is 0\.506, of the public one 0\.5;"):
        step._require_equal("pspnet", [*fine, variant("exact", 2.0, 0.506)])
    with pytest.raises(DensekdError, match="is nan, of the public one"):
        step._require_equal("pspnet", [*fine, variant("teacher bf16", 2.0, float("nan"))])


def test_ratios() -> None:
    one: Any = SimpleNamespace(name="exact", error=0.25, report=None)
    timings = {
        PUBLIC: Timing([6.0, 4.0, 5.0], [4.0, 4.0, 8.0]),
        "exact": Timing([2.0, 2.5, 9.0], [1.0, 2.0, 3.0]),
        STUDENT: Timing([1.0, 1.0, 1.0], [0.5, 0.5, 0.5]),
    }
    case = step._case("pair", one, timings, 7)
    assert (case.median_seconds, case.ratio, case.peak_bytes, case.error) == (2.5, 2.0, 7, 0.25)
    assert (case.extra["times_student"], case.extra["cpu_ratio"], case.extra["cpu_times_student"]) == (2.5, 2.0, 4.0)


def test_targets_in_words() -> None:
    def case(variant: str, ratio: float, times_student: float) -> BenchCase:
        extra = {"times_student": times_student}
        return BenchCase(name="pspnet:2", variant=variant, median_seconds=1.0, ratio=ratio, samples=[1.0], extra=extra)

    cases = [
        case(PUBLIC, 1.0, 2.4),
        case("exact", 1.06, 2.2),
        case("exact+compile", 1.0, 2.2),
        case("teacher bf16, student bf16", 2.0, 1.2),
        case("cached maps", 2.4, 1.16),
        case(STUDENT, 2.4, 1.0),
    ]
    assert [target.words() for target in step.targets(cases)] == [
        "NOT MET: pspnet:2 exact, speed-up of the step: 1.06 (at least 1.1)",
        "met: pspnet:2 teacher bf16, student bf16, speed-up of the step: 2 (at least 2)",
        "NOT MET: pspnet:2 cached maps, times the student's plain step: 1.16 (at most 1.15)",
    ]


@pytest.mark.parametrize(
    ("options", "judged"), [({}, 3), ({"threads": 2}, 0), ({"size": 128}, 0), ({"batch": 4}, 0), ({"quick": True}, 0)]
)
def test_only_the_usual_step_is_judged(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path, options: Any, judged: int
) -> None:
    def measure(name: str, *_: Any) -> list[BenchCase]:
        values: Any = {"name": name, "median_seconds": 1.0, "ratio": 1.5, "samples": [1.0]}
        return [
            BenchCase(variant=variant, extra={"times_student": 1.1, "cpu_seconds": 1.0, "cpu_ratio": 1.0}, **values)
            for variant in DESCRIBED
        ]

    monkeypatch.setattr(step, "_measure", measure)
    record = step.run(pairs=["pspnet"], compiled=False, **options)
    lines = step.verdicts(record)
    assert len(lines) == judged
    words = [word for key, value in options.items() for word in (f"--{key}", *([] if value is True else [str(value)]))]
    out = str(tmp_path / "step.json")
    assert _run(["bench", "step", "--pairs", "pspnet", "--device", "cpu", "--no-compile", "--out", out, *words]) == 0
    said = capsys.readouterr().err
    assert [line for line in lines if line not in said] == []
    assert ("MET" in said) is bool(judged)


@pytest.mark.slow
class TestTinyNetworks:
    def test_the_teachers_statistics_are_those_of_the_images(self) -> None:
        (pair,) = choose_pairs([], quick=True).values()
        material = make_material(pair, 2, 64, torch.device("cpu"))
        norm = next(module for module in material.teacher.modules() if isinstance(module, torch.nn.BatchNorm2d))
        assert int(norm.num_batches_tracked) == 3
        assert not material.teacher.training
        with torch.no_grad():
            assert 0.1 < float(material.teacher(material.images).std()) < 100

    def test_a_record(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        path = tmp_path / "step.json"
        assert _run(["bench", "step", "--quick", "--rounds", "1", "--device", "cpu", "--out", str(path), "-q"]) == 0
        record = json.loads(path.read_text())
        assert record["bench"] == "step"
        assert record["environment"]["compiled"] == "not asked"
        cases = {case["variant"]: case for case in record["cases"]}
        assert list(cases) == [name for name in DESCRIBED if name != "exact+compile"]
        assert cases[PUBLIC]["ratio"] == 1.0
        assert cases["exact"]["error"] < 1e-5 < cases["teacher bf16"]["error"]
        assert 0 < cases["cached maps"]["error"] < 1e-2
        assert cases["exact"]["extra"]["teacher"]["folded"] > 0
        assert all(case["peak_bytes"] > 0 for case in cases.values())
        assert len(capsys.readouterr().out.splitlines()) == 1 + len(cases)
