"""What `cache build` does, and which maps a recipe means: a recipe made real as far as the teacher's maps need it."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from densekd.config import Recipe
from densekd.distiller import Distiller
from densekd.errors import ConfigError
from densekd.models.digest import weights_digest
from densekd.records import CacheRecord
from densekd.runs.asked_teacher import require_teacher
from densekd.runs.assemble import Parts, assemble, build_distiller, build_teacher
from densekd.runs.cache.prepare import Wish, stored_maps
from densekd.runs.fast_teacher import fast_teacher
from densekd.runs.progress import Quiet
from densekd.runs.ranks import Ranks


def build_maps(recipe: Recipe, progress: Quiet, ranks: Ranks) -> CacheRecord:
    """The set that the recipe's distillation reads, built where it is missing; nothing is trained.

    Raises:
        ConfigError: the recipe has no `distill.cache`; nobody answered the question, or the answer was no.
        DensekdError: as a run itself would raise, or `stored_maps`.
    """
    require_cache(recipe)
    with _made(recipe, progress, ranks) as (parts, distiller, sha256):
        for notice in parts.unseen:
            progress.said(notice)
        stored = stored_maps(parts, distiller, sha256, progress=progress, ranks=ranks, say=progress.said)
        record = stored.record()
        stored.reader.close()
    return record


def wish_of(recipe: Recipe, progress: Quiet) -> Wish:
    """The maps that the recipe's distillation reads.

    Raises:
        DensekdError: as `build_maps`.
    """
    require_cache(recipe)
    with _made(recipe, progress, Ranks.alone()) as (parts, distiller, sha256):
        return Wish.of(parts, distiller, sha256)


def require_cache(recipe: Recipe) -> None:
    """Raises:
    ConfigError: the recipe reads no stored maps.
    """
    if recipe.distill.cache is None:
        raise ConfigError(
            "recipe: distill.cache is null, so its teacher runs in every step; give distill.cache.root, for instance "
            "distill.cache.root=cache/teacher"
        )


@contextmanager
def _made(recipe: Recipe, progress: Quiet, ranks: Ranks) -> Iterator[tuple[Parts, Distiller, str]]:
    def make() -> tuple[Parts, Distiller, str]:
        require_teacher(recipe)
        parts = assemble(recipe, watch=progress.checking, launch=ranks.launch, said=progress.said)
        teacher = build_teacher(parts)
        sha256 = weights_digest(teacher)
        return parts, build_distiller(parts, fast_teacher(parts, teacher, ranks)), sha256

    parts, distiller, sha256 = ranks.agreed("data and networks", make)
    try:
        yield parts, distiller, sha256
    finally:
        distiller.close()
