"""May a set be built? Asked on a terminal, answered in the recipe, refused without an answer or without the room."""

from __future__ import annotations

from pathlib import Path

from densekd.config import CacheSpec
from densekd.errors import ConfigError, ResourceError
from densekd.runs.cache.estimate import Estimate
from densekd.runs.progress import Quiet


def require_consent(found: Estimate, spec: CacheSpec, folder: Path, progress: Quiet) -> None:
    """Go on only if the disk has the room and somebody said yes.

    Raises:
        ResourceError: fewer bytes are free than the set needs.
        ConfigError: nobody can be asked and the recipe does not answer, or the answer was no.
    """
    if not found.fits:
        raise ResourceError(
            f"{folder}: the teacher's maps would take {found.words()}: not enough; free some, choose another "
            "distill.cache.root, fewer distill.cache.views, or distill.cache.encoding=int8"
        )
    if not spec.ask:
        progress.said(f"cache: building {folder}: {found.words()}")
        return
    answer = progress.confirm(f"cache: {folder} is not there yet: {found.words()}. Build it?")
    if answer is None:
        raise ConfigError(
            f"distill.cache: {folder} is not there yet; building it takes {found.words()}. Nobody can be asked here: "
            "distill.cache.ask=false says yes, and so does `densekd cache build RECIPE --yes`"
        )
    if not answer:
        raise ConfigError("distill.cache: not built, as answered; distill.cache=null runs the teacher in every step")
