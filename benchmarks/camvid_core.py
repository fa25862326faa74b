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

from densekd.cli.show import Watch, table
from densekd.config import load_recipe
from densekd.files import write_json
from densekd.records import dump
from densekd.runs import Run, train
from densekd.study import ALONE, Method, run_study, study_record, study_rows, write_study

RESULT = Path(__file__).parent / "results" / "camvid-core.json"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--data", type=Path, required=True)
    parser.add_argument("--weights", type=Path, required=True)
    parser.add_argument("--teacher", type=Path, default=Path("runs/camvid-teacher"))
    parser.add_argument("--runs", type=Path, default=Path("runs/camvid-core"))
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--result", type=Path, default=RESULT)
    parser.add_argument("--runs-only", action="store_true", help="train, but write no record (to share seeds out)")
    return parser.parse_args()


def main() -> None:
    """Train what is missing, write the record, print the table."""
    given = _arguments()
    shared: dict[str, Any] = {"data.root": str(given.data), "runtime.threads": given.threads}
    watch = Watch()
    if (given.teacher / "record.json").is_file() and Run.load(given.teacher).record.status == "done":
        teacher = Run.load(given.teacher)
    else:
        encoder = {"path": str(given.weights / "mobilenet_v2_torchvision.safetensors"), "ignore": ["classifier.*"]}
        changes = {**shared, "student.encoder_checkpoint": encoder}
        teacher = train("camvid-teacher", out=given.teacher, progress=watch, **changes)
    encoder = {"path": str(given.weights / "mobilenet_v1_025_timm.safetensors"), "ignore": ["classifier.*"]}
    recipe = load_recipe(
        "camvid", {**shared, "student.encoder_checkpoint": encoder, "teacher.checkpoint": str(given.teacher)}
    )

    def named(name: str) -> Watch:
        watch.begin(name)
        return watch

    methods = [ALONE, Method("channelwise", where="logits")]
    runs = run_study(recipe, methods, given.seeds, given.runs, watch=named)
    if given.runs_only:
        return
    data = recipe.data.model_dump(mode="json", exclude={"root", "palette"})
    command = "python benchmarks/camvid_core.py --data DATA --weights WEIGHTS"
    record = study_record("camvid-core", runs, data=data, teacher=teacher.record, command=command)
    write_study(given.runs, record)
    write_json(given.result, dump(record))
    table(study_rows(record), title="CamVid, val, mIoU in percent, final weights")


if __name__ == "__main__":
    main()
