"""Looking at networks: what each module returns, which taps are good, and what a pair of networks may distil."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
import yaml
from torch import Tensor, nn

from densekd.errors import ArgumentError, ModelError
from densekd.inspection import Inspection, Subject, inspect
from densekd.inspection.good import Good, best_feature, good_taps
from densekd.inspection.pair import between, matched, proposed, terms_block
from densekd.inspection.sheet import entropies
from densekd.inspection.subject import without_weights
from densekd.inspection.tree import Node
from densekd.inspection.watching import as_map, tensors_of, watch
from densekd.looks.softened import log_shares
from densekd.models.specs import ModelSpec
from densekd.training.specs import TermSpec


class Block(nn.Module):
    """A convolution that halves the map, and a ReLU in place."""

    def __init__(self, channels: int, out: int) -> None:
        super().__init__()
        self.conv = nn.Conv2d(channels, out, 3, 2, 1)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        found: Tensor = self.relu(self.conv(images))
        return found


class Network(nn.Module):
    """Two stages in a list that is never called, a shared activation, a tuple inside, dead weights, an up-sampling."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = Encoder()
        self.shared = nn.Identity()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.dead = nn.Linear(5, 3)
        self.segmentation_head = nn.Sequential(nn.Conv2d(6, 4, 1), nn.UpsamplingBilinear2d(scale_factor=4))

    def forward(self, images: Tensor) -> Tensor:
        first, second = self.encoder(images)
        self.pool(self.shared(self.shared(first)))
        found: Tensor = self.segmentation_head(second)
        return found


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([Block(3, 5), Block(5, 6)])

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        first: Tensor = self.stages[0](images)
        return first, self.stages[1](first)


SIZE = (16, 32)


def looked_at(network: nn.Module, outputs: int = 4, **options: Any) -> Inspection:
    return inspect(Subject(network.eval(), "tiny", outputs, (), **{"trained": True, **options}), SIZE)


@pytest.fixture(scope="module")
def found() -> Inspection:
    torch.manual_seed(0)
    return looked_at(Network())


def node(found: Inspection, name: str) -> Node:
    return next(node for node in found.nodes if node.module == name)


def test_shapes_strides_and_calls(found: Inspection) -> None:
    assert [output.shape for output in node(found, "encoder.stages.0").outputs] == [(1, 5, 8, 16)]
    assert [(output.item, output.shape) for output in node(found, "encoder").outputs] == [
        ("[0]", (1, 5, 8, 16)),
        ("[1]", (1, 6, 4, 8)),
    ]
    assert node(found, "shared").calls == 2
    assert node(found, "shared").notes == ["called 2 times: no tap; the output of its last call is shown"]
    assert node(found, "encoder.stages").notes == ["a container, never called itself: no tap"]
    assert node(found, "encoder.stages").outputs == []
    assert node(found, "dead").notes == ["never called: no tap", "18 dead parameters"]
    assert [n.module for n in found.nodes] == [name for name, _ in Network().named_modules()]


def test_live_parameters_and_shares_of_the_operations(found: Inspection) -> None:
    first, second, head = 2 * 3 * 9 * 5 * 128, 2 * 5 * 9 * 6 * 32, 2 * 6 * 4 * 32  # by hand: 2 k C_in C_out positions
    assert found.measured.flops == first + second + head
    assert node(found, "encoder.stages.1.conv").flops == second
    assert node(found, "encoder").share == pytest.approx((first + second) / (first + second + head))
    assert node(found, "").share == 1.0
    assert node(found, "").parameters == 140 + 276 + 28
    assert (node(found, "dead").parameters, node(found, "dead").dead) == (0, 18)


def test_a_map_has_one_name(found: Inspection) -> None:
    # The ReLU works in place: the convolution's tensor is the same, its values are not.
    assert node(found, "encoder.stages.0.relu").notes == ["the same map as encoder.stages.0"]
    assert node(found, "encoder.stages.0.conv").notes == []
    assert node(found, "encoder.stages.0").notes == []
    assert node(found, "segmentation_head.1").notes == ["the same map as segmentation_head"]


def test_good_taps(found: Inspection) -> None:
    assert found.taps == [
        Good("encoder.stages.0", "encoder.stages.0", "stage", (1, 5, 8, 16)),
        Good("encoder.stages.1", "encoder.stages.1", "head", (1, 6, 4, 8)),
        Good("logits", "segmentation_head.0", "logits", (1, 4, 4, 8)),
    ]
    assert best_feature(found.taps) == found.taps[1]
    assert best_feature(found.taps[2:]) is None
    told = found.as_dict()
    assert told["taps"][0]["stride"] == [2, 2]
    assert {tap["why"] for tap in told["taps"]} == {
        "last map of an encoder stage",
        "the map that the classifier reads",
        "class map before the last up-sampling",
    }


def test_blocks_that_follow_each_other_without_an_encoder_s_name() -> None:
    """Of neighbours with equal maps the last one; a network without a class map has no logits."""
    blocks = nn.Sequential(Block(3, 4), nn.Sequential(nn.Conv2d(4, 4, 3, 1, 1)), Block(4, 8), nn.Flatten(2))
    watched = watch(blocks.eval(), SIZE)
    assert [(tap.tap, tap.role) for tap in good_taps(blocks, watched, 19)] == [("1", "stage"), ("2", "stage")]


def test_the_network_is_left_as_it_was() -> None:
    network = Network().train()
    network.shared.eval()
    state = torch.random.get_rng_state()
    watch(network, SIZE)
    assert torch.equal(state, torch.random.get_rng_state())
    assert network.training
    assert not network.shared.training
    assert all(not module._forward_hooks and not module._forward_pre_hooks for module in network.modules())
    assert all(not parameter.is_meta for parameter in network.parameters())


def test_a_network_that_looks_at_values_runs_on_the_cpu() -> None:
    class Looking(nn.Conv2d):
        def forward(self, images: Tensor) -> Tensor:
            return super().forward(images) if float(images.mean()) < 2 else images

    assert not watch(Looking(3, 4, 1), SIZE).on_meta
    assert watch(nn.Conv2d(3, 4, 1), SIZE).on_meta


def test_a_size_that_cannot_be() -> None:
    with pytest.raises(ModelError, match=r"the network fails in eval mode on images \(1, 3, 16, 32\)"):
        looked_at(nn.Conv2d(4, 2, 1))
    with pytest.raises(ArgumentError, match="size: expected height and width from 1, got 0 4"):
        inspect(Subject(Network(), "tiny", 4, (), trained=True), (0, 4))


def test_tensors_in_tuples_and_mappings() -> None:
    a, b = torch.zeros(1), torch.zeros(2)
    assert [(item, len(tensor)) for item, tensor in tensors_of({"out": a, "more": [b, (a, 3)]})] == [
        ("[out]", 1),
        ("[more][0]", 2),
        ("[more][1][0]", 1),
    ]


@pytest.mark.parametrize(
    ("shape", "expected"),
    [
        ((1, 7, 8, 16), (1, 7, 8, 16)),
        ((1, 8, 16, 7), (1, 7, 8, 16)),  # channels last, told by the image's proportions
        ((1, 129, 7), (1, 7, 8, 16)),  # tokens behind a class token
        ((1, 7), None),
        ((2, 7, 8, 16), None),  # not one map for one image
    ],
)
def test_what_counts_as_a_map(shape: tuple[int, ...], expected: tuple[int, ...] | None) -> None:
    assert as_map(shape, (16, 32)) == expected


def test_no_weights_are_asked_for() -> None:
    spec = ModelSpec(model="smp:PSPNet", options={"encoder_weights": "imagenet", "encoder_name": "resnet18"})
    plain, told = without_weights(spec)
    assert plain.options == {"encoder_name": "resnet18"}
    assert told == ["smp:PSPNet: options.encoder_weights not read: shapes do not depend on weights"]
    assert without_weights(ModelSpec(model="transformers:nvidia/segformer-b0"))[0].options == {"pretrained": False}
    assert without_weights(plain) == (plain, [])


def test_the_entropy_of_softened_maps() -> None:
    values = torch.tensor(
        [[[0.0, 0.0], [0.0, 0.0]], [[400.0, 0.0], [0.0, 0.0]], [[4.0 * math.log(3), 0.0], [0.0, 0.0]]]
    )
    logs = log_shares(values, 4.0)
    assert logs[2].exp().tolist() == pytest.approx([1 / 2, 1 / 6, 1 / 6, 1 / 6])
    by_hand = (0.5 * math.log(2) + 0.5 * math.log(6)) / math.log(4)
    assert entropies(logs) == pytest.approx([1.0, 0.0, by_hand], abs=1e-6)
    assert entropies(torch.zeros(2, 1)) == [0.0, 0.0]


def stage(tap: str, *shape: int) -> Good:
    return Good(tap, tap, "stage", (1, shape[0], shape[1], shape[2]))


@pytest.mark.parametrize(
    ("student", "teacher", "words"),
    [
        ((8, 4, 4), (8, 4, 4), "equal: no adapter"),
        ((8, 4, 4), (16, 4, 4), "equal size: 1x1 adapter 8 -> 16"),
        ((8, 4, 4), (8, 2, 4), "equal channels: resize 4x4 -> 2x4"),
        ((8, 4, 4), (9, 2, 2), "1x1 adapter 8 -> 9, resize 4x4 -> 2x2"),
    ],
)
def test_what_stands_between_two_maps(student: tuple[int, int, int], teacher: tuple[int, int, int], words: str) -> None:
    assert between(stage("a", *student), stage("b", *teacher)) == words


def test_class_maps_of_other_classes_need_a_map() -> None:
    ours, theirs = (Good("logits", "head", "logits", (1, count, 4, 4)) for count in (3, 5))
    assert between(ours, theirs) == "3 and 5 classes: say with teacher.classes which stand for which"
    assert between(ours, theirs, mapped=True) == "3 and 5 classes: teacher.classes maps them"
    terms, notices = proposed([ours], [theirs])
    assert terms == []
    assert notices[0].startswith("no term on logits: the networks have other classes")
    assert [term.weight for term in proposed([ours], [theirs], mapped=True)[0]] == [3.0]


def test_stages_are_matched_from_the_deepest() -> None:
    ours = [stage("a", 8, 4, 4), stage("b", 16, 2, 2)]
    theirs = [stage("x", 4, 8, 8), stage("y", 8, 4, 4), stage("z", 32, 2, 2)]
    pairs = [
        (match.student and match.student.tap, match.teacher and match.teacher.tap) for match in matched(ours, theirs)
    ]
    assert pairs == [(None, "x"), ("a", "y"), ("b", "z")]
    assert [match.equal for match in matched(ours, theirs)] == [False, True, False]


def test_heads_are_compared_with_heads_else_last_stages() -> None:
    head = Good("decoder", "decoder", "head", (1, 8, 4, 4))
    ours, theirs = [stage("a", 8, 4, 4), stage("b", 16, 2, 2)], [stage("z", 32, 2, 2)]
    taps = [
        [(term.student, term.teacher, term.weight) for term in proposed(*pair)[0]]
        for pair in (([*ours, head], [*theirs, head]), ([*ours, head], theirs), (ours, [*theirs, head]))
    ]
    assert taps == [[("decoder", "decoder", 50.0)], [("b", "z", 50.0)], [("b", "z", 50.0)]]


def test_the_block_reads_as_the_terms() -> None:
    term = TermSpec(student="encoder[4]", teacher="on: off", weight=50.0, options={"temperature": 4.0})
    block = terms_block([term, TermSpec()])
    assert block.startswith(
        "terms:\n  - {method: channelwise, student: 'encoder[4]', teacher: 'on: off', weight: 50.0, "
    )
    assert [TermSpec.model_validate(entry) for entry in yaml.safe_load(block)["terms"]] == [term, TermSpec()]
