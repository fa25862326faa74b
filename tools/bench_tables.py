"""Tables of `densekd bench`: losses, methods, latency, steps, and how cost grows."""

from __future__ import annotations

from typing import Any

from table_rows import mark as _mark
from table_rows import rows as _rows


def loss(file: str, record: dict[str, Any]) -> list[str]:
    """A row per shape: the textbook formulation against densekd's default on the CPU, forward and backward."""
    header = ["map (N, C, H, W)", "textbook, ms", "densekd, ms", "speed-up", "textbook, maps of memory"]
    header += ["densekd, maps of memory", "densekd, error"]
    rows = []
    for name in dict.fromkeys(case["name"] for case in record["cases"]):
        book, own = (f"cases[name={name},variant={variant}]" for variant in ("textbook", "blocked"))
        cells = [_mark(file, f"{place}.median_seconds * 1000 .1f") for place in (book, own)]
        cells.append(f"{_mark(file, f'{own}.ratio .2f')}x")
        cells += [_mark(file, f"{place}.extra.peak_maps .2f") for place in (book, own)]
        cells.append(_mark(file, f"{own}.error .0e"))
        rows.append([f"`{name}`", *cells])
    return _rows(header, rows)


def methods(file: str, record: dict[str, Any]) -> list[str]:
    """A row per loss: on each map its time as a multiple of a mean squared error's, and the maps of memory it takes."""
    names = list(dict.fromkeys(case["name"] for case in record["cases"]))
    known = {(case["name"], case["variant"]): case for case in record["cases"]}
    header = ["loss"]
    for name in names:
        header += [f"{name}: time, times MSE", "memory, maps"]
    rows = []
    for variant in dict.fromkeys(case["variant"] for case in record["cases"]):
        cells, cost, parameters = [], "", ""
        for name in names:
            if (name, variant) not in known:
                cells += ["", ""]
                continue
            place, book = (f"cases[name={name},variant={which}]" for which in (variant, "mse"))
            cells.append(_mark(file, f"{place}.median_seconds / {book}.median_seconds .1f"))
            cells.append(_mark(file, f"{place}.extra.peak_maps .1f"))
            cost = _mark(file, f"{place}.extra.cost")
            parameters = _mark(file, f"{place}.extra.extra_parameters ,d")
        rows.append([f"`{variant}`", *cells, parameters, cost])
    return _rows([*header, "parameters", "grows as"], rows)


def steps(file: str, record: dict[str, Any]) -> list[str]:
    """A row per pair of networks and way to take a step: its time, against the public way and the student alone."""
    rows = []
    for number, case in enumerate(record["cases"]):
        place = f"cases[{number}]"  # names of variants hold spaces and commas
        cells = [_mark(file, f"{place}.median_seconds * 1000 .0f"), f"{_mark(file, f'{place}.ratio .2f')}x"]
        cells.append(f"{_mark(file, f'{place}.extra.times_student .2f')}x")
        cells.append("" if case["peak_bytes"] is None else _mark(file, f"{place}.peak_bytes / 1e6 .0f"))
        cells.append("" if case["error"] is None else _mark(file, f"{place}.error * 100 .2g"))
        networks, _, images = case["name"].partition(":")
        rows.append([f"{networks}, `{images}`" if images else networks, case["variant"], *cells])
    header = ["networks", "step", "ms", "speed-up", "times the student alone", "memory, MB"]
    return _rows([*header, "error of softened maps, %"], rows)


def latency(file: str, record: dict[str, Any]) -> list[str]:
    """A row per network and size: one image at a time, images per second, memory, size of the file."""
    rows = []
    for number, case in enumerate(record["cases"]):
        place = f"cases[{number}]"  # names of cases hold commas where files are called so
        cells = [_mark(file, f"{place}.{key} * 1000 .2f") for key in ("median_seconds", "extra.p95_seconds")]
        cells.append("" if case["ratio"] is None else f"{_mark(file, f'{place}.ratio .2f')}x")
        rate = _mark(file, f"{place}.extra.images_per_second .0f")
        cells.append(f"{rate} at {_mark(file, f'{place}.extra.best_batch')}")
        cells.append("" if case["peak_bytes"] is None else _mark(file, f"{place}.peak_bytes / 1e6 .1f"))
        cells.append(_mark(file, f"{place}.extra.file_bytes / 1e6 .2f"))
        rows.append([f"{case['variant']}, `{case['name']}`", *cells])
    header = [
        "network",
        "one image, ms",
        "p95, ms",
        "times the teacher",
        "images/s, at batch",
        "memory, MB",
        "file, MB",
    ]
    return _rows(header, rows)


def scaling(file: str, record: dict[str, Any]) -> list[str]:
    """A row per loss: along each axis the exponent of time with those of single rounds, and that of memory."""
    largest = {
        (case["variant"], case["extra"]["axis"]): case["name"]
        for case in record["cases"]
        if "exponent" in case["extra"]
    }
    rows = []
    for variant in dict.fromkeys(case["variant"] for case in record["cases"]):
        times, memory = [], []
        for axis in "NCHW":
            place = f"cases[name={largest[variant, axis]},variant={variant}].extra"
            time, low, high = (_mark(file, f"{place}.exponent{end} .2f") for end in ("", "_low", "_high"))
            times.append(f"{time} ({low} to {high})")
            memory.append(_mark(file, f"{place}.memory_exponent .2f"))
        cost = _mark(file, f"cases[name={largest[variant, 'N']},variant={variant}].extra.cost")
        rows.append([f"`{variant}`", *times, *memory, cost])
    header = [*(f"time, {axis}" for axis in "NCHW"), *(f"memory, {axis}" for axis in "NCHW")]
    return _rows(["loss", *header, "grows as"], rows)
