"""Every example runs, and no file that it leaves holds anything of the teacher."""

from __future__ import annotations

import hashlib
import importlib.util
import warnings
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

import densekd
from densekd.distiller import Distiller

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TESTED = {"plain_loop.py", "lightning_module.py", "hf_trainer.py"}


def load(name: str) -> ModuleType:
    spec = importlib.util.spec_from_file_location(f"example_{name}", EXAMPLES / f"{name}.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def built(monkeypatch: pytest.MonkeyPatch) -> list[Distiller]:
    """The distillers that an example builds."""
    found: list[Distiller] = []

    class Spy(Distiller):
        def __init__(self, *args: Any, **kwargs: Any) -> None:
            super().__init__(*args, **kwargs)
            found.append(self)

    monkeypatch.setattr(densekd, "Distiller", Spy)
    return found


def tensors_in(value: Any) -> Iterator[Tensor]:
    """Every tensor inside nested mappings and sequences."""
    if isinstance(value, Tensor):
        yield value
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from tensors_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from tensors_in(inner)


def saved_tensors(folder: Path) -> dict[Path, list[Tensor]]:
    """The tensors of every file with weights or training state."""
    found = {}
    for path in sorted(folder.rglob("*")):
        if path.suffix == ".safetensors":
            found[path] = list(load_file(path).values())
        elif path.suffix in {".ckpt", ".pt", ".pth"} and path.name != "rng_state.pth":
            found[path] = list(tensors_in(torch.load(path, weights_only=True)))
    return found


def prints(tensors: Iterator[Tensor] | list[Tensor]) -> set[str]:
    """Digests of tensors by value; constant ones (fresh statistics, biases) belong to nobody."""
    return {
        hashlib.sha256(t.detach().contiguous().numpy().tobytes()).hexdigest()
        for t in tensors
        if t.numel() > 1 and not bool((t == t.reshape(-1)[0]).all())
    }


def assert_without_teacher(folder: Path, teacher: nn.Module) -> None:
    """No file under `folder` holds a tensor of the teacher."""
    files = saved_tensors(folder)
    assert any(prints(tensors) for tensors in files.values()), f"nothing was saved under {folder}"
    theirs = prints(list(teacher.state_dict().values()))
    assert theirs
    for path, tensors in files.items():
        assert not prints(tensors) & theirs, f"{path} holds tensors of the teacher"


def test_the_check_finds_a_teacher(tmp_path: Path) -> None:
    torch.manual_seed(0)
    student, teacher = nn.Conv2d(3, 4, 1), nn.Conv2d(3, 8, 1)
    save_file(student.state_dict(), tmp_path / "student.safetensors")
    assert_without_teacher(tmp_path, teacher)
    both = {"state": [student.state_dict(), {"deep": teacher.weight.detach()}]}
    torch.save(both, tmp_path / "both.ckpt")
    with pytest.raises(AssertionError, match=r"both.ckpt holds tensors of the teacher"):
        assert_without_teacher(tmp_path, teacher)


def test_every_example_is_tested() -> None:
    assert {path.name for path in EXAMPLES.glob("*.py")} == TESTED


def test_the_plain_loop_is_short() -> None:
    assert len((EXAMPLES / "plain_loop.py").read_text().splitlines()) <= 65


@pytest.mark.slow
def test_plain_loop(tmp_path: Path, built: list[Distiller], capsys: pytest.CaptureFixture[str]) -> None:
    example = load("plain_loop")
    example.main(tmp_path, steps=2)
    (distiller,) = built
    assert_without_teacher(tmp_path, distiller.teacher)
    fresh, _ = example.networks(classes=10)
    fresh.load_state_dict(load_file(tmp_path / "student.safetensors"))
    printed = capsys.readouterr().out
    assert "step 1: task " in printed
    assert "channelwise:logits" in printed


@pytest.mark.slow
def test_lightning(tmp_path: Path, built: list[Distiller]) -> None:
    pytest.importorskip("lightning", minversion="2.6.6")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # Lightning's own remarks on loaders and accelerators
        load("lightning_module").main(tmp_path, steps=2)
    (distiller,) = built
    assert_without_teacher(tmp_path, distiller.teacher)
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert saved["global_step"] == 2
    prefixes = {".".join(name.split(".")[:2]) for name in saved["state_dict"]}
    assert prefixes == {"distiller.student"}, "equal class counts need no adapter"
    assert load_file(tmp_path / "student.safetensors").keys() == distiller.student.state_dict().keys()
    assert not any(module.training for module in distiller.teacher.modules())


@pytest.mark.slow
def test_hf_trainer(tmp_path: Path, built: list[Distiller]) -> None:
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the Trainer's remarks on pinned memory and the like
        load("hf_trainer").main(tmp_path, steps=2)
    (distiller,) = built
    assert_without_teacher(tmp_path, distiller.teacher)
    assert (tmp_path / "trainer" / "checkpoint-2" / "model.safetensors").is_file()
    student = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "student")
    for name, value in distiller.student.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value.cpu())
