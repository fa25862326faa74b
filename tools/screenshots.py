"""Pictures of report pages for the docs: light, dark and phone, taken by the Chromium that is installed.

    python tools/screenshots.py [--study FOLDER] [--run FOLDER] [--out docs/images]

Without folders a short demo is run first (two seeds, few images and steps; some minutes). Pictures are PNG, each below
300 kB. Needs playwright and Chromium.
"""

from __future__ import annotations

import argparse
import io
import os
import shutil
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from PIL import Image

from densekd import files
from densekd.report import write_page

ROOT = Path(__file__).resolve().parent.parent
NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
MOST = 300_000
DEMO = ["data.train_count=160", "data.val_count=60", "train.epochs=null", "train.steps=200", "train.evaluate_every=50"]


@dataclass(frozen=True)
class Shot:
    """One picture: its file, the page, the window, and the heading that it begins at (none: the top)."""

    name: str
    page: str
    scheme: str = "light"
    width: int = 1100
    height: int = 1250
    heading: str = ""


SHOTS = (
    Shot("report-study-light", "study"),
    Shot("report-study-dark", "study", scheme="dark"),
    Shot("report-phone", "study", width=390, height=844),
    Shot("report-run-dark", "run", scheme="dark"),
    Shot("report-pictures", "study", heading="pictures", height=760),
    Shot("report-maps", "study", heading="maps", height=1180),
    Shot("report-confusion", "run", heading="confusion", height=760),
    Shot("report-curves", "run", heading="curves", height=900),
)


def demo(folder: Path) -> None:
    """A short demo, so that there is something to show."""
    command = [sys.executable, "-m", "densekd", "demo", *DEMO, "--seeds", "0,1", "--out", str(folder)]
    print(f"running: {' '.join(command[1:])}", flush=True)
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)


def take(pages: dict[str, Path], out: Path, chromium: str) -> None:
    """Open the pages and write the pictures."""
    from playwright.sync_api import sync_playwright

    with sync_playwright() as engine:
        browser = engine.chromium.launch(executable_path=chromium, args=["--no-sandbox"])
        for shot in SHOTS:
            page = browser.new_page(
                viewport={"width": shot.width, "height": shot.height},
                color_scheme="dark" if shot.scheme == "dark" else "light",
                device_scale_factor=1.5 if shot.width < 500 else 1,
            )
            page.goto(pages[shot.page].as_uri())
            if shot.heading:
                page.locator(f"#{shot.heading}").evaluate("one => one.scrollIntoView()")
            data = small(page.screenshot())
            files.write_bytes(out / f"{shot.name}.png", data)
            print(f"{out / shot.name}.png: {len(data):,} bytes", flush=True)
            page.close()
        browser.close()


def small(png: bytes) -> bytes:
    """The picture, with 256 colours where all of them are too many; ends the program where that is too large too."""
    picture = Image.open(io.BytesIO(png)).convert("RGB")
    for tried in (picture, picture.quantize(256, dither=Image.Dither.NONE)):
        stream = io.BytesIO()
        tried.save(stream, "PNG", optimize=True)
        if len(stream.getvalue()) <= MOST:
            return stream.getvalue()
    sys.exit(f"screenshots: a picture of {len(stream.getvalue()):,} bytes; {MOST:,} at most")


def main() -> int:
    """Make the pages, take the pictures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--study", type=Path, help="a finished study; default: a short demo is run")
    parser.add_argument("--run", type=Path, help="a finished run; default channelwise-s0 of the study")
    parser.add_argument("--out", type=Path, default=ROOT / "docs" / "images")
    asked = parser.parse_args()
    chromium = os.environ.get("DENSEKD_CHROMIUM") or next(filter(None, map(shutil.which, NAMES)), None)
    if chromium is None:
        sys.exit("screenshots: no Chromium is installed here (Debian: apt-get install chromium)")
    with tempfile.TemporaryDirectory(prefix="densekd-screenshots-") as name:
        work = Path(name)
        study = asked.study
        if study is None:
            study = work / "demo"
            demo(study)
        run = asked.run or study / "channelwise-s0"
        pages = {
            "study": write_page(study, out=work / "study.html"),
            "run": write_page(run, out=work / "run.html"),
        }
        take(pages, asked.out, chromium)
    return 0


if __name__ == "__main__":
    sys.exit(main())
