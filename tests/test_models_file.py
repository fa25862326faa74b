"""Networks of the user's own: `path/to/file.py:function`."""

from __future__ import annotations

import pickle
import signal
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from densekd.cli.stopping import Stopping
from densekd.errors import ModelError
from densekd.models import ModelSpec, build_model
from densekd.models.checkpoint import load_checkpoint
from densekd.models.encoder import encoder_of
from densekd.models.specs import CheckpointSpec

SOURCE = """
from torch import nn
from parts import WIDTH

class Net(nn.Module):
    def __init__(self, classes, width):
        super().__init__()
        self.backbone = nn.Conv2d(3, width, 3, padding=1)
        self.head = nn.Conv2d(width, classes, 1)
    def forward(self, x):
        return self.head(self.backbone(x))

def build(num_classes, width=WIDTH):
    import parts
    return Net(num_classes, width)

def open_ended(**options):
    return Net(options["num_classes"], 2)

def labels(num_labels):
    return Net(num_labels, 2)

def none_of_it(width):
    return Net(2, width)

def fails(num_classes):
    raise RuntimeError("no such thing")

def no_module(num_classes):
    return 3
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "net.py").write_text(SOURCE)
    (tmp_path / "parts.py").write_text("WIDTH = 6\n")
    return tmp_path


def build(folder: Path, function: str, /, **options: Any) -> nn.Module:
    spec = ModelSpec(model=f"net.py:{function}", options=options)
    return build_model(spec, 5, base_folder=folder, notices=[])


def test_a_function_of_a_file_beside_the_recipe(folder: Path) -> None:
    notices: list[str] = []
    spec = ModelSpec(model="net.py:build", options={"width": 4})
    network = build_model(spec, 5, base_folder=folder, notices=notices)
    assert network(torch.zeros(1, 3, 8, 8)).shape == (1, 5, 8, 8)
    assert network.backbone.out_channels == 4
    assert notices == [f"{folder / 'net.py'} is executed, because the model reference names it"]
    assert build(folder, "build").backbone.out_channels == 6


def test_the_notice_is_a_warning_without_a_list(folder: Path) -> None:
    with pytest.warns(UserWarning, match="is executed, because the model reference names it"):
        build_model(ModelSpec(model="net.py:build"), 5, base_folder=folder)


@pytest.mark.parametrize("function", ["open_ended", "labels"])
def test_the_function_says_how_classes_are_called(folder: Path, function: str) -> None:
    assert build(folder, function).head.out_channels == 5


def test_the_network_can_be_pickled(folder: Path) -> None:
    network = build(folder, "build")
    assert torch.equal(pickle.loads(pickle.dumps(network)).head.weight, network.head.weight)


def test_the_import_path_is_as_before(folder: Path) -> None:
    import sys

    before = list(sys.path)
    build(folder, "build")
    with pytest.raises(ModelError):
        build(folder, "fails")
    assert sys.path == before


@pytest.mark.parametrize(
    ("function", "options", "words"),
    [
        ("biuld", {}, "defines no function 'biuld'; did you mean 'build'"),
        ("build", {"widht": 3}, "no option 'widht'; did you mean 'width'"),
        ("build", {"num_classes": 3}, "options.num_classes is 3, but 5 outputs"),
        ("build", {"classes": 3}, "options.classes is 3, but 5 outputs"),
        ("none_of_it", {"width": 2}, r"give it one named num_classes \(its arguments: width\)"),
        ("fails", {}, r"net\.py:27: RuntimeError: no such thing \(while calling fails\)"),
        ("no_module", {}, "returned int, not a torch.nn.Module"),
    ],
)
def test_mistakes_are_named(folder: Path, function: str, options: dict[str, Any], words: str) -> None:
    with pytest.raises(ModelError, match=words):
        build(folder, function, **options)


@pytest.mark.parametrize(
    ("source", "words"),
    [
        ("import torch\n\n1 / 0\n", r"net\.py:3: ZeroDivisionError.*while executing the file"),
        ("def build(\n", r"net\.py:1: '\(' was never closed"),
        ("import no_such_package\n", r"net\.py:1: ModuleNotFoundError: No module named 'no_such_package'"),
        (
            "import sys\nsys.exit()\n",
            # W&B, where a test imported it, gives the code.
            r"net\.py:2: the program is ended there, SystemExit\(0?\) \(while executing the file",
        ),
        ("\nraise BaseException('b')\n", r"net\.py:2: BaseException: b \(while executing the file"),
        (
            "class Stop(BaseException): pass\ndef build(num_classes):\n    raise Stop('here')",
            r"net\.py:3: Stop: here \(while calling build\)",
        ),
        (
            "def build(num_classes):\n    import argparse\n    argparse.ArgumentParser().parse_args(['--nonsense'])",
            r"net\.py:3: the program is ended there, SystemExit\(2\) \(while calling build\).*__main__",
        ),
    ],
)
def test_errors_inside_the_file_name_the_line(tmp_path: Path, source: str, words: str) -> None:
    (tmp_path / "net.py").write_text(source)
    with pytest.raises(ModelError, match=words):
        build(tmp_path, "build")


def test_ctrl_c_in_the_file_is_no_mistake_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "net.py").write_text("def build(num_classes):\n    raise KeyboardInterrupt\n")
    with pytest.raises(KeyboardInterrupt):
        build(tmp_path, "build")


def test_sigterm_in_the_file_is_no_mistake_of_the_file(tmp_path: Path) -> None:
    source = "import os, signal\ndef build(num_classes):\n    os.kill(os.getpid(), signal.SIGTERM)\n    assert False\n"
    (tmp_path / "net.py").write_text(source)
    before = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    stopping = Stopping()
    stopping.install()
    try:
        with pytest.raises(SystemExit) as stop:
            build(tmp_path, "build")
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
    assert stop.value.code == 143
    assert stopping.asked == signal.SIGTERM


def test_a_missing_file_is_named_in_full(tmp_path: Path) -> None:
    with pytest.raises(ModelError, match=r"net\.py:build: no such file"):
        build(tmp_path, "build")


def test_encoder_weights_go_into_the_backbone(folder: Path) -> None:
    network = build(folder, "build")
    torch.save({"weight": torch.ones(6, 3, 3, 3), "bias": torch.ones(6)}, folder / "encoder.pt")
    load_checkpoint(encoder_of(network, "net"), CheckpointSpec(path="encoder.pt"), folder, notices=[])
    assert network.backbone.weight.eq(1).all()
    assert not network.head.weight.eq(1).any()
    with pytest.raises(ModelError, match="a module named encoder or backbone"):
        encoder_of(nn.Conv2d(1, 1, 1), "net")
