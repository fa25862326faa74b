"""Optimisers: every trainable parameter in exactly one group, every group with its own base learning rate."""

from __future__ import annotations

import torch
from torch import nn

from densekd.errors import ConfigError, ModelError
from densekd.training.specs import OptimizerSpec

_ENCODERS = ("encoder.", "backbone.", "segformer.encoder.")


def build_optimizer(student: nn.Module, extra: nn.Module | None, spec: OptimizerSpec) -> torch.optim.Optimizer:
    """Optimiser over all parameters that require a gradient: the student's and those of `extra` (adapters, losses).

    Groups are formed by (learning rate, weight decay); each keeps its peak rate in `group["base_lr"]`, which
    the stepper multiplies with the schedule's factor at every step.

    Raises:
        ModelError: nothing can be trained.
        ConfigError: `encoder_lr_factor` is given and the student has no part named as an encoder.
    """
    named = [(name, p) for name, p in student.named_parameters() if p.requires_grad]
    if not named:
        raise ModelError("the student has no parameter that requires a gradient: there is nothing to train")
    in_encoder = {name for name, _ in named if name.startswith(_ENCODERS)}
    if spec.encoder_lr_factor != 1 and not in_encoder:
        raise ConfigError(
            "train.optimizer.encoder_lr_factor: the student has no parameter under "
            f"{' or '.join(name.rstrip('.') for name in _ENCODERS)}; leave the key out"
        )
    if extra is not None:
        named += [("", p) for p in extra.parameters() if p.requires_grad]
    groups: dict[tuple[float, float], list[nn.Parameter]] = {}
    for name, parameter in named:
        rate = spec.lr * (spec.encoder_lr_factor if name in in_encoder else 1.0)
        decay = spec.weight_decay if spec.decay_norms_and_biases or parameter.ndim > 1 else 0.0
        groups.setdefault((rate, decay), []).append(parameter)
    listed = [{"params": p, "lr": rate, "base_lr": rate, "weight_decay": d} for (rate, d), p in groups.items()]
    if spec.name == "sgd":
        return torch.optim.SGD(listed, lr=spec.lr, momentum=spec.momentum)
    return torch.optim.AdamW(listed, lr=spec.lr, betas=spec.betas)


def set_learning_rate(optimizer: torch.optim.Optimizer, factor: float) -> float:
    """Set every group's rate to `factor` times its peak; returns the largest."""
    for group in optimizer.param_groups:
        group["lr"] = group["base_lr"] * factor
    return max(float(group["lr"]) for group in optimizer.param_groups)
