"""What Windows and macOS lack is taken away here: densekd is imported and does without, or refuses in words.

Nothing of this replaces a machine with that system; it keeps an ImportError or AttributeError from being the answer.
"""

from __future__ import annotations

import errno
import os
import subprocess
import sys
from pathlib import Path

import pytest

from densekd import files

LACKING = """
import os, signal, sys
import accelerate, huggingface_hub, matplotlib, numpy, PIL.Image, pydantic, requests, timm, torch, torchmetrics
import torchvision, typer, yaml, segmentation_models_pytorch, multiprocessing.connection, asyncio, psutil
# What is loaded by now may need them; what densekd loads may not.
for name in ("fcntl", "resource", "pwd", "grp", "termios", "tty", "pty"):
    sys.modules[name] = None
for name in ("fork", "register_at_fork", "sched_getaffinity", "getloadavg", "getuid", "geteuid", "getppid", "killpg",
             "getpgid", "setsid", "mkfifo", "uname", "chown", "O_DIRECTORY", "O_NOFOLLOW", "O_NONBLOCK"):
    if hasattr(os, name):
        delattr(os, name)
for name in ("SIGKILL", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGSTOP", "SIGCHLD", "pthread_sigmask", "pthread_kill",
             "SIG_BLOCK", "SIG_SETMASK", "alarm", "setitimer", "siginterrupt"):
    if hasattr(signal, name):
        delattr(signal, name)
"""
IMPORTS = """
import importlib, pkgutil
import densekd

for module in pkgutil.walk_packages(densekd.__path__, "densekd."):
    if not module.name.startswith("densekd.kernels.triton") and module.name != "densekd.__main__":
        importlib.import_module(module.name)
for name in densekd.__all__:
    getattr(densekd, name)
"""
WORK = """
from pathlib import Path
from densekd import files, locks, records, host_memory
from densekd.bench.data import _cpu_seconds
from densekd.bench.runner import machine_load
from densekd.data.get import _alone
from densekd.runs.memory import peak_bytes, reset_peak
from densekd.study import machine, pool
from densekd.training.loading import loaded
from densekd.training.signals import StopSignals

here = Path("place")
files.write_json(here / "a.json", {"x": 1})
files.write_folder(here / "step", {"a": b"1"})
files.write_folder(here / "step", {"a": b"2"})
files.remove_folder(here / "step")
assert files.read_json(here / "a.json") == {"x": 1}
with locks.try_lock(here) as held, _alone(here):
    assert held is not None
reset_peak(torch.device("cpu"))
peak_bytes(torch.device("cpu"))
assert _cpu_seconds() > 0
assert machine_load() == []
records.environment()
assert machine.cpus() >= 1
assert "SIGTERM" in pool._death(-15)
with StopSignals() as stop:
    signal.raise_signal(signal.SIGTERM)
    assert stop.asked == signal.SIGTERM
assert len(list(loaded([1, 2, 3], workers=0, batch_size=2))) == 2
print("done")
"""
TRAINING = """
from densekd.cli.app import call
data = ["data.train_count=2", "data.val_count=2", "data.size=[32,32]", "train.epochs=null", "train.steps=1"]
data += ["train.batch_size=2", "runtime.device=cpu", "student.options.encoder_name=tu-lcnet_050"]
assert call(["train", "demo-teacher", *data, "--out", "run"]) == 0
print("done")
"""


@pytest.mark.parametrize(
    "work", [pytest.param(IMPORTS + WORK, marks=pytest.mark.slow), pytest.param(TRAINING, marks=pytest.mark.long)]
)
def test_without_what_windows_lacks(tmp_path, work):
    done = subprocess.run(
        [sys.executable, "-c", LACKING + work], cwd=tmp_path, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.endswith("done\n")


class TestFolders:
    """A folder is flushed where it can be."""

    def test_windows_opens_no_folder(self, monkeypatch, tmp_path):
        def refused(*_):
            raise PermissionError(errno.EACCES, "Permission denied")

        monkeypatch.setattr(files.os, "open", refused)
        with pytest.raises(PermissionError):
            files._sync_folder(tmp_path)
        monkeypatch.setattr(files.os, "name", "nt")
        files._sync_folder(tmp_path)

    @pytest.mark.parametrize("code", [errno.EINVAL, errno.ENOTSUP])
    def test_a_file_system_that_flushes_no_folder(self, monkeypatch, tmp_path, code):
        synced = os.fsync

        def of_files_alone(handle):
            if Path(f"/proc/self/fd/{handle}").resolve().is_dir():
                raise OSError(code, os.strerror(code))
            synced(handle)

        monkeypatch.setattr(files.os, "fsync", of_files_alone)
        files.write_text(tmp_path / "a", "x")
        assert (tmp_path / "a").read_text() == "x"

    def test_another_error_of_the_folder_is_told(self, monkeypatch, tmp_path):
        def broken(_):
            raise OSError(errno.EIO, "Input/output error")

        monkeypatch.setattr(files.os, "fsync", broken)
        with pytest.raises(OSError, match="Input/output"):
            files._sync_folder(tmp_path)
