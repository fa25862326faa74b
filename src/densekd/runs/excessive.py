"""Numbers that no machine or no data set can serve: told before such a batch is loaded, or a process started."""

from __future__ import annotations

from torch import Tensor

from densekd.config import Recipe
from densekd.errors import ConfigError, ResourceError
from densekd.losses.available_memory import available_bytes
from densekd.runs import words
from densekd.runs.length import total_steps
from densekd.runs.parts import Parts
from densekd.runs.threads import logical_cpus

_WORKERS_PER_CPU = 8
"""Loading processes that wait for a slow network may be several to a CPU; of more, each only takes memory."""
_TURNS = 1_000
"""How often one step may show an image: more is a slip of the pen, and the first step would never come."""


def usable_workers(recipe: Recipe, *, fresh: bool) -> list[str]:
    """What to say of the loading processes, where there are far more than CPUs.

    Args:
        fresh: the run begins here. One that is gone on with, or scored, may come from a larger machine.

    Raises:
        ConfigError: a run would begin with more than 8 loading processes for each logical CPU.
    """
    asked, present = recipe.runtime.workers, logical_cpus()
    most = _WORKERS_PER_CPU * present
    if asked <= most:
        return []
    line = f"runtime.workers: {asked} loading processes are more than {_WORKERS_PER_CPU} for each of the {present} "
    if fresh:
        raise ConfigError(f"{line}logical CPUs of this machine; give {most} or fewer, best no more than CPUs")
    return [f"{line}logical CPUs of this machine: loading will be slow, and each takes memory of its own"]


def require_possible(parts: Parts) -> list[str]:
    """Refuse a step that cannot be; what to say of one that is odd.

    A micro-batch is there twice when it is put together, as samples and as one tensor of each kind. Maps of the
    networks come on top, so what passes may still need more memory than there is.

    Raises:
        ConfigError: a step shows every training image more than 1,000 times.
        ResourceError: a micro-batch of images and labels alone is larger than the memory that is available.
    """
    _require_memory(parts)
    return [*_turns(parts), *_left_over_workers(parts)]


def _require_memory(parts: Parts) -> None:
    sample = parts.train_view()[(0, 0)]
    each = 2 * sum(value.nbytes for value in sample.values() if isinstance(value, Tensor))
    count, free = parts.recipe.train.batch_size + parts.unlabelled_per_batch, available_bytes()
    if count * each > free:
        height, width = sample["image"].shape[-2:]
        raise ResourceError(
            f"train.batch_size: {count:,} images of {height}x{width} with their labels take {words.size(count * each)} "
            f"before a network sees them, and {words.size(free)} of memory are available; at most {free // each:,} "
            "would fit, and the networks' maps need room too (train.accumulate makes up for a smaller batch)"
        )


def _turns(parts: Parts) -> list[str]:
    step, images, train = parts.share.images, len(parts.data.train), parts.recipe.train
    if step <= images:
        return []
    key = "batch_size" if train.accumulate == 1 else "batch_size x train.accumulate"
    key = f"train.{key if train.global_batch_size is None else 'global_batch_size'}"
    line = f"{key}: a step takes {step:,} images, and there are {images:,} to train on"
    if step > _TURNS * images:
        raise ConfigError(
            f"{line}: each would be shown {step // images:,} times before the weights change; give at most "
            f"{_TURNS * images:,}, best no more than there are images"
        )
    return [f"{line}: some are shown several times in a step"]


def _left_over_workers(parts: Parts) -> list[str]:
    workers, share = parts.recipe.runtime.workers, parts.share
    if not workers:
        return []
    batches = total_steps(parts.recipe, len(parts.data.train), share.images) * share.accumulate
    if workers <= batches:
        return []
    return [
        f"runtime.workers: {workers} loading processes, and the whole run takes {batches} micro-batches: "
        f"{workers - batches} of them will load nothing in training"
    ]
