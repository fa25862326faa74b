"""Segment images and write what was asked for: masks and overlays, or a benchmark's submission."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from densekd import files
from densekd.data.images import read_image
from densekd.data.views import of_one_size
from densekd.errors import ArgumentError, RunError
from densekd.pictures import indexed
from densekd.predict.archive import write_archive
from densekd.predict.inputs import Said, check_all, find_images, only_listed, require_different
from densekd.predict.result import Prediction, overlaid, shares_of, write_picture
from densekd.predict.student import Student
from densekd.predict.submission import Submission, submission_of, values_of
from densekd.runs.folder import Run


def predict(
    run: Run,
    inputs: Sequence[Path],
    out: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    submission: str | None = None,
    only: Path | None = None,
    overlays: bool | None = None,
    archive: bool = False,
    batch_size: int = 1,
    alpha: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
    checking: Callable[[int, int], None] | None = None,
    said: Said | None = None,
    force: bool = False,
) -> list[Prediction]:
    """Segment images of any size: `out/masks/NAME.png` and `out/overlays/NAME.png` for each.

    Every file is opened before anything is written. An image is brought to the recipe's size, where it has one,
    and segmented as the recipe's `evaluation` says, as in an evaluation (`densekd.inference.Predictor`); the class map
    is brought back to the image's size. Maps of more than 2**27 values are enlarged as far as that, and the ids from
    there on.

    With `submission` the results are the files that the benchmark's server takes, under `out/results`, with the names
    and values it wants, and `out/submission.json` says of which run and how.

    Args:
        run: a run with a student; neither its data nor its teacher is needed.
        inputs: image files, and folders that are searched with their sub-folders for jpg, png and tif.
        out: the folder for the results.
        overrides: keys of the recipe's `evaluation` with their values.
        submission: `cityscapes`, `ade20k`, `voc` or `voc-comp5`.
        only: a text file with a name a line: of the images only those (without suffix), and all of them.
        overlays: whether they are drawn; None: not for a submission.
        archive: also all results as one file, ready to upload; with `submission`.
        batch_size: images a forward pass, where their sizes agree; windows in one.
        alpha: strength of the colours, 0 to 1.
        progress: called with (images done, images in all).
        checking: called with (images opened, images in all) before any is segmented.
        said: called with lines that the user should see: files passed over.
        force: write into a folder that holds files already, and over those of the same names.

    Returns:
        What was written, in the order of the inputs.

    Raises:
        RunError: the run has no student yet, its classes are not the benchmark's, or `out` holds files and `force` was
            not given.
        DataError: no images, unreadable ones (each with its reason), two that would get one name, or names that are
            not the benchmark's.
        ArgumentError: `batch_size` below 1, `alpha` outside 0 to 1, an unknown submission, or `archive` without one.
        ConfigError: an override of something that a prediction does not read.
    """
    if batch_size < 1 or not 0 <= alpha <= 1:
        raise ArgumentError(f"expected batch_size >= 1 and alpha from 0 to 1, got {batch_size} and {alpha}")
    wanted = None if submission is None else submission_of(submission)
    if archive and wanted is None:
        raise ArgumentError("--archive packs the results for a server: give --submission too")
    say = said or (lambda line: None)
    _require_usable(out, force, fresh=archive)
    names = find_images(inputs, out, say)
    if only is not None:
        names = only_listed(names, only)
    if wanted is not None:
        names = wanted.files_of(list(names))
        require_different(names)
    student = Student(run, overrides, batch_size)
    writer = _Writer(student, out, wanted, alpha, overlays if overlays is not None else wanted is None)
    sizes = check_all(list(names), checking)
    for line in wanted.notices(sizes) if wanted is not None else ():
        say(line)
    done: list[Prediction] = []
    for group in of_one_size(names, lambda path: student.transform.size_of(sizes[path]), batch_size):
        images = [read_image(path) for path in group]
        for path, image, label in zip(group, images, student.segment(images), strict=True):
            done.append(writer.write(path, names[path], image, label))
            if progress is not None:
                progress(len(done), len(names))
    if wanted is not None:
        files.write_json(out / "submission.json", _about(run, student, wanted, len(done)))
    if wanted is not None and archive:
        write_archive(out / wanted.archive, out / "results")
    return done


def _require_usable(out: Path, force: bool, fresh: bool) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file; give another folder with --out")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise RunError(f"{out}: holds files; it is never overwritten unasked. Use --force, or --out for another folder")
    if fresh and (out / "results").exists():
        raise RunError(f"{out / 'results'}: holds files, which would go into the archive too; give another --out")


@dataclass
class _Writer:
    student: Student
    out: Path
    submission: Submission | None
    alpha: float
    overlays: bool

    def __post_init__(self) -> None:
        if self.submission is not None:
            self.values = values_of(self.submission, self.student.recipe, self.student.classes)

    def write(self, path: Path, name: str, image: Tensor, label: Tensor) -> Prediction:
        """Write the files of one image."""
        classes, palette = self.student.classes, self.student.palette
        shares = shares_of(label, classes)
        if self.submission is None:
            mask, picture = self.out / "masks" / f"{name}.png", indexed(label, palette)
        else:
            mask, picture = self.out / "results" / f"{name}.png", self.submission.picture(label, self.values)
        write_picture(mask, picture)
        over = None
        if self.overlays:
            over = self.out / "overlays" / f"{name if self.submission is None else path.stem}.png"
            write_picture(over, overlaid(image, label, shares, classes, palette, self.alpha))
        return Prediction(path, mask, over, label.shape[0], label.shape[1], shares)


def _about(run: Run, student: Student, submission: Submission, count: int) -> dict[str, Any]:
    """What a submission was made of and how."""
    record = run.record
    assert record.best is not None  # the student was loaded
    return {
        "schema": 1,
        "submission": submission.name,
        "images": count,
        "run": str(run.path.resolve()),
        "recipe_sha256": record.recipe_sha256,
        "student_sha256": files.sha256(run.weights.read_bytes()),
        "step": record.best.step,
        "val_miou": record.best.miou,
        "evaluation": student.recipe.evaluation.model_dump(mode="json"),
    }
