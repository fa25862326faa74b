"""The one set of stored maps that all runs of a study read: made before the first of them."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import replace

from densekd.records import CacheRecord
from densekd.runs import words
from densekd.runs.assemble import build_distiller
from densekd.runs.cache import Stored, looked_at, stored_maps
from densekd.runs.progress import Quiet
from densekd.study.check import Opened
from densekd.study.methods import Method, tapping
from densekd.teacher import FrozenTeacher


def shared_maps(
    opened: Opened, teacher: FrozenTeacher, methods: Sequence[Method], *, build: bool, watch: Quiet
) -> CacheRecord | None:
    """The set with the maps of all methods.

    Args:
        opened: data and networks of the study; they stay as they are.
        teacher: the fast copy, with the taps of all methods.
        methods: all of the study's.
        build: build the set where it is missing, if somebody says yes; else say only what that would cost.
        watch: watches the build, may be asked, and is told.

    Returns:
        For the record; None where the recipe asks for none, or the set is not there and not to be built.

    Raises:
        DensekdError: as `densekd.runs.cache.stored_maps`.
    """
    if opened.parts.recipe.distill.cache is None:
        return None
    recipe = opened.parts.recipe.model_copy(update={"terms": tapping(methods)})
    parts = replace(opened.parts, recipe=recipe, student=copy.deepcopy(opened.parts.student), notices=[])
    distiller = build_distiller(parts, teacher)  # not closed: it would close the teacher too
    if build:
        return _recorded(stored_maps(parts, distiller, opened.sha256, progress=watch, say=watch.said))
    lines, found = looked_at(parts, distiller, opened.sha256)
    for line in lines:
        watch.said(line)
    return None if found is None else _recorded(found)


def _recorded(stored: Stored) -> CacheRecord:
    try:
        return stored.record()
    finally:
        stored.reader.close()


def shared_words(record: CacheRecord | None) -> list[str]:
    """What a reader of the study should know of it."""
    if record is None:
        return []
    return [
        f"the teacher's maps were stored once, in {words.duration(record.build_seconds)}, and read by every run: that "
        "time is in no run's seconds",
        f"every run sees the same {record.views} views of each training image again and again, the student alone too "
        "(train.views): what new views in every epoch give is not in these scores",
    ]
