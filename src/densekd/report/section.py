"""One section of a page."""

from __future__ import annotations

from dataclasses import dataclass

from markupsafe import Markup


@dataclass(frozen=True)
class Section:
    """A part of a page under its own heading.

    Attributes:
        anchor: the heading's id, for links to it: lower-case letters, digits and `-`, once in a page.
        title: the heading, as plain text; the page escapes it.
        body: what stands below the heading. `Markup` says that every name in it was escaped already.
    """

    anchor: str
    title: str
    body: Markup
