"""One optimisation step: seed, rate, term weights, forward, backward, checks, clipping, update, moving average."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import islice
from typing import Any

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn

from densekd.data.keyed import keyed_seed
from densekd.errors import ModelError, NonFiniteError
from densekd.failures import told
from densekd.training.adversaries import Adversaries
from densekd.training.evidence import HIDDEN, Evidence, Shown
from densekd.training.objective import Objective, placed, samples_of
from densekd.training.optimizers import set_learning_rate
from densekd.training.peers import Peers
from densekd.training.pulse import Pulse
from densekd.training.schedules import learning_rate_factor, term_weight
from densekd.training.sharding import whole, whole_state
from densekd.training.specs import TermSpec, TrainSpec


@dataclass(frozen=True)
class StepResult:
    """What one step did. Losses are means over its micro-batches (an adversary's: of the last); times in seconds.

    With several processes losses are means over all, times those of one. `acting`: the terms at a weight above 0;
    `empty`: those of them that are exactly zero and had nothing to compare; `scale`: of the loss scaler, where it left
    the step out.
    """

    loss: float
    parts: Mapping[str, float]
    grad_norm: float | None
    learning_rate: float
    seconds: float
    data_wait: float
    skipped: bool
    acting: tuple[str, ...] = ()
    empty: frozenset[str] = frozenset()
    scale: float | None = None


class Stepper:
    """Takes steps on a prepared objective; holds optimisers, adversaries and moving average, and nothing of the run.

    Args:
        accelerator: device, precision and distribution.
        objective: from a batch to its loss (already prepared by the accelerator).
        optimizer: its groups carry `base_lr` (already prepared by the accelerator).
        spec: length, schedule, clipping, accumulation.
        terms: the recipe's terms with their final names, for the weight schedules.
        steps: number of steps of the whole run.
        seed: the run's seed; every step seeds the global generators from (seed, step), so dropout and the like do
            not depend on where a run was interrupted.
        replica: a whole student beside one that is sharded, for evaluation and export; None: the student is whole.
        peers: the processes that train together.
        unit: so many micro-batches, over processes first, are one batch to the task's mean over labelled pixels.
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
        peers: Peers | None = None,
        unit: int = 1,
        replica: nn.Module | None = None,
    ) -> None:
        self.accelerator, self.objective, self.optimizer = accelerator, objective, optimizer
        self.spec, self.terms, self.steps, self.seed = spec, list(terms), steps, seed
        self.channels_last = channels_last
        self.peers, self.unit, self._replica = peers or Peers(), unit, replica
        self.plain: Objective = accelerator.unwrap_model(objective)
        self.adversaries = Adversaries(accelerator, self.plain.adversaries())
        self.evidence = Evidence()
        self.average: AveragedModel | None = None
        if spec.ema_decay is not None:
            update = get_ema_multi_avg_fn(spec.ema_decay)  # type: ignore[no-untyped-call]
            self.average = AveragedModel(self.plain.student, multi_avg_fn=update, use_buffers=True)

    @property
    def shipped(self) -> nn.Module:
        """The network that is evaluated and shipped: the moving average if there is one, else the student.

        Of a sharded student it is a whole copy as of the last `gather`.
        """
        if self._replica is not None:
            return self._replica
        return self.plain.student if self.average is None else self.average.module

    def gather(self) -> None:
        """Bring what is shipped to what every process has trained; all must call it."""
        if self._replica is not None:
            self._replica.load_state_dict(whole_state(self.plain.student))
        self.peers.share_buffers(self.shipped)

    def step(self, number: int, batches: Iterator[dict[str, Any]]) -> StepResult:
        """Take step `number` (counted from 0) with the next `accumulate` micro-batches.

        Raises:
            NonFiniteError: a loss part, a map of the teacher or the gradient is NaN or infinite; no weight was changed,
                and `evidence` says what went in and what was found.
            ModelError: the network cannot be trained as asked, or its own code raised.
            ResourceError: memory ran out, or a loading process was ended.
        """
        with told():
            return self._step(number, batches)

    def _step(self, number: int, batches: Iterator[dict[str, Any]]) -> StepResult:
        begin, pulse = time.perf_counter(), self.peers.pulse
        pulse.at("beginning the step", step=number + 1)
        torch.manual_seed(keyed_seed(self.seed, "step", number, self.accelerator.process_index))
        factor = learning_rate_factor(self.spec.schedule, number, self.steps)
        rate = set_learning_rate(self.optimizer, factor)
        weights = {name: term_weight(spec, number, self.steps) for name, spec in self.terms}
        self.plain.set_weights(weights)
        self.evidence = Evidence(number, weights=weights, learning_rate=rate)
        self.objective.train()
        count = self.spec.accumulate
        collected: list[dict[str, Tensor]] = []
        timed = Timed(batches, pulse)
        for micro, (batch, pixels) in enumerate(self._shared_out(timed, count)):
            with self._sending(micro == count - 1):
                collected.append(self._forward_backward(batch, pixels, number, count))
        pulse.at("updating the weights")
        norm = self._clip(number)
        played = self._adversaries_backward(number)
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.adversaries.update(factor)
        skipped = bool(self.accelerator.optimizer_step_was_skipped)
        if self.average is not None and not skipped:
            self.average.update_parameters(self.plain.student)
        means = {name: sum(float(part[name]) for part in collected) / count for name in collected[0]}
        total = means.pop("")
        acting = tuple(name for name, weight in weights.items() if weight > 0)
        empty = self._empty([name for name in acting if means[name] == 0])
        scale = float(self.accelerator.scaler.get_scale()) if skipped else None
        self.evidence = Evidence()
        seconds = time.perf_counter() - begin
        return StepResult(
            total, {**means, **played}, norm, rate, seconds, timed.waited, skipped, acting, frozenset(empty), scale
        )

    def _empty(self, zero: Sequence[str]) -> set[str]:
        """Of the terms that are exactly zero in every process, those that no process had anything to compare for."""
        if not zero:
            return set()
        batches = [shown.batch for shown in self.evidence.shown]
        valid = bool(self.peers.most(any(bool(batch["valid"].any()) for batch in batches)))
        own = [self.plain.pixels(batch["label"]) for batch in batches]
        labelled = bool(self.peers.most(any(pixels is None or bool(pixels > 0) for pixels in own)))
        reading = self.plain.reads_labels()
        return {name for name in zero if not (valid and (labelled or name not in reading))}

    def _sending(self, last: bool) -> AbstractContextManager[Any]:
        """The gradients of a step's last micro-batch are added up over the processes, with those before it."""
        if self._replica is not None:
            self.plain.set_requires_gradient_sync(last)  # type: ignore[operator]
            return nullcontext()
        return nullcontext() if last else self.accelerator.no_sync(self.objective)

    def _shared_out(
        self, batches: Iterator[dict[str, Any]], count: int
    ) -> Iterable[tuple[dict[str, Any], Tensor | None]]:
        """The micro-batches of a step, and what the task's loss of each is divided by (None: by its own pixels).

        A unit of several micro-batches is divided by the mean of their pixels, so that the mean of their losses is
        the loss of all of them as one batch.
        """
        if self.unit == 1:
            return ((batch, None) for batch in islice(batches, count))
        step = list(islice(batches, count))
        own = [self.plain.pixels(batch["label"]) for batch in step]
        if any(pixels is None for pixels in own):
            return [(batch, None) for batch in step]
        counts = torch.stack([pixels.double() for pixels in own if pixels is not None])
        # In the order of the stream: micro-batch m of rank r is number m * world + r.
        stream = self.peers.gathered(counts).T.reshape(-1, self.unit)
        means = stream.mean(1, keepdim=True).expand_as(stream).reshape(count, -1)[:, self.peers.rank]
        return list(zip(step, means.unbind(), strict=True))

    def _forward_backward(
        self, batch: Mapping[str, Any], pixels: Tensor | None, number: int, count: int
    ) -> dict[str, Tensor]:
        self.evidence.shown.append(Shown(batch, pixels))
        self.peers.pulse.at("in the forward pass")
        image, label, valid = placed(batch, self.accelerator.device, channels_last=self.channels_last)
        total, parts = self.objective(image, label, valid, pixels, samples_of(batch))
        own = {**parts, "": total.detach()}
        # The mean is not finite where one is not: no process goes on alone.
        with self.peers.pulse.waiting():  # on a GPU for its own work too: the host asks for values here
            values = self.peers.means(own)
            _require_finite(values, own, self.evidence)
        if not total.requires_grad:
            raise ModelError(
                f"step {number + 1}: the loss hangs on no weight of the student any more: its output is detached, or "
                "every parameter is frozen; nothing could be learned from it"
            )
        self.peers.pulse.at("in the backward pass")
        self.accelerator.backward(total / count)
        return {name: value for name, value in values.items() if not name.startswith(HIDDEN)}

    def _adversaries_backward(self, number: int) -> dict[str, float]:
        try:
            return self.adversaries.backward(self.plain.at_play())
        except NonFiniteError as error:
            self.evidence.found("adversary", [str(error)])
            raise NonFiniteError(f"step {number + 1}: not finite: {error}; {_KEPT}") from None

    def _clip(self, number: int) -> float | None:
        """Clip the gradient; its L2 norm before that. None where a loss scaler hides it and nobody needs it.

        Raises:
            NonFiniteError: it is not finite (with a loss scaler that is the scaler's business: it skips the step).
        """
        limit, scaler = self.spec.clip_norm, self.accelerator.scaler
        if scaler is not None and limit is None:
            return None
        self.accelerator.unscale_gradients(self.optimizer)
        named = [(name, p, p.grad) for name, p in self.plain.named_parameters() if p.grad is not None]
        norm = whole(nn.utils.get_total_norm([gradient for _, _, gradient in named]))
        if scaler is None and not bool(torch.isfinite(norm)):
            bad = [name for name, _, gradient in named if not bool(torch.isfinite(whole(gradient)).all())]
            self.evidence.found("gradient", bad)
            where = f"of {', '.join(bad[:3])}{' and others' if len(bad) > 3 else ''}" if bad else "as a whole"
            raise NonFiniteError(f"step {number + 1}: the gradient {where} is not finite; {_KEPT}")
        if limit is not None:
            nn.utils.clip_grads_with_norm_([parameter for _, parameter, _ in named], limit, norm)
        return float(norm)


class Timed:
    """An iterator, and the seconds that were waited for it; `pulse` is told of waits."""

    def __init__(self, items: Iterator[dict[str, Any]], pulse: Pulse | None = None) -> None:
        self._items, self.waited, self._pulse = items, 0.0, pulse or Pulse()

    def __iter__(self) -> Iterator[dict[str, Any]]:
        return self

    def __next__(self) -> dict[str, Any]:
        self._pulse.at("loading images")
        begin = time.perf_counter()
        try:
            return next(self._items)
        finally:
            self.waited += time.perf_counter() - begin


_KEPT = (
    "no weight was changed by this step, and checkpoints written before it, if any, are good. Lower "
    "train.optimizer.lr or the weight of a term, or set train.clip_norm"
)


def _require_finite(values: Mapping[str, Tensor], own: Mapping[str, Tensor], evidence: Evidence) -> None:
    """Refuse values that are NaN or infinite, by name; "" is the total. The message counts steps from 1.

    Args:
        values: means over the processes.
        own: those of this process, which may be finite all the same.
    """
    if bool(torch.stack([torch.isfinite(value.detach().float()) for value in values.values()]).all()):
        return
    evidence.values = {name: float(value) for name, value in own.items() if not name.startswith(HIDDEN)}
    mine = not all(bool(torch.isfinite(value)) for value in own.values())
    terms = [name for name, value in values.items() if name.startswith(HIDDEN) and not torch.isfinite(value)]
    bad = [name for name, value in values.items() if not name.startswith(HIDDEN) and not torch.isfinite(value)]
    found = [f"{name or 'total'} = {float(values[name])}" for name in bad]
    if terms:
        names = [term.removeprefix(HIDDEN) for term in terms]
        evidence.found("teacher", names, mine=mine)
        found = [f"the teacher's map of term {', '.join(map(repr, names))}", *found]
    else:
        evidence.found("loss", [name or "total" for name in bad], mine=mine)
    raise NonFiniteError(f"step {evidence.number + 1}: not finite: {', '.join(found)}; {_KEPT}")
