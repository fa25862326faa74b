"""One run from its checked parts to its record: what `train` and `distill` share."""

from __future__ import annotations

import json
from contextlib import ExitStack
from functools import partial

from accelerate import Accelerator

from densekd import files
from densekd.distiller import Distiller
from densekd.models.digest import weights_digest
from densekd.models.measure import Measured
from densekd.records import RunRecord, Scores, dump
from densekd.runs.account import Account
from densekd.runs.assemble import Parts, build_distiller, build_teacher
from densekd.runs.beginning import Beginning
from densekd.runs.cache import stored_maps
from densekd.runs.claim import Claim
from densekd.runs.ending import Ending
from densekd.runs.engine import engine, wrapped
from densekd.runs.fast_teacher import fast_teacher
from densekd.runs.folder import Run, begin_folder
from densekd.runs.fused import settle_fused
from densekd.runs.identity import digests
from densekd.runs.idle import freeze, frozen_words, idle_parameters
from densekd.runs.kind import Kind as Kind
from densekd.runs.kind import method_of as method_of
from densekd.runs.layout import layout_words
from densekd.runs.length import total_steps
from densekd.runs.lock import claimed
from densekd.runs.looks import Looking
from densekd.runs.memory import reset_peak
from densekd.runs.page import leave_page
from densekd.runs.progress import Quiet
from densekd.runs.ranks import Ranks
from densekd.runs.readiness import check_readiness
from densekd.runs.restore import leave_finished
from densekd.runs.scoring import scorer
from densekd.runs.synchronised import terms_not_shared
from densekd.runs.tracking import Tracking
from densekd.runs.waiting import waiting_words
from densekd.training.checkpointer import Checkpointer, Position
from densekd.training.loop import Loop, scores_of
from densekd.training.numbers import last_words, remembered
from densekd.training.objective import Alone, Distilled, Objective
from densekd.training.optimizers import build_optimizer
from densekd.training.peers import Peers
from densekd.training.recorder import Recorder
from densekd.training.sharding import shard
from densekd.training.signals import StopSignals
from densekd.training.specs import TermSpec
from densekd.training.stepper import Stepper

_REPEATED = 5.0
"""Seconds within which a launcher hands a signal on that the terminal has sent to every process already."""


class Execution:
    """One run from its parts to its record; of several processes each has one, and the first writes."""

    def __init__(self, kind: Kind, parts: Parts, claim: Claim, progress: Quiet, ranks: Ranks | None = None) -> None:
        self.kind, self.parts, self.recipe, self.claim = kind, parts, parts.recipe, claim
        self.folder, self.progress = claim.folder, progress
        self.ranks = ranks or Ranks(parts.launch)
        waits = None if self.ranks.watch is None else self.ranks.watch.waits
        self.peers = Peers(self.ranks.launch.rank, self.ranks.world, parts.device, self.ranks.pulse, waits)
        self.steps = total_steps(self.recipe, len(parts.data.train), parts.share.images)
        self.account = Account(self.folder, method_of(kind, self.recipe), self.steps)
        self.terms: list[tuple[str, TermSpec]] = []
        self.idle: set[str] = set()
        # Not methods of this: parts that lead back to it would keep the networks until Python's collector comes by.
        self._say = partial(_say, progress, self.account)
        self.tracking = Tracking(self.recipe, self.folder, self.progress.said, self._say, on=self.ranks.first)
        self.looking = Looking(parts, progress, self._say, on=self.ranks.first)
        self.ending = Ending(
            self.folder, self.ranks, self.progress.said, partial(self.account.cost, device=parts.device)
        )

    def go(self) -> None:
        reset_peak(self.parts.device)
        student = self.parts.measured_student()
        objective, teacher = self.ranks.agreed("networks and terms", self._objective)
        if self.ranks.world > 1:
            for what, digest in digests(self.parts, objective, self.account.teacher_digest):
                self.ranks.same(what, digest)
        with ExitStack() as held:
            # Nothing is written before all checks have passed.
            found = json.loads(self.ranks.from_first("the folder", lambda: self._hold(held)))
            self.account.before = None if found is None else RunRecord.model_validate(found)
            if self.account.before is not None and self.account.before.status == "done":
                return
            record = self.ranks.agreed("the record", lambda: self._begun(student, teacher, objective))
            with (
                engine(self.recipe.runtime, self.parts.device, self.ranks) as accelerator,
                self.tracking,
                StopSignals(self.progress.said, grace=0.0 if self.ranks.world == 1 else _REPEATED) as signals,
            ):
                recorder = Recorder(self.folder, record, self.recipe.train.log_every, writes=self.ranks.first)
                loop = self._loop(accelerator, objective, recorder, signals)
                position = self._train(loop)
            self._finish(loop, position)

    def _hold(self, held: ExitStack) -> str:
        """Hold the folder until the run is over; the record that is in it."""
        files.make_folder(self.folder)
        held.enter_context(claimed(self.folder))
        # The checks take a while: another process may have been in the folder since the first look at it.
        before = self.claim.look()
        if before is not None and before.status == "done":
            leave_finished(Run.load(self.folder), self.progress.said)
        return json.dumps(None if before is None else dump(before))

    def _begun(self, student: Measured, teacher: Measured | None, objective: Objective) -> RunRecord:
        record = self.account.begin(self.parts, student, teacher, objective)
        if self.ranks.first:
            begin_folder(self.folder, self.recipe, resume=self.claim.resume)
        return record

    def _finish(self, loop: Loop, position: Position) -> None:
        """Looks, then "done", then the page: a run that says it is done lacks nothing that a resume would not write."""
        recorder = loop.recorder
        with self.ending.stopped(recorder):
            self.looking.after(loop, position, self.account.teacher_digest)
        self.ending.done(recorder)
        if self.recipe.report.page:
            leave_page(recorder, self.progress.said)

    def _train(self, loop: Loop) -> Position:
        recorder, warnings = loop.recorder, self.account.warnings
        position = Beginning(self.claim, self.ranks, self.progress.said, self._say).position(loop)
        # The record may be older than the checkpoint: a kill can fall between the two.
        warnings += [line for line in remembered(position.numbers)["lines"] if line not in warnings]
        recorder.write_evaluations(position)
        recorder.update(status="running", error=None, warnings=warnings, **scores_of(position))
        self.tracking.begin(loop, position, self.parts, resumed=self.claim.resume)
        minutes = self.recipe.runtime.stall_minutes
        limit = None if minutes is None else 60 * minutes
        with self.ending.recorded(recorder), self.ranks.training(limit, partial(_failed, recorder, self.account)):
            position = loop.run(position)
            extra = self._extra_splits(loop, position)
        late = [] if self.ranks.watch is None else self.ranks.watch.last_words()
        told = [*late, *last_words(remembered(position.numbers), position.skipped_steps, self.steps)]
        for line in [*told, *waiting_words(recorder.data_wait(), self.recipe)]:
            self._say(line)
        cost = self.account.cost(recorder, self.parts.device)
        recorder.update(warnings=warnings, extra_splits=extra, cost=cost, **scores_of(position))
        self.tracking.done(self.steps)
        return position

    def _objective(self) -> tuple[Objective, Measured | None]:
        objective, teacher = self._alone() if self.kind == "train" else self._distilled()
        if self.ranks.world > 1:
            self.idle = idle_parameters(self.parts, objective)
            for line in frozen_words(objective.student, self.idle):
                self._say(line)
        return objective, teacher

    def _alone(self) -> tuple[Objective, None]:
        self.parts.last = settle_fused(self.parts)
        self._say_notices()
        return Alone(self.parts.student, self.parts.task, self.parts.last), None

    def _distilled(self) -> tuple[Objective, Measured]:
        network = build_teacher(self.parts)
        self.account.teacher_digest = weights_digest(network)
        measured = self.parts.measured_teacher(network)
        fast = fast_teacher(self.parts, network, self.ranks)
        self.account.engine = fast.report
        distiller = build_distiller(self.parts, fast)
        self.terms = list(zip((plan.name for plan in distiller.plans), self.recipe.terms, strict=True))
        self.parts.notices.extend(terms_not_shared(self.recipe, self.ranks.launch))
        self.parts.last = settle_fused(self.parts, distiller)
        self._say_notices()
        readiness = check_readiness(
            self.parts,
            distiller,
            network,
            steps=self.steps,
            folder=self.folder,
            watch=self.progress.examining,
            terms_alone=not self.ranks.first,
            before_cost=None if self.recipe.distill.cache is None else lambda: self._read_maps(distiller),
        )
        self.account.readiness = readiness
        self.progress.ready(readiness)
        for line in [*readiness.notices, *readiness.raise_if_failed(self.recipe.preflight.on_problem)]:
            self._say(line)
        self.looking.before(distiller, network)
        return Distilled(distiller, self.parts.task, self.parts.last), measured

    def _read_maps(self, distiller: Distiller) -> None:
        """From here on the distiller reads the teacher's maps; no step needs the network itself any more."""
        stored = stored_maps(
            self.parts,
            distiller,
            self.account.teacher_digest,
            progress=self.progress,
            ranks=self.ranks,
            say=self._say,
        )
        for line in stored.unread(self.steps * self.parts.share.images / len(self.parts.data.train)):
            self._say(line)
        stored.take_over(distiller)
        self.parts.seen = stored.checked
        self.account.stored = stored.record()

    def _say_notices(self) -> None:
        self.account.warnings += [line for line in self.parts.shown if line not in self.account.warnings]
        for notice in self.parts.unseen:
            self._say(notice)

    def _loop(self, accelerator: Accelerator, objective: Objective, recorder: Recorder, signals: StopSignals) -> Loop:
        recipe = self.recipe
        share = self.parts.share
        train = recipe.train.model_copy(update={"accumulate": share.accumulate})
        if self.parts.replica is not None:
            shard(objective, self.ranks.world, self.parts.device)
        optimizer = build_optimizer(objective.student, objective.extra_state(), train.optimizer)
        freeze(objective.student, self.idle)
        for line in layout_words(objective.student, recipe.runtime):
            self._say(line)
        stepper = Stepper(
            accelerator,
            wrapped(accelerator, objective, sharded=self.parts.replica is not None),
            accelerator.prepare(optimizer),
            train,
            self.terms,
            steps=self.steps,
            seed=recipe.seed,
            channels_last=recipe.runtime.channels_last,
            peers=self.peers,
            unit=share.unit,
            replica=self.parts.replica,
        )
        batcher = self.parts.batcher(workers=recipe.runtime.workers, pin_memory=self.parts.device.type == "cuda")
        return Loop(
            train,
            self.steps,
            batcher,
            stepper,
            recorder,
            Checkpointer(self.folder, writes=self.ranks.first),
            scorer(self.parts, stepper, self.parts.data.val, self.peers),
            self.progress,
            signals,
            self.peers,
            name_of=self.parts.train_view().source.name_of,
            say=self._say,
            heard=tuple if self.ranks.watch is None else self.ranks.watch.taken_lines,
        )

    def _extra_splits(self, loop: Loop, position: Position) -> dict[str, Scores]:
        extra = self.parts.data.extra.items()
        scorers = {name: scorer(self.parts, loop.stepper, which, self.peers) for name, which in extra}
        return {name: loop.evaluated(score, position).scores for name, score in scorers.items()}


def _say(progress: Quiet, account: Account, line: str) -> None:
    """A line that the user sees and the record keeps, once: a step that is taken again says it again."""
    progress.said(line)
    if line not in account.warnings:
        account.warnings.append(line)


def _failed(recorder: Recorder, account: Account, words: str) -> None:
    """The record of a run that is ended by what watches it."""
    recorder.update(status="failed", error=words, warnings=account.warnings)
