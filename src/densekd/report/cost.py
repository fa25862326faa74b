"""Accuracy against cost: a table and a drawing of methods, and how the gains lie over the seeds."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from densekd.records import STUDENT_ALONE, StudyMethod, StudyRecord
from densekd.report.charts import Chart
from densekd.report.drawing import INK, LINE, SERIES, SOFT, inline, plain_axes
from densekd.report.headline import paired
from densekd.report.words import short, signed

if TYPE_CHECKING:
    from matplotlib.axes import Axes

_WHERE = {"logits": 1, "features": 2, "logits+features": 3, "-": 8}
"""Places of their colours in the page's legends, by what a method distils."""
_OTHER = 4
MARKS = {"logits": "o", "features": "s", "logits+features": "D"}
_ROW = 0.24
"""Inches that a line of text takes."""


@dataclass(frozen=True)
class Spot:
    """A method in a drawing of cost and accuracy.

    Attributes:
        name: beside the drawing.
        where: it distils; decides on the colour.
        cost: seconds of a training step.
        value: mIoU or a gain in it, a fraction.
        ends: of its bar.
    """

    name: str
    where: str
    cost: float
    value: float
    ends: tuple[float, float]


@dataclass(frozen=True)
class Paint:
    """The colours of such a drawing, and how much of its height a line of text takes."""

    where: Mapping[str, str]
    other: str
    ink: str
    pale: str
    line: float = 0.07


def draw_spots(axes: Axes, spots: Sequence[Spot], paint: Paint) -> None:
    """Points of mIoU over the milliseconds of a step, each with its bar; names in a column on the right.

    The names stand in the order of the values; a thin line leads from each to its point. Marks differ by `where`, for
    those who see no colours.
    """
    for spot in spots:
        low, high = (100 * abs(end - spot.value) for end in spot.ends)
        color = paint.where.get(spot.where, paint.other)
        x, y, mark = 1000 * spot.cost, 100 * spot.value, MARKS.get(spot.where, "o")
        axes.errorbar([x], [y], yerr=[[low], [high]], fmt=mark, markersize=4, capsize=2, color=color)
    axes.margins(x=0.06, y=0.1)
    low, high = axes.get_ylim()
    ordered = sorted(spots, key=lambda spot: spot.value, reverse=True)
    heights = spaced([(100 * spot.value - low) / (high - low) for spot in ordered], paint.line)
    for spot, height in zip(ordered, heights, strict=True):
        axes.annotate(
            short(spot.name),
            (1000 * spot.cost, 100 * spot.value),
            xytext=(1.03, height),
            textcoords="axes fraction",
            va="center",
            color=paint.ink,
            fontsize=8.5,
            arrowprops={"arrowstyle": "-", "color": paint.pale, "linewidth": 0.4, "shrinkB": 4, "relpos": (0, 0.5)},
        )


def cost_chart(record: StudyRecord) -> Chart | None:
    """mIoU (mean and standard deviation over the seeds) over the seconds of a step; None for fewer than two methods."""
    spots = []
    for line in record.methods:
        if line.final is not None and line.cost.seconds_per_step:
            mean, sd = line.final.mean, line.final.sd
            name = "student alone" if line.name == STUDENT_ALONE else line.name
            spots.append(Spot(name, line.where, line.cost.seconds_per_step, mean, (mean - sd, mean + sd)))
    if len(spots) < 2:
        return None
    with plain_axes(8.2, max(3.0, 0.9 + _ROW * len(spots)), left=0.65, right=2.5) as (figure, axes):
        series = {name: SERIES[place - 1] for name, place in _WHERE.items()}
        draw_spots(axes, spots, Paint(series, SERIES[_OTHER - 1], INK, SOFT))
        axes.set_xlabel("milliseconds of a training step", fontsize=8)
        axes.set_ylabel("mIoU", fontsize=8)
        ordered = sorted(spots, key=lambda spot: spot.value, reverse=True)
        told = "; ".join(f"{spot.name} {100 * spot.value:.1f} at {1000 * spot.cost:.0f} ms" for spot in ordered)
        drawing = inline(figure, "cost", f"mIoU against the time of a training step: {told}")
    note = "points on val, final weights; lines reach one standard deviation over the seeds to each side"
    used = {spot.where: _WHERE.get(spot.where, _OTHER) for spot in spots}
    legend = [("the student alone" if where == "-" else f"on {where}", place) for where, place in used.items()]
    return Chart("mIoU against the time of a training step", drawing, note, legend, wide=True)


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
    alone = next((line for line in record.methods if line.name == STUDENT_ALONE), None)
    if alone is None:
        return None
    found = [(line, paired(line, alone)) for line in record.methods if line.name != STUDENT_ALONE]
    shown = [(line, gains) for line, gains in found if gains and line.gain is not None]
    if not shown:
        return None
    shown.sort(key=lambda pair: _mean(pair[0]))
    with plain_axes(8.2, 0.8 + _ROW * max(2, len(shown)), left=2.4) as (figure, axes):
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
