"""Stored maps as the teacher of a distiller."""

from __future__ import annotations

import copy
import pickle
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from densekd import TeacherInput
from densekd.distiller import Distiller, Term
from densekd.errors import ArgumentError, CacheError, ShapeError, TapError
from densekd.losses import ChannelWise, FeatureMimic, PixelWise
from densekd.teacher import Batch, LiveTeacher, TeacherSource
from densekd.teacher_cache import CachedTeacher, CacheKey, MapReader, MapWriter
from distiller_parts import images, network

KEY = CacheKey({"teacher": "t"})
VIEWS, IMAGES, SIZE = 2, 3, (16, 24)
CHOSEN = torch.tensor([[1, 2], [0, 0], [1, 0]])


def view(number: int, index: int) -> Tensor:
    return images(VIEWS * IMAGES, *SIZE)[number * IMAGES + index]


def batch_of(chosen: Tensor = CHOSEN) -> Tensor:
    return torch.stack([view(number, index) for number, index in chosen.tolist()])


@pytest.fixture(scope="module")
def teacher() -> nn.Module:
    return network(8, classes=6, seed=1).eval()


@pytest.fixture(scope="module")
def stored(tmp_path_factory, teacher) -> Path:
    folder = tmp_path_factory.mktemp("stored") / "set"
    live = LiveTeacher(teacher, ["logits", "act"])
    taps = {"logits": (6, *SIZE), "act": (8, 8, 12)}
    with MapWriter(folder, KEY, taps=taps, views=VIEWS, images=IMAGES, image_size=SIZE) as made:
        for number, index in made.missing():
            maps = live.maps(Batch((view(number, index)[None],), {}))
            one = {tap: tapped[0] for tap, tapped in maps.items()}
            made.write(number, index, one, fingerprint=10 * number + index)
        assert made.finish().whole
    live.close()
    return folder


@pytest.fixture
def source(stored) -> CachedTeacher:
    return CachedTeacher(MapReader(stored, KEY))


def terms() -> list[Term]:
    return [
        Term(ChannelWise(), student="logits", teacher="logits", weight=3.0),
        Term(FeatureMimic(), student="act", teacher="act"),
    ]


class TestSource:
    def test_gives_what_was_stored(self, source, teacher):
        assert isinstance(source, TeacherSource)
        live = LiveTeacher(teacher, ["logits", "act"]).maps(Batch((batch_of(),), {}))
        asked = Batch((batch_of(),), {}, CHOSEN)
        found = source.maps(asked)
        for tap in ("logits", "act"):
            assert found[tap].dtype == torch.float32
            assert torch.equal(found[tap], live[tap].to(torch.bfloat16).float())
            assert torch.equal(source.submit(asked)()[tap], found[tap])
        assert set(CachedTeacher(source.reader, ["act"]).maps(asked)) == {"act"}

    def test_refused(self, source):
        with pytest.raises(
            ArgumentError, match=r"nothing says which these images are: call distiller\(images, samples"
        ):
            source.maps(Batch((batch_of(),), {}))
        with pytest.raises(ShapeError, match=r"one \(view, index\) for each of the 3 images, got shape \(2, 2\)"):
            source.maps(Batch((batch_of(),), {}, CHOSEN[:2]))
        with pytest.raises(ShapeError, match="stored maps are of images of 16x24, got images of 24x16"):
            source.maps(Batch((batch_of().mT,), {}, CHOSEN))
        with pytest.raises(ShapeError, match="stored maps are of images of 16x24, got images of 8x8"):
            source.example(Batch((torch.rand(2, 3, 8, 8),), {}))
        with pytest.raises(ArgumentError, match="view 0 of image 3 is not stored"):
            source.submit(Batch((batch_of()[:1],), {}, torch.tensor([[0, 3]])))
        with pytest.raises(ArgumentError, match="has no tap 'head'"):
            CachedTeacher(source.reader, ["head"])

    def test_the_student_must_see_what_the_teacher_saw(self, source):
        source.check_seen(CHOSEN, torch.tensor([12, 0, 10]))
        with pytest.raises(CacheError, match="view 1 of image 0 is not what the teacher saw when its maps were stored"):
            source.check_seen(CHOSEN, torch.tensor([12, 0, 11]))

    def test_copies_and_pickles(self, source):
        asked = Batch((batch_of(),), {}, CHOSEN)
        expected = source.maps(asked)["logits"]
        for other in (copy.deepcopy(source), pickle.loads(pickle.dumps(source))):
            assert torch.equal(other.maps(asked)["logits"], expected)
            other.close()
            with pytest.raises(CacheError, match="closed"):
                other.maps(asked)
        assert torch.equal(source.maps(asked)["logits"], expected)


class TestInADistiller:
    def test_as_with_the_live_teacher(self, source, teacher):
        student = network(4, classes=6, seed=2)
        live = Distiller(copy.deepcopy(student), teacher, terms(), images(1, *SIZE))
        cached = Distiller(copy.deepcopy(student), source, terms(), images(1, *SIZE))
        cached.load_state_dict(live.state_dict())
        assert cached.teacher is source
        assert cached.notices == [line for line in live.notices if not line.startswith("teacher:")]
        assert [plan.teacher.shape for plan in cached.plans] == [plan.teacher.shape for plan in live.plans]
        one, other = live(batch_of()), cached(batch_of(), samples=CHOSEN)
        for name, value in one.parts.items():
            assert other.parts[name].item() == pytest.approx(value.item(), rel=0.02, abs=1e-5)
        other.loss.backward()
        assert all(p.grad is not None for p in cached.parameters() if p.requires_grad)
        wrong = cached(batch_of(), samples=CHOSEN.flip(0))
        assert not torch.allclose(wrong.loss, other.loss, rtol=2e-3)
        live.close()

    def test_in_double_on_its_way_elsewhere_and_closed(self, source):
        distiller = Distiller(network(4, classes=6), source, terms(), images(1, *SIZE)).double()
        assert distiller(batch_of().double(), samples=CHOSEN).loss.dtype == torch.float64
        distiller.train()
        distiller.close()
        with pytest.raises(CacheError, match="this reader was closed"):
            source.reader.read(CHOSEN)

    def test_without_samples(self, source):
        distiller = Distiller(network(4, classes=6), source, terms(), images(1, *SIZE))
        with pytest.raises(ArgumentError, match="nothing says which these images are"):
            distiller(batch_of())
        with pytest.raises(ShapeError, match="stored maps are of images of 16x24"):
            Distiller(network(4, classes=6), source, terms(), images(1, 16, 16))

    def test_the_class_map_applies_to_what_was_stored(self, source, teacher):
        groups = [[0, 1], [2], [3, 4, 5]]
        student = network(4, classes=3, seed=2)
        only = [Term(PixelWise(), student="logits", teacher="logits")]
        live = Distiller(copy.deepcopy(student), teacher, only, images(1, *SIZE), class_map=groups)
        own = [Term(PixelWise(), student="logits", teacher="logits")]
        cached = Distiller(copy.deepcopy(student), source, own, images(1, *SIZE), class_map=groups)
        found = cached(batch_of(), samples=CHOSEN).loss
        assert found.item() == pytest.approx(live(batch_of()).loss.item(), rel=0.02, abs=1e-5)
        live.close()
        with pytest.raises(TapError, match="has 3 classes, the teacher's 'logits' has 6"):
            Distiller(copy.deepcopy(student), source, [Term(ChannelWise())], images(1, *SIZE))

    def test_images_are_not_prepared_for_stored_maps(self, source, monkeypatch):
        asked = TeacherInput([0.5] * 3, [0.2] * 3, [0.4] * 3, [0.3] * 3, size=(32, 48))
        distiller = Distiller(network(4, classes=6), source, terms(), images(1, *SIZE), teacher_input=asked)

        def refuse(_images):
            raise AssertionError("the teacher's images were made")

        monkeypatch.setattr(distiller.teacher_images, "forward", refuse)
        assert torch.isfinite(distiller(batch_of(), samples=CHOSEN).loss)

    def test_maps_are_read_as_they_were_stored(self, tmp_path):
        # 4 channels of 6x24 from images of 16x24: by its shape alone this would be 4x6 of 24 channels.
        shape = (4, 6, 24)
        with MapWriter(tmp_path / "set", KEY, taps={"act": shape}, views=1, images=1) as made:
            made.write(0, 0, {"act": torch.rand(shape)})
            made.finish()
        source = CachedTeacher(MapReader(tmp_path / "set", KEY))
        own = [Term(FeatureMimic(), student="act", teacher="act")]
        distiller = Distiller(network(4), source, own, images(2, *SIZE))
        assert tuple(distiller.plans[0].teacher.shape) == (2, *shape)
        source.close()

    @pytest.mark.slow
    def test_compiled(self, source):
        plain = Distiller(network(4, classes=6, seed=2), source, terms(), images(1, *SIZE))
        compiled = torch.compile(copy.deepcopy(plain), backend="aot_eager")
        for chosen in (CHOSEN, CHOSEN.flip(0)):
            one, other = (each(batch_of(chosen), samples=chosen) for each in (plain, compiled))
            torch.testing.assert_close(other.loss, one.loss)
            other.loss.backward()
