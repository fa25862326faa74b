"""FSDP2: parameters, gradients and optimiser state in shards over the processes, and whole again in files.

torch's `fully_shard` itself, on CPU and CUDA alike: the engine's plugin leaves a CPU run unsharded without a word.
The teacher is no module of an objective and stays whole in every process.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from densekd.training.objective import Objective


def shard(objective: Objective, world: int, device: torch.device) -> None:
    """Shard the parameters of an objective over all processes, in place; they become DTensors.

    The student's direct children are gathered one at a time in a forward pass, all else (adapters, a head) with the
    whole. To be called before the optimiser is built.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import fully_shard

    for parameter in objective.parameters():
        parameter.data = parameter.data.contiguous()  # shards are rows: no other layout can be cut
    mesh = init_device_mesh(device.type, (world,))
    for child in objective.student.children():
        if any(True for _ in child.parameters()):
            fully_shard(child, mesh=mesh)
    fully_shard(objective, mesh=mesh)


def is_sharded(module: nn.Module) -> bool:
    """Whether a module's parameters are shards."""
    return any(_is_shard(parameter) for parameter in module.parameters())


def whole(tensor: Tensor) -> Tensor:
    """The whole of a shard, which every process must ask for; any other tensor as it is."""
    if not _is_shard(tensor):
        return tensor
    full: Tensor = tensor.full_tensor()  # type: ignore[attr-defined]
    return full


def whole_state(module: nn.Module) -> dict[str, Tensor]:
    """The state of a module with whole tensors; every process must ask for it."""
    return {name: whole(tensor) for name, tensor in module.state_dict().items()}


def like(target: Tensor, value: Tensor) -> Tensor:
    """`value`, whole, in the form of `target`: its layout and device, and this process's shard of it."""
    if not _is_shard(target):
        return torch.empty_like(target, dtype=value.dtype, requires_grad=False).copy_(value)
    from torch.distributed.tensor import distribute_tensor

    mesh, placements = target.device_mesh, target.placements  # type: ignore[attr-defined]
    # Every process has read the file: nothing is sent.
    return distribute_tensor(value.to(target.device), mesh, placements, src_data_rank=None)


@torch.no_grad()
def load_whole(module: nn.Module, tensors: Mapping[str, Tensor]) -> None:
    """Bring a module to a state of whole tensors.

    Raises:
        RuntimeError: names or shapes do not fit, as of `load_state_dict`.
    """
    if not is_sharded(module):
        module.load_state_dict(tensors)
        return
    own = module.state_dict()
    fitting = {
        name: like(own[name], value) if name in own and own[name].shape == value.shape else value
        for name, value in tensors.items()
    }
    module.load_state_dict(fitting)


def _is_shard(tensor: Tensor) -> bool:
    return hasattr(tensor, "placements")
