"""CUDA graphs and the second stream: what is decided without a device here, the rest on one."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import densekd
from densekd.errors import ModelError
from densekd.losses import ChannelWise
from densekd.teacher import Batch
from densekd.teacher.graph import LIMIT, Graphs, _Graph

ON_CUDA = pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device here")


def images(n: int = 2, size: int = 16) -> Tensor:
    return torch.rand(n, 3, size, size, generator=torch.Generator().manual_seed(7))


class Replay:
    """What a recorded graph does, on the CPU: computes the maps anew from the graph's own inputs."""

    def __init__(self, inputs: list[Tensor], maps: dict[str, Tensor]) -> None:
        self.inputs, self.maps = inputs, maps

    def replay(self) -> None:
        self.maps["x"].copy_(self.inputs[0] * 2)


@pytest.fixture
def graphs(monkeypatch: pytest.MonkeyPatch) -> Graphs:
    def record(self: Graphs, run: Any, leaves: list[Any], spec: Any, key: Any) -> _Graph:
        inputs = [leaf.clone() for leaf in leaves if isinstance(leaf, Tensor)]
        maps = {"x": inputs[0] * 2}
        self._graphs[key] = _Graph(Replay(inputs, maps), inputs, maps)
        return self._graphs[key]

    monkeypatch.setattr(Graphs, "_record", record)
    return Graphs()


def double(batch: Batch) -> dict[str, Tensor]:
    return {"x": batch.images * 2}


class TestGraphs:
    def test_plain_then_recorded_then_replayed(self, graphs: Graphs) -> None:
        seen = []
        for seed in range(4):
            x = torch.rand(1, 3, 4, 4, generator=torch.Generator().manual_seed(seed))
            maps = graphs(double, Batch((x,), {}))
            assert torch.equal(maps["x"], x * 2)
            seen.append((graphs.plain, graphs.replays, graphs.recorded))
        assert seen == [(1, 0, 0), (1, 1, 1), (1, 2, 1), (1, 3, 1)]

    def test_maps_are_not_the_graphs_own(self, graphs: Graphs) -> None:
        first, second = images(), images() + 1
        for _ in range(2):
            kept = graphs(double, Batch((first,), {}))
        graphs(double, Batch((second,), {}))
        assert torch.equal(kept["x"], first * 2)

    def test_so_many_shapes(self, graphs: Graphs) -> None:
        for size in range(4, 4 + LIMIT + 2):
            for _ in range(3):
                graphs(double, Batch((torch.ones(1, 3, size, size),), {}))
        assert graphs.recorded == LIMIT
        assert graphs.plain == LIMIT + 2 * 3
        assert len(graphs.notices) == 1
        assert f"shape (1, 3, {4 + LIMIT}, {4 + LIMIT}) and of every later shape run without a" in graphs.notices[0]

    def test_other_arguments_are_other_shapes(self, graphs: Graphs) -> None:
        for flag in (1, 1, 2, 2):
            graphs(double, Batch((images(),), {"flag": flag}))
        assert graphs.recorded == 2
        for _ in range(3):
            graphs(double, Batch((images(), {1, 2}), {}))  # a set cannot be compared as a part of a key
        assert graphs.recorded == 2

    def test_copies_start_without(self, graphs: Graphs) -> None:
        for _ in range(3):
            graphs(double, Batch((images(),), {}))
        assert copy.deepcopy(graphs).recorded == 0


class TestRefusal:
    """Where nothing can be recorded, as on a machine without CUDA."""

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device records it")
    def test_told_once(self) -> None:
        graphs = Graphs()
        for _ in range(4):
            graphs(double, Batch((images(),), {}))
        assert (graphs.plain, graphs.replays) == (4, 0)
        assert len(graphs.notices) == 1
        assert "a CUDA graph of the teacher cannot be recorded" in graphs.notices[0]

    @pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device records it")
    def test_required(self) -> None:
        graphs = Graphs(required=True)
        graphs(double, Batch((images(),), {}))
        with pytest.raises(ModelError, match=r"cannot be recorded .*leave cuda_graph='auto'"):
            graphs(double, Batch((images(),), {}))


def network(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(inplace=True), nn.Conv2d(8, 5, 1))


@ON_CUDA
@pytest.mark.slow
class TestOnCuda:
    @pytest.fixture(autouse=True)
    def _exact(self, monkeypatch: pytest.MonkeyPatch) -> None:
        monkeypatch.setattr(torch.backends.cudnn, "allow_tf32", False)

    def test_graph_gives_the_same(self) -> None:
        teacher = network().cuda()
        x = images().cuda()
        fast = densekd.freeze_teacher(teacher, example=x, taps=["3"], dtype="float32", cuda_graph=True)
        assert fast.report.cuda_graph
        for seed in range(3):
            y = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(seed)).cuda()
            theirs = copy.deepcopy(teacher).eval()(y)
            torch.testing.assert_close(fast.maps(Batch((y,), {}))["3"], theirs, rtol=1e-4, atol=1e-5)
        assert fast.counts["graph"] >= 3
        odd = images(1).cuda()
        theirs = copy.deepcopy(teacher).eval()(odd)
        torch.testing.assert_close(fast.maps(Batch((odd,), {}))["3"], theirs, rtol=1e-4, atol=1e-5)

    @pytest.mark.parametrize("dtype", ["auto", "bfloat16", "float16"])
    def test_formats(self, dtype: str) -> None:
        fast = densekd.freeze_teacher(network().cuda(), example=images().cuda(), taps=["3"], dtype=dtype)
        assert fast.report.errors["3"].softened < 0.01
        if dtype == "auto":
            assert {candidate.dtype for candidate in fast.report.candidates} == {"float32", "bfloat16", "float16"}

    def test_many_steps_on_a_second_stream(self) -> None:
        """Maps kept over several steps stay what they were, whatever memory the two streams hand out again."""
        teacher = network().cuda()
        fast = densekd.freeze_teacher(teacher, example=images(8, 64).cuda(), taps=["3"], dtype="float32")
        plain = copy.deepcopy(teacher).eval()
        kept: list[tuple[Tensor, Tensor]] = []
        for seed in range(20):
            x = torch.rand(8, 3, 64, 64, generator=torch.Generator().manual_seed(seed)).cuda()
            collect: Callable[[], dict[str, Tensor]] = fast.submit(Batch((x,), {}))
            with torch.no_grad():
                expected = plain(x)
            del x
            kept.append((collect()["3"], expected))
        for found, expected in kept:
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-5)

    def test_distiller_with_a_teacher_on_another_device(self) -> None:
        fast = densekd.freeze_teacher(network(), example=images(), taps=["3"], dtype="float32", device="cuda")
        assert fast.device.type == "cuda"
        term = densekd.Term(ChannelWise(), student="3", teacher="3")
        distiller = densekd.Distiller(network(1), fast, [term], images())
        out = distiller(images())
        out.loss.backward()
        assert out.loss.device.type == "cpu"
        assert fast.device.type == "cuda"

    def test_moves_with_the_distiller(self) -> None:
        fast = densekd.freeze_teacher(network(), example=images(), taps=["3"], dtype="float32")
        term = densekd.Term(ChannelWise(), student="3", teacher="3")
        distiller = densekd.Distiller(network(1), fast, [term], images()).cuda()
        assert fast.device.type == "cuda"
        assert distiller(images().cuda()).loss.is_cuda
        assert any("runs on cuda" in notice for notice in fast.notices)
