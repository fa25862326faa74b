"""Two processes on the CPU: gradients are averaged, unused parameters do not stop the reducer."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel

from densekd.distiller import Distiller, Term
from densekd.losses import ChannelWise, FeatureMimic

pytestmark = pytest.mark.slow


class Student(nn.Module):
    """With a stage that takes no part, as shallow encoders have."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 3, padding=1)
        self.dead = nn.Conv2d(4, 4, 1)
        self.head = nn.Conv2d(4, 5, 1)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.stem(x).relu())


def built() -> Distiller:
    torch.manual_seed(0)
    student = Student()
    teacher = nn.Sequential(nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.Dropout(), nn.Conv2d(8, 5, 1))
    terms = [
        Term(ChannelWise(), weight=3.0),
        Term(FeatureMimic(), student="stem", teacher="0", weight=0.5, name="mimic"),
    ]
    return Distiller(student, teacher, terms, images()[:1])


def images() -> Tensor:
    return torch.rand(4, 3, 8, 8, generator=torch.Generator().manual_seed(1))


def gradients(distiller: Distiller) -> dict[str, Tensor]:
    return {name: p.grad.clone() for name, p in distiller.named_parameters() if p.grad is not None}


def worker(rank: int, folder: str) -> None:
    dist.init_process_group("gloo", init_method=f"file://{folder}/store", rank=rank, world_size=2)
    distiller = built()
    wrapped = DistributedDataParallel(distiller)
    assert not any("teacher" in name or "source" in name for name, _ in wrapped.named_parameters())
    wrapped.train()
    results = []
    # the second step has no mimic term: its adapter must still take part in the reduction
    for weights in ({}, {"mimic": 0.0}, {"mimic": 0.0, "channelwise:logits": 0.0}, {"mimic": 1.0}):
        distiller.set_weights(weights)
        wrapped.zero_grad()
        out = wrapped(images()[2 * rank : 2 * rank + 2])
        (out.loss + out.student.square().mean()).backward()
        results.append(gradients(distiller))
    torch.save(results, Path(folder) / f"{rank}.pt")
    dist.destroy_process_group()


def test_two_processes_give_the_gradient_of_the_whole_batch(tmp_path: Path) -> None:
    mp.spawn(worker, args=(str(tmp_path),), nprocs=2)
    first, second = (torch.load(tmp_path / f"{rank}.pt", weights_only=True) for rank in range(2))
    distiller = built().train()
    for step, weights in enumerate(({}, {"mimic": 0.0}, {"mimic": 0.0, "channelwise:logits": 0.0}, {"mimic": 1.0})):
        distiller.set_weights(weights)
        distiller.zero_grad()
        out = distiller(images())
        (out.loss + out.student.square().mean()).backward()
        expected = gradients(distiller)
        assert set(expected) == set(first[step]) == {n for n, p in distiller.named_parameters() if p.requires_grad}
        for name, gradient in expected.items():
            torch.testing.assert_close(first[step][name], gradient, rtol=1e-4, atol=1e-6)
            assert torch.equal(first[step][name], second[step][name])
