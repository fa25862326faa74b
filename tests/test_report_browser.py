"""Pages in a real browser: nothing is fetched, nothing fails, tables sort, phone, dark and paper work."""

from __future__ import annotations

from pathlib import Path

import pytest

from browserkit import browser as browser
from browserkit import lightness, showing
from densekd import files
from densekd.records import ConfusionRecord, Counts
from densekd.report import write_page, write_report, write_study_report
from reportkit import CLOSING, HOSTILE, keep_run, map_files, method, picture_files, run_record, study_record

pytestmark = pytest.mark.slow


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
    files.write_folder(run / "looks", {**picture_files(2), **map_files()})
    failed = keep_run(root / "failed", run_record(None, status="failed", error="a" * 400))
    folder = root / "study"
    for name in ("none", "channelwise"):
        keep_run(folder / f"{name}-s0", run_record(0.4, method=name))
    files.write_folder(folder / "channelwise-s0" / "looks" / "beside", {**picture_files(1), **map_files()})
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
    with showing(browser, ("file:", "data:")) as show:
        yield lambda kind, **options: show(pages[kind], **options)


KINDS = ("many", "run", "failed", "study", "runs")


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_both_colour_schemes(opened, kind, scheme):
    page = opened(kind, color_scheme=scheme)
    paper, ink = lightness(page)  # far apart, and the right way round
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
    heads.nth(gains).locator("button").click()
    told = table.locator(f"tbody tr > :nth-child({gains + 1})").all_inner_texts()
    assert told == ["\u22120.5", "+3.5", "\u2013", "\u2013"]  # there too; numbers are compared, not their words
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


SECTION = "section[aria-labelledby={}]"


def pictures_of(page, section):
    """Pictures of a section with their places on the page, alternative texts and captions."""
    return page.evaluate(
        """id => [...document.querySelectorAll(`section[aria-labelledby=${id}] figure`)].map(one => {
            const image = one.querySelector("img"), caption = one.querySelector("figcaption")
            const box = image.getBoundingClientRect()
            return {
                natural: image.naturalWidth, width: box.width, height: box.height, left: box.left, right: box.right,
                bottom: box.bottom, below: caption.getBoundingClientRect().top, alt: image.alt,
                caption: caption.innerText,
            }
        })""",
        section,
    )


@pytest.mark.parametrize("kind", ["run", "study"])
def test_no_letter_of_a_drawing_lies_outside_of_it(opened, kind):
    page = opened(kind)
    outside = page.evaluate(
        """() => [...document.querySelectorAll(".chart svg")].flatMap(svg => {
            const all = svg.getBoundingClientRect()
            return [...svg.querySelectorAll("text")].filter(one => {
                const box = one.getBoundingClientRect()
                return box.left < all.left - 1 || box.right > all.right + 1 || box.top < all.top - 1 ||
                    box.bottom > all.bottom + 1
            }).map(one => one.textContent)
        })"""
    )
    assert outside == []


def test_kept_pictures_are_shown(opened):
    page = opened("run")
    shown = pictures_of(page, "pictures")
    assert len(shown) == 2 * 8  # image and truth, answer and errors of three networks
    assert all(one["natural"] == 256 for one in shown)
    assert sum(one["alt"].startswith("Errors of ") for one in shown) == 2 * 3
    # What has no label: stripes of the page in the legend, of the picture in the maps.
    swatch = page.locator(f"{SECTION.format('pictures')} i").last
    assert swatch.evaluate("one => getComputedStyle(one).backgroundImage").startswith("repeating-linear-gradient(")


@pytest.mark.parametrize("kind", ["run", "study"])
@pytest.mark.parametrize("scheme", ["light", "dark"])
@pytest.mark.parametrize("width", [1280, 390])
def test_softened_maps_are_shown(opened, kind, scheme, width):
    page = opened(kind, width=width, color_scheme=scheme)
    shown = pictures_of(page, "maps")
    assert len(shown) == 2 * 2 * 4  # terms, channels; image, teacher, before, after
    for place, one in enumerate(shown):
        assert one["natural"] == 256
        assert one["height"] == pytest.approx(one["width"] * 0.75, abs=1)
        assert 100 < one["width"] <= 256
        assert 0 <= one["left"] < one["right"] <= width
        titles = ("image", "teacher: entropy", "student before training: entropy", "student after training: entropy")
        assert one["caption"].startswith(titles[place % 4])
        assert (", KL " in one["caption"]) == (place % 4 > 1)
        assert one["below"] >= one["bottom"]
    assert all(one["alt"].startswith("Image " if place % 4 == 0 else "Where ") for place, one in enumerate(shown))
    assert all(": brightest " in one["alt"] for place, one in enumerate(shown) if place % 4)
    section = page.locator(SECTION.format("maps"))
    heads = section.locator("h3").all_inner_texts()
    assert [head.split(" (")[0] for head in heads] == ["channelwise:logits", "pixelwise:logits"]
    told = section.inner_text()
    assert "at temperature 4, as the term itself does" in told
    assert "pixelwise does not soften over positions" in told
    assert "nearer to the teacher" in told
    # The scale below each row of maps is a drawn bar, and letters are seen on the page's ground.
    bars = section.locator("p span[style*=gradient]")
    assert bars.count() == 4
    assert all(bars.nth(place).bounding_box()["width"] > 60 for place in range(4))
    ground, _ = lightness(page)
    soft = section.locator("figcaption").first.evaluate("one => getComputedStyle(one).color")
    assert abs(sum(map(int, soft[4:-1].split(","))) / 3 - ground) > 70


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
    files.write_folder(run / "looks", {**picture_files(24, (480, 480)), **map_files()})
    assert write_report(run).stat().st_size < 10_000_000
