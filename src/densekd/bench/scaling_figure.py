"""The figure of `densekd bench scaling`: time and memory over each size, doubly logarithmic."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from densekd import files
from densekd.bench.exponents import AXES, Axis, along
from densekd.errors import ArgumentError
from densekd.records import BenchCase, BenchRecord

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

#: methods drawn in colours; the others are thin grey lines
SHOWN = {
    "channelwise": ("#1f6fb4", 2.4),
    "pixelwise": ("#2e8b57", 1.4),
    "pairwise": ("#c8641e", 1.4),
    "crossimage": ("#a0307c", 1.4),
}
_OTHER = ("#c6c6cb", 0.9)
_INK = "#26262c"
KINDS = ("svg", "png")


def write_figure(path: Path, record: BenchRecord) -> None:
    """Draw the record into a file of the kind its name ends with. Equal records give equal bytes.

    Raises:
        ArgumentError: another ending.
    """
    kind = checked_kind(path)
    import matplotlib

    with matplotlib.rc_context({"svg.hashsalt": "densekd", "svg.fonttype": "none", "text.parse_math": False}):
        stream = io.BytesIO()
        scaling_figure(record).savefig(stream, format=kind, dpi=110, metadata={"Date": None} if kind == "svg" else None)
    files.write_bytes(path, stream.getvalue())


def checked_kind(path: Path) -> str:
    """What the file's name ends with.

    Raises:
        ArgumentError: neither svg nor png.
    """
    kind = path.suffix.removeprefix(".").lower()
    if kind not in KINDS:
        raise ArgumentError(f"{path}: expected a figure's name ending in {' or '.join(f'.{kind}' for kind in KINDS)}")
    return kind


def scaling_figure(record: BenchRecord) -> Figure:
    """A panel per size, time above and memory below; the dashed line has slope 1."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(11.0, 5.6), layout="constrained")
    panels = figure.subplots(2, len(AXES), sharey="row", squeeze=False)
    methods = list(dict.fromkeys(case.variant for case in record.cases))
    # Grey first, so that colours lie on top.
    for method in sorted(methods, key=lambda name: name in SHOWN):
        cases = [case for case in record.cases if case.variant == method]
        for column, axis in enumerate(AXES):
            _lines(panels[0][column], panels[1][column], along(cases, axis), axis, method)
    for column, axis in enumerate(AXES):
        for panel in (panels[0][column], panels[1][column]):
            _dress(panel, axis, _sizes(record.cases, axis))
    panels[0][0].set_ylabel("milliseconds (CPU time)")
    panels[1][0].set_ylabel("memory, MB")
    handles = [line for line in panels[0][0].get_lines() if not line.get_label().startswith("_")]
    handles.sort(key=lambda line: list(SHOWN).index(line.get_label()) if line.get_label() in SHOWN else len(SHOWN))
    figure.legend(handles=handles, loc="outside lower center", ncols=len(handles), frameon=False, fontsize="small")
    base = "x".join(map(str, record.cases[0].extra["shape"]))
    title = f"forward and backward of every loss, each size doubled from {base}; dashed: linear"
    figure.suptitle(title, fontsize="medium", color=_INK)
    return figure


def _sizes(cases: Sequence[BenchCase], axis: Axis) -> list[int]:
    place = AXES.index(axis)
    return sorted({case.extra["shape"][place] for case in cases})


def _lines(time: Axes, memory: Axes, cases: Sequence[BenchCase], axis: Axis, method: str) -> None:
    color, width = SHOWN.get(method, _OTHER)
    sizes = [case.extra["shape"][AXES.index(axis)] for case in cases]
    first = not any(line.get_label() == "other methods" for line in time.get_lines())
    label = method if method in SHOWN else "other methods" if first else "_"
    marker = "o" if method in SHOWN else None
    for panel, costs in (
        (time, [1e3 * case.extra["cpu_seconds"] for case in cases]),
        (memory, [(case.peak_bytes or 0) / 1e6 for case in cases]),
    ):
        panel.plot(sizes, costs, color=color, linewidth=width, marker=marker, markersize=3.5, label=label)
    if method == "channelwise":
        start = 1e3 * cases[0].extra["cpu_seconds"]
        time.plot(sizes, [start * size / sizes[0] for size in sizes], "--", color=_INK, linewidth=0.9, label="_")


def _dress(panel: Axes, axis: Axis, sizes: Sequence[int]) -> None:
    from matplotlib.ticker import StrMethodFormatter

    panel.set_xscale("log", base=2)
    panel.set_yscale("log")
    panel.yaxis.set_major_formatter(StrMethodFormatter("{x:g}"))
    panel.set_xticks(sizes, [str(size) for size in sizes], fontsize="small")
    panel.minorticks_off()
    panel.set_xlabel(axis)
    panel.spines[["top", "right"]].set_visible(False)
    panel.grid(axis="y", color="#ececef", linewidth=0.7)
