"""A run's page: result, curves, classes, checks and environment in one self-contained HTML file."""

from __future__ import annotations

import csv
import io
from pathlib import Path
from typing import Any

from jinja2 import Environment

from densekd import files
from densekd.records import RunRecord

_PAGE = """<!doctype html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">
<title>{{ name }}</title>
<style>
:root { color-scheme: light dark; }
body { font: 16px/1.5 system-ui, sans-serif; max-width: 60rem; margin: 2rem auto; padding: 0 1rem; }
table { border-collapse: collapse; margin: 1rem 0; display: block; overflow-x: auto; }
th, td { padding: .25rem .75rem; text-align: left; border-bottom: 1px solid #8886; }
td.n { text-align: right; font-variant-numeric: tabular-nums; }
figure { margin: 1rem 0; background: #fff; } svg { max-width: 100%; height: auto; }
</style></head><body>
<h1>{{ name }}</h1>
<p>{{ sentence }}</p>
{% if record.error %}<p><strong>{{ record.error }}</strong></p>{% endif %}
{% if curves %}<h2>Curves</h2>
<figure role="img" aria-label="losses and learning rate over the steps">{{ curves | safe }}</figure>{% endif %}
{% if classes %}<h2>Classes</h2><table><tr><th>class</th><th>IoU, best</th><th>IoU, final</th></tr>
{% for row in classes %}<tr><td>{{ row[0] }}</td><td class="n">{{ row[1] }}</td><td class="n">{{ row[2] }}</td></tr>
{% endfor %}</table>{% endif %}
{% if record.warnings %}<h2>Notices</h2>
<ul>{% for line in record.warnings %}<li>{{ line }}</li>{% endfor %}</ul>{% endif %}
<h2>Cost and environment</h2><table>
{% for key, value in facts %}<tr><th>{{ key }}</th><td>{{ value }}</td></tr>
{% endfor %}</table>
</body></html>
"""


def write_report(folder: Path, record: RunRecord) -> Path:
    """Write `report.html` into a run's folder from its record and its log, and return its path.

    The page needs no network and no other file; every name in it is escaped.
    """
    page = Environment(autoescape=True).from_string(_PAGE)
    text = page.render(
        name=folder.name,
        record=record,
        sentence=_sentence(record),
        curves=_curves(folder / "log.csv"),
        classes=_classes(record),
        facts=_facts(record),
    )
    path = folder / "report.html"
    files.write_text(path, text)
    return path


def _points(value: float | None) -> str:
    return "-" if value is None else f"{100 * value:.1f}"


def _sentence(record: RunRecord) -> str:
    start = f"Method {record.method}, seed {record.seed}, {record.status}"
    if record.best is None or record.final is None:
        return f"{start}: no evaluation yet."
    extra = "".join(f"; {_points(s.miou)} on {name}" for name, s in record.extra_splits.items())
    teacher = record.teacher
    above = f" The teacher: {_points(teacher.miou)} on the images examined." if teacher and teacher.miou else ""
    return (
        f"{start}: mIoU {_points(record.final.miou)} on {record.split} with the final weights{extra}; best "
        f"{_points(record.best.miou)} at step {record.best.step}.{above}"
    )


def _classes(record: RunRecord) -> list[tuple[str, str, str]]:
    if record.best is None or record.final is None:
        return []
    return [(name, _points(record.best.iou[name]), _points(iou)) for name, iou in record.final.iou.items()]


def _facts(record: RunRecord) -> list[tuple[str, Any]]:
    cost = record.cost.model_dump(exclude_none=True)
    found: list[tuple[str, Any]] = [(key.replace("_", " "), value) for key, value in cost.items()]
    for who, network in (("student", record.student), ("teacher", record.teacher)):
        if network is not None:
            found.append((f"{who}: live parameters", f"{network.parameters:,}"))
            found.append((f"{who}: FLOPs of an image", "-" if network.flops is None else f"{network.flops:,}"))
    return [*found, *record.environment.items(), ("recipe sha256", record.recipe_sha256)]


def _curves(log: Path) -> str:
    """The losses and the learning rate as SVG; empty where nothing was logged."""
    from matplotlib.figure import Figure  # a second of imports, and most runs draw no page

    if not log.is_file():
        return ""
    rows = list(csv.DictReader(io.StringIO(log.read_text(encoding="utf-8"))))
    if not rows:
        return ""
    steps = [int(row["step"]) for row in rows]
    left_out = {"step", "lr", "grad_norm", "seconds", "data_wait"}
    figure = Figure(figsize=(9, 3.2), layout="constrained")
    losses, rate = figure.subplots(1, 2)
    for name in (name for name in rows[0] if name not in left_out):
        losses.plot(steps, [float(row[name] or "nan") for row in rows], label=name, linewidth=1)
    losses.set(xlabel="step", ylabel="loss", yscale="log")
    losses.legend(fontsize="small")
    rate.plot(steps, [float(row["lr"]) for row in rows], linewidth=1)
    rate.set(xlabel="step", ylabel="learning rate")
    stream = io.StringIO()
    figure.savefig(stream, format="svg", metadata={"Date": None})
    svg = stream.getvalue()
    return svg[svg.index("<svg") :]  # without the XML head, which has no place inside a page
