"""Charts of a page: a drawing with its title, a note and a legend."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from densekd.report.page import part


@dataclass(frozen=True)
class Chart:
    """One drawing.

    Attributes:
        title: what it shows.
        svg: the drawing, from `densekd.report.drawing.inline`.
        note: more words after the title.
        legend: names of the lines with the place of their colour, from 1 on; shown where there are several.
        wide: as wide as the page; on a phone it is moved sideways rather than made too small to read.
    """

    title: str
    svg: Markup
    note: str = ""
    legend: Sequence[tuple[str, int]] = ()
    wide: bool = False


def grid(charts: Sequence[Chart]) -> Markup:
    """Charts beside each other where there is room; empty for none."""
    if not charts:
        return Markup()
    return Markup('<div class="charts">{}</div>').format(Markup().join(part("chart", chart) for chart in charts))
