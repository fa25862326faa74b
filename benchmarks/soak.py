"""Memory, open files, threads and objects of more than 20,000 steps with evaluations, checkpoints and pages.

    python benchmarks/soak.py           # writes results/soak.json
    python benchmarks/soak.py --short   # a few hundred steps, to see that it works

Stages and what is read: `densekd.bench.soak_runs`, `densekd.bench.soak`. Exit code 1: something grows. Ctrl-C ends it
without a record.
"""

from __future__ import annotations

import argparse
import tempfile
from dataclasses import replace
from pathlib import Path

from densekd.bench import soak_runs
from densekd.cli.guard import complain, guarded
from densekd.cli.show import Watch, table
from densekd.files import write_json
from densekd.records import dump
from densekd.training.signals import Interrupted

TARGET = Path(__file__).parent / "results" / "soak.json"
_SHORT = 20
_SHOWN = ("own_slope", "own_slope_low", "own_slope_high", "rss_slope", "rss_last", "files_most", "threads_most")


def main() -> None:
    """Soak, write the record, print what grew."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--short", action="store_true", help=f"one step of {_SHORT}; its figures mean little")
    given = parser.parse_args()
    stages, command = soak_runs.STAGES, "python benchmarks/soak.py"
    if given.short:
        command += " --short"
        stages = tuple(
            replace(stage, steps=max(stage.every, stage.steps // _SHORT), every=max(1, stage.every // _SHORT))
            for stage in stages
        )
    with tempfile.TemporaryDirectory(prefix="densekd soak ") as folder, Watch() as watch:
        try:
            record = soak_runs.run(
                Path(folder),
                stages,
                progress=lambda done, total: watch.counting("steps", done, total),
                command=command,
            )
        except (Interrupted, KeyboardInterrupt):
            complain(f"{given.out}: not written, the soak was stopped")
            raise
    write_json(given.out, dump(record))
    table([{"stage": case.name, **{name: case.extra[name] for name in _SHOWN}} for case in record.cases])
    complain(record.environment["flat"])
    if not all(case.extra["met"] for case in record.cases):
        raise SystemExit(1)


if __name__ == "__main__":
    guarded(main)()
