"""CamVid: teacher, student alone, student with channel-wise distillation on logits; 3 seeds; one study record.

    python benchmarks/camvid_core.py --data PATH/camvid --weights PATH/weights

`--data` holds {train,val}/{images,masks} (the SegNet split of CamVid); `--weights` holds ImageNet-trained encoders
that expect inputs in [-1, 1]: mobilenet_v2_torchvision.safetensors and mobilenet_v1_025_timm.safetensors. The teacher
is trained first unless `--teacher` names a finished run. Finished runs are used again; an interrupted one goes on.
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from densekd.cli.board import Board
from densekd.cli.guard import guarded
from densekd.cli.show import Watch, table
from densekd.config import load_recipe
from densekd.files import write_json
from densekd.records import dump
from densekd.runs import Run, train
from densekd.study import prepare, size_rows

RESULT = Path(__file__).parent / "results" / "camvid-core.json"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, default=Path("runs/camvid-teacher"))
    parser.add_argument("--runs", type=Path, default=Path("runs/camvid-core"))
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--result", type=Path, default=RESULT)
    return parser.parse_args()


def main() -> None:
    """Train what is missing, write the record, print the table."""
    given = _arguments()
    shared: dict[str, Any] = {"data.root": str(given.data), "runtime.threads": given.threads}
    if not ((given.teacher / "record.json").is_file() and Run.load(given.teacher).record.status == "done"):
        encoder = {"path": str(given.weights / "mobilenet_v2_torchvision.safetensors"), "ignore": ["classifier.*"]}
        changes = {**shared, "student.encoder_checkpoint": encoder}
        with Watch() as watch:
            train("camvid-teacher", out=given.teacher, progress=watch, **changes)
    encoder = {"path": str(given.weights / "mobilenet_v1_025_timm.safetensors"), "ignore": ["classifier.*"]}
    recipe = load_recipe(
        "camvid", {**shared, "student.encoder_checkpoint": encoder, "teacher.checkpoint": str(given.teacher)}
    )
    with Board() as board:
        comparison = prepare(
            recipe,
            methods=["none", "channelwise"],
            seeds=given.seeds,
            jobs=given.jobs,
            out=given.runs,
            progress=board,
        )
        study = comparison.go("python benchmarks/camvid_core.py --data DATA --weights WEIGHTS")
    study.raise_if_failed()
    # Where the images lie on this machine is nobody's business, and the colours are the recipe's.
    data = recipe.data.model_dump(mode="json", exclude={"root", "palette"})
    record = study.record.model_copy(update={"name": "camvid-core", "data": data})
    write_json(given.result, dump(record))
    table(size_rows(record), title="CamVid, val, mIoU in percent, final weights")


if __name__ == "__main__":
    guarded(main)()
