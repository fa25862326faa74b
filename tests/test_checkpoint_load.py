"""Loading weights: every form of file, strictly, and what is said when something does not fit."""

from __future__ import annotations

import json
import pickle
import zipfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file
from torch import nn

from densekd.errors import CheckpointError
from densekd.models import CheckpointSpec, load_checkpoint
from densekd.models.checkpoint_keys import WRAPPERS, strip_wrappers


def make(classes: int = 3, width: int = 4) -> nn.Module:
    layers = {
        "conv1": nn.Conv2d(3, width, 3, bias=False),
        "bn1": nn.BatchNorm2d(width),
        "layer1": nn.Sequential(nn.Conv2d(width, width, 1)),
        "head": nn.Conv2d(width, classes, 1),
    }
    network = nn.Module()
    for name, layer in layers.items():
        network.add_module(name, layer)
    return network


@pytest.fixture
def trained() -> dict[str, torch.Tensor]:
    torch.manual_seed(1)
    network = make()
    network.bn1.num_batches_tracked += 5
    return dict(network.state_dict())


def load(folder: Path, network: nn.Module | None = None, **spec: Any) -> tuple[nn.Module, list[str]]:
    notices: list[str] = []
    network = network or make()
    load_checkpoint(network, CheckpointSpec(**{"path": "w.pt", **spec}), folder, notices=notices)
    return network, notices


def same(network: nn.Module, expected: dict[str, torch.Tensor]) -> bool:
    return all(torch.equal(value, expected[name]) for name, value in network.state_dict().items())


def prefixed(weights: dict[str, torch.Tensor], prefix: str) -> dict[str, torch.Tensor]:
    return {f"{prefix}{name}": value for name, value in weights.items()}


# What a file may look like.


def test_safetensors_whatever_its_name(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    save_file(trained, tmp_path / "w.pt")
    network, notices = load(tmp_path)
    assert same(network, trained)
    assert notices == []


@pytest.mark.parametrize("zipped", [True, False])
def test_files_of_torch_save(tmp_path: Path, trained: dict[str, torch.Tensor], zipped: bool) -> None:
    torch.save(trained, tmp_path / "w.pt", _use_new_zipfile_serialization=zipped)
    network, notices = load(tmp_path)
    assert same(network, trained)
    assert notices == []


def test_a_run_folder_means_its_student(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    (tmp_path / "run").mkdir()
    save_file(trained, tmp_path / "run" / "student.safetensors")
    assert same(load(tmp_path, path="run")[0], trained)


@pytest.mark.parametrize("name", ["state_dict", "model", "student", "network"])
def test_weights_are_found_among_other_entries(tmp_path: Path, trained: dict[str, torch.Tensor], name: str) -> None:
    others = {"epoch": 3, "optimizer": {"state": {0: {"step": torch.ones(1)}}, "param_groups": [{"lr": 0.1}]}}
    torch.save({name: trained, **others}, tmp_path / "w.pt")
    network, notices = load(tmp_path)
    assert same(network, trained)
    assert notices == [f"checkpoint {tmp_path / 'w.pt'}: weights taken from its entry {name!r}"]


def test_a_lightning_file(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    content = {
        "epoch": 1,
        "global_step": 10,
        "pytorch-lightning_version": "2.6.6",
        "state_dict": prefixed(trained, "model."),
        "loops": {"fit_loop": {"state_dict": {}}},
        "callbacks": {},
        "optimizer_states": [{"state": {}, "param_groups": []}],
        "lr_schedulers": [],
        "hparams_name": "kwargs",
        "hyper_parameters": {"lr": 0.1},
    }
    torch.save(content, tmp_path / "w.ckpt")
    network, notices = load(tmp_path, path="w.ckpt")
    assert same(network, trained)
    assert "entry 'state_dict'" in notices[0]
    assert "prefix 'model.' taken off every name" in notices[1]


def test_key_chooses_among_several(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    other = {name: value + 1 for name, value in trained.items()}
    torch.save({"model": other, "ema": {"model": trained, "decay": 0.9}}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"several entries hold weights: ema\.model, model; .*key: ema\.model"):
        load(tmp_path)
    network, notices = load(tmp_path, key="ema.model")
    assert same(network, trained)
    assert notices == []
    with pytest.raises(CheckpointError, match=r"no entry 'ema\.modl'; did you mean 'model'"):
        load(tmp_path, key="ema.modl")
    with pytest.raises(CheckpointError, match=r"entry 'ema\.decay' is float, not a mapping"):
        load(tmp_path, key="ema.decay")


def test_half_precision_is_cast_to_the_network(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    half = {n: v.half() if v.is_floating_point() else v for n, v in trained.items()}
    torch.save(half, tmp_path / "w.pt")
    network, _ = load(tmp_path)
    assert network.head.weight.dtype == torch.float32
    torch.testing.assert_close(network.head.weight, half["head.weight"].float(), rtol=0, atol=0)


def test_missing_counters_start_at_zero_and_it_is_said(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    del trained["bn1.num_batches_tracked"]
    torch.save(trained, tmp_path / "w.pt")
    network, notices = load(tmp_path)
    assert network.bn1.num_batches_tracked == 0
    assert "has no num_batches_tracked; 1 counters" in notices[0]


# What is no weights file.


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "the file is empty"),
        (
            b"version https://git-lfs.github.com/spec/v1\noid sha256:12\nsize 3\n",
            r"Git LFS pointer of \d+ bytes.*lfs pull",
        ),
        (b"\n<!DOCTYPE html><html><body>Log in</body></html>", "a web page, not weights"),
        (b"hello, this is no checkpoint", "neither a safetensors file nor one of torch.save"),
        (b"\x10\0\0\0\0\0\0\0{'not json at all", "not a readable safetensors file"),
        (b"PK\x03\x04 cut off", "damaged or cut short"),
        (b"\x80\x02 cut off", "damaged or cut short|holds Python objects"),
    ],
)
def test_other_files_are_named_as_what_they_are(tmp_path: Path, content: bytes, words: str) -> None:
    (tmp_path / "w.pt").write_bytes(content)
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path)


class Runs:
    """A pickle of this writes a file when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return Path.touch, (self.path,)


@pytest.mark.filterwarnings("ignore:Detected pickle protocol:UserWarning")
@pytest.mark.parametrize("legacy", [False, True])
def test_a_pickle_that_needs_code_is_refused_and_not_run(tmp_path: Path, legacy: bool) -> None:
    content = {"state_dict": {}, "config": Runs(tmp_path / "was-run")}
    torch.save(content, tmp_path / "w.pt", _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match="would run code from the file; densekd never does"):
        load(tmp_path)
    assert not (tmp_path / "was-run").exists()
    (tmp_path / "w.pt").write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match=r"would run code from the file|damaged"):
        load(tmp_path)
    assert not (tmp_path / "was-run").exists()


def test_a_whole_network_in_a_pickle_is_refused(tmp_path: Path) -> None:
    torch.save(nn.Sequential(nn.Conv2d(3, 3, 1)), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"holds Python objects \(torch\.nn\..*state_dict\(\)"):
        load(tmp_path)


def test_archives_of_other_kinds(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("net/constants.pkl", b"")
    with pytest.raises(CheckpointError, match="TorchScript program"):
        load(tmp_path)
    with zipfile.ZipFile(tmp_path / "w.pt", "w") as archive:
        archive.writestr("readme.txt", b"hello")
    with pytest.raises(CheckpointError, match=r"zip archive that torch\.save did not write"):
        load(tmp_path)


def test_paths_that_lead_nowhere(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    save_file(trained, tmp_path / "teacher.safetensors")
    with pytest.raises(CheckpointError, match=r"no such file; did you mean 'teacher\.safetensors'"):
        load(tmp_path, path="teacher.safetensor")
    with pytest.raises(CheckpointError, match=r"without student\.safetensors.*name one of its files: teacher"):
        load(tmp_path, path=".")
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "record.json").write_text(json.dumps({"status": "interrupted"}))
    with pytest.raises(CheckpointError, match=r"no student\.safetensors yet \(status: interrupted\).*--resume"):
        load(tmp_path, path="run")


@pytest.mark.parametrize(
    ("content", "words"),
    [
        ({"epoch": 3, "net": {"a": "b"}}, r"no entry holds weights.*it has epoch \(int\), net \(dict of 1\)"),
        ([torch.ones(1)], "one list of 1"),
        (torch.ones(1), "one Tensor"),
        ({}, "it has nothing"),
    ],
)
def test_a_file_without_weights_lists_what_it_has(tmp_path: Path, content: Any, words: str) -> None:
    torch.save(content, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path)


# Prefixes.


@pytest.mark.parametrize("prefix", ["module.", "model.", "student.", "_orig_mod.", "module._orig_mod.model."])
def test_wrappers_are_taken_off_and_it_is_said(tmp_path: Path, trained: dict[str, torch.Tensor], prefix: str) -> None:
    torch.save(prefixed(trained, prefix), tmp_path / "w.pt")
    network, notices = load(tmp_path)
    assert same(network, trained)
    assert notices == [f"checkpoint {tmp_path / 'w.pt'}: prefix {prefix!r} taken off every name"]


@given(st.lists(st.sampled_from(WRAPPERS), max_size=4), st.sets(st.text("ab.", min_size=1), min_size=1))
def test_any_row_of_wrappers_is_found(wrappers: list[str], names: set[str]) -> None:
    prefix = "".join(wrappers)
    assert strip_wrappers([f"{prefix}{name}" for name in names], names) == prefix


def test_a_prefix_that_the_network_has_itself_stays(tmp_path: Path) -> None:
    network, other = nn.Module(), nn.Module()
    for each in (network, other):
        each.model = nn.Conv2d(3, 3, 1)
    torch.save(other.state_dict(), tmp_path / "w.pt")
    _, notices = load(tmp_path, network)
    assert notices == []
    assert same(network, other.state_dict())


def test_a_prefix_of_some_names_alone_is_proposed(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    torch.save({**prefixed(trained, "model."), "loss.weight": torch.ones(3)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"0 of 10 names fit.*try strip_prefix: model\."):
        load(tmp_path)
    with pytest.raises(CheckpointError, match=r"1 the network does not have: loss\.weight; .*ignore: \[loss\.\*\]"):
        load(tmp_path, strip_prefix="model.")
    network, notices = load(tmp_path, strip_prefix="model.", ignore=("loss.*",))
    assert same(network, trained)
    assert notices == []


def test_an_unusual_prefix_is_proposed_not_guessed(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    torch.save(prefixed(trained, "net.backbone."), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"wrong prefix: try strip_prefix: net\.backbone\."):
        load(tmp_path)
    assert same(load(tmp_path, strip_prefix="net.backbone.")[0], trained)
    with pytest.raises(CheckpointError, match=r"no name begins with strip_prefix 'nett\.'"):
        load(tmp_path, strip_prefix="nett.")


def test_a_prefix_that_makes_two_names_one(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    torch.save({**trained, **prefixed(trained, "ema.")}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"two names are 'conv1\.weight' once strip_prefix 'ema\.'"):
        load(tmp_path, strip_prefix="ema.")


def test_weights_of_a_part_are_proposed_as_such(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    network = nn.Module()
    network.encoder, network.head = make(), nn.Conv2d(3, 3, 1)
    torch.save(trained, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"network calls encoder\.\*.*encoder_checkpoint"):
        load(tmp_path, network)


def test_names_as_timm_flattens_them(tmp_path: Path) -> None:
    network, other = nn.Module(), nn.Module()
    network.stages_0, network.head_drop = nn.Sequential(nn.Conv2d(3, 3, 1)), nn.Conv2d(3, 3, 1)
    other.stages, other.head_drop = nn.Sequential(nn.Sequential(nn.Conv2d(3, 3, 1))), nn.Conv2d(3, 3, 1)
    torch.save(other.state_dict(), tmp_path / "w.pt")
    _, notices = load(tmp_path, network)
    assert torch.equal(network.stages_0[0].weight, other.stages[0][0].weight)
    assert "2 names changed" in notices[0]
    assert "stages.0.0.weight to stages_0.0.weight" in notices[0]


# Strictness.


def test_missing_and_unexpected_names_are_listed_with_counts(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    for name in [name for name in trained if name.startswith("bn1.")]:
        del trained[name]
    trained |= {"psp.a": torch.ones(1), "psp.b": torch.ones(1)}
    torch.save(trained, tmp_path / "w.pt")
    with pytest.raises(CheckpointError) as raised:
        load(tmp_path)
    words = str(raised.value)
    assert "5 of 9 names fit" in words
    # The counter of BatchNorm is absent with all the rest of it, so it is not worth a line.
    assert "4 missing in the file: bn1.weight, bn1.bias, bn1.running_mean, bn1.running_var" in words
    assert "2 the network does not have: psp.a, psp.b" in words
    assert "the file is for another network" in words


def test_only_the_first_names_are_listed(tmp_path: Path) -> None:
    torch.save({f"x{i}": torch.ones(1) for i in range(30)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="30 the network does not have: x0, x1, x2, x3, and 26 more"):
        load(tmp_path)


def test_another_number_of_classes_is_named(tmp_path: Path) -> None:
    torch.save(make(classes=19).state_dict(), tmp_path / "w.pt")
    words = (
        r"head\.weight \(19, 4, 1, 1\) in the file, \(3, 4, 1, 1\) in the network.*for 19 classes.*has 3.*\[head\.\*\]"
    )
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path)
    torch.manual_seed(5)
    network = make()
    head = network.head.weight.clone()
    _, notices = load(tmp_path, network, ignore=("head.*",))
    where = f"checkpoint {tmp_path / 'w.pt'}"
    assert notices == [f"{where}: initial values are kept by ignore head.*: 2 tensors (15 parameters)"]
    assert torch.equal(network.head.weight, head)


def test_another_size_is_named(tmp_path: Path) -> None:
    torch.save(make(width=8).state_dict(), tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"8 of its tensors have another shape.*and 4 more.*another size"):
        load(tmp_path)


def test_stems_that_differ_are_named(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    del trained["conv1.weight"]
    trained |= {f"conv1.{i}.weight": torch.ones(1) for i in (0, 3, 6)}
    torch.save(trained, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"the stems differ .one 7x7 convolution against three of 3x3"):
        load(tmp_path)


def test_quantised_weights_are_refused(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    trained["head.weight"] = torch.ones(3, 4, 1, 1, dtype=torch.int8)
    torch.save(trained, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=r"torch.int8, the network's is torch.float32; quantised"):
        load(tmp_path)


def test_entries_that_are_no_tensors_are_named(tmp_path: Path, trained: dict[str, Any]) -> None:
    torch.save({"net": {**trained, "version": 3}}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="1 entries are not tensors: version; leave them out with ignore"):
        load(tmp_path, key="net")
    assert same(load(tmp_path, key="net", ignore=("version",))[0], trained)


def test_a_load_that_fails_changes_nothing(tmp_path: Path) -> None:
    torch.save(make(classes=19).state_dict(), tmp_path / "w.pt")
    network = make()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    with pytest.raises(CheckpointError):
        load(tmp_path, network)
    assert same(network, before)


def test_what_patterns_leave_out_is_counted_by_pattern(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    torch.save(trained, tmp_path / "w.pt")
    network = make()
    before = {name: value.clone() for name, value in network.state_dict().items()}
    # The first pattern that matches counts: of bn1 that leaves bias, running_mean, running_var and the counter.
    _, notices = load(tmp_path, network, ignore=("*.weight", "bn1.*"))
    assert notices == [
        f"checkpoint {tmp_path / 'w.pt'}: initial values are kept by ignore *.weight: 4 tensors (140 parameters), "
        "bn1.*: 4 tensors (4 parameters)"
    ]
    loaded = {"layer1.0.bias", "head.bias"}
    assert same(network, {**before, **{name: trained[name] for name in loaded}})


def test_patterns_for_names_of_the_file_alone_leave_nothing_out(
    tmp_path: Path, trained: dict[str, torch.Tensor]
) -> None:
    torch.save({**trained, "fc.weight": torch.ones(2)}, tmp_path / "w.pt")
    network, notices = load(tmp_path, ignore=("fc.*",))
    assert notices == []
    assert same(network, trained)


@pytest.mark.parametrize(
    ("ignore", "words"),
    [
        (("*",), r"nothing would be loaded: .* ignore \*: 10 tensors \(151 parameters\); leave the checkpoint out"),
        (
            ("head.*", "[!h]*"),
            r"nothing would be loaded: .* head\.\*: 2 tensors \(15 parameters\), \[!h\]\*: 8 tensors",
        ),
        # What is left is a counter that the file does not have.
        (
            ("*s", "*t", "*_mean", "*_var"),
            r"nothing would be loaded: .*\*s: 3 tensors \(11 parameters\), \*t: 4 tensors",
        ),
    ],
)
def test_patterns_that_leave_nothing_to_load(
    tmp_path: Path, trained: dict[str, torch.Tensor], ignore: tuple[str, ...], words: str
) -> None:
    del trained["bn1.num_batches_tracked"]
    torch.save(trained, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path, ignore=ignore)


@pytest.mark.parametrize(
    ("pattern", "words"),
    [
        ("haed.*", r"ignore 'haed\.\*' matches no name in the file or the network; did you mean 'head\.\*'"),
        ("layer.0.*", r"did you mean 'layer1\.0\.\*'"),
        ("fc.wieght", r"did you mean 'fc\.weight'"),
        ("xyz", r"; names begin with: conv1, bn1, layer1, head, fc$"),
    ],
)
def test_a_pattern_that_matches_nothing_is_an_error_with_near_names(
    tmp_path: Path, trained: dict[str, torch.Tensor], pattern: str, words: str
) -> None:
    torch.save({**trained, "fc.weight": torch.ones(2)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match=words):
        load(tmp_path, ignore=("fc.*" if pattern == "xyz" else "bn1.*", pattern))


def test_all_ignored_leaves_nothing(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    torch.save({"other": torch.ones(1)}, tmp_path / "w.pt")
    with pytest.raises(CheckpointError, match="nothing is left of the file once ignore is applied"):
        load(tmp_path, ignore=("other",))


def test_the_notices_are_warnings_without_a_list(tmp_path: Path, trained: dict[str, torch.Tensor]) -> None:
    torch.save(prefixed(trained, "module."), tmp_path / "w.pt")
    with pytest.warns(UserWarning, match="prefix 'module.' taken off"):
        load_checkpoint(make(), CheckpointSpec(path="w.pt"), tmp_path)
