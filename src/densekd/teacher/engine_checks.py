"""What `freeze_teacher` asks of the network and of its options, before any work starts."""

from __future__ import annotations

import copy
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from densekd.errors import ArgumentError, DtypeError, ModelError, nearest
from densekd.failures import out_of_memory
from densekd.taps.paths import is_compiled
from densekd.teacher.compiled import check_compiler
from densekd.teacher.images import is_size
from densekd.teacher.precision import DTYPES


@dataclass(frozen=True)
class Options:
    """The options of `freeze_teacher`, as they came."""

    taps: tuple[str, ...]
    fold_batchnorm: bool
    channels_last: bool
    dtype: str
    compile: bool
    cuda_graph: bool | str
    winograd: bool | str
    device: torch.device | None
    micro_batch: int | None
    size: tuple[int, int] | None
    temperature: float
    num_classes: int | None
    ignore_index: int


def checked_options(
    *,
    taps: Iterable[str],
    flags: dict[str, Any],
    dtype: Any,
    cuda_graph: Any,
    winograd: Any,
    device: Any,
    micro_batch: Any,
    size: Any,
    temperature: Any,
    num_classes: Any,
    ignore_index: Any,
) -> Options:
    """The options, each of a type and value that can work.

    Raises:
        ArgumentError, DtypeError: one is not.
        ModelError: `compile=True` without a C++ compiler.
    """
    for name, value in flags.items():
        if not isinstance(value, bool):
            raise DtypeError(f"{name}: expected True or False, got {value!r}")
    if flags["compile"]:
        check_compiler()
    _switch("cuda_graph", cuda_graph)
    _switch("winograd", winograd)
    named = () if isinstance(taps, str) or not isinstance(taps, Iterable) else tuple(taps)
    if not named or any(not isinstance(tap, str) for tap in named):
        raise ArgumentError(f"taps: expected a list of names as in ['logits', 'encoder.layer4'], got {taps!r}")
    if dtype != "auto" and dtype not in DTYPES:
        name = str(dtype).removeprefix("torch.")
        raise ArgumentError(
            f"dtype: expected 'auto', {', '.join(map(repr, DTYPES))}, got {dtype!r}{nearest(name, ['auto', *DTYPES])}"
        )
    if micro_batch is not None:
        _whole("micro_batch", micro_batch)
    if num_classes is not None:
        _whole("num_classes", num_classes)
    if size is not None and not is_size(size):
        raise ArgumentError(f"size: expected (height, width) in whole pixels from 1, or None, got {size!r}")
    if isinstance(temperature, bool) or not isinstance(temperature, (int, float)) or not 0 < temperature < float("inf"):
        raise ArgumentError(f"temperature: expected a positive finite number, got {temperature!r}")
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, int):
        raise DtypeError(f"ignore_index: expected the label of void, a whole number, got {ignore_index!r}")
    return Options(
        taps=tuple(dict.fromkeys(named)),
        fold_batchnorm=flags["fold_batchnorm"],
        channels_last=flags["channels_last"],
        dtype=dtype,
        compile=flags["compile"],
        cuda_graph=cuda_graph,
        winograd=winograd,
        device=None if device is None else checked_device(device),
        micro_batch=micro_batch,
        size=None if size is None else (size[0], size[1]),
        temperature=float(temperature),
        num_classes=num_classes,
        ignore_index=ignore_index,
    )


def _switch(name: str, value: Any) -> None:
    if not isinstance(value, bool) and value != "auto":
        raise ArgumentError(f"{name}: expected 'auto', True or False, got {value!r}")


def _whole(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ArgumentError(f"{name}: expected a whole number from 1, or None, got {value!r}")


def checked_device(device: Any) -> torch.device:
    """The device, with its number where it is a CUDA one.

    Raises:
        ArgumentError: no device, or one that is not there.
    """
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, TypeError, AssertionError) as error:
        words = " ".join(str(error).split())[:150]
        raise ArgumentError(f"device: {device!r} cannot be used here ({words}); expected 'cpu' or 'cuda:0'") from None
    if found.type == "meta":
        raise ArgumentError("device: on 'meta' there are no values to compute with; expected 'cpu' or 'cuda:0'")
    if found.type == "cuda" and found.index is None:
        return torch.device("cuda", torch.cuda.current_device())
    return found


def check_network(teacher: Any) -> None:
    """Raises:
    ArgumentError: no network.
    ModelError: a network without values, or one that is compiled already.
    """
    if not isinstance(teacher, nn.Module):
        raise DtypeError(
            f"freeze_teacher makes a fast copy of a network: expected an nn.Module, got a {type(teacher).__name__}"
        )
    named = [*teacher.named_parameters(), *teacher.named_buffers()]
    for name, tensor in named:
        if is_lazy(tensor):
            raise ModelError(
                f"the teacher's {name!r} has no shape yet (a lazy layer): run the network once, and load its weights"
            )
        if tensor.is_meta:
            raise ModelError(f"the teacher's {name!r} is on the meta device, without values: load its weights first")
    for name, module in teacher.named_modules():
        if is_compiled(module):
            where = f"its module {name!r}" if name else "it"
            raise ModelError(
                f"the teacher cannot be made fast: {where} is compiled already; give the plain network, and "
                "compile=True to have the copy compiled"
            )
    devices = {tensor.device for _, tensor in named}
    if len(devices) > 1:
        raise ModelError(
            f"the teacher lies on several devices ({', '.join(sorted(map(str, devices)))}): move it to one first"
        )


def copied(teacher: nn.Module) -> nn.Module:
    """A frozen float32 copy in evaluation mode; the teacher itself is not changed.

    Raises:
        ModelError: it cannot be copied.
    """
    try:
        network = copy.deepcopy(teacher)
    except Exception as error:
        if out_of_memory(error):
            raise
        words = " ".join(str(error).split())[:200]
        raise ModelError(
            f"the teacher ({type(teacher).__name__}) cannot be copied by copy.deepcopy ({type(error).__name__}: "
            f"{words}); remove what holds open files, locks or tensors with a graph, or use the teacher itself without "
            "freeze_teacher"
        ) from error
    network.eval()
    for parameter in network.parameters():
        parameter.requires_grad_(False)
    return network.float()


def held_out_batches(held_out: Any) -> list[tuple[Tensor, Tensor]]:
    """The held-out batches, none where `held_out` is None.

    Raises:
        ArgumentError: no batches of images and labels.
    """
    if held_out is None:
        return []
    found = []
    for pair in held_out:
        if not (isinstance(pair, (tuple, list)) and len(pair) == 2 and all(isinstance(t, Tensor) for t in pair)):
            raise ArgumentError(f"held_out: expected batches (images, labels), got a {type(pair).__name__}")
        images, labels = pair
        if images.dim() != 4 or labels.dim() != 3 or len(images) != len(labels):
            raise ArgumentError(
                "held_out: expected images (N, C, H, W) with labels (N, H, W), got shapes "
                f"{tuple(images.shape)} and {tuple(labels.shape)}"
            )
        found.append((images, labels))
    if not found:
        raise ArgumentError("held_out holds no batch; leave it out where there are no labels")
    return found
