"""Every way of spreading the rows of channelwise_kl over a GPU, timed: what the constants of its plan should be.

python benchmarks/gpu_ways.py           # writes results/gpu-ways.json, a few minutes
python benchmarks/gpu_ways.py --list    # what would be timed
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch

from densekd.bench import gpu, gpu_ways, runner
from densekd.cli.guard import guarded
from densekd.errors import ArgumentError
from densekd.files import write_json
from densekd.records import dump

TARGET = Path(__file__).parent / "results" / "gpu-ways.json"


def main() -> None:
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--out", type=Path, default=TARGET)
    parser.add_argument("--list", action="store_true", help="print the ways, time nothing")
    given = parser.parse_args()
    if given.list:
        for shape in gpu_ways.SHAPES:
            for last in (False, True):
                for name, plan in gpu_ways.ways(shape, 2, last, 132).items():
                    layout = "channels_last" if last else "contiguous"
                    print("x".join(map(str, shape)), layout, name, plan, sep="\t")
        return
    if not torch.cuda.is_available():
        raise ArgumentError("torch sees no CUDA device here; --list says what would be timed")
    load, device = runner.machine_load(), torch.device("cuda", torch.cuda.current_device())
    outcome = gpu_ways.run(device)
    for case in outcome.cases:
        share = case.extra["bytes_per_second"] / 1e12
        print(case.name, case.variant, f"{1e6 * case.median_seconds:.1f} us", f"{share:.2f} TB/s", sep="\t", flush=True)
    record = runner.make_record(
        "loss",
        device=gpu.device_name(device),
        threads=torch.get_num_threads(),
        command="python benchmarks/gpu_ways.py",
        load=load,
        cases=outcome.cases,
        notes=gpu.versions(),
    )
    write_json(given.out, dump(record))


if __name__ == "__main__":
    guarded(main)()
