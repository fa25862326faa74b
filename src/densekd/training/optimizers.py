"""Optimisers: every trainable parameter in exactly one group, every group with its own base learning rate."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import nn

from densekd.errors import ModelError
from densekd.training.specs import OptimizerSpec

_ENCODERS = ("encoder.", "backbone.", "segformer.encoder.")


def _group_of(name: str, parameter: nn.Parameter, spec: OptimizerSpec) -> tuple[float, float]:
    inner = name.removeprefix("student.")
    rate = spec.lr * (spec.encoder_lr_factor if inner.startswith(_ENCODERS) else 1.0)
    decay = spec.weight_decay if spec.decay_norms_and_biases or parameter.ndim > 1 else 0.0
    return rate, decay


def build_optimizer(named: Iterable[tuple[str, nn.Parameter]], spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Optimiser over all parameters that require a gradient (student, adapters, loss parameters).

    Groups are formed by (learning rate, weight decay); each keeps its peak rate in `group["base_lr"]`, which
    the stepper multiplies with the schedule's factor at every step.
    """
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    seen: set[int] = set()
    for name, parameter in named:
        if parameter.requires_grad and id(parameter) not in seen:
            seen.add(id(parameter))
            groups.setdefault(_group_of(name, parameter, spec), []).append(parameter)
    if not groups:
        raise ModelError("the student has no parameter that requires a gradient: there is nothing to train")
    listed = [{"params": p, "lr": rate, "base_lr": rate, "weight_decay": d} for (rate, d), p in groups.items()]
    if spec.name == "sgd":
        return torch.optim.SGD(listed, lr=spec.lr, momentum=spec.momentum)
    return torch.optim.AdamW(listed, lr=spec.lr, betas=spec.betas)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's rate to `factor` times its peak; returns the largest."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)
