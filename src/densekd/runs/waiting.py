"""What to say of a run that waited for its images."""

from __future__ import annotations

from densekd.config import Recipe
from densekd.data.specs import ScenesDataSpec
from densekd.runs.threads import logical_cpus

STARVED = 0.2
"""Share of the time of the steps from which on it is said."""


def waiting_words(share: float | None, recipe: Recipe) -> list[str]:
    """One line for a run that spent `share` of its steps' time waiting for images; none below `STARVED`."""
    if share is None or share < STARVED:
        return []
    workers, ways = recipe.runtime.workers, []
    if workers < logical_cpus():
        ways.append(f"more loading processes (runtime.workers, now {workers}; {logical_cpus()} logical CPUs)")
    if not recipe.data.in_memory:
        ways.append("images kept in memory where they fit (data.in_memory; once per loading process)")
    if not isinstance(recipe.data, ScenesDataSpec):
        ways.append("files stored no larger than training needs them")
    if not ways:
        ways.append("a machine with more CPUs")
    return [f"{share:.0%} of the training time was spent waiting for images. What helps: {', or '.join(ways)}"]
