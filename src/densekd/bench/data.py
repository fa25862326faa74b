"""`densekd bench data`: training images per second from files, beside the recipe that most training scripts use."""

from __future__ import annotations

import tempfile
import time
from collections.abc import Generator, Iterator, Sequence
from contextlib import closing
from functools import partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor
from torch.utils.data import Dataset
from torchvision.transforms import InterpolationMode
from torchvision.transforms.v2 import functional

from densekd.bench import runner
from densekd.bench.pictures import VOID, Kind, draw_pictures
from densekd.data.augment import AugmentSpec
from densekd.data.decode import decoder_of
from densekd.data.folder import FolderSet
from densekd.data.keyed import keyed_random
from densekd.data.transforms import TrainTransform
from densekd.data.views import TrainView
from densekd.errors import ArgumentError, DensekdError
from densekd.records import BenchCase, BenchRecord
from densekd.training.loading import loaded

KINDS = (
    Kind("png", (1024, 2048), (512, 1024)),
    Kind("png", (1024, 2048), (512, 512)),
    Kind("jpg", (375, 500), (512, 512)),
)
#: to see that it works
QUICK_KINDS = (Kind("png", (64, 128), (32, 64)), Kind("jpg", (48, 64), (64, 64)))
REFERENCE = "common"
SEED, PICTURES, BATCH = 0, 4, 2
#: how far two ways of resampling may differ: mean levels of 8 bits, and share of the labels (in small pictures whole
#: rows lie in the middle between two, and either is the nearest)
MOST_LEVELS, MOST_LABELS = 1.0, 0.05


class Common(Dataset[dict[str, Any]]):
    """The usual training pipeline, on Pillow pictures: open, resize all of it, pad, crop, flip, to tensor, normalise.

    It draws the same scale, crop and flip for a sample as `densekd.data.views.TrainView`, so that both do equal work.
    """

    def __init__(self, source: FolderSet, spec: AugmentSpec, crop: tuple[int, int]) -> None:
        self.source, self.spec, self.crop = source, spec, crop

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, key: tuple[int, int]) -> dict[str, Any]:
        epoch, index = key
        pair = self.source.pairs[index]
        image, mask = Image.open(pair.image).convert("RGB"), Image.open(pair.mask)
        with keyed_random(SEED, "sample", epoch, index):
            return self._augmented(image, mask)

    def _augmented(self, image: Image.Image, mask: Image.Image) -> dict[str, Any]:
        low, high = self.spec.scale
        factor = low + (high - low) * torch.rand(()).item()
        size = [round(image.height * factor), round(image.width * factor)]
        image = functional.resize(image, size, InterpolationMode.BILINEAR)
        mask = functional.resize(mask, size, InterpolationMode.NEAREST)
        starts = [
            int(torch.randint(min(0, side - crop), max(0, side - crop) + 1, ()))
            for side, crop in zip(size, self.crop, strict=True)
        ]
        before = [max(0, -start) for start in starts]
        after = [max(0, start + crop - side) for start, crop, side in zip(starts, self.crop, size, strict=True)]
        edges = [before[1], before[0], after[1], after[0]]  # left, top, right, bottom
        if any(edges):
            image, mask = functional.pad(image, edges), functional.pad(mask, edges, fill=VOID)
        window = [max(0, start) for start in starts] + list(self.crop)
        image, mask = functional.crop(image, *window), functional.crop(mask, *window)
        if torch.rand(()).item() < self.spec.flip:
            image, mask = functional.horizontal_flip(image), functional.horizontal_flip(mask)
        pixels = functional.to_dtype(functional.to_image(image), torch.float32, scale=True)
        label = functional.pil_to_tensor(mask).squeeze(0).long()
        return {"image": functional.normalize(pixels, list(self.spec.mean), list(self.spec.std)), "label": label}


def run(
    *,
    kinds: Sequence[Kind] = KINDS,
    workers: Sequence[int] = (0, 2),
    images: int = 32,
    rounds: int = 7,
    progress: runner.Progress | None = None,
    command: str = "densekd bench data",
) -> BenchRecord:
    """Measure both pipelines on every kind of files and number of loading processes, one thread each.

    Before anything is timed, both must give the same crops, but for the rounding of two ways of resampling.

    Args:
        kinds: files and crops.
        workers: numbers of loading processes; 0: the main process loads.
        images: loaded in every round, in batches of two.
        rounds: samples of each variant.
        progress: called with (steps done, steps in all).
        command: kept in the record.

    Raises:
        ArgumentError: fewer than 4 images, no rounds, a negative number of workers.
        DensekdError: the pipelines disagree; nothing is timed then.
    """
    if images < 2 * BATCH or rounds < 1 or min(workers, default=-1) < 0:
        raise ArgumentError(
            f"expected images >= {2 * BATCH}, rounds >= 1 and workers from 0, got {images}, {rounds}, {list(workers)}"
        )
    load = runner.machine_load()
    ticks = _ticks(progress, len(kinds) * (PICTURES + len(workers) * (rounds + 1)))
    tick = partial(next, ticks, None)
    cases: list[BenchCase] = []
    with runner.use_threads(1), tempfile.TemporaryDirectory() as folder:
        for kind in kinds:
            source = draw_pictures(Path(folder), kind, PICTURES, tick)
            variants = _variants(source, kind)
            _require_equal(variants, kind)
            for count in workers:
                timings = _measure(variants, count, images, rounds, tick)
                cases += _cases(f"{kind}, {count} workers", timings, count, source)
    return runner.make_record(
        "data", device="cpu", threads=1, command=command, load=load, cases=cases, notes={"decoder": decoder_of()}
    )


def rows(record: BenchRecord) -> list[dict[str, Any]]:
    """One flat row per case, for a table."""
    return [
        {
            "files": case.name,
            "variant": case.variant,
            "images/s": round(case.extra["images_per_second"], 1),
            "speed-up": None if case.ratio is None else round(case.ratio, 2),
            "images/s of CPU time": round(case.extra["images_per_cpu_second"], 1),
            "CPU speed-up": round(case.extra["cpu_ratio"], 2),
        }
        for case in record.cases
    ]


def _ticks(progress: runner.Progress | None, total: int) -> Iterator[None]:
    for done in range(1, total + 1):
        if progress is not None:
            progress(done, total)
        yield


def _variants(source: FolderSet, kind: Kind) -> dict[str, Dataset[Any]]:
    spec = AugmentSpec(crop=kind.crop)
    return {REFERENCE: Common(source, spec, kind.crop), "densekd": TrainView(source, TrainTransform(spec, VOID), SEED)}


def _require_equal(variants: dict[str, Dataset[Any]], kind: Kind) -> None:
    """Refuse to time pipelines that give other crops."""
    level = 1 / 255 / min(AugmentSpec().std)
    for key in [(epoch, index) for epoch in range(2) for index in range(PICTURES)]:
        one, other = (variant[key] for variant in variants.values())
        valid: Tensor = other["valid"]
        levels = float((one["image"] - other["image"])[:, valid].abs().mean()) / level
        labels = float((one["label"] != other["label"]).float().mean())
        if levels > MOST_LEVELS or labels > MOST_LABELS:
            raise DensekdError(
                f"bench data: the pipelines disagree on {kind}: by {levels:.2f} levels of 8 bits in the mean (allowed "
                f"{MOST_LEVELS:g}) and in {labels:.2%} of the labels (allowed {MOST_LABELS:.0%}); nothing was timed"
            )


def _measure(
    variants: dict[str, Dataset[Any]], workers: int, images: int, rounds: int, tick: partial[None]
) -> dict[str, runner.Timing]:
    """Seconds per image, round by round; the variants take turns, and a first round is not counted."""
    timings = {name: runner.Timing() for name in variants}
    order = list(variants)
    for number in range(rounds + 1):
        for name in order:
            wall, cpu = _pass(variants[name], workers, images, number)
            if number:
                timings[name].wall.append(wall)
                timings[name].cpu.append(cpu)
        order.reverse()
        tick()
    return timings


def _pass(view: Dataset[Any], workers: int, images: int, epoch: int) -> tuple[float, float]:
    """Seconds per image after the first batch, and CPU seconds per image of all processes, their start included."""
    keys = [(epoch * images + number, number % PICTURES) for number in range(images)]
    batches = [keys[start : start + BATCH] for start in range(0, images, BATCH)]
    used, begin, seen = _cpu_seconds(), 0.0, 0
    stream: Generator[Any, None, None] = loaded(view, workers=workers, batch_sampler=batches)
    with closing(stream) as loader:
        for batch in loader:
            if begin:
                seen += len(batch["image"])
            else:
                begin = time.perf_counter()
        wall = time.perf_counter() - begin
    return wall / seen, (_cpu_seconds() - used) / images


def _cpu_seconds() -> float:
    """CPU time of this process and of all its loading processes that have ended."""
    try:
        import resource
    except ImportError:  # Windows: of this process alone
        return time.process_time()
    usages = (resource.getrusage(resource.RUSAGE_SELF), resource.getrusage(resource.RUSAGE_CHILDREN))
    return sum(usage.ru_utime + usage.ru_stime for usage in usages)


def _cases(name: str, timings: dict[str, runner.Timing], workers: int, source: FolderSet) -> list[BenchCase]:
    reference = timings[REFERENCE]
    size = sum(pair.image.stat().st_size for pair in source.pairs) / len(source.pairs)
    return [
        BenchCase(
            name=name,
            variant=variant,
            median_seconds=timing.median,
            ratio=reference.median / timing.median,
            samples=timing.wall,
            extra={
                "images_per_second": 1 / timing.median,
                "images_per_cpu_second": 1 / timing.cpu_median,
                "cpu_seconds": timing.cpu_median,
                "cpu_ratio": reference.cpu_median / timing.cpu_median,
                "workers": workers,
                "image_bytes": round(size),
            },
        )
        for variant, timing in timings.items()
    ]
