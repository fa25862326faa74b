"""Signals that meet a loading process, and what runs write while one comes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import pytest

from densekd.training.loading import loaded

# Both moments at which a process is not yet deaf: its first, and after torch has set handlers of its own.
BORN = """
import os, signal, sys
import torch.utils.data._utils.signal_handling as handling
from densekd.training.loading import loaded
from densekd.training.signals import StopSignals

def hit():
    os.kill(os.getpid(), signal.{name})

if {early}:
    os.register_at_fork(after_in_child=hit)
else:
    first = handling._set_worker_signal_handlers
    handling._set_worker_signal_handlers = lambda: (first(), hit())

class View:
    def __len__(self): return 6
    def __getitem__(self, key): return key

with StopSignals(lambda line: print(line, flush=True)) as signals:
    print([batch.tolist() for batch in loaded(View(), workers=2, batch_size=3)], signals.asked)
"""


@pytest.mark.slow
@pytest.mark.parametrize("name", ["SIGINT", "SIGTERM"])
@pytest.mark.parametrize("early", [True, False])
def test_a_signal_to_a_loading_process_that_has_just_begun(name, early):
    done = subprocess.run(
        [sys.executable, "-c", BORN.format(name=name, early=early)], capture_output=True, text=True, timeout=100
    )
    assert (done.returncode, done.stdout) == (0, "[[0, 1, 2], [3, 4, 5]] None\n"), done.stderr


def test_signals_come_again_once_the_processes_run():
    batches = loaded([1, 2], workers=1, batch_size=1)
    next(batches)
    assert not signal.pthread_sigmask(signal.SIG_BLOCK, ()) & {signal.SIGINT, signal.SIGTERM}
    batches.close()


class Hanging:
    """Its second element never comes."""

    def __len__(self):
        return 2

    def __getitem__(self, key):
        time.sleep(1000 * key)
        return os.getpid()


@pytest.mark.slow
def test_a_loading_process_that_hangs_does_not_outlive_the_iteration():
    batches = loaded(Hanging(), workers=1, batch_size=1)
    process = next(batches).item()
    batches.close()  # torch waits five seconds
    with pytest.raises(ProcessLookupError):
        os.kill(process, 0)


TELLING = """
import signal, sys
from densekd.study.worker import _channel

send = _channel()
told = 0

def handler(number, frame):
    global told
    told += 1
    send({"from": "handler"})

signal.signal(signal.SIGALRM, handler)
signal.setitimer(signal.ITIMER_REAL, 1e-4, 1e-4)
for number in range(20_000):
    send({"from": "program", "number": number})
signal.setitimer(signal.ITIMER_REAL, 0)
send({"told": told})
"""


@pytest.mark.slow
def test_a_run_tells_from_a_signal_handler_whatever_it_interrupts():
    done = subprocess.run([sys.executable, "-c", TELLING], capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr
    events = [json.loads(line) for line in done.stdout.splitlines()]
    assert [event["number"] for event in events if event.get("from") == "program"] == list(range(20_000))
    told = sum(event.get("from") == "handler" for event in events)
    assert told == events[-1]["told"] > 0
