"""benchmarks/gpu.py without a GPU: targets, every stage on the CPU with tiny maps, stops that lose nothing."""

from __future__ import annotations

import importlib.util
import json
import math
import sys
import time
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from densekd.bench import gpu, gpu_checks, gpu_loss, gpu_step, gpu_task
from densekd.errors import ArgumentError, DensekdError
from densekd.records import BenchRecord
from triton_tiers import needs_triton

CPU = torch.device("cpu")
SCRIPT = Path(__file__).resolve().parent.parent / "benchmarks" / "gpu.py"


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    spec = importlib.util.spec_from_file_location("gpu_script", SCRIPT)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    monkeypatch.setitem(sys.modules, "gpu_script", module)  # its dataclasses look themselves up
    spec.loader.exec_module(module)
    return module


class TestTargets:
    @pytest.mark.parametrize(
        ("value", "at_most", "met"),
        [
            *[(0.7, False, True), (0.69, False, False), (0.7, True, True), (0.71, True, False), (None, True, False)],
            *[(math.nan, False, False), (math.inf, False, False), (math.nan, True, False)],
        ],
    )
    def test_met_or_not(self, value: float | None, at_most: bool, met: bool) -> None:
        target = gpu.Target("share", value, 0.7, at_most)
        assert target.met is met
        assert target.words().startswith("met: share" if met else "NOT MET: share")
        json.dumps(target.as_dict(), allow_nan=False)

    def test_words_hold_figure_and_bound(self) -> None:
        assert gpu.Target("speed", 3.456, 4.0).words() == "NOT MET: speed: 3.46 (at least 4)"
        assert gpu.Target("maps", None, 1.1, at_most=True).words() == "NOT MET: maps: not measured (at most 1.1)"


def test_relative_errors() -> None:
    expected = torch.tensor([3.0, 4.0], dtype=torch.float64)
    assert gpu.relative(torch.tensor([3.0, 4.5]), expected) == pytest.approx(0.1)
    assert gpu.relative(torch.tensor([0.5]), torch.zeros(1, dtype=torch.float64)) == 0.5
    assert math.isnan(gpu.relative(torch.tensor([3.0, math.nan]), expected))


def test_timings_take_turns_and_warm_up() -> None:
    calls: list[str] = []
    variants = {name: (lambda name=name: calls.append(name)) for name in "ab"}
    found = gpu.device_timings(variants, CPU, rounds=2, calls=2, warmup=1)
    assert "".join(calls) == "ab" + "aaabbb" + "bbbaaa"  # two in a row, and one with a wait
    assert [len(found["a"].wall), len(found["a"].cpu)] == [2, 2]


def test_arguments(script: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(ArgumentError, match="--stages: unknown speed; there are correct, loss, task, step, methods"):
        script.main(["--stages", "speed"])
    script.main(["--dry-run", "--tiny", "--results", "somewhere"])
    said = capsys.readouterr().out
    assert "device cpu: cpu" in said
    assert [line.split(":")[0] for line in said.splitlines()[2:]] == [*script.STAGES, "all"]
    assert "--outcome - --tiny" in said
    assert "bench methods --device cpu --quick" in said
    assert sum(stage.limit for stage in script.STAGES.values()) <= script.LIMIT < 480


def test_without_a_gpu_it_says_so(script: ModuleType, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(ArgumentError, match="no CUDA device here; --tiny runs every line of it on the CPU"):
        script.main([])


class TestWhole:
    """The stages as processes, each replaced by what became of it."""

    def run(self, script: ModuleType, monkeypatch: Any, folder: Path, **stages: Any) -> tuple[int, dict[str, Any]]:
        def started(name: str, given: Any, where: Path, limit: float) -> dict[str, Any]:
            status, met = stages.get(name, ("done", True))
            targets = [] if met is None else [gpu.Target(f"{name} speed", 2.0 if met else 0.5, 1.0).as_dict()]
            kept = not status.startswith("nothing: ")
            status = status.removeprefix("nothing: ")
            return {"stage": name, "status": status, "seconds": 1.0, "targets": targets, "kept": kept}

        monkeypatch.setattr(script, "_started", started)
        with pytest.raises(SystemExit) as ended:
            script.main(["--tiny", "--results", str(folder)])
        return ended.value.code, json.loads((folder / "gpu-targets.json").read_text())

    def test_all_targets_met(self, script: ModuleType, monkeypatch: Any, tmp_path: Path) -> None:
        code, record = self.run(script, monkeypatch, tmp_path)
        assert code == 0
        assert [stage["stage"] for stage in record["stages"]] == list(script.STAGES)
        assert record["device"] == "cpu"

    def test_a_target_that_is_not_met_is_no_failure(
        self, script: ModuleType, monkeypatch: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
    ) -> None:
        code, _ = self.run(script, monkeypatch, tmp_path, loss=("done", False))
        assert code == 0
        said = capsys.readouterr().out
        assert "NOT MET: loss speed: 0.5 (at least 1)" in said
        assert "4 of 5 targets met" in said

    def test_a_stage_that_was_stopped_keeps_no_other_from_running(
        self, script: ModuleType, monkeypatch: Any, tmp_path: Path
    ) -> None:
        code, record = self.run(script, monkeypatch, tmp_path, loss=("stopped after 70 s", True))
        assert code == 1
        assert [stage["status"] for stage in record["stages"]] == ["done", "stopped after 70 s", "done", "done", "done"]

    def test_nothing_is_timed_where_values_are_wrong(
        self, script: ModuleType, monkeypatch: Any, tmp_path: Path
    ) -> None:
        code, record = self.run(script, monkeypatch, tmp_path, correct=("done", False))
        assert code == 1
        assert [stage["status"] for stage in record["stages"]] == ["done"] + 4 * ["left out"]

    @pytest.mark.parametrize(
        ("status", "timed"),
        [
            ("failed with exit code 1", False),
            ("nothing: failed with exit code -11", False),
            ("nothing: stopped after 140 s", False),
            ("stopped after 140 s", True),  # what there was time for was right
        ],
    )
    def test_nothing_is_timed_where_values_were_not_looked_at(
        self, script: ModuleType, monkeypatch: Any, tmp_path: Path, status: str, timed: bool
    ) -> None:
        code, record = self.run(script, monkeypatch, tmp_path, correct=(status, None))
        assert code == 1
        assert {stage["status"] for stage in record["stages"][1:]} == {"done" if timed else "left out"}


def _has_ended(process: int, within_s: float) -> bool:
    """Killed processes take a moment to go, and stay zombies where nobody waits for orphans."""
    status = Path("/proc") / str(process) / "status"
    ends = time.monotonic() + within_s
    while time.monotonic() < ends:
        try:
            if "State:\tZ" in status.read_text():
                return True
        except (FileNotFoundError, ProcessLookupError):
            return True
        time.sleep(0.05)
    return False


@pytest.mark.slow
def test_a_stage_has_a_time_limit_and_leaves_what_it_had(
    script: ModuleType, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The process that is stopped has started another one, which goes too."""
    given = script._arguments(["--tiny"])
    outcome, pid = tmp_path / "loss.json", tmp_path / "pid"
    kept = {"targets": [gpu.Target("a", 1.0, 1.0).as_dict()]}
    program = (
        "import pathlib, subprocess, sys, time\n"
        f"pathlib.Path({str(outcome)!r}).write_text({json.dumps(json.dumps(kept))})\n"
        "child = subprocess.Popen([sys.executable, '-c', 'import time; time.sleep(60)'])\n"
        f"pathlib.Path({str(pid)!r}).write_text(str(child.pid))\n"
        "time.sleep(60)\n"
    )
    monkeypatch.setattr(script, "_words", lambda *arguments: [sys.executable, "-c", program])
    found = script._started("loss", given, tmp_path, 3.0)
    assert found["status"] == "stopped after 3 s"
    assert (found["targets"], found["kept"]) == (kept["targets"], True)
    assert _has_ended(int(pid.read_text()), within_s=20.0)
    monkeypatch.setattr(script, "_words", lambda *arguments: [sys.executable, "-c", "raise SystemExit(3)"])
    found = script._started("task", given, tmp_path, 30.0)
    assert (found["status"], found["kept"]) == ("failed with exit code 3", False)


@pytest.mark.slow
class TestStages:
    """Every stage in this process, with what the CPU has in the place of Triton's kernels."""

    def test_values_are_checked(self) -> None:
        kept: list[int] = []
        outcome = gpu_checks.run(CPU, tiny=True, keep=lambda found: kept.append(len(found.cases)))
        assert [target.met for target in outcome.targets] == [True, True, True]
        assert all(target.value is not None and target.value > 0 for target in outcome.targets)
        assert kept == [3, 6, 9, 12, 15, 18]
        assert "Triton cannot run here" in outcome.notes["backend"]
        assert {case.variant for case in outcome.cases} == {
            "channelwise:auto",
            "pixelwise:auto",
            "upsampled cross-entropy:auto",
        }

    def test_masks_leave_something_out(self) -> None:
        for case in gpu_checks._cases(tiny=True):
            mask = gpu_checks._mask(case, CPU)
            assert (mask is None) is not case.masked
            assert mask is None or 0 < mask.sum() < mask.numel()

    @pytest.mark.parametrize("factor", [1.001, math.nan])
    def test_a_wrong_value_is_found(self, monkeypatch: pytest.MonkeyPatch, factor: float) -> None:
        right = gpu_checks.channelwise_kl

        def wrong(student: torch.Tensor, *args: Any, backend: str, **options: Any) -> torch.Tensor:
            value = right(student, *args, backend=backend, **options)
            return value * factor if backend == "auto" and student.dtype == torch.bfloat16 else value

        monkeypatch.setattr(gpu_checks, "channelwise_kl", wrong)
        kept: list[list[bool]] = []
        outcome = gpu_checks.run(CPU, tiny=True, keep=lambda found: kept.append([one.met for one in found.targets]))
        assert [target.met for target in outcome.targets] == [False, True, True]
        # Known from the first wrong map on, whether or not the stage comes to its end.
        assert kept == [[], [], [False], [False], [False], [False]]
        json.dumps([case.error for case in outcome.cases], allow_nan=False)

    def test_a_wrong_gradient_is_found(self, monkeypatch: pytest.MonkeyPatch) -> None:
        right = gpu_checks.pixelwise_kl

        def wrong(student: torch.Tensor, *args: Any, backend: str, **options: Any) -> torch.Tensor:
            value = right(student, *args, backend=backend, **options)
            return value + 1e-2 * (student.float() - student.detach().float()).sum() if backend == "auto" else value

        monkeypatch.setattr(gpu_checks, "pixelwise_kl", wrong)
        assert [target.met for target in gpu_checks.run(CPU, tiny=True).targets] == [True, False, True]

    def test_the_loss_against_a_copy(self) -> None:
        outcome = gpu_loss.run(CPU, tiny=True)
        assert len(outcome.cases) == 2 * 4
        assert len(outcome.targets) == 2 * 3
        by_variant = {case.variant: case for case in outcome.cases[:4]}
        size = 2 * 2 * 3 * 8 * 8
        assert by_variant["copy"].extra["share_of_copy"] == pytest.approx(1)
        for name, passes in (("copy", 2), ("textbook", 3), ("auto", 3)):
            case = by_variant[name]
            assert case.extra["bytes_per_second"] == pytest.approx(passes * size / case.median_seconds)
        assert by_variant["textbook"].ratio == pytest.approx(1)
        assert outcome.targets[1].value == by_variant["auto"].ratio
        assert outcome.targets[2].value == by_variant["auto"].extra["peak_maps"]

    def test_the_task_loss_and_pixelwise_kl(self) -> None:
        outcome = gpu_task.run(CPU, tiny=True)
        assert len(outcome.cases) == 2 * (3 + 3)
        assert [target.at_most for target in outcome.targets] == 2 * [False, True, False]
        usual = next(case for case in outcome.cases if case.variant == gpu_task.REFERENCE)
        assert usual.ratio == 1
        assert usual.extra["peak_maps"] > 64  # the full-size map stands in memory

    def test_the_step(self) -> None:
        outcome = gpu_step.run(CPU, tiny=True)
        first = [case for case in outcome.cases if case.name.endswith("eager")]
        assert [case.variant for case in first][:2] == [gpu_step.PUBLIC, gpu_step.AUTOCAST]
        assert len(outcome.cases) == len(first) + 4
        public = first[0]
        for case in first:
            assert case.ratio == pytest.approx(public.median_seconds / case.median_seconds)
            assert case.extra["to_autocast"] == pytest.approx(first[1].median_seconds / case.median_seconds)
        exact = next(case for case in first if case.variant == gpu_step.EXACT)
        assert exact.extra["losses"] == pytest.approx(public.extra["losses"], rel=2e-2)
        assert outcome.targets[0].value == next(case.ratio for case in first if case.variant == gpu_step.OURS)
        json.dumps([case.extra for case in outcome.cases], allow_nan=False)

    def test_a_step_that_computes_something_else_is_not_timed(self) -> None:
        for losses in (
            {gpu_step.PUBLIC: {"a": 1.0, "b": 0.5}, gpu_step.EXACT: {"a": 1.0, "b": 0.52}},
            {gpu_step.PUBLIC: {"a": 1.0, "b": 0.5}, "other": {"a": math.nan}},
        ):
            with pytest.raises(DensekdError, match="Nothing of this group was timed"):
                gpu_step._require_right(losses)
        good = {gpu_step.PUBLIC: {"a": 1.0}, gpu_step.EXACT: {"a": 1.01}, "other": {"a": 3.0}}
        gpu_step._require_right(good)


@pytest.mark.long
@needs_triton
def test_the_whole_command(script: ModuleType, tmp_path: Path) -> None:
    """Every line, Triton's kernels under its interpreter; records that can be read."""
    with pytest.raises(SystemExit) as ended:
        script.main(["--tiny", "--results", str(tmp_path)])
    assert ended.value.code == 0
    summary = json.loads((tmp_path / "gpu-targets.json").read_text())
    assert [stage["status"] for stage in summary["stages"]] == 5 * ["done"]
    assert all(target["met"] for target in summary["stages"][0]["targets"])
    for name in script.STAGES:
        record = BenchRecord.model_validate_json((tmp_path / f"gpu-{name}.json").read_bytes())
        assert record.cases
        assert record.bench == script.STAGES[name].bench
    assert {case.variant for case in record.cases} >= {"mse", "channelwise"}
