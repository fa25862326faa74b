"""How a benchmark runs: interleaved rounds, medians, peak memory, and the record around them.

Machines are rarely quiet. All variants take turns (A B C ... C B A), so that a slow minute hits them alike; medians
are compared; beside wall time stands the process's CPU time, which another process on the machine disturbs less.
"""

from __future__ import annotations

import json
import os
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import torch

from densekd import records
from densekd.errors import ArgumentError
from densekd.runs.threads import excess

#: called with (rounds done, rounds in all)
Progress = Callable[[int, int], None]

ALLOCATOR_SETTINGS = ("THP_MEM_ALLOC_ENABLE", "GLIBC_TUNABLES", "MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_")


@dataclass
class Timing:
    """Seconds of one call, sample by sample."""

    wall: list[float] = field(default_factory=list)
    cpu: list[float] = field(default_factory=list)

    @property
    def median(self) -> float:
        return statistics.median(self.wall)

    @property
    def cpu_median(self) -> float:
        return statistics.median(self.cpu)


@contextmanager
def use_threads(threads: int) -> Iterator[None]:
    """Run with this many threads of torch; the number before is restored whatever happens.

    Raises:
        ArgumentError: no whole number from 1, or more than there are logical CPUs.
    """
    if isinstance(threads, bool) or not isinstance(threads, int) or threads < 1:
        raise ArgumentError(f"threads: expected a whole number from 1, got {threads!r}")
    wrong = excess(threads)
    if wrong is not None:
        raise ArgumentError(f"threads: {wrong}")
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def interleave(
    variants: Mapping[str, Callable[[], object]],
    *,
    rounds: int,
    warmup: int = 2,
    between: Callable[[], None] | None = None,
    tick: Callable[[], None] | None = None,
) -> dict[str, Timing]:
    """Time the variants in turns, forwards and backwards alternately.

    Args:
        variants: what to call, by name.
        rounds: samples of each.
        warmup: calls of each that are not counted.
        between: called before every call, outside its time.
        tick: called after every round, warm-up included.
    """
    if rounds < 1:
        raise ArgumentError(f"rounds: expected a whole number from 1, got {rounds!r}")
    timings = {name: Timing() for name in variants}
    order = list(variants)
    for number in range(warmup + rounds):
        for name in order:
            if between is not None:
                between()
            cpu, wall = time.process_time(), time.perf_counter()
            variants[name]()
            wall_end, cpu_end = time.perf_counter(), time.process_time()
            if number >= warmup:
                timings[name].wall.append(wall_end - wall)
                timings[name].cpu.append(cpu_end - cpu)
        order.reverse()
        if tick is not None:
            tick()
    return timings


def peak_extra_bytes(call: Callable[[], object], device: torch.device | None = None) -> int:
    """The most memory `call` held at one time beyond what was held before it, from torch's allocator.

    Temporaries inside operators count. On the CPU it runs under the profiler: never time the same call.

    Args:
        device: whose memory; default the CPU's.
    """
    if device is not None and device.type == "cuda":
        return _peak_extra_cuda_bytes(call, device)
    # The profiler's library otherwise writes its own notes (and that there is no GPU) to the terminal.
    os.environ.setdefault("KINETO_LOG_LEVEL", "6")
    with torch.profiler.profile(
        activities=[torch.profiler.ProfilerActivity.CPU], profile_memory=True, acc_events=True
    ) as profiler:
        call()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        events = json.loads(path.read_text())["traceEvents"]
    changes = [(e["ts"], e["args"]["Bytes"]) for e in events if e.get("name") == "[memory]" and _on_cpu(e)]
    held = peak = 0
    for _, change in sorted(changes, key=lambda c: c[0]):
        held += change
        peak = max(peak, held)
    return peak


def _peak_extra_cuda_bytes(call: Callable[[], object], device: torch.device) -> int:
    torch.cuda.synchronize(device)
    torch.cuda.reset_peak_memory_stats(device)
    before = torch.cuda.memory_allocated(device)
    call()
    torch.cuda.synchronize(device)
    return torch.cuda.max_memory_allocated(device) - before


def _on_cpu(event: dict[str, dict[str, int]]) -> bool:
    return event["args"].get("Device Type", 0) == 0


def environment() -> dict[str, str]:
    """The record's environment, with what decides how memory is handed out (page faults can outweigh arithmetic)."""
    return {**records.environment(), **{name: os.environ.get(name, "not set") for name in ALLOCATOR_SETTINGS}}


def make_record(
    bench: Literal["loss", "methods", "task", "step", "data", "scaling", "latency", "soak"],
    *,
    device: str,
    threads: int,
    command: str,
    load: list[float],
    cases: list[records.BenchCase],
    notes: Mapping[str, str] | None = None,
) -> records.BenchRecord:
    """The record of a benchmark that ran just now; `notes` join the environment."""
    return records.BenchRecord(
        schema=1,
        bench=bench,
        device=device,
        threads=threads,
        command=command,
        commit=records.commit(),
        load=load,
        cases=cases,
        environment={**environment(), **(notes or {})},
    )


def machine_load() -> list[float]:
    """Load averages over 1, 5 and 15 minutes; empty where the system does not tell."""
    return [round(value, 2) for value in os.getloadavg()] if hasattr(os, "getloadavg") else []
