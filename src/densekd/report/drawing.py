"""Figures of matplotlib as SVG inside the page, in the page's own colours: one drawing serves light, dark and paper."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from markupsafe import Markup

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Colours that stand for the page's variables: matplotlib writes them into the SVG, `inline` puts the names there.
INK, SOFT, LINE = "#010101", "#020202", "#030303"
SERIES = tuple(f"#0400{place:02x}" for place in range(1, 9))
_NAMES = {INK: "var(--ink)", SOFT: "var(--soft)", LINE: "var(--line)"} | {
    color: f"var(--series-{place})" for place, color in enumerate(SERIES, 1)
}
_DECADES = 2.5
"""Up to so many, a logarithmic axis has marks at 1, 2 and 5; beyond, at 1 alone."""
_SETTINGS: Any = {
    # Equal numbers give equal pages; letters stay letters, in the page's font; names are names, never formulas.
    "svg.hashsalt": "densekd",
    "svg.fonttype": "none",
    "text.parse_math": False,
    "axes.unicode_minus": True,
    "font.size": 9,
    "text.color": INK,
    "axes.labelcolor": SOFT,
    "axes.edgecolor": LINE,
    "xtick.color": SOFT,
    "ytick.color": SOFT,
    "grid.color": LINE,
    "lines.linewidth": 1.4,
    "path.simplify": True,
}


@contextmanager
def plain_axes(width: float, height: float, *, left: float = 0.5, right: float = 0.12) -> Iterator[tuple[Figure, Axes]]:
    """A figure with one pair of axes, without a frame, and matplotlib's settings for it.

    Args:
        width: of the figure in inches (72 units of the page each).
        height: the same.
        left: inches that the labels of the vertical axis get.
        right: inches left free on the right.
    """
    import matplotlib
    from matplotlib.figure import Figure  # a second of imports, and most commands draw nothing

    with matplotlib.rc_context(_SETTINGS):
        figure = Figure(figsize=(width, height))
        figure.patch.set_alpha(0)
        axes = figure.add_axes((left / width, 0.45 / height, 1 - (left + right) / width, 1 - 0.6 / height))
        axes.patch.set_alpha(0)
        axes.spines[["top", "right"]].set_visible(False)
        axes.tick_params(length=3, width=0.6)
        axes.grid(axis="y", linewidth=0.6)
        axes.set_axisbelow(True)
        yield figure, axes


def inline(figure: Figure, name: str, label: str) -> Markup:
    """The figure as `<svg>`; call it inside `plain_axes`.

    Args:
        figure: drawn in the colours of this module.
        name: once in a page, letters, digits and `-`: it keeps ids apart.
        label: what it shows, for those who do not see it.
    """
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    text = stream.getvalue()
    text = text[text.index("<svg") :]  # without the XML head, which has no place inside a page
    text = re.sub(r"<!--.*?-->|<metadata>.*?</metadata>|<style[^>]*>.*?</style>", "", text, flags=re.DOTALL)
    text = _own_ids(text, name)
    # The page's font; its size stays.
    text = re.sub(r"font: ([\d.]+)px [^;\"]*", r"font-size: \1px", text)
    for color, variable in _NAMES.items():
        text = text.replace(color, variable)
    head, _, rest = text.partition(">")
    box = re.search(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', head)
    assert box is not None  # matplotlib writes one into every figure
    start = Markup('<svg xmlns="http://www.w3.org/2000/svg" xmlns:xlink="http://www.w3.org/1999/xlink"')
    start += Markup(' viewBox="0 0 {0} {1}" width="{0}" height="{1}" role="img" aria-label="{2}">').format(
        box[1], box[2], label
    )
    return start + Markup(re.sub(r"\n\s*", "\n", rest).strip())


def _own_ids(text: str, name: str) -> str:
    """Ids that something refers to get the figure's name in front; the others, which come again in every figure, go."""
    used = set(re.findall(r"(?:url\(#|href=\"#)([^)\"]+)", text))

    def kept(match: re.Match[str]) -> str:
        return f' id="{name}-{match[1]}"' if match[1] in used else ""

    text = re.sub(r' id="([^"]+)"', kept, text)
    return re.sub(r"(url\(#|href=\"#)([^)\"]+)", rf"\g<1>{name}-\2", text)


def thinned(steps: Sequence[float], values: Sequence[float], most: int = 240) -> tuple[list[float], list[float], int]:
    """At most `most` points, each the mean of as many neighbours; NaN are left out of the means.

    Returns:
        Steps (of the last of its neighbours), means, and how many neighbours a point stands for.
    """
    import math
    import statistics

    every = -(-len(steps) // most)
    found: tuple[list[float], list[float]] = ([], [])
    for start in range(0, len(steps), every):
        block = [value for value in values[start : start + every] if not math.isnan(value)]
        if block:
            found[0].append(steps[min(start + every, len(steps)) - 1])
            found[1].append(statistics.fmean(block))
    return *found, every


def logarithmic(axes: Axes) -> None:
    """A logarithmic vertical axis with plain numbers; matplotlib's own are formulas."""
    import math

    from matplotlib.ticker import FuncFormatter, LogLocator, NullFormatter

    axes.set_yscale("log")
    low, high = axes.get_ylim()
    few = math.log10(high / low) < _DECADES
    axes.yaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if few else (1,), numticks=8))
    axes.yaxis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axes.yaxis.set_minor_formatter(NullFormatter())
