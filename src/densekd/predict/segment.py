"""Segment images and write what was asked for: masks and overlays, or a benchmark's submission."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

from torch import Tensor

from densekd import files
from densekd.data.images import read_image
from densekd.data.views import of_one_size
from densekd.errors import ArgumentError, RunError
from densekd.export import Exported
from densekd.inference import EvaluationSpec
from densekd.pictures import indexed
from densekd.predict.archive import write_archive
from densekd.predict.coverage import Coverage
from densekd.predict.film import find_encoder
from densekd.predict.inputs import Said, check_all, find_images, only_listed, require_different
from densekd.predict.result import Prediction, VideoPrediction, overlaid, shares_of, write_picture
from densekd.predict.segmenter import Segmenter
from densekd.predict.shipped import ShippedStudent
from densekd.predict.student import Student
from densekd.predict.submission import Submission, submission_of, values_of
from densekd.predict.video import check_video, is_video
from densekd.predict.videos import Counted, VideoJob
from densekd.runs.folder import Run


def predict(
    source: Run | Exported,
    inputs: Sequence[Path],
    out: Path,
    *,
    overrides: Mapping[str, Any] | None = None,
    submission: str | None = None,
    only: Path | None = None,
    overlays: bool | None = None,
    frame_masks: bool = False,
    archive: bool = False,
    batch_size: int = 1,
    alpha: float = 0.5,
    progress: Callable[[int, int], None] | None = None,
    framing: Counted | None = None,
    checking: Callable[[int, int], None] | None = None,
    said: Said | None = None,
    force: bool = False,
) -> list[Prediction | VideoPrediction]:
    """Segment images of any size, and videos: `out/masks/NAME.png` and `out/overlays/NAME.png` for each image,
    `out/overlays/NAME.mp4` for each video, and `out/coverage.csv` with the share of every class.

    Every file is opened before anything is written. An image is brought to the recipe's size, where it has one,
    and segmented as the recipe's `evaluation` says, as in an evaluation (`densekd.inference.Predictor`); the class map
    is brought back to the image's size. Maps of more than 2**27 values are enlarged as far as that, and the ids from
    there on. The frames of a video are segmented as images are.

    With `submission` the results are the files that the benchmark's server takes, under `out/results`, with the names
    and values it wants, and `out/submission.json` says of which run and how.

    Args:
        source: a run with a student (neither its data nor its teacher is needed), or an exported student of
            `densekd.export.load_exported`.
        inputs: image files, folders that are searched with their sub-folders for jpg, png and tif, and videos.
        out: the folder for the results.
        overrides: keys of the recipe's `evaluation` with their values.
        submission: `cityscapes`, `ade20k`, `voc` or `voc-comp5`; of a run alone.
        only: a text file with a name a line: of the images only those (without suffix), and all of them.
        overlays: whether they are drawn; None: not for a submission.
        frame_masks: of a video, also a mask for every frame: `out/masks/NAME/000001.png` and on.
        archive: also all results as one file, ready to upload; with `submission`.
        batch_size: images a forward pass, where their sizes agree; windows in one.
        alpha: strength of the colours, 0 to 1.
        progress: called with (images done, images in all).
        framing: called with a video's name, its frames done, and its frames in all.
        checking: called with (images opened, images in all) before any is segmented.
        said: called with lines that the user should see: files passed over.
        force: write into a folder that holds files already, and over those of the same names.

    Returns:
        What was written: images in the order of the inputs, then videos.

    Raises:
        RunError: the run has no student yet, its classes are not the benchmark's, or `out` holds files and `force` was
            not given.
        DataError: no images, unreadable ones (each with its reason), two that would get one name, or names that are
            not the benchmark's; a video that is damaged, or of a codec that is unknown here.
        ArgumentError: `batch_size` below 1, `alpha` outside 0 to 1, an unknown submission, `archive` without one,
            a submission of an exported student or of a video, or a video where PyAV is missing.
        ConfigError: an override of something that a prediction does not read.
        ExportError: windows or scales that the exported file cannot be used for.
    """
    if batch_size < 1 or not 0 <= alpha <= 1:
        raise ArgumentError(f"expected batch_size >= 1 and alpha from 0 to 1, got {batch_size} and {alpha}")
    wanted = None if submission is None else submission_of(submission)
    if archive and wanted is None:
        raise ArgumentError("--archive packs the results for a server: give --submission too")
    say = said or (lambda line: None)
    _require_usable(out, force, fresh=archive)
    videos = list(dict.fromkeys(path for path in inputs if is_video(path) and not path.is_dir()))
    _require_images(source, wanted, only, videos)
    images = [path for path in inputs if path not in videos]
    names = find_images(images, out, say) if images or not videos else {}
    if only is not None:
        names = only_listed(names, only)
    if wanted is not None:
        names = wanted.files_of(list(names))
        require_different(names)
    film_names = {path: path.stem for path in videos}
    require_different(film_names, what="the results of {}")
    drawn = overlays if overlays is not None else wanted is None
    encoder = find_encoder() if videos and drawn else None
    student = segmenter_of(source, overrides, batch_size)
    recipe = student.recipe if isinstance(student, Student) else None
    values = None if wanted is None or recipe is None else values_of(wanted, recipe, student.classes)
    opened = [check_video(path) for path in videos]
    sizes = check_all(list(names), checking)
    for line in wanted.notices(sizes) if wanted is not None else ():
        say(line)
    if isinstance(student, ShippedStudent):
        for line in student.notices([*sizes.values(), *((video.height, video.width) for video in opened)]):
            say(line)
    if wanted is not None and recipe is not None:
        results = _images(_Writer(student, out, wanted, values, alpha, drawn), names, sizes, batch_size, progress)
        files.write_json(out / "submission.json", _about(cast(Run, source), recipe.evaluation, wanted, len(results)))
        if archive:
            write_archive(out / wanted.archive, out / "results")
        return [*results]
    coverage = Coverage(out, student.classes)
    try:
        writer = _Writer(student, out, None, None, alpha, drawn, coverage)
        done: list[Prediction | VideoPrediction] = [*_images(writer, names, sizes, batch_size, progress)]
        job = VideoJob(student, out, encoder, frame_masks, batch_size, alpha, coverage, framing, say)
        done += [job.run(video, film_names[video.path]) for video in opened]
    except BaseException:
        kept = coverage.stop()
        if kept is not None:
            say(f"{kept}: the {coverage.rows} images and frames that were done")
        raise
    coverage.finish()
    return done


def segmenter_of(source: Run | Exported, overrides: Mapping[str, Any] | None, most: int) -> Segmenter:
    """What segments images, made of a run or of an exported student."""
    if hasattr(source, "manifest"):
        return ShippedStudent(cast(Exported, source), overrides, most)
    return Student(source, overrides, most)


def _images(
    writer: _Writer,
    names: Mapping[Path, str],
    sizes: Mapping[Path, tuple[int, int]],
    batch_size: int,
    progress: Callable[[int, int], None] | None,
) -> list[Prediction]:
    done: list[Prediction] = []
    for group in of_one_size(names, lambda path: writer.student.size_of(sizes[path]), batch_size):
        images = [read_image(path) for path in group]
        for path, image, label in zip(group, images, writer.student.segment(images), strict=True):
            done.append(writer.write(path, names[path], image, label))
            if progress is not None:
                progress(len(done), len(names))
    return done


def _require_images(source: Run | Exported, wanted: Submission | None, only: Path | None, videos: list[Path]) -> None:
    if wanted is not None and hasattr(source, "manifest"):
        raise ArgumentError(
            f"--submission {wanted.name}: needs the run, which says what its classes were made of; give its folder in "
            f"the place of {source.path}"
        )
    if videos and (wanted is not None or only is not None):
        option = "--submission" if wanted is not None else "--only"
        raise ArgumentError(f"{option} is for images, and {videos[0]} is a video; predict it without")


def _require_usable(out: Path, force: bool, fresh: bool) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"{out}: is a file; give another folder with --out")
    if out.is_dir() and any(out.iterdir()) and not force:
        raise RunError(f"{out}: holds files; it is never overwritten unasked. Use --force, or --out for another folder")
    if fresh and (out / "results").exists():
        raise RunError(f"{out / 'results'}: holds files, which would go into the archive too; give another --out")


@dataclass
class _Writer:
    student: Segmenter
    out: Path
    submission: Submission | None
    values: Tensor | None
    alpha: float
    overlays: bool
    coverage: Coverage | None = None

    def write(self, path: Path, name: str, image: Tensor, label: Tensor) -> Prediction:
        """Write the files of one image."""
        classes, palette = self.student.classes, self.student.palette
        shares = shares_of(label, classes)
        if self.coverage is not None:
            self.coverage.add(name, shares)
        if self.submission is None or self.values is None:
            mask, picture = self.out / "masks" / f"{name}.png", indexed(label, palette)
        else:
            mask, picture = self.out / "results" / f"{name}.png", self.submission.picture(label, self.values)
        write_picture(mask, picture)
        over = None
        if self.overlays:
            over = self.out / "overlays" / f"{name if self.submission is None else path.stem}.png"
            write_picture(over, overlaid(image, label, shares, classes, palette, self.alpha))
        return Prediction(path, mask, over, label.shape[0], label.shape[1], shares)


def _about(run: Run, evaluation: EvaluationSpec, submission: Submission, count: int) -> dict[str, Any]:
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
        "evaluation": evaluation.model_dump(mode="json"),
    }
