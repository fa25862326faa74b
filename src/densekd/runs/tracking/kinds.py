"""One way to begin, to speak to and to end for each kind of tracker."""

from __future__ import annotations

import re
import secrets
import threading
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from densekd import files
from densekd.config import Recipe, dump_recipe
from densekd.records import TrackerRecord
from densekd.runs.tracking.check import wandb_mode

FOLDER = "tracking"
"""In the run's folder: what the trackers' libraries write."""
_PATIENCE = 120.0
"""Seconds that W&B gets at the end of a run to send the rest."""


@dataclass(frozen=True)
class Start:
    """What a tracker begins with.

    Attributes:
        folder: the run's.
        recipe: the run's, resolved.
        purge: the first step that will be told; what an interrupted run told of it and later ones does not count.
        before: what the record of the run to go on with says of this tracker.
    """

    folder: Path
    recipe: Recipe
    purge: int | None = None
    before: TrackerRecord | None = None

    @property
    def fresh(self) -> bool:
        """Whether nothing that it was told of this run counts."""
        return self.before is None or not self.purge


class Kind(Protocol):
    """A tracker of one kind; whatever it raises is the caller's to catch."""

    start: Start
    record: TrackerRecord

    def begin(self) -> str:
        """Open it and store the recipe; a line for the user."""
        ...

    def log(self, values: dict[str, float], step: int) -> None: ...

    def log_images(self, pictures: dict[str, np.ndarray], step: int) -> None: ...

    def finish(self, *, whole: bool) -> str | None:
        """Close it; `whole`: the run ended as it should. A line for the user where something is left to do."""
        ...


class TensorBoard:
    """Event files in `tracking/tensorboard`."""

    def __init__(self, start: Start) -> None:
        self.start = start
        self.record = TrackerRecord(where=f"{FOLDER}/tensorboard", version=metadata.version("tensorboard"))

    def begin(self) -> str:
        from accelerate.tracking import TensorBoardTracker

        start = self.start
        self.tracker = TensorBoardTracker("tensorboard", start.folder / FOLDER, purge_step=start.purge)
        self.tracker.start()
        if start.fresh:
            # A text, and not its hyper-parameters: those would be a second run beside this one in every list.
            self.tracker.log({"recipe": fenced(dump_recipe(start.recipe))}, step=0)
        return f"tensorboard: {start.folder / self.record.where} (`tensorboard --logdir {start.folder.parent}`)"

    def log(self, values: dict[str, float], step: int) -> None:
        self.tracker.log(values, step=step)

    def log_images(self, pictures: dict[str, np.ndarray], step: int) -> None:
        self.tracker.log_images(pictures, step=step, dataformats="NHWC")

    def finish(self, *, whole: bool) -> str | None:
        self.tracker.finish()
        return None


def fenced(text: str) -> str:
    """YAML as code in Markdown: its fence is longer than any run of backticks in it, so that no text ends it."""
    longest = max((len(run) for run in re.findall("`+", text)), default=0)
    fence = "`" * max(3, longest + 1)
    return f"{fence}yaml\n{files.as_text(text)}{fence}"


class WeightsAndBiases:
    """A run of W&B; its files lie in `tracking/wandb`."""

    def __init__(self, start: Start) -> None:
        self.start, self.mode = start, wandb_mode()
        begun = None if start.before is None else start.before.id
        self.record = TrackerRecord(
            where=f"{FOLDER}/wandb", version=metadata.version("wandb"), id=begun or secrets.token_hex(4)
        )

    def begin(self) -> str:
        import wandb
        from accelerate.tracking import WandBTracker

        spec, folder = self.start.recipe.track, self.start.folder
        # W&B takes another folder where this one is missing, and turns standard output into its own.
        (folder / FOLDER).mkdir(exist_ok=True)
        self.tracker = WandBTracker(
            spec.project,
            name=spec.name or folder.absolute().name,
            id=self.record.id,
            resume="allow",
            group=spec.group,
            entity=spec.entity,
            dir=str(folder / FOLDER),
            settings=wandb.Settings(console="off", silent=True),
        )
        self.tracker.start()
        self.tracker.store_init_configuration(self.start.recipe.model_dump(mode="json"))
        if self.mode == "disabled":
            return "wandb: WANDB_MODE=disabled: nothing of this run is kept there"
        if self.mode == "offline":
            files = folder / self.record.where / "offline-run-*"
            return f"wandb: offline, run {self.record.id}; `wandb sync {files}` sends it"
        self.record = self.record.model_copy(update={"where": self.tracker.run.url or self.record.where})
        return f"wandb: {self.record.where}"

    def log(self, values: dict[str, float], step: int) -> None:
        self.tracker.log(values, step=step)

    def log_images(self, pictures: dict[str, np.ndarray], step: int) -> None:
        self.tracker.log_images(pictures, step=step)

    def finish(self, *, whole: bool) -> str | None:
        run: Any = self.tracker.tracker
        failed: list[Exception] = []

        def close() -> None:
            try:
                run.finish(exit_code=0 if whole else 1)
            except Exception as error:
                failed.append(error)

        # It sends what is left first, however long that takes: beside the run, so that it can be left alone.
        closing = threading.Thread(target=close, daemon=True)
        closing.start()
        closing.join(_PATIENCE)
        if failed:
            raise failed[0]
        if closing.is_alive():
            files = self.start.folder / FOLDER / "wandb" / "run-*"
            return f"wandb: still sending after {_PATIENCE:g} s; `wandb sync {files}` does the rest"
        return None


KINDS: dict[str, type[TensorBoard] | type[WeightsAndBiases]] = {
    "tensorboard": TensorBoard,
    "wandb": WeightsAndBiases,
}
