"""The command, called in the process of the tests."""

from __future__ import annotations

import os
import signal
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from densekd.cli import main as entry


@pytest.fixture
def densekd(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> Callable[..., tuple[int, str, str]]:
    """Run a command in an empty folder: exit code, stdout, stderr. Handlers of signals are afterwards as before."""
    monkeypatch.chdir(tmp_path)

    def call(*arguments: object) -> tuple[int, str, str]:
        handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
        monkeypatch.delenv("DENSEKD_DEBUG", raising=False)
        monkeypatch.setattr(sys, "argv", ["densekd", *map(str, arguments)])
        code = 0
        try:
            entry.main()
        except SystemExit as stop:
            code = int(stop.code or 0)
        finally:
            for number, handler in handlers.items():
                signal.signal(number, handler)
            os.environ.pop("DENSEKD_DEBUG", None)
        out, err = capsys.readouterr()
        return code, out, err

    return call
