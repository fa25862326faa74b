"""Timed steps of several methods in processes of their own, set up as those of runs are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from densekd import files
from densekd.errors import RunError
from densekd.study.pool import Job, run_jobs
from densekd.study.progress import Silent

Samples = dict[str, list[float]]


def timed(
    methods: Sequence[Mapping[str, Any]],
    places: Sequence[Mapping[str, str]],
    scratch: Path,
    watch: Silent,
    warm_up: int,
) -> list[Samples]:
    """Seconds of single steps by method, once for each place; the places are timed side by side, as runs go on.

    Args:
        methods: as `densekd.study.calibration.time_methods` takes them.
        places: what the environment of each of the processes adds, as of runs (`densekd.study.machine`).
        scratch: a folder that is made, and removed at the end.
        watch: sees the steps.
        warm_up: steps of each turn that are not timed (`densekd.study.calibration.warm_up_of`).

    Raises:
        RunError: a method could not be timed.
    """
    jobs = [
        Job(
            f"timing-{number}",
            {
                "work": "calibrate",
                "methods": list(methods),
                "folder": str(scratch / str(number)),
                "warm_up": warm_up,
            },
            scratch / f"{number}.txt",
        )
        for number in range(len(places))
    ]
    try:
        outcomes = run_jobs(jobs, places, watch)
        failed = [outcome for outcome in outcomes if outcome.status != "done"]
        if failed:
            raise RunError(f"the methods could not be timed: {failed[0].reason}")
    finally:
        files.remove_folder(scratch)
    return [event["samples"] for outcome in outcomes for event in outcome.told if "samples" in event]
