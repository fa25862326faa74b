"""Ctrl-C and SIGTERM before, around and after the work of a command."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

# Says "here" once the command has begun: the first thing it imports after its handlers stand.
COMMAND = """
import sys

def watch(event, arguments):
    if event == "import" and arguments[0] == "densekd.cli.app":
        sys.stdout.write("here\\n")
        sys.stdout.flush()

sys.addaudithook(watch)
from densekd.cli.main import main
main()
"""


# The installed script, by its name; says what was imported when its first handlers are about to stand.
SCRIPT = """
import os, signal, sys

signal.signal(signal.SIGINT, signal.default_int_handler)  # whoever runs the tests in the background ignores it
before = {{*sys.modules}}

def watch(event, arguments):
    if event == "import" and arguments[0] == "{at}":
        {then}

sys.addaudithook(watch)
from densekd.cli.main import main
main()
"""


def script(folder: Path, at: str, then: str) -> subprocess.CompletedProcess[str]:
    (folder / "densekd").write_text(SCRIPT.format(at=at, then=then))
    return subprocess.run(
        [sys.executable, "densekd", "--version"], capture_output=True, text=True, cwd=folder, timeout=100
    )


@pytest.mark.parametrize(
    ("number", "told"), [(signal.SIGINT, (130, "", "interrupted\n")), (signal.SIGTERM, (143, "", "terminated\n"))]
)
@pytest.mark.parametrize("at", ["densekd.cli.stopping", "typer"])
def test_while_the_command_is_loaded(tmp_path: Path, at: str, number: int, told: tuple[int, str, str]) -> None:
    done = script(tmp_path, at, f"os.kill(os.getpid(), {int(number)})")
    assert (done.returncode, done.stdout, done.stderr) == told


def test_next_to_nothing_is_imported_before_signals_are_handled(tmp_path: Path) -> None:
    done = script(tmp_path, "densekd.cli.early", "sys.stdout.write(' '.join(sys.modules.keys() - before) + '\\n')")
    names, version = done.stdout.splitlines()
    assert {*names.split()} <= {"__future__", "densekd", "densekd._version", "densekd.cli", "densekd.cli.main"}
    assert version.startswith("densekd ")


def test_a_program_that_imports_the_command_keeps_its_handlers() -> None:
    program = (
        "import signal; before = [*map(signal.getsignal, (2, 15))]; import densekd.cli.main; "
        "assert [*map(signal.getsignal, (2, 15))] == before"
    )
    subprocess.run([sys.executable, "-c", program], check=True, timeout=100)


def run(script: str, *arguments: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True, cwd=folder, timeout=100
    )


def stopped_after(seconds: float, number: int, folder: Path) -> tuple[int, str, str]:
    """Exit code, stdout and stderr of a training that gets a signal so long after it began."""
    child = subprocess.Popen(
        [sys.executable, "-c", COMMAND, "train", "demo-teacher", "--out", "run"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=folder,
        start_new_session=True,
    )
    assert child.stdout is not None
    assert child.stdout.readline() == "here\n"
    time.sleep(seconds)
    os.killpg(child.pid, number)
    out, err = child.communicate(timeout=100)
    return child.returncode, out, err


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.0, 0.05, 0.1, 0.2, 0.4, 0.7, 1.0, 1.4, 2.0])
def test_ctrl_c_at_any_early_moment(tmp_path: Path, seconds: float) -> None:
    assert stopped_after(seconds, signal.SIGINT, tmp_path) == (130, "", "interrupted\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.slow
@pytest.mark.parametrize("seconds", [0.05, 0.5, 1.5])
def test_sigterm_at_any_early_moment(tmp_path: Path, seconds: float) -> None:
    assert stopped_after(seconds, signal.SIGTERM, tmp_path) == (143, "", "terminated\n")


FROM_WITHIN = """
import os, signal, sys
from densekd.cli import app, main, stopping

def work(_arguments):
{body}

app.call = work
sys.argv = ["densekd", "train"]
main.main()
"""


@pytest.mark.parametrize(
    "body",
    [
        "import nosy",  # a module whose import makes nothing of it
        "os.kill(os.getpid(), signal.SIGINT)",
        "try: os.kill(os.getpid(), signal.SIGINT)\n    except KeyboardInterrupt: raise RecursionError from None",
        "try: os.kill(os.getpid(), signal.SIGINT)\n    except KeyboardInterrupt: os.kill(os.getpid(), signal.SIGINT)",
        "from densekd.cli.guard import guarded\n"
        "    def command():\n"
        "        try: os.kill(os.getpid(), signal.SIGINT)\n"
        "        except KeyboardInterrupt: raise ImportError('half a module') from None\n"
        "    guarded(command)()",
        # once the command has ended
        "import atexit\n    atexit.register(lambda: os.kill(os.getpid(), signal.SIGINT))\n    return 0",
    ],
)
def test_whatever_becomes_of_it_one_word_is_said(tmp_path: Path, body: str) -> None:
    (tmp_path / "nosy.py").write_text(
        "import os, signal\ntry: os.kill(os.getpid(), signal.SIGINT)\nexcept BaseException: pass\n"
    )
    done = run(FROM_WITHIN.format(body=f"    {body}"), folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (130, "", "interrupted\n")


def test_sigterm_says_its_own_word(tmp_path: Path) -> None:
    done = run(FROM_WITHIN.format(body="    os.kill(os.getpid(), signal.SIGTERM)"), folder=tmp_path)
    assert (done.returncode, done.stdout, done.stderr) == (143, "", "terminated\n")


def test_a_copy_of_the_process_leaves_signals_to_the_first(tmp_path: Path) -> None:
    body = """
    child = os.fork()
    if child == 0:
        os.kill(os.getpid(), signal.SIGINT)
        os._exit(7)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
"""
    done = run(FROM_WITHIN.format(body=body), folder=tmp_path)
    assert (done.returncode, done.stderr) == (7, "")


def test_without_a_signal_nothing_changes(tmp_path: Path) -> None:
    done = run(FROM_WITHIN.format(body="    raise RuntimeError('defect')"), folder=tmp_path)
    assert done.returncode == 1
    assert "RuntimeError: defect" in done.stderr
