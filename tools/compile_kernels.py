"""Compile every Triton kernel for GPUs that are not here, and print what each takes: `python tools/compile_kernels.py`.

A table: registers and spills of a thread, shared memory of a program, the widest load, and how many programs a
multiprocessor holds at a time. With --out the same as a record (benchmarks/results/kernels-compiled.json is one).
Exits with 1 where a kernel spills registers to memory.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Iterator
from importlib.metadata import version
from pathlib import Path
from typing import Any

from densekd import files, records
from densekd.kernels.aot import TARGETS, compiled


def rows(targets: list[int]) -> Iterator[dict[str, Any]]:
    """A row per kernel, type, layout, mask and target."""
    from densekd.kernels.triton_channelwise_cases import cases
    from densekd.kernels.triton_task_cases import pixelwise_cases, upsampled_cases

    made_by = {"channelwise_kl": cases, "upsampled_cross_entropy": upsampled_cases, "pixelwise_kl": pixelwise_cases}
    for loss, case in ((loss, case) for loss, of in made_by.items() for case in of()):
        for target in targets:
            made = compiled(case.launch, target)
            yield {
                **{"loss": loss, "way": case.way, "layout": case.layout},
                **{"dtype": str(case.dtype).removeprefix("torch."), "masked": case.masked},
                **{"shape": "x".join(map(str, case.shape)), "programs": case.launch.programs},
                **made._asdict(),
            }


def main() -> int:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--target", type=int, action="append", choices=TARGETS, help="compute capability; default all")
    parser.add_argument("--out", type=Path, help="also write a record")
    options = parser.parse_args()
    made, head = [], None
    for row in rows(options.target or list(TARGETS)):
        if head is None:
            head = list(row)
            print("\t".join(head))
        print("\t".join(str(value) for value in row.values()), flush=True)
        made.append(row)
    spilled = [row for row in made if row["spills"]]
    print(f"{len(made)} kernels compiled, {len(spilled)} spill registers", file=sys.stderr)
    if options.out:
        found = {**records.environment(), "triton": version("triton")}
        record = {"schema": 1, "commit": records.commit(), "environment": found, "kernels": made}
        files.write_json(options.out, record)
    return 1 if spilled else 0


if __name__ == "__main__":
    raise SystemExit(main())
