from __future__ import annotations

from typing import Any

import pytest
import torch
from torch.utils.data import DataLoader

from densekd.data.base import Sample, SegmentationSet
from densekd.data.specs import AugmentSpec
from densekd.data.transforms import EvalTransform, TrainTransform
from densekd.data.views import EvalView, TrainView, eval_collate, of_one_size

SPEC = AugmentSpec(scale=(0.5, 2.0), crop=(20, 20), jitter={"brightness": 0.3, "contrast": 0.3})
KEYS = [(epoch, index) for epoch in (0, 1) for index in range(6)]


class Drawn:
    """Six pictures whose sizes differ."""

    classes = ("a", "b", "c")
    palette = ((1, 1, 1), (2, 2, 2), (3, 3, 3))
    ignore_index = 255

    def __len__(self) -> int:
        return 6

    def load(self, index: int) -> Sample:
        draw = torch.Generator().manual_seed(index)
        size = (16 + index, 24)
        image = torch.randint(0, 256, (3, *size), generator=draw, dtype=torch.uint8)
        return Sample(image, torch.randint(0, 3, size, generator=draw))

    def name_of(self, index: int) -> str:
        return str(index)


def view(seed: int = 0) -> TrainView:
    return TrainView(Drawn(), TrainTransform(SPEC, 255), seed)


def same(one: Any, other: Any) -> bool:
    return one["index"] == other["index"] and all(torch.equal(one[k], other[k]) for k in ("image", "label", "valid"))


def test_the_set_of_this_test_is_one() -> None:
    assert isinstance(Drawn(), SegmentationSet)


def test_a_sample_depends_on_seed_epoch_and_index_alone() -> None:
    first = {key: view()[key] for key in KEYS}
    torch.manual_seed(99)
    reordered = view()
    for key in reversed(KEYS):
        torch.rand(3)
        assert same(reordered[key], first[key])
    assert not torch.equal(first[0, 2]["image"], first[1, 2]["image"])
    assert not torch.equal(view(1)[0, 2]["image"], first[0, 2]["image"])


def test_what_comes_back_has_the_promised_form() -> None:
    entry = view()[0, 3]
    assert {k: (v.dtype, tuple(v.shape)) for k, v in entry.items() if k != "index"} == {
        "image": (torch.float32, (3, 20, 20)),
        "label": (torch.int64, (20, 20)),
        "valid": (torch.bool, (20, 20)),
    }
    assert entry["index"] == 3
    assert len(view()) == 6


def test_the_global_random_state_is_left_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(4)
    torch.manual_seed(5)
    made = view()
    for key in KEYS:
        made[key]
    assert torch.equal(torch.rand(4), expected)


class Keys(torch.utils.data.Sampler[tuple[int, int]]):
    def __len__(self) -> int:
        return len(KEYS)

    def __iter__(self) -> Any:
        return iter(KEYS)


@pytest.mark.parametrize("workers", [1, 2])
def test_the_number_of_workers_changes_nothing(workers: int) -> None:
    def batches(count: int) -> list[dict[str, Any]]:
        return list(DataLoader(view(), batch_size=4, sampler=Keys(), num_workers=count))

    alone = batches(0)
    for one, other in zip(alone, batches(workers), strict=True):
        assert one["index"].tolist() == other["index"].tolist()
        for name in ("image", "label", "valid"):
            assert torch.equal(one[name], other[name])
    assert torch.equal(alone[0]["image"][1], view()[KEYS[1]]["image"])


def test_evaluation_leaves_the_label_as_stored() -> None:
    made = EvalView(Drawn(), EvalTransform(AugmentSpec(size=(10, 12))))
    assert len(made) == 6
    (batch,) = eval_collate([made[i] for i in (0, 3, 5)])
    assert batch["image"].shape == (3, 3, 10, 12)
    assert [tuple(label.shape) for label in batch["labels"]] == [(16, 24), (19, 24), (21, 24)]
    assert batch["index"] == [0, 3, 5]
    assert torch.equal(batch["labels"][1], Drawn().load(3).label)
    assert torch.equal(batch["image"][2], made[5]["image"])


def test_images_of_several_sizes_form_a_batch_each() -> None:
    made = EvalView(Drawn(), EvalTransform(AugmentSpec()))
    batches = eval_collate([made[i] for i in (4, 1, 4, 0, 1)])
    assert [tuple(batch["image"].shape) for batch in batches] == [(1, 3, 16, 24), (2, 3, 17, 24), (2, 3, 20, 24)]
    assert [batch["index"] for batch in batches] == [[0], [1, 1], [4, 4]]
    assert torch.equal(batches[0]["image"][0], made[0]["image"])
    assert torch.equal(batches[1]["labels"][0], made[1]["label"])


def test_neighbours_of_one_size_stay_in_order() -> None:
    assert list(of_one_size("aabbbca", str, 2)) == [["a", "a"], ["b", "b"], ["b"], ["c"], ["a"]]
    assert list(of_one_size([], str, 2)) == []
