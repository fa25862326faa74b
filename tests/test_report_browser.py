"""Pages in a real browser: nothing is fetched, nothing fails, tables sort, phone, dark and paper work."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import pytest

from densekd.records import ConfusionRecord, Counts
from densekd.report import write_page, write_report, write_study_report
from reportkit import CLOSING, HOSTILE, keep_pictures, keep_run, method, run_record, study_record

pytestmark = pytest.mark.slow
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")


@pytest.fixture(scope="module")
def browser():
    where = os.environ.get("DENSEKD_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if where is None:
        pytest.skip("no Chromium is installed here: pages were not opened in a browser (apt-get install chromium)")
    library = pytest.importorskip("playwright.sync_api", reason="playwright is not installed")
    with library.sync_playwright() as engine:
        opened = engine.chromium.launch(executable_path=where, args=["--no-sandbox"])
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def pages(tmp_path_factory) -> dict[str, Path]:
    """A page of each kind, with many classes, hostile names and a failed run among them."""
    root = tmp_path_factory.mktemp("pages")
    names = (*(f"class {number}" for number in range(149)), HOSTILE)
    many = keep_run(root / "many <img onerror>", run_record(0.4, names, warnings=[CLOSING]))
    counts = Counts(step=7, matrix=[[9 if i == j else int(j == 3) for j in range(150)] for i in range(150)])
    kept = ConfusionRecord(split="val", classes=list(names), final=counts, best=counts)
    (many / "confusion.json").write_text(kept.model_dump_json(by_alias=True))
    run = keep_run(root / "run", run_record(0.45, preflight={"terms": {"terms": [{"name": "t" * 90}]}}))
    keep_pictures(run, 2)
    failed = keep_run(root / "failed", run_record(None, status="failed", error="a" * 400))
    folder = root / "study"
    for name in ("none", "channelwise"):
        keep_run(folder / f"{name}-s0", run_record(0.4, method=name))
    record = study_record(
        method("none", [0.40, 0.42]),
        method("channelwise", [0.43, 0.46], (0.035, 0.03, 0.04)),
        method("x" * 60, [0.41, 0.40], (-0.005, -0.02, 0.01)),
    )
    return {
        "many": write_report(many),
        "run": write_report(run),
        "failed": write_report(failed),
        "study": write_study_report(folder, record),
        "runs": write_page(many, run, out=root / "runs.html"),
    }


@pytest.fixture
def opened(browser, pages):
    """Opens a page; at the end, nothing may have been fetched, logged or thrown."""
    contexts, found = [], []

    def show(kind: str, width: int = 1280, **options):
        context = browser.new_context(viewport={"width": width, "height": 900}, **options)
        contexts.append(context)
        page = context.new_page()
        page.on("console", lambda message: found.append(message.text))
        page.on("pageerror", lambda error: found.append(str(error)))
        page.on("dialog", lambda dialog: (found.append(dialog.message), dialog.dismiss()))
        page.on(
            "request",
            lambda asked: None if asked.url.startswith(("file:", "data:")) else found.append(asked.url),
        )
        page.goto(pages[kind].as_uri())
        return page

    yield show
    for context in contexts:
        context.close()
    assert found == []


KINDS = ("many", "run", "failed", "study", "runs")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_colour_schemes(opened, kind, scheme):
    page = opened(kind, color_scheme=scheme)
    colors = page.evaluate("(([b, s]) => [b.backgroundColor, b.color])([getComputedStyle(document.body)])")
    # The lightness of paper and ink, from 0 to 255: far apart, and the right way round.
    paper, ink = (sum(map(int, color[4:-1].split(","))) / 3 for color in colors)
    assert abs(paper - ink) > 150
    assert (paper > ink) == (scheme == "light")
    drawn = page.evaluate(
        "[...document.querySelectorAll('.chart svg text')].map(one => getComputedStyle(one).fill)"
        ".filter(color => color === 'rgb(0, 0, 0)' || color === 'none')"
    )
    assert drawn == []


@pytest.mark.parametrize("kind", KINDS)
def test_a_phone_scrolls_down_only(opened, kind):
    page = opened(kind, width=390)
    assert page.evaluate("document.documentElement.scrollWidth") <= 390


def test_only_the_file_itself_is_read(browser, pages):
    page = browser.new_page()
    asked = []
    page.on("request", lambda request: asked.append(request.url))
    page.goto(pages["many"].as_uri())
    page.wait_for_load_state("networkidle")
    page.close()
    assert [url for url in asked if not url.startswith("data:")] == [pages["many"].as_uri()]


def test_the_policy_keeps_markup_that_slipped_in_from_acting(browser, pages, tmp_path):
    text = pages["run"].read_text("utf-8")
    bad = "<script>document.title='taken'</script><img src=x onerror=\"document.title='taken'\">"
    path = tmp_path / "bad.html"
    path.write_text(text.replace("</main>", f"{bad}</main>"), encoding="utf-8")
    page = browser.new_page()
    page.goto(path.as_uri())
    assert page.title() == "run"
    page.close()


def test_tables_sort_by_mouse_and_by_keyboard(opened):
    page = opened("study")
    table = page.locator("table.sortable").first
    heads = table.locator("thead th")
    place = heads.all_inner_texts().index("mIoU")

    def column() -> list[str]:
        return table.locator(f"tbody tr > :nth-child({place + 1})").all_inner_texts()

    before = column()
    heads.nth(place).locator("button").click()
    assert heads.nth(place).get_attribute("aria-sort") == "descending"
    assert column() == ["70.0", "44.5 ± 1.0", "41.0 ± 1.0", "40.5 ± 1.0"]
    heads.nth(place).locator("button").focus()
    page.keyboard.press("Enter")
    assert heads.nth(place).get_attribute("aria-sort") == "ascending"
    assert column() == ["40.5 ± 1.0", "41.0 ± 1.0", "44.5 ± 1.0", "70.0"]
    assert sorted(before) == sorted(column())
    gains = heads.all_inner_texts().index("gain")
    heads.nth(gains).locator("button").click()
    assert heads.nth(place).get_attribute("aria-sort") == "none"
    told = table.locator(f"tbody tr > :nth-child({gains + 1})").all_inner_texts()
    assert told == ["+3.5", "\u22120.5", "\u2013", "\u2013"]  # those without a number at the end
    heads.first.locator("button").click()
    assert table.locator("tbody th").all_inner_texts()[0] == "channelwise"


@pytest.mark.parametrize("kind", KINDS)
def test_pictures_have_a_size_and_words(opened, kind):
    page = opened(kind)
    assert page.evaluate("[...document.images].filter(one => !one.alt || !one.width || !one.height).length") == 0
    assert (
        page.evaluate("[...document.querySelectorAll('svg')].filter(one => !one.getAttribute('aria-label')).length")
        == 0
    )
    assert page.evaluate("[...document.querySelectorAll('svg')].filter(one => !one.clientHeight).length") == 0
    assert page.evaluate(
        "(found => found.length - new Set(found).size)([...document.querySelectorAll('[id]')].map(one => one.id))"
    ) == 0  # fmt: skip


def test_kept_pictures_are_shown(opened):
    page = opened("run")
    shown = page.evaluate("[...document.images].map(one => one.naturalWidth)")
    assert len(shown) == 2 * 8  # image and truth, answer and errors of three networks
    assert all(width == 256 for width in shown)
    alts = page.evaluate("[...document.images].map(one => one.alt)")
    assert sum(alt.startswith("Errors of ") for alt in alts) == 2 * 3


@pytest.mark.parametrize("kind", ["many", "study"])
def test_paper(opened, kind):
    page = opened(kind, color_scheme="dark")
    page.emulate_media(media="print", color_scheme="dark")
    assert page.evaluate("getComputedStyle(document.body).backgroundColor") == "rgb(255, 255, 255)"
    assert page.locator("nav").is_hidden()
    assert page.pdf(format="A4").startswith(b"%PDF")


def test_the_page_is_small(pages):
    assert all(path.stat().st_size < 1_000_000 for path in pages.values())


@pytest.mark.long
def test_the_most_pictures_of_what_compresses_worst(tmp_path):
    run = keep_run(tmp_path / "run", run_record(0.45), logged=False)
    keep_pictures(run, 24, (480, 480))
    assert write_report(run).stat().st_size < 10_000_000
