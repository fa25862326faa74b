"""CrossImage(memory=True): what its queues hold, when they change, and what the loss makes of them."""

from __future__ import annotations

import copy
import pickle
from collections import deque

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch.nn import functional as F

from densekd.distiller import Distiller, Term
from densekd.doctor import preflight
from densekd.errors import ArgumentError, DtypeError, ShapeError
from densekd.functional.crossimage import crossimage_kl
from densekd.functional.crossimage_memory import crossimage_memory_kl
from densekd.losses import crossimage
from densekd.losses.available_memory import available_bytes
from densekd.losses.class_queue import ClassQueue
from densekd.losses.crossimage import CrossImage

VOID = 255


def bound(classes=4, channels=(3, 6), size=(8, 8), **options):
    torch.manual_seed(0)
    loss = CrossImage(memory=True, **{"pixel_queue": 20, "region_queue": 5, **options})
    loss.bind(torch.Size((2, channels[0], *size)), torch.Size((2, channels[1], *size)), classes)
    return loss


def batch(classes=4, channels=(3, 6), size=(8, 8), images=2, seed=0):
    """Maps and labels; the teacher's features are the unit vector of the pixel's class, scaled."""
    generator = torch.Generator().manual_seed(seed)
    labels = torch.randint(classes, (images, *size), generator=generator)
    student = torch.randn(images, channels[0], *size, generator=generator).requires_grad_()
    teacher = torch.eye(classes, channels[1])[labels].movedim(-1, 1) * torch.rand(size, generator=generator).add(0.5)
    return student, teacher.contiguous(), labels


class TestQueue:
    @settings(max_examples=40, deadline=None)
    @given(st.integers(1, 6), st.lists(st.lists(st.integers(0, 2), max_size=9), max_size=5))
    def test_it_is_a_queue_of_fixed_length_per_class(self, size, steps):
        queue, expected, number = ClassQueue(3, size, 2), [deque(maxlen=size) for _ in range(3)], 0
        for kinds in steps:
            features = []
            for kind in kinds:
                number += 1
                features.append([1.0, float(number)])
                expected[kind].append(F.normalize(torch.tensor(features[-1]), dim=0))
            queue.put(torch.tensor(features).view(-1, 2), torch.tensor(kinds, dtype=torch.long))
        assert queue.filled.tolist() == [len(kept) for kept in expected]
        for kind, kept in enumerate(expected):
            order = [(queue.position[kind] - len(kept) + place) % size for place in range(len(kept))]
            if kept:
                torch.testing.assert_close(queue.entries[kind, torch.tensor(order)], torch.stack(list(kept)))
            assert not queue.entries[kind, len(kept) :].any()

    def test_only_what_was_put_in_is_drawn_and_anew_for_each_class(self):
        queue = ClassQueue(3, 50, 2)
        assert queue.sample(4).shape == (0, 2)
        numbers = torch.arange(1.0, 31.0)
        queue.put(torch.stack([torch.ones(60), numbers.repeat(2)], 1), torch.tensor([0] * 30 + [2] * 30))
        torch.manual_seed(0)
        drawn = queue.sample(10)
        found = (drawn[:, 1] / drawn[:, 0]).round().long()
        assert len(found) == 20
        assert set(found.tolist()) <= set(range(1, 31))
        first, second = found[:10].tolist(), found[10:].tolist()
        assert len(set(first)) == len(set(second)) == 10
        assert first != second
        assert len(queue.sample(100)) == 60
        drawn.zero_()
        assert queue.entries[0, 0].any()


class TestWhatTheQueuesHold:
    def test_pixels_and_regions_of_their_own_class(self):
        loss = bound()
        student, teacher, labels = batch()
        labels[:, 0] = VOID
        teacher[:, :, 0] = torch.nan
        labels[1][labels[1] == 3] = 2
        loss(student, teacher.clone(), labels)
        # Pixels of image 1 that are called 2 hold the features of 2 and of 3.
        for kind in (0, 1, 3):
            for queue in (loss.pixels, loss.regions):
                held = queue.entries[kind, : int(queue.filled[kind])]
                assert len(held) > 0
                assert torch.equal(held, torch.eye(6)[kind].expand_as(held))
        here = labels[1] == 2
        mean = torch.stack([teacher[1, :, y, x] / teacher[1, :, y, x].norm() for y, x in here.nonzero()]).mean(0)
        torch.testing.assert_close(loss.regions.entries[2, 1], mean / mean.norm())
        counts = [torch.bincount(one[one != VOID], minlength=4) for one in labels]
        assert loss.regions.filled.tolist() == [sum(int(c[k] > 0) for c in counts) for k in range(4)]
        assert loss.pixels.filled.tolist() == [min(20, sum(min(16, int(c[k])) for c in counts)) for k in range(4)]

    def test_pixels_are_different_ones_drawn_at_random_from_each_image(self):
        size = (6, 10)
        loss = bound(classes=2, channels=(3, 2), size=size, pixels_per_class=7, pixel_queue=100)
        labels = torch.zeros(2, *size, dtype=torch.long)
        labels[:, :, 5:] = 1
        # Every pixel has its own direction.
        number = torch.arange(120.0).view(2, *size)
        teacher = torch.stack([torch.ones_like(number), number], 1)
        drawn = []
        for seed in range(2):
            torch.manual_seed(seed)
            fresh = copy.deepcopy(loss)
            fresh(torch.randn(2, 3, *size), teacher, labels)
            held = fresh.pixels.entries[:, :14]
            drawn.append((held[..., 1] / held[..., 0]).round().long())
            assert fresh.pixels.filled.tolist() == [14, 14]
            for kind in range(2):
                found = drawn[-1][kind].tolist()
                assert len(set(found)) == 14
                assert sum(n < 60 for n in found) == 7
                assert all((n % 10 >= 5) == kind for n in found)
        assert not torch.equal(*drawn)

    def test_masked_pixels_stay_out(self):
        loss = bound()
        student, teacher, labels = batch()
        mask = torch.zeros(2, 8, 8, dtype=torch.bool)
        mask[0, 2:4] = True
        loss(student, torch.where(mask[:, None], teacher, torch.nan), labels, mask)
        assert loss.pixels.filled.sum() == 16
        assert loss.pixels.entries.isfinite().all()
        value = loss(torch.where(mask[:, None], student, torch.nan), teacher, labels, mask)
        assert value.isfinite()

    def test_only_training_changes_them(self):
        loss = bound().eval()
        student, teacher, labels = batch()
        value = loss(student, teacher, labels)
        value.backward()
        assert value == 0
        assert not loss.pixels.filled.any()
        assert not loss.regions.entries.any()
        loss.train()(student, teacher, labels)
        held = copy.deepcopy(loss.state_dict())
        assert loss.eval()(student, teacher, labels) > 0
        assert all(torch.equal(value, held[name]) for name, value in loss.state_dict().items())


class TestValue:
    def test_it_is_the_sum_of_both_memories_on_the_projected_map(self):
        # More is drawn than there is: the draw has no part in the value.
        loss = bound()
        student, teacher, labels = batch()
        labels[0, :3] = VOID
        teacher = teacher + 0.3 * torch.randn(teacher.shape)
        value = loss(student, teacher, labels)
        loss.projector.norm.momentum = 0.0
        seen = labels != VOID
        rows = loss.projector(student.movedim(1, -1)[seen])
        targets = teacher.movedim(1, -1)[seen]
        expected = sum(
            crossimage_memory_kl(
                rows.T[None],
                targets.T[None],
                torch.cat([queue.entries[k, : int(queue.filled[k])] for k in range(4)]),
            )
            for queue in (loss.pixels, loss.regions)
        )
        torch.testing.assert_close(value, expected)
        value.backward()
        assert student.grad.movedim(1, -1)[~seen].abs().sum() == 0
        assert student.grad.movedim(1, -1)[seen].abs().sum() > 0
        assert all(parameter.grad.abs().sum() > 0 for parameter in loss.projector.parameters())

    def test_so_many_are_drawn_in_a_step(self, monkeypatch):
        seen = []
        real = crossimage_memory_kl

        def watched(student, teacher, memory, **options):
            seen.append(len(memory))
            return real(student, teacher, memory, **options)

        monkeypatch.setattr(crossimage, "crossimage_memory_kl", watched)
        loss = bound(pixel_samples=21, region_samples=4)
        loss(*batch())
        assert seen == [4 * (21 // 4 + 1), 4 * 2]

    def test_it_falls_when_the_student_learns(self):
        loss = bound(channels=(6, 6))
        student, teacher, labels = batch(channels=(6, 6))
        student = nn.Parameter(student.detach())
        optimizer = torch.optim.Adam([student, *loss.parameters()], lr=0.05)
        values = []
        for _ in range(30):
            value = loss(student, teacher, labels)
            optimizer.zero_grad()
            value.backward()
            optimizer.step()
            values.append(value.item())
        assert values[-1] < 0.2 * values[0]

    @pytest.mark.parametrize("left", [0, 1])
    def test_all_void_or_one_pixel(self, left):
        loss = bound()
        student, teacher, labels = batch()
        void = torch.full_like(labels, VOID)
        void.view(-1)[:left] = 1
        value = loss(student, teacher, void)
        value.backward()
        assert value.isfinite()
        assert value == 0  # of one pixel nothing else is known yet: the softmax over itself is 1
        assert all(p.grad is not None and p.grad.isfinite().all() for p in loss.parameters())
        assert student.grad.isfinite().all()
        assert loss.pixels.filled.sum() == left
        assert loss(student, teacher, labels) > 0

    def test_autocast_and_half_precision_maps(self):
        student, teacher, labels = batch()
        expected = bound()(student, teacher, labels)
        with torch.autocast("cpu", dtype=torch.bfloat16):
            value = bound()(student, teacher, labels)
        assert value.dtype == torch.float32
        torch.testing.assert_close(value, expected, rtol=0.05, atol=0.0)
        value = bound()(student.bfloat16(), teacher.bfloat16(), labels)
        torch.testing.assert_close(value, expected, rtol=0.05, atol=0.0)
        assert bound().double()(student.double(), teacher.double(), labels).dtype == torch.float64

    def test_other_axes_and_layouts(self):
        student, teacher, labels = batch()
        expected = bound()(student, teacher, labels)
        last = (x.to(memory_format=torch.channels_last) for x in (student, teacher))
        torch.testing.assert_close(bound()(*last, labels), expected)
        flat = (x.flatten(2) for x in (student, teacher))
        torch.testing.assert_close(bound()(*flat, labels.flatten(1)), expected)


def test_copies_keep_the_queues():
    loss = bound()
    student, teacher, labels = batch()
    loss(student, teacher, labels)
    again = pickle.loads(pickle.dumps(copy.deepcopy(loss)))
    assert torch.equal(again.eval()(student, teacher, labels), loss.eval()(student, teacher, labels))
    assert again.pixels.filled.data_ptr() != loss.pixels.filled.data_ptr()
    assert "memory=True, pixel_queue=20, region_queue=5" in repr(loss)


def test_without_memory_it_is_the_function_and_needs_nothing():
    loss = CrossImage(temperature=0.2, pool=3)
    student, teacher, _ = batch()
    mask = torch.rand(2, 8, 8) < 0.7
    loss.bind(student.shape, teacher.shape, 4)
    assert torch.equal(
        loss(student, teacher, mask=mask), crossimage_kl(student, teacher, temperature=0.2, pool=3, mask=mask)
    )
    assert torch.equal(CrossImage()(student, teacher), crossimage_kl(student, teacher, pool=2))
    assert "temperature=0.2, memory=False, pool=3" in repr(loss)
    assert loss.needs == frozenset()
    assert list(loss.parameters()) == list(loss.buffers()) == []
    assert not loss.equal_channels
    assert CrossImage(memory=True).needs == {"labels"}


def small(width, classes=4):
    return nn.Sequential(
        nn.Conv2d(3, width, 3, padding=1), nn.BatchNorm2d(width), nn.ReLU(), nn.Conv2d(width, classes, 1)
    )


def distiller():
    torch.manual_seed(0)
    terms = [Term(CrossImage(memory=True, pixel_queue=30, region_queue=4), student="2", teacher="2", weight=0.1)]
    return Distiller(small(5), small(7), terms, torch.rand(2, 3, 8, 8), num_classes=4)


class TestInADistiller:
    def test_the_dry_run_and_the_pre_flight_leave_the_queues_alone(self):
        whole = distiller()
        loss = whole.adapters["crossimage:2"].loss
        assert whole.adapters["crossimage:2"].adapter.weight is None
        assert (loss.projector.first.in_features, loss.projector.first.out_features) == (5, 7)
        assert not loss.pixels.filled.any()
        images, labels = torch.rand(3, 3, 8, 8), torch.randint(4, (3, 8, 8))
        for _ in range(2):
            held = copy.deepcopy(whole.state_dict())
            report = preflight(whole, (images, labels), lambda output, y: F.cross_entropy(output, y))
            assert report.terms[0].ok, report.problems
            assert all(torch.equal(value, held[name]) for name, value in whole.state_dict().items())
            whole.train()(images, labels=labels).loss.backward()
            assert loss.pixels.filled.sum() > 0

    def test_its_state_restores_the_queues(self):
        whole = distiller().train()
        images, labels = torch.rand(3, 3, 8, 8), torch.randint(4, (3, 8, 8))
        whole(images, labels=labels)
        again = distiller().train()
        again.load_state_dict(whole.state_dict())
        values = []
        for one in (whole, again):
            torch.manual_seed(3)
            values.append(one(images, labels=labels).loss)
        assert torch.equal(*values)
        assert torch.equal(
            whole.adapters["crossimage:2"].loss.pixels.entries, again.adapters["crossimage:2"].loss.pixels.entries
        )


class TestRefusals:
    def test_a_memory_that_does_not_fit(self, monkeypatch):
        monkeypatch.setattr(crossimage, "available_bytes", lambda: 9_500_000_000)
        words = (
            r"the memory of 150 classes x \(20000 \+ 2000\) features x 512 channels takes 6\.76 GB, and twice that "
            r"again while a checkpoint is written; 9\.50 GB are available; lower pixel_queue and region_queue"
        )
        loss = CrossImage(memory=True)
        with pytest.raises(ArgumentError, match=words):
            loss.bind(torch.Size((2, 64, 8, 8)), torch.Size((2, 512, 8, 8)), 150)
        assert loss.pixels is None
        assert list(loss.state_dict()) == []
        term = Term(CrossImage(memory=True, pixel_queue=30_175_000), student="2", teacher="2")
        with pytest.raises(ArgumentError, match=r"takes 6\.76 GB"):
            Distiller(small(5), small(7), [term], torch.rand(1, 3, 8, 8), num_classes=8)

    def test_a_device_without_room(self, monkeypatch):
        loss = bound()

        def full(*_):
            raise torch.OutOfMemoryError("CUDA out of memory")

        monkeypatch.setattr(nn.Module, "_apply", full)
        with pytest.raises(ArgumentError, match=r"4 classes x \(20 \+ 5\) features x 6 channels.*the device does not"):
            loss.to("cpu")

    def test_free_memory_is_that_of_the_container(self, tmp_path):
        whole = available_bytes(tmp_path)
        assert whole > 1e8
        (tmp_path / "memory.stat").write_text("anon 3000\nfile 99\n")
        (tmp_path / "memory.max").write_text("10000\n")
        assert available_bytes(tmp_path) == 7000
        (tmp_path / "memory.max").write_text("max\n")
        assert available_bytes(tmp_path) > 1e8

    def test_in_words(self):
        shapes = torch.Size((2, 3, 8, 8)), torch.Size((2, 6, 8, 8))
        for own, told, words in (
            (None, None, "at least two classes, but their number is unknown; give num_classes"),
            (None, 1, "at least two classes, but their number is 1; give num_classes .2 for a background"),
            (5, 4, "num_classes=5 was given, but there are 4 classes"),
        ):
            with pytest.raises(ArgumentError, match=words):
                CrossImage(memory=True, num_classes=own).bind(*shapes, told)
        CrossImage(memory=True, num_classes=2, pixel_queue=5).bind(*shapes, 1)
        for options, words in (
            ({"pool": 2, "memory": True}, "pool goes with memory=False, got pool=2"),
            ({"pixel_queue": 0}, "pixel_queue: expected a whole number of at least 1, got 0"),
            ({"num_classes": 1}, "num_classes: expected a whole number of at least 2, got 1"),
            ({"region_samples": 1.5}, "region_samples: expected a whole number"),
            ({"temperature": -1}, "positive finite number"),
        ):
            with pytest.raises(ArgumentError, match=words):
                CrossImage(**options)
        student, teacher, labels = batch()
        loss = bound()
        for arguments, error, words in (
            ((student, teacher), ArgumentError, r"memory=True\) needs labels"),
            ((student, teacher, labels.float()), DtypeError, "labels: expected integer"),
            ((student, teacher, labels[:, :4]), ShapeError, "labels: expected"),
            ((student, teacher, labels + 2), ArgumentError, "values from 2 to 5; expected class ids 0 to 3"),
            ((student, teacher[:, :, :4], labels), ShapeError, "one shape in all but the channels"),
            ((student, teacher, labels, labels), DtypeError, "mask: expected bool"),
        ):
            with pytest.raises(error, match=words):
                loss(*arguments)
        assert not loss.pixels.filled.any()
        with pytest.raises(ArgumentError, match=r"call bind\(student_shape"):
            CrossImage(memory=True)(student, teacher, labels)
