"""Tables of `make matrix`: environments, and places."""

from __future__ import annotations

from typing import Any

from table_rows import mark, rows


def matrix(file: str, record: dict[str, Any]) -> list[str]:
    """A row per environment: versions, extras, how it ended, seconds; a Python that could not be had, and why."""
    lines = []
    for number, cell in enumerate(record["cells"]):
        place, known = f"cells[{number}]", cell.get("versions") or {}
        versions = [
            # What was found; where nothing came so far, what was asked for.
            mark(file, f"{place}.{'versions.' if name in known else ''}{name}") if name in known or name in cell else ""
            for name in ("python", "torch", "torchvision")
        ]
        seconds = mark(file, f"{place}.seconds .0f") if "seconds" in cell else ""
        lines.append([*versions, cell.get("extras", ""), mark(file, f"{place}.result"), seconds])
    return rows(["Python", "torch", "torchvision", "extras", "result", "seconds"], lines)


def places(file: str, record: dict[str, Any]) -> list[str]:
    """A row per place."""
    found = enumerate(record["places"])
    return rows(["place", "result"], [[each["place"], mark(file, f"places[{at}].result")] for at, each in found])
