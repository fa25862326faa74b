"""What a run keeps to be looked at, under `looks/`: scores of its images, pictures of some, its terms' softened maps.

Nothing of it is part of the training: networks and random states are left as they were, and what fails here becomes a
line of the record.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from densekd import files
from densekd.data.base import SegmentationSet
from densekd.distiller import Distiller
from densekd.failures import explained
from densekd.looks.choice import extremes
from densekd.looks.records import FOLDER, ImageScore, ImagesFile, ScoredImages, as_file
from densekd.runs.assemble import Parts
from densekd.runs.look_maps import MapLooks
from densekd.runs.look_pictures import (
    Answering,
    answering_teacher,
    differing,
    looked_at,
    picture_files,
    teacher_again,
)
from densekd.runs.progress import Quiet
from densekd.training.checkpointer import Position
from densekd.training.loop import Loop
from densekd.training.sharding import is_sharded

_LONGEST = 300
_TITLES = {"teacher": "teacher", "before": "student before training", "after": "student after training"}


class Looking:
    """Looks at the networks of a run before its first step and after its last.

    Args:
        say: for lines that the user sees and the record keeps.
        on: whether this process is the one that writes.
    """

    def __init__(self, parts: Parts, progress: Quiet, say: Callable[[str], None], *, on: bool) -> None:
        self.parts, self.progress, self.on = parts, progress, on
        self._say = say
        self.spec = parts.recipe.report
        self.maps: MapLooks | None = None
        self.said: list[str] = []
        self.taught = False

    def before(self, distiller: Distiller, teacher: nn.Module) -> None:
        """Look at the student as it starts, on a resume too: it is built from the seed again, before its weights
        are read from the checkpoint.

        Args:
            teacher: the plain network.
        """
        self.taught = True
        if not self.on or not self.spec.channels:
            return

        def look() -> None:
            maps = MapLooks(self.parts, distiller, self.parts.recipe.terms)
            if maps.terms:
                with looked_at(self.parts.student, teacher):
                    maps.add("before", self.parts.student, teacher, self.progress.looking)
                maps.forget_teacher("before")
            self.maps = maps

        self._guarded("softened maps", look)

    def after(self, loop: Loop, position: Position, teacher_digest: str) -> None:
        """Look at what was evaluated last and write `looks/`; the run is done, whatever happens here.

        Args:
            teacher_digest: of the teacher's weights at the start.
        """
        if not self.on:
            return
        recorder, student = loop.recorder, loop.stepper.shipped
        self._guarded("looks/", lambda: self._keep(recorder.folder, student, position, teacher_digest))
        if self.said:  # without the seconds that this took
            warnings = [*recorder.record.warnings, *self.said]
            recorder.update(warnings=list(dict.fromkeys(warnings)), cost=recorder.record.cost)

    def _keep(self, folder: Path, student: nn.Module, position: Position, teacher_digest: str) -> None:
        content = {"images.json": images_file(self.parts.data.val, position)}
        teacher = None
        if self.taught and (self.spec.images or (self.maps is not None and self.maps.terms)):
            teacher = self._guarded("the teacher's part", lambda: teacher_again(self.parts, teacher_digest))
        with looked_at(student, teacher):
            if self.spec.images:
                content |= self._guarded("pictures", lambda: self._pictures(student, teacher, position)) or {}
            if self.maps is not None and (teacher is not None or not self.maps.terms):
                content |= self._guarded("softened maps", lambda: self._softened(student, teacher)) or {}
        files.write_folder(folder / FOLDER, content)

    def _pictures(self, student: nn.Module, teacher: nn.Module | None, position: Position) -> dict[str, bytes]:
        scored = position.images.get("final")
        if scored is None:
            self.say("looks: no pictures: an earlier version of densekd made the last evaluation")
            return {}
        parts, watch, notes = self.parts, self.progress.looking, list[str]()
        networks = {"student": Answering(parts, student, "student")}
        apart = None
        if teacher is not None:
            answers = answering_teacher(parts, teacher)
            if answers is None:
                notes.append("the teacher gives features, not classes: it has no answer to show")
            else:
                apart = differing(parts, networks["student"], answers, watch)
                networks = {"teacher": answers, **networks}
        choice = extremes([None if pair is None else pair[0] for pair in scored["scores"]], self.spec.images, apart)
        return picture_files(parts, choice, networks, notes, watch)

    def _softened(self, student: nn.Module, teacher: nn.Module | None) -> dict[str, bytes]:
        maps = self.maps
        assert maps is not None
        if teacher is not None:
            if is_sharded(maps.distiller.adapters):
                maps.drop_adapted("its adapter's weights are in shards (runtime.fsdp)")
            if maps.terms:
                maps.add("after", student, teacher, self.progress.looking)
        return maps.files(self.spec.channels, _TITLES)

    def say(self, line: str) -> None:
        """A line that the user sees and the record keeps."""
        self._say(line)
        self.said.append(line)

    def _guarded(self, what: str, work: Callable[[], Any]) -> Any:
        """What `work` gives; None where it fails, which is said."""
        try:
            return work()
        except Exception as error:
            known = explained(error)
            words = " ".join((str(known) if known is not None else f"{type(error).__name__}: {error}").split())
            self.say(f"looks: {what} could not be kept, and the run is done without: {words[:_LONGEST]}")
            return None


def images_file(val: SegmentationSet, position: Position) -> bytes:
    """`images.json` from what a position keeps of the final and the best evaluation."""
    found = {which: _scored(val, entry) for which, entry in position.images.items()}
    return as_file(ImagesFile(final=found.get("final"), best=found.get("best")))


def _scored(val: SegmentationSet, entry: Mapping[str, Any]) -> ScoredImages:
    images = []
    for index, pair in enumerate(entry["scores"]):
        miou, accuracy = (None, None) if pair is None else pair
        images.append(ImageScore(name=files.as_text(val.name_of(index)), miou=miou, accuracy=accuracy))
    return ScoredImages(step=entry["step"], images=images)
