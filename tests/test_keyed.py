from __future__ import annotations

import hashlib

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from densekd.data.keyed import keyed_random, keyed_seed


def test_the_seed_is_the_same_in_every_version_and_process() -> None:
    # A changed value would change every run: resuming an old one would no longer be exact.
    assert keyed_seed(0, "sample", 1, 2) == 7366926953042941474
    digest = hashlib.sha256(b'[3, "order", 7]').hexdigest()
    assert keyed_seed(3, "order", 7) == int(digest[:16], 16) // 2


@given(st.integers(-(2**40), 2**40), st.lists(st.one_of(st.integers(-(2**40), 2**40), st.text(max_size=5)), max_size=4))
def test_the_seed_fits_a_torch_generator(seed: int, parts: list[int | str]) -> None:
    found = keyed_seed(seed, *parts)
    assert 0 <= found < 2**63
    torch.Generator().manual_seed(found)


def test_different_parts_give_different_seeds() -> None:
    keys: list[tuple[int | str, ...]] = [(1,), ("1",), ("a", "bc"), ("ab", "c"), ("abc",), (1, 2), (12,), (2, 1), ()]
    assert len({keyed_seed(0, *key) for key in keys}) == len(keys)
    assert keyed_seed(0, 1) != keyed_seed(1, 0)


def test_numbers_of_other_types_are_the_same_key() -> None:
    assert keyed_seed(0, int(torch.tensor(5))) == keyed_seed(0, 5)


def test_draws_depend_on_the_key_alone_and_the_state_is_restored() -> None:
    torch.manual_seed(11)
    before = torch.get_rng_state()
    with keyed_random(1, "sample", 0, 3):
        first = torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
    torch.rand(100)
    with keyed_random(1, "sample", 0, 3):
        again = torch.rand(4)
    with keyed_random(1, "sample", 0, 4):
        other = torch.rand(4)
    assert torch.equal(first, again)
    assert not torch.equal(first, other)


def test_the_state_is_restored_after_an_error() -> None:
    before = torch.get_rng_state()
    with pytest.raises(RuntimeError), keyed_random(0, "x"):
        torch.rand(3) @ torch.rand(4)
    assert torch.equal(torch.get_rng_state(), before)
