"""One machine shared out among runs that train at the same time."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from densekd.errors import ConfigError

#: runs at a time for each CPU (or GPU, where there are more): beyond, they only take each other's memory
_MOST_PER_CPU = 4


@dataclass(frozen=True)
class Share:
    """What each of the runs at a time gets.

    Attributes:
        threads: CPU threads; None: the recipe's own choice.
        places: for each run at a time, what its process's environment adds: its threads, its GPU.
        told: lines for the user.
    """

    threads: int | None
    places: tuple[dict[str, str], ...]
    told: tuple[str, ...] = ()


def cpus() -> int:
    """Logical CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def share_out(
    jobs: int,
    *,
    cores: int,
    gpus: int,
    runs: int | None = None,
    asked_threads: int | None = None,
    environment: Mapping[str, str] = os.environ,
) -> Share:
    """Share the machine out among `jobs` runs at a time.

    CPU threads: `cores // jobs` each, at least one, and no more than the recipe asks for; one run at a time is left to
    the recipe. GPUs: one per run in turn where there are several; runs share them where there are fewer. There are
    never more at a time than there are runs, nor than four for each CPU (or GPU, where there are more).

    Args:
        jobs: runs at a time, as asked for.
        cores: CPUs to share out.
        gpus: GPUs to share out.
        runs: of the study; None: not known, and no limit.
        asked_threads: the recipe's `runtime.threads`.
        environment: tells which GPUs there are.

    Raises:
        ConfigError: no whole number, or less than one run at a time.
    """
    asked, told = jobs, list[str]()
    if isinstance(jobs, bool) or not isinstance(jobs, int) or jobs < 1:
        raise ConfigError(f"--jobs {jobs}: expected 1 or more runs at a time, a whole number")
    if runs is not None and jobs > runs:
        jobs = runs
        told.append(f"--jobs {asked}: there are {runs} runs: {runs} at a time")
    most = _MOST_PER_CPU * max(cores, gpus)
    if jobs > most:
        jobs = most
        told = [f"--jobs {asked}: no more than {_MOST_PER_CPU} for each CPU or GPU here: {most} at a time"]
    threads = None
    if jobs > 1:
        threads = min(max(1, cores // jobs), asked_threads or cores)
        if jobs > cores and not gpus:
            told.append(f"--jobs {asked}: more runs at a time than the {cores} CPUs here; each gets one thread")
        if 0 < gpus < jobs:
            told.append(f"--jobs {asked}: more runs at a time than the {gpus} GPUs here; they share them")
    places = []
    names = _visible(gpus, environment)
    for place in range(jobs):
        given = {} if threads is None else {"OMP_NUM_THREADS": str(threads)}
        if gpus > 1:
            given["CUDA_VISIBLE_DEVICES"] = names[place % gpus]
        places.append(given)
    return Share(threads, tuple(places), tuple(told))


def _visible(gpus: int, environment: Mapping[str, str]) -> list[str]:
    """Names of the GPUs that this process sees, as a process started by it must be told them."""
    given = [name.strip() for name in environment.get("CUDA_VISIBLE_DEVICES", "").split(",") if name.strip()]
    return given if len(given) >= gpus else [str(number) for number in range(gpus)]


def gpus_for(device: torch.device) -> int:
    """GPUs among which runs on such a device are shared out."""
    return torch.cuda.device_count() if device.type == "cuda" else 0
