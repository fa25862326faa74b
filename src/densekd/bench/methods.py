"""`densekd bench methods`: what every distillation loss costs, beside a plain mean squared error.

Forward and backward on ready maps: no network is part of it. A loss that plays against the student pays for its
adversary's forward and backward too, because a training step does.
"""

from __future__ import annotations

import math
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, Literal

import torch
from torch.nn import functional as F

from densekd.bench import runner
from densekd.bench.contender import Contender, Shape, contender, make_maps
from densekd.errors import ArgumentError, DensekdError, nearest
from densekd.losses.base import DistillationLoss
from densekd.losses.catalog import METHODS, loss_options, make_loss
from densekd.records import BenchCase, BenchRecord

Kind = Literal["logits", "features"]

MAPS: dict[Kind, Shape] = {"logits": (8, 19, 64, 128), "features": (8, 512, 64, 64)}
#: to see that it works
QUICK_MAPS: dict[Kind, Shape] = {"logits": (2, 5, 16, 32), "features": (2, 16, 16, 16)}
REFERENCE = "mse"
#: classes of the labels that go with feature maps; with class maps it is their channels
CLASSES = 19
_WARMUP = 2


def run(
    *,
    methods: Sequence[str] | None = None,
    maps: Mapping[Kind, Shape] = MAPS,
    devices: Sequence[str] = ("cpu",),
    threads: int = 1,
    rounds: int = 7,
    progress: runner.Progress | None = None,
    command: str = "densekd bench methods",
) -> BenchRecord:
    """Measure the losses with their default options on each kind of map and each device.

    A loss that needs class maps is measured on class maps alone. One that refuses a map is left out there, and
    the record's environment says why. Every loss must give a finite value and gradient, not zero, before anything of
    that map is timed.

    Args:
        methods: names of the catalog; None: all.
        maps: a shape (N, C, H, W) for "logits", "features" or both.
        devices: "cpu", "cuda" or both.
        threads: of torch on the CPU, restored afterwards.
        rounds: samples of each loss.
        progress: called with (calls and rounds done, in all).
        command: kept in the record.

    Raises:
        ArgumentError: an unknown method, kind of map or device, a bad shape or number.
        DensekdError: a loss gives a value or a gradient that is zero or not finite.
    """
    names = list(METHODS) if methods is None else list(methods)
    check_names(names)
    _check_maps(maps, names)
    _check_devices(devices)
    places = [(torch.device(device), kind, shape) for device in devices for kind, shape in maps.items()]
    total = sum(len(_allowed(names, kind)) + 1 + _WARMUP + rounds for _, kind, _ in places)
    done = 0

    def tick() -> None:
        nonlocal done
        done += 1
        if progress is not None:
            progress(done, total)

    load, cases, notes = runner.machine_load(), list[BenchCase](), dict[str, str]()
    with runner.use_threads(threads):
        for device, kind, shape in places:
            with own_randomness(device):
                found = _contenders(_allowed(names, kind), kind, shape, device, notes, tick)
                cases += _measure(found, kind, shape, rounds, tick)
    shown = " and ".join("cpu" if device == "cpu" else torch.cuda.get_device_name() for device in devices)
    return runner.make_record(
        "methods", device=shown, threads=threads, command=command, load=load, cases=cases, notes=notes
    )


def choose_maps(kinds: Sequence[str], *, quick: bool = False) -> dict[Kind, Shape]:
    """The shapes of these kinds of map.

    Raises:
        ArgumentError: no such kind.
    """
    shapes = QUICK_MAPS if quick else MAPS
    known = {str(kind): kind for kind in shapes}
    for kind in kinds:
        if kind not in known:
            raise ArgumentError(
                f"maps: {kind!r} is no kind of map{nearest(kind, known)}; expected {' or '.join(known)}"
            )
    return {known[kind]: shapes[known[kind]] for kind in kinds}


def choose_devices(names: Sequence[str]) -> list[str]:
    """The devices; `auto` is the CPU, and CUDA where there is one."""
    if list(names) != ["auto"]:
        return list(names)
    return ["cpu", "cuda"] if torch.cuda.is_available() else ["cpu"]


def rows(record: BenchRecord) -> list[dict[str, Any]]:
    """One flat row per case, for a table."""
    return [
        {
            "map": case.name,
            "method": case.variant,
            "milliseconds": round(1e3 * case.median_seconds, 2),
            "forward": round(1e3 * case.extra["forward_seconds"], 2),
            "backward": round(1e3 * case.extra["backward_seconds"], 2),
            "times MSE": None if case.ratio is None else round(1 / case.ratio, 2),
            "memory (maps)": round(case.extra["peak_maps"], 2),
            "parameters": case.extra["extra_parameters"],
            "grows as": case.extra["cost"],
            "options": case.extra["options"],
        }
        for case in record.cases
    ]


def left_out(record: BenchRecord) -> list[str]:
    """A line for each loss that refused a map."""
    return [f"{name}: {why}" for name, why in record.environment.items() if name.startswith("left out")]


def _allowed(names: Sequence[str], kind: Kind) -> list[str]:
    return [name for name in names if kind == "logits" or not METHODS[name].logits_only]


def check_names(names: Sequence[str]) -> None:
    """Refuse names of no method, the same twice, and none.

    Raises:
        ArgumentError: one of these.
    """
    for name in names:
        if name not in METHODS:
            make_loss(name)  # raises, naming the nearest method
    if not names or len(set(names)) < len(names):
        raise ArgumentError(f"methods: expected different names, at least one, got {list(names)}")


def _check_maps(maps: Mapping[Kind, Shape], names: Sequence[str]) -> None:
    if not maps:
        raise ArgumentError(f"maps: expected at least one of {', '.join(MAPS)}")
    for kind, shape in maps.items():
        if len(shape) != 4 or min(shape) < 1:
            raise ArgumentError(f"maps: expected (N, C, H, W) of sizes from 1 for {kind}, got {tuple(shape)}")
        if not _allowed(names, kind):
            raise ArgumentError(
                f"methods: {', '.join(names)} compare classes: they have a cost on logits, not on {kind}"
            )


def _check_devices(devices: Sequence[str]) -> None:
    if not devices or len(set(devices)) < len(devices) or not set(devices) <= {"cpu", "cuda"}:
        raise ArgumentError(f"devices: expected cpu, cuda or both, got {list(devices)}")
    if "cuda" in devices and not torch.cuda.is_available():
        raise ArgumentError("devices: cuda was asked for, but torch sees no CUDA device; use cpu")


@contextmanager
def own_randomness(device: torch.device) -> Iterator[None]:
    """What losses draw is the same every time, and the program's generators stay as they were."""
    cuda = device.type == "cuda"
    with torch.random.fork_rng(devices=[torch.cuda.current_device()] if cuda else []):
        torch.default_generator.manual_seed(0)
        if cuda:
            torch.cuda.manual_seed(0)
        yield


def _contenders(
    names: Sequence[str],
    kind: Kind,
    shape: Shape,
    device: torch.device,
    notes: dict[str, str],
    tick: Callable[[], None],
) -> list[Contender]:
    """The reference and the losses, each called once and found to act."""
    classes = shape[1] if kind == "logits" else CLASSES
    student, teacher, labels = make_maps(shape, classes, device)
    found = [Contender(REFERENCE, lambda: F.mse_loss(student, teacher), student)]
    for name in names:
        try:
            one = contender(name, student, teacher, labels, classes)
            one()
        except DensekdError as error:
            notes[f"left out: {name} on {kind}"] = str(error)
            tick()
            continue
        one.require_effect(kind)
        one.clear()
        found.append(one)
    return found


def _measure(
    found: Sequence[Contender], kind: Kind, shape: Shape, rounds: int, tick: Callable[[], None]
) -> list[BenchCase]:
    """The cases of one map on one device: memory first, in a pass of its own, then time."""
    device = found[0].student.device

    def clear() -> None:
        for one in found:
            one.clear()

    peaks = {}
    for one in found:
        clear()
        peaks[one.name] = one.held_bytes() + runner.peak_extra_bytes(one, device)
        tick()
    for one in found:
        one.forward.clear()
        one.backward.clear()
    timings = runner.interleave(
        {one.name: one for one in found}, rounds=rounds, warmup=_WARMUP, between=clear, tick=tick
    )
    label = f"{kind}:{'x'.join(map(str, shape))}" + (":cuda" if device.type == "cuda" else "")
    return [_case(label, one, timings, peaks[one.name], shape) for one in found]


def _case(label: str, one: Contender, timings: Mapping[str, runner.Timing], peak: int, shape: Shape) -> BenchCase:
    timing, reference = timings[one.name], timings[REFERENCE]
    return BenchCase(
        name=label,
        variant=one.name,
        median_seconds=timing.median,
        ratio=reference.median / timing.median,
        peak_bytes=peak,
        samples=timing.wall,
        extra={
            "forward_seconds": statistics.median(one.forward[_WARMUP:]),
            "backward_seconds": statistics.median(one.backward[_WARMUP:]),
            "cpu_seconds": timing.cpu_median,
            "cpu_ratio": reference.cpu_median / timing.cpu_median,
            "peak_maps": peak / (4 * math.prod(shape)),
            "held_bytes": one.held_bytes(),
            "extra_parameters": sum(parameter.numel() for parameter in one.parameters()),
            "cost": "N C P" if one.loss is None else one.loss.cost or "not stated",
            "options": "" if one.loss is None else _options(one.name, one.loss),
            "device": one.student.device.type,
        },
    )


def _options(name: str, loss: DistillationLoss) -> str:
    """The options the loss ran with: where a default means "choose", what it chose."""
    values = {key: getattr(loss, key, default) for key, default in loss_options(name).items()}
    return ", ".join(f"{key}={value}" for key, value in values.items() if isinstance(value, bool | int | float | str))
