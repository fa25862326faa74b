"""A comparison at work: opened, checked, planned, run, summed up."""

from __future__ import annotations

import gc
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import torch

from densekd import files
from densekd.config import Recipe
from densekd.errors import RunError
from densekd.records import Budget, CacheRecord, StudyFailure, StudyPlan, StudyTeacher, dump
from densekd.runs import Run
from densekd.runs.lock import claimed, require_unclaimed
from densekd.runs.page import unless_written
from densekd.study.cache import shared_maps, shared_words
from densekd.study.calibration import warm_up_of
from densekd.study.check import lengths, lengths_of, open_study, require_ready
from densekd.study.engine import Settled, settle, settled_words
from densekd.study.looks import keep_first_beside
from densekd.study.machine import Share
from densekd.study.methods import Method
from densekd.study.plan import plan_by_seconds, plan_by_steps, planned_steps, read_plan, told, write_plan
from densekd.study.pool import Job, Outcome, run_jobs
from densekd.study.progress import Silent
from densekd.study.record import study_record
from densekd.study.result import Study
from densekd.study.tasks import OUTPUT, Task, left_aside, plan_tasks, require_same
from densekd.study.teacher import score_teacher
from densekd.training.signals import Interrupted


@dataclass(frozen=True)
class _Ready:
    """What is known before the first run."""

    teacher: StudyTeacher
    cache: CacheRecord | None
    plan: StudyPlan
    tasks: list[Task]


@dataclass(frozen=True)
class Comparison:
    """One comparison: what it compares, where, and with what share of the machine for each run."""

    base: Recipe
    methods: Sequence[Method]
    seeds: Sequence[int]
    folder: Path
    budget: Budget
    share: Share
    force: bool
    watch: Silent

    def look(self) -> list[str]:
        """Check everything that `go` checks; nothing is trained or written.

        Returns:
            The names of the runs that are to be done.

        Raises:
            DensekdError: what `go` would raise before its first run.
        """
        before = read_plan(self.folder)
        settled, _ = self._open(before)
        tasks = self._tasks(before, settled)
        self._require_budget(before, tasks)
        self._say(require_same(tasks, self.force))
        self._check(settled, tasks)
        shared_maps(settled.opened, settled.fast, self.methods, build=False, watch=self.watch.run("cache"))
        return [task.name for task in tasks if task.action != "keep"]

    def go(self, command: str = "") -> Study:
        """Run what is to be run and write the study.

        Args:
            command: the command line, for the record.

        Raises:
            DensekdError: something is wrong; nothing was trained.
            Interrupted: Ctrl-C or SIGTERM; every run has saved.
        """
        self.folder.mkdir(parents=True, exist_ok=True)
        with claimed(self.folder):
            try:
                ready = self._ready()
            except BaseException:
                with suppress(OSError):
                    self.folder.rmdir()  # as it was: only an empty one goes
                raise
            _release_memory()
            outcomes = self._run(ready.tasks)
            study = self._summed_up(ready, outcomes, command)
            study.write()
            line = unless_written(study.report) if self.base.report.page else None
        if line is not None:
            self.watch.said(line)
        return study

    def _ready(self) -> _Ready:
        """Everything before the first run."""
        before = read_plan(self.folder)
        settled, steps = self._open(before)
        opened = settled.opened
        tasks = self._tasks(before, settled)
        self._require_budget(before, tasks)
        require_same(tasks, self.force)
        for task in tasks:
            require_unclaimed(task.path)  # by one whose study was killed, for instance
        files.sweep_temporaries(self.folder)
        self._check(settled, tasks)
        self.watch.said(settled_words(settled))
        teacher = score_teacher(opened, self.folder, self.watch.run("teacher"))
        self.watch.said(_teacher_words(teacher))
        taught = any(task.method.terms and task.action != "keep" for task in tasks)
        # Before anything is timed: a step that reads stored maps is another one than a step with a teacher.
        cache = shared_maps(opened, settled.fast, self.methods, build=taught, watch=self.watch.run("cache"))
        plan = self._plan(before, steps, settled)
        tasks = self._tasks(plan, settled)
        # A budget of seconds may have left a costly method less than its warm-up.
        todo = [(task.method, task.recipe) for task in tasks if task.action != "keep"]
        lengths_of(todo, len(opened.parts.data.train))
        self._say(require_same(tasks, self.force))
        return _Ready(teacher, cache, plan, tasks)

    def _open(self, before: StudyPlan | None) -> tuple[Settled, dict[str, int]]:
        distilled = next(method for method in self.methods if method.terms)
        recipe = distilled.recipe(self.base, self.seeds[0], threads=self.share.threads)
        opened = open_study(recipe, self.watch.run("check"))
        steps = lengths(opened, self.base, self.methods, self.seeds[0])
        return settle(opened, self.base, self.methods, before), steps

    def _tasks(self, plan: StudyPlan | None, settled: Settled) -> list[Task]:
        plan = plan if plan is not None and plan.budget == self.budget else None
        return plan_tasks(
            settled.base,
            self.methods,
            self.seeds,
            self.folder,
            steps=planned_steps(plan, self.methods),
            threads=self.share.threads,
            teacher=settled.opened.sha256,
        )

    def _require_budget(self, before: StudyPlan | None, tasks: Sequence[Task]) -> None:
        begun = any(task.action != "start" for task in tasks)
        if before is not None and before.budget != self.budget and begun and not self.force:
            raise RunError(
                f"{self.folder}: was begun with --budget {before.budget}; use that, --force to start again the runs "
                "whose length changes, or another --out"
            )

    def _check(self, settled: Settled, tasks: Sequence[Task]) -> None:
        todo = [task for task in tasks if task.action != "keep"]
        first: dict[str, Task] = {}
        for task in todo:
            first.setdefault(task.method.name, task)
        recipes = [(task.method, task.recipe) for task in first.values()]
        forecasts, lines = require_ready(settled.opened, settled.fast, recipes, self.folder, self.watch)
        self._say(lines)
        counted = f"{len(todo)} of {len(tasks)} runs to do"
        if self.budget == "steps" and forecasts:
            # The student alone takes less than the quickest of the others.
            least = min(cost.total_seconds for cost in forecasts.values())
            known = {name: cost.total_seconds for name, cost in forecasts.items()}
            seconds = sum(known.get(task.method.name, least) for task in todo) / len(self.share.places)
            counted += f", about {max(1, round(seconds / 60))} min"
        self.watch.said(counted)

    def _plan(self, before: StudyPlan | None, steps: Mapping[str, int], settled: Settled) -> StudyPlan:
        """What every method may spend; on disk before the first run."""
        before = before if before is not None and before.budget == self.budget else None
        if self.budget == "steps":
            plan = plan_by_steps(before, settled.base, self.methods, steps, self.share)
        else:
            data = settled.opened.parts.data
            warm_up = warm_up_of(settled.base, len(data.train), len(data.unlabelled or ()))
            plan = plan_by_seconds(
                before, settled.base, self.methods, steps, self.share, self.folder, self.watch, warm_up
            )
        plan = plan.model_copy(update={"teacher": settled.planned})
        write_plan(self.folder, plan)
        self._say(told(plan, self.methods))
        return plan

    def _run(self, tasks: Sequence[Task]) -> dict[str, Outcome]:
        """Do what is to be done; outcomes by the run's name."""
        todo = {task.name: task for task in tasks if task.action != "keep"}
        done = len(tasks) - len(todo)
        outcomes: dict[str, Outcome] = {}

        def ended(outcome: Outcome) -> None:
            task = todo[outcome.job.name]
            outcomes[task.name] = outcome
            _put_in_order(task, outcome)
            self.watch.ended(task.name, _words(task, outcome))
            self.watch.counted(done + len(outcomes), len(tasks))

        self.watch.counted(done, len(tasks))
        try:
            run_jobs([self._job(task) for task in todo.values()], self.share.places, self.watch, ended)
        except Interrupted as stop:
            finished = done + sum(outcome.status == "done" for outcome in outcomes.values())
            words = f"stopped: {finished} of {len(tasks)} runs are done; the same command goes on"
            raise Interrupted(words, stop.exit_code - 128) from None
        return outcomes

    def _job(self, task: Task) -> Job:
        files.remove(task.path / OUTPUT)
        request = {
            "work": "run",
            "kind": task.method.kind,
            "recipe": task.recipe.model_dump(mode="json"),
            "out": str(task.path),
            "resume": task.action == "resume",
            "force": task.action == "again",
        }
        return Job(task.name, request, self.folder / f".{task.name}.output.part")

    def _summed_up(
        self,
        ready: _Ready,
        outcomes: Mapping[str, Outcome],
        command: str,
    ) -> Study:
        runs: dict[str, dict[int, Run]] = {method.name: {} for method in self.methods}
        failures: dict[str, list[StudyFailure]] = {method.name: [] for method in self.methods}
        for task in ready.tasks:
            outcome = outcomes.get(task.name)
            if outcome is None or outcome.status == "done":
                runs[task.method.name][task.seed] = Run.load(task.path)
                continue
            output = task.path / OUTPUT
            kept = str(output.relative_to(self.folder)) if output.is_file() else None
            failures[task.method.name].append(StudyFailure(seed=task.seed, reason=_reason(outcome), output=kept))
        record = study_record(
            self.folder.name,
            self.methods,
            {name: {seed: run.record for seed, run in made.items()} for name, made in runs.items()},
            failures,
            data=self.base.data.model_dump(mode="json"),
            teacher=ready.teacher,
            plan=ready.plan,
            command=command,
        )
        notices = [*record.notices, *shared_words(ready.cache), *left_aside(ready.tasks, self.folder)]
        notices += keep_first_beside(runs, self.watch.run("pictures").looking)
        record = record.model_copy(update={"notices": notices, "cache": ready.cache})
        self._say(record.notices)
        return Study(self.folder, record, runs)

    def _say(self, lines: Iterable[str]) -> None:
        for line in lines:
            self.watch.said(line)


def _release_memory() -> None:
    """What the checks held is for the runs now."""
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _reason(outcome: Outcome) -> str:
    return outcome.reason or outcome.status


def _put_in_order(task: Task, outcome: Outcome) -> None:
    """What a run's process left: a failed one's output goes to its folder, and its record says that it failed."""
    output = outcome.job.output
    if outcome.status != "failed":
        files.remove(output)
        return
    if output.is_file():
        task.path.mkdir(parents=True, exist_ok=True)
        files.move(output, task.path / OUTPUT)
    if (task.path / "record.json").is_file():
        record = Run.load(task.path).record
        if record.status == "running":  # killed: it could not say so itself
            changed = record.model_copy(update={"status": "failed", "error": outcome.reason})
            files.write_json(task.path / "record.json", dump(changed))


def _words(task: Task, outcome: Outcome) -> str:
    if outcome.status != "done":
        return f"{outcome.status}: {_reason(outcome)}"
    scores = Run.load(task.path).record.final
    return "done" if scores is None else f"done: mIoU {100 * scores.miou:.2f}"


def _teacher_words(teacher: StudyTeacher) -> str:
    if teacher.miou is None:
        return "teacher: gives features, not class maps: not scored"
    further = "".join(f"; {100 * miou:.2f} on {name}" for name, miou in teacher.extra_splits.items())
    return f"teacher: mIoU {100 * teacher.miou:.2f} on all {teacher.images} images of val{further}"
