"""Every way of spreading the rows of a channel-wise KL over a GPU, timed on the same maps.

What `densekd.kernels.channelwise_plan` reckons is measured here: its constants follow from this table, and so does the
size from which backend "auto" takes the kernels.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from densekd.bench.gpu import Keep, Outcome, backward_of, device_timings, forget, kernel_backend
from densekd.errors import ArgumentError
from densekd.functional import channelwise_kl
from densekd.kernels.channelwise_plan import RESIDENT, Plan, make_plan, power_of_two, split_plan
from densekd.records import BenchCase

Shape = tuple[int, int, int, int]

SHAPES: tuple[Shape, ...] = (
    *((16, 150, 128, 128), (8, 512, 128, 128), (2, 19, 512, 1024), (8, 19, 128, 256), (8, 512, 64, 64)),
    *((16, 150, 96, 96), (8, 512, 16, 16), (2, 19, 64, 64), (2, 19, 32, 32)),
)
TINY_SHAPES: tuple[Shape, ...] = ((2, 3, 5, 7),)
DTYPES = (torch.bfloat16, torch.float32)
_ELEMENTS_OF_A_THREAD = 8


def ways(shape: Shape, itemsize: int, channels_last: bool, multiprocessors: int) -> dict[str, Plan]:
    """Plans by name, "table" first: what is taken today."""
    n, c, height, across = shape
    positions = height * across
    table = make_plan(
        n, c, positions, itemsize=itemsize, rows_lie_flat=not channels_last, multiprocessors=multiprocessors
    )
    width = min(power_of_two(c), 128 // itemsize) if channels_last else 1
    found = {"table": table}
    whole = max(16, power_of_two(positions))
    for warps in (4, 8, 16, 32):
        if width * whole <= 2 * RESIDENT and width * whole <= 32 * warps * 32:
            found[f"resident, {warps} warps"] = Plan("resident", width, whole, warps)
        tile = max(16, 32 * warps * _ELEMENTS_OF_A_THREAD // width)
        if positions > tile:
            found[f"streamed, {warps} warps"] = Plan("streamed", width, tile, warps)
    groups = n * -(-c // width)
    for share in (2, 1):
        plan = split_plan(groups * share, positions, width, multiprocessors)
        if plan.parts > 1:
            found[f"split, {plan.parts} parts"] = plan
    return found


def run(device: torch.device, *, tiny: bool = False, keep: Keep = forget) -> Outcome:
    """Time of the forward pass of every way; "torch", the last of a map, is the plain definition and its backward.

    Args:
        device: where.
        tiny: one small map, few rounds.
        keep: called after every map with what is known so far.

    Raises:
        ArgumentError: Triton cannot run here.
    """
    backend, why = kernel_backend(device)
    if backend != "triton":
        raise ArgumentError(f"the ways of spreading rows are those of the Triton kernels: {why}")
    outcome = Outcome()
    for shape in TINY_SHAPES if tiny else SHAPES:
        for dtype in DTYPES:
            for layout in (torch.contiguous_format, torch.channels_last):
                _measure(shape, dtype, layout, device, tiny, outcome)
                keep(outcome)
    return outcome


def _measure(
    shape: Shape, dtype: torch.dtype, layout: torch.memory_format, device: torch.device, tiny: bool, outcome: Outcome
) -> None:
    from densekd.kernels.triton_channelwise_host import triton_rows

    generator = torch.Generator(device).manual_seed(0)
    student, teacher = (
        torch.empty(shape, dtype=dtype, device=device, memory_format=layout).normal_(0.0, 4.0, generator=generator)
        for _ in range(2)
    )
    last = layout == torch.channels_last
    processors = torch.cuda.get_device_properties(device).multi_processor_count if device.type == "cuda" else 132
    plans = ways(shape, dtype.itemsize, last, processors)

    def call(plan: Plan) -> Tensor:
        return triton_rows(student, teacher, None, 4.0, True, 1.0, plan)[1]

    leaf = student.detach().requires_grad_()
    plain = backward_of(lambda x: channelwise_kl(x, teacher, backend="torch"), leaf)
    variants = {name: (lambda plan=plan: call(plan)) for name, plan in plans.items()}
    calls, rounds = (1, 1) if tiny else (10, 5)
    timings = device_timings({**variants, "torch": plain}, device, rounds=rounds, calls=calls, warmup=1)
    size = math.prod(shape) * dtype.itemsize
    layout_words = "channels_last" if last else "contiguous"
    label = f"{'x'.join(map(str, shape))} {str(dtype).removeprefix('torch.')} {layout_words}"
    for name, timing in timings.items():
        outcome.cases.append(
            BenchCase(
                name=label,
                variant=name,
                median_seconds=timing.median,
                ratio=timings["table"].median / timing.median,
                samples=timing.wall,
                extra={"bytes_per_second": 3 * size / timing.median, "plan": _words(plans.get(name))},
            )
        )


def _words(plan: Plan | None) -> str:
    return "" if plan is None else " ".join(f"{name}={value}" for name, value in plan._asdict().items())
