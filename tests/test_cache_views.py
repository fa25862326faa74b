"""A fixed number of views of each image: drawn by (seed, view, index), and refused where they are other ones."""

from __future__ import annotations

import zlib

import pytest
import torch

from densekd.config import CacheSpec, Recipe, load_recipe, recipe_digest
from densekd.data.augment import AugmentSpec
from densekd.data.base import Sample
from densekd.data.seen import SeenView
from densekd.data.transforms import TrainTransform
from densekd.data.views import TrainView, fingerprint
from densekd.errors import ConfigError, DataError
from densekd.runs.cache.key import probe
from densekd.runs.cache.sets import narrowed, serving, stale
from densekd.study.methods import ALONE, Method
from densekd.teacher_cache import CacheKey
from densekd.teacher_cache.header import Header, write_header
from densekd.training.batcher import Batcher
from densekd.training.specs import TermSpec

SPEC = AugmentSpec(crop=(12, 14), jitter={"brightness": 0.2})
RECIPE = {
    "data": {"name": "folder", "root": "data", "classes": ["a", "b"]},
    "student": {"model": "nets.py:student"},
    "train": {"steps": 2},
}


class Drawn:
    classes = ("a", "b")
    palette = ((1, 1, 1), (2, 2, 2))
    ignore_index = 255

    def __init__(self, first: int = 0) -> None:
        self.first = first

    def __len__(self) -> int:
        return 5

    def load(self, index: int) -> Sample:
        draw = torch.Generator().manual_seed(self.first + index)
        image = torch.randint(0, 256, (3, 16, 20), generator=draw, dtype=torch.uint8)
        return Sample(image, torch.randint(0, 2, (16, 20), generator=draw))

    def name_of(self, index: int) -> str:
        return f"street-{index}"


def view(seed: int = 3, views: int | None = 2, spec: AugmentSpec = SPEC, first: int = 0) -> TrainView:
    return TrainView(Drawn(first), TrainTransform(spec, 255), seed, views)


class TestViews:
    def test_epochs_come_back_to_the_same_views(self):
        shown = view()
        for epoch in range(5):
            one, again = shown[epoch, 1], shown[epoch % 2, 1]
            assert all(torch.equal(one[name], again[name]) for name in ("image", "label", "valid", "sample"))
            assert one["sample"].tolist() == [epoch % 2, 1]
        assert not torch.equal(shown[0, 1]["image"], shown[1, 1]["image"])

    def test_they_are_those_of_the_first_epochs_of_a_run_without(self):
        # The key is (seed, view, index): a set with more views begins with those of one with fewer.
        for count in (2, 4):
            for number in range(2):
                assert torch.equal(view(views=count)[number, 0]["image"], view(views=None)[number, 0]["image"])

    def test_the_fingerprint_is_the_crc_of_the_bytes(self):
        image = view()[1, 2]["image"]
        assert view()[1, 2]["fingerprint"] == zlib.crc32(image.numpy().tobytes()) == fingerprint(image)
        changed = image.clone()
        changed.view(torch.int32)[0, 0, 0] ^= 1
        assert fingerprint(changed) != fingerprint(image)

    def test_without_views_an_entry_is_as_it_was(self):
        assert set(view(views=None)[7, 2]) == {"image", "label", "valid", "index"}

    def test_batches_carry_samples_whatever_the_rank_and_the_start(self):
        def seen(first, rank=0, world=1):
            batches = Batcher(view(), 5, 2, seed=9, rank=rank, world=world).batches(first, 6 // world)
            return [[tuple(pair) for pair in batch["sample"].tolist()] for batch in batches]

        whole = seen(0)
        assert {pair for batch in whole for pair in batch} >= {(0, index) for index in range(5)}
        assert seen(3) == whole[3:]
        assert [batch for pair in zip(seen(0, 0, 2), seen(0, 1, 2), strict=True) for batch in pair] == whole


class TestSeen:
    def stored(self, shown):
        return torch.tensor([[shown[number, index]["fingerprint"] for index in range(5)] for number in range(2)])

    def test_what_the_teacher_saw_passes(self):
        shown = view()
        checked = SeenView(shown, self.stored(shown), "cache/x")
        assert torch.equal(checked[3, 4]["image"], shown[1, 4]["image"])
        assert len(checked) == 5

    @pytest.mark.parametrize(
        "other",
        [{"first": 1}, {"seed": 4}, {"spec": SPEC.model_copy(update={"flip": 1.0})}],
        ids=["another image", "another seed", "another augmentation"],
    )
    def test_anything_else_stops(self, other):
        checked = SeenView(view(**other), self.stored(view()), "cache/x")
        # A flip of 0.5 may have been drawn already: not every view need be another.
        here, there = self.stored(checked.view), self.stored(view())
        number, index = (here != there).nonzero()[0].tolist()
        with pytest.raises(DataError, match=r"view \d of image 'street-\d' is not what the teacher saw .* in cache/x"):
            checked[number, index]


class TestProbe:
    def test_it_tells_augmentations_apart_and_nothing_else(self):
        assert probe(SPEC) == probe(SPEC.model_copy())
        others = [{"flip": 1.0}, {"scale": (1.0, 2.0)}, {"crop": (10, 14)}, {"mean": (0.4, 0.4, 0.4)}]
        assert len({probe(SPEC), *(probe(SPEC.model_copy(update=change)) for change in others)}) == 5

    def test_a_library_that_gives_other_pixels_is_noticed(self, monkeypatch):
        from densekd.data import transforms

        before, resized = probe(SPEC), transforms.resized_image
        monkeypatch.setattr(transforms, "resized_image", lambda *given: resized(*given).bitwise_xor(1))
        assert probe(SPEC) != before


def key(taps=("logits",), views=4, flip=0.5, sha256="a" * 64, precision="float32") -> CacheKey:
    return CacheKey(
        {
            "teacher": {"sha256": sha256, "precision": precision},
            "taps": {tap: [2, 3, 3] for tap in taps},
            "data": {"augment": {"flip": flip}},
            "views": views,
            "seed": 0,
            "encoding": "int8",
        }
    )


def lay(root, made: CacheKey, name: str) -> None:
    folder = root / name
    folder.mkdir(parents=True)
    taps = {tap: tuple(shape) for tap, shape in made.values["taps"].items()}
    write_header(folder, Header(made, taps, made.values["views"], 5, "int8", 4.0, (), None))


class TestChoice:
    def test_more_taps_and_more_views_serve(self):
        wanted = key()
        for larger in (key(("logits", "layer4")), key(views=16), key(("layer4", "logits"), views=5), wanted):
            assert narrowed(larger, wanted) == wanted
        for other in (key(("layer4",)), key(views=3), key(flip=0.25), key(sha256="b" * 64)):
            assert narrowed(other, wanted) != wanted

    def test_the_very_set_comes_first_then_the_smallest(self, tmp_path):
        lay(tmp_path, key(views=16), "a")
        lay(tmp_path, key(("logits", "layer4")), "b")
        lay(tmp_path, key(), "z")
        lay(tmp_path, key(flip=0.1), "c")
        assert [one.path.name for one in serving(tmp_path, key())] == ["z", "b", "a"]

    def test_a_number_format_that_was_chosen_by_measuring_may_be_another(self, tmp_path):
        lay(tmp_path, key(precision="bfloat16"), "a")
        lay(tmp_path, key(precision="bfloat16", flip=0.1), "b")
        assert serving(tmp_path, key()) == []
        assert [one.path.name for one in serving(tmp_path, key(), any_precision=True)] == ["a"]
        lay(tmp_path, key(), "z")
        assert [one.path.name for one in serving(tmp_path, key(), any_precision=True)] == ["z", "a"]
        begun = key(precision="bfloat16").digest
        assert [one.path.name for one in serving(tmp_path, key(), any_precision=True, before=begun)] == ["a", "z"]

    def test_a_set_of_another_kind_serves_nobody(self, tmp_path):
        made = CacheKey({"mine": 1})
        (tmp_path / "a").mkdir()
        write_header(tmp_path / "a", Header(made, {"logits": (2, 3, 3)}, 4, 5, "int8", 4.0, (), None))
        assert serving(tmp_path, key()) == []

    def test_a_stale_one_is_told_by_what_differs(self, tmp_path):
        lay(tmp_path, key(sha256="b" * 64, flip=0.1), "far")
        lay(tmp_path, key(flip=0.25), "near")
        lay(tmp_path, key(views=16), "serves")
        assert stale(tmp_path, key()) == [
            f"cache: {tmp_path / 'near'} is of other values (data.augment.flip: 0.25 there, 0.5 here): left as it is, "
            "not read"
        ]
        assert stale(tmp_path / "nowhere", key()) == []

    def test_one_begun_in_the_number_format_that_was_chosen_then(self, tmp_path):
        lay(tmp_path, key(flip=0.25), "near")
        lay(tmp_path, key(precision="bfloat16"), "begun")
        (line,) = stale(tmp_path, key(), any_precision=True)
        assert line.startswith(f"cache: {tmp_path / 'begun'} is not whole, and was begun in bfloat16")
        assert "teacher.engine.dtype=bfloat16 goes on with it" in line


class TestRecipe:
    def test_a_text_is_the_root(self):
        recipe = load_recipe(RECIPE, {"distill.cache": "maps"})
        assert recipe.distill.cache.root.endswith("/maps")
        assert (recipe.distill.cache.views, recipe.distill.cache.encoding) == (4, "bfloat16")
        more = load_recipe({**RECIPE, "distill": {"cache": "maps"}}, {"distill.cache.views": 2})
        assert more.distill.cache.model_dump() == {**recipe.distill.cache.model_dump(), "views": 2}

    def test_two_kinds_of_views(self):
        with pytest.raises(ConfigError, match=r"distill\.cache and train\.views are both given"):
            load_recipe(RECIPE, {"distill.cache": "maps", "train.views.count": 3})

    def test_unknown_keys_are_refused(self):
        with pytest.raises(ConfigError, match=r"distill\.cache\.view.*views"):
            load_recipe(RECIPE, {"distill.cache.view": 3})

    def test_place_and_answer_are_no_part_of_a_run(self):
        def digest(**changes):
            return recipe_digest(load_recipe(RECIPE, {f"distill.cache.{name}": new for name, new in changes.items()}))

        assert digest(root="a", ask=True) == digest(root="b", ask=False)
        assert len({digest(views=2), digest(views=3), digest(seed=1, views=2), digest(encoding="int8", views=2)}) == 4

    def test_the_student_alone_sees_the_same_views(self):
        base = Recipe.model_validate({**RECIPE, "distill": {"cache": {"views": 6, "seed": 2}}})
        alone, taught = ALONE.recipe(base, 0), Method("x", "logits", (TermSpec(),)).recipe(base, 0)
        assert (alone.distill.cache, alone.train.views.model_dump()) == (None, {"count": 6, "seed": 2})
        assert taught.train.views is None
        assert isinstance(taught.distill.cache, CacheSpec)
        assert ALONE.recipe(Recipe.model_validate(RECIPE), 0).train.views is None
