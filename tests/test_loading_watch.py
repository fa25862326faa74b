"""Loading processes that die or hang: the error says which one and what it read, and nothing waits for ever."""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from torch.utils.data import Subset

from densekd.errors import ResourceError
from densekd.training.loading import loaded
from densekd.training.loading_watch import Board, Watch, name_of


class Named:
    """Samples with names; what happens at the third is given."""

    def __init__(self, at_third: Callable[[], Any] = lambda: None) -> None:
        self.at_third = at_third
        self.source = self

    def name_of(self, index: int) -> str:
        return f"street {index}"

    def __len__(self) -> int:
        return 6

    def __getitem__(self, index: int) -> int:
        if index == 3:
            self.at_third()
        return index


def test_names_of_samples() -> None:
    assert name_of(Named(), (7, 2)) == "'street 2'"
    assert name_of(Subset(Subset(Named(), [5, 4]), [1]), 0) == "'street 4'"
    assert name_of(SimpleNamespace(view=Named()), 1) == "'street 1'"
    assert name_of([1, 2], 1) == "sample 1"


def test_the_board_keeps_what_each_reads() -> None:
    board = Board(3)
    board.note(1, "'ü' " + 500 * "x")
    board.note(2, "gone\udcff soon")
    assert board.read()[0] == ""
    assert len(board.read()[1].encode()) == 400
    assert board.read()[2] == "gone\\udcff soon"
    board.note(2, "")
    assert board.read()[2] == ""


class Process:
    def __init__(self, exitcode: int | None) -> None:
        self.exitcode, self.pid, self.killed = exitcode, 7, False

    def is_alive(self) -> bool:
        return self.exitcode is None

    def kill(self) -> None:
        self.killed = True


@pytest.mark.parametrize(
    ("codes", "words"),
    [
        (
            (None, -9),
            r"loading process 2 of 2 \(pid 7\) was ended by signal Killed while it read 'b'; mostly because mem",
        ),
        ((0, None), r"loading process 1 of 2 \(pid 7\) ended itself with exit code 0: a library"),
        ((1, -11), r"process 2 of 2 .* ended by signal Segmentation fault while it read 'b'"),
        ((None, None), ""),
    ],
)
def test_who_is_gone(codes: tuple[int | None, ...], words: str) -> None:
    board = Board(2)
    board.note(1, "'b'")
    watch = Watch([Process(code) for code in codes], board, 60)
    watch.end()
    found = watch.error()
    assert (found is None) if not words else found is not None
    if found is not None:
        with pytest.raises(ResourceError, match=words):
            raise found


def test_waiting_is_counted_and_ended() -> None:
    board, process = Board(1), Process(None)
    board.note(0, "'a'")
    watch = Watch([process], board, 0.04)
    time.sleep(0.1)
    assert not process.killed  # nobody waited
    with watch.waiting():
        for _ in range(500):
            if watch.hung is not None:
                break
            time.sleep(0.01)
    watch.end()
    assert process.killed
    words = r"1 loading process\(es\) gave no batch .*process 1 reads 'a'.*raise runtime\.loading_minutes"
    with pytest.raises(ResourceError, match=words):
        raise watch.error() or AssertionError


def stopped() -> None:
    os.kill(os.getpid(), signal.SIGSTOP)


HUNG = r"gave no batch for 0\.0\d+ minutes \(process \d reads 'street 3'\)"


@pytest.mark.parametrize(
    ("happens", "words"),
    [
        pytest.param(
            lambda: os.kill(os.getpid(), signal.SIGKILL),
            "was ended by signal Killed while it read 'street 3'",
            marks=pytest.mark.slow,
        ),
        pytest.param(lambda: os._exit(0), "exit code 0 while it read 'street 3'", marks=pytest.mark.long),
        pytest.param(lambda: os._exit(3), "exit code 3 while it read 'street 3'", marks=pytest.mark.slow),
        pytest.param(lambda: time.sleep(1000), HUNG, marks=pytest.mark.long),
        pytest.param(stopped, HUNG, marks=pytest.mark.slow),
    ],
)
def test_it_is_told_soon(happens: Callable[[], Any], words: str) -> None:
    before = time.monotonic()
    # Nothing is expected of what came before: what a process had loaded may be gone with it.
    batches = loaded(Named(happens), workers=2, batch_size=1, patience=2)
    with closing(batches), pytest.raises(ResourceError, match=words):
        list(batches)
    assert time.monotonic() - before < 60


@pytest.mark.slow
def test_a_death_meanwhile_is_told_where_a_batch_is_taken(tmp_path: Path) -> None:
    """Not by a signal's handler in the middle of whatever the program does then, as torch's own would."""
    pid = tmp_path / "pid"

    def write() -> None:
        pid.write_text(str(os.getpid()))

    with closing(loaded(Named(write), workers=1, batch_size=1, prefetch_factor=4)) as batches:
        next(batches)
        while not (pid.exists() and pid.read_text()):
            time.sleep(0.01)
        os.kill(int(pid.read_text()), signal.SIGKILL)
        try:
            for _ in range(50):
                time.sleep(0.01)
        except RuntimeError:
            pytest.fail("raised while nothing was asked of the loading process")
        with pytest.raises(ResourceError, match=r"loading process 1 of 1 .*Killed"):
            list(batches)
