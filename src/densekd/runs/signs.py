"""What the processes of a run tell one another of themselves, and what is to be made of it."""

from __future__ import annotations

import json
import os
import platform
import sys
import uuid
from collections.abc import Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from types import FrameType

import psutil

from densekd.training.lateness import Wait, Waits
from densekd.training.pulse import Mark

PATIENCE = 1800.0
"""Seconds that work may take which has no marks of its own: a checkpoint on a slow disk, compiling."""
_SHOWN = 2.0
"""Seconds from which on it is looked up where in the code a thread is."""
_CREATED = 5.0
"""Seconds by which two looks at one process's begin may differ: they hang on the machine's clock."""
_COMPILING = (str(Path("torch", "_dynamo", "convert_frame.py")), str(Path("torch", "_inductor", "compile_fx.py")))
"""Ends of the files of torch that are at work while something is compiled, and not when it runs."""
_MOST_NAMED = 4


@dataclass(frozen=True)
class Place:
    """Where a process runs: `machine` is equal where process ids mean the same processes."""

    machine: str
    host: str
    pid: int
    created: float

    @classmethod
    def here(cls) -> Place:
        """That of this process."""
        return cls(_machine(), platform.node(), os.getpid(), psutil.Process().create_time())

    def gone(self) -> bool:
        """Whether the process has ended; asked on its own machine."""
        try:
            process = psutil.Process(self.pid)
            return process.status() == psutil.STATUS_ZOMBIE or abs(process.create_time() - self.created) > _CREATED
        except psutil.NoSuchProcess:
            return True
        except psutil.Error:  # not ours to look at: then it is there
            return False

    def kill(self) -> None:
        """End the process on its own machine, where it is still there."""
        if not self.gone():
            psutil.Process(self.pid).kill()


@dataclass(frozen=True)
class Sign:
    """What one process says of itself, about once a second.

    Attributes:
        count: grows with every sign.
        place: where it runs.
        step, order, what, waiting, patient: of its newest mark.
        idle: seconds since that mark.
        code: where its training thread is, `file:line (function)`; empty for a young mark.
        taken: the last step it has taken.
        waits: its newest long waits for the others.
        left: it has ended, and says so.
    """

    count: int
    place: Place
    step: int
    order: int
    what: str
    waiting: bool
    patient: bool
    idle: float
    code: str = ""
    taken: int = 0
    waits: list[Wait] = field(default_factory=list)
    left: bool = False

    @classmethod
    def of(cls, count: int, place: Place, mark: Mark, thread: int, waits: Waits, now: float) -> Sign:
        """The sign of this process.

        Args:
            thread: the one that trains.
            now: of the monotonic clock.
        """
        taken, long = waits.taken, list(waits.long)
        idle = max(0.0, now - mark.since)
        frame = sys._current_frames().get(thread) if idle > _SHOWN else None
        return cls(
            count,
            place,
            mark.step,
            mark.order,
            mark.what,
            mark.waiting,
            mark.patient or _is_compiling(frame),
            idle,
            code="" if frame is None else f"{frame.f_code.co_filename}:{frame.f_lineno} ({frame.f_code.co_name})",
            taken=taken,
            waits=long,
        )

    def text(self) -> str:
        """The sign as JSON, for the store; `read` brings it back."""
        return json.dumps(asdict(self))

    @classmethod
    def read(cls, text: str) -> Sign:
        """A sign that a process of the same version has told."""
        given = json.loads(text)
        place, waits = Place(**given.pop("place")), [Wait(*wait) for wait in given.pop("waits")]
        return cls(place=place, waits=waits, **given)


@dataclass(frozen=True)
class Seen:
    """What is known of a process: its newest sign, and for how many seconds (`silent`) there was no newer one."""

    rank: int
    sign: Sign
    silent: float

    def is_still(self, limit: float) -> bool:
        """Whether it keeps the others from going on: it is silent, or does not come on with what it is at."""
        return self.silent >= limit or (self.sign.idle >= self._most(limit) and not self.sign.waiting)

    def may_be_still(self, limit: float) -> bool:
        """Whether it may be what others wait for that stand still: it is at something for half as long, itself."""
        return self.is_still(limit) or (self.sign.idle + self.silent >= self._most(limit) / 2 and not self.sign.waiting)

    def _most(self, limit: float) -> float:
        return max(limit, PATIENCE) if self.sign.patient else limit


def stalled(seen: Sequence[Seen], limit: float) -> list[Seen]:
    """The processes for which the others have waited longer than `limit` seconds; empty as long as all go on.

    Of several that may stand still these are the ones furthest behind: the others may only wait for them, inside of a
    backward pass for instance; where they are equally far all are named. Also all where every process waits for
    another: then the connection between them hangs.
    """
    if any(one.is_still(limit) for one in seen):
        still = [one for one in seen if one.may_be_still(limit)]
        behind = min((one.sign.step, one.sign.order) for one in still)
        return [one for one in still if (one.sign.step, one.sign.order) == behind]
    if len(seen) > 1 and all(one.sign.waiting and one.sign.idle >= limit for one in seen):
        return list(seen)
    return []


def stall_words(found: Sequence[Seen], world: int, limit: float) -> str:
    """The error for processes that stand still."""
    if all(one.sign.waiting and one.silent < limit for one in found):
        seconds = min(one.sign.idle for one in found)
        said = (
            f"all {world} processes have waited for one another for {seconds:.0f} s at step {found[0].sign.step}: the "
            "connection between them, or a GPU, hangs"
        )
    else:
        said = "; ".join(_still(one, world, limit) for one in found[:_MOST_NAMED])
    return (
        f"{said}. All processes end: runtime.stall_minutes={limit / 60:g} is the limit. Look at what holds it, or "
        "raise the limit where it only needs longer, and go on with --resume"
    )


def gone_words(one: Seen, world: int) -> str:
    """The error for a process that has ended without a word."""
    return (
        f"{named(one, world)} is gone without a word: killed from outside (often because memory ran out: the system's "
        f"log tells) or crashed; {_heard(one)}. All processes end; go on with --resume"
    )


def named(one: Seen, world: int) -> str:
    """A process in words."""
    place = one.sign.place
    return f"process {one.rank} of {world} (counted from 0; pid {place.pid} on {place.host})"


def _still(one: Seen, world: int, limit: float) -> str:
    if one.silent >= limit:
        return (
            f"{named(one, world)} has not answered for {one.silent:.0f} s: it is stopped, or its machine is gone; "
            f"{_heard(one)}"
        )
    code = f", in {one.sign.code}" if one.sign.code else ""
    return f"{named(one, world)} has made no step for {one.sign.idle:.0f} s: it is {_at(one.sign)}{code}"


def _heard(one: Seen) -> str:
    return f"when last heard, {one.silent:.0f} s ago, it was {_at(one.sign)}"


def _at(sign: Sign) -> str:
    return f"{sign.what}, step {sign.step}" if sign.step else sign.what


def left(sign: Sign) -> Sign:
    """The last sign of a process that ends."""
    return replace(sign, count=sign.count + 1, left=True)


def _is_compiling(frame: FrameType | None) -> bool:
    while frame is not None:
        if frame.f_code.co_filename.endswith(_COMPILING):
            return True
        frame = frame.f_back
    return False


def _machine() -> str:
    """A name for what hands out process ids: this boot of this kernel, in this container."""
    try:
        boot = Path("/proc/sys/kernel/random/boot_id").read_text(encoding="ascii").strip()
        return f"{boot} {Path('/proc/self/ns/pid').readlink()}"
    except OSError:  # no Linux
        return f"{platform.node()} {uuid.getnode()}"
