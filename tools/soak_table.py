"""The table of `benchmarks/soak.py`."""

from __future__ import annotations

from typing import Any

from table_rows import mark, rows


def soak(file: str, record: dict[str, Any]) -> list[str]:
    """A row per stage: steps, what was done besides, growth of memory with its spread, files and threads."""
    header = [
        "",
        "steps",
        "evaluations",
        "pages",
        "own memory, MB in 1,000 steps",
        "all resident",
        "spread of own",
        "MB at the end",
    ]
    lines = []
    for number, case in enumerate(record["cases"]):

        def found(spec: str, number: int = number) -> str:
            return mark(file, f"cases[{number}].extra.{spec}")

        spread = f"{found('own_slope_low .2f')} to {found('own_slope_high .2f')}"
        cells = [found(name) for name in ("steps", "evaluations", "pages", "own_slope .2f", "rss_slope .2f")]
        counts = [found(name) for name in ("files_most", "threads_most")]
        lines.append([case["name"], *cells, spread, found("rss_last .0f"), *counts])
    return rows([*header, "open files, most", "threads, most"], lines)
