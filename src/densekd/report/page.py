"""The page itself: one HTML file that needs no other, asks no network, and runs nothing but its own few lines."""

from __future__ import annotations

import base64
import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cache
from importlib import resources

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup

from densekd._version import __version__
from densekd.report.headline import Headline
from densekd.report.section import Section

GENERATOR = '<meta name="generator" content="densekd '
"""What every page holds: a file with it may be written anew, any other may not."""


@dataclass(frozen=True)
class Page:
    """What a page shows.

    Attributes:
        kind: of what: "run", "study", "runs side by side".
        title: its name.
        headline: the result in a sentence.
        facts: a few names with values, below it.
        sections: everything else, in order.
        alert: why the run stopped, where it did.
    """

    kind: str
    title: str
    headline: Headline
    facts: Sequence[tuple[str, str]]
    sections: Sequence[Section]
    alert: str = ""


@cache
def environment() -> Environment:
    """The templates of the package; whatever is put into them is escaped."""
    return Environment(
        loader=PackageLoader("densekd.report"), autoescape=True, undefined=StrictUndefined, keep_trailing_newline=False
    )


@cache
def _file(name: str) -> str:
    return resources.files("densekd.report").joinpath("templates", name).read_text(encoding="utf-8")


def rendered(page: Page) -> str:
    """The page as HTML.

    Its policy forbids every request, and every script but the one whose digest it names: markup that slipped in
    somewhere could run nothing.
    """
    script = _file("sort.js")
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    policy = (
        f"default-src 'none'; img-src data:; style-src 'unsafe-inline'; script-src 'sha256-{digest}'; "
        "base-uri 'none'; form-action 'none'"
    )
    return (
        environment()
        .get_template("page.html")
        .render(
            kind=page.kind,
            title=page.title,
            headline=page.headline,
            facts=page.facts,
            sections=[section for section in page.sections if section.body],
            alert=page.alert,
            policy=policy,
            style=Markup(_file("page.css")),
            script=Markup(script),
            version=__version__,
        )
    )


def part(name: str, *values: object) -> Markup:
    """One macro of `parts.html`: a table, a chart, lines."""
    macro = getattr(environment().get_template("parts.html").module, name)
    return Markup(macro(*values))
