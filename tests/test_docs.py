"""README and docs: links lead somewhere, what is printed works, everything public has a page."""

from __future__ import annotations

import re
import shlex
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any, NamedTuple

import pytest
import typer
import yaml

import densekd
from densekd.cli.app import app
from densekd.cli.data import spec_of
from densekd.config import load_recipe, parse_override, read_recipe, shipped_recipes
from densekd.config.recipe import Recipe
from densekd.losses.catalog import METHODS

ROOT = Path(__file__).resolve().parent.parent
DOCS = sorted((ROOT / "docs").rglob("*.md"))
PAGES = [ROOT / name for name in ("README.md", "CHANGELOG.md", "CONTRIBUTING.md")] + DOCS
INDEX = (ROOT / "docs" / "index.md").read_text(encoding="utf-8")

_FENCE = re.compile(r"^(?P<indent> *)```(?P<language>\w*)\n(?P<code>.*?)^ *```$", re.MULTILINE | re.DOTALL)
_LINK = re.compile(r"\]\((?P<target>[^)\s]+)\)")
_PIECE = re.compile(
    r"<!-- run:\n(?P<hidden>.*?)-->"
    r"|<!-- run -->\n```python\n(?P<shown>.*?)^```$"
    r"|<!-- file: (?P<name>\S+) -->\n```python\n(?P<file>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


class Block(NamedTuple):
    """Fenced code on a page."""

    page: str
    line: int
    language: str
    code: str

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def blocks(language: str) -> list[Block]:
    found = []
    for path in PAGES:
        text = path.read_text(encoding="utf-8")
        for fence in _FENCE.finditer(text):
            if fence["language"] == language:
                code = re.sub(rf"^{fence['indent']}", "", fence["code"], flags=re.MULTILINE)
                found.append(Block(name_of(path), text[: fence.start()].count("\n") + 1, language, code))
    return found


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", _FENCE.sub("", text))


def anchors(text: str) -> set[str]:
    """Anchors of a page's headings, as the usual renderers make them."""
    titles = re.findall(r"^#+ (.*)$", _FENCE.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


def broken(page: Path, text: str) -> Iterator[str]:
    for link in _LINK.finditer(without_code(text)):
        target, _, anchor = link["target"].partition("#")
        if ":" in target:
            continue
        path = page if not target else (page.parent / target).resolve()
        if not path.exists():
            yield f"{link['target']}: no such file"
        elif anchor and anchor not in anchors(path.read_text(encoding="utf-8")):
            yield f"{link['target']}: no such heading"


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_links_resolve(page: Path) -> None:
    assert list(broken(page, page.read_text(encoding="utf-8"))) == []


def test_a_broken_link_is_found() -> None:
    text = "[a](nowhere.md) [b](index.md#no-such) [c](index.md#words) `[d](code.md)` [e](https://example.org/x)"
    found = list(broken(ROOT / "docs" / "page.md", text))
    assert found == ["nowhere.md: no such file", "index.md#no-such: no such heading"]


def test_every_page_is_in_the_index() -> None:
    linked = {link["target"].partition("#")[0] for link in _LINK.finditer(INDEX)}
    assert {str(path.relative_to(ROOT / "docs")) for path in DOCS} - {"index.md"} <= linked


def row_of(name: str) -> str:
    """The page that the index names for something."""
    rows = [line for line in INDEX.splitlines() if line.startswith(f"| `{name}` |")]
    assert len(rows) == 1, f"docs/index.md has {len(rows)} rows for {name}"
    link = _LINK.search(rows[0])
    assert link is not None, f"docs/index.md links no page for {name}"
    return link["target"]


@pytest.mark.parametrize("name", [name for name in densekd.__all__ if not name.startswith("_")])
def test_every_public_name_has_a_page(name: str) -> None:
    page = ROOT / "docs" / row_of(f"densekd.{name}")
    assert re.search(rf"\b{name}\b", page.read_text(encoding="utf-8")), f"{page} does not mention {name}"


@pytest.mark.parametrize("method", [*METHODS, "none"])
def test_every_method_has_a_page(method: str) -> None:
    page = row_of(method)
    if method == "none":
        return
    assert page == f"losses/{method}.md"
    text = (ROOT / "docs" / page).read_text(encoding="utf-8")
    assert METHODS[method].__name__ in text
    assert method in text


def test_every_recipe_and_command_is_described() -> None:
    recipes = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
    alone = [name for name in shipped_recipes() if "/" not in name]  # the others: test_benchmark_recipes.py
    assert [name for name in alone if f"`{name}`" not in recipes] == []
    page = (ROOT / "docs" / "commands.md").read_text(encoding="utf-8")
    names = list(command_line().commands)
    assert [name for name in names if f"| `{name} " not in page and f"| `{name}`" not in page] == []


def printed_commands() -> list[tuple[str, str]]:
    """(where, command) for every densekd command in the pages' shell blocks."""
    found = []
    for block in blocks("bash"):
        for offset, line in enumerate(block.code.splitlines()):
            if line.startswith("densekd "):
                found.append((f"{block.page}:{block.line + 1 + offset}", line))
    return found


@cache
def command_line() -> Any:
    return typer.main.get_command(app)


@cache
def shipped(name: str) -> dict[str, Any]:
    return read_recipe(name)


@pytest.mark.parametrize(("where", "line"), printed_commands())
def test_printed_commands_are_understood(where: str, line: str) -> None:
    words = shlex.split(line.partition(" > ")[0], comments=True)[1:]
    command = command_line()
    if words in (["--help"], ["--version"]):
        return
    name = "densekd"
    while hasattr(command, "commands"):
        assert words[0] in command.commands, f"{where}: no command {words[0]!r}"
        name, command = words[0], command.commands[words[0]]
        words = words[1:]
    context = command.make_context(name, list(words))  # refuses unknown options and missing arguments
    if "keys" in context.params:
        spec_of(context.params["what"], context.params["keys"])
        return
    recipe = context.params.get("recipe")
    base = recipe if recipe in shipped_recipes() else {"demo": "demo"}.get(name, "folder")
    overrides = dict(parse_override(text) for text in context.params.get("overrides") or [])
    load_recipe(shipped(base), overrides)  # refuses unknown keys and values that cannot be


def yaml_blocks() -> list[Block]:
    """YAML of recipes or of whole parts of them; indented fragments are left out."""
    found = []
    for block in blocks("yaml"):
        value = None if block.code.startswith(" ") else yaml.safe_load(block.code)
        if isinstance(value, dict) and set(value) <= set(Recipe.model_fields):
            found.append(block)
    return found


@pytest.mark.parametrize("block", yaml_blocks(), ids=str)
def test_yaml_is_a_recipe_or_part_of_one(block: Block) -> None:
    load_recipe({**shipped("folder"), **yaml.safe_load(block.code)})


@pytest.mark.parametrize(
    "line",
    [
        "densekd distil x",
        "densekd train folder --sead 1",
        "densekd train folder data.rot=x",
        "densekd data check voc data.rot=x",
    ],
)
def test_a_wrong_command_is_found(line: str) -> None:
    with pytest.raises(BaseException, match=r"no command|--sead|data\.rot"):
        test_printed_commands_are_understood("here", line)


def test_there_is_something_to_check() -> None:
    assert len(printed_commands()) > 20
    assert len(yaml_blocks()) > 3
    assert {name_of(page) for page in runnable()} >= {"README.md", "docs/runs.md", "docs/integrations.md"}


def runnable() -> list[Path]:
    return [page for page in PAGES if _PIECE.search(page.read_text(encoding="utf-8"))]


def test_no_run_mark_is_lost() -> None:
    for page in [*DOCS, ROOT / "README.md"]:
        text = page.read_text(encoding="utf-8")
        marks = len(re.findall(r"^<!-- (?:run|file)\b", text, re.MULTILINE))
        assert marks == len(list(_PIECE.finditer(text))), f"{page}: a run or file mark without a python block"


@pytest.mark.slow
@pytest.mark.parametrize("page", runnable(), ids=name_of)
def test_python_runs(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    text = page.read_text(encoding="utf-8")
    space: dict[str, object] = {"__name__": "__docs__"}
    for piece in _PIECE.finditer(text):
        line = text[: piece.start()].count("\n") + 1
        if piece["name"]:
            (tmp_path / piece["name"]).write_text(piece["file"], encoding="utf-8")
            continue
        code = piece["hidden"] or piece["shown"]
        exec(compile(code, f"{name_of(page)}, block at line {line}", "exec"), space)
