"""Accuracy against cost: a table and a drawing of methods, and how the gains lie over the seeds."""

from __future__ import annotations

from collections.abc import Sequence

from densekd.records import StudyMethod, StudyRecord
from densekd.report.charts import Chart
from densekd.report.drawing import INK, LINE, SERIES, SOFT, inline, plain_axes
from densekd.report.headline import ALONE, paired
from densekd.report.words import short, signed

_WHERE = ("logits", "features", "logits+features")
_ROW = 0.24
"""Inches that a line of text takes."""


def cost_chart(record: StudyRecord) -> Chart | None:
    """mIoU (mean and standard deviation over the seeds) over the seconds of a step; None for fewer than two methods."""
    shown = [line for line in record.methods if line.final is not None and line.cost.seconds_per_step]
    if len(shown) < 2:
        return None
    places = {name: place for place, name in enumerate(_WHERE, 1)}
    used: dict[str, int] = {}
    with plain_axes(8.2, max(3.0, 0.9 + _ROW * len(shown)), right=2.3) as (figure, axes):
        spots = []
        for line in shown:
            assert line.final is not None
            assert line.cost.seconds_per_step is not None
            name = "the student alone" if line.name == ALONE else f"on {line.where}"
            used.setdefault(name, 8 if line.name == ALONE else places.get(line.where, 4))
            x, y = 1000 * line.cost.seconds_per_step, 100 * line.final.mean
            axes.errorbar(
                [x], [y], yerr=100 * line.final.sd, fmt="o", markersize=4, capsize=2, color=SERIES[used[name] - 1]
            )
            spots.append((y, x, line.name))
        axes.set_xlabel("milliseconds of a training step", fontsize=8)
        axes.set_ylabel("mIoU", fontsize=8)
        axes.margins(x=0.06, y=0.1)
        low, high = axes.get_ylim()
        _named(axes, sorted(spots, reverse=True), low, high)
        told = "; ".join(f"{name} {y:.1f} at {x:.0f} ms" for y, x, name in sorted(spots, reverse=True))
        drawing = inline(figure, "cost", f"mIoU against the time of a training step: {told}")
    note = "points on val, final weights; lines reach one standard deviation over the seeds to each side"
    return Chart("mIoU against the time of a training step", drawing, note, list(used.items()), wide=True)


def _named(axes: object, spots: Sequence[tuple[float, float, str]], low: float, high: float) -> None:
    """Names in a column on the right in the order of the scores, a thin line from each to its point."""
    heights = spaced([(y - low) / (high - low) for y, _, _ in spots])
    for (y, x, name), height in zip(spots, heights, strict=True):
        axes.annotate(  # type: ignore[attr-defined]
            short("student alone" if name == ALONE else name),
            (x, y),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            color=INK,
            fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": SOFT, "linewidth": 0.4, "shrinkB": 4, "relpos": (0, 0.5)},
        )


def spaced(heights: Sequence[float], line: float = 0.07) -> list[float]:
    """Falling heights (fractions of the axes), moved so that a line of text, as high as `line`, fits to each."""
    gap = min(line, 1 / max(1, len(heights)))
    moved: list[float] = []
    for height in heights:
        moved.append(min(height, moved[-1] - gap) if moved else height)
    floor = 0.0
    for place in range(len(moved) - 1, -1, -1):
        moved[place] = max(moved[place], floor)
        floor = moved[place] + gap
    return moved


def gain_chart(record: StudyRecord) -> Chart | None:
    """The gains paired by seed: a dot for each seed, the mean, and its 95% interval; None without any."""
    alone = next((line for line in record.methods if line.name == ALONE), None)
    if alone is None:
        return None
    found = [(line, paired(line, alone)) for line in record.methods if line.name != ALONE]
    shown = [(line, gains) for line, gains in found if gains and line.gain is not None]
    if not shown:
        return None
    shown.sort(key=lambda pair: _mean(pair[0]))
    with plain_axes(8.2, 0.8 + _ROW * max(2, len(shown)), left=2.1) as (figure, axes):
        axes.grid(visible=False, axis="y")
        axes.grid(axis="x", linewidth=0.6, color=LINE)
        axes.axvline(0, color=SOFT, linewidth=1)
        for row, (line, gains) in enumerate(shown):
            assert line.gain is not None
            axes.plot(
                [100 * value for value in gains.values()], [row] * len(gains), "o", color=SERIES[7], markersize=3.5
            )
            axes.plot([100 * line.gain.low, 100 * line.gain.high], [row, row], color=SERIES[0], linewidth=1.6)
            axes.plot([100 * line.gain.mean], [row], "D", color=SERIES[0], markersize=5)
        axes.set_yticks(range(len(shown)), [short(line.name) for line, _ in shown], color=INK)
        axes.set_ylim(-0.7, len(shown) - 0.3)
        axes.spines["left"].set_visible(False)
        axes.tick_params(axis="y", length=0)
        axes.set_xlabel("gain in points of mIoU", fontsize=8)
        told = "; ".join(f"{line.name} {signed(_mean(line))}" for line, _ in reversed(shown))
        drawing = inline(figure, "gains", f"Gain over the student alone, paired by seed: {told}")
    note = "diamond: mean; line: its 95% bootstrap interval; dots: the seeds"
    return Chart("Gain over the student alone, paired by seed", drawing, note, wide=True)


def _mean(line: StudyMethod) -> float:
    return 0.0 if line.gain is None else line.gain.mean
