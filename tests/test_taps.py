from __future__ import annotations

import copy
import pickle
import random
import warnings
from collections import OrderedDict
from types import SimpleNamespace

import numpy
import pytest
import torch
from torch import Tensor, nn

from densekd.errors import TapError
from densekd.taps import TapReader, dry_run, holds_class_map, logits_candidate, main_output, preserved
from densekd.taps.paths import find_module, parse


def plain() -> nn.Sequential:
    torch.manual_seed(0)
    return nn.Sequential(
        OrderedDict(
            stem=nn.Conv2d(3, 4, 3, padding=1),
            norm=nn.BatchNorm2d(4),
            act=nn.ReLU(inplace=True),
            head=nn.Conv2d(4, 5, 1),
        )
    )


class Stages(nn.Module):
    """Indexes a ModuleList, as many encoders do."""

    def __init__(self) -> None:
        super().__init__()
        self.stages = nn.ModuleList([nn.Conv2d(3, 4, 1), nn.Conv2d(4, 4, 1)])
        self.never = nn.Conv2d(4, 4, 1)
        self.pair = Pair()

    def forward(self, images: Tensor) -> Tensor:
        for stage in self.stages:
            images = stage(images)
        return self.pair(images)["a"]


class Pair(nn.Module):
    def forward(self, images: Tensor) -> dict[str, Tensor]:
        return {"a": images * 1, "b": images[:, :2] * 2}


class TestMainOutput:
    def test_forms(self) -> None:
        x, y = torch.rand(1, 2, 3, 3), torch.rand(1, 2, 3, 3)
        assert main_output(x) is x
        assert main_output((x, y)) is x
        assert main_output([x]) is x
        assert main_output({"out": x, "aux": y}) is x
        assert main_output({"loss": y, "logits": x}) is x
        assert main_output(SimpleNamespace(logits=x)) is x

    @pytest.mark.parametrize("value", [{"masks": torch.rand(1)}, [], ([torch.rand(1)],), "text", None])
    def test_refuses(self, value: object) -> None:
        with pytest.raises(TapError, match=r"must be a tensor.*got.*tap one item as 'output\[key\]'"):
            main_output(value)

    def test_class_map_or_features(self) -> None:
        maps = [torch.rand(1, c, 2, 2) for c in (4, 8)]
        assert not holds_class_map(maps)
        assert holds_class_map((maps[0], maps[0]))
        assert holds_class_map((maps[0], torch.rand(1, 7)))
        assert not holds_class_map(torch.rand(1, 7))
        assert not holds_class_map({"x": maps[0]})


class TestNames:
    def test_parse(self) -> None:
        assert parse("output") == (None, None)
        assert parse("output[-1]") == (None, "-1")
        assert parse("a.b[out]") == ("a.b", "out")

    @pytest.mark.parametrize("tap", ["", "[2]", "a[", "a[]", "a]b[0"])
    def test_not_a_tap(self, tap: str) -> None:
        with pytest.raises(TapError, match="is not a tap"):
            parse(tap)

    def test_near_names(self) -> None:
        with pytest.raises(TapError, match=r"the student \(Sequential\) has no module 'haed'; did you mean 'head'"):
            find_module(plain(), "haed", "student")
        with pytest.raises(TapError, match=r"did you mean '0.stem'"):
            find_module(nn.Sequential(plain()), "stem")
        with pytest.raises(TapError, match=r"has no module 'zz'\. Expected.*'stem', 'norm'"):
            find_module(plain(), "zz")

    def test_compiled_in_place_is_told_without_compiling(self) -> None:
        network = plain()
        network._compiled_call_impl = network._call_impl
        with pytest.raises(TapError, match=r"already compiled module \(the student itself\).*compile afterwards"):
            TapReader(network, ["stem"], who="student")

    @pytest.mark.slow
    @pytest.mark.parametrize("how", ["wrapped", "in place", "child"])
    def test_compiled(self, how: str) -> None:
        network: nn.Module = nn.Sequential(plain())
        path = "0.stem"
        if how == "wrapped":
            network = torch.compile(network)  # type: ignore[assignment]
        elif how == "in place":
            network.compile()
        else:
            network[0] = torch.compile(network[0])  # type: ignore[index]
        with pytest.raises(TapError, match=r"already compiled module.*compile afterwards"):
            TapReader(network, [path])

    @pytest.mark.slow
    def test_scripted(self) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            scripted = torch.jit.trace(plain().eval(), torch.rand(1, 3, 4, 4))
        with pytest.raises(TapError, match="TorchScript"):
            TapReader(scripted, ["stem"])


class TestLogitsCandidate:
    def test_forms(self) -> None:
        conv = nn.Conv2d(2, 2, 1)
        smp = nn.ModuleDict({"encoder": conv, "segmentation_head": nn.Sequential(conv, nn.Upsample(scale_factor=2))})
        torchvision = nn.ModuleDict({"backbone": conv, "classifier": nn.Sequential(conv)})
        transformers = nn.ModuleDict({"model": conv, "decode_head": nn.ModuleDict({"classifier": conv})})
        assert logits_candidate(smp) == ("segmentation_head.0", "segmentation-models-pytorch form")
        assert logits_candidate(torchvision) == ("classifier", "torchvision form")
        assert logits_candidate(transformers) == ("decode_head.classifier", "transformers form")
        assert logits_candidate(nn.ModuleDict({"net": smp})) == (
            "net.segmentation_head.0",
            "segmentation-models-pytorch form",
        )
        assert logits_candidate(plain()) is None
        assert logits_candidate(nn.Sequential(plain())) is None

    def test_a_form_that_gives_other_channels_is_not_used(self) -> None:
        class Trap(nn.Module):
            def __init__(self) -> None:
                super().__init__()
                self.backbone = nn.Conv2d(3, 4, 1)
                self.classifier = nn.Conv2d(4, 6, 1)
                self.last = nn.Conv2d(6, 5, 1)

            def forward(self, images: Tensor) -> Tensor:
                return self.last(self.classifier(self.backbone(images)))

        network = Trap()
        reader = TapReader(network, ["logits"], who="student")
        result = dry_run(reader, network, (torch.rand(1, 3, 4, 4),), {})
        assert result.maps["logits"] is result.output
        assert "logits equals output ('classifier' looks like the torchvision form, but" in result.notices[0]
        assert not network.classifier._forward_hooks

    def test_nothing_known_says_so(self) -> None:
        network = plain()
        result = dry_run(TapReader(network, ["logits"], who="teacher"), network, (torch.rand(1, 3, 4, 4),), {})
        assert result.maps["logits"] is result.output
        assert result.notices == ["teacher: logits equals output (no head of a known form was found)"]


class TestReader:
    def test_reads_the_maps_and_keeps_nothing(self) -> None:
        network, images = plain().eval(), torch.rand(2, 3, 4, 4)
        reader = TapReader(network, ["stem", "output"])
        output, maps = reader.run(network, (images,), {})
        assert torch.equal(maps["stem"], network.stem(images))
        assert maps["output"] is output
        assert reader.store.seen == {}
        network(images)
        assert reader.store.seen == {}

    def test_store_is_emptied_after_an_error(self) -> None:
        network = plain()
        reader = TapReader(network, ["stem"])
        with pytest.raises(RuntimeError):
            reader.run(nn.Sequential(network, nn.Conv2d(9, 9, 1)), (torch.rand(1, 3, 4, 4),), {})
        assert reader.store.seen == {}
        assert not reader.store.active

    def test_output_changed_in_place_is_kept_as_it_was(self) -> None:
        network, images = plain().eval(), torch.randn(2, 3, 4, 4)
        reader = TapReader(network, ["norm", "stem"], who="student")
        result = dry_run(reader, network, (images,), {})
        assert result.notices == ["student: the output of 'norm' is changed in place by a later module; a copy is kept"]
        norm = reader.run(network, (images,), {})[1]["norm"]
        assert torch.equal(norm, network.norm(network.stem(images)))
        assert float(norm.detach().min()) < 0
        assert not reader.hooks["stem"].copy

    def test_items(self) -> None:
        network = Stages()
        reader = TapReader(network, ["pair[b]"])
        _, maps = reader.run(network, (torch.rand(1, 3, 4, 4),), {})
        assert maps["pair[b]"].shape == (1, 2, 4, 4)
        for tap, words in {
            "pair": r"to return one tensor, got dict with keys 'a', 'b'; tap one item, for instance 'pair\[a\]'",
            "pair[c]": "there is no item 'c'",
            "output[7]": "there is no item '7'",
        }.items():
            with pytest.raises(TapError, match=words):
                TapReader(network, [tap]).run(network, (torch.rand(1, 3, 4, 4),), {})

    def test_tuple_of_one_and_integers(self) -> None:
        class Wrap(nn.Module):
            def forward(self, images: Tensor) -> tuple[Tensor]:
                return (images,)

        class Unwrap(nn.Module):
            def forward(self, pair: tuple[Tensor]) -> Tensor:
                return pair[0].argmax(1)

        network = nn.Sequential(Wrap(), Unwrap())
        images = torch.rand(1, 3, 4, 4)
        assert TapReader(network, ["0"]).run(network, (images,), {})[1]["0"] is images
        with pytest.raises(TapError, match=r"floating-point map.*int64"):
            TapReader(network, ["1"]).run(network, (images,), {})

    def test_container_names_what_is_called(self) -> None:
        network = Stages()
        with pytest.raises(TapError, match=r"ModuleList is a container.*'stages.0', 'stages.1'; tap one of these"):
            dry_run(TapReader(network, ["stages"]), network, (torch.rand(1, 3, 4, 4),), {})
        with pytest.raises(TapError, match=r"'never'.*never called.*called near it: 'pair'"):
            dry_run(TapReader(network, ["never"]), network, (torch.rand(1, 3, 4, 4),), {})
        assert not any(
            module._forward_hooks for name, module in network.named_modules() if name[:5] == "stage" and name[6:]
        )

    def test_shared_module_fires_twice(self) -> None:
        shared = nn.Conv2d(3, 3, 1)
        network = nn.Sequential(shared, shared)
        with pytest.raises(TapError, match=r"fired 2 times in one forward pass.*shared"):
            dry_run(TapReader(network, ["0"]), network, (torch.rand(1, 3, 4, 4),), {})

    def test_copies_are_their_own(self) -> None:
        network = plain().eval()
        pair = (network, TapReader(network, ["stem"]))
        images = torch.rand(1, 3, 4, 4)
        for other, reader in (copy.deepcopy(pair), pickle.loads(pickle.dumps(pair))):
            _, maps = reader.run(other, (images,), {})
            assert torch.equal(maps["stem"], network.stem(images))
            reader.close()
            assert not other.stem._forward_hooks
        assert len(network.stem._forward_hooks) == 1

    def test_close(self) -> None:
        network = plain()
        reader = TapReader(network, ["stem"])
        reader.close()
        assert not network.stem._forward_hooks
        with pytest.raises(TapError, match="removed by close"):
            reader.run(network, (torch.rand(1, 3, 4, 4),), {})


class TestPreserved:
    def test_leaves_no_trace(self) -> None:
        network = nn.Sequential(plain(), nn.Dropout())
        network[0].norm.eval()
        modes = [module.training for module in network.modules()]
        state = {name: value.clone() for name, value in network.state_dict().items()}
        torch_state, python_state = torch.get_rng_state(), random.getstate()
        numpy_state = numpy.random.get_state()[1].copy()
        tensor = network[0].norm.running_mean
        with preserved(network):
            network.train()
            network(torch.rand(4, 3, 4, 4))
            network[0].norm.running_mean = torch.ones(4)
            random.random()
            numpy.random.rand()
        assert [module.training for module in network.modules()] == modes
        assert all(torch.equal(value, state[name]) for name, value in network.state_dict().items())
        assert network[0].norm.running_mean is tensor
        assert torch.equal(torch.get_rng_state(), torch_state)
        assert random.getstate() == python_state
        assert (numpy.random.get_state()[1] == numpy_state).all()

    def test_restores_after_an_error(self) -> None:
        network = plain()
        before = network.norm.num_batches_tracked.clone()
        with pytest.raises(RuntimeError), preserved(network):
            nn.Sequential(network, nn.Conv2d(9, 9, 1))(torch.rand(4, 3, 4, 4))
        assert torch.equal(network.norm.num_batches_tracked, before)
