"""What holds for all tests."""

from __future__ import annotations

import pytest
import torch


@pytest.fixture(scope="session", autouse=True)
def _forks_may_run_backwards() -> None:
    """One backward pass before any test.

    Where `torch.compile` was used before the first backward pass of a process, autograd starts threads for devices in
    it, and no process forked from it can run a backward pass: which tests came first would decide over others.
    """
    torch.ones(1, requires_grad=True).sum().backward()


@pytest.fixture(autouse=True)
def _same_draws() -> None:
    """The first weights of a network are the same in every run, whichever tests came before it in the process.

    Not from a seed that commands use by themselves: their networks would be equal to the tests' own by chance.
    """
    torch.manual_seed(80_211)
