"""The benchmark of all losses: every method measured, what does nothing never timed, a valid record, a table."""

from __future__ import annotations

import json
from typing import ClassVar

import pytest
import torch
from torch import nn
from typer.testing import CliRunner

from densekd.bench import methods, runner
from densekd.bench.contender import Contender, contender, make_maps
from densekd.cli.app import app
from densekd.errors import ArgumentError, DensekdError, ShapeError
from densekd.losses.base import Adversary, DistillationLoss
from densekd.losses.catalog import METHODS
from densekd.records import BenchRecord, dump

TINY = {"logits": (2, 3, 16, 24), "features": (2, 8, 16, 16)}


class Plain(DistillationLoss):
    """A loss of this test: scaled squared difference with a parameter of its own."""

    name: ClassVar[str] = "plain"
    cost: ClassVar[str] = "N C P"

    def __init__(self, factor: float | None = None, width: int | None = None) -> None:
        super().__init__()
        self.factor = 3.0 if factor is None else factor
        self.seen: list[torch.Tensor | None] = []

    def bind(self, student_shape, teacher_shape, num_classes):
        self.scale = nn.Parameter(torch.full((student_shape[1], 1, 1), self.factor))

    def forward(self, student_map, teacher_map, labels=None, mask=None):
        self.seen.append(labels)
        return (self.scale * (student_map - teacher_map)).square().mean()


class WithLabels(Plain):
    needs = frozenset({"labels"})


class Playing(Plain):
    """With an adversary, kept out of the loss's own parameters."""

    def bind(self, student_shape, teacher_shape, num_classes):
        super().bind(student_shape, teacher_shape, num_classes)
        self.against = [nn.Conv2d(student_shape[1], 1, 1)]

    def adversary(self):
        return Adversary(self.against[0], lambda: self.against[0](torch.ones(1, 3, 2, 2)).mean(), 1e-3, (0.0, 0.9))


class Refusing(Plain):
    def bind(self, student_shape, teacher_shape, num_classes):
        raise ShapeError("expected one thing, got another")


class Idle(Plain):
    def forward(self, student_map, teacher_map, labels=None, mask=None):
        return 0.0 * student_map.sum()


def add(monkeypatch, **losses):
    for name, kind in losses.items():
        monkeypatch.setitem(METHODS, name, kind)


@pytest.fixture(scope="module")
def record() -> BenchRecord:
    return methods.run(methods=["channelwise", "pixelwise", "feature"], maps=TINY, rounds=3)


def test_record_holds_every_case_and_survives_json(record):
    assert BenchRecord.model_validate(json.loads(json.dumps(dump(record)))) == record
    logits, features = "logits:2x3x16x24", "features:2x8x16x16"
    expected = {(logits, name) for name in ("mse", "channelwise", "pixelwise", "feature")}
    expected |= {(features, name) for name in ("mse", "channelwise", "feature")}
    assert {(case.name, case.variant) for case in record.cases} == expected
    reference = {case.name: case.median_seconds for case in record.cases if case.variant == "mse"}
    for case in record.cases:
        assert len(case.samples) == 3
        assert case.median_seconds == sorted(case.samples)[1]
        assert case.ratio == pytest.approx(reference[case.name] / case.median_seconds)
        assert 0 < case.extra["forward_seconds"] < max(case.samples)
        assert 0 < case.extra["backward_seconds"] < max(case.samples)
    assert (record.bench, record.device, record.threads) == ("methods", "cpu", 1)
    assert methods.left_out(record) == []


def test_a_plain_mse_holds_the_difference_and_the_gradient():
    """The lower bound: two maps, whatever the shape."""
    found = methods.run(methods=["feature"], maps={"features": (2, 64, 64, 64)}, rounds=1)
    plain, mimic = found.cases
    assert plain.variant == "mse"
    assert 2 <= plain.extra["peak_maps"] < 2.01
    assert plain.peak_bytes == plain.extra["peak_maps"] * 2 * 64 * 64 * 64 * 4
    assert mimic.extra["peak_maps"] >= 2


def test_rows_make_a_table(record):
    table = methods.rows(record)
    assert len(table) == 7
    assert all(list(row) == list(table[0]) for row in table)
    assert [row["times MSE"] for row in table if row["method"] == "mse"] == [1.0, 1.0]
    assert {row["method"]: row["grows as"] for row in table} == {
        "mse": "N C P",
        "channelwise": "N C P",
        "pixelwise": "N K P",
        "feature": "N C P",
    }
    assert next(row["options"] for row in table if row["method"] == "pixelwise").startswith("temperature=1.0, ")


@pytest.mark.parametrize("profiled", [False, pytest.param(True, marks=pytest.mark.slow)])
def test_every_method_of_the_catalog_is_measured(monkeypatch, profiled):
    if not profiled:
        monkeypatch.setattr(runner, "peak_extra_bytes", lambda call, device: call() or 1)
    found = methods.run(maps=methods.QUICK_MAPS, rounds=1)
    assert {case.variant for case in found.cases} == {"mse", *METHODS}, methods.left_out(found)


def test_labels_are_given_where_they_are_needed(monkeypatch):
    add(monkeypatch, plain=Plain, labelled=WithLabels)
    student, teacher, labels = make_maps((2, 3, 20, 12), 5, torch.device("cpu"))
    assert labels.shape == (2, 20, 12)
    assert set(labels.unique().tolist()) <= {0, 1, 2, 3, 4, 255}
    assert torch.equal(labels[:, :8, :8], labels[:, :1, :1].expand(2, 8, 8))  # regions
    for name, given in (("plain", None), ("labelled", labels)):
        one = contender(name, student, teacher, labels, 5)
        one()
        assert one.loss.seen == [given] or torch.equal(one.loss.seen[0], given)


def test_labels_hold_void():
    _, _, labels = make_maps(methods.MAPS["logits"], 19, torch.device("cpu"))
    assert 0.02 < (labels == 255).float().mean() < 0.08
    assert len(labels.unique()) == 20


def test_an_adversary_is_part_of_the_cost(monkeypatch):
    add(monkeypatch, plain=Plain, playing=Playing)
    found = {case.variant: case for case in methods.run(methods=["plain", "playing"], maps=_logits(), rounds=1).cases}
    assert found["plain"].extra["extra_parameters"] == 3
    assert found["plain"].extra["options"] == "factor=3.0"  # what was chosen, and nothing of what was not
    assert found["playing"].extra["extra_parameters"] == 3 + (3 + 1)
    assert found["playing"].extra["held_bytes"] == 4 * 7
    one = contender("playing", *make_maps(_logits()["logits"], 3, torch.device("cpu")), 3)
    one()
    assert all(parameter.grad is not None for parameter in one.parameters())
    one.clear()
    assert all(tensor.grad is None for tensor in (one.student, *one.parameters()))


def test_a_loss_that_refuses_a_map_is_left_out_and_named(monkeypatch):
    add(monkeypatch, plain=Plain, refusing=Refusing)
    seen = []
    found = methods.run(
        methods=["refusing", "plain"], maps=_logits(), rounds=2, progress=lambda done, total: seen.append((done, total))
    )
    assert [case.variant for case in found.cases] == ["mse", "plain"]
    assert methods.left_out(found) == ["left out: refusing on logits: expected one thing, got another"]
    assert seen == [(n, 7) for n in range(1, 8)]


def test_what_does_nothing_is_never_timed(monkeypatch):
    add(monkeypatch, idle=Idle)
    monkeypatch.setattr(runner, "interleave", lambda *a, **k: pytest.fail("timed"))
    with pytest.raises(DensekdError, match=r"idle on logits has the value 0 and a gradient of norm 0; both must be"):
        methods.run(methods=["idle"], maps=_logits(), rounds=1)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_what_is_not_finite_is_refused(bad):
    student = torch.zeros(3, requires_grad=True)
    one = Contender("odd", lambda: (student * bad).sum() + 1, student)
    one()
    with pytest.raises(DensekdError, match="finite"):
        one.require_effect("here")


def test_random_states_and_threads_are_left_alone(monkeypatch):
    torch.manual_seed(4)
    expected, threads = torch.rand(3), torch.get_num_threads()
    monkeypatch.setattr("os.cpu_count", lambda: threads + 1)
    torch.manual_seed(4)
    methods.run(methods=["feature"], maps=_logits(), rounds=1, threads=threads + 1)
    assert torch.equal(torch.rand(3), expected)
    assert torch.get_num_threads() == threads


def test_devices_are_chosen(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    assert methods.choose_devices(["auto"]) == ["cpu", "cuda"]
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert methods.choose_devices(["auto"]) == ["cpu"]
    assert methods.choose_devices(["cuda"]) == ["cuda"]
    with pytest.raises(ArgumentError, match="cuda was asked for, but torch sees no CUDA device"):
        methods.run(devices=["cuda"], maps=_logits(), rounds=1)


def test_mistakes_are_named():
    for options, words in [
        ({"methods": ["chanelwise"]}, "unknown method 'chanelwise'.*'channelwise'"),
        ({"methods": []}, "different names, at least one"),
        ({"methods": ["feature", "feature"]}, "different names"),
        ({"methods": ["pixelwise"], "maps": {"features": (2, 3, 4, 4)}}, "they have a cost on logits, not on features"),
        ({"maps": {}}, "maps: expected at least one of logits, features"),
        ({"maps": {"logits": (2, 3, 4)}}, r"expected \(N, C, H, W\) of sizes from 1 for logits, got \(2, 3, 4\)"),
        ({"devices": ["gpu"]}, r"expected cpu, cuda or both, got \['gpu'\]"),
        ({"rounds": 0}, "rounds: expected a whole number from 1"),
        ({"threads": 0}, "threads: expected a whole number from 1"),
    ]:
        with pytest.raises(ArgumentError, match=words):
            methods.run(**{"methods": ["feature"], "maps": _logits(), "rounds": 1, **options})
    with pytest.raises(ArgumentError, match="maps: 'logit' is no kind of map; did you mean 'logits'"):
        methods.choose_maps(["logit"])


def test_the_command_writes_a_record_and_prints_it(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    line = ["bench", "methods", "--quick", "--methods", "feature,channelwise", "--maps", "logits", "--rounds", "1"]
    done = CliRunner().invoke(app, [*line, "--device", "cpu", "--out", "here.json"])
    assert done.exit_code == 0
    record = BenchRecord.model_validate_json((tmp_path / "here.json").read_bytes())
    assert [case.variant for case in record.cases] == ["mse", "feature", "channelwise"]
    assert record.command == "densekd " + " ".join(
        ["bench methods --threads 1 --rounds 1 --methods feature,channelwise --maps logits --device cpu --quick"]
    )
    assert [row.split("\t")[1] for row in done.stdout.splitlines()] == ["method", "mse", "feature", "channelwise"]
    assert "record: here.json" in done.stderr
    again = CliRunner().invoke(app, [*line, "--out", "here.json"])
    assert again.exit_code == 2
    assert "--force" in again.stderr


def _logits():
    return {"logits": TINY["logits"]}
