"""Whether a run's folder is still where the run began: one that is moved while it trains must not become two."""

from __future__ import annotations

from pathlib import Path

from densekd.errors import RunError


class Presence:
    """A folder that held a recipe when this was made, and has to hold it whenever something is written.

    The recipe is looked for, not the folder's inode: some file systems of a network give a folder new ones.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._known = self._there()

    def _there(self) -> bool:
        return (self.folder / "recipe.yaml").is_file()

    def require(self) -> None:
        """Refuse to write where the folder is gone, which would begin a second one under its name.

        Raises:
            RunError: it was moved, renamed or removed.
        """
        if self._known and not self._there():
            raise RunError(
                f"{self.folder}: was moved, renamed or removed while the run trained in it; nothing more is written. "
                "Where it was moved, what was saved stands there: give --resume with the folder's new name"
            )
