"""Every method on one student: weights tuned the same way for all, then 3 seeds of each; one study record.

    python benchmarks/methods_study.py scenes --jobs 2
    python benchmarks/methods_study.py camvid --data PATH/camvid --weights PATH/weights --jobs 2

First `densekd tune`: the weight of each method alone (its default, or one that acts, see below), times 0.02 (not on
CamVid), 0.1, 0.5 and 2.5, one seed, short runs, scored on a part of the training set (the last scenes; one drive of
CamVid). Temperatures and other options stay at their defaults. Then `densekd compare` with the chosen weights;
combinations take the weights of their parts, and on CamVid channelwise at its default weight is a row too. The sweep
and the comparison each leave a record in `results/`.

`scenes`: drawn street scenes, all methods, on class maps and, where they can stand there, on feature maps. The teacher
is the demo's; it is trained first unless `--teacher` names a finished run. `camvid`: `--data` holds
{train,val}/{images,masks} (the SegNet split of CamVid), `--weights` ImageNet-trained encoders as for `camvid_core.py`,
whose teacher it uses. Finished runs are used again; an interrupted study goes on.
"""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densekd.cli.board import Board
from densekd.cli.guard import guarded
from densekd.cli.show import Watch, table
from densekd.config import Recipe, load_recipe
from densekd.errors import ConfigError
from densekd.files import write_json
from densekd.records import StudyRecord, dump
from densekd.runs import Run, train
from densekd.study import prepare
from densekd.training.specs import TermSpec
from densekd.tuning import tune

RESULTS = Path(__file__).parent / "results"
SCENES_FACTORS = (0.02, 0.1, 0.5, 2.5)
CAMVID_FACTORS = (0.1, 0.5, 2.5)
SEEDS = (0, 1, 2)

#: methods alone, in the order of the table
SCENES = (
    *("channelwise", "pixelwise", "pairwise", "holistic", "intraclass", "attention", "local", "crossimage", "dist"),
    *("pearson", "decoupled", "channelwise@features", "pairwise@features", "intraclass@features"),
    *("attention@features", "local@features", "feature@features", "channelmean@features", "crossimage@features"),
    *("pearson@features", "masked@features"),
)
CAMVID = (
    *("channelwise", "channelwise@features", "pixelwise", "pairwise@features", "intraclass@features"),
    "attention@features",
)
#: Weights around which the sweep goes where not around the default: 2.5 times that would still leave the term's
#: gradient at the start below the task's. These make the two equal (proposals of `densekd doctor`, two digits). Not so
#: for holistic: its gradient grows while its discriminator learns; at a fiftieth of the proposal it drowns the task.
#: Its sweep goes from the default up.
SCENES_WEIGHTS = {
    **{"holistic": 0.05, "channelwise@features": 20.0, "feature@features": 10.0, "channelmean@features": 18.0},
    "masked@features": 250.0,
}
CAMVID_WEIGHTS = {"channelwise@features": 9.8}
#: combinations of the above, with the weights of their parts
BOTH = {"channelwise-both": ("channelwise", "channelwise@features")}
#: CamVid: beside the tuned weight the default one, with which `camvid_core.py` measures longer runs
UNTUNED = {"channelwise-untuned": "channelwise"}
COMBINED = {**BOTH, "channelwise-pixelwise-holistic": ("channelwise", "pixelwise", "holistic")}


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("study", choices=("scenes", "camvid"))
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--data", type=Path, help="camvid: {train,val}/{images,masks}")
    parser.add_argument("--weights", type=Path, help="camvid: ImageNet-trained encoders")
    parser.add_argument("--runs", type=Path, help="default runs/<study>-study")
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=list(SEEDS))
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args()


def _weighted(weights: Mapping[str, float], features: str) -> dict[str, Any]:
    """`compare.methods` with these weights."""
    methods = {}
    for label, weight in weights.items():
        method, _, place = label.partition("@")
        tap = features if place == "features" else "logits"
        methods[label] = {"terms": [{"method": method, "student": tap, "teacher": tap, "weight": weight}]}
    return methods


def _scenes(given: argparse.Namespace) -> Recipe:
    teacher = given.teacher or Path("runs/demo/teacher")
    if not _is_done(teacher):
        with Watch() as watch:
            train("demo-teacher", out=teacher, progress=watch)
    return load_recipe(
        "demo",
        {
            "name": "scenes-study",
            "teacher.checkpoint": str(teacher),
            "train.epochs": None,
            "train.steps": 300,
            "train.batch_size": 8,
            "preflight.teacher_images": 0,  # the study scores it on the whole split
            "compare.features": {"student": "decoder.conv", "teacher": "decoder.conv"},
            "compare.methods": _weighted(SCENES_WEIGHTS, "decoder.conv"),
        },
    )


def _camvid(given: argparse.Namespace) -> Recipe:
    teacher = given.teacher or Path("runs/camvid-teacher")
    if given.data is None or given.weights is None:
        raise ConfigError("camvid: --data and --weights are missing; see --help")
    if not _is_done(teacher):
        raise ConfigError(f"{teacher}: no finished teacher; `benchmarks/camvid_core.py` trains it")
    encoder = {"path": str(given.weights / "mobilenet_v1_025_timm.safetensors"), "ignore": ["classifier.*"]}
    return load_recipe(
        "camvid",
        {
            "name": "camvid-study",
            "data.root": str(given.data),
            "train.epochs": 8,
            "student.encoder_checkpoint": encoder,
            "teacher.checkpoint": str(teacher),
            "runtime.threads": 1,
            "runtime.workers": 0,
            "preflight.teacher_images": 0,
            "compare.features": {"student": "decoder.aspp", "teacher": "decoder.aspp"},
            "compare.methods": _weighted(CAMVID_WEIGHTS, "decoder.aspp"),
        },
    )


def _is_done(path: Path) -> bool:
    return (path / "record.json").is_file() and Run.load(path).record.status == "done"


def _beside(recipe: Recipe, combinations: Mapping[str, tuple[str, ...]], untuned: Mapping[str, str]) -> dict[str, Any]:
    """`compare.methods` with the combinations, and methods on the logits at their defaults, beside the tuned ones."""
    methods = {name: spec.model_dump(mode="json") for name, spec in recipe.compare.methods.items()}
    for label, parts in combinations.items():
        terms: list[TermSpec] = [term for part in parts for term in recipe.compare.methods[part].terms]
        methods[label] = {"terms": [term.model_dump(mode="json") for term in terms]}
    methods |= {label: {"terms": [{"method": method}]} for label, method in untuned.items()}
    return methods


def _publish(record: StudyRecord, name: str, given: argparse.Namespace, command: str) -> None:
    # Where the images lie on this machine is nobody's business, and the colours are the recipe's.
    data = {key: value for key, value in record.data.items() if key not in {"root", "palette"}}
    write_json(
        given.results / f"{name}.json",
        dump(record.model_copy(update={"name": name, "data": data, "command": command})),
    )


def main() -> None:
    """Tune, compare, write both records, print both tables."""
    given = _arguments()
    scenes = given.study == "scenes"
    recipe = _scenes(given) if scenes else _camvid(given)
    runs = given.runs or Path("runs") / f"{given.study}-study"
    command = f"python benchmarks/methods_study.py {given.study}" + ("" if scenes else " --data DATA --weights WEIGHTS")
    with Board() as board:
        tuned = tune(
            recipe,
            methods=SCENES if scenes else CAMVID,
            factors=SCENES_FACTORS if scenes else CAMVID_FACTORS,
            steps=300,
            group=None if scenes else "^[^_]+",
            jobs=given.jobs,
            out=runs / "tune",
            progress=board,
        )
    _publish(tuned.study.record, f"{given.study}-tune", given, command)
    table(tuned.rows(), title=f"{given.study}: weights, mIoU in percent on held-out training images")
    for line in tuned.remarks:
        print(line)
    final = load_recipe(tuned.recipe)
    combinations, untuned = (COMBINED, {}) if scenes else (BOTH, UNTUNED)
    with Board() as board:
        study = prepare(
            load_recipe(tuned.recipe, {"compare.methods": _beside(final, combinations, untuned)}),
            methods=["none", *(SCENES if scenes else CAMVID), *combinations, *untuned],
            seeds=given.seeds,
            jobs=given.jobs,
            out=runs / "compare",
            progress=board,
        ).go(command)
    study.raise_if_failed()
    _publish(study.record, f"{given.study}-study", given, command)
    table(study.rows(), title=f"{given.study}: mIoU on val in percent, final weights")


if __name__ == "__main__":
    guarded(main)()
