"""One optimisation step: seed, rate, term weights, forward, backward, checks, clipping, update, moving average."""

from __future__ import annotations

import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from densekd.data.keyed import keyed_seed
from densekd.errors import NonFiniteError
from densekd.training.objective import Objective, padding_mask
from densekd.training.optimizers import set_learning_rate
from densekd.training.schedules import learning_rate_factor, term_weight
from densekd.training.specs import TermSpec, TrainSpec


@dataclass(frozen=True)
class StepResult:
    """What one step did. Losses are means over its micro-batches; times in seconds."""

    loss: float
    parts: Mapping[str, float]
    grad_norm: float | None
    learning_rate: float
    seconds: float
    data_wait: float
    skipped: bool


class Stepper:
    """Takes steps on a prepared objective; holds the optimiser and the moving average, and nothing of the run.

    Args:
        accelerator: device, precision and distribution.
        objective: from a batch to its loss (already prepared by the accelerator).
        optimizer: its groups carry `base_lr` (already prepared by the accelerator).
        spec: length, schedule, clipping, accumulation.
        terms: the recipe's terms with their final names, for the weight schedules.
        steps: number of steps of the whole run.
        seed: the run's seed; every step seeds the global generators from (seed, step), so dropout and the like do
            not depend on where a run was interrupted.
    """

    def __init__(
        self,
        accelerator: Accelerator,
        objective: nn.Module,
        optimizer: Any,
        spec: TrainSpec,
        terms: Sequence[tuple[str, TermSpec]],
        *,
        steps: int,
        seed: int,
        channels_last: bool,
    ) -> None:
        self.accelerator, self.objective, self.optimizer = accelerator, objective, optimizer
        self.spec, self.terms, self.steps, self.seed = spec, list(terms), steps, seed
        self.channels_last = channels_last
        self.plain: Objective = accelerator.unwrap_model(objective, keep_fp32_wrapper=False)
        self.average: AveragedModel | None = None
        if spec.ema_decay is not None:
            update = get_ema_multi_avg_fn(spec.ema_decay)
            self.average = AveragedModel(self.plain.student, multi_avg_fn=update, use_buffers=True)
        self.skipped_steps = 0

    @property
    def shipped(self) -> nn.Module:
        """The network that is evaluated and shipped: the moving average if there is one, else the student."""
        return self.plain.student if self.average is None else self.average.module

    def step(self, number: int, batches: Iterator[dict[str, Any]]) -> StepResult:
        """Take step `number` (counted from 0) with the next `accumulate` micro-batches.

        Raises:
            NonFiniteError: a loss part or the gradient is NaN or infinite; nothing was updated.
        """
        begin, waited = time.perf_counter(), 0.0
        torch.manual_seed(keyed_seed(self.seed, "step", number, self.accelerator.process_index))
        rate = set_learning_rate(self.optimizer, learning_rate_factor(self.spec.schedule, number, self.steps))
        self.plain.set_weights({name: term_weight(spec, number, self.steps) for name, spec in self.terms})
        self.objective.train()
        count = self.spec.accumulate
        collected: list[dict[str, Tensor]] = []
        for micro in range(count):
            fetch = time.perf_counter()
            batch = next(batches)
            waited += time.perf_counter() - fetch
            with self.accelerator.no_sync(self.objective) if micro < count - 1 else nullcontext():
                collected.append(self._forward_backward(batch, number, count))
        norm = self._clip(number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        skipped = bool(self.accelerator.optimizer_step_was_skipped)
        self.skipped_steps += skipped
        if self.average is not None and not skipped:
            self.average.update_parameters(self.plain.student)
        means = {name: sum(float(part[name]) for part in collected) / count for name in collected[0]}
        total = means.pop("")
        return StepResult(total, means, norm, rate, time.perf_counter() - begin, waited, skipped)

    def _forward_backward(self, batch: Mapping[str, Any], number: int, count: int) -> dict[str, Tensor]:
        image = batch["image"].to(self.accelerator.device, non_blocking=True)
        if self.channels_last:
            image = image.contiguous(memory_format=torch.channels_last)
        label = batch["label"].to(self.accelerator.device, non_blocking=True)
        mask = padding_mask(batch["valid"])
        valid = None if mask is None else mask.to(self.accelerator.device, non_blocking=True)
        total, parts = self.objective(image, label, valid)
        values = {**parts, "": total.detach()}
        _require_finite(values, number)
        self.accelerator.backward(total / count)
        return values

    def _clip(self, number: int) -> float | None:
        scaler = getattr(self.accelerator, "scaler", None)
        if self.spec.clip_norm is None:
            return None
        norm = self.accelerator.clip_grad_norm_(self.objective.parameters(), self.spec.clip_norm)
        value = float(norm) if norm is not None else float("nan")
        # With a loss scaler an overflow is the scaler's business: it skips the step and halves the scale.
        if scaler is None and not torch.isfinite(torch.tensor(value)):
            raise NonFiniteError(
                f"step {number}: the gradient is not finite (its norm is {value}); nothing was updated"
            )
        return value


def _require_finite(values: Mapping[str, Tensor], number: int) -> None:
    flags = torch.stack([torch.isfinite(value.detach().float()).all() for value in values.values()])
    if bool(flags.all()):
        return
    bad = [f"{name or 'total'} = {float(value)}" for name, value in values.items() if not torch.isfinite(value).all()]
    raise NonFiniteError(
        f"step {number}: not finite: {', '.join(bad)}; nothing was updated and the last checkpoint is good. "
        "Lower train.optimizer.lr or the term's weight, or set train.clip_norm"
    )
