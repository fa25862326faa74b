from __future__ import annotations

import copy
import math
import multiprocessing
import os
import signal
import threading
import time
from contextlib import ExitStack, closing

import pytest
import torch
from accelerate import Accelerator
from pydantic import ValidationError
from torch import nn
from torch.nn import functional as F
from torch.utils.data import dataloader

from densekd.distiller import Distiller, Term
from densekd.errors import ArgumentError, ConfigError, DataError, ModelError, NonFiniteError, ResourceError
from densekd.failures import told
from densekd.losses import ChannelWise
from densekd.records import RunRecord
from densekd.runs.engine import engine
from densekd.tasks.segmentation import SegmentationTask
from densekd.tasks.specs import PARTS, SegmentationSpec
from densekd.training import loading
from densekd.training.batcher import Batcher, epoch_order
from densekd.training.columns import RESERVED
from densekd.training.loading import loaded
from densekd.training.objective import Alone, Distilled
from densekd.training.optimizers import build_optimizer, set_learning_rate
from densekd.training.recorder import Recorder
from densekd.training.specs import OptimizerSpec, RuntimeSpec, TermSpec, TrainSpec
from densekd.training.stepper import Stepper, StepResult

_engines = ExitStack()


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


def network(norm: bool = False, width: int = 5) -> nn.Sequential:
    torch.manual_seed(0)
    middle = nn.BatchNorm2d(width) if norm else nn.Identity()
    return nn.Sequential(nn.Conv2d(3, width, 3, padding=1), middle, nn.ReLU(), nn.Conv2d(width, 4, 1))


def batch(count: int = 4, seed: int = 1) -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(seed)
    return {
        "image": torch.randn(count, 3, 6, 8, generator=generator),
        "label": torch.randint(4, (count, 6, 8), generator=generator),
        "valid": torch.ones(count, 6, 8, dtype=torch.bool),
    }


def make(objective, terms=(), precision="float32", steps=10, **spec):
    """A stepper on the objective, with its accelerator."""
    spec = TrainSpec(steps=steps, **{"optimizer": OptimizerSpec(lr=0.1, momentum=0.0, weight_decay=0.0), **spec})
    accelerator = _engines.enter_context(engine(RuntimeSpec(precision=precision), torch.device("cpu")))
    optimizer = build_optimizer(objective.student, objective.extra_state(), spec.optimizer)
    prepared, prepared_optimizer = accelerator.prepare(objective, optimizer)
    return Stepper(accelerator, prepared, prepared_optimizer, spec, terms, steps=steps, seed=0, channels_last=False)


class Broken:
    """One sample cannot be read, and it is not in the first micro-batch."""

    def __init__(self, kind):
        self.kind = kind

    def __getitem__(self, key):
        first = epoch_order(5, 0, 7)[:3]
        if key[1] == next(index for index in (4, 5, 6, 3) if index not in first):
            if self.kind is FileNotFoundError:
                raise FileNotFoundError(2, "No such file", "b/4.png")
            raise self.kind("b/4.png: cannot be read")
        return {"key": torch.tensor(key)}


class TestBatcher:
    class View:
        def __getitem__(self, key):
            return {"key": torch.tensor(key)}

    def keys(self, first, last, workers=0, **options):
        batcher = Batcher(self.View(), 7, 3, seed=5, workers=workers, **options)
        return [tuple(map(tuple, one["key"].tolist())) for one in batcher.batches(first, last)]

    def test_every_epoch_visits_every_image_once(self):
        flat = [key for one in self.keys(0, 7) for key in one]
        for epoch in range(3):
            assert sorted(i for e, i in flat if e == epoch) == list(range(7))
        assert [i for e, i in flat if e == 1] == epoch_order(5, 1, 7)
        assert epoch_order(5, 1, 7) != epoch_order(5, 2, 7)
        assert epoch_order(5, 1, 7) != epoch_order(6, 1, 7)

    def test_a_start_in_the_middle_gives_the_same_batches(self):
        whole = self.keys(0, 9)
        for first in range(9):
            assert self.keys(first, 9) == whole[first:]

    def test_the_order_does_not_depend_on_workers(self):
        assert self.keys(2, 8, workers=2) == self.keys(2, 8)

    def test_the_global_generator_is_left_alone(self):
        before = torch.get_rng_state()
        self.keys(0, 3)
        assert torch.equal(torch.get_rng_state(), before)

    def test_ranks_share_the_stream(self):
        halves = [self.keys(0, 3, rank=rank, world=2) for rank in (0, 1)]
        joined = [one for pair in zip(*halves, strict=True) for one in pair]
        assert joined == self.keys(0, 6)

    @pytest.mark.parametrize("leave", ["closed", "by an error"])
    def test_no_process_outlives_an_iteration_that_is_left(self, leave):
        before = set(multiprocessing.active_children())
        batches = Batcher(self.View(), 7, 3, seed=5, workers=2).batches(0, 9)
        if leave == "closed":
            next(batches)
            assert len(set(multiprocessing.active_children()) - before) == 2
            batches.close()
        else:

            def left() -> None:
                with closing(batches):
                    next(batches)
                    raise ZeroDivisionError

            with pytest.raises(ZeroDivisionError):
                left()
        assert set(multiprocessing.active_children()) == before

    @pytest.mark.parametrize("workers", [0, 2])
    @pytest.mark.parametrize("kind", [DataError, FileNotFoundError, MemoryError])
    def test_an_error_while_loading_is_the_same_with_processes(self, workers, kind):
        expected = {MemoryError: ResourceError}.get(kind, kind)
        with closing(Batcher(Broken(kind), 7, 3, seed=5, workers=workers).batches(0, 9)) as batches:
            assert len(next(batches)["key"]) == 3  # what comes before it is served
            with pytest.raises(expected) as caught:
                list(batches)
        if kind is DataError:
            assert str(caught.value) == "b/4.png: cannot be read"
        elif kind is FileNotFoundError:
            assert (caught.value.filename, caught.value.strerror) == ("b/4.png", "No such file")
        else:
            assert "out of memory" in str(caught.value)
        # The traceback of the other process is for those who ask for tracebacks.
        notes = getattr(caught.value, "__notes__", [])
        assert len(notes) == (1 if workers else 0)
        assert all("in __getitem__" in note for note in notes)

    def test_a_defect_while_loading_keeps_its_traceback(self):
        batches = Batcher(Broken(ZeroDivisionError), 7, 3, seed=5, workers=1).batches(0, 9)
        with closing(batches), pytest.raises(ZeroDivisionError, match="Traceback"):
            list(batches)

    def test_an_error_while_a_batch_is_joined_is_the_same_with_processes(self):
        def join(samples):
            raise DataError("samples of two sizes")

        with pytest.raises(DataError) as caught:
            list(loaded(self.View(), workers=1, collate=join, sampler=[(0, 1)], batch_size=1))
        assert str(caught.value) == "samples of two sizes"

    def test_a_process_that_is_killed_is_told(self):
        class Slow(self.View):
            """The process is killed while it loads: in the midst of torch's own locks, torch waits for ever."""

            def __getitem__(self, key):
                time.sleep(0.02)
                return super().__getitem__(key)

        before = set(multiprocessing.active_children())
        with closing(Batcher(Slow(), 7, 3, seed=5, workers=1).batches(0, 2000)) as batches:
            next(batches)
            [child] = set(multiprocessing.active_children()) - before
            os.kill(child.pid, signal.SIGKILL)
            with pytest.raises(ResourceError, match=r"loading process .*runtime\.workers=0"), told():
                list(batches)

    @pytest.mark.parametrize("error", [ConnectionResetError(104, "Connection reset by peer"), EOFError()])
    @pytest.mark.parametrize("swallowed", [False, True])
    def test_a_connection_that_breaks_before_its_process_is_gone(self, monkeypatch, error, swallowed):
        before = set(multiprocessing.active_children())
        with closing(Batcher(self.View(), 7, 3, seed=5, workers=1).batches(0, 2000)) as batches:
            next(batches)
            [child] = set(multiprocessing.active_children()) - before
            dying = threading.Timer(0.1, os.kill, (child.pid, signal.SIGKILL))

            def broken(_iterator, timeout=None):
                dying.start()
                raise error

            monkeypatch.setattr(dataloader._MultiProcessingDataLoaderIter, "_try_get_data", broken)
            handler = signal.getsignal(signal.SIGCHLD)
            if swallowed:  # as where torch's handler raises within the garbage collector
                signal.signal(signal.SIGCHLD, signal.SIG_DFL)
            try:
                words = r"loading process 1 of 1 \(pid \d+\) was ended by signal Killed"
                with pytest.raises(ResourceError, match=words), told():
                    next(batches)
            finally:
                signal.signal(signal.SIGCHLD, handler)
                dying.join()

    def test_another_error_of_a_connection_stays_what_it_is(self, monkeypatch):
        monkeypatch.setattr(loading, "_DYING", 0.01)
        with closing(Batcher(self.View(), 7, 3, seed=5, workers=1).batches(0, 9)) as batches:
            next(batches)
            monkeypatch.setattr(
                dataloader._MultiProcessingDataLoaderIter, "_try_get_data", lambda *_: (_ for _ in ()).throw(EOFError)
            )
            with pytest.raises(EOFError):
                next(batches)

    def test_a_batch_larger_than_the_data_set(self):
        batcher = Batcher(self.View(), 2, 5, seed=0)
        keys = [tuple(key) for one in batcher.batches(0, 2) for key in one["key"].tolist()]
        assert [epoch for epoch, _ in keys] == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4]
        assert batcher.epochs(2) == 5.0


class Nested(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 5, 3, padding=1)
        self.head = nn.Conv2d(5, 4, 1)

    def forward(self, image):
        return self.head(self.encoder(image))


class TestOptimizer:
    def test_groups_by_rate_and_decay(self):
        student, extra = Nested(), nn.Conv2d(4, 6, 1)
        spec = OptimizerSpec(lr=0.1, weight_decay=0.02, encoder_lr_factor=0.1, decay_norms_and_biases=False)
        optimizer = build_optimizer(student, extra, spec)
        found = {
            (round(group["lr"], 6), group["weight_decay"]): {id(p) for p in group["params"]}
            for group in optimizer.param_groups
        }
        assert found == {
            (0.01, 0.02): {id(student.encoder.weight)},
            (0.01, 0.0): {id(student.encoder.bias)},
            (0.1, 0.02): {id(student.head.weight), id(extra.weight)},
            (0.1, 0.0): {id(student.head.bias), id(extra.bias)},
        }

    def test_the_encoder_rate_holds_under_a_teacher_too(self):
        distiller = Distiller(
            Nested(), network(), [Term(ChannelWise(), student="output", teacher="output")], batch()["image"]
        )
        stepper = make(Distilled(distiller, Task()), optimizer=OptimizerSpec(lr=0.1, encoder_lr_factor=0.5))
        rates = {id(p): g["lr"] for g in stepper.optimizer.param_groups for p in g["params"]}
        assert rates[id(distiller.student.encoder.weight)] == pytest.approx(0.05)
        assert rates[id(distiller.student.head.weight)] == pytest.approx(0.1)

    def test_a_factor_without_an_encoder_is_refused(self):
        with pytest.raises(ConfigError, match=r"encoder_lr_factor: the student has no parameter under encoder or"):
            build_optimizer(network(), None, OptimizerSpec(encoder_lr_factor=0.1))

    def test_nothing_to_train_is_refused(self):
        with pytest.raises(ModelError, match="nothing to train"):
            build_optimizer(network().requires_grad_(False), None, OptimizerSpec())

    @pytest.mark.parametrize("name", ["sgd", "adamw"])
    def test_the_schedule_reaches_every_group(self, name):
        spec = OptimizerSpec(name=name, lr=0.1, encoder_lr_factor=0.1)
        optimizer = build_optimizer(Nested(), nn.Conv2d(4, 6, 1), spec)
        assert set_learning_rate(optimizer, 0.5) == pytest.approx(0.05)
        assert [group["lr"] for group in optimizer.param_groups] == pytest.approx([0.005, 0.05])


class TestStep:
    def test_one_sgd_step_by_hand(self):
        student = network()
        twin = copy.deepcopy(student)
        one = batch()
        result = make(Alone(student, Task())).step(0, iter([one]))
        loss = F.cross_entropy(twin(one["image"]), one["label"])
        loss.backward()
        assert result.loss == result.parts["cross_entropy"] == pytest.approx(loss.item(), rel=1e-6)
        norm = math.sqrt(sum(float(p.grad.double().square().sum()) for p in twin.parameters()))
        assert result.grad_norm == pytest.approx(norm, rel=1e-5)
        for mine, other in zip(student.parameters(), twin.parameters(), strict=True):
            torch.testing.assert_close(mine, other - 0.1 * other.grad)

    def test_accumulation_equals_the_big_batch(self):
        whole = batch(6)
        parts = [{key: value[i : i + 2] for key, value in whole.items()} for i in (0, 2, 4)]
        big, small = network(), network()
        one = make(Alone(big, Task())).step(0, iter([whole]))
        other = make(Alone(small, Task()), accumulate=3).step(0, iter(parts))
        assert other.loss == pytest.approx(one.loss, rel=1e-6)
        assert other.grad_norm == pytest.approx(one.grad_norm, rel=1e-5)
        for mine, its in zip(small.parameters(), big.parameters(), strict=True):
            torch.testing.assert_close(mine, its, rtol=1e-5, atol=1e-7)

    def test_clipping_limits_the_whole_gradient(self):
        free, clipped, start = network(), network(), network()
        norm = make(Alone(free, Task())).step(0, iter([batch()])).grad_norm
        limit = norm / 3
        result = make(Alone(clipped, Task()), clip_norm=limit).step(0, iter([batch()]))
        assert result.grad_norm == pytest.approx(norm)  # as it was before clipping
        for one, other, began in zip(clipped.parameters(), free.parameters(), start.parameters(), strict=True):
            torch.testing.assert_close(one - began, (other - began) / 3, rtol=1e-3, atol=1e-7)

    def test_the_moving_average_by_hand(self):
        student = network(norm=True)
        stepper = make(Alone(student, Task()), ema_decay=0.8)
        expected = None
        for number in range(3):
            stepper.step(number, iter([batch(seed=number)]))
            now = {k: v.clone() for k, v in student.state_dict().items()}
            if expected is None:
                expected = now
            expected = {k: 0.8 * expected[k] + 0.2 * v for k, v in now.items() if v.is_floating_point()}
        assert stepper.shipped is not student
        shipped = stepper.shipped.state_dict()
        for key, value in expected.items():
            torch.testing.assert_close(shipped[key], value)
        assert any(not torch.equal(shipped[k], v) for k, v in student.state_dict().items())

    def test_no_average_ships_the_student(self):
        stepper = make(Alone(student := network(), Task()))
        assert stepper.shipped is student

    def test_steps_seed_the_random_numbers(self):
        def losses(first: int) -> list[float]:
            torch.manual_seed(first)  # whatever happened before
            student = nn.Sequential(network(), nn.Dropout(0.5))
            stepper = make(Alone(student, Task()))
            return [stepper.step(number, iter([batch()])).loss for number in range(2)]

        assert losses(0) == losses(99)

    @pytest.mark.parametrize("kind", ["alone", "distilled"])
    def test_bfloat16_reaches_the_network(self, kind):
        seen = []
        student = network()
        student[0].register_forward_hook(lambda module, args, output: seen.append(output.dtype))
        if kind == "alone":
            objective = Alone(student, Task())
        else:
            term = Term(ChannelWise(), student="output", teacher="output")
            objective = Distilled(Distiller(student, network(), [term], batch()["image"]), Task())
        seen.clear()
        result = make(objective, precision="bfloat16").step(0, iter([batch()]))
        assert set(seen) == {torch.bfloat16}
        assert math.isfinite(result.loss)
        assert all(p.dtype == torch.float32 for p in student.parameters())

    def test_the_next_engine_has_its_own_precision(self):
        for precision, expected in (("bfloat16", torch.bfloat16), ("float32", torch.float32)):
            seen = []
            student = network()
            student[0].register_forward_hook(lambda module, args, output, seen=seen: seen.append(output.dtype))
            make(Alone(student, Task()), precision=precision).step(0, iter([batch()]))
            assert seen == [expected]

    def test_the_callers_own_accelerator_survives(self):
        own = Accelerator(cpu=True, mixed_precision="bf16")
        with engine(RuntimeSpec(precision="float32"), torch.device("cpu")) as inner:
            assert inner.mixed_precision == "no"
        assert own.mixed_precision == "bf16"
        assert own.state.mixed_precision == "bf16"


class TestTerms:
    def test_weights_follow_their_schedules_and_adapters_train(self):
        term = Term(ChannelWise(), student="2", teacher="2", weight=2.0)
        distiller = Distiller(network(), network(width=7), [term], batch()["image"])
        adapters = [p.detach().clone() for p in distiller.adapters.parameters()]
        spec = TermSpec(weight=2.0, warmup_steps=2, end_step=3)
        stepper = make(Distilled(distiller, Task()), [(distiller.plans[0].name, spec)])
        weights = []
        for number in range(4):
            result = stepper.step(number, iter([batch()]))
            weights.append(distiller.weights["channelwise:2"])
            expected = result.parts["cross_entropy"] + result.parts["channelwise:2"]
            assert result.loss == pytest.approx(expected, rel=1e-6)
        assert weights == [1.0, 2.0, 2.0, 0.0]
        assert result.parts["channelwise:2"] == 0.0
        assert any(not torch.equal(a, b) for a, b in zip(adapters, distiller.adapters.parameters(), strict=True))

    def test_the_average_of_a_tapped_student_stands_alone(self):
        term = Term(ChannelWise(), student="2", teacher="2")
        distiller = Distiller(network(), network(), [term], batch()["image"])
        stepper = make(Distilled(distiller, Task()), ema_decay=0.5)
        stepper.step(0, iter([batch()]))
        shipped = stepper.shipped(batch()["image"])
        torch.testing.assert_close(shipped, distiller.student(batch()["image"]))
        assert set(stepper.shipped.state_dict()) == set(network().state_dict())

    @pytest.mark.parametrize("name", [*RESERVED, *PARTS, "", " ", " dice", "a\nb", "a\0"])
    def test_a_name_that_is_no_column_of_its_own_is_refused(self, name):
        with pytest.raises(ValidationError, match=r"name\n.*expected a name") as caught:
            TermSpec(name=name)
        assert f"got {name!r}" in str(caught.value)

    @pytest.mark.parametrize("name", ["steps", "Dice of the encoder", "loss:encoder.layer4", "größe, 'zwei'"])
    def test_other_names_are_welcome(self, name):
        assert TermSpec(name=name).name == name

    def test_a_part_of_the_task_is_no_name_of_a_term(self):
        term = Term(ChannelWise(), student="output", teacher="output", name="cross_entropy")
        distiller = Distiller(network(), network(), [term], batch()["image"])
        with pytest.raises(ArgumentError, match=r"cannot be called 'cross_entropy': it is a part of the task's loss"):
            Distilled(distiller, Task())


def record() -> RunRecord:
    return RunRecord(status="running", method="none", seed=0, split="val", steps=2, epochs=1.0)


def test_the_log_has_the_columns_that_are_reserved(tmp_path):
    recorder = Recorder(tmp_path, record(), log_every=1)
    recorder.log(1, StepResult(2.5, {"size, of 'it'": 1.5, "b": 1.0}, None, 0.1, 0.25, 0.125, skipped=False))
    recorder.log(2, StepResult(2.25, {"size, of 'it'": 1.25, "b": 1.0}, 3.0, 0.1, 0.25, 0.125, skipped=False))
    recorder.write_log()
    again = Recorder(tmp_path, record(), log_every=1)
    again.resume_at(2)
    assert list(again.rows) == list(recorder.rows)
    assert [name for name in again.rows[0] if name in RESERVED] == list(RESERVED)
    assert list(again.rows[0].values()) == ["1", "2.5", "1.5", "1.0", "0.1", "", "0.250000", "0.125000"]
    assert again.rows[1]["grad_norm"] == "3.0"


def test_the_parts_of_the_task_are_those_that_it_names():
    spec = SegmentationSpec(cross_entropy=1.0, dice=0.5, auxiliary=0.4)
    task = SegmentationTask(spec, 4, 255, ("a", "b", "c", "d"))
    logits = torch.randn(2, 4, 3, 3)
    _, parts = task.loss({"out": logits, "aux": logits}, torch.zeros(2, 3, 3, dtype=torch.int64))
    assert tuple(parts) == task.parts == PARTS
    assert SegmentationSpec().parts == ("cross_entropy",)


class TestFailures:
    def test_one_image_and_maps_of_one_pixel(self):
        student = nn.Sequential(network(), nn.AdaptiveAvgPool2d(1), nn.BatchNorm2d(4), nn.Upsample((6, 8)))
        words = r"normalisation in Sequential\.2 \(BatchNorm2d\).*train\.batch_size=2 or more"
        with pytest.raises(ModelError, match=words):
            make(Alone(student, Task())).step(0, iter([batch(1)]))
        make(Alone(student, Task())).step(0, iter([batch(2)]))

    def test_no_memory_in_the_backward_pass(self):
        def hook(_gradient):
            raise RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 10 bytes")

        student = network()
        student[3].weight.register_hook(hook)
        with pytest.raises(ResourceError, match=r"out of memory.*train\.batch_size"):
            make(Alone(student, Task())).step(0, iter([batch()]))


class TestNonFinite:
    def test_a_term_is_named_with_its_step(self):
        term = Term(ChannelWise(), student="output", teacher="output")
        distiller = Distiller(network(), network(), [term], batch()["image"])
        stepper = make(Distilled(distiller, Task()))
        stepper.step(0, iter([batch()]))
        before = copy.deepcopy(distiller.student.state_dict())
        distiller.values = _poisoned(distiller.values)
        with pytest.raises(
            NonFiniteError, match=r"step 2: not finite: channelwise:output = nan.*total = nan.*no weight"
        ):
            stepper.step(1, iter([batch()]))
        assert all(torch.equal(v, before[k]) for k, v in distiller.student.state_dict().items())

    @pytest.mark.parametrize("clip", [None, 1.0])
    def test_a_gradient_is_caught_before_the_update(self, clip):
        student = network()
        student[3].weight.register_hook(lambda gradient: gradient * float("inf"))
        before = copy.deepcopy(student.state_dict())
        with pytest.raises(NonFiniteError, match=r"step 1: the gradient of student\.3\.weight is not finite"):
            make(Alone(student, Task()), clip_norm=clip).step(0, iter([batch()]))
        assert all(torch.equal(v, before[k]) for k, v in student.state_dict().items())


def _poisoned(values):
    def poisoned(*args, **kwargs):
        found = values(*args, **kwargs)
        return found._replace(values={name: value * float("nan") for name, value in found.values.items()})

    return poisoned
