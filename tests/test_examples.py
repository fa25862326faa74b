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
from densekd.models.build import build_model
from densekd.models.specs import ModelSpec

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
TESTED = {"plain_loop.py", "lightning_module.py", "hf_trainer.py", "accelerate_loop.py", "own_network.py"}


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
        elif path.suffix in {".bin", ".ckpt", ".pt", ".pth"} and path.name not in {
            "rng_state.pth",
            "training_args.bin",
        }:
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
def test_a_checkpoint_of_lightning_is_gone_on_with(tmp_path: Path) -> None:
    """What docs/integrations/lightning.md says of checkpoints: they resume, and a recipe takes the student out."""
    lightning = pytest.importorskip("lightning", minversion="2.6.6")
    example = load("lightning_module")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        example.main(tmp_path, steps=2)
        images, labels = torch.rand(4, 3, 64, 96), torch.randint(0, 10, (4, 64, 96))
        student, teacher = example_networks()
        module = example.Distilled(student, teacher, example=images[:2])
        options = {"logger": False, "enable_progress_bar": False, "enable_model_summary": False}
        trainer = lightning.Trainer(max_steps=3, default_root_dir=tmp_path, enable_checkpointing=False, **options)
        loader = torch.utils.data.DataLoader(list(zip(images, labels, strict=True)), batch_size=4)
        trainer.fit(module, loader, ckpt_path=tmp_path / "last.ckpt")
    assert trainer.global_step == 3
    spec = {"path": str(tmp_path / "last.ckpt"), "key": "state_dict", "strip_prefix": "distiller.student."}
    saved = torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]
    loaded = build_model(ModelSpec(model="smp:PSPNet", options=LIGHTNING_STUDENT, checkpoint=spec), 10, notices=[])
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, saved[f"distiller.student.{name}"])


LIGHTNING_STUDENT = {"encoder_name": "mobilenet_v2", "encoder_depth": 3, "psp_out_channels": 16}


def example_networks() -> tuple[nn.Module, nn.Module]:
    """The networks of the Lightning example."""
    import segmentation_models_pytorch as smp

    options = {"encoder_weights": None, "encoder_depth": 3, "classes": 10}
    student = smp.PSPNet("mobilenet_v2", psp_out_channels=16, **options)
    return student, smp.PSPNet("resnet18", psp_out_channels=64, **options)


@pytest.mark.slow
def test_accelerate(tmp_path: Path, built: list[Distiller]) -> None:
    """Cut after two steps and gone on with, the script ends with the weights of one that was not cut."""
    example = load("accelerate_loop")
    example.main(tmp_path / "whole", steps=4)
    example.main(tmp_path / "cut", steps=2)
    example.main(tmp_path / "cut", steps=4, resume=True)
    assert (tmp_path / "cut" / "steps").read_text() == "4"
    for distiller in built:
        assert_without_teacher(tmp_path, distiller.teacher)
    state = load_file(tmp_path / "whole" / "state" / "model.safetensors")
    assert {name.partition(".")[0] for name in state} == {"student", "adapters"}
    whole, cut = (load_file(tmp_path / which / "student.safetensors") for which in ("whole", "cut"))
    assert whole.keys() == built[0].student.state_dict().keys()
    for name, value in whole.items():
        torch.testing.assert_close(cut[name], value, rtol=0, atol=0)


@pytest.mark.slow
def test_own_network(tmp_path: Path, built: list[Distiller], capsys: pytest.CaptureFixture[str]) -> None:
    example = load("own_network")
    example.main(tmp_path, steps=2)
    (distiller,) = built
    assert_without_teacher(tmp_path, distiller.teacher)
    assert [plan.student.tap for plan in distiller.plans] == ["head3", "output[1]", "output[2]"]
    assert "channelwise:output[1]" in capsys.readouterr().out
    fresh = example.Deep(10, 8).eval()
    fresh.load_state_dict(load_file(tmp_path / "student.safetensors"))
    images = torch.rand(1, 3, 64, 96)
    torch.testing.assert_close(fresh(images), distiller.student.eval()(images))
    distiller.train()
    outputs = distiller(images.expand(2, -1, -1, -1)).student
    assert [tuple(output.shape[2:]) for output in outputs] == [(64, 96), (16, 24), (32, 48)]


@pytest.mark.slow
def test_hf_trainer(tmp_path: Path, built: list[Distiller], capsys: pytest.CaptureFixture[str]) -> None:
    """Cut after two steps and gone on with, the Trainer ends with the weights of one that was not cut."""
    transformers = pytest.importorskip("transformers")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the Trainer's remarks on pinned memory and the like
        example = load("hf_trainer")
        example.main(tmp_path / "whole", steps=4)
        example.main(tmp_path, steps=2)
        example.main(tmp_path, steps=4, resume=True)
    whole = built[0].student.state_dict()
    assert "eval_pixel_accuracy" in capsys.readouterr().out
    for distiller in built:
        assert_without_teacher(tmp_path, distiller.teacher)
    distiller = built[-1]
    for name, value in distiller.student.state_dict().items():
        torch.testing.assert_close(value, whole[name], rtol=0, atol=0)
    saved = load_file(tmp_path / "trainer" / "checkpoint-2" / "model.safetensors")
    assert {".".join(name.split(".")[:2]) for name in saved} == {"distiller.student"}
    student = transformers.SegformerForSemanticSegmentation.from_pretrained(tmp_path / "student")
    for name, value in distiller.student.state_dict().items():
        torch.testing.assert_close(student.state_dict()[name], value.cpu())
