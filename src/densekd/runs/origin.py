"""Whether a run folder was made in its place, or came from elsewhere: what its recipe may then execute.

A recipe can name a file of Python, `net.py:build`. Who starts a training names that recipe; who opens a finished run
may have been given it. A run whose recipe names code therefore notes where its folder lies, in numbers of the file
system that an archive, a copy or a download cannot bring along.
"""

from __future__ import annotations

from pathlib import Path

from densekd import files
from densekd.config import Recipe
from densekd.errors import CheckpointError
from densekd.models.reference import parse_reference
from densekd.models.specs import ModelSpec

FILE = "origin.json"
_RECIPE = "recipe.yaml"


def code_of(spec: ModelSpec | None) -> str | None:
    """The file that building a network executes; None for the networks of libraries."""
    return None if spec is None else parse_reference(spec.model).path


def note_origin(folder: Path, recipe: Recipe) -> None:
    """Note that the run in `folder` is made, or gone on with, here; only where its recipe names code."""
    if code_of(recipe.student) is None and code_of(recipe.teacher) is None:
        return
    if not made_here(folder):
        files.write_json(folder / FILE, _place(folder))


def made_here(folder: Path) -> bool:
    """Whether the folder lies where its run was made: false for a copy, and for one without a note."""
    try:
        return bool(files.read_json(folder / FILE) == _place(folder))
    except (CheckpointError, OSError):
        return False


def _place(folder: Path) -> dict[str, int]:
    """Inodes: they stay when a folder is renamed, and are others in every copy."""
    return {"folder": folder.stat().st_ino, "recipe": (folder / _RECIPE).stat().st_ino}
