"""Tables of `make matrix`: environments, and places."""

from __future__ import annotations

from typing import Any

from table_rows import mark, rows


def matrix(file: str, record: dict[str, Any]) -> list[str]:
    """A row per environment: versions, extras, how it ended, seconds; a Python that could not be had, and why."""
    lines = []
    for number, cell in enumerate(record["cells"]):
        place = f"cells[{number}]"
        known = cell.get("versions") or {}
        versions = [
            mark(file, f"{place}.versions.{name}") if name in known else cell.get(other, "")
            for name, other in (("python", "python"), ("torch", "torch"), ("torchvision", ""))
        ]
        result = mark(file, f"{place}.result")
        if cell["result"] == "not had":
            versions[0] = mark(file, f"{place}.python")
        seconds = mark(file, f"{place}.seconds .0f") if "seconds" in cell else ""
        lines.append([*versions, cell.get("extras", ""), result, seconds])
    return rows(["Python", "torch", "torchvision", "extras", "result", "seconds"], lines)


def places(file: str, record: dict[str, Any]) -> list[str]:
    """A row per place."""
    found = enumerate(record["places"])
    return rows(["place", "result"], [[each["place"], mark(file, f"places[{at}].result")] for at, each in found])
