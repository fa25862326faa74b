"""The result in one sentence, with its spread, and what must be said beside it."""

from __future__ import annotations

import statistics
from dataclasses import dataclass

from densekd.records import STUDENT_ALONE, RunRecord, StudyMethod, StudyRecord, StudyTeacher, run_name
from densekd.report.kept import KeptRun
from densekd.report.words import counted, points, signed, times

_SAME = 0.0005
"""Gains smaller than this are 0.0 in points, to one digit."""


@dataclass(frozen=True)
class Headline:
    """The result, and lines that limit or explain it."""

    result: str
    notes: tuple[str, ...] = ()


def paired(method: StudyMethod, alone: StudyMethod) -> dict[int, float]:
    """Gains in mIoU (final weights) by seed, of the seeds that both finished."""
    mine = {} if method.final is None else dict(zip(method.seeds, method.final.miou, strict=True))
    base = {} if alone.final is None else dict(zip(alone.seeds, alone.final.miou, strict=True))
    return {seed: mine[seed] - base[seed] for seed in sorted(set(mine) & set(base))}


def gap_closed(method: StudyMethod, alone: StudyMethod, teacher: StudyTeacher) -> float | None:
    """Share of the gap between the student alone and the teacher that a method closes.

    The mean gain paired by seed over (teacher - mean of the student alone over the same seeds), mIoU of the final
    weights. None where the teacher has no mIoU, or is no better than the student alone.
    """
    gains = paired(method, alone)
    if not gains or teacher.miou is None or alone.final is None:
        return None
    base = dict(zip(alone.seeds, alone.final.miou, strict=True))
    gap = teacher.miou - statistics.fmean(base[seed] for seed in gains)
    return statistics.fmean(gains.values()) / gap if gap > 0 else None


def size_words(student: int | None, teacher: int | None) -> str:
    """How the student's live parameters compare with the teacher's; empty where one is not known."""
    if not student or not teacher:
        return ""
    if student > teacher:
        return f"{times(student / teacher)} as many parameters as the teacher"
    if teacher / student < 1.05:
        return "as many parameters as the teacher"
    return f"{times(teacher / student)} fewer parameters than the teacher"


def study_headline(record: StudyRecord) -> Headline:
    """A study in one sentence: its largest gain over the student alone."""
    alone = next((line for line in record.methods if line.name == STUDENT_ALONE), None)
    distilled = [line for line in record.methods if line.name != STUDENT_ALONE]
    if alone is None or alone.final is None:
        return Headline("No gain can be said: no run of the student alone has finished.", tuple(_failed(record)))
    found = [(line, paired(line, alone)) for line in distilled]
    gained = [(line, gains) for line, gains in found if gains]
    if not gained:
        why = "no method was compared" if not distilled else "no method finished a seed that the student alone has"
        return Headline(f"No gain can be said: {why}.", tuple(_failed(record)))
    line, gains = max(gained, key=lambda pair: statistics.fmean(pair[1].values()))
    parts = [_gain_words(gains), *_size_and_gap(line, alone, record.teacher)]
    sentence = "; ".join([parts[0], ", ".join(parts[1:])] if len(parts) > 1 else parts)
    sentence = f"{_subject(line, len(gained))}{sentence}."
    return Headline(sentence, tuple(_study_notes(record, line, gains, alone, len(gained))))


def _subject(line: StudyMethod, count: int) -> str:
    return f"{line.name}, first of {count} methods: student " if count > 1 else "Student "


def _gain_words(gains: dict[int, float]) -> str:
    mean = statistics.fmean(gains.values())
    several = len(gains) > 1
    spread = f" ± {points(statistics.stdev(gains.values()))}" if several else ""
    seeds = counted(len(gains), "seed")
    if abs(mean) < _SAME:
        return f"as good as trained alone ({signed(mean)}{spread} mIoU), {seeds}"
    if mean < 0:
        return f"{points(-mean)}{spread} mIoU below training alone, {seeds}"
    return f"{signed(mean)}{spread} mIoU over training alone, {seeds}"


def _size_and_gap(line: StudyMethod, alone: StudyMethod, teacher: StudyTeacher) -> list[str]:
    sizes = size_words(line.student.parameters if line.student else None, teacher.parameters)
    closed = gap_closed(line, alone, teacher)
    gap = ""
    if closed is not None and closed >= 1:
        gap = "the whole gap to the teacher closed"
    elif closed is not None and closed >= 0.005:
        gap = f"{100 * closed:.0f}% of the gap closed"
    return [words for words in (sizes, gap) if words]


def _study_notes(
    record: StudyRecord, line: StudyMethod, gains: dict[int, float], alone: StudyMethod, count: int
) -> list[str]:
    notes = []
    if len(gains) > 1:
        told = "± is the standard deviation of the gains, paired by seed"
        if line.gain is not None:
            low, high = line.gain.low, line.gain.high
            told += f"; their mean lies between {signed(low)} and {signed(high)} (95% bootstrap interval"
            told += ", with so few seeds the smallest and the largest gain)" if len(gains) < 4 else ")"
            if low < _SAME and high > -_SAME:
                told += ". That includes 0: these seeds do not settle whether it helps"
        notes.append(f"{told}.")
    else:
        notes.append("One seed says nothing about chance: another one may give another gain, or none.")
    if count > 1:
        notes.append("The first of several was picked by these very numbers; on a repeat its gain tends to be smaller.")
    notes.extend(_teacher_notes(record.teacher, alone))
    notes.extend(_failed(record))
    return notes


def _teacher_notes(teacher: StudyTeacher, alone: StudyMethod) -> list[str]:
    if teacher.miou is None:
        return ["The teacher gives features, not class maps: it has no mIoU, so that there is no gap to speak of."]
    if alone.final is not None and teacher.miou <= alone.final.mean:
        return [
            f"The teacher ({points(teacher.miou)}) is no better than the student alone ({points(alone.final.mean)}): "
            "there is no gap to close."
        ]
    return []


def _failed(record: StudyRecord) -> list[str]:
    names = [run_name(line.name, failure.seed) for line in record.methods for failure in line.failed]
    if not names:
        return []
    total = len(names) + sum(len(line.seeds) for line in record.methods)
    shown = ", ".join(names[:6]) + (f" and {len(names) - 6} more" if len(names) > 6 else "")
    return [f"{len(names)} of {counted(total, 'run')} did not finish, and count nowhere: {shown}."]


def run_headline(run: KeptRun) -> Headline:
    """A run in one sentence."""
    record = run.record
    who = "the student trained alone" if record.method == STUDENT_ALONE else f"the student distilled by {record.method}"
    if record.final is None:
        return Headline(_without_scores(run, who))
    which = "with the final weights" if record.status == "done" else "at the newest evaluation"
    sentence = f"mIoU {points(record.final.miou)} on {record.split} {which}: {who}, seed {record.seed}"
    teacher, student = record.teacher, record.student
    sizes = size_words(student.parameters, teacher.parameters) if student and teacher else ""
    notes = [] if record.status == "done" else [_stopped(run)]
    return Headline(f"{sentence}{'; ' + sizes if sizes else ''}.", (*notes, *_run_notes(record)))


def _without_scores(run: KeptRun, who: str) -> str:
    what = {"failed": "failed", "interrupted": "was interrupted", "running": "was running when this page was made"}
    words = what.get(run.record.status, "is done")
    return f"{who[0].upper()}{who[1:]}, seed {run.record.seed}, {words} {_reached(run)}; no evaluation was made yet."


def _stopped(run: KeptRun) -> str:
    what = {"failed": "The run failed", "interrupted": "The run was interrupted"}
    return f"{what.get(run.record.status, 'The run was still going when this page was made,')} {_reached(run)}."


def _reached(run: KeptRun) -> str:
    if not run.taken:
        return f"before a step of its {run.record.steps:,} was logged"
    return f"after step {run.taken:,} of {run.record.steps:,} (the last one logged)"


def _run_notes(record: RunRecord) -> list[str]:
    notes = []
    if record.best is not None and record.final is not None:
        if record.best.miou > record.final.miou:
            notes.append(
                f"Best evaluation: {points(record.best.miou)} at step {record.best.step:,}; student.safetensors holds "
                "that one. It was picked by this very number, so that it flatters."
            )
        else:
            notes.append("The last evaluation is also the best; student.safetensors holds those weights.")
    for name, scores in record.extra_splits.items():
        notes.append(f"On {name}: {points(scores.miou)} with the final weights, {counted(scores.images, 'image')}.")
    if record.teacher is not None and record.teacher.miou is not None:
        images = ((record.preflight or {}).get("teacher") or {}).get("images")
        on = f"{images} images of {record.split}" if images else "the images that were examined"
        notes.append(f"The teacher scored {points(record.teacher.miou)} on {on} before the run.")
    if record.evaluation:
        notes.append(f"How it was scored: {record.evaluation}.")
    return notes
