"""A set kept in memory gives what the set itself gives, and reads each sample once."""

from __future__ import annotations

import torch

from densekd.data.base import Sample
from densekd.data.memory import InMemory


class Counting:
    """A set of three samples that counts its readings; label 300 does not fit into 8 bits."""

    classes = ("a", "b")
    palette = ((0, 0, 0), (1, 1, 1))
    ignore_index = 300

    def __init__(self) -> None:
        self.readings: list[int] = []

    def __len__(self) -> int:
        return 3

    def name_of(self, index: int) -> str:
        return f"sample {index}"

    def load(self, index: int) -> Sample:
        self.readings.append(index)
        label = torch.tensor([[0, 1], [300 if index == 2 else 1, 0]])
        return Sample(torch.full((3, 2, 2), index, dtype=torch.uint8), label)


def test_equal_to_the_set_itself_and_read_once() -> None:
    source = Counting()
    kept = InMemory(source)
    for _ in range(2):
        for index in range(3):
            expected = Counting().load(index)
            found = kept.load(index)
            assert torch.equal(found.image, expected.image)
            assert torch.equal(found.label, expected.label)
            assert found.label.dtype == torch.int64
    assert source.readings == [0, 1, 2]
    assert (len(kept), kept.name_of(1), kept.classes, kept.ignore_index) == (3, "sample 1", ("a", "b"), 300)


def test_changing_a_sample_does_not_change_what_is_kept() -> None:
    kept = InMemory(Counting())
    first = kept.load(1)
    first.image.zero_()
    first.label.zero_()
    again = kept.load(1)
    assert int(again.image.sum()) == 12
    assert int(again.label.sum()) == 2
