"""CUDA graphs: the forward pass of one shape recorded once and replayed by a single call."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_unflatten

from densekd.errors import ModelError
from densekd.teacher.source import Batch

Run = Callable[[Batch], dict[str, Tensor]]
# Shapes that get a graph. Each keeps the memory of its inputs and maps; the memory in between is shared.
LIMIT = 4
_WARM_UPS = 3


@dataclass
class _Graph:
    graph: Any
    inputs: list[Tensor]
    maps: dict[str, Tensor]


class Graphs:
    """Replays a network's forward pass from CUDA graphs, one for each shape of the arguments.

    A shape is run plainly the first time, recorded the second, replayed from then on. Once `LIMIT` shapes are
    recorded every other is run plainly, with one notice. A copy or a pickle of it starts without graphs.

    Attributes:
        required: a graph that cannot be recorded is an error; else the network is run plainly, with a notice.
        replays, plain: calls answered by a graph, and by running the network.
        notices: what the user should know, one line each.
    """

    def __init__(self, required: bool = False) -> None:
        self.required = required
        self.replays = 0
        self.plain = 0
        self.notices: list[str] = []
        self._seen: set[Any] = set()
        self._graphs: dict[Any, _Graph] = {}
        self._pool: Any = None
        self._off = self._full = False

    @property
    def recorded(self) -> int:
        """Shapes that have a graph."""
        return len(self._graphs)

    def __call__(self, run: Run, batch: Batch) -> dict[str, Tensor]:
        """The maps of one batch; new memory each time, never the graph's own.

        Raises:
            ModelError: a graph is required and cannot be recorded.
        """
        device = batch.images.device
        with torch.cuda.device(device) if device.type == "cuda" else nullcontext():
            return self._maps(run, batch)

    def _maps(self, run: Run, batch: Batch) -> dict[str, Tensor]:
        leaves, spec = tree_flatten(tuple(batch[:2]))
        key = _key(leaves, spec)
        graph = self._graphs.get(key)
        if graph is None and self._may_record(key, batch):
            graph = self._record(run, leaves, spec, key)
        if graph is None:
            self.plain += 1
            return run(batch)
        self.replays += 1
        tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
        for static, tensor in zip(graph.inputs, tensors, strict=True):
            static.copy_(tensor)
        graph.graph.replay()
        return {tap: tapped.clone() for tap, tapped in graph.maps.items()}

    def _may_record(self, key: Any, batch: Batch) -> bool:
        if self._off or key is None:
            return False
        if key not in self._seen:
            if len(self._graphs) >= LIMIT and not self._full:
                self._full = True
                self.notices.append(
                    f"images of shape {tuple(batch.images.shape)} and of every later shape run without a CUDA graph: "
                    f"{LIMIT} other shapes have one; batches of one shape are faster"
                )
            self._seen.add(key)
            return False
        return len(self._graphs) < LIMIT

    def _record(self, run: Run, leaves: list[Any], spec: Any, key: Any) -> _Graph | None:
        inputs = [leaf.clone() if isinstance(leaf, Tensor) else leaf for leaf in leaves]
        batch = Batch(*tree_unflatten(inputs, spec))
        try:
            for _ in range(_WARM_UPS):
                run(batch)
            graph = torch.cuda.CUDAGraph()
            if self._pool is None:
                self._pool = torch.cuda.graph_pool_handle()
            # Other threads (one that pins the memory of the next batch) may go on allocating.
            stream = torch.cuda.current_stream()
            with torch.cuda.graph(graph, pool=self._pool, stream=_side(stream), capture_error_mode="thread_local"):
                maps = run(batch)
        except Exception as error:
            self._refused(error)
            return None
        self._graphs[key] = _Graph(graph, [leaf for leaf in inputs if isinstance(leaf, Tensor)], maps)
        return self._graphs[key]

    def _refused(self, error: Exception) -> None:
        words = " ".join(str(error).split())[:200]
        reason = f"a CUDA graph of the teacher cannot be recorded ({type(error).__name__}: {words})"
        if self.required:
            raise ModelError(f"{reason}; leave cuda_graph='auto' or set it to False") from error
        self._off = True
        self.notices.append(f"{reason}; it runs without")

    def __getstate__(self) -> dict[str, Any]:
        return {**Graphs(self.required).__dict__, "notices": list(self.notices)}


def _side(current: Any) -> Any:
    """A stream to record on: never the device's default one, which cannot be recorded."""
    if current == torch.cuda.default_stream(current.device):
        side = torch.cuda.Stream(current.device)  # type: ignore[no-untyped-call]
        side.wait_stream(current)
        return side
    return current


def _key(leaves: list[Any], spec: Any) -> Any:
    """What two calls have in common that one graph answers; None for arguments that cannot be compared."""
    known: list[Any] = []
    for leaf in leaves:
        if isinstance(leaf, Tensor):
            known.append((tuple(leaf.shape), leaf.stride(), leaf.dtype, leaf.device))
        elif leaf is None or isinstance(leaf, (bool, int, float, str)):
            known.append((type(leaf), leaf))
        else:
            return None
    return (str(spec), *known)
