"""Which way of computing a loss between two maps is taken: named by the caller, or the fastest that runs here."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor

from densekd.errors import ArgumentError, DtypeError
from densekd.functional.checks import check_choice
from densekd.kernels import triton_obstacle
from densekd.kernels.channelwise_plan import DTYPES, worth_it

BACKENDS = ("auto", "torch", "blocked", "triton")


def choose_backend(backend: str, student: Tensor, teacher: Tensor) -> str:
    """ "torch", "blocked" or "triton".

    Raises:
        ArgumentError: an unknown backend, or one that cannot run on the maps' device.
        DtypeError: maps that the kernels do not compute.
    """
    check_choice("backend", backend, BACKENDS)
    device = student.device
    if backend == "blocked" and device.type != "cpu":
        raise ArgumentError(f"backend 'blocked' runs on the CPU alone, the maps are on {device}; use 'torch' or 'auto'")
    if backend == "triton":
        require_triton("maps", student, teacher)
    if backend != "auto":
        return backend
    if device.type == "cpu":
        return "blocked"
    return "triton" if worth_it(student.numel()) and triton_runs(student, teacher) else "torch"


def triton_runs(*maps: Tensor) -> bool:
    """Whether maps on CUDA can be given to the Triton kernels; warns where the machine is what keeps them from it."""
    device = maps[0].device
    if device.type != "cuda" or not all(x.dtype in DTYPES for x in maps):
        return False
    why = triton_obstacle("cuda", device.index)
    if why is not None and not torch.compiler.is_compiling():
        warnings.warn(f"losses are computed in plain torch, because Triton cannot run here: {why}", stacklevel=4)
    return why is None


def require_triton(what: str, *maps: Tensor) -> None:
    """Refuse what the Triton kernels cannot compute; `what` is what the tensors are called.

    Raises:
        ArgumentError: Triton cannot run on the device.
        DtypeError: a type that the kernels do not compute.
    """
    device = maps[0].device
    why = triton_obstacle(device.type, device.index)
    if why is not None:
        raise ArgumentError(f"backend 'triton' cannot run here: {why}")
    if not all(x.dtype in DTYPES for x in maps):
        came = " and ".join(str(x.dtype) for x in maps)
        raise DtypeError(
            f"backend 'triton' computes in float32: expected float16, bfloat16 or float32 {what}, got {came}; use "
            "'torch' or 'auto' for float64"
        )
