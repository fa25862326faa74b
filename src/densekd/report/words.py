"""Numbers as a page says them: points of mIoU, ratios, counts, bytes, seconds."""

from __future__ import annotations

import math

from densekd.records import Scores

MINUS, TIMES = "\u2212", "\u00d7"
NONE = "\u2013"
"""What stands where there is no number."""


def points(value: float | None) -> str:
    """A fraction in points (percent), to one digit."""
    return NONE if value is None else _minus(f"{100 * value:.1f}")


def signed(value: float | None) -> str:
    """A difference of fractions in points, with its sign; nothing that rounds to 0.0 has one."""
    if value is None:
        return NONE
    text = f"{100 * value:+.1f}"
    return "0.0" if float(text) == 0 else text.replace("-", MINUS)


def counted(number: int, one: str, several: str = "") -> str:
    """`1 seed`, `3 seeds`."""
    return f"{number:,} {one if number == 1 else several or one + 's'}"


def less(scores: Scores) -> str:
    """`, 2 left out` behind the number of images, where the files of some could not be used."""
    return f", {scores.left_out:,} left out" if scores.left_out else ""


def times(ratio: float) -> str:
    """A ratio to two or three digits, with the sign of multiplication: 4.2 times, 28 times."""
    return f"{ratio:.1f}{TIMES}" if ratio < 19.95 else f"{ratio:,.0f}{TIMES}"


def number(value: float | None, digits: int = 4) -> str:
    """Any number to so many significant digits; whole ones with commas."""
    if value is None or not math.isfinite(value):
        return NONE if value is None else str(value)
    if float(value).is_integer() and abs(value) < 1e15:
        return _minus(f"{int(value):,}")
    return _minus(f"{value:.{digits}g}")


def amount(value: float | None) -> str:
    """A count in thousands, millions or billions, to three digits."""
    if value is None:
        return NONE
    for size, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if value >= size:
            return f"{value / size:.3g} {unit}"
    return f"{value:g}"


def size(count: float | None) -> str:
    """Bytes, decimal: `1.08 GB`."""
    return NONE if count is None else f"{amount(count)}B" if count >= 1000 else f"{count:g} B"


def seconds(value: float | None) -> str:
    """A time to three digits, in the unit that suits it: `202 ms`, `1.9 min`, `3.4 h`."""
    if value is None:
        return NONE
    for least, divisor, unit in ((5400, 3600, "h"), (90, 60, "min"), (1, 1, "s"), (1e-3, 1e-3, "ms")):
        if value >= least:
            return f"{value / divisor:.3g} {unit}"
    return f"{value * 1e6:.3g} µs"


def share(value: float | None) -> str:
    """A fraction in percent."""
    return NONE if value is None else f"{100 * value:.1f}%"


def short(text: str, most: int = 28) -> str:
    """A name cut to `most` characters where a figure has no room for more."""
    return text if len(text) <= most else text[: most - 1] + "…"


def _minus(text: str) -> str:
    return text.replace("-", MINUS)
