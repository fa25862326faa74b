"""The Chromium that is installed, and pages opened in it that may fetch, log and throw nothing."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    """Chromium; without one the test skips, and says so."""
    where = os.environ.get("DENSEKD_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if where is None:
        pytest.skip("no Chromium is installed here: nothing was opened in a browser (apt-get install chromium)")
    library = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with library.sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=where, args=["--no-sandbox"])
        yield opened
        opened.close()


@contextmanager
def showing(browser: Any, ours: tuple[str, ...], logged: tuple[str, ...] = ()) -> Iterator[Callable[..., Any]]:
    """Opens pages; at the end, nothing may have been asked for that is not ours, logged or thrown.

    Args:
        ours: beginnings of the addresses that a page may ask for.
        logged: kinds of lines in the console that count; none: all.
    """
    contexts: list[Any] = []
    found: list[str] = []

    def show(path: Path, width: int = 1280, **options: Any) -> Any:
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda line: None if logged and line.type not in logged else found.append(line.text))
        page.on("pageerror", lambda error: found.append(str(error)))
        page.on("dialog", lambda dialog: (found.append(dialog.message), dialog.dismiss()))
        page.on("request", lambda asked: None if asked.url.startswith(ours) else found.append(asked.url))
        page.goto(path.as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert found == []


def lightness(page: Any) -> tuple[float, float]:
    """Of a page's ground and of its letters, from 0 to 255."""
    colors = page.evaluate("(one => [one.backgroundColor, one.color])(getComputedStyle(document.body))")
    ground, ink = (sum(map(int, color[color.index("(") + 1 : -1].split(",")[:3])) / 3 for color in colors)
    return ground, ink
