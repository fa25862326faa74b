"""Records of benchmarks."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from densekd.records.base import Record


class BenchCase(Record):
    """One measurement: a variant of a case."""

    name: str
    variant: str
    median_seconds: float
    ratio: float | None = Field(description="speed-up over the case's reference variant")
    peak_bytes: int | None = None
    error: float | None = Field(
        default=None,
        description="relative, against float64; bench step: of the teacher's softened maps, against float32",
    )
    samples: list[float]
    extra: dict[str, Any] = Field(default_factory=dict)


class BenchRecord(Record):
    """A benchmark's record; committed ones live under `benchmarks/results/`."""

    schema_version: Literal[1] = Field(default=1, alias="schema")
    bench: Literal["loss", "methods", "task", "step", "data", "scaling", "latency"]
    device: str
    threads: int
    command: str
    commit: str
    load: list[float] = Field(description="load averages (1, 5, 15 minutes) at the start")
    cases: list[BenchCase]
    environment: dict[str, str]

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
