"""Markdown as the repository's own view reads it, made into what Python-Markdown reads: pure functions of text.

What differs: comments stay in the page that Python-Markdown makes, and a list's further paragraphs must stand four
spaces in. `<!-- file: NAME -->` over a block of code becomes the title of that block.
"""

from __future__ import annotations

import re
from collections.abc import Callable

_CODE = r"^(?P<indent> *)(?P<fence>`{3,}|~{3,}).*?^(?P=indent)(?P=fence) *$|(?P<ticks>`+)(?!`).+?(?<!`)(?P=ticks)(?!`)"
_FILE = re.compile(r"^<!-- file: (?P<name>\S+) -->\n(?P<fence>```\w+)", re.MULTILINE)
_COMMENT = re.compile(rf"{_CODE}|<!--.*?-->(?P<end>\n?)", re.MULTILINE | re.DOTALL)
_LINK = re.compile(
    rf"{_CODE}|(?P<file>(?<!!)\[[\w./-]+\.(?:md|py)(?=\]\())?\]\((?P<target>[^)\s]+)\)", re.MULTILINE | re.DOTALL
)
# headings and what is a link already are left alone
_NAME = re.compile(
    rf"^#[^\n]*|!?\[[^\]]*\]\([^)]*\)|(?<!`)`(?P<name>[\w.]+)(?:\(\))?`(?!`)|{_CODE}", re.MULTILINE | re.DOTALL
)
_ITEM = re.compile(r"(?P<marker>[*+-]|\d+[.)]) +\S")


def shown(text: str) -> str:
    """The page without its comments; code keeps them.

    Args:
        text: Markdown.
    """

    def without(found: re.Match[str]) -> str:
        if not found[0].startswith("<!--"):
            return found[0]
        line_before = found.start() == 0 or found.string[found.start() - 1] == "\n"
        return "" if line_before else found["end"]

    return _COMMENT.sub(without, _FILE.sub(r'\g<fence> title="\g<name>"', text))


def lists(text: str) -> str:
    """The page with what belongs to an item of a list four spaces in, and an empty line above a list.

    Args:
        text: Markdown; an item's further lines stand two spaces in (`*`) or three (`1.`), or four already.
    """
    made: list[str] = []
    width, fence = 0, ""
    for line in text.split("\n"):
        bare = line.lstrip()
        item = _ITEM.match(line) if not fence else None
        if item is not None:
            if made and made[-1].strip() and not width:
                made.append("")
            width = len(item["marker"]) + 1
        elif width and not fence and bare and not line.startswith("  ") and made and not made[-1].strip():
            width = 0
        if bare.startswith(("```", "~~~")):
            fence = "" if fence == bare[:3] else fence or bare[:3]
        inside = width and item is None and line.startswith(" " * width)
        made.append(" " * (4 - width) + line if inside and width < 4 else line)
    return "\n".join(made)


def relinked(text: str, link: Callable[[str], str], title: Callable[[str], str]) -> str:
    """The page with every target of a link or picture replaced; code is left alone.

    Args:
        text: Markdown.
        link: from the target as it stands to the one to put there.
        title: from the target as it stands to what a link is called whose text is the name of its file; may be empty.
    """

    def replaced(found: re.Match[str]) -> str:
        if not found["target"]:
            return found[0]
        words = found["file"] or ""
        name = title(found["target"]) if words else ""
        return f"{'[' + name if name else words}]({link(found['target'])})"

    return _LINK.sub(replaced, text)


def cross_linked(text: str, documented: Callable[[str], str | None]) -> str:
    """The page with names that the API documents made links, each where it stands first.

    Args:
        text: Markdown.
        documented: from the words of code to the name to link; None: no such name.
    """
    seen: set[str] = set()

    def linked(found: re.Match[str]) -> str:
        name = documented(found["name"]) if found["name"] else None
        if name is None or name in seen:
            return found[0]
        seen.add(name)
        return f"[{found[0]}][{name}]"

    return _NAME.sub(linked, text)


def heading(text: str) -> str:
    """The first heading of a page, up to its colon; empty where it has none.

    Args:
        text: Markdown.
    """
    found = re.search(r"^# (.+)$", text, re.MULTILINE)
    return found[1].partition(":")[0].strip() if found else ""


def targets(text: str) -> list[str]:
    """What the links and pictures of a page point to, code left out.

    Args:
        text: Markdown.
    """
    return [found["target"] for found in _LINK.finditer(text) if found["target"]]
