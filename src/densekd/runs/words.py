"""Seconds and bytes in words."""

from __future__ import annotations


def seconds(value: float) -> str:
    """A short time: milliseconds below one second."""
    return f"{1000 * value:.0f} ms" if value < 1 else f"{value:.1f} s"


def duration(value: float) -> str:
    """A time in hours and minutes, or minutes and seconds."""
    minutes, left = divmod(round(value), 60)
    hours, minutes = divmod(minutes, 60)
    if hours:
        return f"{hours} h {minutes:02d} min"
    return f"{minutes} min {left:02d} s" if minutes else f"{left} s"


def size(count: int) -> str:
    """Bytes in decimal units, three digits."""
    value = float(count)
    for unit in ("B", "kB", "MB", "GB"):
        if value < 1000:
            return f"{value:.3g} {unit}"
        value /= 1000
    return f"{value:.3g} TB"
