"""The stage `step` of `benchmarks/gpu.py`: a distillation step against the public way, plain and under autocast."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from densekd.bench import runner
from densekd.bench.gpu import Keep, Outcome, Target, forget
from densekd.bench.loss import TEMPERATURE
from densekd.bench.step_pairs import CLASSES, PAIRS, QUICK, VOID, Material, make_material
from densekd.bench.step_variants import PUBLIC, STUDENT, Variant, alone, public
from densekd.distiller import Distiller, Term
from densekd.errors import DensekdError
from densekd.evaluate import autocast
from densekd.functional import upsampled_cross_entropy
from densekd.losses import ChannelWise
from densekd.records import BenchCase
from densekd.teacher import freeze_teacher
from densekd.training.last_upsampling import MAIN, observed, putting_off

PAIR, BATCH, SIZE = "pspnet", 8, (512, 1024)
TINY_BATCH, TINY_SIZE = 2, (32, 64)
AUTOCAST = f"{PUBLIC}, autocast bf16"
#: the variant that has to be faster than the public way, and how many times
OURS, SPEEDUP = "densekd bf16", 2.0
EXACT = "densekd float32"
#: how far the losses of `EXACT` may be from those of the public way: both may use TF32
LOSSES = 0.02
_TAP = "logits"

Making = Callable[[], Variant]


def run(device: torch.device, *, tiny: bool = False, keep: Keep = forget) -> Outcome:
    """Every way to take a step, in turns; then once more with what must be compiled first, beside the public way.

    `ratio` of a case is against the public way, `extra.to_autocast` against that under autocast, both of the same
    turns. Losses of the first step in float32 must agree, or nothing is timed.

    Args:
        device: where.
        tiny: small networks and images, one round, nothing compiled.
        keep: called after each of the two groups with what is known so far.
    """
    outcome = Outcome()
    if device.type == "cuda":
        torch.backends.cudnn.benchmark = True  # as training codes do
    outcome.notes["cudnn.benchmark"] = str(torch.backends.cudnn.benchmark)
    pair = QUICK["quick"] if tiny else PAIRS[PAIR]
    batch, size = (TINY_BATCH, TINY_SIZE) if tiny else (BATCH, SIZE)
    material = _wide(make_material(pair, 2, 64, device), batch, size)
    rounds = 1 if tiny else 9
    for name, makers in _groups(material, compiled=not tiny).items():
        _measure(f"{pair} {batch}x3x{size[0]}x{size[1]} {name}", makers, device, rounds, outcome)
        if not outcome.targets:
            found = next(case for case in outcome.cases if case.variant == OURS)
            outcome.targets.append(Target(f"step, {OURS}, times the public way's speed", found.ratio, SPEEDUP))
        keep(outcome)
    return outcome


def _wide(material: Material, batch: int, size: tuple[int, int]) -> Material:
    """The same networks with a batch of another size."""
    generator = torch.Generator().manual_seed(0)
    images = torch.randn((batch, 3, *size), generator=generator)
    labels = torch.randint(CLASSES, (batch, size[0] // 8, size[1] // 8), generator=generator)
    labels[torch.rand(labels.shape, generator=generator) < 0.05] = VOID
    labels = labels.repeat_interleave(8, 1).repeat_interleave(8, 2)
    device = material.images.device
    return replace(material, images=images.to(device), labels=labels.to(device))


def _groups(material: Material, *, compiled: bool) -> dict[str, dict[str, Making]]:
    def ours(precision: str, **options: Any) -> Making:
        return lambda: _ours(material, precision, options)

    bf16 = "bfloat16"
    return {
        "eager": {
            PUBLIC: lambda: public(material),
            AUTOCAST: lambda: _under_autocast(public(material)),
            EXACT: ours("float32", dtype="float32"),
            "densekd bf16, no CUDA graph": ours(bf16, dtype=bf16, cuda_graph=False),
            OURS: ours(bf16, dtype=bf16),
            STUDENT: lambda: alone(material),
        },
        "compiled": {
            PUBLIC: lambda: public(material),
            AUTOCAST: lambda: _under_autocast(public(material)),
            f"{OURS}, teacher compiled": ours(bf16, dtype=bf16, compile=compiled, cuda_graph=False),
            f"{OURS}, teacher compiled, CUDA graph": ours(bf16, dtype=bf16, compile=compiled),
        },
    }


def _under_autocast(variant: Variant) -> Variant:
    plain, device = variant.forward, variant.device

    def forward() -> tuple[Tensor, Tensor | None]:
        with autocast(device, "bfloat16"):
            return plain()

    variant.name, variant.forward = AUTOCAST, forward
    return variant


def _ours(material: Material, precision: str, options: dict[str, Any]) -> Variant:
    """As a run does it: the teacher made fast, the student with its channels last, its up-sampling left to the loss."""
    images = material.images.contiguous(memory_format=torch.channels_last)
    teacher = freeze_teacher(material.teacher, example=images, taps=[_TAP], temperature=TEMPERATURE, **options)
    student: Any = copy.deepcopy(material.student).to(memory_format=torch.channels_last).train()
    terms = [Term(ChannelWise(temperature=TEMPERATURE), student=_TAP, teacher=_TAP, weight=1.0)]
    distiller = Distiller(student, teacher, terms, images)
    distiller.train()
    with observed(student) as seen, torch.no_grad():
        student(images)
    last = seen.last.calls[MAIN].upsampling

    def forward() -> tuple[Tensor, Tensor]:
        with putting_off(student, seen.last), autocast(images.device, precision):
            out = distiller(images)
        task = upsampled_cross_entropy(
            out.student, material.labels, align_corners=last.align_corners, ignore_index=VOID
        )
        return task, out.loss

    found = Variant(OURS, student, forward, images.device, close=distiller.close)
    found.report, found.error = teacher.report, teacher.report.errors[_TAP].softened
    return found


def _measure(label: str, makers: Mapping[str, Making], device: torch.device, rounds: int, outcome: Outcome) -> None:
    with ExitStack() as stack:
        variants: dict[str, Variant] = {}
        for name, make in makers.items():
            try:
                variants[name] = make()
            except DensekdError as error:
                outcome.notes[f"left out: {name}"] = str(error)
            else:
                stack.callback(variants[name].close)
        losses = {name: variant.losses() for name, variant in variants.items()}
        _require_right(losses)
        timings = runner.interleave(variants, rounds=rounds, warmup=min(3, rounds))
        peaks = {name: runner.peak_extra_bytes(variant, device) for name, variant in variants.items()}
    for name, variant in variants.items():
        median = timings[name].median
        outcome.cases.append(
            BenchCase(
                name=label,
                variant=name,
                median_seconds=median,
                ratio=timings[PUBLIC].median / median,
                peak_bytes=peaks[name],
                error=variant.error,
                samples=timings[name].wall,
                extra={
                    "losses": losses[name],
                    "to_autocast": timings[AUTOCAST].median / median,
                    "teacher": None if variant.report is None else variant.report.as_dict(),
                },
            )
        )


def _require_right(losses: Mapping[str, Sequence[float]]) -> None:
    """Refuse to time steps that compute something else; what bfloat16 does to small losses is recorded, not judged."""
    expected, found = losses[PUBLIC], losses.get(EXACT, losses[PUBLIC])
    apart = max(abs(one - other) / abs(other) for one, other in zip(found, expected, strict=True))
    finite = all(math.isfinite(value) for values in losses.values() for value in values)
    if not (finite and apart <= LOSSES):
        raise DensekdError(
            f"bench: task and distillation losses are {losses}; all must be finite, and those of {EXACT!r} within "
            f"{LOSSES:.0%} of {PUBLIC!r}. Nothing of this group was timed"
        )
