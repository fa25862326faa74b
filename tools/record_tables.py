"""Markdown tables made from records; every number in them is a mark that `check_numbers.py` fills.

Kinds: `study` (methods of a study side by side), `gains` (its gains, a row per method, a column per place and split),
`sweep` (the weights that `densekd tune` tried), `classes` (IoU per class of a study), `loss` (`densekd bench loss`),
`methods` (`densekd bench methods`), `latency` (`densekd bench latency`), `steps` (`densekd bench step`), `scaling`
(`densekd bench scaling`: exponents),
`views` (`cache_views.py`: what stored views cost and give), `published` (what the recipes of a folder,
`recipes:FOLDER`, say others published),
`networks` (what the networks with short names stand for and cost), `matrix` and `places` (`make matrix`),
`soak` (`soak.py`).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import bench_tables
import matrix_table
import soak_table
from table_rows import mark as _mark
from table_rows import rows as _rows

from densekd.models.names import short_names


def _title(name: str) -> str:
    return "student alone" if name == "none" else f"student, {name}"


def study(file: str, record: dict[str, Any]) -> list[str]:
    """Teacher, then a row per method: mIoU in percent (final weights; mean ± sd over the seeds), gain, cost.

    A dash: not known (a teacher that no run made, for instance). `failed`: no run of the method finished.
    """
    splits = sorted(record["teacher"].get("extra_splits") or {})
    several = any(len(method["seeds"]) > 1 for method in record["methods"])
    header = ["", "mIoU", *(f"mIoU, {split}" for split in splits), "gain", "seeds"]
    header += ["parameters", "GFLOPs", "training, s"]

    def cost(network: dict[str, Any] | None, place: str, seconds: str, trained: float | None) -> list[str]:
        known = {key for key, value in (network or {}).items() if value is not None}
        return [
            f"{_mark(file, f'{place}.parameters / 1e6 .2f')} M" if "parameters" in known else "-",
            _mark(file, f"{place}.flops / 1e9 .2f") if "flops" in known else "-",
            _mark(file, f"{seconds} .0f") if trained is not None else "-",
        ]

    def score(place: str, scores: dict[str, Any] | None) -> str:
        if scores is None:
            return "failed"
        spread = f" ± {_mark(file, f'{place}.sd * 100 .1f')}" if several else ""
        return f"{_mark(file, f'{place}.mean * 100 .1f')}{spread}"

    teacher = [_mark(file, "teacher.miou * 100 .1f")]
    teacher += [_mark(file, f"teacher.extra_splits.{split} * 100 .1f") for split in splits]
    trained = record["teacher"].get("total_seconds")
    rows = [["teacher", *teacher, "", "", *cost(record["teacher"], "teacher", "teacher.total_seconds", trained)]]
    for method in record["methods"]:
        place = f"methods[name={method['name']}]"
        gain = ""
        if method.get("gain") is not None:
            gain = _mark(file, f"{place}.gain.mean * 100 +.1f")
            if several:
                low, high = (_mark(file, f"{place}.gain.{end} * 100 +.1f") for end in ("low", "high"))
                gain += f" [{low}, {high}]"
        further = method.get("extra_splits") or {}
        scores = [score(f"{place}.final", method["final"])]
        scores += [score(f"{place}.extra_splits.{split}", further.get(split)) for split in splits]
        seeds = _mark(file, f"{place}.seeds.#")
        spent = method["cost"].get("total_seconds")
        cells = cost(method.get("student"), f"{place}.student", f"{place}.cost.total_seconds", spent)
        rows.append([_title(method["name"]), *scores, gain, seeds, *cells])
    return _rows(header, rows)


def gains(file: str, record: dict[str, Any]) -> list[str]:
    """A row per method, a column per place and split: gain over the student alone, with its interval."""
    compared = [method for method in record["methods"] if method["name"] != "none"]
    found = {method["where"] for method in compared}
    places = [where for where in ("logits", "features", "logits+features") if where in found]
    splits = sorted({split for method in compared for split in method.get("extra_gains") or {}})
    columns = [(where, split) for where in places for split in ("", *splits)]
    cells: dict[str, dict[tuple[str, str], str]] = {}
    for method in compared:
        row = cells.setdefault(method["name"].partition("@")[0], {})
        for split in ("", *splits):
            path = f"extra_gains.{split}" if split else "gain"
            gain = (method.get("extra_gains") or {}).get(split) if split else method.get("gain")
            row[method["where"], split] = "failed" if gain is None else _interval(file, method["name"], path)
    header = [where + (f", {split}" if split else "") for where, split in columns]
    rows = [[name, *(row.get(column, "") for column in columns)] for name, row in cells.items()]
    return _rows(["gain, points of mIoU", *header], rows)


def _interval(file: str, method: str, gain: str) -> str:
    place = f"methods[name={method}].{gain}"
    mean, low, high = (_mark(file, f"{place}.{key} * 100 +.1f") for key in ("mean", "low", "high"))
    return f"{mean} [{low}, {high}]"


def sweep(file: str, record: dict[str, Any]) -> list[str]:
    """A row per method of `densekd tune`, a column per multiple of its weight: mIoU held out; the best is bold."""
    rows: dict[str, dict[str, str]] = {}
    factors: dict[str, None] = {}
    scores: dict[str, dict[str, float]] = {}
    for method in record["methods"]:
        label, _, factor = method["name"].rpartition("-w")
        if label and method["final"] is not None:
            factors[factor] = None
            scores.setdefault(label, {})[factor] = method["final"]["mean"]
            rows.setdefault(label, {})[factor] = _mark(file, f"methods[name={method['name']}].final.mean * 100 .1f")
    lines = []
    for label, row in rows.items():
        best = max(scores[label].values())
        chosen = min((factor for factor, score in scores[label].items() if score == best), key=float)
        weight = _mark(file, f"methods[name={label}-w{chosen}].terms[0].weight .3g")
        lines.append([label, *(f"**{row[f]}**" if f == chosen else row.get(f, "") for f in factors), weight])
    none = "methods[name=none].final.mean * 100 .1f"
    alone = ["student alone", _mark(file, none), *[""] * len(factors)]
    return _rows(["mIoU, held out", *(f"weight x {factor}" for factor in factors), "chosen weight"], [alone, *lines])


def classes(file: str, record: dict[str, Any]) -> list[str]:
    """A row per class: IoU in percent of the teacher and of each method (mean over the seeds, final weights)."""

    def cell(values: dict[str, Any], place: str, name: str) -> str:
        return "-" if values.get(name) is None else _mark(file, f"{place}.iou.{name} * 100 .1f")

    rows = []
    for name in record["teacher"]["iou"]:
        cells = [cell(record["teacher"]["iou"], "teacher", name)]
        cells += [cell(m["iou"], f"methods[name={m['name']}]", name) for m in record["methods"]]
        rows.append([name, *cells])
    return _rows(["IoU", "teacher", *(_title(method["name"]) for method in record["methods"])], rows)


def views(file: str, record: dict[str, Any]) -> list[str]:
    """A row per variant: mIoU, gain over the student alone on the same views, difference to the live teacher, cost."""

    def difference(place: str) -> str:
        mean, low, high = (_mark(file, f"{place}.{key} * 100 +.1f") for key in ("mean", "low", "high"))
        return f"{mean} [{low}, {high}]"

    rows = []
    for variant in record["variants"]:
        place = f"variants[name={variant['name']}]"
        score = f"{_mark(file, f'{place}.final.mean * 100 .1f')} ± {_mark(file, f'{place}.final.sd * 100 .1f')}"
        to_live = "" if variant["name"] == "live" else difference(f"{place}.to_live")
        cells = [score, difference(f"{place}.gain"), to_live]
        cells.append(_mark(file, f"{place}.seconds_per_step * 1000 .0f"))
        cells.append(_mark(file, f"{place}.times_alone .2f"))
        errors = (variant.get("cache") or {}).get("errors") or {}
        if "cache" in variant:
            cells += [_mark(file, f"{place}.cache.bytes / 1e6 .1f"), _mark(file, f"{place}.cache.build_seconds .0f")]
        else:
            cells += ["", ""]
        cells.append(", ".join(_mark(file, f"{place}.cache.errors.{tap}.mean * 100 .2f") for tap in errors))
        rows.append([variant["name"], *cells])
    header = [
        "mIoU",
        "gain",
        "to live",
        "step, ms",
        "times the student alone",
        "MB",
        "build, s",
        "error of softened maps, %",
    ]
    return _rows(["teacher", *header], rows)


def published(file: str, record: dict[str, Any]) -> list[str]:
    """A row per published result: recipe, method, mIoU of the student alone, after it, and of the teacher; source."""
    rows = []
    for recipe, raw in record.items():
        for place, result in enumerate(raw.get("published", ())):
            cells = {
                key: _mark(f"recipe:{recipe}", f"published[{place}].{key}{' .2f' if isinstance(value, float) else ''}")
                for key, value in result.items()
            }
            cells |= {"method": f"`{result['method']}`", "split": cells.get("split", "val")}
            shown = ("method", "alone", "miou", "teacher", "split", "source", "note")
            rows.append([f"`{recipe}`", *(cells.get(key, "") for key in shown)])
    return _rows(["recipe", "method", "alone", "mIoU", "teacher", "split", "published by", "to know"], rows)


def networks(file: str, record: dict[str, Any]) -> list[str]:
    """A row per short name: live parameters and operations from the record, and what the name stands for."""
    height, width = record["size"]
    rows = []
    for name, stands_for in short_names().items():
        place = f"networks.{name}"
        options = ", ".join(f"{option}: {value}" for option, value in stands_for.options.items())
        cost = (_mark(file, f"{place}.parameters / 1e6 .2f") + " M", _mark(file, f"{place}.flops / 1e9 .1f"))
        # No backticks before a mark: between two of them it would be shown as it stands.
        rows.append([name, *cost, f"`{stands_for.model}`" + (f" `{options}`" if options else "")])
    return _rows(["short name", "parameters", f"GFLOPs at {height}x{width}", "stands for"], rows)


KINDS: dict[str, Callable[[str, dict[str, Any]], list[str]]] = {
    "study": study,
    "gains": gains,
    "sweep": sweep,
    "classes": classes,
    "loss": bench_tables.loss,
    "methods": bench_tables.methods,
    "steps": bench_tables.steps,
    "latency": bench_tables.latency,
    "scaling": bench_tables.scaling,
    "views": views,
    "published": published,
    "networks": networks,
    "matrix": matrix_table.matrix,
    "places": matrix_table.places,
    "soak": soak_table.soak,
}
