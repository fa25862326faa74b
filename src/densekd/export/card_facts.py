"""The facts of a model card, from a run's record and from the study it is part of."""

from __future__ import annotations

from typing import Any

from pydantic import ValidationError

from densekd import files
from densekd.errors import DensekdError
from densekd.export.manifest import Manifest
from densekd.export.student import Student
from densekd.inference import WHOLE
from densekd.records import STUDENT_ALONE, RunRecord, StudyMethod, StudyRecord, run_name
from densekd.runs.folder import Run

_SHOWN_VERSIONS = (
    "densekd",
    "torch",
    "torchvision",
    "segmentation-models-pytorch",
    "timm",
    "transformers",
)


def percent(value: float | None) -> str:
    """A share as percent with two decimals; `-` where there is none."""
    return "-" if value is None else f"{100 * value:.2f}"


def cell(text: object) -> str:
    """A text that may stand in a cell of a table: no bars, no new lines, no HTML."""
    plain = " ".join(str(text).split())
    for mark, written in (("\\", "\\\\"), ("|", "\\|"), ("<", "&lt;"), ("`", "\\`")):
        plain = plain.replace(mark, written)
    return plain


def facts_of(student: Student, manifest: Manifest) -> dict[str, Any]:
    """Scores, classes, costs and the gain, each as the record has it."""
    record, best = student.run.record, manifest.source.scores
    study = study_of(student.run)
    scores = [(f"this student on {record.split}", percent(best.miou), percent(best.pixel_accuracy), best.images)]
    scores += [
        (f"this student's last step on {cell(name)}", percent(one.miou), percent(one.pixel_accuracy), one.images)
        for name, one in record.extra_splits.items()
    ]
    scores += _teacher_rows(record, study)
    return {
        "measured": _measured(record, best.step),
        "scores": scores,
        "classes": [
            (place, cell(name), percent(best.iou.get(name)), _hex(manifest, place))
            for place, name in enumerate(manifest.classes)
        ],
        "costs": _costs(record),
        "counting": "Parameters: those that the output depends on. Operations: of one image of the run's size; a "
        "multiplication and the addition after it count as two.",
        "gain": None if study is None else _gain(*study),
        "verified": _verified(manifest),
    }


def _measured(record: RunRecord, step: int) -> str:
    how = f", {record.evaluation}" if record.evaluation else ""
    return (
        f"Scores of seed {record.seed}, the weights of step {step} of {record.steps}{how}. They are those of the best "
        f"evaluation on {record.split}: the step was chosen on the same images."
    )


def _teacher_rows(record: RunRecord, study: tuple[StudyRecord, StudyMethod] | None) -> list[tuple[Any, ...]]:
    if study is not None and study[0].teacher.miou is not None:
        teacher = study[0].teacher
        return [
            (
                f"its teacher on {record.split}",
                percent(teacher.miou),
                percent(teacher.pixel_accuracy),
                teacher.images or "-",
            )
        ]
    if record.teacher is None or record.teacher.miou is None:
        return []
    exam = (record.preflight or {}).get("teacher") or {}
    accuracy = exam.get("pixel_accuracy")
    return [
        (
            f"its teacher, examined on {record.split}",
            percent(record.teacher.miou),
            percent(accuracy),
            exam.get("images", "-"),
        )
    ]


def _costs(record: RunRecord) -> list[tuple[str, str, str]]:
    rows = []
    for who, cost in (("this student", record.student), ("its teacher", record.teacher)):
        if cost is not None:
            rows.append((who, f"{cost.parameters:,}", "-" if cost.flops is None else f"{cost.flops:,}"))
    student, teacher = record.student, record.teacher
    if student is not None and teacher is not None and student.parameters:
        operations = "-"
        if student.flops and teacher.flops:
            operations = f"{teacher.flops / student.flops:.1f} times fewer"
        rows.append(("the student has", f"{teacher.parameters / student.parameters:.1f} times fewer", operations))
    return rows


def study_of(run: Run) -> tuple[StudyRecord, StudyMethod] | None:
    """The study that a run is part of, and its method there; None where it is part of none.

    It is part of the study in the folder above where that lists its seed with the very score of its record.
    """
    path = run.path.resolve().parent / "study.json"
    if not path.is_file():
        return None
    try:
        study = StudyRecord.model_validate(files.read_json(path))
    except (ValidationError, DensekdError):
        return None  # a study of another version: nothing is claimed of it
    record, folder = run.record, run.path.resolve().name
    for method in study.methods:
        if run_name(method.name, record.seed) != folder or method.final is None or record.final is None:
            continue
        scores = dict(zip(method.seeds, method.final.miou, strict=True))
        if scores.get(record.seed) == record.final.miou:
            return study, method
    return None


def _gain(study: StudyRecord, method: StudyMethod) -> str | None:
    alone = next((one for one in study.methods if one.name == STUDENT_ALONE), None)
    gain = method.gain
    if gain is None or method.final is None or alone is None or alone.final is None:
        return None
    count = len(method.seeds) if gain.n is None else gain.n
    return (
        f"In the study it is part of (`{cell(study.name)}`), students of this method gain **{100 * gain.mean:+.2f} "
        f"mIoU** over the same student trained alone (95% interval {100 * gain.low:+.2f} to {100 * gain.high:+.2f}, "
        f"paired by seed, {count} seeds): {percent(method.final.mean)} +- {percent(method.final.sd)} against "
        f"{percent(alone.final.mean)} +- {percent(alone.final.sd)} (mean and standard deviation, last step)."
    )


def _verified(manifest: Manifest) -> str:
    checked = manifest.verified
    if checked is None:
        return ""
    sizes = ", ".join(f"{height}x{width}" for height, width in checked.sizes)
    return (
        f"Checked when it was written: loaded by {checked.by}, it gave what the run's student gives on {checked.of} "
        f"(height x width {sizes}): largest absolute difference of a logit {checked.max_abs_error:g}, the same class "
        f"at {100 * checked.argmax_agreement:g}% of {checked.pixels:,} pixels."
    )


def _hex(manifest: Manifest, place: int) -> str:
    if manifest.palette is None:
        return "-"
    red, green, blue = manifest.palette[place]
    return f"`#{red:02x}{green:02x}{blue:02x}`"


def training_of(student: Student) -> dict[str, Any]:
    """How it was trained: what the recipe says, without paths of the machine."""
    recipe, record = student.recipe, student.run.record
    train, augment = recipe.train, recipe.data.augment
    lines = [
        f"{record.steps} steps ({record.epochs:g} epochs) of {train.batch_size} images, {train.optimizer.name}, "
        f"learning rate {train.optimizer.lr:g}, schedule {train.schedule.name}, seed {record.seed}",
        f"images: {_sizes(augment)}; crop {_size(augment.crop)}, random scale {augment.scale[0]:g} to "
        f"{augment.scale[1]:g}, flip {augment.flip:g}",
    ]
    if record.method != STUDENT_ALONE:
        for term in recipe.terms:
            options = ", ".join(f"{key} {value}" for key, value in term.options.items())
            lines.append(
                f"distilled: `{term.method}`, `{term.student}` to the teacher's `{term.teacher}`, "
                f"weight {term.weight:g}" + (f" ({options})" if options else "")
            )
    shown = [f"{name} {record.environment[name]}" for name in _SHOWN_VERSIONS if name in record.environment]
    lines.append(f"{record.cost.total_seconds:.0f} seconds on {record.cost.device}; {', '.join(shown)}")
    lines.append(f"SHA-256 of the recipe: `{record.recipe_sha256}`")
    return {
        "words": f"With densekd {record.environment.get('densekd', '')}, by a recipe that says:".replace(" ,", ","),
        "lines": lines,
    }


def _sizes(augment: Any) -> str:
    if augment.size is not None:
        return f"resized to {_size(augment.size)}"
    return "as stored" if augment.fit is None else f"fitted into {augment.fit[0]} (short side) by {augment.fit[1]}"


def _size(size: tuple[int, int] | None) -> str:
    return "none" if size is None else f"{size[0]}x{size[1]} (height x width)"


def limits_of(student: Student, manifest: Manifest) -> list[str]:
    """What the numbers do not say."""
    record, evaluation = student.run.record, manifest.evaluated.evaluation
    count = "" if "train" not in record.images else f" ({record.images['train'].count} images)"
    lines = [
        f"It knows images like those it was trained on{count}; on other cameras, places or seasons its scores may be "
        "far lower. Nothing else was measured than what stands above.",
    ]
    weak = [name for name, value in manifest.source.scores.iou.items() if value is not None and value < 0.1]
    if weak:
        lines.append(f"Classes it hardly finds (IoU below 10): {', '.join(cell(name) for name in weak)}.")
    absent = [name for name, value in manifest.source.scores.iou.items() if value is None]
    if absent:
        lines.append(f"Classes absent from {record.split}, so without a score: {', '.join(map(cell, absent))}.")
    if evaluation != WHOLE:
        lines.append(
            f"The scores were taken by: {evaluation.in_words()}. The code above looks at the whole image at once, "
            "which gives other scores."
        )
    precision = student.recipe.runtime.precision
    if precision != "float32":
        lines.append(f"The scores were taken in {precision} (runtime.precision); the weights here compute in float32.")
    lines += [cell(line) for line in manifest.notices]
    return lines
