"""Figures of a study: gain against cost, and gain per class."""

from __future__ import annotations

import io
import math
from pathlib import Path
from typing import TYPE_CHECKING

from densekd import files
from densekd.records import StudyRecord
from densekd.report.cost import MARKS, Paint, Spot, draw_spots
from densekd.study.tables import class_names

if TYPE_CHECKING:
    from matplotlib.figure import Figure

FIGURES = ("gain.png", "gain.svg", "classes.png", "classes.svg")
_INK = "#26262c"
_PALE = "#96969b"
_WHERE = {"logits": "#1f6fb4", "features": "#c8641e", "logits+features": "#2e8b57"}
_OTHER = "#6b6b70"


def write_figures(folder: Path, record: StudyRecord) -> None:
    """Write `FIGURES`; one that has nothing to show is left out, and removed where an earlier record had it."""
    import matplotlib

    # Equal records give equal bytes: no date, and ids that do not depend on chance. Names are names, never formulas.
    with matplotlib.rc_context({"svg.hashsalt": "densekd", "text.parse_math": False}):
        drawn = {"gain": gain_figure(record), "classes": class_figure(record)}
        for name in FIGURES:
            path = folder / name
            figure, kind = drawn[path.stem], path.suffix[1:]
            if figure is None:
                files.remove(path)
                continue
            stream = io.BytesIO()
            figure.savefig(stream, format=kind, dpi=150, metadata={"Date": None} if kind == "svg" else None)
            files.write_bytes(path, stream.getvalue())


def gain_figure(record: StudyRecord) -> Figure | None:
    """Gain in points of mIoU over the seconds of a step; bars are the 95% intervals. None without any gain."""
    from matplotlib.figure import Figure
    from matplotlib.lines import Line2D

    spots, seeds = [], set()
    for line in record.methods:
        gain, cost = line.gain, line.cost.seconds_per_step
        if gain is not None and cost is not None:
            spots.append(Spot(line.name, line.where, cost, gain.mean, (gain.low, gain.high)))
            seeds.add(gain.n or len(line.seeds))
    if not spots:
        return None
    figure = Figure(figsize=(8.0, max(4.6, 1.0 + 0.25 * len(spots))), layout="constrained")
    axes = figure.subplots()
    axes.axhline(0, color=_PALE, linewidth=1, zorder=1)
    alone = next((m.cost.seconds_per_step for m in record.methods if m.gain is None and m.where == "-"), None)
    if alone is not None:
        axes.plot([1000 * alone], [0], marker="o", color=_PALE, zorder=2)
        axes.annotate("student alone", (1000 * alone, 0), (6, -12), textcoords="offset points", color=_PALE)
    draw_spots(axes, spots, Paint(_WHERE, _OTHER, _INK, _PALE, line=0.055))
    counted = f"{min(seeds)} to {max(seeds)}" if len(seeds) > 1 else str(min(seeds))
    axes.set_xlabel("milliseconds of a step")
    axes.set_ylabel("gain over the student alone, points of mIoU")
    _title(figure, f"{record.name}: gain against cost; 95% intervals over {counted} seed(s)")
    axes.spines[["top", "right"]].set_visible(False)
    places = list(dict.fromkeys(spot.where for spot in spots))
    if len(places) > 1:
        colors = {where: _WHERE.get(where, _OTHER) for where in places}
        marks = [Line2D([], [], marker=MARKS.get(one, "o"), linestyle="", color=colors[one]) for one in places]
        axes.legend(marks, [f"on {where}" for where in places], frameon=False, fontsize="small")
    return figure


def class_figure(record: StudyRecord) -> Figure | None:
    """Heat map: gain in points of IoU of each method (rows) on each class (columns). None without any gain."""
    from matplotlib.figure import Figure

    shown = [line for line in record.methods if any(value is not None for value in line.iou_gain.values())]
    names = class_names(record)
    if not shown or not names:
        return None
    cells = [[_points(line.iou_gain.get(name)) for name in names] for line in shown]
    reach = max(1.0, *(abs(value) for row in cells for value in row if not math.isnan(value)))
    figure = Figure(figsize=(max(6.0, 2.4 + 0.62 * len(names)), 1.7 + 0.42 * len(shown)), layout="constrained")
    axes = figure.subplots()
    axes.set_facecolor("#e4e4e6")
    picture = axes.imshow(cells, cmap="RdBu", vmin=-reach, vmax=reach, aspect="auto")
    for row, values in enumerate(cells):
        for column, value in enumerate(values):
            missing = math.isnan(value)
            axes.text(
                column, row, "-" if missing else f"{value:+.1f}", ha="center", va="center", fontsize=8,
                color="white" if not missing and abs(value) > 0.65 * reach else _INK,
            )  # fmt: skip
    axes.set_xticks(range(len(names)), names, rotation=40, ha="right", rotation_mode="anchor")
    axes.set_yticks(range(len(shown)), [line.name for line in shown])
    axes.tick_params(length=0)
    axes.spines[:].set_visible(False)
    _title(figure, f"{record.name}: gain per class, points of IoU (mean over the seeds)")
    figure.colorbar(picture, ax=axes, shrink=0.9, pad=0.01)
    return figure


def _title(figure: Figure, words: str) -> None:
    figure.suptitle(files.as_text(words), x=0.01, ha="left", fontsize=10)


def _points(value: float | None) -> float:
    return math.nan if value is None else 100 * value
