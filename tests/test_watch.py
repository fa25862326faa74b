"""What processes make of one another's signs: who stands still, who is late, what is said of it."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time

import psutil
import pytest
import torch

from densekd.config import load_recipe, recipe_digest
from densekd.errors import ConfigError
from densekd.runs.signs import PATIENCE, Place, Seen, Sign, gone_words, left, stall_words, stalled
from densekd.training.lateness import Late, Wait, Waits
from densekd.training.peers import Clock, Peers
from densekd.training.pulse import Mark, Pulse

PLACE = Place("this boot", "node7", 42, 1000.0)


def seen(rank: int, idle: float = 0.0, silent: float = 0.0, **sign: object) -> Seen:
    told = {"step": 8, "order": 3, "what": "loading images", "waiting": False, "patient": False, **sign}
    return Seen(rank, Sign(1, PLACE, idle=idle, **told), silent)


class TestPulse:
    def test_marks_of_a_step_are_in_order(self):
        pulse = Pulse()
        pulse.at("loading images", step=3)
        first = pulse.now
        pulse.at("in the forward pass")
        with pulse.waiting():
            inside = pulse.now
        after = pulse.now
        assert (first.step, first.order, first.waiting) == (3, 0, False)
        assert (inside.what, inside.order, inside.waiting) == ("in the forward pass", 2, True)
        assert (after.what, after.order, after.waiting) == ("in the forward pass", 3, False)
        pulse.at("loading images", step=4)
        assert (pulse.now.step, pulse.now.order) == (4, 0)

    def test_an_error_within_a_wait_ends_the_wait(self):
        pulse = Pulse()
        with pytest.raises(RuntimeError), pulse.waiting():
            raise RuntimeError
        assert not pulse.now.waiting

    def test_a_wait_within_a_wait_leaves_the_outer_one(self):
        pulse = Pulse()
        with pulse.waiting():
            with pulse.waiting():
                pass
            assert pulse.now.waiting


class TestStalled:
    def test_nobody_as_long_as_all_go_on(self):
        assert stalled([seen(0, 9.9), seen(1, 0.1)], 10) == []

    def test_the_one_that_the_others_wait_for(self):
        found = stalled([seen(0, 20, waiting=True), seen(1, 20, order=1), seen(2, 20, waiting=True)], 10)
        assert [one.rank for one in found] == [1]

    def test_of_several_the_one_furthest_behind(self):
        """The others are in a pass in which torch itself waits."""
        found = stalled([seen(0, 15, order=5), seen(1, 20, order=1), seen(2, 15, step=9, order=0)], 10)
        assert [one.rank for one in found] == [1]
        assert [one.rank for one in stalled([seen(0, 15), seen(1, 15)], 10)] == [0, 1]
        # The last sign of the other is a moment old, and it may not have said yet that its time is over.
        assert [one.rank for one in stalled([seen(0, 10.1), seen(1, 9.4, silent=0.9)], 10)] == [0, 1]
        assert [one.rank for one in stalled([seen(0, 10.1), seen(1, 9.4, order=1)], 10)] == [1]
        assert [one.rank for one in stalled([seen(0, 10.1), seen(1, 0.4, order=1)], 10)] == [0]

    def test_one_that_says_nothing_even_if_it_waited(self):
        found = stalled([seen(0, 20, waiting=True), seen(1, 0.2, silent=11, waiting=True)], 10)
        assert [one.rank for one in found] == [1]

    def test_a_short_silence_makes_no_stall(self):
        """What a process was at since its last sign is not known: it counts by its own clock, or by its silence."""
        assert stalled([seen(0, 10, waiting=True), seen(1, 9, silent=5), seen(2, 9, silent=5, waiting=True)], 10) == []

    def test_all_where_all_wait(self):
        found = stalled([seen(0, 12, waiting=True), seen(1, 11, waiting=True)], 10)
        assert [one.rank for one in found] == [0, 1]
        assert stalled([seen(0, 12, waiting=True), seen(1, 9, waiting=True)], 10) == []
        assert stalled([seen(0, 12, waiting=True)], 10) == []  # nothing is known of the others

    def test_patient_work_has_half_an_hour(self):
        assert stalled([seen(0, 1700, patient=True), seen(1, 1700, waiting=True)], 10) == []
        assert [one.rank for one in stalled([seen(0, PATIENCE, patient=True), seen(1, 9, waiting=True)], 10)] == [0]
        assert stalled([seen(0, 1900, patient=True), seen(1, 9, waiting=True)], 3600) == []


class TestWords:
    def test_of_a_stall(self):
        words = stall_words([seen(1, 612.3, code="nets.py:12 (forward)")], 2, 600)
        assert words == (
            "process 1 of 2 (counted from 0; pid 42 on node7) has made no step for 612 s: it is loading images, step "
            "8, in nets.py:12 (forward). All processes end: runtime.stall_minutes=10 is the limit. Look at what holds "
            "it, or raise the limit where it only needs longer, and go on with --resume"
        )

    def test_of_silence_and_of_a_hanging_connection(self):
        silent = stall_words([seen(1, 0.4, silent=30)], 2, 30)
        assert (
            "has not answered for 30 s: it is stopped, or its machine is gone; when last heard, 30 s ago, it" in silent
        )
        all_wait = stall_words([seen(0, 31, waiting=True), seen(1, 30, waiting=True)], 2, 30)
        assert all_wait.startswith("all 2 processes have waited for one another for 30 s at step 8: the connection")

    def test_of_many_no_more_than_four(self):
        assert stall_words([seen(rank, 30) for rank in range(64)], 64, 30).count("process ") == 4

    def test_of_one_that_is_gone(self):
        words = gone_words(seen(1, silent=1.2, step=0, what="data and student"), 2)
        assert "is gone without a word: killed from outside (often because memory ran out" in words
        assert "when last heard, 1 s ago, it was data and student. All processes end; go on with --resume" in words


class TestSigns:
    def test_read_as_told(self):
        waits = Waits()
        waits.taken = 7
        waits.long.append(Wait(6, 2.5, 0.1))
        mark = Mark(8, 3, "loading images", False, False, 10.0)
        sign = Sign.of(5, PLACE, mark, threading.get_ident(), waits, 10.5)
        assert Sign.read(sign.text()) == sign
        assert (sign.idle, sign.code, sign.taken, sign.waits) == (0.5, "", 7, [Wait(6, 2.5, 0.1)])
        assert (left(sign).count, left(sign).left) == (6, True)

    def test_an_old_mark_says_where_in_the_code(self):
        mark = Mark(8, 3, "loading images", False, False, 10.0)
        sign = Sign.of(1, PLACE, mark, threading.get_ident(), Waits(), 15.0)
        assert "signs.py:" in sign.code
        assert sign.code.endswith("(of)")

    def test_compiling_is_patient(self, tmp_path):
        """Told by the file of torch that compiles, anywhere on the stack."""
        source = "def convert(then):\n    return then()\n"
        names: dict = {}
        exec(compile(source, str(tmp_path / "torch" / "_dynamo" / "convert_frame.py"), "exec"), names)
        mark = Mark(1, 3, "in the forward pass", False, False, 0.0)
        me = threading.get_ident()
        assert names["convert"](lambda: Sign.of(1, PLACE, mark, me, Waits(), 9.0)).patient
        assert not Sign.of(1, PLACE, mark, me, Waits(), 9.0).patient

    @pytest.mark.slow
    def test_a_process_that_is_gone(self):
        assert not Place.here().gone()
        child = subprocess.Popen([sys.executable, "-c", "pass"], stdin=subprocess.DEVNULL)
        place = Place(Place.here().machine, "here", child.pid, psutil.Process(child.pid).create_time())
        until = time.monotonic() + 30
        while not place.gone():  # as a zombie, which nobody has waited for
            assert time.monotonic() < until
            time.sleep(0.01)
        child.wait()
        assert place.gone()
        place.kill()  # nothing is there to be ended
        other = Place(place.machine, "here", os.getpid(), Place.here().created - 3600)
        assert other.gone()  # its number is another process's now


class TestLate:
    def late(self, steps, **ranks):
        waits = {int(rank[1:]): [Wait(step, 8.0, 0.25) for step in at] for rank, at in ranks.items()}
        return Late(3).lines(steps, waits)

    def test_the_one_that_did_not_wait(self):
        lines = self.late({0: 9, 1: 9, 2: 9}, r0=[7], r2=[7])
        assert lines == [
            "process 1 of 3 was late at step 7: the others waited 8.0 s for it (a step takes 0.25 s without waiting, "
            "the median of the steps before)"
        ]

    def test_a_step_that_not_all_have_told_of_is_waited_for(self):
        late = Late(2)
        assert late.lines({0: 7, 1: 6}, {0: [Wait(7, 8.0, 0.2)]}) == []
        assert len(late.lines({0: 8, 1: 8}, {0: [Wait(7, 8.0, 0.2)]})) == 1
        assert late.lines({0: 9, 1: 9}, {0: [Wait(7, 8.0, 0.2)]}) == []

    def test_where_all_waited_or_only_one_nobody_is_late(self):
        assert self.late({0: 9, 1: 9, 2: 9}, r0=[7], r1=[7], r2=[7]) == []
        assert self.late({0: 9, 1: 9, 2: 9}, r0=[7]) == []

    def test_a_line_in_ten_minutes_and_the_sum_at_the_end(self):
        late = Late(2)
        lines = [late.lines({0: step, 1: step}, {1: [Wait(step, 2.0, 0.1)]}) for step in range(1, 40)]
        assert sum(map(len, lines)) == 1
        assert late.last_words() == ["process 0 was late in 39 steps in all: the others waited 78.0 s for it"]
        assert Late(2).last_words() == []

    def test_a_wait_is_long_by_the_work_of_the_steps_before(self):
        waits = Waits()
        for step in range(1, 31):
            waits.note(step, 0.1 + 0.001 * (step % 3), 0.0)
        waits.note(31, 1.0, 0.9)  # long beside the steps, but below a second
        waits.note(32, 1.6, 1.5)
        assert [(wait.step, wait.seconds) for wait in waits.long] == [(32, 1.5)]
        assert waits.taken == 32
        slow = Waits()
        for step in range(1, 31):
            slow.note(step, 3.0 + 0.2 * (step % 3), 0.0)
        slow.note(31, 5.0, 2.0)  # a second step's worth is nothing where a step takes three
        early = Waits()
        early.note(1, 9.0, 8.0)  # nothing to compare with yet
        assert not slow.long
        assert not early.long

    def test_one_process_notes_nothing(self):
        peers = Peers()
        peers.took(1, 0.5)
        assert peers.texts("a") == ["a"]


class Event:
    """A device's event: recorded at a time of its own, come to by the device or not."""

    def __init__(self, device: str, enable_timing: bool) -> None:
        assert (device, enable_timing) == ("cuda", True)
        self.at = 0.0

    def record(self) -> None:
        self.at = next(TICKS)

    def query(self) -> bool:
        return self.at < 50

    def elapsed_time(self, end: Event) -> float:
        return 1000 * (end.at - self.at)  # milliseconds


TICKS = iter([1.0, 3.0, 10.0, 10.5, 40.0, 60.0])


class TestClock:
    def test_a_gpu_is_not_waited_for(self, monkeypatch):
        monkeypatch.setattr(torch, "Event", Event)
        clock = Clock(torch.device("cuda"))
        for _ in range(3):
            with clock:
                pass
        assert clock.taken() == 2.5  # the device has not come to the end of the third
        assert clock.taken() == 0.0

    def test_of_the_host(self, monkeypatch):
        monkeypatch.setattr(time, "perf_counter", iter([1.0, 3.0, 10.0, 10.5]).__next__)
        clock = Clock(torch.device("cpu"))
        for _ in range(2):
            with clock:
                pass
        assert clock.taken() == 2.5
        assert clock.taken() == 0.0


class TestKey:
    def recipe(self, **changes):
        return load_recipe("demo-teacher", changes)

    def test_a_limit_below_three_seconds_is_refused(self):
        with pytest.raises(ConfigError, match=r"runtime\.stall_minutes"):
            self.recipe(**{"runtime.stall_minutes": 0.01})

    def test_it_changes_no_run(self):
        """A run may go on with another limit."""
        digests = {recipe_digest(self.recipe(**{"runtime.stall_minutes": value})) for value in (10.0, 30.0, None)}
        assert len(digests) == 1
