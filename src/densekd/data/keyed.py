"""Randomness that depends on a key alone, not on what was drawn before, nor on which worker draws."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator
from contextlib import contextmanager

import torch


def keyed_seed(seed: int, *parts: int | str) -> int:
    """A stable seed in `0 .. 2**63 - 1` from a base seed and any number of parts.

    The first 63 bits of SHA-256 over the parts written as JSON, so that `1` and `"1"`, or `("ab", "c")` and
    `("a", "bc")`, give different seeds. The same on every machine, Python version and process.
    """
    text = json.dumps([int(seed), *(part if isinstance(part, str) else int(part) for part in parts)])
    return int.from_bytes(hashlib.sha256(text.encode("utf-8")).digest()[:8], "big") >> 1


@contextmanager
def keyed_random(seed: int, *parts: int | str) -> Iterator[None]:
    """Inside the block torch's CPU generator starts at `keyed_seed(seed, *parts)`; after it, it is as before.

    torchvision's transforms draw from that generator and accept no other. The threads of a process share it:
    the block belongs into the main thread of a process or of a loader's worker.
    """
    with torch.random.fork_rng(devices=[]):
        # torch.manual_seed would also reset the generators of all GPUs, which nothing here restores.
        torch.default_generator.manual_seed(keyed_seed(seed, *parts))
        yield
