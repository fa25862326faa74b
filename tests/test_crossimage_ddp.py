"""Two processes on the CPU: the memory of CrossImage is one, whatever the ranks see."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from densekd.distiller import Distiller, Term
from densekd.losses.class_queue import ClassQueue
from densekd.losses.crossimage import CrossImage

pytestmark = pytest.mark.slow

STEPS, VOID = 5, 255
CUT = 3
"""Images of rank 0; rank 1 has the rest, one."""


def built() -> Distiller:
    torch.manual_seed(0)
    loss = CrossImage(memory=True, pixel_queue=500, region_queue=50, pixels_per_class=100)
    networks = (nn.Sequential(nn.Conv2d(3, width, 3, padding=1), nn.ReLU(), nn.Conv2d(width, 3, 1)) for width in (4, 6))
    return Distiller(*networks, [Term(loss, student="1", teacher="1", name="memory")], torch.rand(1, 3, 6, 6))


def batch(step: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(step)
    labels = torch.randint(3, (CUT + 1, 6, 6), generator=generator)
    if step == 2:
        labels[CUT:] = VOID  # rank 1 has nothing to give, and must not keep rank 0 waiting
    return torch.randn(CUT + 1, 3, 6, 6, generator=generator), labels


def memory(distiller: Distiller) -> dict[str, Tensor]:
    loss = distiller.adapters["memory"].loss
    return {name: value.clone() for name, value in loss.named_buffers() if "norm" not in name}


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    distiller = built()
    # Buffers are not sent around: what the ranks hold is what each of them put in.
    wrapped = DistributedDataParallel(distiller, broadcast_buffers=False).train()
    mine = slice(0, CUT) if rank == 0 else slice(CUT, None)
    for step in range(STEPS):
        images, labels = batch(step)
        out = wrapped(images[mine], labels=labels[mine])
        (out.loss + out.student.square().mean()).backward()
        assert all(p.grad is not None for p in distiller.parameters() if p.requires_grad)
    torch.save(memory(distiller), Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def held(state: dict[str, Tensor], name: str) -> list[Tensor]:
    """What each class holds, in an order of its own."""
    entries, filled = state[f"{name}.entries"], state[f"{name}.filled"]
    rows = [entries[kind, : int(count)] for kind, count in enumerate(filled)]
    return [kept[torch.argsort(kept @ torch.arange(1.0, 1.0 + kept.shape[1]))] for kept in rows]


def test_all_ranks_hold_the_memory_of_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    assert set(first) == {
        f"{queue}.{name}" for queue in ("pixels", "regions") for name, _ in ClassQueue(1, 1, 1).named_buffers()
    }
    assert all(torch.equal(value, second[name]) for name, value in first.items())
    distiller = built().train()
    for step in range(STEPS):
        images, labels = batch(step)
        distiller(images, labels=labels)
    alone = memory(distiller)
    for name in ("pixels", "regions"):
        assert torch.equal(alone[f"{name}.filled"], first[f"{name}.filled"])
        for one, other in zip(held(alone, name), held(first, name), strict=True):
            torch.testing.assert_close(one, other)
    total = sum(int((batch(step)[1] != VOID).sum()) for step in range(STEPS))
    assert first["pixels.filled"].sum() == total
