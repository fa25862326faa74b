"""Files of the repository outside docs/ that pages link to, and where the site has them.

A page keeps its name in docs/. Anything else is at `repository/<its path>`: Markdown as it is, text as a page with
the code on it, a folder as a list of what it holds. Only what is linked comes, and what that links in turn.
"""

from __future__ import annotations

import posixpath
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path

from site_markdown import heading, targets

PREFIX = "repository/"
_LANGUAGES = {".py": "python", ".yaml": "yaml", ".yml": "yaml", ".toml": "toml", ".sh": "bash", ".txt": "text"}
_AS_THEY_ARE = {".json", ".csv", ".png", ".svg", ".jpg", ".webp"}


def outside(target: str) -> bool:
    """Whether a link leads to another site, or to another place on its own page.

    Args:
        target: of a link.
    """
    return target.startswith("#") or ":" in target.partition("/")[0]


@dataclass
class Repository:
    """What of the repository the site shows.

    Args:
        root: the repository.
        seeds: paths that come without being linked: the navigation names them.
    """

    root: Path
    seeds: tuple[str, ...] = ()
    shown: dict[str, str] = field(default_factory=dict)

    def uri(self, path: str) -> str:
        """Where the site has a file or folder of the repository, as a source page names it.

        Args:
            path: in the repository, with slashes.
        """
        if path.startswith("docs/"):
            return path.removeprefix("docs/")
        if (self.root / path).is_dir():
            return f"{PREFIX}{path}/index.md"
        suffix = posixpath.splitext(path)[1]
        return PREFIX + (path if suffix in _AS_THEY_ARE | {".md"} else f"{path}.md")

    def path(self, uri: str) -> str:
        """The path in the repository of a source page of the site.

        Args:
            uri: of the page.
        """
        return self.shown.get(uri, f"docs/{uri}")

    def linked(self, uri: str, target: str) -> str:
        """A link on a page, as it has to stand on the site.

        Args:
            uri: of the page.
            target: as it stands in the repository.
        """
        found = self.target(uri, target)
        if found is None:
            return target  # another site, or nowhere: then the builder says so
        _, mark, anchor = target.partition("#")
        return posixpath.relpath(self.uri(found), posixpath.dirname(uri) or ".") + mark + anchor

    def title(self, uri: str, target: str) -> str:
        """The heading of the page that a link leads to; empty where that is no page.

        Args:
            uri: of the page that has the link.
            target: as it stands in the repository.
        """
        found = self.target(uri, target)
        return heading((self.root / found).read_text(encoding="utf-8")) if found and found.endswith(".md") else ""

    def target(self, uri: str, target: str) -> str | None:
        """The path in the repository that a link leads to; None where it leads to another site or nowhere.

        Args:
            uri: of the page that has the link.
            target: as it stands in the repository.
        """
        if outside(target):
            return None
        here = self.path(uri)
        folder = here if (self.root / here).is_dir() else posixpath.dirname(here)
        found = posixpath.normpath(posixpath.join(folder, target.partition("#")[0]))
        return None if found.startswith("..") or not (self.root / found).exists() else found

    def collect(self, pages: Iterable[Path]) -> list[str]:
        """Paths outside docs/ that the site needs: the seeds, what pages link, and what that links in turn.

        Args:
            pages: of docs/.
        """
        waiting = [*self.seeds, *(path for page in pages for path in self._links(page.relative_to(self.root)))]
        found: list[str] = []
        while waiting:
            path = waiting.pop(0)
            if path in found or path.startswith("docs/") or not (self.root / path).exists():
                continue
            found.append(path)
            self.shown[self.uri(path)] = path
            if (self.root / path).is_dir():
                waiting += [f"{path}/{entry.name}" for entry in self._entries(path)]
            elif path.endswith(".md"):
                waiting += self._links(Path(path))
        return found

    def page(self, path: str) -> str | None:
        """The Markdown of a file or folder; None where the file is handed on as it is.

        Args:
            path: in the repository.
        """
        whole = self.root / path
        if whole.is_dir():
            names = [f"* [{entry.name}]({entry.name})" for entry in self._entries(path)]
            return "\n".join([f"# {path}", "", *names, ""])
        if whole.suffix == ".md":
            return whole.read_text(encoding="utf-8")
        if whole.suffix in _AS_THEY_ARE:
            return None
        language = _LANGUAGES.get(whole.suffix, "text")
        return f"# {path}\n\n````{language}\n{whole.read_text(encoding='utf-8').rstrip()}\n````\n"

    def _links(self, page: Path) -> list[str]:
        here = page.parent.as_posix()
        found = targets((self.root / page).read_text(encoding="utf-8"))
        return [posixpath.normpath(posixpath.join(here, t.partition("#")[0])) for t in found if not outside(t)]

    def _entries(self, path: str) -> list[Path]:
        known = {*_LANGUAGES, *_AS_THEY_ARE, ".md"}
        return sorted(entry for entry in (self.root / path).iterdir() if entry.is_file() and entry.suffix in known)
