"""What tables made from records are put together of: marks, and rows of Markdown."""

from __future__ import annotations


def mark(file: str, spec: str) -> str:
    """A mark that `check_numbers.py` fills."""
    return f"<!-- record: {file} {spec} --><!-- /record -->"


def rows(header: list[str], cells: list[list[str]]) -> list[str]:
    """A table whose first column is of words, the others of numbers."""
    rule = ["---", *["---:"] * (len(header) - 1)]
    return [f"| {' | '.join(row)} |" for row in (header, rule, *cells)]
