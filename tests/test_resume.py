"""An interrupted and resumed run is the uninterrupted one, bit for bit, wherever and however it was stopped."""

from __future__ import annotations

import json
import os
import shutil
import signal
import threading
from contextlib import ExitStack

import pytest
import torch

from densekd import files
from densekd.errors import CheckpointError, NonFiniteError, RunError
from densekd.runs import Run, distill, train
from densekd.runs.execute import Quiet, dry_run
from densekd.runs.lock import claimed
from densekd.training.signals import Interrupted, StopSignals
from killkit import in_a_child
from runkit import Heard, distillation, log_without_times, make_place, recipe

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="stops runs in forked processes")


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    root = make_place(tmp_path_factory.mktemp("data"))
    teacher = recipe(root, student={"model": f"{root}/nets.py:teacher"})
    train(teacher, out=root / "teacher", train__steps=20, train__evaluate_every=None, train__checkpoint_every=50)
    return root


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """The uninterrupted distillation, without loading processes."""
    return distill(distillation(place, place / "teacher"), out=tmp_path_factory.mktemp("whole") / "run")


class StopAt(Heard):
    """Sends this process a signal after a step, or during the evaluation after it; keeps what was said."""

    def __init__(self, step: int, number: int = signal.SIGINT, evaluating: bool = False) -> None:
        super().__init__()
        self.at, self.number, self.in_evaluation = step, number, evaluating
        self.taken = 0

    def step(self, taken, steps, result):
        self.taken = taken
        if taken == self.at and not self.in_evaluation:
            os.kill(os.getpid(), self.number)

    def evaluating(self, done, images):
        if self.in_evaluation and self.taken == self.at and done == 0:
            self.taken = -1
            os.kill(os.getpid(), self.number)


def same(one: Run, other: Run) -> None:
    assert log_without_times(one.path) == log_without_times(other.path)
    for name in ("student.safetensors", "evaluations.csv", "confusion.json"):
        assert (one.path / name).read_bytes() == (other.path / name).read_bytes()
    for name in ("student", "adapters", "average", "optimizer"):
        paths = [
            run.path / "checkpoints" / f"step-{run.record.steps:08d}" / f"{name}.safetensors" for run in (one, other)
        ]
        assert paths[0].exists() == paths[1].exists()
        assert not paths[0].exists() or paths[0].read_bytes() == paths[1].read_bytes()
    mine, its = one.record, other.record
    assert (mine.status, mine.final, mine.best) == ("done", its.final, its.best)


class TestInterrupted:
    @pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
    def test_resumed_is_equal_bit_for_bit(self, place, whole, tmp_path, workers):
        # What is learned does not depend on the loading processes, so a resume may have others.
        asked = distillation(place, place / "teacher")
        asked["runtime"]["workers"] = workers
        out = tmp_path / "run"
        with pytest.raises(Interrupted, match="stopped after step 3 of 6; everything is saved") as stopped:
            distill(asked, out=out, progress=StopAt(3))
        assert stopped.value.exit_code == 130
        assert Run.load(out).record.status == "interrupted"
        assert Run.load(out).record.best.step == 2
        with pytest.raises(Interrupted, match="stopped after step 4") as stopped:
            distill(asked, out=out, resume=True, progress=StopAt(4, signal.SIGTERM, evaluating=True))
        assert stopped.value.exit_code == 143
        asked["runtime"]["workers"] = 1 if workers else 0
        run = distill(asked, out=out, resume=True)
        same(run, whole)
        assert run.record.cost.total_seconds > 0

    @pytest.mark.slow
    def test_during_the_last_evaluation_of_an_extra_split(self, place, tmp_path):
        asked = recipe(place)
        asked["data"]["extra"] = {"again": {"split": "val"}}
        whole = train(asked, out=tmp_path / "whole")
        assert whole.record.extra_splits["again"] == whole.record.final

        class Late(StopAt):
            """At the second evaluation after the last step."""

            def evaluated(self, taken, scores, best):
                self.taken = 99 if taken == 6 else 0

        with pytest.raises(Interrupted):
            train(asked, out=tmp_path / "run", progress=Late(99, evaluating=True))
        same(train(asked, out=tmp_path / "run", resume=True), whole)

    def test_before_the_first_step(self, place, tmp_path):
        class Early(Quiet):
            def said(self, line):
                raise KeyboardInterrupt

        with pytest.raises(KeyboardInterrupt):
            distill(distillation(place, place / "teacher"), out=tmp_path / "run", progress=Early())
        assert not (tmp_path / "run").exists()

    def test_a_second_signal_leaves_at_once_and_keeps_the_checkpoint(self, place, tmp_path):
        class Twice(StopAt):
            def step(self, taken, steps, result):
                super().step(taken, steps, result)
                super().step(taken, steps, result)

        with pytest.raises(KeyboardInterrupt):
            train(recipe(place), out=tmp_path / "run", progress=Twice(3))
        record = Run.load(tmp_path / "run").record
        assert (record.status, record.error) == ("interrupted", "left at once; the last checkpoint stands")
        assert train(recipe(place), out=tmp_path / "run", resume=True).record.status == "done"

    def test_a_second_signal_before_any_checkpoint(self, place, tmp_path):
        class Twice(StopAt):
            def step(self, taken, steps, result):
                super().step(taken, steps, result)
                super().step(taken, steps, result)

        with pytest.raises(KeyboardInterrupt):
            train(recipe(place), out=tmp_path / "run", train__checkpoint_every=50, progress=Twice(1))
        assert Run.load(tmp_path / "run").record.error == "left at once; no checkpoint was written yet"

    @pytest.mark.parametrize(
        ("number", "told"),
        [
            (signal.SIGINT, "stopping after this step; Ctrl-C again stops at once"),
            (signal.SIGTERM, "stopping after this step; a second signal stops at once"),
        ],
    )
    def test_the_first_signal_is_answered_at_once(self, place, tmp_path, number, told):
        class Heard(StopAt):
            def step(self, taken, steps, result):
                before = list(self.lines)
                super().step(taken, steps, result)
                self.answered = self.lines[len(before) :]

        progress = Heard(3, number)
        with pytest.raises(Interrupted):
            train(recipe(place), out=tmp_path / "run", progress=progress)
        assert progress.answered == [told]
        assert progress.lines.count(told) == 1

    @pytest.mark.parametrize("error", [RuntimeError("reentrant call"), BrokenPipeError()])
    def test_a_line_that_cannot_be_shown_costs_nothing(self, error):
        def said(_line):
            raise error

        with StopSignals(said) as signals:
            os.kill(os.getpid(), signal.SIGTERM)
            assert signals.asked == signal.SIGTERM

    def test_handlers_are_put_back(self, place, tmp_path):
        before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
        with pytest.raises(Interrupted):
            train(recipe(place), out=tmp_path / "run", progress=StopAt(1))
        assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before

    def test_training_works_outside_the_main_thread(self, place, tmp_path):
        made = []
        thread = threading.Thread(target=lambda: made.append(train(recipe(place), out=tmp_path / "run")))
        thread.start()
        thread.join()
        assert made[0].record.status == "done"

    def test_a_sparse_log_can_be_resumed(self, place, tmp_path):
        with pytest.raises(Interrupted):
            train(recipe(place), out=tmp_path / "run", train__log_every=5, progress=StopAt(3))
        run = train(recipe(place), out=tmp_path / "run", train__log_every=5, resume=True)
        assert [line.split(",")[0] for line in log_without_times(run.path)] == ["step", "5"]

    def test_a_finished_run_is_left_alone(self, place, whole):
        before = {path: path.stat().st_mtime_ns for path in whole.path.rglob("*")}
        progress = StopAt(0)
        run = distill(whole.path, resume=True, progress=progress)
        assert run.path == whole.path
        assert "this run is done already" in progress.lines[0]
        assert {path: path.stat().st_mtime_ns for path in whole.path.rglob("*")} == before


def killed_at(write: int, work) -> bool:
    """Run `work` in a process that kills itself at its file operation number `write`; whether it came so far."""

    def doomed() -> None:
        count = 0
        real = {name: getattr(os, name) for name in ("fsync", "rename", "replace")}

        def counting(name):
            def operation(*args, **kwargs):
                nonlocal count
                count += 1
                if count == write:
                    os.kill(os.getpid(), signal.SIGKILL)
                return real[name](*args, **kwargs)

            return operation

        for name in real:
            setattr(os, name, counting(name))
        work()

    status = in_a_child(doomed)
    assert os.WIFSIGNALED(status) or os.WEXITSTATUS(status) == 0
    return os.WIFSIGNALED(status)


def short(place) -> dict:
    """Four steps: long enough that a checkpoint is dropped, short enough to be killed everywhere."""
    asked = recipe(place)
    asked["train"] |= {"steps": 4, "evaluate_every": 1}
    return asked


@pytest.fixture(scope="module")
def alone(place, tmp_path_factory):
    return train(short(place), out=tmp_path_factory.mktemp("alone") / "run")


class TestKilled:
    """Two of the moments; `tests/test_kill_anywhere.py` has them all."""

    @pytest.mark.parametrize("write", [1, 9])
    def test_at_a_write(self, place, alone, tmp_path, write):
        asked, folder = short(place), tmp_path / "run"
        assert killed_at(write, lambda: train(asked, out=folder))
        begun = (folder / "recipe.yaml").is_file()
        same(train(asked, out=folder, resume=begun, force=not begun), alone)
        assert not list(folder.rglob(".*")), "nothing half-written is left"

    @pytest.mark.slow
    @pytest.mark.parametrize("workers", [0, 2])
    def test_a_distillation_killed_between_steps(self, place, whole, tmp_path, workers):
        asked = distillation(place, place / "teacher")
        asked["runtime"]["workers"] = workers
        status = in_a_child(lambda: distill(asked, out=tmp_path / "run", progress=StopAt(5, signal.SIGKILL)))
        assert os.WTERMSIG(status) == signal.SIGKILL
        assert Run.load(tmp_path / "run").record.status == "running"
        same(distill(asked, out=tmp_path / "run", resume=True), whole)


class TestOtherImages:
    """Files that came, went or were renamed between the start of a run and its resume."""

    @pytest.fixture
    def begun(self, tmp_path):
        root = make_place(tmp_path / "data", train=4, val=2)
        more = tmp_path / "more"
        shutil.copytree(root / "val" / "images", more)
        asked = distillation(root, root / "teacher")
        asked["teacher"] = {"model": f"{root}/nets.py:teacher", "untrained": True}
        asked["data"]["unlabelled"] = {"root": str(more)}
        with pytest.raises(Interrupted):
            distill(asked, out=tmp_path / "run", progress=StopAt(3))
        return tmp_path

    def pair(self, root, split, old, new):
        for kind in ("images", "masks"):
            folder = root / "data" / split / kind
            shutil.move(folder / f"{old}.png", folder / f"{new}.png")

    def test_are_refused_and_nothing_is_changed(self, begun):
        run = begun / "run"
        before = {path: path.read_bytes() for path in run.rglob("*") if path.is_file()}
        more, extra = begun / "more", begun / "more" / "00.png"
        refused = r"run: the images are other ones than those this run began with \({}: {} images .* now {} images \("
        for change, back, words in (
            (lambda: shutil.copy(more / "0.png", extra), extra.unlink, ("unlabelled", 2, 3)),
            (lambda: self.pair(begun, "train", 1, 9), lambda: self.pair(begun, "train", 9, 1), ("train", 4, 4)),
            (lambda: self.pair(begun, "val", 0, 7), lambda: self.pair(begun, "val", 7, 0), ("val", 2, 2)),
        ):
            change()
            with pytest.raises(RunError, match=refused.format(*words)):
                distill(run, resume=True)
            with pytest.raises(RunError, match=refused.format(*words)):
                dry_run("distill", Run.load(run).recipe, run, resume=True, force=False, progress=Quiet())
            back()
        assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before
        assert distill(run, resume=True).record.status == "done"
        shutil.copy(more / "0.png", extra)
        assert distill(run, resume=True).record.status == "done"  # there is nothing left to learn

    def test_a_record_without_them_is_gone_on_with(self, begun):
        path = begun / "run" / "record.json"
        raw = json.loads(path.read_text())
        assert [raw["images"][name]["count"] for name in ("train", "val", "unlabelled")] == [4, 2, 2]
        del raw["images"]
        files.write_json(path, raw)
        assert distill(begun / "run", resume=True).record.images["train"].count == 4


class TestCheckpoints:
    def test_the_last_two_and_the_best_are_kept(self, whole):
        names = sorted(path.name for path in (whole.path / "checkpoints").iterdir())
        kept = {"step-00000005", "step-00000006", f"step-{whole.record.best.step:08d}"}
        assert names == sorted({"latest", *kept})
        assert (whole.path / "checkpoints" / "latest").read_text() == "step-00000006\n"

    def stopped(self, place, folder, step=4):
        with pytest.raises(Interrupted):
            train(recipe(place, seed=3), out=folder, progress=StopAt(step))
        return folder / "checkpoints"

    def test_damage_is_named_and_the_one_before_is_used(self, place, tmp_path):
        whole = train(recipe(place, seed=3), out=tmp_path / "whole")
        checkpoints = self.stopped(place, tmp_path / "run")
        path = checkpoints / "step-00000004" / "optimizer.safetensors"
        data = bytearray(path.read_bytes())
        data[-1] ^= 1
        path.write_bytes(data)
        progress = StopAt(0)
        run = train(recipe(place, seed=3), out=tmp_path / "run", resume=True, progress=progress)
        said = f"checkpoint passed over: {path}: its checksum differs from the one recorded"
        assert said in progress.lines
        assert said in run.record.warnings
        assert any("resuming from" in line and "step-00000003 (step 3 of 6)" in line for line in progress.lines)
        same(run, whole)

    @pytest.mark.slow
    def test_two_damaged_ones_do_not_push_out_good_ones(self, place, tmp_path):
        checkpoints = self.stopped(place, tmp_path / "run")
        for name in ("step-00000003", "step-00000004"):
            (checkpoints / name / "state.json").unlink()
        with pytest.raises(Interrupted):
            train(recipe(place, seed=3), out=tmp_path / "run", resume=True, progress=StopAt(3))
        assert "step-00000003" in {path.name for path in checkpoints.iterdir()}
        progress = StopAt(0)
        train(recipe(place, seed=3), out=tmp_path / "run", resume=True, progress=progress)
        assert any("step 3 of 6" in line for line in progress.lines)

    def test_all_damaged(self, place, tmp_path):
        checkpoints = self.stopped(place, tmp_path / "run", step=1)
        (checkpoints / "step-00000001" / "checksums.json").write_text("[")
        with pytest.raises(
            CheckpointError, match=r"no checkpoint can be used: .*checksums\.json: not readable as JSON"
        ):
            train(recipe(place, seed=3), out=tmp_path / "run", resume=True)

    def test_a_lost_log_is_named(self, place, tmp_path):
        self.stopped(place, tmp_path / "run")
        (tmp_path / "run" / "log.csv").write_text("step\nx\n")
        with pytest.raises(CheckpointError, match=r"log\.csv: not the log of a run"):
            train(recipe(place, seed=3), out=tmp_path / "run", resume=True)
        (tmp_path / "run" / "log.csv").unlink()
        with pytest.raises(CheckpointError, match=r"log\.csv: no such file, but a checkpoint at step 4 exists"):
            train(recipe(place, seed=3), out=tmp_path / "run", resume=True)

    def test_optimiser_state_keeps_its_layout(self, place, tmp_path):
        self.stopped(place, tmp_path / "run")
        seen = []

        from densekd.training.checkpointer import Checkpointer

        real = Checkpointer.load

        def load(self, path, stepper):
            position = real(self, path, stepper)
            inner = stepper.optimizer.optimizer
            seen.extend(
                (p.stride(), inner.state[p]["exp_avg"].stride()) for g in inner.param_groups for p in g["params"]
            )
            return position

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(Checkpointer, "load", load)
            train(recipe(place, seed=3), out=tmp_path / "run", resume=True, progress=StopAt(0))
        assert seen
        assert all(one == other for one, other in seen)

    def test_a_value_that_is_not_finite_keeps_the_last_good_one(self, place, tmp_path):
        class Poison(Quiet):
            def step(self, taken, steps, result):
                if taken == 3:
                    for module in live:
                        torch.nn.init.constant_(module.weight, float("nan"))

        live = []
        from densekd.runs import assemble as parts

        real = parts.build_model
        with pytest.MonkeyPatch.context() as patch:

            def build(*args, **kwargs):
                network = real(*args, **kwargs)
                live.append(network[0])
                return network

            patch.setattr(parts, "build_model", build)
            asked = recipe(place, train={**recipe(place)["train"], "checkpoint_every": 2})
            with pytest.raises(NonFiniteError, match=r"step 4: not finite: cross_entropy = nan"):
                train(asked, out=tmp_path / "run", progress=Poison())
        record = Run.load(tmp_path / "run").record
        assert record.status == "failed"
        assert record.error.startswith("NonFiniteError: step 4: not finite")
        assert "checkpoints written before it, if any, are good" in record.error
        newest = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
        assert newest.name == "step-00000002"
        assert all(torch.isfinite(v).all() for v in files.read_tensors(newest / "student.safetensors").values())


def test_a_checkpoint_is_due_by_the_clock_too(place, tmp_path):
    spec = {**recipe(place)["train"], "steps": 3, "checkpoint_every": 1000, "evaluate_every": None}
    for minutes, kept in ((1e-9, 2), (60.0, 1)):
        out = tmp_path / str(minutes)
        train(recipe(place, train={**spec, "checkpoint_minutes": minutes}), out=out)
        assert len(list((out / "checkpoints").glob("step-*"))) == kept, minutes
    logs = [log_without_times(tmp_path / name) for name in ("1e-09", "60.0")]
    assert logs[0] == logs[1]


class TestRefusals:
    def test_another_recipe_names_the_keys(self, place, tmp_path):
        with pytest.raises(Interrupted):
            train(recipe(place), out=tmp_path / "run", progress=StopAt(1))
        with pytest.raises(RunError, match=r"recipe differs .*seed: 0 -> 1, train.batch_size: 3 -> 4\)") as caught:
            train(recipe(place), out=tmp_path / "run", resume=True, seed=1, train__batch_size=4)
        assert f"densekd train {tmp_path / 'run'} --resume" in str(caught.value)

    def test_another_method(self, place, tmp_path):
        asked = distillation(place, place / "teacher")
        with pytest.raises(Interrupted):
            train(asked, out=tmp_path / "run", progress=StopAt(1))
        told = rf"trained alone and cannot go on under a teacher; .*`densekd train {tmp_path / 'run'} --resume`"
        with pytest.raises(RunError, match=told):
            distill(asked, out=tmp_path / "run", resume=True)

    def test_another_method_is_told_before_the_recipe_is_blamed(self, place, tmp_path):
        with pytest.raises(Interrupted):
            distill(distillation(place, place / "teacher"), out=tmp_path / "run", progress=StopAt(1))
        told = (
            rf"distilled \(channelwise\) and cannot go on without its teacher; .*`densekd distill {tmp_path / 'run'} "
        )
        with pytest.raises(RunError, match=told) as caught:
            train(recipe(place), out=tmp_path / "run", resume=True)
        assert "recipe" not in str(caught.value)
        with pytest.raises(RunError, match=told):
            train(tmp_path / "run", resume=True)

    @pytest.mark.slow
    def test_another_teacher_file(self, place, tmp_path):
        other = train(
            recipe(place, student={"model": f"{place}/nets.py:teacher"}), out=tmp_path / "teacher", train__steps=2
        )
        asked = distillation(place, other.path)
        with pytest.raises(Interrupted):
            distill(asked, out=tmp_path / "run", progress=StopAt(1))
        for name in ("student.safetensors", "record.json"):
            files.write_bytes(other.path / name, (place / "teacher" / name).read_bytes())
        with pytest.raises(RunError, match="teacher's weights are other ones"):
            distill(asked, out=tmp_path / "run", resume=True)

    @pytest.mark.parametrize("changed", [pytest.param(False, marks=pytest.mark.slow), True])
    def test_a_teacher_without_a_file_of_weights(self, place, tmp_path, changed):
        code = (place / "nets.py").read_text()
        code += "\n\ndef known(num_classes):\n    net = teacher(num_classes)\n    nn.init.constant_(net[3].bias, 0.5)\n"
        code += "    return net\n"
        (tmp_path / "own.py").write_text(code)
        asked = distillation(place, place / "teacher")
        asked["teacher"] = {"model": f"{tmp_path}/own.py:known"}
        with pytest.raises(Interrupted):
            distill(asked, out=tmp_path / "run", progress=StopAt(1))
        assert len(Run.load(tmp_path / "run").record.teacher.sha256) == 64
        if changed:
            (tmp_path / "own.py").write_text(code.replace("0.5", "0.25"))
            with pytest.raises(RunError, match="teacher's weights are other ones"):
                distill(asked, out=tmp_path / "run", resume=True)
        else:
            assert distill(asked, out=tmp_path / "run", resume=True).record.status == "done"

    def test_nothing_to_resume(self, place, tmp_path):
        with pytest.raises(RunError, match="nothing to resume"):
            train(recipe(place), out=tmp_path / "run", resume=True)

    def test_two_processes(self, place, tmp_path):
        with pytest.raises(Interrupted):
            train(recipe(place), out=tmp_path / "run", progress=StopAt(1))

        class Checking(Quiet):
            def checking(self, *_: object, **__: object) -> None:
                raise AssertionError("it is told before any work")

        def work() -> None:
            for again in ({"resume": True}, {"force": True}):
                with pytest.raises(RunError, match="run: another process is training in it; wait for it"):
                    train(recipe(place), out=tmp_path / "run", progress=Checking(), **again)

        with claimed(tmp_path / "run"):
            assert in_a_child(work) == 0
        train(recipe(place), out=tmp_path / "run", resume=True)

    def test_another_process_begins_in_the_folder_during_the_checks(self, place, tmp_path):
        with ExitStack() as other:

            class Other(Quiet):
                def ready(self, readiness: object) -> None:
                    other.enter_context(claimed(tmp_path / "run"))

            (tmp_path / "run").mkdir()
            with pytest.raises(RunError, match="another process is training in it"):
                distill(distillation(place, place / "teacher"), out=tmp_path / "run", progress=Other())
        assert list((tmp_path / "run").iterdir()) == []

    def test_a_launch_of_several_processes(self, place, tmp_path, monkeypatch):
        monkeypatch.setenv("WORLD_SIZE", "2")
        with pytest.raises(RunError, match="which one is this"):
            train(recipe(place), out=tmp_path / "run")

    def test_resume_and_force(self, place, tmp_path):
        with pytest.raises(RunError, match="exclude each other"):
            train(recipe(place), out=tmp_path / "run", resume=True, force=True)

    def test_a_damaged_record(self, place, tmp_path):
        with pytest.raises(Interrupted):
            train(recipe(place), out=tmp_path / "run", progress=StopAt(1))
        path = tmp_path / "run" / "record.json"
        path.write_text(json.dumps({"schema": 2}))
        with pytest.raises(RunError, match=r"record\.json: not a record of schema 1: schema"):
            train(recipe(place), out=tmp_path / "run", resume=True)
