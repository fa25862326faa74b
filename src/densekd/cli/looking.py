"""`evaluate` and `predict`: what a trained student is worth, and what it says about an image."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from densekd.cli.guard import complain, guarded
from densekd.cli.show import Watch, table
from densekd.cli.training import Json, Overrides, QuietFlag, Trust, about_code, dotted

if TYPE_CHECKING:
    from densekd.predict import Prediction, VideoPrediction
    from densekd.runs import Run

_OVERRIDE = re.compile(r"[a-z_]+(\.[a-z_]+)*=")
RunArgument = Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")]


@guarded
def evaluate(
    run: RunArgument,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option("--split", help="val, train, or the name of an extra split.")] = "val",
    per_class: Annotated[bool, typer.Option("--per-class", help="A row per class.")] = False,
    trust: Trust = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Score a run's best student on a split."""
    from densekd.config import load_recipe
    from densekd.runs import Run
    from densekd.runs.score import score_run

    opened, changed = Run.load(run, trust=trust), dotted(overrides)
    _ask_for_memory(opened, changed)
    about_code(run, trust, quiet)
    with Watch() as watch:
        scores = score_run(opened, split, changed, None if quiet else watch.counting)
    used = load_recipe(opened.path / "recipe.yaml", changed).evaluation
    if as_json:
        import json

        told = {"split": split, **scores.model_dump(mode="json"), "evaluation": used.model_dump(mode="json")}
        typer.echo(json.dumps(told, indent=2))
        return
    rows: list[dict[str, Any]] = [
        {
            "split": split,
            "class": "mean",
            "IoU": round(100 * scores.miou, 2),
            "pixel accuracy": round(100 * scores.pixel_accuracy, 2),
            "images": scores.counted,
        }
    ]
    if per_class:
        rows += [
            {"split": split, "class": name, "IoU": None if value is None else round(100 * value, 2)}
            for name, value in scores.iou.items()
        ]
    table(rows, title=str(run))
    if not quiet:
        complain(f"evaluation: {used.in_words()}")


@guarded
def predict(
    run: Annotated[
        Path, typer.Argument(help="Folder of a run, or what `densekd export` wrote of one.", metavar="RUN|FILE|FOLDER")
    ],
    inputs: Annotated[
        list[str],
        typer.Argument(help="Images, folders of images, videos; evaluation.key=value among them.", metavar="INPUT"),
    ],
    out: Annotated[Path, typer.Option("--out", help="Folder for the results.")] = Path("predictions"),
    submission: Annotated[
        str | None,
        typer.Option("--submission", help="The files of a benchmark's server: cityscapes, ade20k, voc, voc-comp5."),
    ] = None,
    archive: Annotated[bool, typer.Option("--archive", help="Pack a submission as one file to upload.")] = False,
    only: Annotated[Path | None, typer.Option("--only", help="Text file: the images named in it alone.")] = None,
    overlays: Annotated[
        bool | None, typer.Option("--overlays/--no-overlays", help="Draw overlays; by default not for a submission.")
    ] = None,
    frame_masks: Annotated[
        bool, typer.Option("--frame-masks", help="Of a video, also a mask for every frame.")
    ] = False,
    alpha: Annotated[float, typer.Option("--alpha", min=0.0, max=1.0, help="Strength of the colours.")] = 0.5,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images, or windows, at a time.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that holds files.")] = False,
    trust: Trust = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Segment images and videos: colour masks and overlays with a legend, or a benchmark's submission."""
    from densekd.predict import open_student
    from densekd.predict import predict as run_predict
    from densekd.runs import Run

    about_code(run, trust, quiet)
    opened = open_student(run, trust=trust)
    if isinstance(opened, Run):
        _ask_for_memory(opened, {})
    changes = [text for text in inputs if _OVERRIDE.match(text) and not Path(text).exists()]
    with Watch() as watch:

        def count(done: int, total: int) -> None:
            watch.counting("predicting", done, total)

        def frames(name: str, done: int, total: int) -> None:
            watch.counting(f"predicting {name}", done, total)

        def check(done: int, total: int) -> None:
            watch.counting("checking", done, total)

        made = run_predict(
            opened,
            [Path(text) for text in inputs if text not in changes],
            out,
            overrides=dotted(changes),
            submission=submission,
            only=only,
            overlays=overlays,
            frame_masks=frame_masks,
            archive=archive,
            batch_size=batch_size,
            alpha=alpha,
            progress=None if quiet else count,
            framing=None if quiet else frames,
            checking=None if quiet else check,
            said=None if quiet else watch.said,
            force=force,
        )
    table([one.row() for one in made], as_json=as_json)
    if not quiet:
        complain(f"{_counted(made)}: {_written(submission, overlays)} in {out}")


def _ask_for_memory(run: Run, overrides: Mapping[str, Any]) -> None:
    """Memory as the run's `runtime` says, before there is a tensor."""
    from densekd import host_memory
    from densekd.config import load_recipe

    asked = {key: value for key, value in overrides.items() if key.startswith("runtime.")}
    host_memory.ask(load_recipe(run.path, asked).runtime if asked else run.recipe.runtime)


def _counted(made: Sequence[Prediction | VideoPrediction]) -> str:
    frames = [one.frames for one in made if hasattr(one, "frames")]
    images = len(made) - len(frames)
    videos = f"{len(frames)} video{'s' if len(frames) > 1 else ''} of {sum(frames)} frames"
    return f"{images} images" if not frames else f"{images} images, {videos}" if images else videos


def _written(submission: str | None, overlays: bool | None) -> str:
    if submission is not None:
        return f"results for {submission}" + (" and overlays" if overlays else "")
    return ("masks" if overlays is False else "masks and overlays") + ", coverage.csv"
