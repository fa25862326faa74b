"""Run the tests marked `long` and leave a record of them.

    python tools/test_long.py [pytest arguments]

Writes benchmarks/results/test-long.json: commit, counts, seconds, the slowest tests, what tests report of themselves
(`record_property`: a row per shipped recipe), the environment. Fails when a test fails or when none ran; the record
is written all the same, and says so.
"""

from __future__ import annotations

import json
import os
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from densekd.records import commit, environment

ROOT = Path(__file__).resolve().parent.parent
RECORD = ROOT / "benchmarks" / "results" / "test-long.json"
_SLOWEST = 10


class Watch:
    """A pytest plugin that counts outcomes and remembers how long each test took, set-up included."""

    def __init__(self) -> None:
        self.counts = {"passed": 0, "failed": 0, "error": 0, "skipped": 0, "xfailed": 0}
        self.seconds: dict[str, float] = {}
        self.failures: list[str] = []
        self.reported: list[dict[str, Any]] = []

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        """Called by pytest for set-up, call and tear-down of every test."""
        self.seconds[report.nodeid] = self.seconds.get(report.nodeid, 0.0) + report.duration
        outcome: str = report.outcome
        if report.when != "call":
            if outcome == "passed":
                return
            outcome = "error" if outcome == "failed" else outcome
        elif hasattr(report, "wasxfail") and outcome == "skipped":
            outcome = "xfailed"
        self.counts[outcome] += 1
        if report.user_properties and outcome == "passed":
            self.reported.append({"test": report.nodeid, **dict(report.user_properties)})
        if outcome in ("failed", "error"):
            self.failures.append(report.nodeid)


def record(watch: Watch, code: int, seconds: float) -> dict[str, Any]:
    """What is written, as plain values."""
    slowest = sorted(watch.seconds.items(), key=lambda item: -item[1])[:_SLOWEST]
    return {
        "schema": 1,
        "tests": "long",
        "passed": succeeded(watch, code),
        "command": "make test-long",
        "commit": commit(),
        "counts": watch.counts,
        "seconds": round(seconds, 1),
        "slowest": [{"test": name, "seconds": round(took, 2)} for name, took in slowest],
        "reported": watch.reported,
        "failures": watch.failures,
        "environment": environment(),
    }


def succeeded(watch: Watch, code: int) -> bool:
    """Whether tests ran and all went well. A run that skipped everything proves nothing."""
    return code == 0 and watch.counts["passed"] > 0


def main(arguments: list[str], path: Path = RECORD) -> int:
    """Run, write the record, return the exit code."""
    os.chdir(ROOT)
    watch = Watch()
    begin = time.monotonic()
    code = int(pytest.main(["-q", "-m", "long", *arguments], plugins=[watch]))
    made = record(watch, code, time.monotonic() - begin)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps(made, indent=2) + "\n", encoding="utf-8")
    print(f"record: {path}")
    if not made["passed"]:
        print(f"long tests: failed (pytest's exit code {code}, {made['counts']})", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
