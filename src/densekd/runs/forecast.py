"""What a distillation will cost: seconds per step, time to the end, memory, disk; measured on a few real steps."""

from __future__ import annotations

import shutil
import statistics
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from densekd.config import Recipe
from densekd.distiller import Distiller
from densekd.distiller.asking import wants_images
from densekd.evaluate import autocast, confusion, some_of
from densekd.models.auxiliary import auxiliary_of
from densekd.runs.assemble import Parts
from densekd.runs.memory import peak_bytes, reset_peak
from densekd.taps import preserved
from densekd.teacher import Batch
from densekd.training.objective import Distilled, padding_mask, samples_of

_TIMED_STEPS = 3
_PATIENCE_SECONDS = 6.0
# The last two checkpoints and the best are kept, and one is written before an old one goes.
_CHECKPOINTS = 4


@dataclass(frozen=True)
class Forecast:
    """Measured and estimated cost of a whole run.

    Attributes:
        step_seconds: forward, losses and backward of one micro-batch, of adversaries too: median of up to 3 after one
            warm-up (fewer where they take longer than 6 seconds). The optimisers' own updates are not in it.
        teacher_seconds: the teacher's part of it.
        data_seconds: loading and augmenting one micro-batch in one process.
        evaluation_seconds: one evaluation of the whole validation set by the student.
        evaluations: how many the recipe asks for.
        total_seconds: the whole run: steps (loading beside computing where there are workers), evaluations, and the
            further splits at the end.
        peak_memory_bytes: CUDA: highest allocation in the steps, and the optimiser's state; CPU: highest resident
            memory of this process, and the optimiser's state.
        disk_bytes: four checkpoints (the last two, the best, the one being written) and the student twice.
        disk_free_bytes: free where the run's folder will be.
    """

    step_seconds: float
    teacher_seconds: float
    data_seconds: float
    evaluation_seconds: float
    evaluations: int
    total_seconds: float
    peak_memory_bytes: int
    disk_bytes: int
    disk_free_bytes: int

    def as_dict(self) -> dict[str, Any]:
        """As plain values, for a record."""
        return asdict(self)


def training_batch(parts: Parts) -> tuple[dict[str, Any], float]:
    """The run's first micro-batch, and the seconds that loading one takes (the faster of two)."""
    batches = parts.batcher().batches(0, 2)
    found, seconds = [], []
    for _ in range(2):
        begin = time.perf_counter()
        found.append(next(batches))
        seconds.append(time.perf_counter() - begin)
    return found[0], min(seconds)


def forecast(
    parts: Parts, distiller: Distiller, batch: Mapping[str, Any], data_seconds: float, steps: int, folder: Path
) -> Forecast:
    """Time real steps on `batch` and count the rest; both networks and the random states stay as they were."""
    recipe = parts.recipe
    step, teacher, peak = _timed_steps(parts, distiller, batch)
    state = _optimizer_bytes(distiller, recipe)
    per_image = _evaluation_seconds_per_image(parts)
    every = recipe.train.evaluate_every
    evaluations = 1 if every is None else -(-steps // every)
    micro = step + data_seconds if recipe.runtime.workers == 0 else max(step, data_seconds / recipe.runtime.workers)
    images = evaluations * len(parts.data.val) + sum(len(extra) for extra in parts.data.extra.values())
    return Forecast(
        step_seconds=step,
        teacher_seconds=teacher,
        data_seconds=data_seconds,
        evaluation_seconds=per_image * len(parts.data.val),
        evaluations=evaluations,
        total_seconds=steps * parts.share.accumulate * micro + images * per_image,
        peak_memory_bytes=peak + state,
        disk_bytes=_disk_bytes(distiller, recipe, state),
        disk_free_bytes=shutil.disk_usage(_existing(folder)).free,
    )


def _timed_steps(parts: Parts, distiller: Distiller, batch: Mapping[str, Any]) -> tuple[float, float, int]:
    """Seconds of a step, seconds of the teacher in it, peak memory in bytes."""
    objective = Distilled(distiller, parts.task, parts.last)
    adversaries = objective.adversaries()
    trained = nn.ModuleList([distiller, *_beside(distiller)])
    image = batch["image"].to(parts.device).contiguous(memory_format=parts.layout)
    label = batch["label"].to(parts.device)
    mask = padding_mask(batch["valid"])
    valid = None if mask is None else mask.to(parts.device)

    samples = samples_of(batch)

    def step() -> None:
        for parameter in trained.parameters():
            parameter.grad = None
        with autocast(parts.device, parts.recipe.runtime.precision):
            total, _ = objective(image, label, valid, None, samples)
        total.backward()
        for name in objective.at_play():
            torch.autograd.backward(adversaries[name].loss())

    shown = Batch((_for_teacher(distiller, image),), {}, batch.get("sample"))

    def teach() -> None:
        with autocast(parts.device, parts.recipe.runtime.precision):
            distiller.source.maps(shown)

    networks = [trained, *([distiller.teacher] if isinstance(distiller.teacher, nn.Module) else [])]
    with preserved(*networks), gradients_kept(trained), _as_trained(parts, distiller, shown):
        reset_peak(parts.device)
        objective.train()
        seconds = _median_seconds(step, parts.device)
        peak = peak_bytes(parts.device) or 0
        teacher = _median_seconds(teach, parts.device)
    return seconds, min(teacher, seconds), peak


class _Ready:
    """Gives the same maps again and again: what a step with stored maps costs, but for reading them."""

    def __init__(self, maps: Mapping[str, Tensor]) -> None:
        self._maps = maps

    def maps(self, batch: Batch) -> Mapping[str, Tensor]:
        return self._maps


@contextmanager
def _as_trained(parts: Parts, distiller: Distiller, batch: Batch) -> Iterator[None]:
    """Inside the block the maps are ready where the run will read them and the set is not there yet."""
    source = distiller.source
    if parts.recipe.distill.cache is None or not wants_images(source):
        yield
        return
    with torch.no_grad(), autocast(parts.device, parts.recipe.runtime.precision):
        distiller.read_from(_Ready(source.maps(batch)))
    try:
        yield
    finally:
        distiller.read_from(source)


def _beside(distiller: Distiller) -> list[nn.Module]:
    """What is trained beside student and adapters."""
    return [*_players(distiller), *_heads(distiller)]


def _heads(distiller: Distiller) -> list[nn.Module]:
    """The student's auxiliary head, where it has one."""
    head = auxiliary_of(distiller.student)
    return [] if head is None else [head]


def _players(distiller: Distiller) -> list[nn.Module]:
    """The networks that play against the student."""
    return [adversary.network for adversary in distiller.adversaries.values()]


def _for_teacher(distiller: Distiller, image: Tensor) -> Tensor:
    prepare = distiller.teacher_images if wants_images(distiller.source) else None
    return image if prepare is None else prepare(image)


def _median_seconds(work: Callable[[], None], device: torch.device) -> float:
    begin, found = time.perf_counter(), []
    for turn in range(1 + _TIMED_STEPS):
        start = time.perf_counter()
        work()
        if device.type == "cuda":
            torch.cuda.synchronize(device)
        if turn > 0:
            found.append(time.perf_counter() - start)
            if time.perf_counter() - begin > _PATIENCE_SECONDS:
                break
    return statistics.median(found)


@contextmanager
def gradients_kept(module: nn.Module) -> Iterator[None]:
    """Inside the block the parameters begin without gradients; after it, each has the gradient it had."""
    before = [(parameter, parameter.grad) for parameter in module.parameters()]
    for parameter, _ in before:
        parameter.grad = None
    try:
        yield
    finally:
        for parameter, gradient in before:
            parameter.grad = gradient


def _evaluation_seconds_per_image(parts: Parts) -> float:
    """Loading, the student's forward pass and counting, for one validation image."""
    recipe, view = parts.recipe, parts.eval_view()
    few = some_of(view, recipe.train.evaluate_batch_size)

    def run(items: Any) -> None:
        with preserved(parts.student):
            confusion(
                parts.student,
                items,
                parts.task,
                device=parts.device,
                batch_size=recipe.train.evaluate_batch_size,
                precision=recipe.runtime.precision,
                channels_last=recipe.runtime.channels_last,
                evaluation=recipe.evaluation,
            )

    run(some_of(view, 1))  # what a first call pays once: imports, kernels chosen
    begin = time.perf_counter()
    run(few)
    return (time.perf_counter() - begin) / len(few)


def _bytes(module: nn.Module) -> int:
    return sum(tensor.numel() * tensor.element_size() for tensor in module.state_dict().values())


def _optimizer_bytes(distiller: Distiller, recipe: Recipe) -> int:
    spec = recipe.train.optimizer
    copies = 2 if spec.name == "adamw" else int(spec.momentum > 0)
    modules = nn.ModuleList([distiller, *_heads(distiller)])
    trained = (parameter for parameter in modules.parameters() if parameter.requires_grad)
    adversaries = (parameter for network in _players(distiller) for parameter in network.parameters())
    own, others = (sum(p.numel() * p.element_size() for p in group) for group in (trained, adversaries))
    return copies * own + 2 * others  # an adversary has an Adam


def _disk_bytes(distiller: Distiller, recipe: Recipe, optimizer_bytes: int) -> int:
    student, adapters = _bytes(distiller.student), _bytes(distiller.adapters)
    beside = sum(_bytes(network) for network in _beside(distiller))
    average = student if recipe.train.ema_decay is not None else 0
    return _CHECKPOINTS * (student + adapters + beside + optimizer_bytes + average) + 2 * student


def _existing(folder: Path) -> Path:
    folder = folder.absolute()
    return next(path for path in (folder, *folder.parents) if path.exists())
