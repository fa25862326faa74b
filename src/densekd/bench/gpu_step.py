"""The stage `step` of `benchmarks/gpu.py`: a distillation step against the public way, plain and under autocast."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from dataclasses import replace
from functools import partial

import torch

from densekd.bench import runner
from densekd.bench.gpu import Keep, Outcome, Target, forget
from densekd.bench.step_pairs import CLASSES, PAIRS, QUICK, VOID, Material, make_material
from densekd.bench.step_variants import PUBLIC, STUDENT, Losses, Variant, alone, fast, public
from densekd.errors import DensekdError
from densekd.evaluate import autocast
from densekd.records import BenchCase

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
    public_ways: dict[str, Making] = {
        PUBLIC: lambda: public(material),
        AUTOCAST: lambda: _under_autocast(public(material)),
    }
    bf16 = partial(fast, OURS, material, dtype="bfloat16", precision="bfloat16")
    return {
        "eager": {
            **public_ways,
            EXACT: partial(fast, EXACT, material, dtype="float32"),
            f"{OURS}, no CUDA graph": partial(bf16, cuda_graph=False),
            OURS: bf16,
            STUDENT: lambda: alone(material),
        },
        "compiled": {
            **public_ways,
            f"{OURS}, teacher compiled": partial(bf16, compiled=compiled, cuda_graph=False),
            f"{OURS}, teacher compiled, CUDA graph": partial(bf16, compiled=compiled),
        },
    }


def _under_autocast(variant: Variant) -> Variant:
    plain, device = variant.forward, variant.device

    def forward() -> Losses:
        with autocast(device, "bfloat16"):
            return plain()

    variant.name, variant.forward = AUTOCAST, forward
    return variant


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


def _require_right(losses: Mapping[str, Mapping[str, float]]) -> None:
    """Refuse to time steps that compute something else; what bfloat16 does to small losses is recorded, not judged."""
    expected, found = losses[PUBLIC], losses.get(EXACT, losses[PUBLIC])
    apart = max(abs(found[part] - value) / abs(value) for part, value in expected.items())
    finite = all(math.isfinite(value) for parts in losses.values() for value in parts.values())
    if not (finite and apart <= LOSSES):
        raise DensekdError(
            f"bench: the losses are {losses}; all must be finite, and those of {EXACT!r} within {LOSSES:.0%} of "
            f"{PUBLIC!r}. Nothing of this group was timed"
        )
