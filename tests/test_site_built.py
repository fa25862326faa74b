"""The documentation, built: nothing is fetched, names lead to each other, pages work in a real browser from disk."""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from browserkit import browser as browser
from browserkit import lightness, showing

pytestmark = pytest.mark.slow
ROOT = Path(__file__).resolve().parent.parent


@pytest.fixture(scope="session")
def site(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The site, built once for all processes of this test run."""
    pytest.importorskip("mkdocs", reason='mkdocs is not installed: pip install "densekd[docs]"')
    pytest.importorskip("mkdocstrings", reason='mkdocstrings is not installed: pip install "densekd[docs]"')
    base = tmp_path_factory.getbasetemp()
    folder = (base.parent if "PYTEST_XDIST_WORKER" in os.environ else base) / "site"
    with folder.with_suffix(".lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not (folder / "sitemap.xml").exists():
            command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(folder)]
            done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
            assert done.returncode == 0, done.stderr[-3000:]
    return folder


def test_the_site_builds_and_fetches_nothing(site: Path) -> None:
    pages = sorted(site.rglob("*.html"))
    assert len(pages) > 60
    for page in pages:
        text = page.read_text(encoding="utf-8")
        fetched = re.findall(r"<(?:script|img|iframe|source)\b[^>]*\bsrc=\"?(https?:)?//[^\">]+", text)
        styles = re.findall(r"<link\b(?=[^>]*(?:stylesheet|preconnect|icon))[^>]*\bhref=\"?https?://[^\">]+", text)
        assert [*fetched, *styles] == [], page
        prose = re.sub(r"<(code|pre)\b.*?</\1>", "", text, flags=re.DOTALL)
        assert (
            re.search(r"<!-- (?:record|/record|table|run|file)|&lt;!--|\]\[densekd|^::: ", prose, re.MULTILINE) is None
        ), page


def test_names_of_the_api_lead_to_each_other(site: Path) -> None:
    text = (site / "api" / "distiller.html").read_text(encoding="utf-8")
    assert 'id="densekd.Distiller"' in text
    assert 'href="teacher.html#densekd.TeacherSource"' in text
    assert 'href="errors.html#densekd.errors.TapError"' in text
    guide = (site / "losses" / "channelwise.html").read_text(encoding="utf-8")
    assert 'href="../api/functional.html#densekd.functional.channelwise_mse"' in guide
    text = (site / "api" / "functional.html").read_text(encoding="utf-8")
    assert 'href="errors.html#densekd.errors.ShapeError"' in text  # its module does not import the error
    assert "<blockquote>" not in text
    assert text.count("&gt;&gt;&gt;") >= 17


@pytest.fixture
def opened(browser: Any, site: Path) -> Iterator[Callable[..., Any]]:
    """Opens a page of the site from disk; at the end, nothing may have left the folder, failed or been thrown."""
    with showing(browser, (site.as_uri(), "data:", "blob:", "about:"), logged=("error",)) as show:
        yield lambda page, **options: show(site / page, **options)


PAGES = ("index.html", "results.html", "commands.html", "api/functional.html", "repository/CHANGELOG.html")


@pytest.mark.parametrize("name", PAGES)
def test_pages_fit_a_phone(opened: Callable[..., Any], name: str) -> None:
    page = opened(name, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390
    unseen = page.evaluate("[...document.images].filter(i => !(i.naturalWidth && i.alt !== null)).map(i => i.src)")
    assert unseen == []
    # a table that is wider than the screen scrolls by itself
    assert page.evaluate(
        """() => [...document.querySelectorAll("article table")].every(table => {
            if (table.getBoundingClientRect().right <= innerWidth) return true
            for (let box = table; box; box = box.parentElement)
                if (["auto", "scroll"].includes(getComputedStyle(box).overflowX)) return true
            return false
        })"""
    )


def test_both_colour_schemes(opened: Callable[..., Any]) -> None:
    light, dark = (lightness(opened("index.html", color_scheme=scheme))[0] for scheme in ("light", "dark"))
    assert light > 200 > 66 > dark


def test_search_works_from_disk(opened: Callable[..., Any]) -> None:
    page = opened("index.html")
    page.click("input.md-search__input")
    page.keyboard.type("channelwise_kl")
    page.wait_for_selector(".md-search-result__item a")
    links = page.evaluate("[...document.querySelectorAll('.md-search-result__item a')].map(a => a.href)")
    assert any("api/functional.html" in link for link in links)
    assert any("losses/channelwise.html" in link for link in links)
