"""Records of benchmarks."""

from __future__ import annotations

from typing import Any, Literal

from pydantic import ConfigDict, Field

from densekd.records.base import Record


class BenchCase(Record):
    """One measurement: a variant of a case."""

    name: str = Field(description="what is measured, for instance a shape")
    variant: str = Field(description="how it is done")
    median_seconds: float = Field(description="of the samples")
    ratio: float | None = Field(description="speed-up over the case's reference variant")
    peak_bytes: int | None = Field(default=None, description="largest memory beyond what was there before")
    error: float | None = Field(
        default=None,
        description="relative, against float64; bench step: of the teacher's softened maps, against float32",
    )
    samples: list[float] = Field(description="seconds of each repetition")
    extra: dict[str, Any] = Field(default_factory=dict, description="what this benchmark measures besides")


class BenchRecord(Record):
    """A benchmark's record; committed ones live under `benchmarks/results/`."""

    schema_version: Literal[1] = Field(default=1, alias="schema", description="of this record")
    bench: Literal["loss", "methods", "task", "step", "data", "scaling", "latency", "soak"] = Field(
        description="which benchmark"
    )
    device: str = Field(description="what it ran on, in words")
    threads: int = Field(description="of the CPU")
    command: str = Field(description="that made it")
    commit: str = Field(description="of the code")
    load: list[float] = Field(description="load averages (1, 5, 15 minutes) at the start")
    cases: list[BenchCase] = Field(description="what was measured")
    environment: dict[str, str] = Field(description="versions and machine")

    model_config = ConfigDict(extra="forbid", populate_by_name=True)
