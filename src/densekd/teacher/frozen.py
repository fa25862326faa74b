"""A fast copy of a teacher as a source of maps."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_leaves

from densekd.adapters import Layout
from densekd.teacher.compiled import Compiled
from densekd.teacher.engine import Engine
from densekd.teacher.engine_report import EngineReport
from densekd.teacher.graph import Graphs
from densekd.teacher.source import Batch
from densekd.teacher.winograd import take_out


class FrozenTeacher:
    """A fast, frozen copy of a teacher, as `freeze_teacher` makes it; a `TeacherSource`.

    Not an `nn.Module` on purpose, as `LiveTeacher`. Every map comes as `(N, C, H, W)` on the device of the batch's
    images, in the number format the teacher runs in. Autocast around it has no effect on it: its precision is its own.

    Attributes:
        report: what was done, the error it brought and the time it saved, on the example.
        class_taps: the taps that are class maps.
        classes: how many classes they have; None where its own output is no class map.
    """

    nchw = True

    def __init__(
        self,
        engine: Engine,
        layouts: Mapping[str, Layout],
        class_taps: frozenset[str],
        classes: int | None,
        report: EngineReport,
        *,
        own_device: bool,
    ) -> None:
        self._engine = engine
        self._layouts = dict(layouts)
        self.class_taps = class_taps
        self.classes = classes
        self.report = report
        self._own_device = own_device
        self._stream: Any = None
        self._moved: list[str] = []
        self._told = 0

    @property
    def network(self) -> nn.Module:
        """The fast copy."""
        return self._engine.network

    @property
    def taps(self) -> tuple[str, ...]:
        """The taps it gives."""
        return tuple(self._engine.reader.names)

    @property
    def device(self) -> torch.device:
        """Where it runs."""
        return self._engine.device

    @property
    def size(self) -> tuple[int, int] | None:
        """`(height, width)` the images are brought to; None for their own."""
        return self._engine.size

    @property
    def own_device(self) -> bool:
        """Whether it was given a device of its own: then it does not follow the distiller's `.to()`."""
        return self._own_device

    @property
    def notices(self) -> tuple[str, ...]:
        """What the user should know, one line each: of the report, and what came up since."""
        return (*self.report.notices, *self._since())

    @property
    def counts(self) -> dict[str, int]:
        """Forward passes answered by a CUDA graph, and those that were not though graphs are on."""
        graphs = self._engine.graphs
        return {"graph": 0 if graphs is None else graphs.replays, "plain": 0 if graphs is None else graphs.plain}

    def maps(self, batch: Batch) -> dict[str, Tensor]:
        """The tapped maps `(N, C, H, W)` of one batch, without a graph, always in evaluation mode.

        Args:
            batch: what the network gets.

        Raises:
            TapError: a tap did not fire this time, or `close()` was called.
        """
        return self.submit(batch)()

    def submit(self, batch: Batch) -> Callable[[], dict[str, Tensor]]:
        """Start the forward pass; what is returned waits for it and gives the maps.

        On CUDA it runs on a stream of its own, beside what the caller does until it asks for the maps. Elsewhere it
        is done when `submit` returns.

        Args:
            batch: what the network gets.
        """
        engine = self._engine
        if engine.network.training:
            engine.network.eval()
        if engine.device.type != "cuda" or torch.compiler.is_compiling():
            found = engine.maps(batch)
            return lambda: self._given(found, batch)
        if self._stream is None:
            self._stream = torch.cuda.Stream(engine.device)  # type: ignore[no-untyped-call]
        stream = self._stream
        stream.wait_stream(torch.cuda.current_stream(engine.device))
        with torch.cuda.stream(stream):
            maps = engine.maps(batch)
            done = torch.cuda.Event()  # type: ignore[no-untyped-call]
            done.record(stream)
        for leaf in tree_leaves((batch.args, batch.kwargs)):
            # its memory must not be used again before this stream has read it
            if isinstance(leaf, Tensor) and leaf.device == engine.device:
                leaf.record_stream(stream)
        self._tell()

        def collect() -> dict[str, Tensor]:
            current = torch.cuda.current_stream(engine.device)
            current.wait_event(done)
            for tapped in maps.values():
                tapped.record_stream(current)
            return self._given(maps, batch)

        return collect

    def _given(self, maps: Mapping[str, Tensor], batch: Batch) -> dict[str, Tensor]:
        images = batch.images
        size = (images.shape[2], images.shape[3]) if self.size is None else self.size
        return {tap: self._layouts[tap].to_nchw(tapped, size).to(images.device) for tap, tapped in maps.items()}

    def _since(self) -> list[str]:
        graphs = self._engine.graphs
        return [*self._moved, *([] if graphs is None else graphs.notices)]

    def _tell(self) -> None:
        since = self._since()
        for notice in since[self._told :]:
            warnings.warn(f"teacher: {notice}", stacklevel=4)
        self._told = len(since)

    def train(self, mode: bool = True) -> FrozenTeacher:
        """Stays in evaluation mode, whatever `mode` says.

        Args:
            mode: without effect.
        """
        self.network.eval()
        return self

    def close(self) -> None:
        """Remove the hooks of the copy. Asking for maps afterwards is an error."""
        self._engine.reader.close()
        self._engine.graphs = self._engine.compiled = None

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> FrozenTeacher:
        """Follow a move to another device, unless it has one of its own; never a change of number format."""
        engine = self._engine
        if self._own_device:
            return self
        device = fn(torch.empty(0, device=engine.device)).device
        if device != engine.device:
            take_out(engine.network)
            engine.network.to(device)
            self._moved.append(f"it was measured on {engine.device} and runs on {device} now")
            engine.device = device
            self._stream = None
            engine.compiled = None if engine.compiled is None else Compiled()
            graphs = engine.graphs
            engine.graphs = Graphs(graphs.required) if graphs is not None and device.type == "cuda" else None
        return self

    def __getstate__(self) -> dict[str, Any]:
        return {**self.__dict__, "_stream": None}
