"""Do images without labels help? Drawn scenes: 100 with labels, and 500 more without; 3 seeds; one study record.

    python benchmarks/unlabelled_scenes.py --jobs 2

Three comparisons of the student alone with the student under channel-wise distillation, same steps and seeds: on the
labelled scenes; with the unlabelled ones beside them in every batch (which leaves the labelled ones of every step as
they were, so that its student alone is the first one's, bit for bit: it is checked); and, because those batches are
twice as large, on the labelled scenes in batches twice as large. The record joins them; its gains are against the
student alone of the first.

The teacher is the demo's, trained on 600 labelled scenes: on the 100, and on none of the 500. It is trained first
unless `--teacher` names a finished run. Finished runs are used again; an interrupted one goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from densekd.cli.board import Board
from densekd.cli.guard import guarded
from densekd.cli.show import Watch, table
from densekd.config import load_recipe
from densekd.errors import RunError
from densekd.files import write_json
from densekd.records import RunRecord, dump
from densekd.runs import Run, train
from densekd.study import Method, Study, prepare, study_rows
from densekd.study.record import study_record
from densekd.study.statistics import paired_gain

RESULT = Path(__file__).parent / "results" / "unlabelled-scenes.json"
METHOD = "channelwise"


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--teacher", type=Path, default=Path("runs/demo/teacher"), help="a run of demo-teacher")
    parser.add_argument("--runs", type=Path, default=Path("runs/unlabelled-scenes"))
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--labelled", type=int, default=100)
    parser.add_argument("--unlabelled", type=int, default=500)
    parser.add_argument("--val", type=int, default=300)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--batch", type=int, default=8, help="labelled images a step, and as many unlabelled ones")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--result", type=Path, default=RESULT)
    return parser.parse_args()


def _arms(given: argparse.Namespace) -> dict[str, dict[str, Any]]:
    """What each comparison changes, by the name of its folder."""
    return {
        "labelled": {},
        "unlabelled": {"data.unlabelled": {"count": given.unlabelled, "ratio": 0.5}},
        "wide": {"train.batch_size": 2 * given.batch},
    }


def _names(given: argparse.Namespace) -> dict[str, dict[str, str]]:
    """The joined record's name of each method of each comparison."""
    wide = f"batches-of-{2 * given.batch}"
    return {
        "labelled": {"none": "none", METHOD: METHOD},
        "unlabelled": {METHOD: f"{METHOD}-{given.unlabelled}-unlabelled"},
        "wide": {"none": wide, METHOD: f"{METHOD}-{wide}"},
    }


def _teacher(path: Path, threads: int) -> None:
    if (path / "record.json").is_file() and Run.load(path).record.status == "done":
        return
    with Watch() as watch:
        train("demo-teacher", out=path, progress=watch, runtime__threads=threads)


def _compare(given: argparse.Namespace, arm: str, changes: Mapping[str, Any]) -> tuple[dict[str, Method], Study]:
    shared = {
        "data.train_count": given.labelled,
        "data.val_count": given.val,
        "train.epochs": None,
        "train.steps": given.steps,
        "train.batch_size": given.batch,
        "runtime.threads": given.threads,
        "teacher.checkpoint": str(given.teacher),
    }
    recipe = load_recipe("demo", {**shared, **changes})
    with Board() as board:
        comparison = prepare(
            recipe,
            methods=["none", METHOD],
            seeds=given.seeds,
            jobs=given.jobs,
            out=given.runs / arm,
            progress=board,
        )
        study = comparison.go()
    study.raise_if_failed()
    return {method.name: method for method in comparison.methods}, study


def _require_same(one: Study, other: Study) -> None:
    """The student alone does not depend on `data.unlabelled`."""
    for seed, run in one.runs["none"].items():
        if run.weights.read_bytes() != other.runs["none"][seed].weights.read_bytes():
            raise RunError(f"{run.path} and {other.runs['none'][seed].path}: the same training gave other weights")


def _gain(records: Mapping[str, Mapping[int, RunRecord]], method: str, baseline: str) -> str:
    scores = [
        {seed: record.final.miou for seed, record in records[name].items() if record.final is not None}
        for name in (method, baseline)
    ]
    gain = paired_gain(*scores)
    assert gain is not None  # every run has finished
    return (
        f"{method} against {baseline}, points of mIoU, paired by seed: {100 * gain.mean:+.2f} "
        f"[{100 * gain.low:+.2f}, {100 * gain.high:+.2f}]"
    )


def main() -> None:
    """Train what is missing, write the record, print the table."""
    given = _arguments()
    _teacher(given.teacher, given.threads)
    compared = {arm: _compare(given, arm, changes) for arm, changes in _arms(given).items()}
    first, second = compared["labelled"][1], compared["unlabelled"][1]
    _require_same(first, second)
    methods, records = [], {}
    for arm, names in _names(given).items():
        known, study = compared[arm]
        for name, joined in names.items():
            methods.append(replace(known[name], name=joined))
            records[joined] = {seed: run.record for seed, run in study.runs[name].items()}
    record = study_record(
        "unlabelled-scenes",
        methods,
        records,
        {},
        data={**first.record.data, "unlabelled": second.record.data["unlabelled"]},
        teacher=first.record.teacher,
        plan=None,
        command="python benchmarks/unlabelled_scenes.py",
    )
    _, distilled, mixed, _, wide = records
    told = [_gain(records, mixed, baseline) for baseline in (distilled, wide)]
    record = record.model_copy(update={"notices": [*record.notices, *told]})
    write_json(given.result, dump(record))
    table(study_rows(record), title=f"{given.labelled} labelled scenes, val, mIoU in percent, final weights")
    for line in told:
        print(line)


if __name__ == "__main__":
    guarded(main)()
