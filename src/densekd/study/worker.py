"""The process of one piece of work, started by `densekd.study.pool`.

It reads one line of JSON, the request, from its standard input, which then stays open: when it closes, because the
study wants to stop or because its process is gone, however it died, the work finishes its step, saves, and leaves.
What happens goes to the former standard output as lines of JSON; whatever else prints goes to standard error.
"""

from __future__ import annotations

import atexit
import faulthandler
import json
import os
import queue
import signal
import threading
import traceback
from collections.abc import Callable, Mapping
from contextlib import suppress
from pathlib import Path
from types import FrameType
from typing import Any, TextIO

from densekd import host_memory
from densekd.config import load_recipe
from densekd.failures import explained
from densekd.runs import distill, train
from densekd.study.calibration import time_methods
from densekd.study.progress import Relay, Send
from densekd.training.signals import Interrupted


def run(request: Mapping[str, Any], send: Send) -> None:
    """Train one run."""
    call = train if request["kind"] == "train" else distill
    recipe = load_recipe(request["recipe"])
    host_memory.ask(recipe.runtime)
    call(
        recipe,
        out=request["out"],
        resume=request["resume"],
        force=request["force"],
        progress=Relay(send),
    )


def calibrate(request: Mapping[str, Any], send: Send) -> None:
    """Time a few steps of several methods."""
    host_memory.ask(load_recipe(request["methods"][0]["recipe"]).runtime)
    found = time_methods(request["methods"], Path(request["folder"]), Relay(send), request["warm_up"])
    send({"samples": found})


_WORK: dict[str, Callable[[Mapping[str, Any], Send], None]] = {"run": run, "calibrate": calibrate}


def main() -> None:
    """Do what the request asks; the last line told is how it ended."""
    send = _channel()
    request = _request()
    signal.signal(signal.SIGTERM, _leave)
    threading.Thread(target=_watch_the_study, daemon=True).start()
    try:
        _WORK[request["work"]](request, send)
    except (Interrupted, KeyboardInterrupt, SystemExit) as stop:
        send({"end": "interrupted", "reason": str(stop)})
        raise SystemExit(128 + signal.SIGTERM) from None
    except BaseException as error:
        traceback.print_exc()
        send({"end": "failed", "reason": str(explained(error) or f"{type(error).__name__}: {error}")})
        raise SystemExit(1) from None
    send({"end": "done"})


def _channel() -> Send:
    """The former standard output, for what happens; prints of libraries go to standard error from now on.

    A signal's handler tells too, and may have interrupted the very call that tells: it can wait for no lock. The
    queue's `put` may be entered again; one thread writes what is in it.
    """
    faulthandler.enable()
    stream = os.fdopen(os.dup(1), "w", encoding="utf-8")
    os.dup2(2, 1)
    lines: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    writer = threading.Thread(target=_write, args=(lines, stream), daemon=True)
    writer.start()

    def written() -> None:
        lines.put(None)
        writer.join()

    atexit.register(written)
    return lambda event: lines.put(json.dumps(event) + "\n")


def _write(lines: queue.SimpleQueue[str | None], stream: TextIO) -> None:
    while (line := lines.get()) is not None:
        # Where the study is gone, the closed standard input tells this process to leave.
        with suppress(OSError):
            stream.write(line)
            stream.flush()


def _request() -> Any:
    # Raw reads: a thread that waits in a buffered one would hold its lock when the interpreter ends.
    data = b""
    while not data.endswith(b"\n"):
        block = os.read(0, 65536)
        if not block:
            raise SystemExit(2)
        data += block
    return json.loads(data)


def _watch_the_study() -> None:
    while os.read(0, 4096):
        pass
    if hasattr(signal, "pthread_kill"):
        # To the main thread, which may wait in a call that only a signal of its own ends.
        signal.pthread_kill(threading.main_thread().ident or 0, signal.SIGTERM)
    else:
        signal.raise_signal(signal.SIGTERM)


def _leave(_number: int, _frame: FrameType | None) -> None:
    # While a run trains, its own handler stands instead: it finishes the step and saves.
    raise SystemExit("stopped before its training began")
