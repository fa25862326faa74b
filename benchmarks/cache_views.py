"""What K stored views of each image cost in accuracy against the teacher that runs in every step, and give in time.

    python benchmarks/cache_views.py scenes --jobs 2
    python benchmarks/cache_views.py camvid --data PATH/camvid --weights PATH/weights --jobs 2

Channel-wise distillation on the logits, the same steps and seeds, in these variants: `live` (the teacher in every
step, every view new), and `distill.cache` with K = 1, 4 and 16 views of each image as bfloat16 and K = 4 as int8.
Beside each stands the student alone on the same views. Each set is built for itself: its time and bytes are its own.

Images are few and passes many, so that views come back: `scenes`: 200 drawn scenes, 20 passes; `camvid`: two of five
frames of two drives, 14 passes (16 views are never seen twice there). Teachers are those of the demo and of
`camvid_core.py`; the scenes' is trained first unless `--teacher` names a finished run. Finished runs and sets are used
again; an interrupted one goes on.

Runs go on beside each other (`--jobs`), so their own seconds say nothing. When all have finished, steps are timed in
one process: short runs of every variant and its student alone take turns, first to last and back
(`densekd.study.timing`). Leave the machine to it.

The record, `results/cache-views-<study>.json`, holds mIoU by variant and seed with mean and spread, differences to
`live` paired by seed, median and spread of the timed steps, and what each set cost; `times_alone` is against the
student alone of the same variant. `commit` is that of the timing, `trained_at` those of the runs.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from densekd.cli.board import Board
from densekd.cli.guard import guarded
from densekd.cli.show import Watch, table
from densekd.config import Recipe, load_recipe
from densekd.errors import ConfigError, RunError
from densekd.files import write_json
from densekd.records import StudyRecord, commit, environment
from densekd.runs import Run, train
from densekd.study import prepare
from densekd.study.calibration import warm_up_of
from densekd.study.statistics import paired_gain, spread
from densekd.study.timing import timed

Runs = Mapping[int, Run]
Found = Mapping[str, Runs]
Seconds = Mapping[str, Mapping[str, list[float]]]

RESULTS = Path(__file__).parent / "results"
METHOD, ALONE, LIVE = "channelwise", "none", "live"
#: views and encoding of each set, by the name of its variant
SETS = {
    "cache-1": (1, "bfloat16"),
    "cache-4": (4, "bfloat16"),
    "cache-16": (16, "bfloat16"),
    "cache-4-int8": (4, "int8"),
}
SCENES = {
    "data.train_count": 200,
    "data.augment.scale": [0.8, 1.25],
    "data.augment.jitter": {"brightness": 0.3, "contrast": 0.3, "saturation": 0.3},
    "train.batch_size": 8,
}
CAMVID = {
    # Frames lie 30 apart: their tens digits go round in ten of them.
    "data.train": {"split": "train", "exclude": "^0001TP_", "include": "[0369]0$"},
    "data.extra": {},
    "train.batch_size": 8,
}
STEPS = {"scenes": 500, "camvid": 220}


def _arguments(words: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("study", choices=tuple(STEPS))
    parser.add_argument("--teacher", type=Path)
    parser.add_argument("--data", type=Path, help="camvid: {train,val}/{images,masks}")
    parser.add_argument("--weights", type=Path, help="camvid: ImageNet-trained encoders")
    parser.add_argument("--runs", type=Path, help="default runs/cache-views-<study>")
    parser.add_argument("--variants", type=lambda text: text.split(","), default=list(SETS), help=", ".join(SETS))
    parser.add_argument("--seeds", type=lambda text: [int(part) for part in text.split(",")], default=[0, 1, 2])
    parser.add_argument("--steps", type=int, help=f"default {STEPS}")
    parser.add_argument("--train", type=int, help="scenes: training images, default 200")
    parser.add_argument("--val", type=int, help="scenes: validation images, default 300")
    parser.add_argument("--jobs", type=int, default=1)
    parser.add_argument("--results", type=Path, default=RESULTS)
    return parser.parse_args(words)


def _scenes(given: argparse.Namespace, shared: Mapping[str, Any]) -> Recipe:
    teacher = given.teacher or Path("runs/demo/teacher")
    if not _is_done(teacher):
        with Watch() as watch:
            train("demo-teacher", out=teacher, progress=watch)
    counts = {"data.train_count": given.train, "data.val_count": given.val}
    sizes = {key: value for key, value in counts.items() if value is not None}
    return load_recipe("demo", {**shared, **SCENES, **sizes, "teacher.checkpoint": str(teacher)})


def _camvid(given: argparse.Namespace, shared: Mapping[str, Any]) -> Recipe:
    teacher = given.teacher or Path("runs/camvid-teacher")
    if given.data is None or given.weights is None:
        raise ConfigError("camvid: --data and --weights are missing; see --help")
    if not _is_done(teacher):
        raise ConfigError(f"{teacher}: no finished teacher; `benchmarks/camvid_core.py` trains it")
    encoder = {"path": str(given.weights / "mobilenet_v1_025_timm.safetensors"), "ignore": ["classifier.*"]}
    return load_recipe(
        "camvid",
        {
            **shared,
            **CAMVID,
            "data.root": str(given.data),
            "student.encoder_checkpoint": encoder,
            "teacher.checkpoint": str(teacher),
        },
    )


def _is_done(path: Path) -> bool:
    return (path / "record.json").is_file() and Run.load(path).record.status == "done"


def _folder(given: argparse.Namespace) -> Path:
    return given.runs or Path("runs") / f"cache-views-{given.study}"


def _recipe(given: argparse.Namespace) -> Recipe:
    shared = {
        "train.epochs": None,
        "train.steps": given.steps or STEPS[given.study],
        "train.evaluate_every": None,
        "runtime.threads": 1,
        "runtime.workers": 0,
        "preflight.teacher_images": 0,  # the study scores it on the whole split
    }
    return (_scenes if given.study == "scenes" else _camvid)(given, shared)


def _compared(recipe: Recipe, variant: str, given: argparse.Namespace) -> tuple[StudyRecord, Found]:
    """One variant and its student alone: the study's record, and the runs."""
    folder = _folder(given) / variant
    changes: dict[str, Any] = {}
    if variant in SETS:
        views, encoding = SETS[variant]
        root = str(folder / "maps")
        changes["distill.cache"] = {"root": root, "views": views, "encoding": encoding, "ask": False}
    with Board() as board:
        study = prepare(
            load_recipe(recipe.model_dump(mode="json"), changes),
            methods=[ALONE, METHOD],
            seeds=given.seeds,
            jobs=given.jobs,
            out=folder / "runs",
            progress=board,
        ).go()
    study.raise_if_failed()
    return study.record, study.runs


def _timed(found: Mapping[str, Found], folder: Path) -> Seconds:
    """Seconds of single steps by variant and method; all take turns in one process, set up as that of a run."""
    first = next(iter(found[LIVE][METHOD].values()))
    warm_up = warm_up_of(first.recipe, first.record.images["train"].count)
    asked = []
    for variant, runs in found.items():
        for method, kind in ((ALONE, "train"), (METHOD, "distill")):
            recipe = next(iter(runs[method].values())).recipe.model_dump(mode="json")
            asked.append({"name": f"{variant}/{method}", "kind": kind, "recipe": recipe})
    with Board() as board:
        board.said(f"timing steps of {len(found)} variants, each beside its student alone")
        (seconds,) = timed(asked, [{}], folder, board, warm_up)
    return {variant: {method: seconds[f"{variant}/{method}"] for method in (ALONE, METHOD)} for variant in found}


def _variant(name: str, runs: Runs, alone: Runs, live: Runs, seconds: Mapping[str, list[float]]) -> dict[str, Any]:
    """One variant's line of the record."""
    scores, reference = _scores(runs), _scores(live)
    own, plain = _step(seconds[METHOD]), _step(seconds[ALONE])
    line: dict[str, Any] = {
        "name": name,
        "seeds": sorted(scores),
        "final": spread([scores[seed] for seed in sorted(scores)]).model_dump(),
        "to_live": _difference(scores, reference),
        **own,
        "times_alone": own["seconds_per_step"] / plain["seconds_per_step"],
        "alone": {
            "final": spread([score for _, score in sorted(_scores(alone).items())]).model_dump(),
            **plain,
        },
        "gain": _difference(scores, _scores(alone)),
    }
    cache = next(iter(runs.values())).record.cache
    if name in SETS and cache is None:
        raise RunError(f"{name}: its runs say nothing of stored maps")
    if cache is not None:
        kept = {"views", "encoding", "images", "taps", "bytes", "raw_bytes", "build_seconds", "errors"}
        line["cache"] = cache.model_dump(mode="json", include=kept)
    return line


def _scores(runs: Runs) -> dict[int, float]:
    return {seed: run.record.final.miou for seed, run in runs.items() if run.record.final is not None}


def _step(seconds: list[float]) -> dict[str, Any]:
    """Median of the timed steps, how many there are, and the quarter below and above."""
    low, middle, high = statistics.quantiles(seconds, n=4, method="inclusive")
    return {"seconds_per_step": middle, "step": {"n": len(seconds), "q25": low, "q75": high}}


def _difference(scores: Mapping[int, float], reference: Mapping[int, float]) -> dict[str, Any]:
    """Mean, interval and single differences, paired by seed."""
    gain = paired_gain(scores, reference)
    assert gain is not None  # every run has finished
    return {**gain.model_dump(), "by_seed": [scores[seed] - reference[seed] for seed in sorted(scores)]}


def _record(
    given: argparse.Namespace, found: Mapping[str, Found], study: StudyRecord, seconds: Seconds
) -> dict[str, Any]:
    """The whole record; its variants in the order live, then sets."""
    live = found[LIVE][METHOD]
    run = next(iter(live.values())).record
    given_data = "" if given.study == "scenes" else " --data DATA --weights WEIGHTS"
    return {
        "schema": 1,
        "name": f"cache-views-{given.study}",
        "command": f"python benchmarks/cache_views.py {given.study}{given_data} --jobs {given.jobs}",
        "commit": commit(),
        "trained_at": sorted({str(one.record.environment.get("commit")) for one in _all(found)}),
        "n": len(given.seeds),
        "steps": run.steps,
        "epochs": run.epochs,
        "images": None if (images := run.images.get("train")) is None else images.count,
        "teacher": study.teacher.model_dump(mode="json", include={"miou", "parameters", "flops"}),
        "variants": [_variant(name, runs[METHOD], runs[ALONE], live, seconds[name]) for name, runs in found.items()],
        "jobs": given.jobs,
        "environment": environment(),
    }


def _all(found: Mapping[str, Found]) -> list[Run]:
    return [run for methods in found.values() for runs in methods.values() for run in runs.values()]


def _rows(record: Mapping[str, Any]) -> list[dict[str, Any]]:
    return [
        {
            "variant": line["name"],
            "mIoU": round(100 * line["final"]["mean"], 2),
            "sd": round(100 * line["final"]["sd"], 2),
            "gain": f"{100 * line['gain']['mean']:+.2f}",
            "to live": f"{100 * line['to_live']['mean']:+.2f}",
            "ms a step": round(1e3 * line["seconds_per_step"], 1),
            "times the student alone": round(line["times_alone"], 2),
            "MB": None if "cache" not in line else round(line["cache"]["bytes"] / 1e6, 1),
            "build, s": None if "cache" not in line else round(line["cache"]["build_seconds"], 1),
        }
        for line in record["variants"]
    ]


def main(words: list[str] | None = None) -> None:
    """Train what is missing, write the record, print the table."""
    given = _arguments(words)
    unknown = [name for name in given.variants if name not in SETS]
    if unknown:
        raise ConfigError(f"--variants: unknown {', '.join(unknown)}; there are {', '.join(SETS)}")
    recipe = _recipe(given)
    studies = {variant: _compared(recipe, variant, given) for variant in (LIVE, *given.variants)}
    found = {variant: runs for variant, (_, runs) in studies.items()}
    seconds = _timed(found, _folder(given) / ".timing.part")
    record = _record(given, found, studies[LIVE][0], seconds)
    write_json(given.results / f"{record['name']}.json", record)
    table(
        _rows(record),
        title=f"{given.study}: mIoU on val in percent, final weights; stored views against the live teacher",
    )


if __name__ == "__main__":
    guarded(main)()
