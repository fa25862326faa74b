"""Curves of a run: its losses by term, mIoU, learning rate, gradient norm, seconds and the wait for data."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from densekd.report.charts import Chart
from densekd.report.drawing import SERIES, SOFT, inline, logarithmic, plain_axes, thinned
from densekd.report.kept import Columns, KeptRun
from densekd.report.words import points

_FEW = 3
_SPAN = 30.0
"""From this ratio of the largest value to the smallest on, an axis is logarithmic."""
_LINEAR = ("learning", "seconds")
"""Charts whose small values matter little."""
_RESERVED = {"step", "loss", "lr", "grad_norm", "seconds", "data_wait"}
_SIZE = (4.7, 2.5)


@dataclass(frozen=True)
class Line:
    """A curve: its name, points, the place of its colour, and whether each point is marked."""

    name: str
    steps: Sequence[float]
    values: Sequence[float]
    place: int = 1
    marked: bool = False


def run_charts(run: KeptRun) -> list[Chart]:
    """The charts of one run; a curve of fewer than three points is left out."""
    log = run.log
    if len(log.get("step", ())) < _FEW:
        return evaluation_charts({run.name: run})
    parts = [name for name in log if name not in _RESERVED and not name.endswith("/adversary")]
    rivals = [name for name in log if name.endswith("/adversary")]
    losses = ["loss", *parts] if len(parts) > 1 else parts or ["loss"]
    drawn = [
        _logged(log, "Losses", losses, "weighted, as they are added up"),
        _logged(log, "Losses of the networks that play against the student", rivals, ""),
        *evaluation_charts({run.name: run}),
        _logged(log, "Learning rate", ["lr"], ""),
        _logged(log, "Gradient norm", ["grad_norm"], "of the student, before clipping"),
        _logged(log, "Seconds of a step", ["seconds", "data_wait"], "data_wait: of it, waiting for images"),
    ]
    return [chart for chart in drawn if chart is not None]


def evaluation_charts(runs: Mapping[str, KeptRun]) -> list[Chart]:
    """mIoU over the evaluations of one run or the first eight, where they were kept and are more than one."""
    lines = [
        Line(name, run.evaluations["step"], [100 * value for value in run.evaluations["miou"]], place, marked=True)
        for place, (name, run) in enumerate(list(runs.items())[: len(SERIES)], 1)
        if len(run.evaluations.get("step", ())) > 1 and "miou" in run.evaluations
    ]
    return [] if not lines else [lines_chart("mIoU", lines, _best_words(runs), key="miou")]


def loss_charts(runs: Mapping[str, KeptRun]) -> list[Chart]:
    """The parts of the loss that all runs have, a chart each: what the students were taught alike."""
    logged = {name: run for name, run in runs.items() if len(run.log.get("step", ())) >= _FEW}
    if len(logged) < 2:
        return []
    first = next(iter(logged.values())).log
    shared = [name for name in first if name not in _RESERVED and all(name in run.log for run in logged.values())]
    charts: list[Chart] = []
    for part in shared:
        lines = []
        for place, (name, run) in enumerate(list(logged.items())[: len(SERIES)], 1):
            steps, values, _ = thinned(run.log["step"], run.log[part])
            lines.append(Line(name, steps, values, place))
        note = f"a part of the loss that all of them have{_of(len(logged))}"
        charts.append(lines_chart(part, lines, note, key=f"loss-{len(charts)}"))
    return charts


def _best_words(runs: Mapping[str, KeptRun]) -> str:
    if len(runs) > 1:
        return f"over the evaluations, in points{_of(len(runs))}"
    record = next(iter(runs.values())).record
    best = "" if record.best is None else f"; best {points(record.best.miou)} at step {record.best.step:,}"
    return f"in points, over the evaluations on {record.split}{best}"


def _of(count: int) -> str:
    """Which curves are drawn, where there are more than colours."""
    return f"; the first {len(SERIES)} of {count}" if count > len(SERIES) else ""


def _logged(log: Columns, title: str, names: Sequence[str], note: str) -> Chart | None:
    """Columns of the log over the steps; None where none holds enough numbers."""
    lines, every = [], 1
    found = [name for name in names if name in log]
    for place, name in enumerate(found[: len(SERIES)], 1):
        steps, values, every = thinned(log["step"], log[name])
        if len(values) >= _FEW:
            lines.append(Line(name, steps, values, place))
    if not lines:
        return None
    told = [note, f"a point is the mean of {every} logged steps" if every > 1 else ""]
    words = "; ".join(filter(None, told)) + _of(len(found))
    return lines_chart(title, lines, words, key=title.split()[0].lower())


def lines_chart(title: str, lines: Sequence[Line], note: str, key: str) -> Chart:
    """Curves over the steps in one drawing; logarithmic where they span much."""
    from matplotlib.ticker import MaxNLocator

    with plain_axes(*_SIZE) as (figure, axes):
        for line in lines:
            axes.plot(
                line.steps, line.values, color=SERIES[line.place - 1], marker="o" if line.marked else None, markersize=3
            )
        values = [value for line in lines for value in line.values if math.isfinite(value)]
        if key not in _LINEAR and values and min(values) > 0 and max(values) / min(values) > _SPAN:
            logarithmic(axes)
        else:
            axes.ticklabel_format(axis="y", style="plain", useOffset=False)
        axes.xaxis.set_major_locator(MaxNLocator("auto", integer=True, steps=[1, 2, 5, 10]))
        axes.set_xlabel("step", fontsize=8, color=SOFT)
        axes.margins(x=0.02)
        ends = ", ".join(f"{line.name} from {line.values[0]:.4g} to {line.values[-1]:.4g}" for line in lines)
        drawing = inline(figure, key, f"{title} over the steps: {ends}")
    return Chart(title, drawing, note, [(line.name, line.place) for line in lines])
