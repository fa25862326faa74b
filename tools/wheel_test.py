"""The wheel in a clean environment: built, installed with the pinned versions and no extras, and used.

    python tools/wheel_test.py

Everything happens in a temporary folder, outside the repository. Needs `uv` on the path.
"""

from __future__ import annotations

import sys
import tempfile
import time
import zipfile
from pathlib import Path

from installing import ROOT, CommandError, build_wheel, command, programs, wheel_in

_RECIPES = ROOT / "src" / "densekd" / "recipes"
_PAGES = ROOT / "src" / "densekd" / "report" / "templates"
TEMPLATES = {path.relative_to(ROOT / "src").as_posix() for path in _PAGES.iterdir()}
RECIPES = {path.relative_to(_RECIPES).as_posix() for path in _RECIPES.rglob("*.yaml")}

TINY = [
    "demo-teacher",
    "data.train_count=4",
    "data.val_count=2",
    "data.size=[32,32]",
    "student.options.encoder_name=mobilenet_v2",
    "train.epochs=null",
    "train.steps=2",
    "train.batch_size=2",
    "runtime.device=cpu",
    "runtime.threads=1",
]

# What the base dependencies must be enough for; transformers belongs to the extra `hf`.
IMPORTS = """
import importlib.util
from importlib import resources
import densekd
for name in densekd.__all__:
    getattr(densekd, name)
assert importlib.util.find_spec("transformers") is None, "transformers came without the extra hf"
assert "site-packages" in densekd.__file__, densekd.__file__
assert resources.files("densekd").joinpath("py.typed").is_file(), "py.typed is missing"
network = densekd.Run.load("run").student()
print(type(network).__name__, "loaded from run/")
"""


def step(*parts: str | Path, cwd: Path) -> str:
    """Run one command; what it printed. Ends the test with that if it fails."""
    began, failed, said = time.monotonic(), None, ""
    try:
        said = command(*parts, cwd=cwd)
    except CommandError as error:
        failed = error
    shown = " ".join(Path(part).name if i == 0 else str(part) for i, part in enumerate(parts) if part != IMPORTS)
    print(f"{time.monotonic() - began:6.1f} s  {shown[:100]}", flush=True)
    if failed is not None:
        sys.exit(f"wheel test: exit code {failed.code}\n{failed.said}")
    return said


def expect(what: str, holds: bool, found: object) -> None:
    """End the test where `holds` is false."""
    if not holds:
        sys.exit(f"wheel test: {what}; found:\n{found}")


def check_content(wheel: Path) -> None:
    """The wheel holds the recipes, the templates of pages and py.typed, and nothing beside the package."""
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
    needed = {f"densekd/recipes/{name}" for name in RECIPES} | TEMPLATES | {"densekd/py.typed"}
    expect("recipes, templates and py.typed belong into the wheel", needed <= names, sorted(needed - names))
    tops = {name.partition("/")[0] for name in names}
    strange = {top for top in tops if top != "densekd" and not top.endswith(".dist-info")}
    expect("the wheel holds more than the package", not strange, strange)


def main() -> int:
    """Build, install, use."""
    with tempfile.TemporaryDirectory(prefix="densekd-wheel-") as name:
        work = Path(name)
        step(*build_wheel(work), cwd=work)
        wheel = wheel_in(work)
        check_content(wheel)
        step("uv", "venv", "-q", "--python", sys.executable, work / "venv", cwd=work)
        folder = programs(work / "venv")
        python, densekd = folder / "python", folder / "densekd"
        pins = ROOT / "requirements.txt"
        step("uv", "pip", "install", "-q", "--python", python, "-c", pins, wheel, cwd=work)

        version = step(densekd, "--version", cwd=work).strip()
        expect("--version names the wheel's", version == f"densekd {wheel.name.split('-')[1]}", version)
        expect("--help lists commands", "distill" in (said := step(densekd, "--help", cwd=work)), said)
        said = step(densekd, "list", "recipes", cwd=work)
        listed = {line.partition("\t")[0] for line in said.splitlines()[1:]}
        expect("every recipe is listed", listed == {recipe.removesuffix(".yaml") for recipe in RECIPES}, said)
        said = step(densekd, "list", "methods", cwd=work)
        expect("channelwise is listed", "channelwise" in said, said)
        step(densekd, "train", *TINY, "--out", "run", cwd=work)
        step(python, "-c", IMPORTS, cwd=work)
        said = step(densekd, "report", "run", "--out", "page.html", cwd=work)
        expect("a page of the run", "</html>" in (work / "page.html").read_text(encoding="utf-8"), said)
    print("wheel test: passed")
    return 0


if __name__ == "__main__":
    sys.exit(main())
