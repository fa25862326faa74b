"""The number format a teacher is run in."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

from densekd.errors import DensekdError
from densekd.failures import out_of_memory
from densekd.teacher.engine import Engine
from densekd.teacher.engine_report import Candidate
from densekd.teacher.fidelity import MapError
from densekd.teacher.precision import Precision, convert
from densekd.teacher.winograd import take_out

# What a reduced format may cost, and what it must bring.
LARGEST_ERROR = 0.01
LARGEST_MIOU_CHANGE = 0.001
SMALLEST_GAIN = 1.1
# Seconds of a float32 pass over the example on the CPU below which there is nothing worth gaining: the timings of so
# small a network differ from run to run, and the choice would with them. On a GPU large networks take as little.
SMALLEST_SECONDS = 0.02


@dataclass(frozen=True)
class Measured:
    """What one engine was found to do."""

    errors: dict[str, MapError]
    agreement: float | None
    miou: float | None

    @property
    def finite(self) -> bool:
        return all(error.finite for error in self.errors.values())

    @property
    def softened(self) -> float:
        return max(error.softened for error in self.errors.values())

    @property
    def near(self) -> bool:
        """Whether its softened maps are as near as they have to be."""
        return self.finite and self.softened <= LARGEST_ERROR


Measure = Callable[[Engine], Measured]


def in_format(engine: Engine, name: str, measure: Measure) -> tuple[Engine, Measured, str | None]:
    """A copy of the engine in a reduced format, what it does, and a notice where its weights could not be converted.

    Autocast takes over where the network does not run with converted weights, as when it makes float32 tensors of its
    own.
    """
    reduced = _copy(engine, Precision(name))
    convert(reduced.network, reduced.precision.dtype)
    try:
        return reduced, measure(reduced), None
    except (RuntimeError, TypeError, ValueError) as error:
        if out_of_memory(error) or isinstance(error, DensekdError):
            raise
        notice = (
            f"the teacher does not run with its weights in {name} ({type(error).__name__}: {_short(error)}); autocast "
            "is used"
        )
    reduced = _copy(engine, Precision(name, autocast=True))
    return reduced, measure(reduced), notice


def _short(error: Exception) -> str:
    return " ".join(str(error).split())[:150]


def _copy(engine: Engine, precision: Precision) -> Engine:
    # together: the hooks in the network and the reader that reads them share what they write to
    network, reader = copy.deepcopy((engine.network, engine.reader))
    take_out(network)
    return replace(engine, network=network, reader=reader, precision=precision)


@dataclass
class _Tried:
    engine: Engine
    measured: Measured
    seconds: float = math.nan


def choose(
    exact: Engine,
    measure: Measure,
    seconds: Callable[[Sequence[Engine]], list[float]],
) -> tuple[Engine, str, list[Candidate], list[str]]:
    """The fastest engine that is true enough: its softened maps err by at most 1%, its mIoU moves by at most 0.1 point
    where it is known, and it is at least 1.1 times as fast as float32, which on the CPU takes 20 ms or more on the
    example.

    Returns:
        The engine, why it was taken, what was tried, and notices.
    """
    plain = _Tried(exact, measure(exact))
    tried, notices, failed = [plain], [], []
    for name in ("bfloat16", "float16") if exact.device.type == "cuda" else ("bfloat16",):
        try:
            engine, measured, notice = in_format(exact, name, measure)
        except (RuntimeError, TypeError, ValueError) as error:
            if out_of_memory(error) or isinstance(error, DensekdError):
                raise
            verdict = f"does not run ({type(error).__name__}: {_short(error)})"
            failed.append(Candidate(name, True, None, None, None, verdict))
            continue
        tried.append(_Tried(engine, measured))
        notices += [f"{notice}"] if notice else []
    for candidate, taken in zip(tried, seconds([candidate.engine for candidate in tried]), strict=True):
        candidate.seconds = taken
    verdicts = [None, *(_why_not(t, plain) for t in tried[1:])]
    best = min((t for t, verdict in zip(tried, verdicts, strict=True) if verdict is None), key=lambda t: t.seconds)
    listed = [_candidate(t, best, verdict) for t, verdict in zip(tried, verdicts, strict=True)]
    notices = notices if best.engine.precision.autocast else []
    return best.engine, _why(best, plain, [*listed, *failed]), [*listed, *failed], notices


def far_off(name: str, measured: Measured, before: float | None) -> list[str]:
    """What is further off in a format that was asked for than `choose` would allow, in words; `before`: mIoU of the
    plain teacher."""
    found = [
        f"in {name} the softened map {tap!r} errs by {100 * error.softened:.2g}%, more than the 1% that dtype='auto' "
        "allows"
        for tap, error in measured.errors.items()
        if error.softened > LARGEST_ERROR
    ]
    if measured.miou is not None and before is not None and abs(measured.miou - before) > LARGEST_MIOU_CHANGE:
        found.append(
            f"in {name} mIoU moves by {100 * (measured.miou - before):+.2f} points on the held-out images, more than "
            "the 0.1 that dtype='auto' allows"
        )
    return found


def _why_not(tried: _Tried, plain: _Tried) -> str | None:
    measured, before = tried.measured, plain.measured.miou
    if not measured.finite:
        return "its maps hold NaN or infinite values"
    if measured.softened > LARGEST_ERROR:
        return f"its softened maps err by {100 * measured.softened:.2g}%, more than 1%"
    if measured.miou is not None and before is not None and abs(measured.miou - before) > LARGEST_MIOU_CHANGE:
        return f"its mIoU moves by {100 * (measured.miou - before):+.2f} points, more than 0.1"
    if plain.engine.device.type == "cpu" and plain.seconds < SMALLEST_SECONDS:
        return f"float32 takes {1000 * plain.seconds:.2g} ms, less than {1000 * SMALLEST_SECONDS:.0f}: not worth it"
    if tried.seconds * SMALLEST_GAIN > plain.seconds:
        return f"it is {plain.seconds / tried.seconds:.2f} times as fast as float32, less than 1.1"
    return None


def _candidate(tried: _Tried, best: _Tried, refused: str | None) -> Candidate:
    measured, precision = tried.measured, tried.engine.precision
    verdict = refused or ("taken" if tried is best else "slower than the one taken")
    softened = measured.softened if measured.finite else None
    return Candidate(precision.name, precision.autocast, tried.seconds, softened, measured.miou, verdict)


def _why(best: _Tried, plain: _Tried, listed: Sequence[Candidate]) -> str:
    if best is not plain:
        moved = "" if best.measured.miou is None else ", and its mIoU stays within 0.1 point"
        return (
            f"{plain.seconds / best.seconds:.2f} times as fast as float32; its softened maps err by "
            f"{100 * best.measured.softened:.2g}%{moved}"
        )
    return "; ".join(f"{other.dtype}: {other.verdict}" for other in listed if other.dtype != "float32")
