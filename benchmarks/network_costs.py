"""Live parameters and operations of every network with a short name; writes what `densekd list models` shows.

    python benchmarks/network_costs.py

Counted for one image of 512x1024 and 19 classes on torch's meta device: a few minutes, most of them spent on building.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import densekd
from densekd import files
from densekd.models.costs import CLASSES, RECORD, SIZE, count
from densekd.models.names import short_names
from densekd.models.specs import ModelSpec
from densekd.records import environment

TARGET = Path(densekd.__file__).parent / "models" / RECORD


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=TARGET, help="default: the record inside the package")
    out = parser.parse_args().out
    networks = {}
    names = short_names()
    for place, name in enumerate(names, start=1):
        found = count(ModelSpec(model=name))
        networks[name] = {
            "parameters": found.parameters,
            "dead_parameters": found.dead_parameters,
            "flops": found.flops,
        }
        print(
            f"{place}/{len(names)}\t{name}\t{found.parameters / 1e6:.2f} M\t{found.flops / 1e9:.1f} GFLOPs", flush=True
        )
    record = {
        "schema": 1,
        "command": "python benchmarks/network_costs.py",
        "size": list(SIZE),
        "classes": CLASSES,
        "networks": networks,
        "environment": environment(),
    }
    files.write_json(out, record)


if __name__ == "__main__":
    main()
