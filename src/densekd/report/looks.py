"""Sections of a page from the pictures that a run has kept under `looks/`."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from densekd.report.section import Section


def run_sections(folder: Path) -> list[Section]:
    """What the run in `folder` shows of its networks; empty: it has kept no pictures."""
    return []


def study_sections(folder: Path, runs: Mapping[str, Path]) -> list[Section]:
    """The networks of several runs beside each other; empty: the study in `folder` has kept no pictures.

    Args:
        folder: the study's.
        runs: the runs' folders by the name that the page gives them.
    """
    return []
