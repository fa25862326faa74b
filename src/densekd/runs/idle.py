"""Parameters of the student that the loss does not reach: several processes would wait for their gradients."""

from __future__ import annotations

from contextlib import closing

import torch
from torch import nn

from densekd.distiller.unused import summarise
from densekd.evaluate import autocast
from densekd.runs.assemble import Parts
from densekd.runs.forecast import gradients_kept
from densekd.taps import preserved
from densekd.training.objective import Objective, padding_mask, samples_of


def idle_parameters(parts: Parts, objective: Objective) -> set[str]:
    """Names of the student's trainable parameters that the loss of a training batch does not depend on.

    The distiller froze those that take no part in any output; an auxiliary head whose loss has no weight does take
    part in one. Everything is left as it was.
    """
    with closing(parts.batcher().batches(0, 1)) as batches:
        batch = next(batches)
    image = batch["image"].to(parts.device).contiguous(memory_format=parts.layout)
    mask = padding_mask(batch["valid"])
    valid = None if mask is None else mask.to(parts.device)
    whole = nn.ModuleList([objective, *(adversary.network for adversary in objective.adversaries().values())])
    named = {name: p for name, p in objective.student.named_parameters() if p.requires_grad}
    with preserved(whole), gradients_kept(whole):
        objective.train()
        with autocast(parts.device, parts.recipe.runtime.precision):
            total, _ = objective(image, batch["label"].to(parts.device), valid, None, samples_of(batch))
        found = torch.autograd.grad(total, list(named.values()), allow_unused=True)
    return {name for name, gradient in zip(named, found, strict=True) if gradient is None}


def freeze(student: nn.Module, names: set[str]) -> None:
    """Let these wait for no gradient. After the optimiser was built, which counts its parameters by place."""
    for name, parameter in student.named_parameters():
        if name in names:
            parameter.requires_grad_(False)


def frozen_words(student: nn.Module, names: set[str]) -> list[str]:
    """What to say of them."""
    if not names:
        return []
    return [
        f"student: the loss does not reach {len(names)} parameter tensors; they are frozen, no process waits for their "
        f"gradients: {summarise(student, names)}"
    ]
