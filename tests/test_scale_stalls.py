"""Two processes of a run, one of which stands still, is killed, runs out of memory, or is only slow."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
import yaml

from densekd.cli.main import main
from densekd.runs import Run
from scalekit import Launched, distillation, make_place, warmed

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(not hasattr(os, "fork"), reason="starts its processes by forking"),
]
LIMIT = 3.0
"""Seconds that a process may stand still in these tests."""
PROMISED = 60.0
"""Seconds after that within which all have ended."""
_COME = 60.0
"""Seconds that two processes may need on a busy machine to come to the step."""

LAUNCHED_BY_TORCHRUN = """
import os
import sys
import time
from pathlib import Path

from densekd.cli.main import main
from densekd.training.stepper import Stepper

folder, rank = Path(sys.argv.pop(1)), os.environ["RANK"]
(folder / f"pid-{rank}").write_text(str(os.getpid()))
before = Stepper._forward_backward


def spoilt(self, *args):
    while rank == "1" and self.peers.pulse.now.step == 8 and (folder / "stall").exists():
        time.sleep(1)
    return before(self, *args)


Stepper._forward_backward = spoilt
main()
"""


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    return warmed(make_place(tmp_path_factory.mktemp("data")))


@pytest.fixture(scope="module")
def whole(place, tmp_path_factory):
    """A run that nothing disturbs."""
    folder = tmp_path_factory.mktemp("whole")
    assert started(folder, asked(place)).wait() == [0, 0]
    return folder / "run"


def asked(place: Path, **changes: object) -> dict:
    """A distillation of twelve steps with dropout."""
    train = {"batch_size": 2, "steps": 12, "evaluate_every": 6, "checkpoint_every": 5, **changes.pop("train", {})}
    student = {"model": f"{place}/nets.py:grouped", "options": {"dropout": 0.3}}
    runtime = {"stall_minutes": LIMIT / 60, **changes.pop("runtime", {})}
    return distillation(place, student=student, train=train, runtime=runtime, **changes)


def started(
    folder: Path, recipe: dict, spoil: Callable[[], None] = lambda: None, victim: int = 1, *words: str
) -> Launched:
    """`densekd distill` in two processes; `spoil` is called in one of them first."""
    path = folder / "recipe.yaml"
    path.write_text(yaml.safe_dump(recipe))

    def work(rank: int) -> None:
        if rank == victim:
            spoil()
        sys.argv = ["densekd", "distill", str(path), "--out", str(folder / "run"), *words]
        main()

    return Launched(work, 2, folder / "io")


def at_step(number: int, then: Callable[[], None], where: str = "_forward_backward") -> Callable[[], None]:
    """What makes a process do `then` in step `number`, counted from 1, in a method of its stepper."""

    def spoil() -> None:
        from densekd.training.stepper import Stepper

        before = getattr(Stepper, where)

        def spoilt(self, *args):
            if self.peers.pulse.now.step == number:
                then()
            return before(self, *args)

        setattr(Stepper, where, spoilt)

    return spoil


def at_each_step(then: Callable[[], None]) -> Callable[[], None]:
    def spoil() -> None:
        from densekd.training.stepper import Stepper

        before = Stepper._forward_backward

        def spoilt(self, *args):
            then()
            return before(self, *args)

        Stepper._forward_backward = spoilt

    return spoil


def wait_for_a_checkpoint(folder: Path) -> None:
    until = time.monotonic() + 240
    while not any((folder / "run" / "checkpoints").glob("step-*")):
        assert time.monotonic() < until
        time.sleep(0.05)


def sleeping() -> None:
    """As a dead lock does: for ever."""
    while True:
        time.sleep(1)


def loading_for_ever() -> None:
    """A loading process that comes no further."""
    from densekd.data.views import TrainView

    before = TrainView.__getitem__

    def spoilt(self, key):
        if key[0] == 3:  # the epoch
            sleeping()
        return before(self, key)

    TrainView.__getitem__ = spoilt


def signalled(number: int) -> Callable[[], None]:
    return lambda: os.kill(os.getpid(), number)


def ended(launched: Launched) -> list[int]:
    """The exit codes; all have ended within the seconds that are promised."""
    return launched.wait(_COME + LIMIT + PROMISED)


def goes_on_as(whole: Path, folder: Path, place: Path) -> None:
    """Resumed, the run ends as one that nothing disturbed, bit for bit."""
    launched = started(folder, asked(place), lambda: None, 1, "--resume")
    assert launched.wait() == [0, 0], launched.err()
    last = Path("checkpoints", "step-00000012")
    for name in (last / "student.safetensors", last / "optimizer.safetensors", "evaluations.csv"):
        assert (folder / "run" / name).read_bytes() == (whole / name).read_bytes(), name
    assert Run.load(folder / "run").record.status == "done"


def signalled_in_step_8(number: int, place: Path, whole: Path, folder: Path, victim: int) -> str:
    """One process gets the signal; the other ends, and the run resumes. What the other said."""
    launched = started(folder, asked(place), at_step(8, signalled(number)), victim)
    codes = ended(launched)
    assert (codes[victim], codes[1 - victim]) == (-signal.SIGKILL, 2)
    said = launched.err(1 - victim)
    assert f"error: process {victim} of 2 (counted from 0; pid {launched.children[victim]} on " in said
    assert Run.load(folder / "run").record.status == ("failed" if victim == 1 else "running")
    goes_on_as(whole, folder, place)
    return said


class TestStandsStill:
    @pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.long)])
    def test_in_a_step(self, place, whole, tmp_path, victim):
        launched = started(tmp_path, asked(place), at_step(8, sleeping), victim)
        assert ended(launched) == [2, 2], launched.err()
        said = launched.err()
        assert said.count("error:") == 1
        assert f"error: process {victim} of 2 (counted from 0; pid {launched.children[victim]} on " in said
        assert "it is loading images, step 8, in " in said  # what it did before
        assert "(sleeping). All processes end: runtime.stall_minutes=0.05 is the limit." in said
        assert "go on with --resume" in said
        record = Run.load(tmp_path / "run").record
        assert record.status == "failed"
        assert record.error.startswith(f"RunError: process {victim} of 2")
        goes_on_as(whole, tmp_path, place)

    @pytest.mark.long
    @pytest.mark.parametrize("victim", [0, 1])
    def test_stopped(self, place, whole, tmp_path, victim):
        """SIGSTOP: nothing of the process runs any more, nor the store that the first one holds."""
        said = signalled_in_step_8(signal.SIGSTOP, place, whole, tmp_path, victim)
        assert "it is stopped, or its machine is gone; when last heard, " in said

    @pytest.mark.long
    def test_loading(self, place, whole, tmp_path):
        """A process that loads images for the run hangs: it is ended too."""
        before = {child.pid for child in psutil.Process().children(recursive=True)}
        launched = started(tmp_path, asked(place, runtime={"workers": 1}), loading_for_ever)
        assert ended(launched) == [2, 2], launched.err()
        assert "process 1 of 2" in launched.err()
        assert "it is loading images, step " in launched.err()
        assert {child.pid for child in psutil.Process().children(recursive=True)} <= before
        assert Run.load(tmp_path / "run").record.status == "failed"

    @pytest.mark.long
    def test_in_the_backward_pass(self, place, tmp_path):
        """There the others wait too, inside of torch: all are named, each with its place."""

        def spoil() -> None:
            import accelerate

            backward = accelerate.Accelerator.backward
            taken = []

            def spoilt(self, loss, **options):
                taken.append(loss)
                if len(taken) == 8:
                    sleeping()
                backward(self, loss, **options)

            accelerate.Accelerator.backward = spoilt

        launched = started(tmp_path, asked(place), spoil)
        assert ended(launched) == [2, 2], launched.err()
        assert "process 1 of 2" in launched.err()
        assert "it is in the backward pass, step 8, in " in launched.err()
        assert "(sleeping)" in launched.err()
        assert launched.err().count("error:") == 1

    def test_what_takes_long_is_no_stall(self, place, tmp_path):
        """An evaluation that comes on, and a checkpoint on a slow disk, each longer than the limit."""

        def spoil() -> None:
            from densekd.data.views import EvalView
            from densekd.training.checkpointer import Checkpointer
            from densekd.training.stepper import Stepper

            entry, save, gather = EvalView.__getitem__, Checkpointer.save, Stepper.gather

            def slow_entry(self, index):
                time.sleep(1.3)
                return entry(self, index)

            def then_slow(self):
                EvalView.__getitem__ = slow_entry
                gather(self)

            def slow_save(self, *args):
                time.sleep(4)
                return save(self, *args)

            Stepper.gather, Checkpointer.save = then_slow, slow_save

        recipe = asked(place, train={"evaluate_batch_size": 1, "steps": 4})
        launched = started(tmp_path, recipe, spoil, 0)
        assert launched.wait() == [0, 0], launched.err()

    @pytest.mark.long
    def test_all_stopped_for_a_while_go_on(self, place, tmp_path):
        """Ctrl-Z, or a scheduler that suspends a job, for longer than the limit."""
        recipe = asked(place, train={"steps": 400, "evaluate_every": None})
        launched = started(tmp_path, recipe, at_each_step(lambda: time.sleep(0.02)))
        wait_for_a_checkpoint(tmp_path)
        for number in (signal.SIGSTOP, signal.SIGCONT):
            for child in launched.children:
                os.kill(child, number)
            time.sleep(3 * LIMIT if number == signal.SIGSTOP else 0)
        assert launched.wait() == [0, 0], launched.err()

    @pytest.mark.long
    @pytest.mark.parametrize("after", [0.0, 0.37, 0.71])
    def test_the_first_is_stopped_anywhere(self, place, tmp_path, after):
        launched = started(tmp_path, asked(place, train={"steps": 100_000, "evaluate_every": 7}))
        wait_for_a_checkpoint(tmp_path)
        time.sleep(after)
        os.kill(launched.children[0], signal.SIGSTOP)
        assert ended(launched) == [-signal.SIGKILL, 2]
        assert launched.err(1).count("error: process 0 of 2") == 1


class TestKilled:
    @pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.long)])
    def test_in_a_step(self, place, whole, tmp_path, victim):
        assert "go on with --resume" in signalled_in_step_8(signal.SIGKILL, place, whole, tmp_path, victim)

    @pytest.mark.long
    def test_before_training(self, place, tmp_path):
        """While the others wait for it, or are at work of their own."""

        def spoil() -> None:
            from densekd.runs import execute

            def killed(*_: object, **__: object) -> None:
                time.sleep(2)  # in which it says what it is at
                os.kill(os.getpid(), signal.SIGKILL)

            execute.assemble = killed

        launched = started(tmp_path, asked(place), spoil)
        codes = ended(launched)
        assert codes == [2, -signal.SIGKILL]
        assert "is gone without a word" in launched.err(0)
        assert "s ago, it was data and student. All processes end" in launched.err(0)

    @pytest.mark.long
    def test_where_the_broken_connection_is_not_noticed(self, place, tmp_path):
        """As between GPUs, where a collective waits on: the watch ends the process."""

        def spoil() -> None:
            from densekd.training.peers import Peers

            means = Peers.means

            def deaf(self, values):
                try:
                    return means(self, values)
                except RuntimeError:
                    sleeping()

            Peers.means = deaf

        recipe = asked(place, train={"steps": 100_000, "evaluate_every": None})
        launched = started(tmp_path, recipe, spoil, 0)
        wait_for_a_checkpoint(tmp_path)
        os.kill(launched.children[1], signal.SIGKILL)
        assert ended(launched) == [2, -signal.SIGKILL]
        assert launched.err(0).count("error: process 1 of 2") == 1
        record = Run.load(tmp_path / "run").record
        assert record.status == "failed"
        assert "is gone without a word" in record.error


class TestOutOfMemory:
    @pytest.mark.parametrize("victim", [1, pytest.param(0, marks=pytest.mark.long)])
    @pytest.mark.parametrize("how", ["torch", pytest.param("python", marks=pytest.mark.long)])
    def test_a_limit(self, place, whole, tmp_path, victim, how):
        """RLIMIT_AS, and a module or a list that needs more."""

        def more() -> None:
            import torch

            room = psutil.Process().memory_info().vms + (64 << 20)
            resource.setrlimit(resource.RLIMIT_AS, (room, room))
            if how == "torch":
                torch.empty(1 << 28)
            else:
                bytearray(1 << 30)

        launched = started(tmp_path, asked(place), at_step(8, more), victim)
        assert ended(launched) == [2, 2], launched.err()
        said = launched.err()
        assert said.count("error:") == 1
        assert "error: out of memory" in said
        for key in ("train.batch_size", "train.accumulate", "teacher.engine.micro_batch", "distill.cache"):
            assert key in said
        record = Run.load(tmp_path / "run").record
        assert record.status == "failed"
        assert "ResourceError: out of memory" in record.error
        goes_on_as(whole, tmp_path, place)


class TestSlow:
    def test_is_only_told(self, place, tmp_path):
        taken = []

        def spoil() -> None:
            from densekd.training.stepper import Stepper

            before = Stepper._forward_backward

            def spoilt(self, *args):
                taken.append(args)
                if len(taken) in {30, 33, 36}:
                    time.sleep(1.6)
                elif len(taken) > 36:
                    time.sleep(0.1)
                if len(taken) == 60:  # the others' output, before the end of the training
                    (tmp_path / "meanwhile").write_text((tmp_path / "io" / "0.err").read_text())
                return before(self, *args)

            Stepper._forward_backward = spoilt

        recipe = asked(place, train={"steps": 60, "evaluate_every": None, "checkpoint_every": 50})
        launched = started(tmp_path, recipe, spoil)
        assert launched.wait() == [0, 0], launched.err()
        record = Run.load(tmp_path / "run").record
        assert record.status == "done"
        late = [line for line in record.warnings if "late" in line]
        assert len(late) == 2, record.warnings
        assert late[0].startswith("process 1 of 2 was late at step 30: the others waited 1.")
        assert late[1].startswith("process 1 was late in 3 steps in all: the others waited ")
        for line in late:
            assert launched.err(0).count(line) == 1
        assert late[0] in (tmp_path / "meanwhile").read_text()


class TestWatched:
    @pytest.mark.long
    def test_changes_nothing(self, place, whole, tmp_path):
        """Without threads that watch, and without a limit: the same run bit for bit."""

        def silent(self: object) -> None:
            (tmp_path / f"{type(self).__name__}-{os.getpid()}").touch()

        def work(rank: int) -> None:
            from densekd.runs import exchange, watch

            exchange.Exchange._work = watch.Watch._judging = silent
            sys.argv = ["densekd", "distill", str(path), "--out", str(tmp_path / "run")]
            main()

        path = tmp_path / "recipe.yaml"
        path.write_text(yaml.safe_dump(asked(place, runtime={"stall_minutes": None})))
        launched = Launched(work, 2, tmp_path / "io")
        assert launched.wait() == [0, 0], launched.err()
        assert len([*tmp_path.glob("Exchange-*"), *tmp_path.glob("Watch-*")]) == 4  # these are the threads, by name
        last = Path("checkpoints", "step-00000012")
        for name in (last / "student.safetensors", last / "optimizer.safetensors", "evaluations.csv"):
            assert (tmp_path / "run" / name).read_bytes() == (whole / name).read_bytes(), name


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.parametrize("how", ["stalled", "stopped", "killed"])
def test_under_torchrun(place, whole, tmp_path, how):
    recipe, script = tmp_path / "recipe.yaml", tmp_path / "launched.py"
    script.write_text(LAUNCHED_BY_TORCHRUN)
    (tmp_path / "stall").touch()
    recipe.write_text(yaml.safe_dump(asked(place, runtime={"stall_minutes": (LIMIT if how != "killed" else 900) / 60})))
    words = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2", str(script)]
    words += [str(tmp_path), "distill", str(recipe), "--out", str(tmp_path / "run")]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    with (tmp_path / "err").open("w") as err:
        running = subprocess.Popen(words, stdout=subprocess.DEVNULL, stderr=err, env=environment)
        try:
            if how != "stalled":
                wait_for_a_checkpoint(tmp_path)
                os.kill(int((tmp_path / "pid-1").read_text()), signal.SIGSTOP if how == "stopped" else signal.SIGKILL)
                begin = time.monotonic()
                assert running.wait(LIMIT + PROMISED) != 0
                assert time.monotonic() - begin < LIMIT + PROMISED
            else:
                assert running.wait(300) != 0
        finally:
            with contextlib.suppress(ProcessLookupError):
                running.kill()
            running.wait()
    said = (tmp_path / "err").read_text()
    expected = {"stalled": "has made no step for", "stopped": "it is stopped", "killed": "is gone without a word"}
    assert said.count("error: process 1 of 2") == 1, said
    assert expected[how] in said
    assert Run.load(tmp_path / "run").record.status == "failed"
    (tmp_path / "stall").unlink()
    goes_on_as(whole, tmp_path, place)
