"""A question on a terminal, and its answers."""

from __future__ import annotations

import io

import pytest

from densekd.cli import asking


class Terminal(io.StringIO):
    def isatty(self):
        return True


@pytest.mark.parametrize(
    ("typed", "answer"), [("y\n", True), ("Yes\n", True), ("n\n", False), ("\n", False), ("", False), ("sure\n", False)]
)
def test_yes_is_y_or_yes_and_nothing_else(monkeypatch, typed, answer):
    shown = Terminal()
    monkeypatch.setattr(asking.sys, "stdin", Terminal(typed))
    monkeypatch.setattr(asking.sys, "stderr", shown)
    assert asking.asked("Build it?") is answer
    assert shown.getvalue() == "Build it? [y/N] "


def test_without_a_terminal_nobody_is_asked(monkeypatch):
    monkeypatch.setattr(asking.sys, "stdin", io.StringIO("y\n"))
    monkeypatch.setattr(asking.sys, "stderr", Terminal())
    assert asking.asked("Build it?") is None


def test_bars_stand_still_meanwhile(monkeypatch):
    seen = []

    class Bars:
        def stop(self):
            seen.append("stop")

        def start(self):
            seen.append("start")

    monkeypatch.setattr(asking.sys, "stdin", Terminal("y\n"))
    monkeypatch.setattr(asking.sys, "stderr", Terminal())
    assert asking.asked("Build it?", Bars()) is True
    assert seen == ["stop", "start"]
