"""The documentation as a site: what makes of a page in the repository the same page on the site."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
DOCS = ROOT / "docs"


def tool(name: str) -> Any:
    """A module of tools/."""
    sys.path.insert(0, str(ROOT / "tools"))
    try:
        return importlib.import_module(name)
    finally:
        sys.path.remove(str(ROOT / "tools"))


MARKDOWN, Repository = tool("site_markdown"), tool("site_repository").Repository


class Loader(yaml.SafeLoader):
    """Reads `mkdocs.yml`, whose tags name functions of its extensions."""


Loader.add_multi_constructor("tag:yaml.org,2002:python/", lambda loader, suffix, node: suffix)


def settings() -> dict[str, Any]:
    return yaml.load((ROOT / "mkdocs.yml").read_text(encoding="utf-8"), Loader)


def navigated(entry: Any) -> Iterator[str]:
    """The pages of a part of the navigation."""
    if isinstance(entry, str):
        yield entry
    for part in entry.values() if isinstance(entry, dict) else entry if isinstance(entry, list) else ():
        yield from navigated(part)


def test_every_page_is_in_the_navigation_once() -> None:
    pages = list(navigated(settings()["nav"]))
    own = sorted(page for page in pages if not page.startswith("repository/"))
    assert own == sorted(str(path.relative_to(DOCS)) for path in DOCS.rglob("*.md"))
    assert {page for page in pages if page.startswith("repository/")} == {
        "repository/CHANGELOG.md",
        "repository/CONTRIBUTING.md",
    }


def test_every_api_page_is_in_the_table_of_them() -> None:
    linked = MARKDOWN.targets((DOCS / "api" / "index.md").read_text(encoding="utf-8"))
    assert {path.name for path in (DOCS / "api").glob("*.md")} - {"index.md"} <= set(linked)


def test_marks_do_not_show() -> None:
    text = "\n".join(
        [
            "| a | <!-- record: demo.json x .1f -->62.4<!-- /record --> |",
            "<!-- run:",
            "hidden()",
            "-->",
            "<!-- run -->",
            "```python",
            "seen()  # <!-- kept -->",
            "```",
            "<!-- file: net.py -->",
            "```python",
            "x = 1",
            "```",
            "`<!-- in code -->`",
        ]
    )
    made = MARKDOWN.shown(text).split("\n")
    assert made[0] == "| a | 62.4 |"
    assert made[1:4] == ["```python", "seen()  # <!-- kept -->", "```"]
    assert made[4] == '```python title="net.py"'
    assert made[-1] == "`<!-- in code -->`"
    assert "hidden" not in MARKDOWN.shown(text)


def test_lists_keep_what_belongs_to_them() -> None:
    text = "Do:\n1. first\n   goes on\n\n   ```bash\n   x\n   ```\n\n2. second\n\nno more\n   indented\n* a\n  * b"
    assert MARKDOWN.lists(text).split("\n") == [
        "Do:",
        "",
        "1. first",
        "    goes on",
        "",
        "    ```bash",
        "    x",
        "    ```",
        "",
        "2. second",
        "",
        "no more",
        "   indented",
        "",
        "* a",
        "    * b",
    ]
    fenced = "```\n* no list\n  here\n```"
    assert MARKDOWN.lists(fenced) == fenced


def test_links_are_replaced_outside_code() -> None:
    text = "[x](a.md#b) ![y\nz](p.png) `[c](a.md)` [a.md](a.md)\n```\n[d](a.md)\n```\n[docs/a.md](a.md)"
    made = MARKDOWN.relinked(text, lambda target: f"<{target}>", lambda target: "Title" if target == "a.md" else "")
    assert made == ("[x](<a.md#b>) ![y\nz](<p.png>) `[c](a.md)` [Title](<a.md>)\n```\n[d](a.md)\n```\n[Title](<a.md>)")
    assert MARKDOWN.targets(text) == ["a.md#b", "p.png", "a.md", "a.md"]
    assert MARKDOWN.heading("text\n# Models: short names\n# Other") == "Models"


def test_names_of_the_api_become_links_once() -> None:
    known = {"densekd.Term": "densekd.Term", "channelwise_kl": "densekd.functional.channelwise_kl"}
    text = (
        "# `densekd.Term`\n`densekd.Term` `densekd.Term` [`channelwise_kl`](a.md) `x` ``y `channelwise_kl` ``\n"
        "```\n`channelwise_kl`\n```\n`channelwise_kl()`"
    )
    assert MARKDOWN.cross_linked(text, known.get) == (
        "# `densekd.Term`\n[`densekd.Term`][densekd.Term] `densekd.Term` [`channelwise_kl`](a.md) `x` "
        "``y `channelwise_kl` ``\n```\n`channelwise_kl`\n```\n[`channelwise_kl()`][densekd.functional.channelwise_kl]"
    )


@pytest.fixture
def repository(tmp_path: Path) -> Any:
    files = {
        "docs/index.md": "[r](../README.md) [e](../examples/loop.py) [gone](../nowhere.md)",
        "docs/losses/one.md": "[records](../../results#top)",
        "README.md": "[home](docs/index.md) [more](notes/a.md)",
        "notes/a.md": "# A: long\n[back](../README.md)",
        "examples/loop.py": "print()\n",
        "results/a.json": "{}",
        "secret.md": "# never linked",
    }
    for name, text in files.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    return Repository(tmp_path)


def test_what_is_linked_comes_with_the_site(repository: Any) -> None:
    pages = [repository.root / "docs/index.md", repository.root / "docs/losses/one.md"]
    found = repository.collect(pages)
    assert sorted(found) == ["README.md", "examples/loop.py", "notes/a.md", "results", "results/a.json"]
    assert repository.page("results/a.json") is None
    assert repository.page("results") == "# results\n\n* [a.json](a.json)\n"
    assert repository.page("examples/loop.py") == "# examples/loop.py\n\n````python\nprint()\n````\n"


@pytest.mark.parametrize(
    ("uri", "target", "expected"),
    [
        ("index.md", "../README.md", "repository/README.md"),
        ("index.md", "../examples/loop.py", "repository/examples/loop.py.md"),
        ("losses/one.md", "../../results#top", "../repository/results/index.md#top"),
        ("losses/one.md", "../index.md#words", "../index.md#words"),
        ("repository/README.md", "docs/index.md", "../index.md"),
        ("repository/README.md", "notes/a.md", "notes/a.md"),
        ("repository/results/index.md", "a.json", "a.json"),
        ("index.md", "https://example.org/x", "https://example.org/x"),
        ("index.md", "#words", "#words"),
        ("index.md", "../nowhere.md", "../nowhere.md"),  # left to the builder, which refuses it
    ],
)
def test_links_lead_to_the_same_on_the_site(repository: Any, uri: str, target: str, expected: str) -> None:
    repository.collect([repository.root / "docs/index.md", repository.root / "docs/losses/one.md"])
    assert repository.linked(uri, target) == expected


def test_a_link_by_file_name_reads_as_its_title(repository: Any) -> None:
    repository.collect([repository.root / "docs/index.md"])
    assert repository.title("repository/README.md", "notes/a.md") == "A"
    assert repository.title("index.md", "../examples/loop.py") == ""


@pytest.mark.slow
def test_docstrings_become_markdown() -> None:
    pytest.importorskip("griffe", reason="griffe (of mkdocstrings) is not installed")
    docstrings = tool("site_docstrings")
    text = (
        "Sum of a*b, a <b, and (N, *spatial); see `densekd.functional.channelwise_kl`.\n"
        "\n"
        "    L = a * b        dL/dS = b\n"
        "\n"
        "* one\n"
        "* two * three\n"
        "\n"
        "Args:\n"
        "    a, b: any (N, *spatial).\n"
        "        More of it.\n"
        "    *args: the rest.\n"
        "\n"
        "Raises:\n"
        "    ShapeError, DtypeError: both.\n"
        "\n"
        ">>> 2 * 3\n"
        "6"
    )
    apart = docstrings.entries(text)
    assert "    a: any (N, *spatial).\n        More of it.\n    b: any (N, *spatial).\n        More of it.\n" in apart
    assert docstrings.raised(apart) == ["ShapeError", "DtypeError"]
    assert docstrings.meant("densekd.train") == "densekd.train"
    assert docstrings.meant("FeatureMimic") == "densekd.losses.FeatureMimic"
    assert [docstrings.meant(word) for word in ("train", "Report", "no_such_name")] == [None, None, None]
    made = docstrings.marked_up(apart).split("\n")
    assert made[0] == (
        r"Sum of a\*b, a &lt;b, and (N, \*spatial); see "
        "[`densekd.functional.channelwise_kl`][densekd.functional.channelwise_kl]."
    )
    assert made[2:4] == ["    L = a * b", "    dL/dS = b"]
    assert made[5:7] == ["* one", r"* two \* three"]
    assert r"    a: any (N, \*spatial)." in made
    assert "    *args: the rest." in made
    assert made[-4:] == ["```pycon", ">>> 2 * 3", "6", "```"]
