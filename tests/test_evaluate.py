"""Images of any size, and of several sizes, through networks that want multiples."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from densekd.errors import ModelError
from densekd.evaluate import confusion
from densekd.models import ModelSpec, build_model, output_at_any_size
from densekd.models.sizes import fitting_size
from densekd.predict import predict
from densekd.runs import train
from densekd.runs.score import score_run
from densekd.taps import main_output
from densekd.tasks.segmentation import SegmentationTask
from densekd.tasks.specs import SegmentationSpec

CPU = torch.device("cpu")
TASK = SegmentationTask(SegmentationSpec(), 3, 255, ("a", "b", "c"))
SMALL = {"encoder_name": "resnet18", "encoder_depth": 3, "psp_out_channels": 16}


class Picky(nn.Module):
    """Wants multiples of 8 as networks of segmentation-models-pytorch do; its map has a stride of 2."""

    requires_divisible_input_shape = True

    def __init__(self, stride: int = 2) -> None:
        super().__init__()
        self.encoder = nn.Conv2d(3, 4, 3, stride=stride, padding=1)
        self.encoder.output_stride = 8
        self.head = nn.Conv2d(4, 3, 1)
        self.seen: list[tuple[int, ...]] = []

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        if images.shape[2] % 8 or images.shape[3] % 8:
            raise RuntimeError("Wrong input shape")
        self.seen.append(tuple(images.shape))
        return {"out": self.head(self.encoder(images))}


def entries(*sizes: tuple[int, int]) -> list[dict[str, Any]]:
    draw = torch.Generator().manual_seed(0)
    return [
        {
            "image": torch.randn(3, *size, generator=draw),
            "label": torch.randint(0, 3, size, generator=draw),
            "index": place,
        }
        for place, size in enumerate(sizes)
    ]


def test_fitting_sizes() -> None:
    assert fitting_size((90, 100), 32) == (96, 128)
    assert fitting_size((96, 1), 32) == (96, 32)
    assert fitting_size((7, 9), 1) == (7, 9)


@pytest.mark.parametrize("stride", [1, 2])
def test_padding_lies_right_and_below_and_is_cut_off_again(stride: int) -> None:
    network, images = Picky(stride).eval(), torch.randn(2, 3, 13, 16)
    with torch.no_grad():
        found = output_at_any_size(network, images)
        padded = network(torch.cat([images, torch.zeros(2, 3, 3, 16)], dim=2))["out"]
    by_hand = F.interpolate(padded, (16, 16), mode="bilinear", align_corners=False)[:, :, :13]
    assert network.seen == [(2, 3, 16, 16)] * 2
    assert found.shape == (2, 3, 13, 16)
    torch.testing.assert_close(found, by_hand)


def test_what_fits_and_what_states_no_multiple_goes_through_untouched() -> None:
    network, plain = Picky().eval(), nn.Conv2d(3, 3, 1)
    with torch.no_grad():
        fits, odd = torch.randn(1, 3, 16, 24), torch.randn(1, 3, 13, 9)
        assert torch.equal(output_at_any_size(network, fits), network(fits)["out"])
        assert output_at_any_size(network, fits).shape == (1, 3, 8, 12)
        assert torch.equal(output_at_any_size(plain, odd), plain(odd))


class Short(nn.Module):
    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network
        self.requires_divisible_input_shape = getattr(network, "requires_divisible_input_shape", False)
        self.encoder = getattr(network, "encoder", None)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return main_output(self.network(images))[:1]


@pytest.mark.parametrize("network", [nn.Conv2d(3, 3, 1), Picky()])
def test_a_map_for_each_image_or_an_error(network: nn.Module) -> None:
    told = r"^the network gives \(1, 3, \d+, \d+\) for 2 images; expected a map for each$"
    with pytest.raises(ModelError, match=told):
        output_at_any_size(Short(network).eval(), torch.randn(2, 3, 13, 16))
    with pytest.raises(ModelError, match=told):
        confusion(Short(network), entries((13, 16), (13, 16)), TASK, device=CPU, batch_size=2)


def test_the_matrix_of_mixed_sizes_is_that_of_single_images() -> None:
    view = entries((13, 16), (20, 9), (13, 16), (8, 8), (20, 9))
    network = Picky()
    seen: list[tuple[int, int]] = []
    together = confusion(network, view, TASK, device=CPU, batch_size=4, watch=lambda *at: seen.append(at))
    assert network.seen == [(1, 3, 8, 8), (2, 3, 16, 16), (1, 3, 24, 16), (1, 3, 24, 16)]
    assert seen == [(0, 5), (1, 5), (3, 5), (4, 5), (5, 5)]
    alone = confusion(network, view[::-1], TASK, device=CPU, batch_size=1)
    assert torch.equal(together.matrix, alone.matrix)
    assert together.matrix.sum() == sum(entry["label"].numel() for entry in view)


def test_loading_processes_change_nothing() -> None:
    view, network = entries((13, 16), (20, 9), (13, 16)), Picky()
    found = [confusion(network, view, TASK, device=CPU, batch_size=2, workers=count).matrix for count in (0, 1)]
    assert torch.equal(*found)


def test_what_is_prepared_is_padded_after_that() -> None:
    network = Picky()
    confusion(network, entries((16, 16)), TASK, device=CPU, prepare=lambda image: F.interpolate(image, (18, 20)))
    assert network.seen == [(1, 3, 24, 24)]


def test_a_library_network_at_90x100() -> None:
    torch.manual_seed(0)
    network = build_model(ModelSpec(model="smp:PSPNet", options=SMALL), 3).eval()
    view = entries((90, 100), (100, 90), (90, 100))
    with torch.no_grad():
        by_hand = network(F.pad(view[1]["image"], (0, 6, 0, 4))[None])[0, :, :100, :90]
        torch.testing.assert_close(output_at_any_size(network, view[1]["image"][None])[0], by_hand)
    assert confusion(network, view, TASK, device=CPU).matrix.sum() == 3 * 90 * 100


def photographs(root: Path) -> Path:
    draw = np.random.default_rng(0)
    for split, size in (("train", (90, 100)), ("val", (90, 100)), ("val", (100, 90))):
        for kind in ("images", "masks"):
            (root / split / kind).mkdir(parents=True, exist_ok=True)
        for number in range(2):
            name = f"{size[0]}-{number}.png"
            image, label = draw.integers(0, 256, (*size, 3)), draw.integers(0, 3, size)
            Image.fromarray(image.astype(np.uint8)).save(root / split / "images" / name)
            Image.fromarray(label.astype(np.uint8)).save(root / split / "masks" / name)
    return root


def recipe(root: Path, crop: list[int] | None) -> dict[str, Any]:
    return {
        "data": {
            "name": "folder",
            "root": str(root),
            "classes": ["a", "b", "c"],
            "augment": {"size": None, "crop": crop, "scale": [1.0, 1.0]},
        },
        "student": {"model": "smp:PSPNet", "options": SMALL},
        "train": {"steps": 2, "batch_size": 2, "evaluate_batch_size": 4},
        "runtime": {"device": "cpu", "threads": 1, "channels_last": True},
    }


@pytest.mark.slow
def test_a_run_on_photographs_of_mixed_sizes_as_stored(tmp_path: Path) -> None:
    root = photographs(tmp_path / "data")
    run = train(recipe(root, [64, 64]), out=tmp_path / "run")
    assert any(line.startswith("student: all weights start at random") for line in run.record.warnings)
    best = run.record.best.model_dump()
    best.pop("step")
    assert best["images"] == 4
    assert score_run(run).model_dump() == best
    made = predict(run, [root / "val" / "images"], tmp_path / "out", batch_size=2)
    right = total = 0
    for one in made:
        mask, label = (np.asarray(Image.open(path)) for path in (one.mask, root / "val" / "masks" / one.image.name))
        right, total = right + (mask == label).sum(), total + label.size
    assert right / total == pytest.approx(best["pixel_accuracy"], abs=1e-4)
