"""Runs in several processes on the CPU: forked, so that none imports anything again, and met over gloo."""

from __future__ import annotations

import os
import signal
import socket
import sys
import time
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from densekd.runs import distill
from runkit import COLORS, EXACT, NAMES

NETWORKS = """
import torch
from torch import nn
from torchvision.ops import FrozenBatchNorm2d


class Net(nn.Module):
    def __init__(self, num_classes, width, norm, dropout, dead):
        super().__init__()
        self.stem = nn.Conv2d(3, width, 3, padding=1)
        self.norm = norm
        self.act = nn.ReLU()
        self.drop = nn.Dropout2d(dropout)
        self.head = nn.Conv2d(width, num_classes, 1)
        if dead:
            self.dead = nn.Conv2d(width, width, 1)

    def forward(self, x):
        return self.head(self.drop(self.act(self.norm(self.stem(x)))))


def grouped(num_classes, width=6, dropout=0.0, dead=False):
    return Net(num_classes, width, nn.GroupNorm(2, width), dropout, dead)


def frozen(num_classes, width=6, dropout=0.0, dead=False):
    norm = FrozenBatchNorm2d(width)
    norm.running_mean.uniform_(-0.1, 0.1)
    return Net(num_classes, width, norm, dropout, dead)


def batched(num_classes, width=6, dropout=0.0, dead=False):
    return Net(num_classes, width, nn.BatchNorm2d(width), dropout, dead)
"""
VOID = 255


def make_place(root: Path, train: int = 7, val: int = 5) -> Path:
    """Images and masks under `root`, very unevenly void, and `root/nets.py`."""
    root.mkdir(parents=True, exist_ok=True)
    (root / "nets.py").write_text(NETWORKS)
    generator = np.random.default_rng(0)
    for split, count in (("train", train), ("val", val)):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True)
        for number in range(count):
            label = generator.integers(0, 3, (2, 3)).repeat(8, 0).repeat(8, 1)
            image = COLORS[label] + generator.normal(0, 12, (*label.shape, 3))
            if number % 3 == 0:
                label[: 2 + 6 * (number % 2)] = VOID
            Image.fromarray(image.clip(0, 255).astype(np.uint8)).save(root / split / "images" / f"{number}.png")
            Image.fromarray(label.astype(np.uint8)).save(root / split / "masks" / f"{number}.png")
    return root


def recipe(root: Path, **changes: Any) -> dict[str, Any]:
    """A recipe of 20 steps of four images."""
    train = {
        "steps": 20,
        "batch_size": 4,
        "optimizer": {"name": "sgd", "lr": 0.05, "weight_decay": 0.01},
        "evaluate_every": 10,
        "checkpoint_every": 50,
        **changes.pop("train", {}),
    }
    runtime = {"device": "cpu", "threads": 1, **changes.pop("runtime", {})}
    return {
        "name": "tiny",
        "data": {"name": "folder", "root": str(root), "classes": list(NAMES), "augment": {"scale": [0.8, 1.2]}},
        "student": {"model": f"{root}/nets.py:grouped"},
        "train": train,
        "runtime": runtime,
        "report": {"page": False, "images": 0, "channels": 0},
        **changes,
    }


def distillation(root: Path, **changes: Any) -> dict[str, Any]:
    """The same under an untrained teacher, on the class maps and, through an adapter, on a feature map."""
    terms = [
        {"method": "channelwise", "student": "output", "teacher": "output"},
        {"method": "channelwise", "student": "act", "teacher": "act", "weight": 1.0, "decay": "linear", "end_step": 15},
    ]
    return recipe(
        root,
        **{
            "teacher": {
                "model": f"{root}/nets.py:frozen",
                "options": {"width": 10},
                "untrained": True,
                "engine": EXACT,
            },
            "terms": terms,
            "preflight": {"teacher_images": 2, "on_problem": "warn"},
            **changes,
        },
    )


def warmed(place: Path) -> Path:
    """The same place, with all imported that a run imports on its way: forked processes have it then."""
    distill(distillation(place, train={"steps": 1, "batch_size": 2, "evaluate_every": None}), out=place / "warm")
    return place


class Launched:
    """Processes that were started together; each one's output is a file."""

    def __init__(self, work: Callable[[int], None], world: int, folder: Path) -> None:
        self.folder = folder
        folder.mkdir(parents=True, exist_ok=True)
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        self.children = [self._start(work, rank, world, port) for rank in range(world)]

    def _start(self, work: Callable[[int], None], rank: int, world: int, port: int) -> int:
        sys.stdout.flush()
        sys.stderr.flush()
        child = os.fork()
        if child:
            return child
        code = 1
        try:
            for stream, name in ((1, "out"), (2, "err")):
                target = os.open(self.folder / f"{rank}.{name}", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
                os.dup2(target, stream)
            sys.stdout, sys.stderr = os.fdopen(1, "w", closefd=False), os.fdopen(2, "w", closefd=False)
            place = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": world, "LOCAL_WORLD_SIZE": world}
            os.environ.update({name: str(value) for name, value in place.items()})
            os.environ.update(MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port))
            work(rank)
            code = 0
        except SystemExit as left:
            code = left.code if isinstance(left.code, int) else 1
        except BaseException:
            traceback.print_exc()
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(code)

    def wait(self, seconds: float = 120) -> list[int]:
        """The exit codes, by rank; a signal's number is negative. All are ended when time is over."""
        codes: dict[int, int] = {}
        until = time.monotonic() + seconds
        try:
            while len(codes) < len(self.children):
                assert time.monotonic() < until, f"a process hangs; ended so far: {codes}\n{self.err()}"
                for rank, child in enumerate(self.children):
                    done, status = (0, 0) if rank in codes else os.waitpid(child, os.WNOHANG)
                    if done:
                        codes[rank] = os.waitstatus_to_exitcode(status)
                time.sleep(0.01)
        finally:
            for rank, child in enumerate(self.children):
                if rank not in codes:
                    os.kill(child, signal.SIGKILL)
                    os.waitpid(child, 0)
        return [codes[rank] for rank in range(len(self.children))]

    def err(self, rank: int | None = None) -> str:
        """What one process, or all, wrote on stderr."""
        ranks = range(len(self.children)) if rank is None else [rank]
        return "".join((self.folder / f"{one}.err").read_text() for one in ranks)

    def out(self) -> Iterator[str]:
        for rank in range(len(self.children)):
            yield (self.folder / f"{rank}.out").read_text()


def launch(work: Callable[[int], None], folder: Path, world: int = 2, seconds: float = 120) -> Launched:
    """Run `work(rank)` in every process and wait for all.

    Raises:
        AssertionError: one failed; what they wrote is shown.
    """
    launched = Launched(work, world, folder)
    codes = launched.wait(seconds)
    assert codes == [0] * world, f"exit codes {codes}\n{launched.err()}"
    return launched
