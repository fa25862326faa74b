from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image

from densekd.bench import data
from densekd.bench.data import Common
from densekd.bench.pictures import VOID, Kind, draw_pictures
from densekd.data.augment import AugmentSpec
from densekd.data.transforms import TrainTransform
from densekd.data.views import TrainView
from densekd.errors import ArgumentError, DensekdError
from densekd.records import BenchRecord, dump

TINY = Kind("png", (32, 64), (24, 40))


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Any:
    return draw_pictures(tmp_path_factory.mktemp("drawn"), TINY, data.PICTURES, lambda: None)


def test_the_files_are_as_described(drawn: Any) -> None:
    assert len(drawn) == data.PICTURES
    with Image.open(drawn.pairs[0].image) as picture, Image.open(drawn.pairs[0].mask) as mask:
        assert (picture.format, picture.mode, picture.size) == ("PNG", "RGB", (64, 32))
        assert (mask.format, mask.mode, mask.size) == ("PNG", "L", (64, 32))
    assert str(TINY) == "png 32x64, crop 24x40"


@pytest.mark.parametrize("epoch", range(4))
def test_both_pipelines_make_the_same_crops(drawn: Any, epoch: int) -> None:
    spec = AugmentSpec(crop=TINY.crop)
    common, ours = Common(drawn, spec, TINY.crop), TrainView(drawn, TrainTransform(spec, VOID), data.SEED)
    one, other = common[epoch, 1], ours[epoch, 1]
    valid = other["valid"]
    assert one["image"].shape == (3, *TINY.crop)
    assert torch.equal(one["label"] == VOID, other["label"] == VOID)
    assert float((one["label"] != other["label"]).float().mean()) < 0.05
    # Pillow and torch round the weights of a resampling in different ways: two levels of 8 bits at most.
    assert float((one["image"] - other["image"])[:, valid].abs().max()) <= 2.01 / 255 / min(spec.std)


def test_pipelines_that_disagree_are_not_timed(drawn: Any) -> None:
    variants = data._variants(drawn, TINY)
    data._require_equal(variants, TINY)
    flipped = TrainView(drawn, TrainTransform(AugmentSpec(crop=TINY.crop, flip=1.0), VOID), data.SEED)
    with pytest.raises(DensekdError, match=r"disagree on png 32x64, crop 24x40: by .* nothing was timed"):
        data._require_equal({**variants, "densekd": flipped}, TINY)


def test_mistakes_are_named() -> None:
    for options in ({"images": 3}, {"rounds": 0}, {"workers": (-1,)}, {"workers": ()}):
        with pytest.raises(ArgumentError, match=r"images >= 4, rounds >= 1 and workers from 0"):
            data.run(**options)  # type: ignore[arg-type]


@pytest.mark.slow
def test_a_record_of_both_with_and_without_loading_processes(tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []
    record = data.run(
        kinds=(TINY,), workers=(0, 1), images=4, rounds=2, progress=lambda done, total: seen.append((done, total))
    )
    assert seen == [(n, 10) for n in range(1, 11)]
    assert BenchRecord.model_validate(dump(record)).bench == "data"
    assert [(case.name, case.variant) for case in record.cases] == [
        (f"png 32x64, crop 24x40, {workers} workers", variant)
        for workers in (0, 1)
        for variant in ("common", "densekd")
    ]
    for case in record.cases:
        assert len(case.samples) == 2
        assert case.extra["images_per_second"] == pytest.approx(1 / case.median_seconds)
        assert case.extra["image_bytes"] > 1000
    assert record.cases[0].ratio == record.cases[2].ratio == 1.0
    assert record.environment["decoder"].endswith("Pillow")
    assert [row["variant"] for row in data.rows(record)] == ["common", "densekd"] * 2
