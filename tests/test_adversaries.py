"""Adversaries in training: when they step, what the log and the checkpoints hold, how they stop a run."""

from __future__ import annotations

import copy
import csv
import os
import signal
from contextlib import ExitStack
from itertools import repeat

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from densekd.data.keyed import keyed_seed
from densekd.distiller import Distiller, Term
from densekd.errors import ArgumentError, CheckpointError, NonFiniteError
from densekd.losses import ChannelWise
from densekd.losses.holistic import Holistic
from densekd.runs import Run, distill, train
from densekd.runs.assemble import assemble, build_distiller, build_teacher
from densekd.runs.engine import engine
from densekd.runs.execute import Quiet, resolve
from densekd.runs.readiness import check_readiness
from densekd.training.adversaries import Adversaries
from densekd.training.objective import Distilled
from densekd.training.optimizers import build_optimizer
from densekd.training.signals import Interrupted
from densekd.training.specs import OptimizerSpec, RuntimeSpec, ScheduleSpec, TermSpec, TrainSpec
from densekd.training.stepper import Stepper
from runkit import distillation, log_without_times, make_place, recipe

_engines = ExitStack()
NAME, COLUMN = "holistic:output", "holistic:output/adversary"


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    _engines.close()
    torch.set_num_threads(before)


class Task:
    parts = ("cross_entropy",)

    def loss(self, output, labels, pixels=None):
        value = F.cross_entropy(output.float(), labels)
        return value, {"cross_entropy": value.detach()}


def network(width):
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 4, 1))


def batch(seed=1):
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(3, 3, 6, 8, generator=generator),
        "label": torch.randint(4, (3, 6, 8), generator=generator),
        "valid": torch.ones(3, 6, 8, dtype=torch.bool),
    }


def distiller(weight=0.5, objective="hinge"):
    torch.manual_seed(0)
    terms = [
        Term(Holistic(objective, width=4, lr=0.01), student="output", teacher="output", weight=weight),
        Term(ChannelWise(), student="output", teacher="output"),
    ]
    return Distiller(network(5), network(7), terms, batch()["image"])


def make(whole, terms=(), precision="float32", steps=4, **spec):
    spec = TrainSpec(steps=steps, optimizer=OptimizerSpec(lr=0.1, momentum=0.0, weight_decay=0.0), **spec)
    accelerator = _engines.enter_context(engine(RuntimeSpec(precision=precision), torch.device("cpu")))
    objective = Distilled(whole, Task())
    optimizer = build_optimizer(objective.student, objective.extra_state(), spec.optimizer)
    prepared, prepared_optimizer = accelerator.prepare(objective, optimizer)
    return Stepper(accelerator, prepared, prepared_optimizer, spec, terms, steps=steps, seed=0, channels_last=False)


def state(whole):
    return copy.deepcopy(whole.adversaries[NAME].network.state_dict())


def same(one, other):
    return all(torch.equal(value, other[name]) for name, value in one.items())


class TestStep:
    @pytest.mark.parametrize("objective", ["hinge", "wgan-gp"])
    def test_a_run_does_what_the_page_tells_an_own_loop_to_do(self, objective):
        whole, twin = distiller(objective=objective), distiller(objective=objective).train()
        stepper = make(whole, schedule=ScheduleSpec(name="constant"))
        results = [stepper.step(number, iter([batch(number)])) for number in range(3)]

        optimizer = torch.optim.SGD(twin.parameters(), 0.1)
        adversaries = twin.adversaries.items()
        adams = {name: torch.optim.Adam(a.network.parameters(), a.lr, a.betas) for name, a in adversaries}
        losses = []
        for number in range(3):
            torch.manual_seed(keyed_seed(0, "step", number, 0))
            one = batch(number)
            out = twin(one["image"])
            (F.cross_entropy(out.student, one["label"]) + out.loss).backward()
            optimizer.step()
            optimizer.zero_grad()
            for name, adversary in adversaries:
                adams[name].zero_grad()
                value = adversary.loss()
                value.backward()
                adams[name].step()
                losses.append(float(value.detach()))
        assert same(state(whole), state(twin))
        assert same(whole.state_dict(), twin.state_dict())
        assert [result.parts[COLUMN] for result in results] == losses
        assert list(results[0].parts) == ["cross_entropy", NAME, "channelwise:output", COLUMN]
        total = results[0].parts["cross_entropy"] + results[0].parts[NAME] + results[0].parts["channelwise:output"]
        assert results[0].loss == pytest.approx(total), "the adversary's loss is no part of the student's"

    def test_its_rate_follows_the_schedule(self):
        stepper = make(distiller(), schedule=ScheduleSpec(name="poly", power=1.0))
        rates = []
        for number in range(4):
            stepper.step(number, iter([batch()]))
            rates.append(stepper.adversaries.optimizers[NAME].param_groups[0]["lr"])
        assert rates == pytest.approx([0.01, 0.0075, 0.005, 0.0025])

    def test_one_step_for_all_micro_batches_on_the_last_one(self):
        stepper = make(whole := distiller(), accumulate=2)
        result = stepper.step(0, iter([batch(1), batch(2)]))
        (steps,) = {int(entry["step"]) for entry in stepper.adversaries.optimizers[NAME].state.values()}
        assert steps == 1
        twin = distiller().train()
        twin(batch(2)["image"])
        assert result.parts[COLUMN] == float(twin.adversaries[NAME].loss().detach())
        assert all(p.grad is None for p in whole.adversaries[NAME].network.parameters())

    def test_it_rests_while_its_term_has_no_weight(self):
        term = TermSpec(method="holistic", student="output", teacher="output", weight=0.5, end_step=1)
        stepper = make(whole := distiller(), [(NAME, term)])
        began = state(whole)
        assert stepper.step(0, iter([batch()])).parts[COLUMN] != 0
        after = state(whole)
        assert not same(began, after)
        result = stepper.step(1, iter([batch()]))
        assert result.parts[COLUMN] == result.parts[NAME] == 0
        assert same(state(whole), after)

    def test_the_students_optimiser_does_not_know_it(self):
        stepper = make(whole := distiller())
        own = {id(p) for p in whole.adversaries[NAME].network.parameters()}
        assert not own & {id(p) for group in stepper.optimizer.param_groups for p in group["params"]}
        assert {id(p) for p in stepper.adversaries.optimizers[NAME].param_groups[0]["params"]} == own

    @pytest.mark.parametrize("objective", ["hinge", "wgan-gp"])
    def test_bfloat16(self, objective):
        stepper = make(whole := distiller(objective=objective), precision="bfloat16")
        began = state(whole)
        results = [stepper.step(number, iter([batch()])) for number in range(2)]
        assert all(result.parts[COLUMN] not in (0, float("inf")) for result in results)
        assert not same(state(whole), began)
        assert {value.dtype for value in state(whole).values()} == {torch.float32}

    def test_its_loss_falls(self):
        stepper = make(distiller(weight=1e-6), steps=15, schedule=ScheduleSpec(name="constant"))
        values = [stepper.step(number, repeat(batch())).parts[COLUMN] for number in range(15)]
        assert sum(values[-5:]) / 5 < values[0] - 0.1

    def test_gradients_are_averaged_over_the_ranks(self):
        class Ranks:
            def __init__(self, factor):
                self.factor = factor

            def reduce(self, tensor, reduction):
                assert reduction == "mean"
                return self.factor * tensor

        gradients = []
        for factor in (1.0, 3.0):
            whole = distiller().train()
            whole(batch()["image"])
            Adversaries(Ranks(factor), whole.adversaries).backward([NAME])
            gradients.append([p.grad for p in whole.adversaries[NAME].network.parameters()])
        assert any(gradient.abs().sum() > 0 for gradient in gradients[0])
        for one, other in zip(*gradients, strict=True):
            assert torch.equal(3.0 * one, other)


class TestNotFinite:
    @pytest.mark.parametrize("where", ["value", "gradient"])
    def test_it_is_named_and_no_weight_has_changed(self, monkeypatch, where):
        whole = distiller()
        stepper = make(whole)
        stepper.step(0, iter([batch()]))
        before = copy.deepcopy(whole.state_dict()), dict(whole.adversaries[NAME].network.named_parameters())
        weights = {name: value.detach().clone() for name, value in before[1].items()}
        real = Holistic.adversary_loss

        def broken(loss):
            value = real(loss)
            if where == "value":
                return value * float("nan")
            return value + (0 * next(loss._network.parameters()).sum()).sqrt()

        monkeypatch.setattr(Holistic, "adversary_loss", broken)
        stepper = make(whole)
        what = f"{COLUMN} = nan" if where == "value" else f"the gradient of {COLUMN}"
        with pytest.raises(NonFiniteError, match=rf"step 2: not finite: {what}; no weight was changed"):
            stepper.step(1, iter([batch()]))
        assert same(before[0], whole.state_dict())
        assert all(torch.equal(weights[name], value) for name, value in before[1].items())

    def test_a_name_that_would_hide_it_is_refused(self):
        terms = [
            Term(Holistic(width=4), student="output", teacher="output"),
            Term(ChannelWise(), student="output", teacher="output", name=COLUMN),
        ]
        whole = Distiller(network(5), network(7), terms, batch()["image"])
        with pytest.raises(ArgumentError, match=rf"a term cannot be called '{COLUMN}': so is the loss of another"):
            Distilled(whole, Task())


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = make_place(tmp_path_factory.mktemp("data"))
    teacher = recipe(root, student={"model": f"{root}/nets.py:teacher"})
    train(teacher, out=root / "teacher", train__steps=20, train__evaluate_every=None, train__checkpoint_every=50)
    return root


def asked(place, **changes):
    """Terms with all that must survive an interruption: two adversaries, and a memory."""
    return {
        **distillation(place, place / "teacher"),
        "terms": [
            {"method": "holistic", "student": "output", "teacher": "output", "options": {"width": 4}},
            {
                "method": "holistic",
                "name": "second/one",
                "student": "output",
                "teacher": "output",
                "options": {"width": 2, "objective": "wgan-gp"},
            },
            {
                "method": "crossimage",
                "student": "2",
                "teacher": "2",
                "options": {"memory": True, "pixel_queue": 60, "region_queue": 4, "pixel_samples": 9},
            },
        ],
        **changes,
    }


class StopAt(Quiet):
    def __init__(self, step):
        self.at = step

    def step(self, taken, steps, result):
        if taken == self.at:
            os.kill(os.getpid(), signal.SIGINT)


@pytest.mark.slow
class TestRuns:
    def test_an_interrupted_and_resumed_run_is_the_uninterrupted_one(self, place, tmp_path):
        whole = distill(asked(place), out=tmp_path / "whole")
        with pytest.raises(Interrupted):
            distill(asked(place), out=tmp_path / "run", progress=StopAt(3))
        run = distill(asked(place), out=tmp_path / "run", resume=True)
        assert log_without_times(run.path) == log_without_times(whole.path)
        last = [one.path / "checkpoints" / "step-00000006" for one in (run, whole)]
        names = {path.name for path in last[1].iterdir()}
        players = {f"adversary-{n}{part}" for n in (0, 1) for part in (".safetensors", "-optimizer.safetensors")}
        assert players | {"student.safetensors", "adapters.safetensors"} <= names
        assert {path.name for path in last[0].iterdir()} == names
        for name in names - {"state.json", "checksums.json"}:
            assert (last[0] / name).read_bytes() == (last[1] / name).read_bytes(), name
        assert (run.path / "student.safetensors").read_bytes() == (whole.path / "student.safetensors").read_bytes()

        rows = list(csv.DictReader((whole.path / "log.csv").read_text().splitlines()))
        for column in (COLUMN, "second/one/adversary"):
            assert len({row[column] for row in rows}) == 6
        distilled = parts_of(place)[1]
        trained = [distilled.adapters, *(a.network for a in distilled.adversaries.values())]
        expected = sum(p.numel() for module in trained for p in module.parameters())
        assert whole.record.cost.extra_parameters == expected > 2000

    def test_a_checkpoint_without_its_network_is_refused(self, place, tmp_path):
        with pytest.raises(Interrupted):
            distill(asked(place), out=tmp_path / "run", progress=StopAt(1))
        checkpoint = tmp_path / "run" / "checkpoints" / "step-00000001"
        (checkpoint / "adversary-1.safetensors").unlink()
        with pytest.raises(CheckpointError, match=r"adversary-1\.safetensors"):
            distill(asked(place), out=tmp_path / "run", resume=True)
        assert Run.load(tmp_path / "run").record.status == "interrupted"

    def test_the_checks_before_a_run_leave_it_alone_and_count_it(self, place):
        parts, whole, teacher = parts_of(place)
        players = [adversary.network for adversary in whole.adversaries.values()]
        before = [copy.deepcopy(module.state_dict()) for module in (whole, *players)]
        ready = check_readiness(parts, whole, teacher, steps=6)
        assert ready.forecast is not None
        for module, held in zip((whole, *players), before, strict=True):
            assert same(module.state_dict(), held)
            assert all(p.grad is None for p in module.parameters())
        plain = [term for term in asked(place)["terms"] if term["method"] != "holistic"]
        other, small, _ = parts_of(place, terms=plain)
        without = check_readiness(other, small, teacher, steps=6).forecast
        sizes = [sum(t.numel() * t.element_size() for t in network.state_dict().values()) for network in players]
        assert ready.forecast.disk_bytes - without.disk_bytes > 4 * 2.5 * sum(sizes)


def parts_of(place, **changes):
    parts = assemble(resolve(asked(place, **changes), 0, {}))
    teacher = build_teacher(parts)
    return parts, build_distiller(parts, teacher), teacher
