"""`evaluate` and `predict`: what a trained student is worth, and what it says about an image."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from densekd.cli.guard import complain, guarded
from densekd.cli.show import Watch, table
from densekd.cli.training import Json, Overrides, QuietFlag, dotted

RunArgument = Annotated[Path, typer.Argument(help="Folder of a run.", metavar="RUN")]


@guarded
def evaluate(
    run: RunArgument,
    overrides: Overrides = None,
    split: Annotated[str, typer.Option("--split", help="val, train, or the name of an extra split.")] = "val",
    per_class: Annotated[bool, typer.Option("--per-class", help="A row per class.")] = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Score a run's best student on a split."""
    from densekd.runs import Run
    from densekd.runs.score import score_run

    opened = Run.load(run)
    with Watch() as watch:
        scores = score_run(opened, split, dotted(overrides), None if quiet else watch.counting)
    if as_json:
        import json

        typer.echo(json.dumps(scores.model_dump(mode="json"), indent=2))
        return
    rows: list[dict[str, Any]] = [
        {
            "split": split,
            "class": "mean",
            "IoU": round(100 * scores.miou, 2),
            "pixel accuracy": round(100 * scores.pixel_accuracy, 2),
            "images": scores.images,
        }
    ]
    if per_class:
        rows += [
            {"split": split, "class": name, "IoU": None if value is None else round(100 * value, 2)}
            for name, value in scores.iou.items()
        ]
    table(rows, title=str(run))


@guarded
def predict(
    run: RunArgument,
    inputs: Annotated[list[Path], typer.Argument(help="Images or folders of images.")],
    out: Annotated[Path, typer.Option("--out", help="Folder for masks and overlays.")] = Path("predictions"),
    alpha: Annotated[float, typer.Option("--alpha", min=0.0, max=1.0, help="Strength of the colours.")] = 0.5,
    batch_size: Annotated[int, typer.Option("--batch-size", min=1, help="Images at a time.")] = 1,
    force: Annotated[bool, typer.Option("--force", help="Write into a folder that holds files.")] = False,
    quiet: QuietFlag = False,
    as_json: Json = False,
) -> None:
    """Segment images: colour masks and overlays with a legend."""
    from densekd.predict import predict as run_predict
    from densekd.runs import Run

    opened = Run.load(run)
    with Watch() as watch:

        def count(done: int, total: int) -> None:
            watch.counting("predicting", done, total)

        made = run_predict(
            opened,
            inputs,
            out,
            batch_size=batch_size,
            alpha=alpha,
            progress=None if quiet else count,
            said=None if quiet else watch.said,
            force=force,
        )
    table([one.row() for one in made], as_json=as_json)
    if not quiet:
        complain(f"{len(made)} images: masks and overlays in {out}")
