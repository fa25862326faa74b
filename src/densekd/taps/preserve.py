"""Run networks and leave no trace: modes, buffers and every random state as they were."""

from __future__ import annotations

import random
from collections.abc import Iterator
from contextlib import contextmanager

import numpy
import torch
from torch import Tensor, nn


@contextmanager
def preserved(*networks: nn.Module) -> Iterator[None]:
    """Within the block networks may run in any mode; afterwards their modes, their buffers (the same tensors with
    the same values) and the random states of torch (CPU and the networks' CUDA devices), Python and NumPy are what
    they were before."""
    modules = [module for network in networks for module in network.modules()]
    modes = [(module, module.training) for module in modules]
    buffers = [
        (module, name, buffer, None if buffer is None else buffer.detach().clone())
        for module in modules
        for name, buffer in module._buffers.items()
    ]
    devices = sorted({device for network in networks for device in _cuda_devices(network)})
    python_state, numpy_state = random.getstate(), numpy.random.get_state()
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        random.setstate(python_state)
        numpy.random.set_state(numpy_state)
        for module, training in modes:
            module.training = training
        for module, name, buffer, value in buffers:
            _restore(module, name, buffer, value)


def _restore(module: nn.Module, name: str, buffer: Tensor | None, value: Tensor | None) -> None:
    module._buffers[name] = buffer
    if buffer is not None and value is not None and not _same(buffer, value):
        with torch.no_grad():
            buffer.copy_(value)


def _same(a: Tensor, b: Tensor) -> bool:
    if a.is_meta:
        return True  # there are no values
    return a.shape == b.shape and bool(((a == b) | ((a != a) & (b != b))).all())


def _cuda_devices(network: nn.Module) -> set[int]:
    tensors = [*network.parameters(), *network.buffers()]
    return {tensor.device.index for tensor in tensors if tensor.is_cuda and tensor.device.index is not None}


def training_without_norms(network: nn.Module) -> None:
    """Training mode, except that layers with running statistics use them: one image is enough to run."""
    network.train()
    for module in network.modules():
        if hasattr(module, "running_mean"):
            module.eval()
