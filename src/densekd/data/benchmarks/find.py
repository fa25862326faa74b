"""The files of a benchmark: the splits that a recipe asks for, or all that are there."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from densekd.data.benchmarks.benchmark import Benchmark, Layout
from densekd.data.benchmarks.layout import MissingPartError, lacking, require
from densekd.data.benchmarks.spec import BenchmarkSpec
from densekd.data.check import complain
from densekd.data.folder import files_below
from densekd.data.found import FoundData, held_out
from densekd.data.images import IMAGE_SUFFIXES
from densekd.errors import DataError


def find_benchmark(spec: BenchmarkSpec) -> FoundData:
    """The splits that the recipe asks for: `train`, `val`, and the further ones by their official names.

    Raises:
        DataError: the layout is not the official one (with the expected tree), or files of pairs are missing.
        ConfigError: `classes` names labels that the files do not hold.
    """
    benchmark, root = spec.benchmark, Path(spec.root).expanduser()
    official = [spec.train] if spec.holdout is not None else [spec.train, spec.val, *spec.extra]
    splits = list(dict.fromkeys(official))
    require(benchmark, root, splits)
    found = _found(spec, benchmark.find(spec, root, splits), splits)
    named = {"train": found.splits[spec.train]}
    if spec.holdout is None:
        named |= {"val": found.splits[spec.val], **{split: found.splits[split] for split in spec.extra}}
    found = FoundData(named, found.reader, found.palette, notices=found.notices)
    return found if spec.holdout is None else held_out(found, spec.holdout, spec.holdout.group or benchmark.group)


def find_all(spec: BenchmarkSpec) -> FoundData:
    """Every official split that is there, under its own name, and the images of those without labels.

    Raises:
        DataError: as `find_benchmark`; none of the splits is there.
    """
    benchmark, root = spec.benchmark, Path(spec.root).expanduser()
    here = [split for split in benchmark.parts if not lacking(benchmark, root, [split])]
    require(benchmark, root, here or benchmark.parts)
    lost = [split for split in benchmark.parts if split not in here]
    said = [f"{split}: not there ({', '.join(lacking(benchmark, root, [split]))})" for split in lost]
    try:
        layout = benchmark.find(spec, root, here)
    except MissingPartError as error:
        less = [benchmark.instead.get(split, split) for split in here]
        if less == here:
            raise
        said.append(str(error))
        layout, here = benchmark.find(spec, root, less), less
    found = _found(spec, layout, here)
    images = {split: _images(root / folder) for split, folder in benchmark.images.items() if (root / folder).is_dir()}
    return FoundData(found.splits, found.reader, found.palette, images, [*found.notices, *said])


def _found(spec: BenchmarkSpec, layout: Layout, splits: Sequence[str]) -> FoundData:
    problems = dict.fromkeys(problem for scan in layout.scans.values() for problem in scan.problems)
    complain(list(problems), sum(len(scan.pairs) for scan in layout.scans.values()))
    pairs = {split: layout.scans[split].pairs for split in splits}
    empty = [split for split in splits if not pairs[split]]
    if empty:
        raise DataError(f"{spec.root}: no images of {spec.benchmark.title} for {', '.join(empty)}")
    reader = layout.encoding.reader(spec.wanted_classes, spec.unlisted, layout.reader)
    said = [notice for scan in layout.scans.values() for notice in scan.notices]
    notices = [*layout.notices, *dict.fromkeys(said), *_counts(spec.benchmark, {s: len(pairs[s]) for s in splits})]
    return FoundData(pairs, reader, spec.benchmark.palette(spec.wanted_classes), notices=notices)


def _counts(benchmark: Benchmark, counts: dict[str, int]) -> list[str]:
    return [
        f"{split}: {count} images, and {benchmark.title} has {benchmark.counts[split]} there"
        for split, count in counts.items()
        if count != benchmark.counts[split]
    ]


def _images(folder: Path) -> dict[str, Path]:
    return {
        path.relative_to(folder).with_suffix("").as_posix(): path
        for path in files_below(folder)
        if path.suffix.lower() in IMAGE_SUFFIXES
    }
