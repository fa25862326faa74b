"""What MkDocs calls: files of the repository brought into the site, links and comments of every page settled."""

from __future__ import annotations

from functools import partial
from pathlib import Path
from typing import Any

from mkdocs.config.defaults import MkDocsConfig
from mkdocs.structure.files import File, Files
from site_docstrings import meant
from site_markdown import cross_linked, lists, relinked, shown
from site_repository import Repository

_SEEDS = ("CHANGELOG.md", "CONTRIBUTING.md")
_OF_BUILD: dict[str, Repository] = {}


def on_files(files: Files, *, config: MkDocsConfig) -> Files:
    """Add what pages link to outside docs/."""
    root = Path(config.config_file_path).resolve().parent
    repository = _OF_BUILD["now"] = Repository(root, _SEEDS)
    for path in repository.collect(root / "docs" / file.src_uri for file in files.documentation_pages()):
        text, uri = repository.page(path), repository.uri(path)
        if text is None:
            files.append(File.generated(config, uri, abs_src_path=str(root / path)))
        else:
            files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(text: str, *, page: Any, **_: object) -> str:
    """The page as Python-Markdown has to read it."""
    uri, repository = page.file.src_uri, _OF_BUILD["now"]
    if page.is_homepage:
        page.meta["hide"] = ["navigation"]
    made = relinked(lists(shown(text)), partial(repository.linked, uri), partial(repository.title, uri))
    return made if uri.startswith("api/") else cross_linked(made, meant)
