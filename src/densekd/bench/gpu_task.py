"""The stage `task` of `benchmarks/gpu.py`: up-sampling with cross-entropy in one, and pixel-wise KL, against torch."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping

import torch
from torch import Tensor
from torch.nn import functional as F

from densekd.bench import runner
from densekd.bench.gpu import Keep, Outcome, Target, backward_of, device_timings, forget, kernel_backend
from densekd.functional import pixelwise_kl, upsampled_cross_entropy
from densekd.records import BenchCase

Shape = tuple[int, int, int, int]

#: class maps at stride 8; labels are 8 times as large in each direction
LOGITS: tuple[Shape, ...] = ((8, 19, 64, 128), (8, 150, 64, 64))
TINY_LOGITS: tuple[Shape, ...] = ((1, 3, 4, 6),)
PIXELS: tuple[Shape, ...] = ((16, 150, 128, 128), (8, 19, 64, 128))
TINY_PIXELS: tuple[Shape, ...] = ((1, 3, 4, 6),)
DTYPES = (torch.bfloat16, torch.float32)
REFERENCE = "torch, as usually written"
#: share of the memory of up-sampling and cross-entropy one after the other
MEMORY = 0.125
_STRIDE, _VOID = 8, 255


def run(device: torch.device, *, tiny: bool = False, keep: Keep = forget) -> Outcome:
    """Forward and backward of both losses on every map; times are the device's.

    `ratio` is against the two or three operators of torch that the loss is usually written as.

    Args:
        device: where.
        tiny: small maps, few rounds.
        keep: called after every map with what is known so far.
    """
    backend, why = kernel_backend(device)
    outcome = Outcome(notes={} if why is None else {"backend": why})
    for dtype in DTYPES:
        for shape in TINY_LOGITS if tiny else LOGITS:
            _task(shape, dtype, device, backend, tiny, outcome)
            keep(outcome)
        for shape in TINY_PIXELS if tiny else PIXELS:
            _pixels(shape, dtype, device, backend, tiny, outcome)
            keep(outcome)
    return outcome


def _map(shape: Shape, dtype: torch.dtype, device: torch.device, seed: int) -> Tensor:
    generator = torch.Generator(device).manual_seed(seed)
    return torch.empty(shape, dtype=dtype, device=device).normal_(0.0, 4.0, generator=generator)


def _task(shape: Shape, dtype: torch.dtype, device: torch.device, backend: str, tiny: bool, outcome: Outcome) -> None:
    n, classes, h, w = shape
    logits = _map(shape, dtype, device, 0).requires_grad_()
    full = (n, _STRIDE * h, _STRIDE * w)
    labels = torch.randint(classes, full, generator=torch.Generator().manual_seed(1))
    labels[torch.rand(full, generator=torch.Generator().manual_seed(2)) < 0.05] = _VOID
    labels = labels.to(device)

    def usual(x: Tensor) -> Tensor:
        large = F.interpolate(x, full[1:], mode="bilinear", align_corners=False)
        return F.cross_entropy(large.float(), labels, ignore_index=_VOID)

    def own(x: Tensor, which: str) -> Tensor:
        return upsampled_cross_entropy(x, labels, ignore_index=_VOID, backend=which)

    variants = {
        REFERENCE: backward_of(usual, logits),
        "torch": backward_of(lambda x: own(x, "torch"), logits),
        backend: backward_of(lambda x: own(x, backend), logits),
    }
    label = f"cross-entropy x{_STRIDE} {_words(shape, dtype)}"
    speed, memory = _measure(label, variants, logits, device, tiny, outcome)
    outcome.targets += [
        Target(f"{label}, times torch's speed", speed, 1.0),
        Target(f"{label}, share of torch's memory", memory, MEMORY, at_most=True),
    ]


def _pixels(shape: Shape, dtype: torch.dtype, device: torch.device, backend: str, tiny: bool, outcome: Outcome) -> None:
    student, teacher = _map(shape, dtype, device, 0).requires_grad_(), _map(shape, dtype, device, 1)

    def usual(x: Tensor) -> Tensor:
        mine, theirs = F.log_softmax(x.float(), 1), F.log_softmax(teacher.float(), 1)
        return F.kl_div(mine, theirs, reduction="sum", log_target=True) / (x.numel() / x.shape[1])

    variants = {
        REFERENCE: backward_of(usual, student),
        "torch": backward_of(lambda x: pixelwise_kl(x, teacher, backend="torch"), student),
        backend: backward_of(lambda x: pixelwise_kl(x, teacher, backend=backend), student),
    }
    label = f"pixel-wise KL {_words(shape, dtype)}"
    speed, _ = _measure(label, variants, student, device, tiny, outcome)
    outcome.targets.append(Target(f"{label}, times torch's speed", speed, 1.0))


def _words(shape: Shape, dtype: torch.dtype) -> str:
    return f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')}"


def _measure(
    label: str,
    variants: Mapping[str, Callable[[], object]],
    like: Tensor,
    device: torch.device,
    tiny: bool,
    outcome: Outcome,
) -> tuple[float, float]:
    """The cases of one map; how many times as fast the last variant is as the first, and its share of the memory."""
    calls, rounds, warmup = (1, 1, 1) if tiny else (5, 9, 3)
    timings = device_timings(variants, device, rounds=rounds, calls=calls, warmup=warmup)
    peaks = {name: runner.peak_extra_bytes(call, device) for name, call in variants.items()}
    size = math.prod(like.shape) * like.element_size()
    for name, timing in timings.items():
        outcome.cases.append(
            BenchCase(
                name=label,
                variant=name,
                median_seconds=timing.median,
                ratio=timings[REFERENCE].median / timing.median,
                peak_bytes=peaks[name],
                samples=timing.wall,
                extra={"peak_maps": peaks[name] / size, "waited_seconds": timing.cpu_median},
            )
        )
    last = outcome.cases[-1]
    return timings[REFERENCE].median / timings[last.variant].median, peaks[last.variant] / max(1, peaks[REFERENCE])
