"""One network made fast: its taps, its precision, its device, and how a batch is run through it."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from densekd.taps import TapReader
from densekd.teacher.compiled import Compiled
from densekd.teacher.graph import Graphs
from densekd.teacher.images import resize
from densekd.teacher.precision import Precision, images_last
from densekd.teacher.source import Batch


@dataclass(eq=False)
class Engine:
    """A network and how it is run.

    Attributes:
        network, reader: the network and the reader of its taps.
        device: where it runs.
        size: `(height, width)` it gets, None for the images' own.
        channels_last: images are stored with the channels last.
        micro_batch: images run at once at most, None for all.
    """

    network: nn.Module
    reader: TapReader
    precision: Precision
    device: torch.device
    size: tuple[int, int] | None = None
    channels_last: bool = False
    micro_batch: int | None = None
    compiled: Compiled | None = None
    graphs: Graphs | None = None

    def maps(self, batch: Batch) -> dict[str, Tensor]:
        """The tapped maps, on the engine's device, as the network gave them."""
        return _joined([self._part(part) for part in self.parts(batch)])

    def outputs(self, batch: Batch) -> Iterator[Any]:
        """The network's own output of each part of the batch, run operator by operator."""
        for part in self.parts(batch):
            with self.precision.around(self.device.type):
                yield self.network(*part.args, **part.kwargs)

    def whole(self, batch: Batch) -> tuple[dict[str, Tensor], list[Any]]:
        """The tapped maps, and the network's own output of each part of the batch."""
        if self.compiled is not None or self.graphs is not None:
            return self.maps(batch), list(self.outputs(batch))
        outputs, parts = [], []
        for part in self.parts(batch):
            with self.precision.around(self.device.type):
                output, maps = self.reader.run(self.network, part.args, part.kwargs)
            outputs.append(output)
            parts.append(maps)
        return _joined(parts), outputs

    def prepared(self, batch: Batch) -> Batch:
        """The batch on the engine's device, in its size, number format and memory format."""
        batch = tree_map(lambda leaf: _moved(leaf, self.device), batch._replace(samples=None))
        if self.size is not None:
            batch = batch.with_images(resize(batch.images, self.size))
        batch = self.precision.inputs(batch)
        return images_last(batch) if self.channels_last else batch

    def parts(self, batch: Batch) -> Iterator[Batch]:
        """The prepared batch in as few parts as `micro_batch` allows, as equal as they can be.

        Every tensor that has one entry per image along its first axis is divided.
        """
        images = len(batch.images)
        count = 1 if self.micro_batch is None else math.ceil(images / self.micro_batch)
        if count <= 1:
            yield self.prepared(batch)
            return
        edges = [images * place // count for place in range(count + 1)]
        for start, end in pairwise(edges):
            yield self.prepared(tree_map(lambda leaf, s=start, e=end: _rows(leaf, images, s, e), batch))

    def _part(self, batch: Batch) -> dict[str, Tensor]:
        if torch.compiler.is_compiling() or self.graphs is None:
            return self._run(batch)
        return self.graphs(self._run, batch)

    def _run(self, batch: Batch) -> dict[str, Tensor]:
        with self.precision.around(self.device.type):
            if self.compiled is None or torch.compiler.is_compiling():
                return self.reader.run(self.network, batch.args, batch.kwargs)[1]
            return self.compiled(self.reader, self.network, batch)


def _joined(parts: list[dict[str, Tensor]]) -> dict[str, Tensor]:
    if len(parts) == 1:
        return parts[0]
    return {tap: torch.cat([part[tap] for part in parts]) for tap in parts[0]}


def _moved(leaf: Any, device: torch.device) -> Any:
    return leaf.to(device, non_blocking=device.type == "cuda") if isinstance(leaf, Tensor) else leaf


def _rows(leaf: Any, images: int, start: int, end: int) -> Any:
    return leaf[start:end] if isinstance(leaf, Tensor) and leaf.dim() and len(leaf) == images else leaf
