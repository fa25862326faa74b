"""What a run asks of its folder; looked at before the checks, and again once the folder is held."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from densekd.config import Recipe
from densekd.records import RunRecord
from densekd.runs.folder import Run, check_folder


@dataclass(frozen=True)
class Claim:
    """A folder, the run that is to be in it, and how.

    Attributes:
        method: what the run will record as its method.
        resume: go on with the run that is there.
        force: start again in a folder that holds a run.
    """

    folder: Path
    recipe: Recipe
    method: str
    resume: bool
    force: bool

    def look(self) -> RunRecord | None:
        """Check the folder as it is now; nothing is changed. The record of the run to go on with, where there is one.

        Raises:
            RunError: it cannot be used as asked (see `check_folder`).
        """
        check_folder(self.folder, self.recipe, self.method, resume=self.resume, force=self.force)
        if self.resume and (self.folder / "record.json").is_file():
            return Run.load(self.folder).record
        return None
