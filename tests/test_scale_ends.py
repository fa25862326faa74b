"""How a run of two processes ends: finished, stopped, killed, refused; and how it goes on with as many, or one."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import yaml

from densekd import files
from densekd.cli.main import main
from densekd.errors import RunError
from densekd.runs import Run, distill
from densekd.runs.ranks import joined
from scalekit import Launched, distillation, launch, make_place, warmed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes by forking"),
]


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return warmed(make_place(tmp_path_factory.mktemp("data")))


def command(*words: object) -> Callable[[int], None]:
    """The command line, as each of the processes runs it."""

    def work(_rank: int) -> None:
        sys.argv = ["densekd", *map(str, words)]
        main()

    return work


def written(folder: Path, asked: dict) -> Path:
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(asked))
    return path


def dropping(place: Path, **train: object) -> dict:
    """A distillation with dropout, whose masks come from the step; 12 steps unless said otherwise."""
    student = {"model": f"{place}/nets.py:grouped", "options": {"dropout": 0.3}}
    return distillation(place, student=student, train={"batch_size": 2, "steps": 12, "evaluate_every": 4, **train})


def wait_for(there: Callable[[], bool], seconds: float = 120) -> None:
    until = time.monotonic() + seconds
    while not there():
        assert time.monotonic() < until
        time.sleep(0.01)


def endless(place: Path, folder: Path, **changes: object) -> tuple[Path, Callable[[], bool]]:
    """A run that does not end by itself, and whether it has saved something."""
    path = written(folder, dropping(place, steps=100_000, evaluate_every=None, checkpoint_every=5, **changes))
    return path, lambda: any((folder / "run" / "checkpoints").glob("step-*"))


class TestStopped:
    def test_a_signal_to_one_stops_all_after_the_same_step(self, place, tmp_path):
        path, begun = endless(place, tmp_path)
        launched = Launched(command("distill", path, "--out", tmp_path / "run"), 2, tmp_path / "io")
        wait_for(begun)
        os.kill(launched.children[1], signal.SIGTERM)
        assert launched.wait() == [143, 143]
        record = Run.load(tmp_path / "run").record
        assert record.status == "interrupted"
        last = sorted((tmp_path / "run" / "checkpoints").glob("step-*"))[-1]
        taken = int(last.name.removeprefix("step-"))
        said = f"stopped after step {taken} of 100000; everything is saved"
        assert record.error == said
        assert launched.err().count(said) == 1
        assert launched.err().count("--resume") == 1

    def test_resumed_is_equal_bit_for_bit(self, place, tmp_path):
        """With dropout and AdamW; one run whole, one cut twice."""
        from densekd.runs.execute import Quiet
        from densekd.training.signals import Interrupted

        class Stop(Quiet):
            """A signal that the first process alone gets: after a step, and in an evaluation of its images."""

            def __init__(self, at, evaluating):
                self.at, self.in_evaluation, self.taken = at, evaluating, 0

            def step(self, taken, steps, result):
                self.taken = taken
                if taken == self.at and not self.in_evaluation:
                    os.kill(os.getpid(), signal.SIGINT)

            def evaluating(self, done, images):
                if self.taken == self.at and self.in_evaluation and done == 0:
                    os.kill(os.getpid(), signal.SIGTERM)

        asked = dropping(place, optimizer={"name": "adamw", "lr": 0.01}, clip_norm=1.0, ema_decay=0.7)

        def work(_rank: int) -> None:
            distill(asked, out=tmp_path / "whole")
            with pytest.raises(Interrupted, match="stopped after step 5 of 12") as stopped:
                distill(asked, out=tmp_path / "cut", progress=Stop(5, False))
            assert stopped.value.exit_code == 130
            with pytest.raises(Interrupted, match="stopped after step 8 of 12") as stopped:
                distill(asked, out=tmp_path / "cut", resume=True, progress=Stop(8, True))
            assert stopped.value.exit_code == 143
            distill(asked, out=tmp_path / "cut", resume=True)

        launch(work, tmp_path / "io")
        for name in ("student", "adapters", "average", "optimizer"):
            paths = [
                tmp_path / run / "checkpoints" / "step-00000012" / f"{name}.safetensors" for run in ("whole", "cut")
            ]
            assert paths[0].read_bytes() == paths[1].read_bytes()
        assert Run.load(tmp_path / "whole").record.final == Run.load(tmp_path / "cut").record.final


class TestOtherNumber:
    @pytest.mark.parametrize(("fsdp", "began"), [(False, 2), pytest.param(True, 2, marks=pytest.mark.long)])
    def test_a_resume_goes_on_with_the_next_image(self, place, tmp_path, fsdp, began):
        """Two processes begin, one goes on: with the images that come next, in as many micro-batches."""

        train = {"batch_size": 2, "steps": 12, "evaluate_every": 6, "checkpoint_every": 6}
        asked = distillation(place, train=train, runtime={"fsdp": fsdp})
        whole = distillation(place, train={"batch_size": 4, "steps": 12, "evaluate_every": 6})
        distill(whole, out=tmp_path / "one")

        def work(_rank: int) -> None:
            from densekd.runs.execute import Quiet

            class Stop(Quiet):
                def step(self, taken, steps, result):
                    if taken == 7:
                        raise KeyboardInterrupt

            with joined() as ranks:
                watch = Stop() if ranks.first else None
                with contextlib.suppress(BaseException):  # the other process has lost the first
                    distill(asked, out=tmp_path / "run", progress=watch)

        launch(work, tmp_path / "io", world=began)
        if fsdp:
            resumed = Launched(lambda _: distill(asked, out=tmp_path / "run", resume=True), 2, tmp_path / "io")
            assert resumed.wait() == [0, 0], resumed.err()
            run = Run.load(tmp_path / "run")
        else:
            run = distill(asked, out=tmp_path / "run", resume=True)
            said = "4 images a step: 1 process x 2 images x 2 micro-batches"
            assert [line for line in run.record.warnings if "images a step" in line][-1] == said
        assert run.record.processes == 2
        expected, found = (
            files.read_tensors(path / "checkpoints" / "step-00000012" / "student.safetensors")
            for path in (tmp_path / "one", run.path)
        )
        for key, value in expected.items():
            torch.testing.assert_close(found[key], value, rtol=0, atol=1e-5)


class TestKilled:
    @pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.long)])
    def test_a_process_that_dies_ends_the_others(self, place, tmp_path, victim):
        path, begun = endless(place, tmp_path)
        launched = Launched(command("distill", path, "--out", tmp_path / "run"), 2, tmp_path / "io")
        wait_for(begun)
        os.kill(launched.children[victim], signal.SIGKILL)
        codes = launched.wait()
        assert codes[victim] == -signal.SIGKILL
        assert codes[1 - victim] == 2
        said = launched.err(1 - victim)
        assert said.count("error:") == 1
        assert f"error: process {victim} of 2 (counted from 0; pid {launched.children[victim]} on " in said
        assert "is gone without a word" in said
        assert "go on with --resume" in said
        record = Run.load(tmp_path / "run").record
        assert record.status == ("failed" if victim == 1 else "running")

    @pytest.mark.long
    def test_an_error_of_one_is_told_once_and_recorded(self, place, tmp_path):
        def work(rank: int) -> None:
            from densekd.training.stepper import Stepper

            step = Stepper.step

            def failing(self, number, batches):
                if rank == 1 and number == 3:
                    raise RunError("a disk of this machine is full")
                return step(self, number, batches)

            Stepper.step = failing
            command("distill", path, "--out", tmp_path / "run")(rank)

        path, _ = endless(place, tmp_path)
        launched = Launched(work, 2, tmp_path / "io")
        assert launched.wait() == [2, 2]
        assert launched.err().count("error: a disk of this machine is full") == 1
        assert launched.err().count("error:") == 1
        record = Run.load(tmp_path / "run").record
        assert (record.status, record.error) == ("failed", "process 1: RunError: a disk of this machine is full")

    @pytest.mark.long
    def test_a_loss_that_is_not_finite_in_one(self, place, tmp_path):
        def work(rank: int) -> None:
            from densekd.training.objective import Distilled

            forward = Distilled.forward

            def spoilt(self, *args):
                total, parts = forward(self, *args)
                return (total * float("nan"), parts) if rank == 1 and parts["channelwise:act"] > 0 else (total, parts)

            if rank == 1:
                from densekd.runs import execution

                wrapped = execution.wrapped

                def late(accelerator, objective, *, sharded):
                    Distilled.forward = spoilt
                    return wrapped(accelerator, objective, sharded=sharded)

                execution.wrapped = late
            command("distill", path, "--out", tmp_path / "run")(rank)

        path, _ = endless(place, tmp_path)
        launched = Launched(work, 2, tmp_path / "io")
        assert launched.wait() == [2, 2]
        assert launched.err().count("error: step 1: not finite: total = nan; no weight was changed") == 1
        assert launched.err().count(f"{tmp_path}/run/replay") == 1
        assert Run.load(tmp_path / "run").record.status == "failed"
        assert [kept.name for kept in (tmp_path / "run" / "replay").iterdir()] == ["step-00000001-rank-1"]


class TestRefused:
    def test_once_and_by_all(self, place, tmp_path):
        """Each by a launch of its own, as a command is."""
        path = written(tmp_path, dropping(place))
        (tmp_path / "taken").mkdir()
        (tmp_path / "taken" / "file").touch()
        cases = {
            "exists; it is never overwritten unasked": ("distill", path, "--out", tmp_path / "taken"),
            "unknown key 'train.batchsize'; did you mean 'batch_size'": ("distill", path, "train.batchsize=2"),
            "train.global_batch_size: 7 images cannot be made of": ("distill", path, "train.global_batch_size=7"),
            "runtime.sync_batchnorm: torch has no": ("train", path, "runtime.sync_batchnorm=true"),
            "only `densekd train` and `densekd distill` work in several": ("compare", path),
            "No such option: --nope": ("distill", path, "--nope"),
        }
        started = [Launched(command(*words), 2, tmp_path / str(at)) for at, words in enumerate(cases.values())]
        for text, launched in zip(cases, started, strict=True):
            assert launched.wait() == [2, 2], launched.err()
            assert launched.err().count("error:") == 1
            assert text in launched.err()

    def test_another_recipe_in_one_process(self, place, tmp_path):
        path = written(tmp_path, dropping(place))

        def work(rank: int) -> None:
            command("distill", path, f"seed={rank}", "--out", tmp_path / "run")(rank)

        launched = Launched(work, 2, tmp_path / "io")
        assert launched.wait() == [2, 2]
        assert "error: the recipe: process 1 has another one than process 0" in launched.err(1)
        assert launched.err(0) == ""
        assert not (tmp_path / "run").exists()

    @pytest.mark.long
    def test_other_adapters_in_one_process(self, place, tmp_path):
        path = written(tmp_path, dropping(place))

        def work(rank: int) -> None:
            from densekd.runs import assemble

            if rank == 1:
                built = assemble.keyed_seed
                assemble.keyed_seed = lambda seed, name: built(seed + (name == "student"), name)
            command("distill", path, "--out", tmp_path / "run")(rank)

        launched = Launched(work, 2, tmp_path / "io")
        assert launched.wait() == [2, 2]
        assert "error: the student's weights: process 1 has another one than process 0" in launched.err(1)
        assert not (tmp_path / "run").exists()


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize(
    "launcher",
    [
        ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m"],
        ["accelerate.commands.launch", "--multi_gpu", "--num_processes", "2", "--num_machines", "1", "--module"],
    ],
    ids=["torchrun", "accelerate"],
)
def test_a_real_launcher(place, tmp_path, launcher):
    path = written(tmp_path, dropping(place, steps=4, evaluate_every=None))
    words = [sys.executable, "-m", *launcher, "densekd", "distill", str(path), "--out", str(tmp_path / "run")]
    done = subprocess.run(words, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stderr
    record = Run.load(tmp_path / "run").record
    assert (record.status, record.processes) == ("done", 2)
    assert done.stdout.count("final, step 4") == 1
