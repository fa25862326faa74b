"""From a distiller whose teacher runs to stored maps: the set found, or asked for and built."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from densekd.config import CacheSpec
from densekd.distiller import Distiller
from densekd.errors import CacheError, RunError
from densekd.launch import Launch
from densekd.runs.assemble import Parts
from densekd.runs.cache.ask import require_consent
from densekd.runs.cache.build import Filler, Sample
from densekd.runs.cache.estimate import Estimate, estimate
from densekd.runs.cache.key import key_of
from densekd.runs.cache.sets import add_build, folder_of, narrowed, serving, stale
from densekd.runs.cache.stored import Stored
from densekd.runs.progress import Quiet
from densekd.runs.ranks import Ranks
from densekd.teacher_cache import CacheKey, MapReader, MapWriter
from densekd.teacher_cache.header import HEADER

Say = Callable[[str], None]


@dataclass(frozen=True)
class Wish:
    """The maps that a run wants, before anybody has looked for them.

    Attributes:
        filler: the teacher that would make them.
        spec: the recipe's `distill.cache`.
        key: of the set that would hold these and no others.
    """

    filler: Filler
    spec: CacheSpec
    key: CacheKey

    @classmethod
    def of(cls, parts: Parts, distiller: Distiller, sha256: str) -> Wish:
        """What the distiller's terms want of the teacher with these weights."""
        spec = parts.recipe.distill.cache
        assert spec is not None  # the caller has looked
        filler = Filler(parts, distiller)
        return cls(filler, spec, key_of(parts, spec, sha256, filler.shapes, filler.precision))

    @property
    def root(self) -> Path:
        return Path(self.spec.root)

    @property
    def folder(self) -> Path:
        """Where a set of these maps alone lies, or would."""
        return folder_of(self.root, self.key)

    @property
    def begun(self) -> str | None:
        """Digest of the maps that the run to go on with began with; None where there is none."""
        before = self.filler.parts.before
        return None if before is None or before.cache is None else before.cache.sha256

    @property
    def _any_precision(self) -> bool:
        teacher = self.filler.parts.recipe.teacher
        return teacher is not None and teacher.engine.dtype == "auto"

    @property
    def images(self) -> int:
        return len(self.filler.parts.train_view())

    def found(self, say: Say) -> Stored | None:
        """The first whole set that serves; None where there is none.

        A damaged one of this very key is not passed over here: building it says what is wrong with it.
        """
        for one in serving(self.root, self.key, any_precision=self._any_precision, before=self.begun):
            if not one.whole:
                continue
            try:
                maps = narrowed(one.key, self.key)
                return Stored(MapReader(one.path, one.key), maps, tuple(self.filler.shapes))
            except CacheError as error:
                if one.key != self.key:
                    say(f"cache: passed over: {error}")
        return None

    def stale(self) -> list[str]:
        """A line about the nearest set that does not serve."""
        return stale(self.root, self.key, any_precision=self._any_precision)

    def missing(self, say: Say) -> list[Sample]:
        """(view, index) of everything that no build has stored yet; nothing is changed where no set is begun.

        Args:
            say: called with lines about what was found to be no longer whole.
        """
        if not (self.folder / HEADER).is_file():
            return [(view, index) for view in range(self.spec.views) for index in range(self.images)]
        with self._writer(Launch()) as writer:
            for notice in writer.notices:
                say(f"cache: {notice}")
            return writer.missing()

    def estimate(self, say: Say, world: int = 1) -> Estimate | None:
        """What storing the rest will cost; None where nothing is missing. `say` as of `missing`."""
        missing = self.missing(say)
        return estimate(self.filler, missing, self.spec.encoding, self.root, world) if missing else None

    def build(self, ranks: Ranks, progress: Quiet) -> None:
        """Store what is missing, each process its share.

        Raises:
            Interrupted: a signal came; what is stored is kept.
            DensekdError: an image cannot be read, the disk is full, another process is building the set.
        """
        ranks.agreed("the teacher's maps", lambda: self._fill(ranks, progress))
        ranks.from_first("the end of the set", self._finish)

    def _fill(self, ranks: Ranks, progress: Quiet) -> None:
        begin = time.monotonic()
        with self._writer(ranks.launch) as writer:
            missing = writer.missing()

            def watch(done: int) -> None:
                if ranks.first:
                    progress.caching(done, len(missing))

            try:
                self.filler.fill(writer, missing, watch, progress.said)
            finally:
                if ranks.first:
                    add_build(self.folder, time.monotonic() - begin, self._about())

    def _finish(self) -> str:
        with self._writer(Launch()) as writer:
            summary = writer.finish()
        if not summary.whole:
            raise CacheError(f"{self.folder}: {summary.missing} views are missing after the build; build it again")
        return str(summary.bytes)

    def _writer(self, launch: Launch) -> MapWriter:
        return MapWriter(
            self.folder,
            self.key,
            taps=self.filler.shapes,
            views=self.spec.views,
            images=self.images,
            encoding=self.spec.encoding,
            rank=launch.rank,
            world=launch.world,
            class_taps=self.filler.class_taps,
            image_size=self.filler.image_size,
        )

    def _about(self) -> dict[str, str]:
        recipe = self.filler.parts.recipe
        assert recipe.teacher is not None  # of a distillation
        return {"recipe": recipe.name, "teacher": recipe.teacher.model, "data": recipe.data.name}


def stored_maps(
    parts: Parts, distiller: Distiller, sha256: str, *, progress: Quiet, ranks: Ranks | None = None, say: Say
) -> Stored:
    """The set that the recipe's `distill.cache` asks for; built first where it is missing and somebody says yes.

    Args:
        parts: data, recipe and device of the run.
        distiller: with the teacher that runs.
        sha256: digest of the teacher's weights.
        progress: watches the build, and may be asked.
        ranks: the processes that build it together; default this one alone.
        say: called with lines for the user and the record.

    Raises:
        ConfigError: nobody answered, or the answer was no.
        ResourceError: the disk has not the room.
        RunError: the run to go on with began with other maps.
        CacheError: the set is damaged, or another process is building it.
        Interrupted: a signal came during the build; the same command goes on.
    """
    ranks = ranks or Ranks.alone()
    wish = ranks.agreed("the key of the teacher's maps", lambda: Wish.of(parts, distiller, sha256))
    ranks.same("the key of the teacher's maps", wish.key.digest)
    asked = ranks.from_first("the set of the teacher's maps", lambda: json.dumps(_build(wish, progress, ranks, say)))
    if json.loads(asked):
        wish.build(ranks, progress)
    stored = ranks.agreed("the teacher's maps, to read", lambda: _read(wish))
    for line in (stored.words(), *stored.doubts()):
        say(line)
    return stored


def looked_at(parts: Parts, distiller: Distiller, sha256: str) -> tuple[list[str], Stored | None]:
    """Whether the set is there, and else what building it would cost: lines for a user; nothing is built.

    Returns:
        Lines, and the set where it is there.
    """
    wish, lines = Wish.of(parts, distiller, sha256), list[str]()
    found = wish.found(lines.append)
    if found is not None:
        return [*lines, found.words()], found
    lines += wish.stale()
    cost = wish.estimate(lines.append)
    return [*lines, f"cache: {wish.folder} is not there yet" + ("" if cost is None else f": {cost.words()}")], None


def _build(wish: Wish, progress: Quiet, ranks: Ranks, say: Say) -> bool:
    """Whether the set is to be built, which is agreed to then."""
    found = wish.found(say)
    _require_same(wish, wish.key if found is None else found.wanted)
    if found is not None:
        return False
    for line in wish.stale():
        say(line)
    cost = wish.estimate(say, ranks.world)
    if cost is not None:
        require_consent(cost, wish.spec, wish.folder, progress)
    return True


def _require_same(wish: Wish, maps: CacheKey) -> None:
    if wish.begun not in {None, maps.digest}:
        raise RunError(
            f"the run began with other maps of its teacher (key {str(wish.begun)[:16]}, now {maps.digest[:16]}): its "
            "images, their augmentation, the teacher's number format, or the installed torchvision have changed; put "
            "that back, or start again with --force"
        )


def _read(wish: Wish) -> Stored:
    found = wish.found(lambda _line: None)
    if found is None:
        raise CacheError(f"{wish.folder}: not seen by this process; all machines must share distill.cache.root")
    return found
