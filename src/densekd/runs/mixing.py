"""Labelled and unlabelled images in a run's batches: how many of each, and what to say of them."""

from __future__ import annotations

from densekd.config import Recipe
from densekd.data.unlabelled import unlabelled_per_batch


def unlabelled_share(recipe: Recipe, *, used: bool) -> tuple[int, list[str]]:
    """Unlabelled images in every batch, and notices about them.

    Args:
        used: False for a training without a teacher, which leaves `data.unlabelled` aside and says so.

    Raises:
        ConfigError: the ratio asks for less than one image.
    """
    spec, batch = recipe.data.unlabelled, recipe.train.batch_size
    if spec is None:
        return 0, []
    if not used:
        return 0, ["data.unlabelled is not used: without a teacher, images without labels teach nothing"]
    count = unlabelled_per_batch(spec.ratio, batch)
    share = count / (count + batch)
    if abs(share - spec.ratio) < 0.005:
        return count, []
    return count, [
        f"data.unlabelled.ratio: {spec.ratio:g} was asked for; {count} beside {batch} labelled images is {share:.3g}"
    ]


def in_words(labelled: int, batch_size: int, unlabelled: int, unlabelled_per_batch: int) -> str:
    """How many images there are to train on, and in a batch."""
    if not unlabelled:
        return f"{labelled}, {batch_size} in a batch"
    share = 100 * unlabelled_per_batch / (batch_size + unlabelled_per_batch)
    return (
        f"{labelled} labelled and {unlabelled} unlabelled, {batch_size} and {unlabelled_per_batch} in a batch "
        f"({share:.0f}% unlabelled)"
    )
