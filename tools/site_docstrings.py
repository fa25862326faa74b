"""What griffe is told of our docstrings: plain text with `code`, in sections as Google lays them out.

* `*` and `<` stand for themselves; lines that begin with `* ` stay a list, indented lines after an empty one code.
* `name` of something that has an entry on an API page becomes a link to it.
* `>>>` lines become a block of code.
* `a, b: text` in Args, Attributes and Raises becomes an entry for each.
* A field of a record has its text in `Field(description=...)`, a class attribute of a loss in the `#:` lines above it.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import griffe

PAGES = Path(__file__).resolve().parent.parent / "docs" / "api"
_ENTRY = re.compile(r"^    (?P<names>\**\w+(?:, \**\w+)+): ")
# code; the star of a list and those of `*args:` in a section; signs that stand for themselves
_PROSE = re.compile(r"`[^`]+`|^ *\* |^ {4}\*+\w+:|(?P<sign>[*<])", re.MULTILINE)
_MODELS = {"Record", "Spec", "Scores", "NetworkCost"}
_DIRECTIVE = re.compile(r"^::: (?P<name>[\w.]+)$", re.MULTILINE)


@cache
def documented() -> dict[str, str]:
    """Names that stand on the API pages, whole (`densekd.functional.channelwise_kl`) and short, by what they link to.

    A short name is one that cannot be meant otherwise: with a capital or an underscore, and of one thing only.
    """
    whole = [name for page in sorted(PAGES.glob("*.md")) for name in _DIRECTIVE.findall(page.read_text("utf-8"))]
    short = [name.rpartition(".")[2] for name in whole]
    plain = {last: name for last, name in zip(short, whole, strict=True) if short.count(last) == 1}
    names = {last: name for last, name in plain.items() if re.search(r"[A-Z_]", last)}
    return names | {f"densekd.{last}": name for last, name in plain.items()} | {name: name for name in whole}


def meant(name: str) -> str | None:
    """What a page of the guide means by a name in code, if an API page shows it: never a word of other meaning.

    Args:
        name: as it stands on the page.
    """
    sure = name.startswith("densekd.") or re.fullmatch(r"[a-z]+_\w+|[A-Z][a-z]+[A-Z]\w*", name)
    return documented().get(name) if sure else None


def entries(text: str) -> str:
    """The docstring with one name to an entry of Args, Attributes and Raises.

    Args:
        text: without its indentation.
    """
    made: list[str] = []
    for block in _blocks(text):
        found = _ENTRY.match(block[0])
        names = found["names"].split(", ") if found else []
        rest = block[0][found.end() :] if found else ""
        made += [line for name in names for line in (f"    {name}: {rest}", *block[1:])] or block
    return "\n".join(made)


def raised(text: str) -> list[str]:
    """The names of the errors in Raises.

    Args:
        text: without its indentation, one error to an entry.
    """
    section = re.search(r"^Raises:\n((?: .*\n?|\n)+)", text, re.MULTILINE)
    return re.findall(r"^    (\w+): ", section[1], re.MULTILINE) if section else []


def _blocks(text: str) -> Iterator[list[str]]:
    """Lines, those of one entry of a section together."""
    section, block = False, list[str]()
    for line in text.split("\n"):
        if line and not line.startswith(" "):
            section = line in ("Args:", "Attributes:", "Raises:")
        if section and line.startswith("     "):
            block.append(line)
            continue
        if block:
            yield block
        block = [line]
    yield block


def marked_up(text: str, own: str = "") -> str:
    """The docstring as Markdown: examples fenced, signs that stand for themselves escaped, known names linked.

    Args:
        text: without its indentation.
        own: the name whose docstring it is, which is not linked.
    """
    made: list[str] = []
    prose: list[str] = []

    def finish() -> None:
        if prose:
            made.append(_prose("\n".join(prose), own))
            prose.clear()

    section, above, example = False, "", False
    for line in text.split("\n"):
        starts = line.startswith(">>>") and not example
        ends = example and not line.strip()
        if line and not line.startswith(" "):
            section = line in ("Args:", "Attributes:", "Raises:", "Returns:")
        code = not section and line.startswith("    ") and (not above.strip() or above.startswith("    "))
        if starts or ends or example or code:
            finish()
            made += ["```pycon", line] if starts else ["```", line] if ends else _formulas(line) if code else [line]
            example = not ends and (starts or example)
        else:
            prose.append(line)
        above = line
    finish()
    return "\n".join([*made, "```"] if example else made)


def _formulas(line: str) -> list[str]:
    """A formula and the gradient that stands beside it, below each other: a page is narrower than a file."""
    return re.sub(r" {6,}(?=dL/)", "\n    ", line).split("\n")


def _prose(text: str, own: str) -> str:
    def settled(found: re.Match[str]) -> str:
        if found["sign"]:
            return {"*": r"\*", "<": "&lt;"}[found["sign"]]
        target = documented().get(" ".join(found[0][1:-1].split()).removesuffix("()"))
        return f"[{found[0]}][{target}]" if target and target != own else found[0]

    return _PROSE.sub(settled, text)


def description(value: Any) -> tuple[str, Any]:
    """The text in `Field(...)` and the default there; nothing and the value itself of anything else.

    Args:
        value: of an attribute, as griffe has it.
    """
    if not (isinstance(value, griffe.ExprCall) and str(value.function) == "Field"):
        return "", value
    named = {a.name: a.value for a in value.arguments if isinstance(a, griffe.ExprKeyword)}
    first = [a for a in value.arguments if not isinstance(a, griffe.ExprKeyword)]
    text = named.get("description")
    default = named.get("default", first[0] if first and str(first[0]) != "..." else None)
    return (ast.literal_eval(str(text)) if text is not None else ""), default


def comment(lines: list[str], lineno: int) -> str:
    """The `#:` lines right above a line, without their signs.

    Args:
        lines: of the file.
        lineno: of the attribute, from 1.
    """
    found: list[str] = []
    while lineno >= 2 and lines[lineno - 2].strip().startswith("#:"):
        found.insert(0, lines[lineno - 2].strip().removeprefix("#:").strip())
        lineno -= 1
    return "\n".join(found)


def fields(model: griffe.Class) -> str:
    """The Attributes of a pydantic model, from its fields; they are members no more.

    Args:
        model: a class whose members are its fields.
    """
    lines = ["Attributes:"]
    for name, field in list(model.members.items()):
        if isinstance(field, griffe.Attribute) and field.annotation and "instance-attribute" in field.labels:
            text, default = description(field.value)
            known = default is not None and "(" not in str(default)
            given = f"Default: `{default}`." if known else "Required." if field.value is None else ""
            lines.append(f"    {name} ({field.annotation}): {'. '.join(filter(None, [text, given])) or 'Optional.'}")
            del model.members[name]
    return "\n".join(lines) if len(lines) > 1 else ""


class Docstrings(griffe.Extension):
    """Called by griffe for everything it has read."""

    def on_object(self, *, obj: griffe.Object, loader: griffe.GriffeLoader, **kwargs: Any) -> None:
        if isinstance(obj, griffe.Class) and {str(base) for base in obj.bases} & _MODELS:
            _say(obj, fields(obj))
        if isinstance(obj, griffe.Attribute) and obj.docstring is None:
            _say(obj, _comment_of(obj))
        if obj.docstring is not None:
            text = entries(obj.docstring.value)
            for error in raised(text):
                if error in documented() and error not in obj.module.members:
                    # known in the module as if it imported it: else its name is no link
                    obj.module.set_member(error, griffe.Alias(error, documented()[error], parent=obj.module))
            obj.docstring.value = marked_up(text, obj.path)


def _say(obj: griffe.Object, text: str) -> None:
    if text and obj.docstring is None:
        obj.docstring = griffe.Docstring(text, parent=obj)
    elif text and obj.docstring is not None:
        obj.docstring.value += f"\n\n{text}"


def _comment_of(attribute: griffe.Attribute) -> str:
    if not attribute.lineno or not isinstance(attribute.filepath, Path):
        return ""
    return comment(attribute.filepath.read_text("utf-8").split("\n"), attribute.lineno)
