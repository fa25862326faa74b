"""Whether up-sampling and cross-entropy are one step in training (`task.fused`), decided from the student as it is."""

from __future__ import annotations

from collections.abc import Mapping

from densekd.distiller import Distiller
from densekd.errors import ConfigError
from densekd.runs.assemble import Parts
from densekd.taps import logits_candidate
from densekd.taps.paths import parse
from densekd.training.last_upsampling import AUXILIARY, MAIN, Ending, LastUpsampling, Size


def settle_fused(parts: Parts, distiller: Distiller | None = None) -> LastUpsampling | None:
    """What the student leaves to the loss in every training step; a line for the user where there is a choice.

    Args:
        parts: of a rehearsed run; a notice is added.
        distiller: whose terms may read the up-sampled map.

    Raises:
        ConfigError: `task.fused` is true and cannot act.
    """
    found, asked = parts.ending, parts.recipe.task.fused
    if found is None or asked is False:
        return None
    names = [MAIN, *([AUXILIARY] if parts.recipe.task.auxiliary else [])]
    small = {name: size for name in names if (size := _small(found, name)) is not None}
    obstacle = _obstacle(parts, found, distiller, small)
    if obstacle is None:
        parts.notices.append(_used(found, small))
        return found.last if found.last.calls else None
    if asked is True:
        raise ConfigError(f"task.fused: true, but {obstacle}; leave it at auto")
    if small:
        parts.notices.append(f"task.fused: full-size logits are made in training: {obstacle}")
    return None


def _small(found: Ending, name: str) -> Size | None:
    """The size of a class map before it is brought to the labels'; None where nothing is."""
    call = found.last.calls.get(name)
    if call is not None:
        return call.small
    size = found.maps.get(name)
    return None if size == found.labels else size


def _obstacle(parts: Parts, found: Ending, distiller: Distiller | None, small: Mapping[str, Size]) -> str | None:
    if parts.task.unfused is not None:
        return parts.task.unfused
    if MAIN not in small:
        return "the student's class map has the labels' size already and is no up-sampled one"
    for call in found.last.calls.values():
        if call.upsampling.size != found.labels:
            return f"the student brings its class map to {_words(call.upsampling.size)}, not to the labels' size"
    return _read_by(parts, found, distiller)


def _read_by(parts: Parts, found: Ending, distiller: Distiller | None) -> str | None:
    """Who reads a map that would not be there."""
    if not found.last.calls:
        return None
    auxiliary = parts.recipe.student.auxiliary
    taps = [] if auxiliary is None else [("student.auxiliary", auxiliary.tap)]
    for plan in () if distiller is None else distiller.plans:
        # Where `logits` is no module of its own it is the output.
        candidate = logits_candidate(parts.student) if plan.student.tap == "logits" else None
        own = candidate is not None and tuple(plan.student.shape[2:]) != found.maps[MAIN]
        taps.append((f"term {plan.name!r}", candidate[0] if own and candidate is not None else plan.student.tap))
    for who, tap in taps:
        path = parse(tap).path
        if path in (None, "logits") or path in found.last.after:
            return f"{who} reads the student's map after its last up-sampling"
    return None


def _used(found: Ending, small: Mapping[str, Size]) -> str:
    sizes = " and ".join(_words(size) for size in small.values())
    maps = "class map stays" if len(small) == 1 else "class maps stay"
    return (
        f"task.fused: up-sampling and cross-entropy are one step: in training the student's {maps} at {sizes}, the "
        f"labels at {_words(found.labels)}"
    )


def _words(size: Size) -> str:
    return f"{size[0]}x{size[1]}"
